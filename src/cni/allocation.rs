//! Which pod the kubelet has allocated a device to, by its checkpoint.
//!
//! A device belongs to one pod at a time: before the kubelet allocates a device again, it removes
//! the pods that are gone, and it writes the checkpoint before the pod's sandbox is made. An entry
//! of another pod, gone or not, shows that the device is not ours.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

use super::error::{CniError, code};
use crate::{
    host::{control_socket::KUBELET_DIR, files},
    types::{
        checkpoint,
        device_id::{NAMESPACE, are_same},
    },
};

/// The kubelet's directories of pods' logs, each named `<namespace>_<name>_<UID>`.
const POD_LOGS: &str = "/var/log/pods";

/// The pod that holds a device.
#[derive(Debug, PartialEq, Eq)]
pub enum Holder {
    /// This pod's.
    Own,
    /// No pod's.
    Free,
    /// That of the pod with this UID.
    Other(String),
    /// Cannot be determined, because of this.
    Unknown(String),
}

impl Holder {
    /// Finds the pod that holds a device; `pod_uid` is this pod's.
    pub fn of(device: &str, pod_uid: Option<&str>) -> Self {
        Self::decide(pods_with(device), pod_uid)
    }

    fn decide(pods: Result<BTreeSet<String>>, pod_uid: Option<&str>) -> Self {
        let pods = match pods {
            Ok(pods) => pods,
            Err(error) => return Self::Unknown(format!("{error:#}")),
        };
        match (pods.first(), pod_uid) {
            (None, _) => Self::Free,
            (Some(_), Some(own)) if pods.contains(own) => Self::Own,
            (Some(other), Some(_)) => Self::Other(other.clone()),
            (Some(_), None) => Self::Unknown("CNI_ARGS has no K8S_POD_UID".to_owned()),
        }
    }
}

/// The error of ADD for a device of the pod with this UID.
pub fn others_device(device: &str, pod_uid: &str) -> CniError {
    let pod = name_of(Path::new(POD_LOGS), pod_uid).unwrap_or_default();
    let text = format!(
        "device {device:?} is allocated to another pod, {pod}UID {pod_uid}; remove deviceID from \
         the network: Multus sets it"
    );
    CniError::new(code::CONFIG, text)
}

/// The UIDs of the pods that have a device.
fn pods_with(device: &str) -> Result<BTreeSet<String>> {
    let file = Path::new(KUBELET_DIR).join(checkpoint::FILE);
    let shown = file.display();
    let bytes =
        files::read(&file).with_context(|| format!("reading the kubelet's checkpoint {shown}"))?;
    let all = checkpoint::allocations(&bytes, NAMESPACE).with_context(|| shown.to_string())?;
    let with_it = all
        .into_iter()
        .filter(|each| each.devices.iter().any(|id| are_same(id, device)));
    Ok(with_it.map(|each| each.pod_uid).collect())
}

/// Namespace and name of the pod with this UID, as a beginning of a phrase.
fn name_of(logs: &Path, pod_uid: &str) -> Option<String> {
    let mut entries = fs::read_dir(logs).ok()?.flatten();
    entries.find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (pod, uid) = name.rsplit_once('_')?;
        let (namespace, pod) = pod.split_once('_')?;
        (uid == pod_uid).then(|| format!("{namespace}/{pod}, "))
    })
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_device_is_one_pods() {
        let pods = |uids: &[&str]| Ok(uids.iter().map(|uid| (*uid).to_owned()).collect());
        let decide = Holder::decide;
        assert_eq!(decide(pods(&[]), Some("a")), Holder::Free);
        assert_eq!(decide(pods(&[]), None), Holder::Free);
        assert_eq!(decide(pods(&["a"]), Some("a")), Holder::Own);
        let other = Holder::Other("a".to_owned());
        assert_eq!(decide(pods(&["a"]), Some("b")), other);
        for unknown in [
            decide(pods(&["a"]), None),
            decide(Err(anyhow!("broken")), Some("a")),
        ] {
            assert!(matches!(unknown, Holder::Unknown(_)), "{unknown:?}");
        }
    }

    #[test]
    fn a_pod_is_named_where_the_kubelet_has_its_logs() {
        let logs = tempfile::tempdir().unwrap();
        for name in ["vms_vm-1_8a-b", "vms_vm-2_8a-c", "x", "y_z"] {
            fs::create_dir(logs.path().join(name)).unwrap();
        }
        let name = |uid| name_of(logs.path(), uid);
        assert_eq!(name("8a-c").as_deref(), Some("vms/vm-2, "));
        assert_eq!(name("8a"), None);
        assert_eq!(name_of(Path::new("/nonexistent"), "8a-b"), None);
    }
}
