//! DEL: repeatable, content with whatever is gone, and careful with what is not ours.

use kit::netns::{Host, IFNAME, LOWER, Node, device_id, tap_exists, tap_number, wait_until};
use serde_json::json;

#[test]
fn of_what_never_was_succeeds() {
    let (node, pod) = (Node::new(), Host::new());
    node.allocated(&pod, tap_number()).succeed("DEL");
    node.cni(&pod, json!({"lowerDevice": LOWER})).succeed("DEL");
    node.cni(&pod, json!({})).succeed("DEL");
}

#[test]
fn twice_succeeds() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).added();
    call.succeed("DEL");
    call.succeed("DEL");
    assert!(!tap_exists(number));
}

#[test]
fn without_a_netns_or_after_it_is_gone_succeeds() {
    let (node, number) = (Node::new(), tap_number());
    let pod = Host::new();
    let call = node.allocated(&pod, number).added();
    drop(pod);
    wait_until("the netns is destroyed", || !tap_exists(number));
    for path in [
        "",
        "/run/netns/there-is-none",
        "/proc/0/ns/net",
        "/etc/passwd/x",
    ] {
        call.clone().env("CNI_NETNS", path).succeed("DEL");
    }
    // The descriptor of before: closed, so that nothing is there.
    call.succeed("DEL");
}

#[test]
fn without_the_lower_device_succeeds() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).added();
    node.host.ip(&format!("link delete {LOWER}"));
    assert!(
        pod.links().is_empty(),
        "the kernel deletes it with its lower device"
    );
    call.succeed("DEL");
    let by_name = node.cni(&pod, json!({"lowerDevice": LOWER, "mode": "bridge"}));
    by_name.succeed("DEL");
}

#[test]
fn does_not_mind_what_is_wrong_with_the_configuration() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).added();
    let call = call.with("mtu", -1).with("owner", "x").with("mac", "x");
    let call = call
        .with("deviceID", "nonsense@")
        .with("prevResult", "broken");
    call.env("CNI_ARGS", "nonsense").succeed("DEL");
    assert!(pod.links().is_empty());
}

#[test]
fn leaves_what_is_no_macvtap_alone() {
    let (node, pod) = (Node::new(), Host::new());
    pod.ip(&format!("link add {IFNAME} type bridge"));
    node.allocated(&pod, tap_number()).succeed("DEL");
    assert_eq!(pod.links(), [IFNAME]);
}

#[test]
fn refuses_a_path_that_is_no_netns() {
    let (node, pod) = (Node::new(), Host::new());
    for path in ["/etc/passwd", "/dev/null", "/proc/self/ns/mnt"] {
        let call = node.allocated(&pod, tap_number()).env("CNI_NETNS", path);
        let (code, msg) = call.fail("DEL");
        assert!(msg.contains("network namespace"), "{path}: {msg}");
        assert_eq!(code, 8, "{path}");
    }
}

#[test]
fn deletes_one_of_two_attachments() {
    let (node, pod) = (Node::new(), Host::new());
    let (one, two) = (tap_number(), tap_number());
    node.allocated(&pod, one).add();
    let second = node.cni(&pod, json!({"deviceID": device_id(two)}));
    let second = second.env("CNI_IFNAME", "net2");
    second.add();
    second.succeed("DEL");
    assert_eq!(pod.links(), [IFNAME]);
    assert!(tap_exists(one) && !tap_exists(two));
}
