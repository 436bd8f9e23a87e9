//! The kernel is the truth: what learning believes of a port agrees with it, whatever happened,
//! and only the port's own counter shows that a VM is behind it.

use std::{
    fs,
    path::Path,
    process::{self, Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use kit::{
    binary,
    kubelet::Plugin,
    netns::{
        Cni, Host, IFNAME, LOWER, Node, tap_exists, tap_number,
        taps::{arrives, far_tap, open, send},
        wait_until,
    },
    switch::{Learner, Port, VM, broadcast, gratuitous_arp, neighbour, rarp},
};
use macvtap::{
    host::{
        control_socket::Connection,
        netns::{self, Netns},
        packet,
    },
    types::{mac::MacAddr, status::PortStatus},
};
use nix::unistd::gettid;
use serde_json::json;

const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xbb]);

/// What learning believes of a port, if it knows it.
fn belief(learner: &Learner, tap: u32) -> Option<PortStatus> {
    learner.stats().ports.get(&tap).cloned()
}

/// Waits until learning believes of a pod's port what the kernel says.
fn agrees(learner: &Learner, pod: &Host, tap: u32) {
    wait_until("belief and kernel agree", || {
        let parked = pod.mode() == "vepa";
        belief(learner, tap).is_some_and(|port| port.parked == parked)
    });
}

fn index(host: &Host, name: &str) -> u32 {
    let index = host.link(name).unwrap()["ifindex"].as_u64().unwrap();
    u32::try_from(index).unwrap()
}

/// Sends a frame from an interface, whatever its source address.
fn send_from(host: &Host, name: &str, frame: &[u8]) {
    let index = index(host, name);
    drop(host.0.run(|| packet::send(index, frame)).unwrap());
}

/// The frame with a VLAN tag.
fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat()
}

/// ADD made its macvtap in bridge mode, and the query is read only then.
#[test]
fn a_late_answer_is_corrected() {
    let learner = Learner::new();
    let plugin = learner.plugin.as_ref().unwrap();
    plugin.signal("STOP");
    let port = learner.attach();
    plugin.signal("CONT");
    assert_eq!(port.mode(), "bridge");
    wait_until("it is known", || belief(&learner, port.number).is_some());
    agrees(&learner, &port.pod, port.number);
    port.send(&broadcast(VM));
    send(&far_tap(&learner.node), &rarp(VM));
    port.becomes("vepa");
    agrees(&learner, &port.pod, port.number);
}

/// ADD is answered that its port starts parked, and makes it while learning ends.
#[test]
fn a_port_that_is_made_while_learning_ends_does_not_stay_parked() {
    let learner = Learner::new();
    let (pod, number) = (learner.pod(), tap_number());
    let call = learner.node.allocated(&pod, number);
    let delay = "inject=sendto:delay_enter=500000:when=3";
    let call = call.by(&["strace", "-o", "/dev/null", "-e", delay]);
    thread::scope(|scope| {
        let adding = scope.spawn(|| call.add());
        wait_until("it is known", || belief(&learner, number).is_some());
        assert!(pod.link(IFNAME).is_none(), "it is not made yet");
        learner.plugin.as_ref().unwrap().signal("TERM");
        adding.join().unwrap();
    });
    wait_until("it is active", || pod.mode() == "bridge");
}

/// As many queries wait for a device plugin that is stopped as there is room for; the next one
/// is lost.
#[test]
fn a_port_whose_query_was_lost_is_found() {
    let learner = Learner::new();
    let plugin = learner.plugin.as_ref().unwrap();
    plugin.signal("STOP");
    let (_, netns) = learner.node.host.0.identity().unwrap();
    let socket = format!("/run/macvtap/learning-{netns}.sock");
    let mut waiting = Vec::new();
    while let Ok(connection) = Connection::open(Path::new("/run/macvtap"), &socket) {
        waiting.push(connection);
    }
    let port = learner.attach();
    assert_eq!(port.mode(), "bridge");
    drop(waiting);
    plugin.signal("CONT");
    port.send(&broadcast(VM));
    let found = || belief(&learner, port.number).is_some();
    wait_long("it is found", found);
    send(&far_tap(&learner.node), &rarp(VM));
    port.becomes("vepa");
}

/// For what is looked at every few seconds only.
fn wait_long(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..300 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("not in 30 s: {what}");
}

#[test]
fn a_mode_that_an_administrator_sets_is_believed() {
    let learner = Learner::new();
    let port = learner.attach_parked();
    for mode in ["bridge", "vepa", "bridge"] {
        let words = format!("link set {IFNAME} type macvtap mode {mode}");
        port.pod.ip(&words);
        wait_long("it is believed", || {
            belief(&learner, port.number).is_some_and(|known| known.parked == (mode == "vepa"))
        });
        assert_eq!(port.mode(), mode, "and left as it is");
    }
}

/// As the tuning plugin does after ADD.
#[test]
fn another_mac_is_learned() {
    let learner = Learner::new();
    let port = learner.attach_parked();
    port.pod.ip(&format!("link set {IFNAME} address {OTHER}"));
    wait_until("the MAC is known", || {
        belief(&learner, port.number).is_some_and(|known| known.mac == OTHER.to_string())
    });
    port.send(&broadcast(OTHER));
    port.becomes("bridge");
    wait_until("it was seen, not only counted", || {
        learner.stats().replays == 1
    });
    let far = far_tap(&learner.node);
    send(&far, &rarp(VM));
    port.stays("bridge");
    send(&far, &rarp(OTHER));
    port.becomes("vepa");
}

/// A neighbour pretends to be the VM that is still to come.
#[test]
fn a_spoofed_frame_does_not_unpark() {
    let learner = Learner::new();
    let port = learner.attach_parked();
    let neighbour = neighbour(&learner.node);
    send_from(&neighbour, "peer0", &broadcast(VM));
    wait_until("it is recognized", || learner.stats().spoofs == 1);
    assert_eq!(port.mode(), "vepa");
    port.send(&rarp(VM));
    port.becomes("bridge");
    // And once it has left.
    send(&far_tap(&learner.node), &gratuitous_arp(VM));
    port.becomes("vepa");
    send_from(&neighbour, "peer0", &broadcast(VM));
    wait_until("it is recognized", || learner.stats().spoofs == 2);
    assert_eq!(port.mode(), "vepa");
}

/// A router with VRRP, a host of nested VMs: their frames have other MACs than the interface.
#[test]
fn a_frame_with_another_mac_unparks() {
    let learner = Learner::new();
    let vrrp = MacAddr([0, 0, 0x5e, 0, 1, 10]);
    let group = MacAddr([1, 0, 0x5e, 0, 0, 18]);
    let none = MacAddr([0; 6]);
    let lldp: [&[u8]; 4] = [
        &[1, 0x80, 0xc2, 0, 0, 0x0e],
        &OTHER.0,
        &[0x88, 0xcc],
        &[0; 50],
    ];
    let unicast: [&[u8]; 4] = [&[2, 0, 0, 0, 0, 0xcc], &OTHER.0, &[8, 0], &[0; 50]];
    for frame in [
        broadcast(vrrp),
        gratuitous_arp(vrrp),
        tagged(&broadcast(vrrp)),
        broadcast(group),
        broadcast(none),
        lldp.concat(),
        unicast.concat(),
        unicast.concat()[..14].to_vec(),
    ] {
        let port = learner.attach_parked();
        port.send(&frame);
        wait_until(&format!("active after {frame:x?}"), || {
            port.mode() == "bridge"
        });
        agrees(&learner, &port.pod, port.number);
        port.cni.succeed("DEL");
    }
}

#[test]
fn a_tagged_first_frame_goes_out_once() {
    let learner = Learner::new();
    let far = far_tap(&learner.node);
    let port = learner.attach_parked();
    let frame = tagged(&broadcast(VM));
    port.send(&frame);
    let timeout = Duration::from_millis(300);
    assert!(arrives(&far, &frame, timeout));
    port.becomes("bridge");
    assert!(!arrives(&far, &frame, timeout), "twice");
}

/// A VM that sends nothing can be reached by its neighbours after a minute, unless it is seen
/// elsewhere, be it in a VLAN.
#[test]
fn a_port_without_a_first_frame_is_active_after_a_minute_unless_there_is_evidence() {
    let learner = Learner::new();
    let far = far_tap(&learner.node);
    let (seen, silent) = (learner.attach_parked(), learner.attach_parked_as(OTHER));
    let attached = Instant::now();
    send(&far, &tagged(&broadcast(VM)));
    thread::sleep(Duration::from_secs(57));
    let mode = silent.mode();
    let late = attached.elapsed() > Duration::from_secs(59);
    assert!(mode == "vepa" || late, "{mode}");
    wait_long("the minute has passed", || silent.mode() == "bridge");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(seen.mode(), "vepa");
    // Then the other turns out to be elsewhere as well.
    send(&far, &broadcast(OTHER));
    silent.becomes("vepa");
}

/// The kernel refuses to change the mode for a time.
#[test]
fn a_refused_change_is_tried_again() {
    let learner = Learner::new();
    let port = learner.attach_parked();
    port.send(&broadcast(VM));
    port.becomes("bridge");
    let id = learner.plugin.as_ref().unwrap().id().to_string();
    let mut command = Command::new("strace");
    command.args(["-f", "-e", "trace=setns", "-e", "inject=setns:error=ENOMEM"]);
    let log = tempfile::NamedTempFile::new().unwrap();
    command.arg("-o").arg(log.path()).args(["-p", &id]);
    let mut strace = command.stderr(Stdio::null()).spawn().unwrap();
    wait_long("strace injects", || {
        fs::read_to_string(log.path()).unwrap().contains("INJECTED")
    });
    let failures = learner.stats().failures;
    send(&far_tap(&learner.node), &rarp(VM));
    wait_until("it is refused", || learner.stats().failures > failures);
    assert_eq!(port.mode(), "bridge");
    assert!(!belief(&learner, port.number).unwrap().parked);
    let interrupt = ["-INT".to_owned(), strace.id().to_string()];
    assert!(
        Command::new("kill")
            .args(interrupt)
            .status()
            .unwrap()
            .success()
    );
    strace.wait().unwrap();
    port.becomes("vepa");
    agrees(&learner, &port.pod, port.number);
}

/// A pod can make links that look like ports, and lower devices can be moved away from the node.
#[test]
fn foreign_links_are_not_learned_and_harm_no_port() {
    let mut learner = Learner::new();
    let Port { pod, number, .. } = learner.attach_parked();
    let foreign = learner.pod();
    foreign.ip("link add low type veth peer name high");
    foreign.ip("link set low up");
    // As ADD marks them; one with the number of the victim's tap.
    for (name, number) in [("one", tap_number()), ("two", number)] {
        foreign.ip(&format!(
            "link add {name} index {number} link low group 1836479600 type macvtap mode vepa"
        ));
    }
    // One whose lower device leaves the node, as a VF does that a pod is given.
    learner
        .node
        .host
        .ip("link add nic1 type veth peer name far1");
    let (moved, away) = (learner.pod(), Host::new());
    learner.node.host.ip(&format!(
        "link add moved index {} link nic1 group 1836479600 type macvtap mode bridge",
        tap_number()
    ));
    let words = format!("link set moved netns {}", moved.path());
    learner.node.host.ip(&words);
    let words = format!("link set nic1 netns {}", away.path());
    learner.node.host.ip(&words);
    learner.kill();
    learner.start();
    let ports = learner.stats().ports;
    assert_eq!(
        ports.keys().collect::<Vec<_>>(),
        [&number],
        "{}",
        learner.log()
    );
    send(&open(number), &broadcast(VM));
    wait_until("it is active", || pod.mode() == "bridge");
    let later = learner.attach_parked_as(OTHER);
    later.send(&broadcast(OTHER));
    later.becomes("bridge");
    let link = foreign.link("one").unwrap();
    assert_eq!(link["linkinfo"]["info_data"]["mode"], "vepa");
}

/// What a macvtap is made on that is a pod's own, is on the node's lower device.
#[test]
fn a_pod_cannot_keep_another_pods_port_parked_nor_fill_the_table() {
    let mut learner = Learner::new();
    let Port { pod, number, .. } = learner.attach_parked();
    let Port { pod: other, .. } = learner.attach_parked_as(OTHER);
    let copies = (0..80)
        .map(|copy| (copy, tap_number()))
        .chain([(80, number)]);
    for (copy, number) in copies {
        other.ip(&format!(
            "link add copy{copy} index {number} link net1 group 1836479600 type macvtap mode vepa"
        ));
    }
    learner.kill();
    learner.start();
    let ports = learner.stats().ports;
    assert!(ports.len() <= 64, "{}", ports.len());
    assert!(!ports.contains_key(&number), "{}", learner.log());
    wait_until("it is active", || pod.mode() == "bridge");
}

/// Attaches a pod whose port begins parked. On a busy machine the answer may come too late.
fn attach_parked(call: &Cni<'_>, pod: &Host) {
    wait_until("it begins parked", || {
        call.add();
        let parked = pod.mode() == "vepa";
        if !parked {
            call.succeed("DEL");
        }
        parked
    });
}

/// A pod's netns that only a process has, as with Docker.
#[test]
fn a_port_is_parked_only_where_a_later_device_plugin_finds_it() {
    let mut learner = Learner::new();
    let pod = Host::new();
    let call = learner.node.allocated(&pod, tap_number());
    let hidden = call.clone().with("mac", VM.to_string());
    for _ in 0..3 {
        hidden.add();
        assert_eq!(pod.mode(), "bridge", "nothing would find it again");
        hidden.succeed("DEL");
    }
    let mut sleep = Command::new("sleep");
    let mut process = pod.0.run(|| Ok(sleep.arg("120").spawn()?)).unwrap();
    let number = tap_number();
    let call = learner.node.allocated(&pod, number);
    let path = format!("/proc/{}/ns/net", process.id());
    let call = call.with("mac", VM.to_string()).env("CNI_NETNS", &path);
    attach_parked(&call, &pod);
    learner.kill();
    learner.start();
    wait_until("it is found again", || belief(&learner, number).is_some());
    send(&open(number), &broadcast(VM));
    wait_until("it is active", || pod.mode() == "bridge");
    process.kill().unwrap();
    process.wait().unwrap();
}

/// Where they bind the netns of a pod, beside `/run/netns`.
#[test]
fn a_port_is_found_where_docker_and_cri_o_bind_its_netns() {
    for path in ["/run/docker/netns/1a2b", "/run/crio/ns/1a2b/net"] {
        let (node, pod, dir) = (Node::new(), Host::new(), tempfile::tempdir().unwrap());
        let bind = format!("mount --bind {} {path}", pod.path());
        let file = format!("mkdir -p $(dirname {path}) && touch {path}");
        let script = format!("mount -t tmpfs none /run && {file} && {bind}");
        let start = |log| {
            let plugin = Plugin::mounted(&node.host, dir.path(), &script);
            plugin.wait_for_log(log);
            plugin
        };
        let plugin = start("learning ports=0");
        let target = plugin.id().to_string();
        let number = tap_number();
        let call = node.allocated(&pod, number).with("mac", VM.to_string());
        let call = call.env("CNI_NETNS", &format!("/var{path}"));
        let call = call.by(&["nsenter", "--mount", "--target", &target]);
        attach_parked(&call, &pod);
        drop(plugin);
        let _plugin = start("learning ports=1 parked=1");
        send(&open(number), &broadcast(VM));
        wait_until("it is active", || pod.mode() == "bridge");
    }
}

/// A later device plugin looks at no threads: only the runtime knows this one.
#[test]
fn a_port_whose_netns_only_a_thread_has_is_not_parked() {
    let learner = Learner::new();
    let (pod, number) = (Host::new(), tap_number());
    let call = learner.node.allocated(&pod, number);
    let call = call.with("mac", VM.to_string());
    let (started, thread) = mpsc::channel();
    let (done, wait) = mpsc::channel::<()>();
    let pod = &pod;
    thread::scope(|scope| {
        scope.spawn(move || {
            let work = || Ok((started.send(gettid())?, wait.recv()));
            pod.0.run(work).unwrap()
        });
        let (process, thread) = (process::id(), thread.recv().unwrap());
        let path = format!("/proc/{process}/task/{thread}/ns/net");
        call.env("CNI_NETNS", &path).add();
        assert_eq!(pod.mode(), "bridge", "nothing would find it again");
        drop(done);
    });
}

/// ADD enters the netns of the pod: here its query is read just then.
#[test]
fn a_port_is_not_parked_because_add_is_in_its_netns() {
    let learner = Learner::new();
    let plugin = learner.plugin.as_ref().unwrap();
    let (pod, number) = (Host::new(), tap_number());
    let strace = [
        "strace",
        "-qqfo/dev/null",
        "-einject=setns:delay_exit=500000",
    ];
    let call = learner.node.allocated(&pod, number);
    let call = call.with("mac", VM.to_string()).by(&strace);
    plugin.signal("STOP");
    thread::scope(|scope| {
        let add = scope.spawn(|| call.add());
        wait_until("ADD is in the netns", || {
            netns::all().any(|path| {
                let found = Netns::open(&path).ok().flatten();
                found.is_some_and(|found| found.is(&pod.0).unwrap())
            })
        });
        plugin.signal("CONT");
        add.join().unwrap();
    });
    assert_eq!(pod.mode(), "bridge", "nothing would find it again");
    assert!(belief(&learner, number).is_none());
}

/// Starts a process in a pod's netns, and attaches the pod while it runs: its port begins parked.
fn attach_beside_a_process(learner: &Learner, pod: &Host) -> (u32, Child) {
    let mut sleep = Command::new("sleep");
    let process = pod.0.run(|| Ok(sleep.arg("120").spawn()?)).unwrap();
    let number = tap_number();
    let call = learner.node.allocated(pod, number);
    attach_parked(&call.with("mac", VM.to_string()), pod);
    (number, process)
}

/// As `ip netns exec` and `nsenter` are.
#[test]
fn a_port_is_active_when_the_only_process_in_its_netns_has_ended() {
    let learner = Learner::new();
    let pod = Host::new();
    let (number, mut process) = attach_beside_a_process(&learner, &pod);
    process.kill().unwrap();
    process.wait().unwrap();
    wait_until("it is active", || pod.mode() == "bridge");
    wait_until("it is forgotten", || belief(&learner, number).is_none());
}

/// Its descriptor holds no netns for long.
#[test]
fn a_pod_goes_with_the_only_process_in_its_netns() {
    let learner = Learner::new();
    let pod = Host::new();
    let (number, mut process) = attach_beside_a_process(&learner, &pod);
    drop(pod);
    assert!(tap_exists(number));
    process.kill().unwrap();
    process.wait().unwrap();
    wait_until("the netns is destroyed", || !tap_exists(number));
    wait_until("it is forgotten", || belief(&learner, number).is_none());
}

/// The one that learned was killed, and a newer manifest does without.
#[test]
fn a_device_plugin_that_does_not_learn_leaves_no_port_parked() {
    let mut learner = Learner::new();
    let Port { pod, number, .. } = learner.attach_parked();
    learner.kill();
    assert_eq!(pod.mode(), "vepa");
    learner.start_by(Command::new(binary()), &["--learning", "off"]);
    wait_until("it is active", || pod.mode() == "bridge");
    let plugin = learner.plugin.as_ref().unwrap();
    plugin.wait_for_log(&format!("tap={number}"));
}

/// A process by which the netns of a pod is known may end before the pod.
#[test]
fn a_port_is_known_while_a_process_is_in_its_netns() {
    let mut learner = Learner::new();
    learner.kill();
    learner.start_by(Command::new(binary()), &["-v", "4"]);
    let plugin = learner.plugin.as_ref().unwrap();
    plugin.wait_for_log("learning ports=");
    let (pod, number) = (Host::new(), tap_number());
    let sleep = || {
        let mut sleep = Command::new("sleep");
        pod.0.run(|| Ok(sleep.arg("120").spawn()?)).unwrap()
    };
    let (mut first, mut second) = (sleep(), sleep());
    let path = format!("/proc/{}/ns/net", first.id());
    let call = learner.node.allocated(&pod, number);
    let call = call.with("mac", VM.to_string()).env("CNI_NETNS", &path);
    attach_parked(&call, &pod);
    let netns = || belief(&learner, number).map(|port| port.netns);
    // It was seen by then, so that it is known to be gone if it is not there.
    thread::sleep(Duration::from_millis(500));
    let known_by = netns().unwrap();
    if known_by != path {
        std::mem::swap(&mut first, &mut second);
    }
    first.kill().unwrap();
    first.wait().unwrap();
    // A parked port is compared with the kernel each second.
    thread::sleep(Duration::from_millis(2500));
    let log = plugin.log();
    assert!(!log.contains("port is gone"), "{log}");
    let other = format!("/proc/{}/ns/net", second.id());
    assert_eq!(netns(), Some(other));
    send(&open(number), &broadcast(VM));
    wait_until("it is active", || pod.mode() == "bridge");
    second.kill().unwrap();
    second.wait().unwrap();
}

/// kubevirt/macvtap-cni marks its macvtaps by nothing, but the kubelet knows what it allocated.
#[test]
fn ports_that_the_original_made_are_taken_over() {
    let mut learner = Learner::without_plugin();
    let host = &learner.node.host;
    let mut pods = Vec::new();
    for (index, mac) in [(4242, VM), (4243, OTHER)] {
        let pod = learner.pod();
        let number = index + tap_number() % 1000 * 4;
        host.ip(&format!(
            "link add made index {number} address {mac} link {LOWER} type macvtap mode bridge"
        ));
        host.ip(&format!("link set made name {IFNAME} netns {}", pod.path()));
        // What the pod's kernel sends would be taken for the VM's.
        pod.ip(&format!("link set {IFNAME} addrgenmode none"));
        pod.ip(&format!("link set {IFNAME} up"));
        pods.push((pod, number));
    }
    let [(pod, number), (foreign, other)] = &pods[..] else {
        panic!("two pods");
    };
    let file = learner.kubelet_dir().join("kubelet_internal_checkpoint");
    fs::write(file, checkpoint(*number)).unwrap();
    learner.start();
    assert!(belief(&learner, *number).is_some_and(|port| !port.parked));
    assert!(
        belief(&learner, *other).is_none(),
        "nothing says whose it is"
    );
    send(&open(*number), &broadcast(VM));
    let far = far_tap(&learner.node);
    send(&far, &rarp(VM));
    wait_until("it is parked", || pod.mode() == "vepa");
    send(&far, &rarp(OTHER));
    // Marked, it is found again, and not mistaken for one that is in VEPA mode by configuration.
    learner.kill();
    learner.start();
    assert!(belief(&learner, *number).is_some_and(|port| port.parked));
    assert_eq!(foreign.mode(), "bridge");
}

/// The kubelet's checkpoint after it allocated a tap.
fn checkpoint(number: u32) -> String {
    // DeviceSpec of ContainerAllocateResponse, by protobuf: container path and host path.
    let path = format!("/dev/tap{number}");
    let length = u8::try_from(path.len()).unwrap();
    let paths = [[10, length], [18, length]];
    let spec = paths.map(|head| [&head, path.as_bytes()].concat()).concat();
    let response = [&[26, u8::try_from(spec.len()).unwrap()][..], &spec].concat();
    let entry = json!({
        "PodUID": "1", "ContainerName": "compute",
        "ResourceName": "macvtap.network.kubevirt.io/dataplane",
        "DeviceIDs": {"-1": ["dataplaneMvp7"]}, "AllocResp": base64(&response),
    });
    let data = json!({"PodDeviceEntries": [entry], "RegisteredDevices": {}});
    json!({"Data": data, "Checksum": 1}).to_string()
}

fn base64(bytes: &[u8]) -> String {
    let mut command = Command::new("base64");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let output = command.arg("-w0").arg(file.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// `net.core.optmem_max` as it was until Linux 6.7, and as no kernel has it.
#[test]
fn many_ports_learn_where_the_kernel_has_little_room_for_filters() {
    for limit in ["20480", "700"] {
        let learner = Learner::new();
        let limited = || Ok(fs::write("/proc/sys/net/core/optmem_max", limit)?);
        learner.node.host.0.run(limited).unwrap();
        let mac = |n: u8| MacAddr([2, 0, 0, 2, 0, n]);
        let ports: Vec<Port> = (0..60).map(|n| learner.attach_parked_as(mac(n))).collect();
        let far = far_tap(&learner.node);
        for n in [0, 59] {
            let port = &ports[usize::from(n)];
            port.send(&broadcast(mac(n)));
            port.becomes("bridge");
            send(&far, &rarp(mac(n)));
            port.becomes("vepa");
        }
        assert_eq!(learner.stats().failures, 0, "{}", learner.log());
    }
}

/// Frames, restarts and other administrators in any order: within one sweep learning agrees with
/// the kernel on every port.
#[test]
fn belief_follows_the_kernel_through_disturbances() {
    let mut learner = Learner::new();
    let far = far_tap(&learner.node);
    let mac = |n: u8| MacAddr([2, 0, 0, 3, 0, n]);
    let pods = (0..8).map(|n| learner.attach_pod(mac(n)));
    let pods: Vec<_> = pods.map(|(pod, tap, _)| (pod, tap)).collect();
    let mut state: u32 = 12345;
    for step in 0..12 {
        for (n, (pod, tap)) in pods.iter().enumerate() {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
            let n = u8::try_from(n).unwrap();
            match state >> 28 {
                0..=4 => send(&open(*tap), &broadcast(mac(n))),
                5..=7 => send(&far, &rarp(mac(n))),
                8 => drop(pod.ip(&format!("link set {IFNAME} type macvtap mode vepa"))),
                9 => drop(pod.ip(&format!("link set {IFNAME} type macvtap mode bridge"))),
                _ => {}
            }
        }
        if step % 5 == 4 {
            learner.kill();
            learner.start();
        }
        thread::sleep(Duration::from_millis(200));
    }
    thread::sleep(Duration::from_secs(6));
    for (pod, tap) in &pods {
        agrees(&learner, pod, *tap);
    }
}
