//! Ports that are parked and become active again, without a VM: the test sends its frames.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use kit::{
    binary,
    kubelet::{Plugin, command},
    netns::{
        FAR_END, LOWER, tap_exists, tap_number,
        taps::{far_tap, open, send},
        wait_until,
    },
    switch::{Learner, VM, broadcast, connect, gratuitous_arp, rarp},
};
use macvtap::types::mac::MacAddr;
use serde_json::Value;

/// What a migration there and back is, frame by frame.
#[test]
fn a_migration_there_and_back() {
    let (a, b) = (Learner::new(), Learner::new());
    let _switch = connect([&a.node, &b.node]);
    let source = a.attach_parked();
    assert_eq!(source.mode(), "vepa");
    source.cni.succeed("CHECK");
    source.send(&broadcast(VM));
    source.becomes("bridge");
    source.cni.succeed("CHECK");
    let target = b.attach_parked();
    assert_eq!(target.mode(), "vepa");
    for _ in 0..5 {
        source.send(&broadcast(VM));
    }
    target.stays("vepa");
    target.send(&rarp(VM));
    target.becomes("bridge");
    source.becomes("vepa");
    target.send(&rarp(VM));
    target.send(&gratuitous_arp(VM));
    target.stays("bridge");
    source.stays("vepa");
    assert_eq!((a.stats().parks, a.stats().unparks), (1, 1));
    assert_eq!((b.stats().parks, b.stats().unparks), (0, 1));
    source.send(&broadcast(VM));
    source.becomes("bridge");
    target.stays("bridge");
    // Within 200 ms it could be the target's own, reflected.
    std::thread::sleep(Duration::from_millis(250));
    source.send(&gratuitous_arp(VM));
    target.becomes("vepa");
    source.stays("bridge");
}

/// With `hostStack` the kernel of its pod has IPv6, and reports which groups it listens to.
#[test]
fn what_the_pods_kernel_sends_by_itself_does_not_unpark_a_port() {
    let learner = Learner::new();
    let (pod, number, _cni) = learner.attach_pod_with(VM, &[("hostStack", true.into())]);
    wait_until("its kernel has IPv6", || {
        let shown = pod.ip("addr show dev net1");
        shown.contains("fe80:") && !shown.contains("tentative")
    });
    wait_until("it is active", || pod.mode() == "bridge");
    let (far, tap) = (far_tap(&learner.node), open(number));
    let parks = || {
        wait_until("it is parked", || {
            send(&far, &rarp(VM));
            std::thread::sleep(Duration::from_millis(20));
            pod.mode() == "vepa"
        });
    };
    parks();
    let sent = || {
        let shown: Value = serde_json::from_str(&pod.ip("-s -j link show net1")).unwrap();
        shown[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
    };
    for last in 1..6 {
        let before = sent();
        // It joins the group of the address, and looks whether the address is free.
        pod.ip(&format!("addr add fd00:7::{last}/64 dev net1"));
        wait_until("its kernel has sent something", || sent() > before);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(pod.mode(), "vepa", "{}", learner.log());
    }
    send(&tap, &broadcast(VM));
    wait_until("the VM is back", || pod.mode() == "bridge");
    parks();
    // So it is if the pod's own kernel is used.
    let ping = ["ping", "-c", "1", "-W", "1", "fd00:7::99"];
    pod.output(Command::new("busybox").args(ping));
    wait_until("the pod is used", || pod.mode() == "bridge");
}

#[test]
fn the_first_frame_reaches_a_neighbour() {
    let learner = Learner::new();
    let neighbour = learner.attach_parked_as(MacAddr([2, 0, 0, 0, 0, 0xbb]));
    neighbour.send(&broadcast(MacAddr([2, 0, 0, 0, 0, 0xbb])));
    neighbour.becomes("bridge");
    let port = learner.attach_parked();
    port.send(&broadcast(VM));
    neighbour.wait_for(&broadcast(VM));
    port.becomes("bridge");
    wait_until("both are counted", || learner.stats().replays == 2);
    // Another one takes the straight way, once.
    let second = [broadcast(VM), vec![1]].concat();
    port.send(&second);
    neighbour.wait_for(&second);
    assert!(!neighbour.receives(&second));
}

/// A descriptor of the pod's netns would keep pod and tap alive.
#[test]
fn a_pod_that_goes_is_not_held() {
    let learner = Learner::new();
    let plugin = learner.plugin.as_ref().unwrap();
    let descriptors = plugin.descriptors();
    for _ in 0..3 {
        let port = learner.attach_parked();
        port.send(&broadcast(VM));
        port.becomes("bridge");
        let number = port.number;
        drop(port);
        wait_until("the tap is gone", || !tap_exists(number));
    }
    // Five seconds after, the device plugin has forgotten them, and receives nothing any more.
    let start = Instant::now();
    while learner.stats().active + learner.stats().parked > 0 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_until("no descriptor is left", || {
        plugin.descriptors() <= descriptors
    });
}

#[test]
fn a_pod_that_goes_between_event_and_action_harms_no_other() {
    let (a, b) = (Learner::new(), Learner::new());
    let _switch = connect([&a.node, &b.node]);
    let source = a.attach_parked();
    source.send(&broadcast(VM));
    source.becomes("bridge");
    let target = b.attach_parked();
    drop(source);
    target.send(&rarp(VM));
    target.becomes("bridge");
    assert_eq!(a.attach_parked().mode(), "vepa");
    assert_eq!(a.stats().failures, 0);
}

#[test]
fn without_a_device_plugin_ports_begin_as_configured() {
    let mut learner = Learner::without_plugin();
    let before = learner.attach();
    assert_eq!(before.mode(), "bridge");
    let number = before.number;
    let pod = before.pod;
    learner.start();
    // It takes over what it finds.
    assert!(learner.log().contains("learning ports=1 parked=0"));
    learner.kill();
    let after = learner.attach_as(MacAddr([2, 0, 0, 0, 0, 0xcc]));
    assert_eq!(after.mode(), "bridge");
    assert!(tap_exists(number));
    drop(pod);
}

/// One that does not answer costs ADD its 20 ms, and no more.
#[test]
fn a_device_plugin_that_hangs_is_not_waited_for() {
    let learner = Learner::new();
    let plugin = learner.plugin.as_ref().unwrap();
    plugin.signal("STOP");
    let start = Instant::now();
    let macs = (0..12).map(|n| MacAddr([2, 0, 0, 0, 1, n]));
    let ports: Vec<_> = macs.map(|mac| learner.attach_as(mac)).collect();
    let took = start.elapsed();
    plugin.signal("CONT");
    assert!(ports.iter().all(|port| port.mode() == "bridge"));
    assert!(took < Duration::from_secs(10), "{took:?}");
    let port = learner.attach_parked();
    assert_eq!(port.mode(), "vepa");
}

#[test]
fn a_port_is_found_again_after_a_crash() {
    let (mut a, b) = (Learner::new(), Learner::new());
    let _switch = connect([&a.node, &b.node]);
    let port = a.attach_parked();
    assert_eq!(port.mode(), "vepa");
    let (number, pod) = (port.number, port.pod);
    a.kill();
    a.start();
    assert!(a.log().contains("learning ports=1 parked=1"), "{}", a.log());
    send(&open(number), &broadcast(VM));
    wait_until("it is active", || pod.mode() == "bridge");
    // And one that is active is parked when its VM is announced elsewhere.
    a.kill();
    a.start();
    let target = b.attach_parked();
    target.send(&rarp(VM));
    wait_until("it is parked", || pod.mode() == "vepa");
    // A device plugin that ends in order leaves none parked.
    a.plugin.as_ref().unwrap().signal("TERM");
    wait_until("it is left active", || pod.mode() == "bridge");
}

#[test]
fn a_missing_capability_is_named_and_nothing_else_changes() {
    for (capability, name) in [("net_raw", "CAP_NET_RAW"), ("sys_admin", "CAP_SYS_ADMIN")] {
        let mut learner = Learner::without_plugin();
        let mut command = Command::new("setpriv");
        let set = format!("-{capability}");
        command.args(["--bounding-set", &set, "--inh-caps", &set]);
        command.arg(binary());
        learner.start_by(command, &[]);
        let plugin = learner.plugin.as_ref().unwrap();
        plugin.wait_for_log(&format!("reason=\"{name} is missing\""));
        plugin.wait_for_log("health=healthy");
        assert_eq!(learner.attach().mode(), "bridge");
    }
    let mut learner = Learner::without_plugin();
    learner.start_by(Command::new(binary()), &["--learning=off"]);
    let plugin = learner.plugin.as_ref().unwrap();
    plugin.wait_for_log("learning is off");
    assert_eq!(learner.attach().mode(), "bridge");
}

/// As when a new DaemonSet takes over from an old one on the node.
#[test]
fn a_second_device_plugin_learns_when_the_first_has_ended() {
    let mut learner = Learner::new();
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(&[], dir.path());
    command.arg("--netns-dir").arg(learner.netns_dir());
    command.env("DP_MACVTAP_CONF", "[]");
    let second = Plugin::spawn(&learner.node.host, command);
    second.wait_for_log("learning is off");
    assert_eq!(learner.attach_parked().mode(), "vepa");
    learner.kill();
    second.wait_for_log("learning ports=0");
    let port = learner.attach_parked();
    assert_eq!(port.mode(), "vepa");
    port.send(&broadcast(VM));
    port.becomes("bridge");
}

/// A switch port that gives us back what we sent, as a hairpin or a bond does.
#[test]
fn a_reflection_is_no_migration() {
    let (a, b) = (Learner::new(), Learner::new());
    let switch = connect([&a.node, &b.node]);
    switch.ip("link set port0 type bridge_slave hairpin on");
    let port = a.attach_parked();
    port.send(&rarp(VM));
    port.becomes("bridge");
    for _ in 0..3 {
        port.send(&gratuitous_arp(VM));
        std::thread::sleep(Duration::from_millis(60));
    }
    port.stays("bridge");
    assert_eq!(a.stats().parks, 0);
    assert!(a.stats().reflections >= 4, "{:?}", a.stats());
    // Known to reflect, it is watched for good.
    std::thread::sleep(Duration::from_millis(3500));
    port.send(&gratuitous_arp(VM));
    port.stays("bridge");
    assert_eq!(a.stats().parks, 0);
    // A migration is still one.
    let target = b.attach_parked();
    target.send(&rarp(VM));
    port.becomes("vepa");
}

#[test]
fn a_flood_of_announcements_parks_a_few_times_only() {
    let (a, b) = (Learner::new(), Learner::new());
    let _switch = connect([&a.node, &b.node]);
    let victim = a.attach_parked();
    let attacker = b.attach_parked();
    for n in 0..40 {
        // What it sends before it is parked does not count.
        wait_until("the victim is active", || {
            victim.send(&broadcast(VM));
            victim.mode() == "bridge"
        });
        let mut spoofed = gratuitous_arp(VM);
        spoofed[59] = n;
        attacker.send(&spoofed);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(a.stats().parks, 5);
    assert!(a.stats().floods >= 30, "{:?}", a.stats());
}

#[test]
fn a_lower_device_that_comes_back_is_learned_on_again() {
    let learner = Learner::new();
    let (host, wire) = (&learner.node.host, &learner.node.wire);
    let first = learner.attach_parked();
    first.send(&broadcast(VM));
    first.becomes("bridge");
    host.ip(&format!("link del {LOWER}"));
    assert!(first.pod.link("net1").is_none());
    host.ip(&format!("link add {LOWER} type veth peer name {FAR_END}"));
    host.ip(&format!("link set {FAR_END} netns {}", wire.path()));
    host.ip(&format!("link set {LOWER} up"));
    wire.ip(&format!("link set {FAR_END} up"));
    wait_until("it is up", || host.is_up(LOWER));
    let second = learner.attach_parked();
    assert_eq!(second.mode(), "vepa");
    second.send(&broadcast(VM));
    second.becomes("bridge");
}

/// The kernel refuses the second port; the first is not forgotten for it.
#[test]
fn a_second_port_with_the_mac_changes_nothing_for_the_first() {
    let learner = Learner::new();
    let first = learner.attach_parked();
    let (pod, number) = (learner.pod(), tap_number());
    let call = learner.node.allocated(&pod, number);
    let (code, msg) = call.with("mac", VM.to_string()).fail("ADD");
    assert_eq!(code, 11, "{msg}");
    first.send(&broadcast(VM));
    first.becomes("bridge");
}

/// Nothing of another user reaches the device plugin, not even by a socket's name.
#[test]
fn only_root_reaches_the_control_sockets() {
    let learner = Learner::new();
    let (_, netns) = learner.node.host.0.identity().unwrap();
    let name = format!("learning-{netns}.sock");
    let dir = learner.kubelet_dir().join(".macvtap");
    let paths = [
        dir.join("status.sock"),
        dir.join(&name),
        Path::new("/run/macvtap").join(&name),
    ];
    for dir in [learner.kubelet_dir(), learner.kubelet_dir().join("..")] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir, open).unwrap();
    }
    let connects = |command: &mut Command, path: &Path| {
        let script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
        command.args(["/usr/bin/python3", "-c", script]).arg(path);
        let output = learner.node.host.output(command);
        String::from_utf8(output.stderr).unwrap()
    };
    for path in paths {
        assert_eq!(connects(&mut Command::new("env"), &path), "", "{path:?}");
        let mut other = Command::new("setpriv");
        other.args(["--reuid", "65534", "--clear-groups"]);
        let error = connects(&mut other, &path);
        assert!(error.contains("PermissionError"), "{path:?}: {error}");
    }
    let sockets = || Ok(std::fs::read_to_string("/proc/thread-self/net/unix")?);
    let sockets = learner.node.host.0.run(sockets).unwrap();
    assert!(!sockets.contains("@macvtap"), "{sockets}");
}

/// Many ports on one lower device, and a wire full of noise that concerns none of them.
#[test]
fn noise_does_not_keep_two_hundred_ports_from_learning() {
    let learner = Learner::new();
    let mac = |n: u8| MacAddr([2, 0, 0, 1, 0, n]);
    let begin = Instant::now();
    let ports: Vec<_> = (0..200).map(|n| learner.attach_parked_as(mac(n))).collect();
    let tap = far_tap(&learner.node);
    let plugin = learner.plugin.as_ref().unwrap();
    let (before, start, mut sent) = (plugin.processor_time(), Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(3) {
        for n in 0..25 {
            send(&tap, &gratuitous_arp(MacAddr([2, 9, 9, 9, 9, n])));
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let (took, used) = (
        start.elapsed(),
        plugin.processor_time().saturating_sub(before),
    );
    eprintln!("{sent} frames in {took:?} took the device plugin {used:?}");
    assert!(used < took / 10, "{used:?}");
    for (n, port) in ports.iter().enumerate() {
        // After a minute they are active without a frame.
        let late = begin.elapsed() > Duration::from_secs(55);
        assert!(late || port.mode() == "vepa", "{n}: {}", learner.log());
        port.send(&broadcast(mac(u8::try_from(n).unwrap())));
    }
    for port in &ports {
        port.becomes("bridge");
    }
}
