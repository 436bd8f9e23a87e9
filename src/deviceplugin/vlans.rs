//! The VLAN interfaces that resources are on.

use std::collections::BTreeSet;

use log::warn;

use crate::{
    macvtap::sub_interface::{Maker, SubInterface, delete_unused},
    netlink::{Link, Socket},
};

/// Makes those that are `wanted`, and removes those that it made whose name is not in `used` any
/// more; what could not be made, and why.
pub fn reconcile(
    host: &mut Socket,
    links: &[Link],
    wanted: &BTreeSet<&SubInterface>,
    used: &BTreeSet<&str>,
) -> Vec<String> {
    let is_ready = |link: &Link| link.up || !Maker::DevicePlugin.made(link);
    let missing = wanted
        .iter()
        .filter(|vlan| !vlan.among(links).is_some_and(is_ready));
    let errors = missing.filter_map(|vlan| vlan.ensure(host, Maker::DevicePlugin).err());
    let errors = errors.map(|error| format!("{error:#}")).collect();
    let ours = links.iter().filter(|link| Maker::DevicePlugin.made(link));
    for link in ours.filter(|link| !used.contains(link.name.as_str())) {
        if let Err(error) = delete_unused(host, link, Maker::DevicePlugin) {
            let error = format!("{error:#}");
            warn!(error = error.as_str(); "VLAN interface not removed; it is tried again");
        }
    }
    errors
}
