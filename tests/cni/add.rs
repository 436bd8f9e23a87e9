//! ADD as it has to be: the interface, its tap, the result.

use std::time::Duration;

use kit::{
    netns::{
        Host, IFNAME, LOWER, Node, device_id, device_id_in,
        mounted::Checkpoint,
        owner, tap, tap_exists, tap_number,
        taps::{arrives, far_tap, open, send},
    },
    switch::{VM, broadcast},
};
use macvtap::types::device_id::original_link_name;
use serde_json::{Value, json};

/// What `ip` says of the interface in the pod.
fn attached(pod: &Host) -> Value {
    pod.link(IFNAME).expect("the interface is not in the pod")
}

fn has_flag(link: &Value, flag: &str) -> bool {
    let flags = link["flags"].as_array().unwrap();
    flags.iter().any(|found| found == flag)
}

/// A node that is a container, with a macvlan of the machine below: the index of the device that
/// this stands on is another device's on the node.
#[test]
fn on_a_macvlan_whose_lower_device_is_in_another_netns() {
    let (machine, node, pod) = (Node::new(), Node::new(), Host::new());
    let index = |node: &Node| node.host.link(LOWER).unwrap()["ifindex"].clone();
    assert_eq!(index(&machine), index(&node), "the indexes collide");
    let host = &machine.host;
    host.ip(&format!(
        "link add up0 link {LOWER} type macvlan mode bridge"
    ));
    host.ip(&format!("link set up0 netns {}", node.host.path()));
    node.host.ip("link set up0 up");
    let number = tap_number();
    let id = format!("dataplaneMvp7@up0:bridge:{number}");
    let call = node.cni(&pod, json!({"deviceID": id})).added();
    let [right, wrong] = [far_tap(&machine), far_tap(&node)];
    let frame = broadcast(VM);
    send(&open(number), &frame);
    assert!(arrives(&right, &frame, Duration::from_secs(2)));
    assert!(!arrives(&wrong, &frame, Duration::from_millis(100)));
    call.succeed("CHECK");
    let (_, msg) = call
        .clone()
        .with("deviceID", device_id(number))
        .fail("CHECK");
    assert!(msg.contains("not on lower device"), "{msg}");
    call.succeed("DEL");
    let standalone = node.cni(&pod, json!({"lowerDevice": "up0"}));
    standalone.add();
    standalone.succeed("DEL");
    assert!(pod.links().is_empty(), "without a prevResult");
}

#[test]
fn makes_the_macvtap_that_was_allocated() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    assert!(!tap(number).exists());
    let call = node.allocated(&pod, number);
    let result = call.add();
    let link = attached(&pod);
    assert_eq!(link["ifindex"], number);
    assert_eq!(link["linkinfo"]["info_kind"], "macvtap");
    assert_eq!(link["linkinfo"]["info_data"]["mode"], "bridge");
    assert_eq!(link["mtu"], 1500);
    assert_eq!(link["txqlen"], 1000);
    assert_eq!(link["operstate"], "UP");
    assert_eq!(link["inet6_addr_gen_mode"], "none");
    assert!(has_flag(&link, "ALLMULTI"));
    assert!(!has_flag(&link, "PROMISC"));
    assert_eq!(owner(&tap(number)), (107, 107, 0o600));
    let interface = json!({
        "name": IFNAME, "mac": link["address"], "mtu": 1500, "sandbox": pod.path(),
    });
    let expected = json!({"cniVersion": "1.1.0", "interfaces": [interface]});
    assert_eq!(result, expected);
    // Nothing on the host, neither before nor after.
    assert_eq!(node.host.links(), [LOWER]);
    call.succeed("DEL");
    assert!(pod.links().is_empty());
    assert!(!tap(number).exists() && !tap_exists(number));
}

#[test]
fn the_same_device_can_be_attached_again_and_again() {
    let (node, number) = (Node::new(), tap_number());
    for round in 0..10 {
        let pod = Host::new();
        let call = node.allocated(&pod, number).added();
        assert_eq!(attached(&pod)["ifindex"], number, "round {round}");
        call.succeed("CHECK");
        // No DEL: the pod's netns just goes, as in a crash or a reboot.
    }
}

#[test]
fn every_mode() {
    for mode in ["bridge", "private", "vepa", "passthru"] {
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        let call = node.cni(&pod, json!({"deviceID": device_id_in(mode, number)}));
        call.clone().added().succeed("CHECK");
        let link = attached(&pod);
        assert_eq!(link["linkinfo"]["info_data"]["mode"], mode);
        call.succeed("DEL");
    }
}

/// Without a list of sources it would receive nothing.
#[test]
fn source_mode_is_refused() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    for config in [
        json!({"deviceID": device_id_in("source", number)}),
        json!({"lowerDevice": LOWER, "mode": "source"}),
    ] {
        let (code, msg) = node.cni(&pod, config).fail("ADD");
        assert!(code == 7 && msg.contains("receives nothing"), "{msg}");
        assert!(pod.links().is_empty());
    }
}

/// The lower device's name, or an alternative one; a macvlan stands for what is below it.
#[test]
fn on_a_lower_device_by_another_name() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let long = "a-name-by-which-udev-knows-it";
    node.host
        .ip(&format!("link property add dev {LOWER} altname {long}"));
    node.host.ip(&format!(
        "link add upper0 link {LOWER} type macvlan mode bridge"
    ));
    node.host.ip("link set upper0 up");
    for lower in [long, "upper0"] {
        let id = format!("dataplaneMvp7@{lower}:bridge:{number}");
        let call = node.cni(&pod, json!({"deviceID": id})).added();
        call.succeed("CHECK");
        call.succeed("DEL");
        let standalone = node.cni(&pod, json!({"lowerDevice": lower}));
        standalone.succeed("STATUS");
        let standalone = standalone.added();
        standalone.succeed("CHECK");
        standalone.succeed("DEL");
        assert!(pod.links().is_empty(), "{lower}");
    }
}

#[test]
fn mtu_promiscuous_and_owner_as_configured() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).with("mtu", 1000);
    let call = call.with("promiscMode", true).with("allMulticast", false);
    let call = call.with("owner", 1234).with("group", 0).added();
    let link = attached(&pod);
    assert_eq!(link["mtu"], 1000);
    // The original's own test: the count of those who want all frames is one.
    assert_eq!(link["promiscuity"], 1);
    assert!(has_flag(&link, "PROMISC") && !has_flag(&link, "ALLMULTI"));
    assert_eq!(owner(&tap(number)), (1234, 0, 0o660));
    call.succeed("CHECK");
}

#[test]
fn the_mtu_is_the_lower_devices_unless_configured() {
    let (node, pod) = (Node::new(), Host::new());
    node.host.ip(&format!("link set {LOWER} mtu 1400"));
    let result = node.allocated(&pod, tap_number()).with("mtu", 0).add();
    assert_eq!(attached(&pod)["mtu"], 1400);
    assert_eq!(result["interfaces"][0]["mtu"], 1400);
}

#[test]
fn a_lower_device_without_queue_does_not_make_the_taps_ring_empty() {
    let (node, pod) = (Node::new(), Host::new());
    node.host.ip(&format!("link set {LOWER} txqueuelen 0"));
    node.allocated(&pod, tap_number()).add();
    assert_eq!(attached(&pod)["txqlen"], 1000);
    let (node, pod) = (Node::new(), Host::new());
    node.host.ip(&format!("link set {LOWER} txqueuelen 77"));
    node.allocated(&pod, tap_number()).add();
    assert_eq!(attached(&pod)["txqlen"], 77);
}

#[test]
fn the_mac_from_each_place() {
    let mac = "02:00:00:00:00:aa";
    let multus = format!("IgnoreUnknown=true;K8S_POD_NAME=vm;K8S_POD_UID=1;MAC={mac}");
    for (args, key, value) in [
        (multus.as_str(), "type", json!("macvtap")),
        ("MAC=02-00-00-00-00-AA", "type", json!("macvtap")),
        ("", "mac", json!("0200.0000.00aa")),
        (
            "MAC=02:00:00:00:00:bb",
            "runtimeConfig",
            json!({"mac": mac}),
        ),
        ("MAC=nonsense", "args", json!({"cni": {"mac": mac}})),
    ] {
        let (node, pod) = (Node::new(), Host::new());
        let call = node.allocated(&pod, tap_number()).with(key, value);
        let result = call.env("CNI_ARGS", args).add();
        assert_eq!(result["interfaces"][0]["mac"], mac, "{args} {key}");
        assert_eq!(attached(&pod)["address"], mac, "{args} {key}");
    }
}

#[test]
fn without_a_mac_it_is_a_random_local_one() {
    let (node, pod) = (Node::new(), Host::new());
    let result = node.allocated(&pod, tap_number()).add();
    let mac: macvtap::types::mac::MacAddr = result["interfaces"][0]["mac"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(mac.is_assignable());
    assert_eq!(mac.0[0] & 2, 2, "{mac} is not locally administered");
}

#[test]
fn a_passthru_macvtap_passes_its_mac_on() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let id = device_id_in("passthru", number);
    let before = node.host.link(LOWER).unwrap()["address"].clone();
    let call = node.cni(&pod, json!({"deviceID": id, "mac": "02:00:00:00:00:ab"}));
    call.clone().added().succeed("CHECK");
    assert_eq!(
        node.host.link(LOWER).unwrap()["address"],
        "02:00:00:00:00:ab"
    );
    call.succeed("DEL");
    assert_eq!(node.host.link(LOWER).unwrap()["address"], before);
}

#[test]
fn device_id_in_the_runtime_config() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let runtime = json!({"deviceID": device_id(number)});
    let capabilities = json!({"deviceID": true, "mac": true});
    let call = node.cni(
        &pod,
        json!({"runtimeConfig": runtime, "capabilities": capabilities}),
    );
    call.add();
    assert_eq!(attached(&pod)["ifindex"], number);
    call.succeed("DEL");
}

#[test]
fn without_device_plugin_the_configuration_names_the_lower_device() {
    for key in ["lowerDevice", "master"] {
        let (node, pod) = (Node::new(), Host::new());
        let call = node.cni(&pod, json!({key: LOWER, "mode": "vepa"}));
        let call = call.env("CNI_CONTAINERID", key).added();
        let link = attached(&pod);
        assert_eq!(link["linkinfo"]["info_data"]["mode"], "vepa");
        let number = u32::try_from(link["ifindex"].as_u64().unwrap()).unwrap();
        // Neither the kernel's low numbers nor those that device plugins allocate.
        assert!(number >= 1 << 25);
        assert_eq!(owner(&tap(number)), (107, 107, 0o600));
        call.succeed("CHECK");
        call.succeed("DEL");
        assert!(!tap_exists(number));
        // The same container and interface get the same tap again.
        call.add();
        assert_eq!(attached(&pod)["ifindex"], number);
    }
}

#[test]
fn two_attachments_in_one_pod_and_two_pods_at_once() {
    let (node, one, two) = (Node::new(), Host::new(), Host::new());
    let first = node.allocated(&one, tap_number());
    let second = node.allocated(&one, tap_number()).env("CNI_IFNAME", "net2");
    let third = node.allocated(&two, tap_number());
    for call in [&first, &second, &third] {
        call.add();
    }
    assert_eq!(one.links().len(), 2);
    for call in [&first, &second, &third] {
        call.clone().succeed("DEL");
    }
    assert!(one.links().is_empty() && two.links().is_empty());
}

#[test]
fn a_leftover_tap_of_a_former_pod_on_the_host_gives_way() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let name = original_link_name(&device_id(number));
    let leftover = |words: &str| {
        node.host.ip(&format!(
            "link add {words} index {number} link {LOWER} type macvtap mode bridge"
        ));
    };
    leftover(&name);
    assert!(tap_exists(number));
    let checkpoint = Checkpoint::new(&[]);
    let call = checkpoint.enter(&node.allocated(&pod, number)).added();
    assert_eq!(node.host.links(), [LOWER]);
    assert_eq!(attached(&pod)["ifindex"], number);
    call.succeed("DEL");
    // A guest has it open: that pod is not a previous one.
    leftover(&name);
    let opened = std::fs::File::open(tap(number)).unwrap();
    let (code, msg) = call.fail("ADD");
    assert!(code == 11 && msg.contains("is still open in"), "{msg}");
    assert!(node.host.link(&name).is_some());
    drop(opened);
    let log = call.call("ADD").stderr;
    assert!(log.contains("deleted the stale macvtap"), "{log}");
    call.succeed("DEL");
    // What only has the number is not ours.
    leftover("foreign");
    let (code, msg) = call.fail("ADD");
    assert!(
        code == 11 && msg.contains("in use by interface \"foreign\""),
        "{msg}"
    );
    call.succeed("DEL");
    assert!(node.host.link("foreign").is_some());
}

#[test]
fn keys_that_others_put_there_are_tolerated() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number());
    let call = call.with("cni.dev/attachments", json!([]));
    let call = call.with("capabilities", json!({"mac": true}));
    let call = call.with("dns", json!({})).with("ipam", json!({}));
    let call = call.with("pciBusID", "x").with("unknown", 1);
    call.add();
}
