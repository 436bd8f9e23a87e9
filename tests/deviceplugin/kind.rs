//! Two nodes on one kernel, as in `KinD`: each has a /dev of its own, but the numbers of taps
//! are the machine's.

use std::{collections::BTreeSet, process::Command};

use kit::{
    kubelet::{Plugin, RESOURCE, command, connected},
    netns::{Cni, Host, Node, dev::Dev, tap_exists, tap_of, wait_until},
};
use macvtap::selftest::kubelet::Kubelet;
use tempfile::TempDir;

/// A node that is a container.
struct KindNode {
    node: Node,
    dev: Dev,
    kubelet: Kubelet,
    _plugin: Plugin,
    _dir: TempDir,
}

impl KindNode {
    /// All of them have one host name.
    fn new(node_name: Option<&str>) -> Self {
        let (node, dev, dir) = (Node::new(), Dev::new(), tempfile::tempdir().unwrap());
        let kubelet = Kubelet::start(dir.path()).unwrap();
        let [nsenter, mount] = dev.words();
        let script = "hostname kind && exec \"$@\"";
        let words = [
            &nsenter, &mount, "unshare", "--uts", "sh", "-c", script, "sh",
        ];
        let mut command = command(&words, dir.path());
        command.env_remove("NODE_NAME");
        command.envs(node_name.map(|name| ("NODE_NAME", name)));
        Self {
            _plugin: Plugin::spawn(&node.host, command),
            node,
            dev,
            kubelet,
            _dir: dir,
        }
    }

    fn ids(&self) -> Vec<String> {
        connected(&self.kubelet).healthy()
    }

    /// Allocates a device to a pod, and attaches it.
    fn call(&self, pod: &Host, id: &str) -> Cni<'_> {
        self.kubelet.allocate(RESOURCE, &[id.to_owned()]).unwrap();
        let call = self.node.cni(pod, serde_json::json!({"deviceID": id}));
        self.dev.enter(&call)
    }
}

#[test]
fn two_nodes_with_the_same_configuration_do_not_meet() {
    let nodes = [KindNode::new(None), KindNode::new(None)];
    let numbers = nodes.each_ref().map(|node| {
        let numbers = node.ids().iter().map(|id| tap_of(id)).collect();
        let numbers: BTreeSet<u32> = numbers;
        assert_eq!(numbers.len(), 100);
        numbers
    });
    assert!(numbers[0].is_disjoint(&numbers[1]));
    std::thread::scope(|scope| {
        for node in &nodes {
            for id in node.ids().into_iter().take(8) {
                scope.spawn(move || {
                    let pod = Host::new();
                    let call = node.call(&pod, &id).added();
                    node.kubelet.pre_start(RESOURCE, &[id]).unwrap();
                    call.succeed("CHECK");
                    call.succeed("DEL");
                });
            }
        }
    });
    for node in &nodes {
        assert!(node.dev.names().is_empty(), "{:?}", node.dev.names());
    }
}

/// Two nodes should not have one name; if they do, no pod gets another one's tap.
#[test]
fn of_two_nodes_with_one_name_one_gets_the_tap() {
    let nodes = [KindNode::new(Some("kind")), KindNode::new(Some("kind"))];
    let id = nodes[0].ids()[42].clone();
    assert_eq!(nodes[1].ids()[42], id);
    let pods = [Host::new(), Host::new()];
    let first = nodes[0].call(&pods[0], &id).added();
    let second = nodes[1].call(&pods[1], &id);
    let (code, msg) = second.fail("ADD");
    let held = format!("/dev/tap{} is still in use by", tap_of(&id));
    assert!(code == 11 && msg.contains(&held), "{code}: {msg}");
    assert!(nodes[1].dev.names().is_empty());
    first.succeed("CHECK");
    first.succeed("DEL");
    second.clone().added().succeed("CHECK");
    second.succeed("DEL");
    wait_until("the tap is gone", || !tap_exists(tap_of(&id)));
}

/// A pod that uses the tap without the CNI plugin must not get that of another node's pod.
#[test]
fn pre_start_refuses_the_tap_of_another_node() {
    let nodes = [KindNode::new(Some("kind")), KindNode::new(Some("kind"))];
    let id = nodes[0].ids()[43].clone();
    assert_eq!(nodes[1].ids()[43], id);
    let pod = Host::new();
    let call = nodes[0].call(&pod, &id).added();
    // By a process the device plugins find the pod's netns.
    let mut process = pod
        .0
        .run(|| Ok(Command::new("sleep").arg("60").spawn()?))
        .unwrap();
    let ids = [id.clone()];
    nodes[0].kubelet.pre_start(RESOURCE, &ids).unwrap();
    let error = nodes[1]
        .kubelet
        .pre_start(RESOURCE, &ids)
        .unwrap_err()
        .to_string();
    assert!(error.contains("of this node"), "{error}");
    call.succeed("CHECK");
    process.kill().unwrap();
    process.wait().unwrap();
    call.succeed("DEL");
}
