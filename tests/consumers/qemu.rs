//! Guests that QEMU runs on the tap's file descriptor, two on one lower device.

use kit::{
    guest::{Guest, can_run},
    netns::{FAR_END, Host, Node, device_id_in, tap_number},
};
use serde_json::json;

/// Attaches a pod and starts a guest in it.
fn start(node: &Node, mode: &str) -> (Host, Guest) {
    let (pod, number) = (Host::new(), tap_number());
    let call = node.cni(&pod, json!({"deviceID": device_id_in(mode, number)}));
    let result = call.add();
    let mac = result["interfaces"][0]["mac"].as_str().unwrap();
    let guest = Guest::start(&pod, number, mac, &[]);
    (pod, guest)
}

/// Two guests on one lower device whose far end is a port of a bridge.
fn two_guests(mode: &str, check: impl FnOnce(&Node, &mut Guest, &mut Guest)) {
    if !can_run(&["qemu-system-x86_64", "setpriv"]) {
        return;
    }
    let node = Node::new();
    node.wire.ip("link add br0 type bridge");
    node.wire.ip("addr add 10.11.0.1/24 dev br0");
    node.wire.ip(&format!("link set {FAR_END} master br0"));
    node.wire.ip("link set br0 up");
    let ((_pod, mut first), (_other_pod, mut second)) = (start(&node, mode), start(&node, mode));
    for (guest, address) in [(&mut first, "10.11.0.2"), (&mut second, "10.11.0.3")] {
        guest.shell.wait();
        let shell = &mut guest.shell;
        shell.run(&format!(
            "ip addr add {address}/24 dev eth0 && ip link set eth0 up"
        ));
        assert!(shell.reaches("10.11.0.1"), "the wire, in {mode} mode");
    }
    check(&node, &mut first, &mut second);
}

#[test]
fn in_bridge_mode_guests_reach_each_other() {
    two_guests("bridge", |_, first, second| {
        assert!(first.shell.reaches("10.11.0.3"));
        assert!(second.shell.reaches("10.11.0.2"));
    });
}

#[test]
fn in_private_mode_they_do_not_even_by_a_hairpin() {
    two_guests("private", |node, first, _| {
        node.wire
            .ip(&format!("link set {FAR_END} type bridge_slave hairpin on"));
        assert!(!first.shell.reaches("10.11.0.3"));
    });
}

#[test]
fn in_vepa_mode_they_do_by_a_hairpin_only() {
    two_guests("vepa", |node, first, _| {
        assert!(!first.shell.reaches("10.11.0.3"));
        node.wire
            .ip(&format!("link set {FAR_END} type bridge_slave hairpin on"));
        first.shell.run("ip neigh flush dev eth0");
        assert!(first.shell.reaches("10.11.0.3"));
    });
}
