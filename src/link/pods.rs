//! Which pod and which of its containers have a macvtap.

use std::path::Path;

use crate::{deviceplugin::tap_containers, macvtap::inventory::Inventory};

/// Completes an inventory with the names that libcni's results, the kubelet and the container
/// runtime have.
pub fn find(inventory: &mut Inventory, kubelet_dir: &Path) {
    inventory.find_pods();
    let mut containers = tap_containers::by_tap(kubelet_dir);
    for macvtap in &mut inventory.macvtaps {
        if let Some(name) = containers.remove(&macvtap.link.index) {
            macvtap.pod.get_or_insert(name.pod);
            macvtap.container = Some(name.container);
        }
    }
}
