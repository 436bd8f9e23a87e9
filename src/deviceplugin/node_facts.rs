//! What the kernel and sysfs say of a node's interfaces beside their links.

use crate::{
    host::hardware::Hardware,
    macvtap::selector::Facts,
    netlink::{Link, NetlinkError, Socket},
};

/// Reads it for these links.
pub fn read(socket: &mut Socket, links: &[Link]) -> Result<Facts, NetlinkError> {
    let hardware = links
        .iter()
        .filter_map(|link| Some((link.index, Hardware::of(link)?)));
    Ok(Facts {
        hardware: hardware.collect(),
        addresses: socket.all_addresses()?,
        default_route: socket.default_route()?,
    })
}
