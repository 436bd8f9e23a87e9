//! A node of a cluster, and the pod by which commands are run on it.

use serde::Deserialize;

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub namespace: String,
    pub pod: String,
    /// Why nothing can be run there.
    pub unavailable: Option<String>,
}

/// A pod, as the API server has it.
#[derive(Deserialize)]
pub struct Pod {
    metadata: Metadata,
    spec: Spec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct PodStatus {
    phase: Option<String>,
}

impl Node {
    /// The node of a pod, if that is on one.
    pub fn of(pod: Pod) -> Option<Self> {
        let phase = pod.status.phase.unwrap_or_default();
        let running = phase == "Running";
        Some(Self {
            name: pod.spec.node_name?,
            unavailable: (!running).then(|| format!("pod {} is {phase}", pod.metadata.name)),
            namespace: pod.metadata.namespace,
            pod: pod.metadata.name,
        })
    }

    /// A node on which no pod of ours is.
    pub fn without_pod(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: String::new(),
            pod: String::new(),
            unavailable: Some("macvtap does not run on this node".to_owned()),
        }
    }
}
