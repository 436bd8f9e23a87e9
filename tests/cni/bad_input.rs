//! Whatever is wrong: one JSON error with the right code, exit status 1, and
//! nothing left behind in host or pod.

use kit::netns::{Case, FAR_END, Host, IFNAME, LOWER, device_id_in, tap_number};
use serde_json::json;

#[test]
fn netns_paths() {
    let case = Case::new();
    let at = |path: &str| case.call().env("CNI_NETNS", path);
    case.refuses(
        &at("/run/netns/none"),
        8,
        &["/run/netns/none", "does not exist"],
    );
    case.refuses(
        &at("/etc/passwd"),
        8,
        &["/etc/passwd", "not a network namespace"],
    );
    case.refuses(&at("/dev/zero"), 8, &["not a network namespace"]);
    case.refuses(&at("/"), 8, &["not a network namespace"]);
    case.refuses(&at("/proc/self/ns/mnt"), 8, &["not a network namespace"]);
}

#[test]
fn lower_devices() {
    let case = Case::new();
    let on = |lower: &str| {
        let id = format!("xMvp0@{lower}:bridge:{}", case.number);
        case.call().with("deviceID", id)
    };
    case.refuses(&on("eth9"), 999, &["eth9", "does not exist"]);
    case.node.host.ip("link add br0 type bridge");
    case.node.host.ip(&format!("link set {LOWER} master br0"));
    case.refuses(&case.call(), 999, &[LOWER, "port of \"br0\""]);
    case.node.host.ip(&format!("link set {LOWER} nomaster"));
    case.node.host.ip("link set lo up");
    case.refuses(&on("lo"), 7, &["lo", "not an Ethernet device"]);
    case.node.host.ip(&format!("link set {LOWER} down"));
    case.refuses(&case.call(), 11, &[LOWER, "down", "ip link set"]);
}

#[test]
fn mtus() {
    let case = Case::new();
    let with = |mtu: i64| case.call().with("mtu", mtu);
    case.refuses(&with(9000), 7, &["9000", "1500", LOWER]);
    case.refuses(&with(-1), 7, &["mtu", "-1"]);
    case.refuses(&with(67), 7, &["mtu", "67", "68"]);
    case.refuses(&with(1 << 40), 7, &["mtu"]);
}

#[test]
fn macs() {
    let case = Case::new();
    let with = |mac: &str| case.call().env("CNI_ARGS", &format!("MAC={mac}"));
    case.refuses(&with("01:00:5e:00:00:01"), 7, &["CNI_ARGS", "multicast"]);
    case.refuses(&with("00:00:00:00:00:00"), 7, &["zero"]);
    case.refuses(&with("02:00:00"), 7, &["02:00:00"]);
    case.refuses(&with("02:00:00:00:00:00:00:01"), 7, &["6 octets"]);
    // In use on the lower device, by itself and by a sibling.
    let own = case.node.host.link(LOWER).unwrap()["address"].clone();
    case.refuses(
        &with(own.as_str().unwrap()),
        11,
        &[own.as_str().unwrap(), "in use"],
    );
    let sibling = Host::new();
    let mac = "02:00:00:00:00:01";
    let other = case.node.allocated(&sibling, tap_number());
    other.with("mac", mac).add();
    case.refuses(&with(mac), 11, &[mac, "in use"]);
}

#[test]
fn a_mac_becomes_free_while_add_waits() {
    let case = Case::new();
    let mac = "02:00:00:00:00:02";
    let sibling = Host::new();
    let other = case.node.allocated(&sibling, tap_number()).with("mac", mac);
    other.add();
    let waiting = case.call().with("mac", mac);
    std::thread::scope(|scope| {
        let add = scope.spawn(|| waiting.add());
        std::thread::sleep(std::time::Duration::from_millis(100));
        other.succeed("DEL");
        assert_eq!(add.join().unwrap()["interfaces"][0]["mac"], mac);
    });
}

#[test]
fn an_interface_of_that_name_in_the_pod() {
    let case = Case::new();
    case.pod.ip(&format!("link add {IFNAME} type bridge"));
    case.refuses(&case.call(), 4, &["CNI_IFNAME", IFNAME, "exists", "bridge"]);
    case.pod.ip(&format!("link delete {IFNAME}"));
    case.call().add();
    let again = case.call().fail("ADD");
    assert_eq!(again.0, 4, "{}", again.1);
    assert_eq!(case.pod.links(), [IFNAME], "the attachment of before");
}

#[test]
fn device_ids() {
    let case = Case::new();
    let with = |id: &str| case.call().with("deviceID", id);
    let n = case.number;
    case.refuses(
        &with(""),
        7,
        &[
            "resourceName",
            "limits",
            "network-resources-injector",
            "keys found",
        ],
    );
    case.refuses(
        &with(&format!("xMvp0@{LOWER}:{n}")),
        7,
        &["malformed device ID"],
    );
    case.refuses(
        &with(&format!("xMvp0@{LOWER}:hub:{n}")),
        7,
        &["unknown mode", "hub"],
    );
    case.refuses(&with(&format!("xMvp0@{LOWER}:bridge:5")), 7, &["tap 5"]);
    case.refuses(&with("@"), 7, &["malformed"]);
    case.refuses(
        &with("eth0Mvp12345"),
        7,
        &["eth0Mvp12345", "delete the pod"],
    );
    case.refuses(&with(&"x".repeat(3000)), 7, &["xxx"]);
}

/// The resource decides them; kubevirt/macvtap-cni never reads them.
#[test]
fn keys_that_contradict_the_device_id_are_ignored_with_a_warning() {
    let case = Case::new();
    for (key, value) in [
        ("mode", "passthru"),
        ("lowerDevice", "eth9"),
        ("master", "eth9"),
    ] {
        let call = case.call().with(key, value).with("removeparents", true);
        let answer = call.call("ADD");
        assert_eq!(answer.status, 0, "{answer:?}");
        assert!(answer.stderr.contains("level=warn"), "{answer:?}");
        assert!(answer.stderr.contains(value), "{answer:?}");
        assert_eq!(case.pod.mode(), "bridge");
        call.succeed("DEL");
    }
}

#[test]
fn interface_names_that_the_kernel_takes_for_a_pattern() {
    let case = Case::new();
    let call = case.call().env("CNI_IFNAME", "net%d");
    case.refuses(&call, 4, &["contains %"]);
    call.succeed("DEL");
}

#[test]
fn an_interface_index_that_is_taken_in_the_pod() {
    let case = Case::new();
    case.pod
        .ip(&format!("link add other index {} type bridge", case.number));
    case.refuses(
        &case.call(),
        999,
        &["taken", "other", &case.number.to_string()],
    );
}

#[test]
fn a_second_port_beside_passthru() {
    let case = Case::new();
    let first = Host::new();
    let id = device_id_in("passthru", tap_number());
    case.node.cni(&first, json!({"deviceID": id})).add();
    case.refuses(&case.call(), 999, &[LOWER, "passthru"]);
}

#[test]
fn owners() {
    let case = Case::new();
    case.refuses(&case.call().with("owner", -2), 7, &["owner", "-2"]);
    case.refuses(&case.call().with("group", "qemu"), 7, &["group", "qemu"]);
    case.refuses(&case.call().with("owner", u32::MAX), 7, &["owner"]);
}

#[test]
fn a_tap_that_cannot_be_given_to_its_owner() {
    let case = Case::new();
    let words = ["setpriv", "--bounding-set=-chown", "--inh-caps=-chown"];
    let call = case.call().by(&words);
    let path = format!("/dev/tap{}", case.number);
    case.refuses(&call, 999, &["giving", &path, "107:107"]);
}

#[test]
fn a_lower_device_in_another_netns_only() {
    let case = Case::new();
    let id = format!("xMvp0@{FAR_END}:bridge:{}", case.number);
    case.refuses(
        &case.call().with("deviceID", id),
        999,
        &[FAR_END, "does not exist"],
    );
}

/// Those that are of no use here too: they may be of use on another day.
#[test]
fn every_wrong_key_is_named() {
    let case = Case::new();
    for (key, value) in [
        ("takeOverByName", json!("yes")),
        ("dns", json!("192.0.2.1")),
        ("linkInContainer", json!(1)),
        ("vlan", json!("5")),
        ("queues", json!([4])),
        ("macPolicy", json!({})),
        ("allMulticast", json!("yes")),
        ("bandwidth", json!(7)),
        ("security", json!(true)),
    ] {
        let call = case.node.cni(&case.pod, json!({"lowerDevice": LOWER}));
        case.refuses(&call.with(key, value), 7, &[key]);
    }
}
