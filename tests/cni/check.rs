//! CHECK: right after ADD all is well; each change of what ADD set up is found.

use std::{fs::Permissions, os::unix::fs::PermissionsExt};

use kit::netns::{Host, IFNAME, LOWER, Node, tap, tap_number};
use serde_json::json;

/// Attaches, does `damage`, and expects CHECK to fail with `text`.
fn finds(text: &str, damage: impl FnOnce(&Node, &Host, u32)) {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).with("mtu", 1400);
    let call = call.with("promiscMode", true).added();
    call.succeed("CHECK");
    damage(&node, &pod, number);
    let (_, msg) = call.fail("CHECK");
    assert!(msg.contains(text), "{msg}");
}

#[test]
fn a_missing_interface() {
    finds("does not exist", |_, pod, _| {
        pod.ip(&format!("link delete {IFNAME}"));
    });
}

#[test]
fn another_interface_of_that_name() {
    finds("not a macvtap", |_, pod, _| {
        pod.ip(&format!("link delete {IFNAME}"));
        pod.ip(&format!("link add {IFNAME} type bridge"));
    });
}

#[test]
fn an_interface_that_is_down() {
    finds("is down", |_, pod, _| {
        pod.ip(&format!("link set {IFNAME} down"));
    });
}

#[test]
fn another_mac_than_the_chain_reported() {
    finds("02:00:00:00:00:77", |_, pod, _| {
        pod.ip(&format!("link set {IFNAME} address 02:00:00:00:00:77"));
    });
}

/// The tuning plugin changes all of them, and CRI-O calls CHECK right after ADD.
#[test]
fn later_plugins_may_have_changed_mtu_promiscuity_and_all_multicast() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number()).with("mtu", 1400);
    let call = call.with("promiscMode", true).with("txQueueLen", 500);
    let call = call.added();
    for change in [
        "mtu 1300",
        "promisc off",
        "allmulticast off",
        "txqueuelen 5",
        "arp on",
        "multicast off",
        "group 5",
        "alias x",
    ] {
        pod.ip(&format!("link set {IFNAME} {change}"));
        call.succeed("CHECK");
    }
    for (sysctl, value) in [
        ("ipv6/conf/net1/disable_ipv6", "0"),
        ("ipv6/conf/net1/accept_ra", "0"),
        ("ipv4/conf/net1/arp_notify", "1"),
        ("ipv4/conf/net1/rp_filter", "0"),
    ] {
        let path = format!("/proc/sys/net/{sysctl}");
        let write = || Ok(std::fs::write(&path, value)?);
        pod.0.run(write).unwrap();
        call.succeed("CHECK");
    }
}

#[test]
fn another_mode_or_lower_device() {
    finds("mode private", |_, pod, _| {
        pod.ip(&format!("link set {IFNAME} type macvtap mode private"));
    });
    finds("not on lower device", |node, _, _| {
        node.host.ip(&format!("link set {LOWER} down"));
        node.host.ip(&format!("link set {LOWER} name other"));
        node.host.ip(&format!("link add {LOWER} type bridge"));
    });
    finds("does not exist", |node, _, _| {
        node.host.ip(&format!("link set {LOWER} down"));
        node.host.ip(&format!("link set {LOWER} name other"));
    });
}

#[test]
fn another_tap_than_allocated() {
    finds("is not the allocated", |node, pod, _| {
        let mac = pod.link(IFNAME).unwrap()["address"].clone();
        pod.ip(&format!("link delete {IFNAME}"));
        let other = node.allocated(pod, tap_number()).with("mac", mac);
        other.with("mtu", 1400).with("promiscMode", true).add();
    });
}

#[test]
fn a_tap_whose_owner_or_mode_changed() {
    finds("belongs to 0:107", |_, _, number| {
        std::os::unix::fs::chown(tap(number), Some(0), None).unwrap();
    });
    finds("mode 0660", |_, _, number| {
        std::fs::set_permissions(tap(number), Permissions::from_mode(0o660)).unwrap();
    });
}

#[test]
fn the_previous_result_must_be_there_and_hold_the_interface() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number());
    let result = call.add();
    assert_eq!(
        call.fail("CHECK"),
        (7, "required prevResult missing".into())
    );
    let mut elsewhere = result.clone();
    elsewhere["interfaces"][0]["sandbox"] = json!("/elsewhere");
    let (_, msg) = call.clone().with("prevResult", elsewhere).fail("CHECK");
    assert!(msg.contains("prevResult has no interface"), "{msg}");
    call.with("prevResult", result).succeed("CHECK");
}

#[test]
fn later_plugins_may_have_changed_the_mac_and_added_addresses() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number());
    let mut result = call.add();
    pod.ip(&format!("link set {IFNAME} address 02:00:00:00:00:79"));
    pod.ip(&format!("address add 192.0.2.9/24 dev {IFNAME}"));
    pod.ip(&format!("link set {IFNAME} mtu 1300"));
    result["interfaces"][0]["mac"] = json!("02:00:00:00:00:79");
    result["ips"] = json!([{"address": "192.0.2.9/24", "interface": 0}]);
    call.with("prevResult", result).succeed("CHECK");
}

#[test]
fn the_mac_of_cni_args_is_not_asked_for_again() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number());
    let add = call.clone().env("CNI_ARGS", "MAC=02:00:00:00:00:7a");
    let result = add.add();
    call.with("prevResult", result).succeed("CHECK");
}

#[test]
fn a_netns_that_is_gone() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number()).added();
    let (code, msg) = call.env("CNI_NETNS", "/run/netns/gone").fail("CHECK");
    assert_eq!(code, 8, "{msg}");
}
