//! Where distributions have CNI plugins and their configurations.

use std::path::{Path, PathBuf};

use crate::dispatch::NAME;

/// The CNI directories: the usual one, then those of `OpenShift`, k3s, `MicroK8s` and GKE.
const CNI: [&str; 5] = [
    "/opt/cni/bin",
    "/var/lib/cni/bin",
    "/var/lib/rancher/k3s/data/cni",
    "/var/snap/microk8s/current/opt/cni/bin",
    "/home/kubernetes/bin",
];
/// The directories of their configurations, in the same order; GKE has the usual one.
const CONFIGURATIONS: [&str; 4] = [
    "/etc/cni/net.d",
    "/etc/kubernetes/cni/net.d",
    "/var/lib/rancher/k3s/agent/etc/cni/net.d",
    "/var/snap/microk8s/current/args/cni-network",
];

/// The CNI directory of this node: the first one that has the plugin.
pub fn cni() -> PathBuf {
    first(&CNI, |dir| dir.join(NAME).exists())
}

/// The directory of the CNI configurations of this node.
pub fn cni_configurations() -> PathBuf {
    first(&CONFIGURATIONS, Path::exists)
}

/// The first directory for which `is_it` holds; if none, the first one.
fn first(dirs: &[&str], is_it: impl Fn(&Path) -> bool) -> PathBuf {
    let found = dirs.iter().find(|dir| is_it(Path::new(dir)));
    found
        .or(dirs.first())
        .map(PathBuf::from)
        .unwrap_or_default()
}
