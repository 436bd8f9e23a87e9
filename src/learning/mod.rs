//! Live migration without a black hole: the node learns where a VM's MAC lives, as a switch
//! does.
//!
//! A macvtap in bridge mode whose VM is not there, because it is still to come or has left, is
//! a black hole for its neighbours on the same lower device: frames that they send to the VM's
//! MAC are given to the macvtap, and frames that the VM sends by the wire are not given to them.
//! In VEPA mode it is not. So each such port is *parked* in VEPA mode from its creation until
//! its VM sends its first frame, and again when the VM is announced elsewhere.
//!
//! `port` decides, `table` knows the ports, `sockets` receives frames, `thread` connects them
//! with the kernel. `query` is between ADD and the device plugin.

mod closer;
pub(crate) mod filter;
pub mod frame;
mod group;
mod netns;
mod pins;
pub(crate) mod port;
pub mod query;
mod recovery;
mod search;
mod sockets;
mod table;
mod thread;

pub use group::{GROUP, group, is_parked, is_port};
pub use recovery::path_in_container;
pub use thread::{Learning, OnChange};
