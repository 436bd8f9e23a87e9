//! STATUS and GC.

use kit::netns::{Host, IFNAME, LOWER, Node, tap, tap_number};
use serde_json::json;

#[test]
fn status_says_whether_add_could_work() {
    let (node, pod) = (Node::new(), Host::new());
    node.cni(&pod, json!({})).succeed("STATUS");
    let call = node.cni(&pod, json!({"lowerDevice": LOWER}));
    call.succeed("STATUS");
    node.host.ip(&format!("link set {LOWER} down"));
    assert_eq!(call.fail("STATUS").0, 51);
    node.host.ip(&format!("link delete {LOWER}"));
    let (code, msg) = call.fail("STATUS");
    assert_eq!(code, 50);
    assert!(msg.contains(LOWER), "{msg}");
    assert!(node.host.links().is_empty(), "STATUS made something");
}

#[test]
fn status_without_the_capability_says_which() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.cni(&pod, json!({}));
    let call = call.by(&[
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
    ]);
    let (code, msg) = call.fail("STATUS");
    assert_eq!(code, 50);
    assert!(msg.contains("CAP_NET_ADMIN"), "{msg}");
}

#[test]
fn status_says_whether_limits_could_be_enforced() {
    let (node, pod) = (Node::new(), Host::new());
    let limits = json!({"security": "strict", "bandwidth": {"egressRate": 1000}});
    node.cni(&pod, limits).succeed("STATUS");
    assert_eq!(pod.links(), [""; 0]);
    assert_eq!(node.host.links(), [LOWER]);
}

/// The limits are tried out in a network namespace that a thread makes.
#[test]
fn status_without_a_thread_is_an_error() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.cni(&pod, json!({"bandwidth": {"egressRate": 1000}}));
    let trace = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=clone,clone3",
    ];
    let fault = ["-e", "inject=clone,clone3:error=EAGAIN"];
    let call = call.by(&[&trace[..], &fault].concat());
    let (code, msg) = call.fail("STATUS");
    assert_eq!(code, 50, "{msg}");
    assert!(msg.contains("starting a thread"), "{msg}");
}

#[test]
fn status_refuses_limits_that_no_add_could_have() {
    let (node, pod) = (Node::new(), Host::new());
    for (limits, part) in [
        (json!({"security": "Strict"}), "\"strict\""),
        (
            json!({"security": {"vlans": [4095]}}),
            "security.vlans 4095",
        ),
        (
            json!({"macspoofchk": true, "security": "off"}),
            "contradicts",
        ),
        (
            json!({"bandwidth": {"egressRate": 1}}),
            "bandwidth.egressRate 1",
        ),
        (json!({"bandwidth": {"ingressBurst": 8}}), "no ingressRate"),
    ] {
        let (code, msg) = node.cni(&pod, limits).fail("STATUS");
        assert_eq!(code, 7, "{msg}");
        assert!(msg.contains(part), "{msg}");
    }
}

#[test]
fn gc_leaves_attachments_alone() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).added();
    call.succeed("GC");
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        call.clone().with(key, json!([])).succeed("GC");
        assert_eq!(pod.links(), [IFNAME]);
        assert!(tap(number).exists());
    }
    call.succeed("CHECK");
}
