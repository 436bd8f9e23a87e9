//! What the program speaks of: plain values, pure.

pub mod device_id;
pub mod errors;
pub mod json;
pub mod mac;
pub mod mode;
pub mod plural;
pub mod status;
