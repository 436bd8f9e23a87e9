//! The nodes on which macvtap runs, by its pods, which the API server lists.

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
        "no pods with the label {} found; if the DaemonSet is in another namespace, give it with \
         --namespace",
        SELECTORS.join(" or ")
    );
    let missing = cluster.node.iter().filter(|name| !has(&nodes, name));
    let missing: Vec<Node> = missing.map(|name| Node::without_pod(name)).collect();
    nodes.retain(|node| cluster.node.is_empty() || cluster.node.contains(&node.name));
    nodes.extend(missing);
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
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
