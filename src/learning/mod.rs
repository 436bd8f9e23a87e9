//! Live migration without a black hole: the node learns where a VM's MAC lives, as a switch
//! does.
//!
//! A macvtap in bridge mode whose VM is not there, because it is still to come or has gone, is
//! a black hole for its neighbours on the same lower device: what they send to the VM's MAC is
//! given to the macvtap, and what comes from the VM by the wire is not given to them. In VEPA
//! mode it is none. So each such port is *parked* in VEPA mode from its creation until its VM
//! sends its first frame, and again from when the VM is announced elsewhere.
//!
//! `port` decides, `learner` acts, `packet` hears, `question` is between ADD and the device
//! plugin.

pub mod filter;
pub mod frame;
mod packet;
pub mod port;
pub mod query;
mod thread;

pub use thread::Learning;

use crate::{netlink::Link, types::mode::Mode};

/// The link group of macvtaps in bridge mode that ADD makes, in ASCII "mvtp": by it a device
/// plugin finds its ports again after a restart, and knows a parked one from one that is in
/// VEPA mode because it is configured so.
pub const GROUP: u32 = 0x6d76_7470;

/// The link group that ADD gives a macvtap in this mode; 0, the kernel's own, where nothing is
/// learnt of it.
#[must_use]
pub const fn group(mode: Mode) -> u32 {
    match mode {
        Mode::Bridge => GROUP,
        _ => 0,
    }
}

/// Whether a macvtap of a bridge waits in VEPA mode for its VM.
#[must_use]
pub fn is_parked(link: &Link) -> bool {
    link.group == GROUP && link.mode == Some(Mode::Vepa)
}
