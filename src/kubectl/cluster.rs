//! What a cluster's releases of KubeVirt and Kubernetes mean for the pods of VMs.

use serde::{Deserialize, de::DeserializeOwned};

use super::call::{Kubectl, Output};
use crate::{
    doctor::{finding::Finding, requests},
    types::release::Release,
};

/// The policy of `manifests/injection`.
const POLICY: &str = "macvtap-injection";

#[derive(Deserialize)]
struct KubeVirts {
    items: Vec<KubeVirt>,
}

#[derive(Deserialize)]
struct KubeVirt {
    #[serde(default)]
    status: KubeVirtStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KubeVirtStatus {
    #[serde(rename = "observedKubeVirtVersion")]
    version: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    server_version: ServerVersion,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServerVersion {
    git_version: String,
}

/// How VMs get their taps with the cluster's KubeVirt; none where it has none, or where the user may
/// not ask.
pub fn finding(kubectl: &Kubectl) -> Option<Finding> {
    let check = "requests";
    let kubevirt = Release::find(&kubevirt(kubectl)?)?;
    let Some(needs) = requests::needs_of(kubevirt, kubernetes(kubectl)) else {
        let text = format!("KubeVirt {kubevirt} requests the resource of a network by itself");
        return Some(Finding::ok(check, text));
    };
    let policy = ["get", "mutatingadmissionpolicies", POLICY];
    if kubectl.run(&policy).is_ok_and(|output| output.is_ok()) {
        let text = format!("the policy {POLICY} requests them, as KubeVirt {kubevirt} needs");
        return Some(Finding::ok(check, text));
    }
    Some(Finding::note(check, needs))
}

fn kubevirt(kubectl: &Kubectl) -> Option<String> {
    let list = ["get", "kubevirts.kubevirt.io", "--all-namespaces"];
    let list: KubeVirts = json(kubectl, &[&list[..], &["--output", "json"]].concat())?;
    list.items.into_iter().find_map(|item| item.status.version)
}

fn kubernetes(kubectl: &Kubectl) -> Option<Release> {
    let versions: Versions = json(kubectl, &["version", "--output", "json"])?;
    Release::find(&versions.server_version.git_version)
}

fn json<T: DeserializeOwned>(kubectl: &Kubectl, words: &[&str]) -> Option<T> {
    kubectl.run(words).and_then(Output::parse).ok()
}
