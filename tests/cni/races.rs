//! One device ID for two pods, and a pod that is not quite gone.

use std::{
    os::unix::fs::MetadataExt,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use kit::netns::{
    Cni, Host, IFNAME, LOWER, Node, device_id,
    mounted::{Checkpoint, Mounted},
    owner, tap, tap_exists, tap_number,
    taps::{arrives, far_tap, open, send},
};
use macvtap::types::{device_id::original_link_name, mac::MacAddr};
use tempfile::NamedTempFile;

#[test]
fn a_tap_that_is_in_use_is_answered_with_its_interface() {
    let (node, one, two, number) = (Node::new(), Host::new(), Host::new(), tap_number());
    let first = node.allocated(&one, number).added();
    let second = node.allocated(&two, number);
    let (code, msg) = second.fail("ADD");
    assert_eq!(code, 11, "{msg}");
    assert!(
        msg.contains(&format!("/dev/tap{number} is still in use by")),
        "{msg}"
    );
    assert!(two.links().is_empty());
    first.succeed("CHECK");
    first.succeed("DEL");
    second.added().succeed("CHECK");
}

#[test]
fn the_holder_is_named_where_its_netns_has_a_process() {
    let (node, one, two, number) = (Node::new(), Host::new(), Host::new(), tap_number());
    node.allocated(&one, number).add();
    let mut command = std::process::Command::new("sleep");
    let mut child = one.0.run(|| Ok(command.arg("60").spawn()?)).unwrap();
    let (_, msg) = node.allocated(&two, number).fail("ADD");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(msg.contains(IFNAME), "{msg}");
    assert!(
        msg.contains(&format!("/proc/{}/ns/net", child.id())),
        "{msg}"
    );
}

/// By the results that libcni keeps.
#[test]
fn the_pod_that_has_the_tap_is_named() {
    let (node, one, two, number) = (Node::new(), Host::named(), Host::new(), tap_number());
    node.allocated(&one, number).add();
    let result = serde_json::json!({
        "cniArgs": [["K8S_POD_NAMESPACE", "vms"], ["K8S_POD_NAME", "vm1"]],
        "result": {"interfaces": [{"sandbox": one.path()}]},
    });
    let mounts = format!(
        "mount -t tmpfs tmpfs /var/lib && mkdir -p /var/lib/cni/results && \
         echo '{result}' >/var/lib/cni/results/vms-1 && exec \"$@\""
    );
    let private = ["unshare", "--mount", "--propagation", "private"];
    let words = [&private[..], &["sh", "-c", &mounts, "sh"]].concat();
    let (_, msg) = node.allocated(&two, number).by(&words).fail("ADD");
    assert!(
        msg.ends_with(&format!("in netns {} of pod vms/vm1", one.path())),
        "{msg}"
    );
}

/// A pod with `NET_ADMIN` in its own netns can make macvtaps there, and give them any index.
#[test]
fn a_pod_that_takes_the_number_of_another_gets_nothing_by_it() {
    let (node, squatter, victim, number) = (Node::new(), Host::new(), Host::new(), tap_number());
    squatter.ip("link add v0 type veth peer name v1");
    let squat = || {
        squatter.ip(&format!(
            "link add squat index {number} link v0 type macvtap"
        ))
    };
    squat();
    let call = node.allocated(&victim, number);
    let (code, msg) = call.fail("ADD");
    assert!(code == 11 && msg.contains("is still in use by"), "{msg}");
    assert_eq!(squatter.links().len(), 3, "it was left alone");
    squatter.ip("link delete squat");
    let call = call.added();
    let own = std::fs::metadata(tap(number)).unwrap().rdev();
    squat();
    assert_eq!(std::fs::metadata(tap(number)).unwrap().rdev(), own);
    let far = far_tap(&node);
    let mac = victim.link(IFNAME).unwrap()["address"].clone();
    let mac: MacAddr = mac.as_str().unwrap().parse().unwrap();
    let file = open(number);
    let mut frame = [&mac.0[..], &[2, 0, 0, 0, 0, 0xfe, 0x88, 0xb5]].concat();
    frame.resize(60, 7);
    send(&far, &frame);
    assert!(arrives(&file, &frame, Duration::from_secs(5)));
    drop(file);
    squatter.ip("link delete squat");
    assert_eq!(std::fs::metadata(tap(number)).unwrap().rdev(), own);
    call.succeed("CHECK");
    squat();
    call.succeed("DEL");
    assert!(victim.links().is_empty());
}

#[test]
fn of_two_at_once_exactly_one_wins() {
    // The loser waits for 2 s before it gives up, so the rounds go side by side.
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(race);
        }
    });
}

fn race() {
    let (node, number) = (Node::new(), tap_number());
    let pods = [Host::new(), Host::new()];
    let won = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| {
                let answer = node.allocated(pod, number).call("ADD");
                if answer.status == 0 {
                    won.fetch_add(1, Ordering::Relaxed);
                } else {
                    let error = answer.error();
                    let held = format!("/dev/tap{number} is still in use by");
                    let told = error["msg"].as_str().unwrap().contains(&held);
                    assert!(error["code"] == 11 && told, "{error}");
                    assert!(pod.links().is_empty());
                }
            });
        }
    });
    assert_eq!(won.into_inner(), 1);
    assert_eq!(owner(&tap(number)), (107, 107, 0o600));
    let [winner, loser] = match pods.each_ref() {
        [one, other] if one.links().is_empty() => [other, one],
        pods => pods,
    };
    node.allocated(winner, number).succeed("DEL");
    node.allocated(loser, number).added().succeed("CHECK");
}

#[test]
fn the_number_of_a_dying_pod_can_be_had_at_once() {
    let (node, number) = (Node::new(), tap_number());
    for round in 0..100 {
        let pod = Host::new();
        // Another MAC each time: nothing but the tap tells that the number is in use.
        let mac = format!("02:00:00:00:01:{round:02x}");
        let call = node.allocated(&pod, number).with("mac", mac).added();
        call.succeed("CHECK");
        assert!(tap(number).exists());
    }
    assert!(tap_exists(number) || !tap(number).exists());
}

#[test]
fn many_pods_at_once() {
    let node = Node::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let (pod, number) = (Host::new(), tap_number());
                    let call = node.allocated(&pod, number).added();
                    call.succeed("CHECK");
                    call.succeed("DEL");
                    assert!(!tap_exists(number));
                }
            });
        }
    });
}

/// As the device plugin makes it for a pod that uses the tap alone: it is on the host, and no
/// process has it open just now.
fn tap_only(node: &Node, number: u32) -> String {
    let name = original_link_name(&device_id(number));
    node.host.ip(&format!(
        "link add {name} index {number} link {LOWER} type macvtap mode bridge"
    ));
    name
}

fn of_pod<'a>(call: &Cni<'a>, uid: &str) -> Cni<'a> {
    let args = format!("IgnoreUnknown=1;K8S_POD_UID={uid}");
    call.clone().env("CNI_ARGS", &args)
}

#[test]
fn a_device_that_the_kubelet_gave_to_another_pod_is_left_to_it() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let name = tap_only(&node, number);
    let checkpoint = Checkpoint::new(&[("8a-b", &device_id(number)), ("8a-c", "aMvp1")]);
    let call = checkpoint.enter(&node.allocated(&pod, number));
    let (code, msg) = of_pod(&call, "8a-c").fail("ADD");
    assert!(code == 7 && msg.contains("another pod, UID 8a-b"), "{msg}");
    assert!(node.host.link(&name).is_some() && pod.links().is_empty());
    // The resource got options after that.
    let with_options = device_id(number).replace(":bridge:", ":bridge+q4:");
    let call = call.with("deviceID", with_options);
    let (code, msg) = of_pod(&call, "8a-c").fail("ADD");
    assert!(code == 7 && msg.contains("another pod, UID 8a-b"), "{msg}");
    assert!(node.host.link(&name).is_some() && pod.links().is_empty());
    // Its own pod comes with a network, after one without.
    of_pod(&call, "8a-b").add();
    assert!(node.host.link(&name).is_none());
}

/// A network that names a device ID gets none of another pod's, before that pod has made its macvtap
/// either, and whatever the ID says beside the tap.
#[test]
fn a_device_that_no_pod_uses_yet_is_left_to_that_which_it_was_allocated_to() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let checkpoint = Checkpoint::new(&[("8a-b", &device_id(number)), ("8a-c", "aMvp1")]);
    let call = checkpoint.enter(&node.allocated(&pod, number));
    for id in [
        device_id(number),
        format!("otherMvp3@{LOWER}:vepa:{number}"),
    ] {
        let (code, msg) = of_pod(&call.clone().with("deviceID", id), "8a-c").fail("ADD");
        assert!(code == 7 && msg.contains("another pod, UID 8a-b"), "{msg}");
        assert!(!tap_exists(number) && pod.links().is_empty());
    }
    of_pod(&call, "8a-b").add();
}

/// A call that strace writes of, and what it wrote.
fn fails_with_trace(call: &Cni<'_>, checkpoint: Option<&Checkpoint>) -> (String, String) {
    let log = NamedTempFile::new().unwrap();
    let strace = ["strace", "-o", log.path().to_str().unwrap()];
    let call = call.clone().by(&strace);
    let call = checkpoint.map_or_else(|| call.clone(), |checkpoint| checkpoint.enter(&call));
    let (code, msg) = call.fail("ADD");
    assert_eq!(code, 11, "{msg}");
    (msg, std::fs::read_to_string(log.path()).unwrap())
}

/// While ADD waits, it does not search the machine in every round.
#[test]
fn what_has_a_tap_is_searched_for_once() {
    let (node, one, two, number) = (Node::new(), Host::named(), Host::new(), tap_number());
    node.allocated(&one, number).add();
    let (msg, log) = fails_with_trace(&node.allocated(&two, number), None);
    assert!(msg.contains(&one.path()), "{msg}");
    assert!(log.matches("clock_nanosleep(").count() > 10, "{log}");
    let searches = log.matches("\"/var/lib/cni/results\", O_RDONLY").count();
    assert_eq!(searches, 1, "{log}");
    // Which processes have it open is looked at again, for they may end.
    let number = tap_number();
    tap_only(&node, number);
    let checkpoint = Checkpoint::new(&[("8a-b", &device_id(number))]);
    let file = open(number);
    let call = of_pod(&node.allocated(&two, number), "8a-b");
    let (msg, log) = fails_with_trace(&call, Some(&checkpoint));
    assert!(msg.contains("is still open in"), "{msg}");
    drop(file);
    let searches = log.matches("\"/proc\", O_RDONLY").count();
    assert!((1..=22).contains(&searches), "{searches}: {log}");
}

#[test]
fn what_no_pod_has_is_stale_and_what_cannot_be_known_stays() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let name = tap_only(&node, number);
    let id = device_id(number);
    let call = node.allocated(&pod, number);
    let empty = Mounted::on("/var/lib");
    for (call, why) in [
        (
            empty.enter(&call),
            "reading the kubelet's checkpoint /var/lib/kubelet/device-plugins/",
        ),
        (
            Checkpoint::of("{").enter(&of_pod(&call, "8a-b")),
            "decoding",
        ),
        (
            Checkpoint::new(&[("8a-b", &id)]).enter(&call),
            "no K8S_POD_UID",
        ),
    ] {
        let (code, msg) = call.fail("ADD");
        assert!(code == 11 && msg.contains(why), "{why}: {msg}");
        assert!(node.host.link(&name).is_some() && pod.links().is_empty());
    }
    let checkpoint = Checkpoint::new(&[("8a-b", "aMvp1")]);
    let call = checkpoint.enter(&of_pod(&call, "8a-c"));
    let file = open(number);
    let (code, msg) = call.fail("ADD");
    assert!(code == 11 && msg.contains("is still open in"), "{msg}");
    drop(file);
    call.add();
    assert!(node.host.link(&name).is_none());
}
