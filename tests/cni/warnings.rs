//! What a person sees of warnings where the configuration names no log: runtimes forward standard
//! error after a success, and the details of an error.

use std::fs;

use kit::netns::{Case, Cni, Host, IFNAME, LOWER, Node, device_id, tap_number};
use serde_json::json;

/// As in hardened units and nested containers.
const READ_ONLY: [&str; 5] = [
    "unshare",
    "-m",
    "sh",
    "-c",
    "mount -o bind,ro /proc/sys /proc/sys && exec \"$0\" \"$@\"",
];

/// The lines of standard error of an ADD that succeeds.
fn warnings(call: &Cni<'_>) -> String {
    let answer = call.call("ADD");
    assert_eq!(answer.status, 0, "{answer:?}");
    let is_warning = |line: &str| line.contains("level=warn") && line.starts_with("ts=");
    assert!(answer.stderr.lines().all(is_warning), "{answer:?}");
    answer.stderr
}

#[test]
fn ipv6_that_cannot_be_disabled() {
    let case = Case::new();
    let sysctl = || {
        let path = format!("/proc/sys/net/ipv6/conf/{IFNAME}/disable_ipv6");
        let read = || Ok(fs::read_to_string(path)?);
        case.pod.0.run(read).unwrap()
    };
    let call = case.call();
    assert_eq!(warnings(&call), "");
    assert_eq!(sysctl(), "1\n");
    call.succeed("DEL");
    let call = call.by(&READ_ONLY);
    let text = warnings(&call);
    assert!(text.contains("cannot disable IPv6"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    assert_eq!(sysctl(), "0\n");
    call.succeed("DEL");
    // Nothing of it matters where the pod's own stack is to be on.
    assert_eq!(warnings(&call.with("hostStack", true)), "");
}

#[test]
fn addresses_that_are_not_announced() {
    let case = Case::new();
    let plugins = tempfile::tempdir().unwrap();
    let script = r#"#!/bin/sh
[ $CNI_COMMAND != ADD ] || echo '{"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.7/24"}]}'
"#;
    let path = plugins.path().join("fixed");
    fs::write(&path, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&path, mode).unwrap();
    let config = json!({"cniVersion": "1.0.0", "lowerDevice": LOWER, "ipam": {"type": "fixed"}});
    let call = case.node.cni(&case.pod, config);
    let call = call.env("CNI_PATH", plugins.path().to_str().unwrap());
    assert_eq!(warnings(&call), "");
    call.succeed("DEL");
    let call = call.by(&READ_ONLY);
    let text = warnings(&call);
    assert!(text.contains("new addresses are not announced"), "{text}");
    call.succeed("DEL");
}

/// The runtime throws standard error away where there is an error on standard output.
#[test]
fn an_error_has_those_of_the_configuration_in_its_details() {
    let case = Case::new();
    let call = case.call().with("lowerDevice", "eth9");
    let call = call.with("mac", "xx");
    let details = |call: &Cni<'_>| {
        let error = call.call("ADD").error();
        error["details"].as_str().unwrap_or_default().to_owned()
    };
    let failing = details(&call.clone().with("mtu", 9000));
    for part in ["lowerDevice \"eth9\" is ignored", "invalid mac"] {
        assert!(failing.contains(part), "{failing}");
    }
    assert_eq!(details(&case.call().with("mtu", 9000)), "");
    // The texts of the reference implementation are left as they are.
    let (node, pod) = (Node::new(), Host::new());
    let id = device_id(tap_number());
    let config = json!({"cniVersion": "9.9.9", "deviceID": id, "mode": "hub"});
    let failing = details(&node.cni(&pod, config));
    assert!(
        failing.starts_with("config is") && !failing.contains("hub"),
        "{failing}"
    );
}
