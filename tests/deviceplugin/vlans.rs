//! Resources in a VLAN of their lower device.

use kit::{
    kernel,
    kubelet::WAIT_TIMEOUT,
    netns::{Host, LOWER, wait_until},
};
use serde_json::{Value, json};

use super::selectors::{Case, one};

/// Those of bonds too.
#[test]
fn all_of_these_under_debians_kernel() {
    kernel::run_tests(&["deviceplugin::vlans::", "bond"]);
}

fn in_vlan(name: &str, vlan: u16) -> Value {
    json!({"name": name, "lowerDevice": LOWER, "vlan": vlan, "capacity": 2})
}

#[test]
fn a_vlan_that_cannot_be_made_is_reported_and_its_devices_are_unhealthy() {
    let case = Case::new(&json!([in_vlan("a", 100), {"name": "b", "lowerDevice": LOWER}]));
    if kernel::has("vlan") {
        return;
    }
    case.on("b", LOWER);
    case.plugin.wait_for_log("VLAN 100 of eth0: ");
    let name = "macvtap.network.kubevirt.io/a";
    let resource = case
        .kubelet
        .wait_for(name, WAIT_TIMEOUT, |resource| resource.connected);
    let resource = resource.unwrap();
    assert_eq!((resource.devices.len(), resource.healthy().len()), (2, 0));
    assert!(
        resource.devices[0].id.contains("@eth0.100:bridge:"),
        "{resource:?}"
    );
    // The device plugin knows a moment after the kubelet that both are registered.
    for applet in ["probe", "doctor"] {
        wait_until(applet, || case.run(&[applet]).contains("modprobe 8021q"));
    }
    assert_eq!(case.node.host.links(), [LOWER]);
}

#[test]
fn another_interface_of_the_name_of_a_vlan_is_left_alone() {
    let case = Case::new(&json!([]));
    let host = &case.node.host;
    host.ip("link add eth0.100 type veth peer name other");
    host.ip("link set eth0.100 up");
    case.configure(&one(&json!("eth0.1*")));
    case.on("a", "eth0.100");
    case.configure(&json!([in_vlan("c", 100), {"name": "b", "lowerDevice": LOWER}]));
    case.on("b", LOWER);
    case.plugin
        .wait_for_log("exists, and is not VLAN 100 of eth0");
    assert!(
        !case
            .kubelet
            .resources()
            .contains(&"macvtap.network.kubevirt.io/c".to_owned())
    );
    case.configure(&json!([{"name": "d", "lowerDevice": LOWER}]));
    case.on("d", LOWER);
    assert!(host.link("eth0.100").is_some());
}

#[test]
fn resources_share_a_vlan_and_the_last_takes_it_along() {
    let case = Case::new(&json!([]));
    if !kernel::has("vlan") {
        return;
    }
    let host = &case.node.host;
    let vlan = "eth0.100";
    case.configure(&json!([in_vlan("a", 100), in_vlan("b", 100)]));
    let id = case.on("a", vlan).remove(0);
    case.on("b", vlan);
    let pod = Host::new();
    let call = case.node.cni(&pod, json!({"deviceID": id})).added();
    call.succeed("CHECK");
    // Lost with its lower device for a moment, or deleted by hand.
    host.ip("link delete eth0.100");
    case.on("a", vlan);
    call.succeed("DEL");
    let call = case.node.cni(&pod, json!({"deviceID": id})).added();
    case.configure(&json!([in_vlan("b", 200)]));
    case.on("b", "eth0.200");
    assert!(host.link(vlan).is_some(), "a pod is on it");
    call.succeed("DEL");
    wait_until("the VLAN is gone", || host.link(vlan).is_none());
}
