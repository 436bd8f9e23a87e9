//! Which pods have the macvtaps for the tap alone, by the kubelet. Each macvtap shows it, so that a
//! later device plugin knows it too.

use std::{collections::BTreeSet, time::Instant};

use super::{
    grpc::pod_resources::api::ListPodResourcesResponse, tap_containers, tap_only::TapOnly,
};
use crate::types::device_id::DeviceId;

/// Macvtaps for the tap alone, each with the pod that it shows; that is empty if it shows none.
pub struct TapOnlyPods {
    /// The node's name in the cluster, if that is known.
    pub node: Option<String>,
    /// When they were listed: before the kubelet is asked.
    pub listed_at: Instant,
    /// Those whose devices the kubelet has allocated.
    pub allocated: Vec<(DeviceId, String)>,
    /// Those whose devices it has not, and of which it is not known that it released them: their
    /// pods ended while no device plugin ran, or they run and the kubelet's checkpoint was lost.
    pub unknown: Vec<(DeviceId, String)>,
}

impl TapOnlyPods {
    /// None yet, on the node with this name.
    #[must_use]
    pub fn on(node: Option<&str>) -> Self {
        Self {
            node: node.map(str::to_owned),
            listed_at: Instant::now(),
            allocated: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allocated.is_empty() && self.unknown.is_empty()
    }

    /// Compares them with the kubelet's list of pods: has those that show no pod show theirs, and
    /// those whose pod is gone deleted. After the loss of its checkpoint the kubelet lists a pod that
    /// runs, without its devices.
    pub fn compare(self, answer: &ListPodResourcesResponse, tap_only: &TapOnly) {
        let containers = tap_containers::in_answer(answer, &[]);
        let new = self.allocated.into_iter().filter_map(|(device, shown)| {
            let pod = &containers.get(&device.tap)?.pod;
            (shown != *pod).then(|| (device, pod.clone()))
        });
        tap_only.note_pods(new.collect(), self.listed_at);
        let pods = tap_containers::pods_in(answer);
        let is_whole = self.node.is_some_and(|node| is_whole(&pods, &node));
        let is_gone =
            |(_, pod): &(DeviceId, String)| is_whole && !pod.is_empty() && !pods.contains(pod);
        let (gone, kept): (Vec<_>, Vec<_>) = self.unknown.into_iter().partition(is_gone);
        tap_only.clear_of(gone);
        tap_only.warn_kept(kept.into_iter().map(|(device, _)| device).collect());
    }
}

/// Whether the kubelet knows the node's pods. After it started, it has its static pods first, whose
/// names end with the node's (`generatePodName` of its configuration), and later all others at once.
/// One of them shows that this is the node's name in the cluster: `--node-name` may be any text.
fn is_whole(pods: &BTreeSet<String>, node: &str) -> bool {
    let end = format!("-{}", node.to_lowercase());
    let is_static = |pod: &String| pod.ends_with(&end);
    pods.iter().any(is_static) && !pods.iter().all(is_static)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_that_has_only_static_pods_does_not_know_the_others_yet() {
        let whole = |pods: &[&str]| {
            let pods = pods.iter().map(|pod| (*pod).to_owned()).collect();
            is_whole(&pods, "Worker-1")
        };
        assert!(!whole(&[]));
        assert!(!whole(&["kube-system/etcd-worker-1"]));
        assert!(whole(&[
            "kube-system/etcd-worker-1",
            "kube-system/macvtap-x7k2p"
        ]));
    }

    #[test]
    fn what_is_not_the_name_of_the_node_proves_nothing() {
        let pods = ["kube-system/etcd-node-a", "kube-system/macvtap-x7k2p"];
        let pods = BTreeSet::from(pods.map(str::to_owned));
        assert!(is_whole(&pods, "node-a"));
        assert!(!is_whole(&pods, "any text"));
    }
}
