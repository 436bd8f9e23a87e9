//! `logFile` and `logLevel`.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use serde_json::json;

use kit::netns::{Host, Node, device_id, names, tap_number};

#[test]
fn a_line_names_the_attachment() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("macvtap.log");
    let call = node.allocated(&pod, number).with("logFile", path.to_str());
    let call = call.env(
        "CNI_ARGS",
        "IgnoreUnknown=1;K8S_POD_NAME=vm-x;K8S_POD_NAMESPACE=demo",
    );
    let answer = call.call("ADD");
    assert_eq!(
        (answer.status, answer.stderr.as_str()),
        (0, ""),
        "{answer:?}"
    );
    call.fail("ADD");
    call.succeed("DEL");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    for line in text.lines() {
        for part in [
            "containerID=c",
            "ifName=net1",
            "pod=vm-x",
            "namespace=demo",
            &format!("deviceID={}", device_id(number)),
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }
    assert!(
        text.contains("level=error") && text.contains("code=4"),
        "{text}"
    );
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o007, 0, "the log is open to the world");
}

#[test]
fn a_log_that_cannot_be_written_costs_no_pod_its_network() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number());
    let answer = call.with("logFile", "/nowhere/at/all.log").call("ADD");
    assert_eq!(answer.status, 0, "{answer:?}");
    assert!(answer.stderr.contains("/nowhere/at/all.log"), "{answer:?}");
}

#[test]
fn the_level_decides_and_a_wrong_one_costs_no_pod_its_network() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number());
    assert_eq!(call.call("DEL").stderr, "");
    let verbose = call.clone().with("logLevel", "debug").call("DEL");
    assert!(verbose.stderr.contains("level=debug"), "{verbose:?}");
    for (key, value) in [("logLevel", json!("loud")), ("logFile", json!(7))] {
        let call = call.clone().with(key, value.clone());
        let added = call.call("ADD");
        assert_eq!(added.status, 0, "{added:?}");
        for text in ["level=warn", key, &value.to_string().replace('"', "")] {
            assert!(added.stderr.contains(text), "{added:?}");
        }
        let result: serde_json::Value = serde_json::from_str(&added.stdout).unwrap();
        call.clone().with("prevResult", result).succeed("CHECK");
        call.clone()
            .with("cni.dev/attachments", json!([]))
            .succeed("GC");
        call.succeed("DEL");
        assert!(pod.links().is_empty());
    }
}

/// Who can write to a directory on the way must not lead root elsewhere.
#[test]
fn a_log_file_is_not_reached_by_links() {
    let (node, pod) = (Node::new(), Host::new());
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("victim")).unwrap();
    symlink(path("victim"), path("planted")).unwrap();
    symlink(path("victim/other.log"), path("link.log")).unwrap();
    fs::write(path("victim/hard.log"), "").unwrap();
    fs::hard_link(path("victim/hard.log"), path("hard.log")).unwrap();
    let call = node.allocated(&pod, tap_number());
    for name in ["planted/x.log", "link.log", "hard.log"] {
        let call = call.clone().with("logFile", path(name).to_str());
        let answer = call.call("ADD");
        assert_eq!(answer.status, 0, "{name}: {answer:?}");
        assert!(
            answer.stderr.contains("opening logFile"),
            "{name}: {answer:?}"
        );
        call.succeed("DEL");
    }
    assert_eq!(names(&path("victim")), ["hard.log"]);
    assert_eq!(fs::read_to_string(path("victim/hard.log")).unwrap(), "");
}

/// Who writes a configuration may be no administrator of the node.
#[test]
fn a_file_that_is_no_log_is_left_alone_and_a_line_stays_one() {
    let (node, pod) = (Node::new(), Host::new());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("profile");
    let call = node.allocated(&pod, tap_number());
    let answer = call.with("logFile", path.to_str()).call("ADD");
    assert_eq!(answer.status, 0, "{answer:?}");
    assert!(
        answer.stderr.contains("neither below /var/log"),
        "{answer:?}"
    );
    assert!(!path.exists());
    let path = directory.path().join("macvtap.log");
    let id = "x\n2026-01-01T00:00:00Z level=info forged";
    let call = node.cni(&pod, serde_json::json!({"deviceID": id}));
    call.with("logFile", path.to_str()).call("ADD");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let quoted = r#"deviceID="x\n2026-01-01T00:00:00Z level=info forged""#;
    assert!(text.contains(quoted), "{text}");
}
