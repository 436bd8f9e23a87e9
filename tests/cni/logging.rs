//! `logFile` and `logLevel`.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use serde_json::json;

use kit::netns::{Host, Node, device_id, mounted::Mounted, names, tap_number};

#[test]
fn a_line_names_the_attachment() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let logs = Mounted::on("/var/log");
    let call = logs.enter(&node.allocated(&pod, number));
    let call = call.with("logFile", "/var/log/macvtap/lan.log");
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
    let path = logs.path("macvtap/lan.log");
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
    assert_eq!(mode & 0o777, 0o600, "the log is open to others");
}

#[test]
fn a_log_that_cannot_be_written_costs_no_pod_its_network() {
    let (node, pod) = (Node::new(), Host::new());
    let logs = Mounted::on("/var/log");
    fs::create_dir(logs.path("macvtap.log")).unwrap();
    let call = logs.enter(&node.allocated(&pod, tap_number()));
    let answer = call.with("logFile", "/var/log/macvtap.log").call("ADD");
    assert_eq!(answer.status, 0, "{answer:?}");
    assert!(answer.stderr.contains("/var/log/macvtap.log"), "{answer:?}");
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
    let (node, pod, logs) = (Node::new(), Host::new(), Mounted::on("/var/log"));
    let victim = tempfile::tempdir().unwrap();
    let hard = logs.path("hard.log");
    fs::write(&hard, "").unwrap();
    fs::hard_link(&hard, logs.path("macvtap-hard.log")).unwrap();
    symlink(victim.path(), logs.path("macvtap")).unwrap();
    symlink(victim.path().join("x.log"), logs.path("macvtap-link.log")).unwrap();
    let call = logs.enter(&node.allocated(&pod, tap_number()));
    for name in ["macvtap/x.log", "macvtap-link.log", "macvtap-hard.log"] {
        let call = call.clone().with("logFile", format!("/var/log/{name}"));
        let answer = call.call("ADD");
        assert_eq!(answer.status, 0, "{name}: {answer:?}");
        let warned = answer.stderr.contains("nothing is logged to logFile");
        assert!(warned, "{name}: {answer:?}");
        call.succeed("DEL");
    }
    assert!(names(victim.path()).is_empty());
    assert_eq!(fs::read_to_string(hard).unwrap(), "");
}

/// Who writes a configuration may be no administrator of the node, on which shells read some
/// files whatever their names end in.
#[test]
fn a_file_of_another_program_is_left_alone() {
    let (node, pod, logs) = (Node::new(), Host::new(), Mounted::on("/var/log"));
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(logs.path("wtmp"), "").unwrap();
    let mut call = logs.enter(&node.allocated(&pod, tap_number()));
    call = call.with("logLevel", "debug");
    let foreign = elsewhere.path().join("completion.log");
    let others = [
        "/var/log/wtmp",
        "/var/log/pods/a.log",
        "/var/log/../log/macvtap.log",
    ];
    for path in others.into_iter().chain(foreign.to_str()) {
        let call = call.clone().with("logFile", path);
        let answer = call.call("ADD");
        assert_eq!(answer.status, 0, "{answer:?}");
        for part in ["nothing is logged", path, "/var/log/macvtap/NAME.log"] {
            assert!(answer.stderr.contains(part), "{part} is not in {answer:?}");
        }
        call.succeed("DEL");
    }
    assert!(names(elsewhere.path()).is_empty());
    assert_eq!(names(&logs.path("")), ["wtmp"]);
    assert_eq!(fs::read_to_string(logs.path("wtmp")).unwrap(), "");
}

/// A line stays one, and a shell that reads it runs nothing of it.
#[test]
fn what_a_user_wrote_means_nothing_to_who_reads_the_log() {
    let (node, pod, logs) = (Node::new(), Host::new(), Mounted::on("/var/log"));
    let ran = logs.path("ran");
    let ran = ran.display();
    let ids = [
        "x\n2026-01-01T00:00:00Z level=info forged".to_owned(),
        format!("x$(touch {ran})"),
        format!("x`touch {ran}`"),
        format!("x;touch\t{ran}"),
        format!("x&touch\t{ran}"),
        format!("x'\"$(touch {ran})"),
    ];
    for id in &ids {
        let call = logs.enter(&node.cni(&pod, json!({"deviceID": id})));
        let call = call.with("logFile", "/var/log/macvtap.log");
        call.with("logLevel", "debug").call("ADD");
    }
    let path = logs.path("macvtap.log");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 2 * ids.len(), "{text}");
    let quoted = r#"deviceID="x\n2026-01-01T00:00:00Z level=info forged""#;
    assert!(text.contains(quoted), "{text}");
    let mut shell = Command::new("bash");
    assert!(shell.arg(path).output().is_ok());
    assert!(!logs.path("ran").exists(), "{text}");
}
