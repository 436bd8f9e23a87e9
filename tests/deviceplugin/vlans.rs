//! Resources in a VLAN of their lower device.

use std::time::Duration;

use kit::{
    kernel,
    kubelet::{Plugin, WAIT_TIMEOUT},
    netns::{Host, LOWER, tap_of, wait_until},
};
use macvtap::deviceplugin::status;
use serde_json::{Value, json};

use super::{
    held,
    selectors::{Case, one},
};

/// Those of bonds too, and host access, which depends on how the kernel filters.
#[test]
fn all_of_these_under_debians_kernel() {
    kernel::run_tests(&[
        "deviceplugin::vlans::",
        "discovery_finds_a_bond",
        "host_access::resources_share_it",
    ]);
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

/// The last DEL of the network does not remove it then; the device plugin does, once nothing is on it.
#[test]
fn a_vlan_that_a_network_made_stays_while_a_resource_is_on_it() {
    let case = Case::new(&json!([]));
    if !kernel::has("vlan") {
        return;
    }
    let host = &case.node.host;
    let pods = [Host::new(), Host::new()];
    let calls = pods.each_ref().map(|pod| {
        let network = json!({"lowerDevice": LOWER, "vlan": 100});
        let call = case.node.cni(pod, network);
        call.env("CNI_CONTAINERID", &pod.path().replace('/', "x"))
            .added()
    });
    let index = || host.link("eth0.100").unwrap()["ifindex"].clone();
    let before = index();
    // By its number, and by its name.
    let named = json!({"name": "b", "lowerDevice": "eth0.100", "capacity": 1});
    for resource in [in_vlan("a", 100), named] {
        case.configure(&json!([resource]));
        case.on(resource["name"].as_str().unwrap(), "eth0.100");
        case.plugin.wait_for_log("taken over: a resource is on it");
        let other = calls[1].clone();
        other.succeed("DEL");
        assert_eq!(index(), before);
        other.add();
    }
    for call in &calls {
        call.succeed("DEL");
    }
    assert_eq!(index(), before);
    // A network's pod is on it when the last resource leaves it.
    let last = calls[0].clone().added();
    case.configure(&json!([{"name": "c", "lowerDevice": LOWER}]));
    case.on("c", LOWER);
    assert_eq!(index(), before);
    last.succeed("DEL");
    wait_until("the VLAN is gone", || host.links() == [LOWER]);
}

#[test]
fn the_first_list_of_a_resource_in_a_vlan_is_healthy() {
    let case = Case::new(&json!([in_vlan("a", 100)]));
    if !kernel::has("vlan") {
        return;
    }
    case.on("a", "eth0.100");
    let resource = case.kubelet.resource("macvtap.network.kubevirt.io/a");
    assert_eq!(resource.unwrap().lists, 1, "{}", case.plugin.log());
    assert!(!case.plugin.log().contains("unhealthy"));
}

/// It comes back with the lower device, whose index is another one then.
#[test]
fn a_vlan_goes_and_comes_with_its_lower_device() {
    let case = Case::new(&json!([in_vlan("a", 100)]));
    if !kernel::has("vlan") {
        return;
    }
    let id = case.on("a", "eth0.100").remove(0);
    let host = &case.node.host;
    host.ip(&format!("link delete {LOWER}"));
    let name = "macvtap.network.kubevirt.io/a";
    let unhealthy = case.kubelet.wait_for(name, WAIT_TIMEOUT, |resource| {
        resource.devices.len() == 2 && resource.healthy().is_empty()
    });
    unhealthy.unwrap();
    host.ip(&format!("link add {LOWER} type veth peer name other"));
    host.ip(&format!("link set {LOWER} up"));
    assert_eq!(case.on("a", "eth0.100")[0], id);
    let pod = Host::new();
    let call = case.node.cni(&pod, json!({"deviceID": id})).added();
    call.succeed("CHECK");
}

/// Another device plugin finds what a former one made, and removes what is used no more.
#[test]
fn a_restart_takes_over_what_was_made() {
    let mut case = Case::new(&json!([in_vlan("a", 100), in_vlan("b", 200)]));
    if !kernel::has("vlan") {
        return;
    }
    let id = case.on("a", "eth0.100").remove(0);
    case.on("b", "eth0.200");
    let pod = Host::new();
    case.node.cni(&pod, json!({"deviceID": id})).add();
    let index = |case: &Case| case.node.host.link("eth0.100").unwrap()["ifindex"].clone();
    let before = index(&case);
    case.restart(&json!([in_vlan("a", 100)]));
    case.on("a", "eth0.100");
    let host = &case.node.host;
    wait_until("the other VLAN is gone", || host.link("eth0.200").is_none());
    // The entry goes while no device plugin runs, but a pod is on the VLAN.
    let without = json!([{"name": "c", "lowerDevice": LOWER}]);
    case.restart(&without);
    case.on("c", LOWER);
    assert_eq!(index(&case), before);
    case.node.cni(&pod, json!({"deviceID": id})).succeed("DEL");
    case.restart(&without);
    wait_until("the VLAN is gone", || case.node.host.links() == [LOWER]);
}

/// Discovery would keep it.
#[test]
fn discovery_does_not_offer_the_vlan_of_another_resource() {
    let discover = json!({"discover": {"kinds": "v*"}, "capacity": 1});
    let case = Case::new(&json!([discover, in_vlan("a", 100)]));
    if !kernel::has("vlan") {
        return;
    }
    case.on("a", "eth0.100");
    case.configure(&json!([discover]));
    case.on(LOWER, LOWER);
    let host = &case.node.host;
    wait_until("the VLAN is gone", || host.link("eth0.100").is_none());
    let resources = case.kubelet.resources();
    assert!(!resources.iter().any(|name| name.ends_with("eth0.100")));
}

/// The kubelet still has the device of a pod on a VLAN that the configuration no longer has, and
/// the reboot took the VLAN. The pod gets another device; nothing is made for this one.
#[test]
fn after_a_reboot_no_vlan_is_made_that_has_no_entry() {
    let case = Case::new(&json!([{"name": "b", "lowerDevice": LOWER}]));
    if !kernel::has("vlan") {
        return;
    }
    case.on("b", LOWER);
    let id = "aMvp0@eth0.100:bridge:16777300";
    let resource = "macvtap.network.kubevirt.io/a";
    held::checkpoint(case.dir.path(), (resource, id), tap_of(id));
    let listed = case.kubelet.wait_for(resource, WAIT_TIMEOUT, |resource| {
        resource.devices.iter().any(|device| device.id == id) && resource.healthy().is_empty()
    });
    listed.unwrap();
    assert_eq!(case.node.host.links(), [LOWER]);
    let pod = Host::new();
    let (_, msg) = case.node.cni(&pod, json!({"deviceID": id})).fail("ADD");
    assert!(msg.contains("\"eth0.100\" does not exist"), "{msg}");
}

/// Trying to remove it causes link events.
#[test]
fn a_vlan_that_is_used_is_left_in_peace_until_it_is_not() {
    let case = Case::new(&json!([in_vlan("a", 100)]));
    if !kernel::has("vlan") {
        return;
    }
    case.on("a", "eth0.100");
    let host = &case.node.host;
    host.ip("link add link eth0.100 name inner type vlan id 7");
    // A macvtap of a network namespace without a device plugin.
    let pod = Host::new();
    let netns = pod.path();
    host.ip(&format!(
        "link add link eth0.100 name out netns {netns} type macvlan mode bridge"
    ));
    case.configure(&json!([{"name": "b", "lowerDevice": LOWER}]));
    case.on("b", LOWER);
    let resyncs = || status::query(case.dir.path()).unwrap().link_resyncs;
    for on_it in ["inner", "out"] {
        std::thread::sleep(Duration::from_millis(300));
        let before = resyncs();
        std::thread::sleep(Duration::from_secs(2));
        let after = resyncs();
        assert!(after - before < 5, "{on_it}: {before} to {after}");
        if on_it == "inner" {
            host.ip("link delete inner");
        }
    }
    pod.ip("link delete out");
    wait_until("the VLAN is gone", || host.links() == [LOWER]);
}

/// At a move from one set of manifests to another.
#[test]
fn of_two_device_plugins_the_first_has_the_vlans() {
    let mut case = Case::new(&json!([in_vlan("a", 100)]));
    if !kernel::has("vlan") {
        return;
    }
    case.on("a", "eth0.100");
    let index = |case: &Case, name| {
        let link = case.node.host.link(name);
        link.map(|link| link["ifindex"].clone())
    };
    let before = index(&case, "eth0.100");
    let configuration = json!([{"name": "a", "lowerDevice": LOWER}, in_vlan("b", 200)]);
    let second = Plugin::configured(&case.node.host, case.dir.path(), &configuration.to_string());
    second.wait_for_log("another device plugin serves");
    second.wait_for_log("VLAN interfaces are left to another device plugin");
    for up in ["down", "up"] {
        case.node.host.ip(&format!("link set {LOWER} {up}"));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(index(&case, "eth0.100"), before);
    assert_eq!(index(&case, "eth0.200"), None);
    case.plugin.signal("TERM");
    case.plugin.end();
    let taken_over = || index(&case, "eth0.200").is_some() && index(&case, "eth0.100").is_none();
    wait_until("the second has taken over", taken_over);
}

/// What stands in the way of the last use is reported once, however often it is tried.
#[test]
fn what_cannot_be_made_is_logged_once() {
    let case = Case::new(&json!([in_vlan("a", 100)]));
    let host = &case.node.host;
    host.ip("link add blocked0 type veth peer name other");
    let name = "macvtap.network.kubevirt.io/a";
    let listed = |resource: &macvtap::selftest::kubelet::Resource| resource.connected;
    case.kubelet.wait_for(name, WAIT_TIMEOUT, listed).unwrap();
    if kernel::has("vlan") {
        case.on("a", "eth0.100");
        host.ip(&format!("link set {LOWER} down"));
        host.ip("link delete eth0.100");
    }
    case.plugin.wait_for_log("level=warn");
    for up in ["up", "down", "up"] {
        host.ip(&format!("link set blocked0 {up}"));
        std::thread::sleep(std::time::Duration::from_millis(60));
    }
    // It may have met the VLAN interface while that was down, before it was gone.
    let log = case.plugin.log();
    let warnings = log
        .split('\n')
        .filter_map(|line| line.split_once("level=warn"));
    let mut warnings: Vec<&str> = warnings.map(|(_, text)| text).collect();
    let count = warnings.len();
    warnings.sort_unstable();
    warnings.dedup();
    assert_eq!(warnings.len(), count, "{log}");
}
