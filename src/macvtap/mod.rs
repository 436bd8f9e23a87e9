//! Macvtaps: how one is made, and which this machine has.

pub mod holder;
pub mod inventory;
