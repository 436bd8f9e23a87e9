//! Which pod the kubelet has allocated a device to, by its checkpoint.
//!
//! A device belongs to one pod at a time: before the kubelet allocates a device again, it removes
//! the pods that are gone, and it writes the checkpoint before the pod's sandbox is made. An entry
//! of another pod, gone or not, shows that the device is not ours.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::error::{CniError, code};
use crate::{
    host::{control_socket::KUBELET_DIR, files},
    netlink::Link,
    types::{
        checkpoint::{self, Allocation},
        device_id::{NAMESPACE, original_link_name},
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
    /// Finds the pod that holds the device with this tap; `pod_uid` is this pod's.
    ///
    /// Each ADD with a device ID asks. Mostly the device is this pod's, which the text of the
    /// checkpoint shows: it is decoded only if not.
    pub fn of_tap(tap: u32, pod_uid: Option<&str>) -> Self {
        let text = match read_checkpoint() {
            Ok(text) => text,
            Err(error) => return Self::decide(Err(error), pod_uid),
        };
        if pod_uid.is_some_and(|own| checkpoint::is_first_of(&text, tap, own)) {
            return Self::Own;
        }
        Self::decide(pods_with(&text, |each| each.has_tap(tap)), pod_uid)
    }

    /// Finds the pod that holds a macvtap of the host. It is known by its tap or its name, not by the
    /// device ID that a network gives: there are many texts of one hash.
    pub fn of_link(link: &Link, pod_uid: Option<&str>) -> Self {
        let is_named_for = |id: &String| *id == link.name || original_link_name(id) == link.name;
        let has =
            |each: &Allocation| each.has_tap(link.index) || each.devices.iter().any(is_named_for);
        let pods = read_checkpoint().and_then(|text| pods_with(&text, has));
        Self::decide(pods, pod_uid)
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

fn checkpoint_file() -> PathBuf {
    Path::new(KUBELET_DIR).join(checkpoint::FILE)
}

fn read_checkpoint() -> Result<Vec<u8>> {
    let file = checkpoint_file();
    files::read(&file)
        .with_context(|| format!("reading the kubelet's checkpoint {}", file.display()))
}

/// The UIDs of the pods of which an allocation is what is looked for.
fn pods_with(text: &[u8], has: impl Fn(&Allocation) -> bool) -> Result<BTreeSet<String>> {
    let all = checkpoint::allocations(text, NAMESPACE)
        .with_context(|| checkpoint_file().display().to_string())?;
    let with_it = all.into_iter().filter(has);
    Ok(with_it.map(|each| each.pod_uid).collect())
}

/// Namespace and name of the pod with this UID, followed by a comma.
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
