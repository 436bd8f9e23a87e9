//! The shapes of results, and previous results passed through, in each version.

use kit::netns::{Host, IFNAME, Node, tap_number};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

#[test]
fn add_check_del_in_each_version() {
    for version in VERSIONS {
        let (node, pod) = (Node::new(), Host::new());
        let call = node.allocated(&pod, tap_number());
        let call = call.with("cniVersion", version);
        if version < "0.3.0" {
            let (code, msg) = call.fail("ADD");
            let expected = "cannot convert: no valid IP addresses; ";
            assert!(code == 999 && msg.starts_with(expected), "{msg}");
            assert!(pod.links().is_empty());
            call.succeed("DEL");
            continue;
        }
        if version >= "1.1.0" {
            call.succeed("STATUS");
        }
        let call = call.added();
        if version < "0.4.0" {
            let expected = "config version does not allow CHECK";
            assert_eq!(call.fail("CHECK"), (1, expected.into()));
        } else {
            call.succeed("CHECK");
        }
        call.succeed("DEL");
        assert!(pod.links().is_empty());
    }
}

#[test]
fn results_have_the_references_keys_in_its_order() {
    for (version, keys, interface_keys) in [
        ("0.3.0", "cniVersion interfaces dns", "name mac sandbox"),
        ("0.3.1", "cniVersion interfaces dns", "name mac sandbox"),
        ("0.4.0", "cniVersion interfaces dns", "name mac sandbox"),
        ("1.0.0", "cniVersion interfaces", "name mac mtu sandbox"),
        ("1.1.0", "cniVersion interfaces", "name mac mtu sandbox"),
    ] {
        let (node, pod) = (Node::new(), Host::new());
        let call = node.allocated(&pod, tap_number());
        let answer = call.with("cniVersion", version).call("ADD");
        let result: Value = serde_json::from_str(&answer.stdout).unwrap();
        let order = |value: &Value| {
            let keys: Vec<&str> = value
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            keys.join(" ")
        };
        assert_eq!(result["cniVersion"], version);
        assert_eq!(order(&result), keys);
        assert_eq!(order(&result["interfaces"][0]), interface_keys);
        assert!(answer.stdout.starts_with("{\n    \"cniVersion\""));
        assert!(answer.stdout.ends_with("\n}"), "a newline at the end");
    }
}

#[test]
fn an_earlier_plugins_result_is_passed_through() {
    for version in &VERSIONS[2..] {
        let (node, pod) = (Node::new(), Host::new());
        let prev = json!({
            "cniVersion": version,
            "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": pod.path()}],
            "ips": [{"version": "4", "interface": 0, "address": "192.0.2.2/24",
                     "gateway": "192.0.2.1"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}],
            "dns": {"nameservers": ["192.0.2.53"]},
        });
        let call = node.allocated(&pod, tap_number());
        let call = call
            .with("cniVersion", *version)
            .with("prevResult", prev.clone());
        let result = call.add();
        for key in ["ips", "routes", "dns"] {
            assert_eq!(result[key], prev[key], "{version} {key}");
        }
        assert_eq!(result["interfaces"][0], prev["interfaces"][0]);
        assert_eq!(result["interfaces"][1]["name"], IFNAME);
        let call = call.with("prevResult", result);
        if *version >= "0.4.0" {
            call.succeed("CHECK");
        }
    }
}

#[test]
fn before_0_3_0_an_earlier_plugins_addresses_are_all_there_is() {
    for version in &VERSIONS[..2] {
        let (node, pod) = (Node::new(), Host::new());
        let prev = json!({"cniVersion": version, "ip4": {"ip": "192.0.2.2/24"}});
        let call = node.allocated(&pod, tap_number());
        let call = call.with("cniVersion", *version).with("prevResult", prev);
        let expected = json!({"cniVersion": version, "ip4": {"ip": "192.0.2.2/24"}, "dns": {}});
        assert_eq!(call.add(), expected);
        assert_eq!(pod.links(), [IFNAME]);
    }
}

#[test]
fn a_previous_result_of_another_family_is_refused() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node
        .allocated(&pod, tap_number())
        .with("cniVersion", "0.4.0");
    let call = call.with("prevResult", json!({"cniVersion": "1.0.0"}));
    let (code, msg) = call.fail("ADD");
    assert_eq!(code, 6);
    assert!(
        msg.starts_with("could not parse prevResult: result type supports "),
        "{msg}"
    );
    assert!(pod.links().is_empty());
}
