//! Modes and options of a macvtap, with the frames that they are about.

use std::{fs::File, io::Read, time::Duration};

use kit::netns::{
    Case, Host, IFNAME, LOWER, Node, device_id_in, tap_number,
    taps::{arrives, far_tap, open, send},
    wait_until,
};
use serde_json::{Value, json};

const GUEST: &str = "02:00:00:00:00:aa";
const FRIEND: &str = "02:00:00:00:00:f1";
const STRANGER: &str = "02:00:00:00:00:f2";
const LONG: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_millis(100);

fn frame(destination: &str, source: &str, filling: u8) -> Vec<u8> {
    let mac = |text: &str| text.parse::<macvtap::types::mac::MacAddr>().unwrap().0;
    let payload = [0x88, 0xb5].into_iter().chain([filling; 100]);
    let addresses = mac(destination).into_iter().chain(mac(source));
    addresses.chain(payload).collect()
}

/// What `ip` says of the kind of the pod's interface.
fn data(pod: &Host, key: &str) -> Value {
    pod.link(IFNAME).unwrap()["linkinfo"]["info_data"][key].clone()
}

#[test]
fn source_mode_receives_from_the_listed_addresses_only() {
    for device_plugin in [true, false] {
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        let config = if device_plugin {
            json!({"deviceID": device_id_in("source", number)})
        } else {
            json!({"lowerDevice": LOWER, "mode": "source"})
        };
        let call = node.cni(&pod, config).with("mac", GUEST);
        let call = call.with("allowedSources", json!([FRIEND, "02-00-00-00-00-F3"]));
        let call = call.added();
        call.succeed("CHECK");
        let number = pod.link(IFNAME).unwrap()["ifindex"].as_u64().unwrap();
        let near = open(u32::try_from(number).unwrap());
        let far = far_tap(&node);
        for destination in [GUEST, "ff:ff:ff:ff:ff:ff"] {
            let friend = frame(destination, FRIEND, 1);
            send(&far, &friend);
            assert!(arrives(&near, &friend, LONG), "{destination}");
            let stranger = frame(destination, STRANGER, 2);
            send(&far, &stranger);
            assert!(!arrives(&near, &stranger, SHORT), "{destination}");
        }
        let out = frame(FRIEND, GUEST, 3);
        send(&near, &out);
        assert!(arrives(&far, &out, LONG));
        // One who changes the list is found out.
        pod.ip(&format!(
            "link set {IFNAME} type macvtap macaddr add {STRANGER}"
        ));
        let (_, msg) = call.fail("CHECK");
        assert!(msg.contains("allowedSources are"), "{msg}");
        call.succeed("DEL");
        assert!(pod.links().is_empty());
    }
}

#[test]
fn source_mode_without_a_list_and_a_list_in_another_mode_are_refused() {
    let case = Case::new();
    let source = json!({"lowerDevice": LOWER, "mode": "source"});
    let source = case.node.cni(&case.pod, source);
    case.refuses(&source, 7, &["allowedSources", "receives nothing"]);
    let wrong = source.with("allowedSources", json!(["01:00:5e:00:00:01"]));
    case.refuses(&wrong, 7, &["allowedSources", "multicast"]);
    let bridge = json!({"lowerDevice": LOWER, "allowedSources": [FRIEND]});
    let bridge = case.node.cni(&case.pod, bridge);
    case.refuses(&bridge, 7, &["allowedSources", "mode source, not bridge"]);
}

/// What the kernel says of a node's lower device.
fn state(node: &Node) -> [Value; 5] {
    let link = node.host.link(LOWER).unwrap();
    let keys = ["address", "promiscuity", "allmulti", "flags", "mtu"];
    keys.map(|key| link[key].clone())
}

/// As the tuning plugin does after ADD, and a person in the pod.
#[test]
fn a_passthru_macvtap_whose_flags_are_changed_leaves_its_lower_device_as_it_was() {
    for changes in [
        &["allmulticast off"][..],
        &["allmulticast on", "allmulticast off"],
        &["promisc off", "promisc on"],
        &["down", "promisc off", "up"],
        &["address 02:00:00:00:00:77", "mtu 1400"],
    ] {
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        let before = state(&node);
        let id = device_id_in("passthru", number);
        let call = node.cni(&pod, json!({"deviceID": id})).added();
        let (near, far) = (open(number), far_tap(&node));
        let group = frame("33:33:ff:12:34:56", FRIEND, 1);
        send(&far, &group);
        assert!(arrives(&near, &group, LONG));
        for change in changes {
            pod.ip(&format!("link set {IFNAME} {change}"));
        }
        drop(near);
        call.succeed("DEL");
        assert_eq!(state(&node), before, "{changes:?}");
    }
}

/// The kernel says no more than EINVAL.
#[test]
fn what_keeps_a_passthru_macvtap_off_is_named() {
    let (node, one, two) = (Node::new(), Host::named(), Host::new());
    let in_mode = |pod, mode| node.cni(pod, json!({"lowerDevice": LOWER, "mode": mode}));
    for (first, second) in [("bridge", "passthru"), ("passthru", "vepa")] {
        let first = in_mode(&one, first).added();
        let (code, msg) = in_mode(&two, second).fail("ADD");
        assert_eq!(code, 999, "{msg}");
        let netns = one.path().rsplit_once('/').unwrap().1.to_owned();
        let there = format!("there is interface {IFNAME:?} in netns {netns}");
        assert!(msg.contains(&there), "{msg}");
        first.succeed("DEL");
    }
}

/// What the kernel does with the lower device while it is a guest's, and undoes.
#[test]
fn a_passthru_macvtap_leaves_its_lower_device_as_it_was() {
    for (promiscuous, all_multicast, netns_goes) in [
        (false, true, false),
        (true, true, false),
        (true, false, false),
        (true, true, true),
    ] {
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        let before = state(&node);
        let id = device_id_in("passthru", number);
        let call = node.cni(&pod, json!({"deviceID": id, "mac": GUEST}));
        let call = call.with("promiscMode", promiscuous);
        let call = call.with("allMulticast", all_multicast).added();
        call.succeed("CHECK");
        assert_ne!(state(&node), before);
        let (near, far) = (open(number), far_tap(&node));
        let into = frame(GUEST, FRIEND, 1);
        send(&far, &into);
        assert!(arrives(&near, &into, LONG));
        // It is the only one.
        let other = Host::new();
        let second = node.cni(
            &other,
            json!({"deviceID": device_id_in("bridge", tap_number())}),
        );
        assert!(second.fail("ADD").1.contains(LOWER));
        drop(near);
        if netns_goes {
            drop(pod);
            kit::netns::wait_until("the lower device is as it was", || state(&node) == before);
        } else {
            call.succeed("DEL");
            assert_eq!(state(&node), before, "{promiscuous} {all_multicast}");
        }
    }
}

#[test]
fn options_are_set_checked_and_do_no_harm() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).with("mac", GUEST);
    let call = call.with("queues", 4).with("bcQueueLen", 77);
    let call = call
        .with("broadcastCutoff", -1)
        .with("txQueueLen", 300)
        .added();
    call.succeed("CHECK");
    let link = pod.link(IFNAME).unwrap();
    assert_eq!(
        (&link["num_tx_queues"], &link["num_rx_queues"]),
        (&json!(4), &json!(4))
    );
    assert_eq!(link["txqlen"], 300);
    let queue = ["bcqueuelen", "bclim"].map(|key| data(&pod, key));
    assert!(queue[0] == 77 || queue[0].is_null(), "{queue:?}");
    // One number for the lower device, which other pods set as well.
    call.clone().with("broadcastCutoff", 5).succeed("CHECK");
    // The tuning plugin sets it.
    call.clone().with("txQueueLen", 301).succeed("CHECK");
    let (near, far) = (open(number), far_tap(&node));
    for destination in [GUEST, "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"] {
        let into = frame(destination, FRIEND, 1);
        send(&far, &into);
        assert!(arrives(&near, &into, LONG), "{destination}");
    }
    let out = frame(FRIEND, GUEST, 2);
    send(&near, &out);
    assert!(arrives(&far, &out, LONG));
    for (key, value, part) in [
        ("queues", json!(2), "queues is 4, not 2"),
        ("bcQueueLen", json!(78), "bcQueueLen is 77, not 78"),
    ] {
        let (_, msg) = call.clone().with(key, value).fail("CHECK");
        assert!(msg.contains(part), "{msg}");
    }
}

/// The tap holds as many frames for a guest that does not read as the key says.
#[test]
fn the_queue_length_bounds_what_waits_for_the_guest() {
    for length in [16, 64] {
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        let call = node.allocated(&pod, number).with("mac", GUEST);
        call.with("txQueueLen", length).add();
        let (near, far) = (open(number), far_tap(&node));
        wait_until("more have arrived", || {
            (0..100).for_each(|filling| send(&far, &frame(GUEST, FRIEND, filling)));
            arrived(&pod) >= 200
        });
        // What is on its way would come into the room that reading makes.
        pod.ip(&format!("link set {IFNAME} down"));
        assert_eq!(waiting(&near), length);
    }
}

/// How many frames came to the macvtap, whether its tap had room for them or not.
fn arrived(pod: &Host) -> u64 {
    let words = format!("-j -s link show dev {IFNAME}");
    let shown: Value = serde_json::from_str(&pod.ip(&words)).unwrap();
    let received = &shown[0]["stats64"]["rx"];
    received["packets"].as_u64().unwrap() + received["errors"].as_u64().unwrap()
}

/// How many frames can be read.
fn waiting(mut tap: &File) -> usize {
    let mut buffer = [0; 4096];
    std::iter::from_fn(|| tap.read(&mut buffer).ok()).count()
}
