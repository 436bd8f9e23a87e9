//! `linkInContainer`: a macvtap on top of an interface of the pod.

use std::os::fd::AsFd;

use kit::netns::{
    Cni, Host, IFNAME, LOWER, Node, WAIT_TIMEOUT, device_id, tap_number,
    taps::{arrives, open, send},
};
use serde_json::{Value, json};

/// The pod's first interface, as another network made it.
const FIRST: &str = "eth7";

/// A pod with an interface that is wired to the far end of a node's wire.
fn pod(node: &Node) -> Host {
    let pod = Host::new();
    let mut socket = pod.0.socket().unwrap();
    socket
        .create_veth(FIRST, "wire7", node.wire.0.as_fd())
        .unwrap();
    pod.ip(&format!("link set {FIRST} up"));
    node.wire.ip("link set wire7 up");
    pod
}

fn call<'a>(node: &'a Node, pod: &Host, extra: &Value) -> Cni<'a> {
    let mut config = json!({"lowerDevice": FIRST, "linkInContainer": true});
    let extra = extra.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(extra);
    let id = format!("c{}", tap_number());
    node.cni(pod, config).env("CNI_CONTAINERID", &id)
}

#[test]
fn a_macvtap_stands_on_an_interface_of_the_pod() {
    let node = Node::new();
    let pod = pod(&node);
    let call = call(&node, &pod, &json!({}));
    let call = call.with("cniVersion", "1.1.0").added();
    let link = pod.link(IFNAME).unwrap();
    assert_eq!(link["link"], FIRST);
    call.succeed("CHECK");
    let number = link["ifindex"].as_u64().unwrap();
    let tap = open(u32::try_from(number).unwrap());
    let mac: macvtap::types::mac::MacAddr = link["address"].as_str().unwrap().parse().unwrap();
    // Frames pass between the tap and the wire of that interface.
    let far_number = tap_number();
    let far = format!("far index {far_number} link wire7 type macvtap mode passthru");
    node.wire.ip(&format!("link add {far}"));
    node.wire.ip("link set far up");
    let far = open(far_number);
    let frame = |to: [u8; 6], from: [u8; 6]| {
        let mut frame = [to, from].concat();
        frame.extend([0x88, 0xb5]);
        frame.resize(100, 0x5a);
        frame
    };
    let other = [2, 0, 0, 0, 0, 0xff];
    let out = frame(other, mac.0);
    send(&tap, &out);
    assert!(arrives(&far, &out, WAIT_TIMEOUT));
    let back = frame(mac.0, other);
    send(&far, &back);
    assert!(arrives(&tap, &back, WAIT_TIMEOUT));
    call.succeed("STATUS");
    call.succeed("DEL");
    assert_eq!(pod.links(), [FIRST]);
    call.succeed("DEL");
}

#[test]
fn the_node_has_no_part_in_it() {
    let node = Node::new();
    let pod = pod(&node);
    let (_, msg) = call(&node, &pod, &json!({"lowerDevice": LOWER})).fail("ADD");
    for part in ["linkInContainer", LOWER, "does not exist"] {
        assert!(msg.contains(part), "{msg}");
    }
    assert_eq!(pod.links(), [FIRST]);
    // Of a device ID the lower device is on the node.
    let own = call(&node, &pod, &json!({"deviceID": device_id(tap_number())}));
    let answer = own.call("ADD");
    assert!(
        answer.stderr.contains("linkInContainer is ignored"),
        "{answer:?}"
    );
    assert_eq!(node.host.links(), [LOWER]);
    let other = Host::new();
    let wrong = call(&node, &other, &json!({"linkInContainer": "yes"}));
    let (code, msg) = wrong.fail("ADD");
    assert!(code == 7 && msg.contains("linkInContainer"), "{msg}");
}

#[test]
fn check_looks_for_the_lower_device_in_the_pod() {
    let node = Node::new();
    let pod = pod(&node);
    let call = call(&node, &pod, &json!({})).added();
    pod.ip(&format!("link set {FIRST} down"));
    pod.ip(&format!("link set {FIRST} name other"));
    let (_, msg) = call.fail("CHECK");
    assert!(msg.contains(FIRST), "{msg}");
}

/// The interface below a macvlan of the pod is on the node: its index there says nothing in the
/// pod, where another interface may have it.
#[test]
fn an_index_that_counts_on_the_node_is_not_looked_up_in_the_pod() {
    let (node, pod) = (Node::new(), Host::new());
    let index = node.host.link(LOWER).unwrap()["ifindex"].as_u64().unwrap();
    let (host, pod_netns) = (&node.host, pod.0.as_fd());
    pod.ip(&format!("link add wrong index {index} type bridge"));
    pod.ip("link set wrong up");
    host.ip(&format!(
        "link add link {LOWER} name macvlan7 type macvlan mode bridge"
    ));
    let mut socket = host.0.socket().unwrap();
    let moved = socket.link_by_name("macvlan7").unwrap().unwrap();
    let to_pod = macvtap::netlink::Change {
        netns: Some(pod_netns),
        name: Some(FIRST),
        ..Default::default()
    };
    socket.change(moved.index, &to_pod).unwrap();
    pod.ip(&format!("link set {FIRST} up"));
    let call = call(&node, &pod, &json!({})).added();
    let link = pod.link(IFNAME).unwrap();
    assert_eq!(link["link_index"], index, "{link}");
    assert_eq!(
        link["link_netnsid"],
        pod.link(FIRST).unwrap()["link_netnsid"]
    );
    call.succeed("CHECK");
    call.succeed("DEL");
    let mac = link["address"].as_str().unwrap();
    // On the interface of the pod that has that index it is another macvtap.
    let number = tap_number();
    pod.ip(&format!(
        "link add {IFNAME} index {number} address {mac} link wrong type macvtap mode bridge"
    ));
    pod.ip(&format!("link set {IFNAME} up"));
    let (_, msg) = call.fail("CHECK");
    assert!(msg.contains("is not on lower device"), "{msg}");
}
