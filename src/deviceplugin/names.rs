//! Names that the device plugin and the kubelet know each other by.

use std::path::Path;

use crate::types::device_id::{NAMESPACE, short_hash};

/// The kubelet's socket in the device-plugins directory (`KubeletSocket` of Kubernetes'
/// `deviceplugin/v1beta1`).
pub const KUBELET_SOCKET: &str = "kubelet.sock";
/// The version of the device plugin API.
pub const API_VERSION: &str = "v1beta1";
/// The maximum length of a Unix socket's path, in bytes (`sun_path` without its NUL).
const MAX_PATH_BYTES: usize = 107;

/// A resource's name as pods request it.
#[must_use]
pub fn qualified(resource: &str) -> String {
    format!("{NAMESPACE}/{resource}")
}

/// The name of a resource's socket in `directory`: with a hash of the resource's name if the
/// path would otherwise be too long.
#[must_use]
pub fn socket_name(directory: &Path, resource: &str) -> String {
    let name = format!("{NAMESPACE}_{resource}");
    if directory.join(&name).as_os_str().len() <= MAX_PATH_BYTES {
        return name;
    }
    format!("{NAMESPACE}_{}", short_hash(resource))
}

/// Whether a resource's socket has this name.
#[must_use]
pub fn is_resource_socket(name: &str) -> bool {
    let rest = name.strip_prefix(NAMESPACE);
    rest.is_some_and(|rest| rest.starts_with('_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_named_as_the_originals_or_by_a_hash() {
        let usual = Path::new("/var/lib/kubelet/device-plugins");
        let name = socket_name(usual, "eth0.100");
        assert_eq!(name, "macvtap.network.kubevirt.io_eth0.100");
        let long = "x".repeat(63);
        let name = socket_name(usual, &long);
        assert_eq!(name.len(), NAMESPACE.len() + 1 + 12);
        assert_ne!(name, socket_name(usual, &"y".repeat(63)));
        let longest = "x".repeat(MAX_PATH_BYTES - 32 - 28);
        assert!(socket_name(usual, &longest).ends_with(&longest));
        assert!(!socket_name(usual, &format!("{longest}x")).ends_with("xxx"));
    }
}
