//! What a resource sets its macvtaps to.

use kit::{
    kubelet::WAIT_TIMEOUT,
    netns::{Host, IFNAME, LOWER, tap_of},
};
use macvtap::types::device_id::{DeviceId, original_link_name};
use serde_json::{Value, json};

use super::selectors::Case;

const SOURCE: &str = "02:00:00:00:00:01";

fn entry(name: &str, options: &Value) -> Value {
    let mut entry = json!({"name": name, "lowerDevice": LOWER, "capacity": 3});
    let options = options.as_object().unwrap().clone();
    entry.as_object_mut().unwrap().extend(options);
    entry
}

/// MTU, length of the transmit queue, and queues.
fn of(link: &Value) -> [i64; 3] {
    ["mtu", "txqlen", "num_tx_queues"].map(|key| link[key].as_i64().unwrap())
}

/// They are in the device ID: no device plugin is asked.
#[test]
fn a_resource_has_options_and_a_network_overrides_them() {
    let options = json!({"mtu": 1400, "txQueueLen": 300, "queues": 4, "bcQueueLen": 77});
    let source = json!({"mode": "source", "allowedSources": [SOURCE]});
    let mut case = Case::new(&json!([entry("a", &options), entry("b", &source)]));
    let ids = case.on("a", LOWER);
    let sources = case.on("b", LOWER);
    case.plugin.signal("KILL");
    case.plugin.end();
    assert!(
        ids[0].contains("@eth0:bridge+m1400+t300+q4+b77:"),
        "{ids:?}"
    );
    let pods = [Host::new(), Host::new(), Host::new()];
    let call = case.node.cni(&pods[0], json!({"deviceID": ids[0]})).added();
    assert_eq!(of(&pods[0].link(IFNAME).unwrap()), [1400, 300, 4]);
    call.succeed("CHECK");
    let (_, msg) = call.with("queues", 2).fail("CHECK");
    assert!(msg.contains("queues is 4, not 2"), "{msg}");
    let own = json!({"deviceID": ids[1], "mtu": 0, "txQueueLen": 50, "queues": 2});
    case.node.cni(&pods[1], own).added().succeed("CHECK");
    assert_eq!(of(&pods[1].link(IFNAME).unwrap()), [1500, 50, 2]);
    let call = case.node.cni(&pods[2], json!({"deviceID": sources[0]}));
    let call = call.added();
    call.succeed("CHECK");
    let link = pods[2].link(IFNAME).unwrap();
    let data = &link["linkinfo"]["info_data"];
    assert_eq!(data["macaddr_data"][0], SOURCE, "{data}");
    call.succeed("DEL");
}

/// Pods keep what they were given: their devices have the same taps, with the options of before.
#[test]
fn another_option_is_for_new_pods() {
    let case = Case::new(&json!([entry("a", &json!({"queues": 4}))]));
    let before = case.on("a", LOWER);
    let pod = Host::new();
    let call = case.node.cni(&pod, json!({"deviceID": before[0]})).added();
    case.configure(&json!([entry("a", &json!({}))]));
    let name = "macvtap.network.kubevirt.io/a";
    let changed = case.kubelet.wait_for(name, WAIT_TIMEOUT, |resource| {
        let healthy = resource.healthy();
        healthy.len() == 3 && healthy.iter().filter(|id| id.contains("+q4")).count() == 1
    });
    let healthy = changed.unwrap().healthy();
    assert!(healthy.contains(&before[0]), "{healthy:?}");
    let taps = |ids: &[String]| {
        let mut taps: Vec<u32> = ids.iter().map(|id| tap_of(id)).collect();
        taps.sort_unstable();
        taps
    };
    assert_eq!(taps(&healthy), taps(&before));
    call.succeed("CHECK");
    call.succeed("DEL");
    let again = case.kubelet.wait_for(name, WAIT_TIMEOUT, |resource| {
        let healthy = resource.healthy();
        healthy.len() == 3 && !healthy.iter().any(|id| id.contains('+'))
    });
    again.unwrap();
}

/// A pod that wants the tap alone; it stays while the options change.
#[test]
fn a_tap_alone_has_the_options_of_its_resource() {
    let mut case = Case::new(&json!([entry("a", &json!({"mtu": 1400}))]));
    let id = case.on("a", LOWER).remove(0);
    let name = "macvtap.network.kubevirt.io/a";
    let device: DeviceId = id.parse().unwrap();
    case.kubelet.pre_start(name, &[id]).unwrap();
    let link = original_link_name(&device.without_options().to_string());
    let found = |case: &Case| case.node.host.link(&link).unwrap();
    assert_eq!(found(&case)["mtu"], 1400);
    case.restart(&json!([entry("a", &json!({}))]));
    case.plugin
        .wait_for_log("found the macvtap of a former list");
    assert_eq!(found(&case)["ifindex"], device.tap);
}

#[test]
fn a_wrong_option_is_reported_and_ignored() {
    let wrong = json!([
        entry("a", &json!({"queues": 0})),
        entry("b", &json!({"allowedSources": [SOURCE]})),
        entry("c", &json!({"txQueueLen": "long"})),
        entry("d", &json!({"mtu": 1400})),
    ]);
    let case = Case::new(&wrong);
    for name in ["a", "b", "c", "d"] {
        case.on(name, LOWER);
    }
    for part in [
        "queues 0: it must be a whole number from 1 to 256; it is ignored",
        "it must be left out: it needs mode source, not bridge",
        "txQueueLen \\\"long\\\": it must be a whole number",
    ] {
        case.plugin.wait_for_log(part);
    }
    let resources = case.kubelet.resources();
    let expected = ["a", "b", "c", "d"].map(|name| format!("macvtap.network.kubevirt.io/{name}"));
    assert_eq!(resources, expected);
}
