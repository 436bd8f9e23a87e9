//! The nodes on which macvtap runs, by its pods, which the API server lists.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{
    call::Kubectl,
    node::{Node, Pod},
};
use crate::cli::Cluster;

/// The pods of our manifests, then those of kubevirt/macvtap-cni's with our image.
const SELECTORS: [&str; 2] = ["app.kubernetes.io/name=macvtap", "name=macvtap-cni"];

#[derive(Deserialize)]
struct PodList {
    items: Vec<Pod>,
}

/// The nodes that are asked for; all if none is named.
pub fn find(kubectl: &Kubectl, cluster: &Cluster) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    for selector in SELECTORS {
        nodes = pods(kubectl, cluster, selector)?;
        if !nodes.is_empty() {
            break;
        }
    }
    ensure!(
        !nodes.is_empty(),
        "no pods of a DaemonSet with the label {} found; if it is in another namespace, give that \
         with --namespace",
        SELECTORS.join(" or ")
    );
    let mut nodes = one_pod_each(nodes)?;
    let missing = cluster.node.iter().filter(|name| !has(&nodes, name));
    let missing: Vec<Node> = missing.map(|name| Node::without_pod(name)).collect();
    nodes.retain(|node| cluster.node.is_empty() || cluster.node.contains(&node.name));
    nodes.extend(missing);
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(nodes)
}

/// The pod of each node: one that runs, where another one is about to end. Fails if they are in
/// several namespaces: those of another user would be trusted.
fn one_pod_each(mut nodes: Vec<Node>) -> Result<Vec<Node>> {
    let namespaces = nodes.iter().map(|node| node.namespace.as_str());
    let namespaces: BTreeSet<&str> = namespaces.collect();
    ensure!(
        namespaces.len() == 1,
        "there are such pods in the namespaces {}; give one with --namespace",
        Vec::from_iter(namespaces).join(", ")
    );
    nodes.sort_by(|a, b| (&a.name, !a.is_running).cmp(&(&b.name, !b.is_running)));
    nodes.dedup_by(|a, b| a.name == b.name);
    Ok(nodes)
}

fn has(nodes: &[Node], name: &str) -> bool {
    nodes.iter().any(|node| node.name == name)
}

/// The pods in the namespace that is given, or in all, or where the user may not list those, in
/// his own.
fn pods(kubectl: &Kubectl, cluster: &Cluster, selector: &str) -> Result<Vec<Node>> {
    let get = ["get", "pods", "--output", "json", "--selector", selector];
    let listed = if let Some(namespace) = &cluster.namespace {
        kubectl.run(&[&get[..], &["--namespace", namespace]].concat())?
    } else {
        match kubectl.run(&[&get[..], &["--all-namespaces"]].concat())? {
            refused if refused.is_forbidden() => kubectl.run(&get)?,
            all => all,
        }
    };
    let list: PodList = serde_json::from_str(&listed.into_stdout()?)
        .context("reading the list of pods that kubectl printed")?;
    Ok(list.items.into_iter().filter_map(Node::of).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, (namespace, pod): (&str, &str), phase: &str) -> Node {
        let pod = json!({
            "metadata": {
                "name": pod, "namespace": namespace,
                "ownerReferences": [{"kind": "DaemonSet", "controller": true}],
            },
            "spec": {"nodeName": name},
            "status": {"phase": phase},
        });
        Node::of(serde_json::from_value(pod).unwrap()).unwrap()
    }

    #[test]
    fn a_node_has_one_pod_of_one_namespace() {
        let nodes = one_pod_each(vec![
            node("b", ("macvtap", "old"), "Failed"),
            node("b", ("macvtap", "new"), "Running"),
            node("a", ("macvtap", "a"), "Pending"),
        ]);
        let nodes = nodes.unwrap();
        let pods: Vec<(&str, &str)> = nodes.iter().map(|n| (&n.name[..], &n.pod[..])).collect();
        assert_eq!(pods, [("a", "a"), ("b", "new")]);
        let error = one_pod_each(vec![
            node("a", ("macvtap", "a"), "Running"),
            node("b", ("tenant", "b"), "Running"),
        ]);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("macvtap, tenant") && error.contains("--namespace"),
            "{error}"
        );
    }

    #[test]
    fn a_pod_that_no_daemonset_made_is_not_ours() {
        for owners in [
            json!([]),
            json!([{"kind": "ReplicaSet", "controller": true}]),
        ] {
            let pod = json!({
                "metadata": {"name": "p", "namespace": "n", "ownerReferences": owners},
                "spec": {"nodeName": "a"},
            });
            assert!(Node::of(serde_json::from_value(pod).unwrap()).is_none());
        }
    }
}
