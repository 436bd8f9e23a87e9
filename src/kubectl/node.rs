//! A node of a cluster, and the pod by which commands are run on it.

use serde::Deserialize;

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub namespace: String,
    pub pod: String,
    /// Whether its pod runs and is not about to end.
    pub is_running: bool,
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
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    namespace: String,
    deletion_timestamp: Option<String>,
    #[serde(default)]
    owner_references: Vec<OwnerReference>,
}

#[derive(Deserialize)]
struct OwnerReference {
    kind: String,
    #[serde(default)]
    controller: bool,
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
    /// The node of a pod of a `DaemonSet`, if that is on one. Any user of the cluster can give his
    /// own pods our label.
    pub fn of(pod: Pod) -> Option<Self> {
        let mut owners = pod.metadata.owner_references.iter();
        owners.find(|owner| owner.controller && owner.kind == "DaemonSet")?;
        let phase = pod.status.phase.unwrap_or_default();
        let running = phase == "Running";
        Some(Self {
            is_running: running && pod.metadata.deletion_timestamp.is_none(),
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
            is_running: false,
            unavailable: Some("macvtap does not run on this node".to_owned()),
        }
    }
}
