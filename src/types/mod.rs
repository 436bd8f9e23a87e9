//! What the program speaks of: plain values, pure.

pub mod checkpoint;
pub mod device_id;
pub mod device_number;
pub mod errors;
pub mod json;
pub mod link_name;
pub mod listen_address;
pub mod mac;
pub mod mode;
pub mod owner;
pub mod plural;
pub mod prefix;
pub mod resource_name;
pub mod status;
