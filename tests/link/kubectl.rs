//! `kubectl macvtap`, with a stand-in for kubectl that runs commands in nodes of the test.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    process::{Command, Output},
};

use kit::{
    binary,
    netns::{Host, LOWER, Node, tap_number},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{Resident, alone};

/// Two nodes with a macvtap each, one that never answers, and one whose pod is pending.
struct Cluster {
    dir: TempDir,
    taps: [String; 2],
    _nodes: [(Node, Host, Resident); 2],
}

const SCRIPT: &str = r#"#!/bin/sh
echo "$*" >>DIR/calls
while true; do
	case "$1" in
	--context=* | --kubeconfig=*) shift ;;
	*) break ;;
	esac
done
case "$1 $*" in
"get get mutatingadmissionpolicies"*) [ -e DIR/policy ] ;;
"get get kubevirts"*) cat DIR/kubevirts.json 2>/dev/null ;;
"version "*) echo '{"serverVersion": {"major": "1", "gitVersion": "v1.36.0"}}' ;;
"get "*--all-namespaces*)
	[ ! -e DIR/forbidden ] || {
		echo 'Error from server (Forbidden): pods is forbidden: User "u"' >&2
		exit 1
	}
	cat DIR/pods.json ;;
"get "*) cat DIR/pods.json ;;
"exec "*)
	[ "$2 $3 $4 $6 $7" = "--quiet --namespace kube-system -- /macvtap" ] || exit 9
	pod=$5
	shift 7
	case $pod in
	macvtap-a) nsenter --net=NETNS_A BINARY "$@" ;;
	macvtap-b) nsenter --net=NETNS_B BINARY "$@" ;;
	macvtap-c) exec sleep 60 ;;
	esac
	status=$?
	[ $status = 0 ] || echo "command terminated with exit code $status" >&2
	exit $status ;;
esac
"#;

impl Cluster {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let numbers = [tap_number(), tap_number()];
        let nodes = numbers.map(|number| {
            let (node, pod) = (Node::new(), Host::new());
            node.allocated(&pod, number).add();
            let resident = Resident::new(&pod);
            (node, pod, resident)
        });
        let script = SCRIPT
            .replace("DIR", dir.path().to_str().unwrap())
            .replace("NETNS_A", &nodes[0].0.host.path())
            .replace("NETNS_B", &nodes[1].0.host.path())
            .replace("BINARY", binary().to_str().unwrap());
        let path = dir.path().join("kubectl");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        symlink(binary(), dir.path().join("kubectl-macvtap")).unwrap();
        let pods = ["a", "b", "c", "d"].map(|name| {
            let phase = if name == "d" { "Pending" } else { "Running" };
            serde_json::json!({
                "metadata": {
                    "name": format!("macvtap-{name}"), "namespace": "kube-system",
                    "ownerReferences": [{"kind": "DaemonSet", "controller": true}],
                },
                "spec": {"nodeName": format!("node-{name}")},
                "status": {"phase": phase},
            })
        });
        let list = serde_json::json!({"kind": "List", "items": pods});
        fs::write(dir.path().join("pods.json"), list.to_string()).unwrap();
        Self {
            dir,
            taps: numbers.map(|number| number.to_string()),
            _nodes: nodes,
        }
    }

    fn run(&self, words: &[&str]) -> Output {
        let path = format!("{}:{}", self.dir.path().display(), env!("PATH"));
        let mut command = Command::new(self.dir.path().join("kubectl-macvtap"));
        command.args(words).env("PATH", path).output().unwrap()
    }

    /// Runs it; what it printed, and whether it succeeded.
    fn text(&self, words: &[&str]) -> (String, bool) {
        let output = self.run(words);
        assert!(output.stderr.is_empty(), "{output:?}");
        (
            String::from_utf8(output.stdout).unwrap(),
            output.status.success(),
        )
    }
}

const HEALTHY: [&str; 4] = ["--node", "node-a", "--node", "node-b"];

#[test]
fn lists_the_macvtaps_of_all_nodes_and_names_those_that_do_not_answer() {
    let _alone = alone();
    let cluster = Cluster::new();
    let (text, ok) = cluster.text(&["link", "list", "--lower-device", LOWER, "--timeout", "5"]);
    assert!(!ok && text.starts_with("NODE    TAP "), "{text}");
    for (node, tap) in ["node-a", "node-b"].iter().zip(&cluster.taps) {
        let line = text.lines().find(|line| line.contains(tap)).unwrap();
        assert!(line.starts_with(node), "{line}");
    }
    assert!(text.contains("node-c: no answer within 5s"), "{text}");
    assert!(text.contains("node-d: pod macvtap-d is Pending"), "{text}");
    let [first, second] = &cluster.taps;
    let (text, ok) = cluster.text(&["link", "ls", first, "--node", "node-a"]);
    assert!(
        ok && text.contains(first) && !text.contains(second),
        "{text}"
    );
    let (text, ok) = cluster.text(&[
        "link", "list", "--json", "--node", "node-b", "--node", "node-x",
    ]);
    let answers: Value = serde_json::from_str(&text).unwrap();
    assert!(!ok && answers[0]["macvtaps"].is_array(), "{text}");
    assert_eq!(answers[1]["error"], "macvtap does not run on this node");
}

#[test]
fn diagnoses_probes_and_measures_all_nodes() {
    let _alone = alone();
    let cluster = Cluster::new();
    let (text, ok) = cluster.text(&[&["doctor"], &HEALTHY[..]].concat());
    // They have no device plugin.
    assert!(!ok && text.contains("\nnode-b\n  "), "{text}");
    assert!(text.contains("\n  FAIL device plugin "), "{text}");
    let problems = text.lines().filter(|line| line.contains(" FAIL ")).count();
    assert!(
        text.ends_with(&format!("\n{problems} problems found.\n")),
        "{text}"
    );
    let (text, _) = cluster.text(&[&["doctor", "--json"], &HEALTHY[..]].concat());
    let findings: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(findings[0]["node"], "node-a");
    let (text, ok) = cluster.text(&["probe", "--timeout", "5"]);
    assert!(!ok, "{text}");
    for node in ["node-a", "node-b", "node-c", "node-d"] {
        assert!(text.contains(&format!("\n{node}  FAIL ")), "{text}");
    }
    assert!(!text.contains("command terminated"), "{text}");
    // The measurement takes longer than an answer may.
    let top = ["top", "--count", "1", "--interval", "2", "--timeout", "1.5"];
    let (text, ok) = cluster.text(&[&top, &HEALTHY[..]].concat());
    assert!(ok, "{text}");
    for tap in &cluster.taps {
        assert!(text.contains(tap), "{text}");
    }
}

#[test]
fn works_with_the_rights_and_the_context_of_the_user() {
    let _alone = alone();
    let cluster = Cluster::new();
    fs::write(cluster.dir.path().join("forbidden"), "").unwrap();
    let list = ["--context", "east", "link", "list"];
    let (_, ok) = cluster.text(&[&list, &HEALTHY[..]].concat());
    assert!(ok);
    let list = ["link", "list", "-n", "macvtap"];
    let (_, ok) = cluster.text(&[&list, &HEALTHY[..]].concat());
    assert!(ok);
    let calls = fs::read_to_string(cluster.dir.path().join("calls")).unwrap();
    assert!(calls.contains("--context=east get pods "), "{calls}");
    assert!(
        calls.contains("--context=east exec --quiet --namespace "),
        "{calls}"
    );
    assert!(calls.contains("get pods --output json") && calls.contains("--namespace macvtap\n"));
    fs::write(cluster.dir.path().join("pods.json"), r#"{"items": []}"#).unwrap();
    let output = cluster.run(&["probe"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("no pods of a DaemonSet with the label"),
        "{stderr}"
    );
    let mut command = Command::new(cluster.dir.path().join("kubectl-macvtap"));
    let output = command
        .arg("probe")
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("must be in PATH"), "{stderr}");
}

#[test]
fn says_what_the_cluster_s_kubevirt_needs() {
    let _alone = alone();
    let cluster = Cluster::new();
    let doctor = || {
        let (text, _) = cluster.text(&[&["doctor"], &HEALTHY[..]].concat());
        let mut lines = text.lines().skip_while(|line| *line != "(cluster)");
        lines.nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(doctor(), "", "it has no KubeVirt");
    let of = |version: &str| {
        let status = serde_json::json!({"observedKubeVirtVersion": version});
        let list = serde_json::json!({"items": [{"status": status}]});
        fs::write(cluster.dir.path().join("kubevirts.json"), list.to_string()).unwrap();
    };
    of("v1.8.4");
    assert!(doctor().ends_with("KubeVirt 1.8 requests the resource of a network by itself"));
    of("v1.10.0");
    let line = doctor();
    let expected = "KubeVirt 1.10 does not request the resource of a network; use one of: \
                    manifests/injection; the component nri; the network-resources-injector";
    assert!(line.contains("note") && line.ends_with(expected), "{line}");
    fs::write(cluster.dir.path().join("policy"), "").unwrap();
    let line = doctor();
    assert!(
        line.contains("ok") && line.contains("macvtap-injection"),
        "{line}"
    );
}
