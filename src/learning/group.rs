//! The link group by which the ports of learning are known.

use crate::{netlink::Link, types::mode::Mode};

/// The link group of macvtaps in bridge mode that ADD makes, in ASCII "mvtp". By it a device
/// plugin finds its ports again after a restart, and distinguishes a parked one from one whose
/// configured mode is VEPA.
pub const GROUP: u32 = 0x6d76_7470;

/// The link group that ADD gives a macvtap of this configured mode: 0, the kernel's default, if
/// it is not a port of learning.
#[must_use]
pub const fn group(mode: Mode) -> u32 {
    match mode {
        Mode::Bridge => GROUP,
        _ => 0,
    }
}

/// Whether the link is a port.
#[must_use]
pub fn is_port(link: &Link) -> bool {
    link.group == GROUP
}

/// Whether the link is a parked port.
#[must_use]
pub fn is_parked(link: &Link) -> bool {
    is_port(link) && link.mode == Some(Mode::Vepa)
}
