//! Macvtaps: how one is made, and which this machine has.

pub mod addressing;
pub mod bandwidth;
pub mod create;
pub mod discovery;
pub mod error;
pub mod guard;
pub mod inventory;
pub mod limits;
pub mod lower;
mod origin;
pub mod port_security;
pub mod security;
pub mod selector;
pub mod shaping;
pub mod sub_interface;
pub mod take_over;
pub mod tap_only;
