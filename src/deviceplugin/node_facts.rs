//! What the kernel and sysfs say of a node's interfaces beside their links.

use super::config::Configuration;
use crate::{
    host::hardware::Hardware,
    macvtap::selector::Facts,
    netlink::{Link, NetlinkError, Socket},
};

/// Reads it for these links, as far as the configuration needs it.
pub fn read(
    socket: &mut Socket,
    links: &[Link],
    configuration: &Configuration,
) -> Result<Facts, NetlinkError> {
    let hardware = links
        .iter()
        .filter_map(|link| Some((link.index, Hardware::of(link)?)));
    let mut facts = Facts {
        hardware: hardware.collect(),
        ..Facts::default()
    };
    if configuration.needs_addresses() {
        facts.addresses = socket.all_addresses()?;
        facts.default_route = socket.default_route()?;
    }
    Ok(facts)
}
