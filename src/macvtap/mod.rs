//! Macvtaps: how one is made, and which this machine has.

pub mod create;
pub mod error;
pub mod guard;
pub mod inventory;
pub mod lower;
pub mod take_over;
pub mod tap_only;
