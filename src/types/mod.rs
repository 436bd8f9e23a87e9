//! What the program speaks of: plain values, pure.

pub mod checkpoint;
pub mod device_id;
pub(crate) mod device_number;
pub(crate) mod errors;
pub mod glob;
pub mod ip_config;
pub(crate) mod json;
pub(crate) mod keys;
pub(crate) mod link_name;
pub(crate) mod listen_address;
pub mod mac;
pub mod mode;
pub mod owner;
pub(crate) mod plural;
pub mod port_options;
pub mod prefix;
pub(crate) mod release;
pub(crate) mod resource_name;
pub mod resource_options;
pub mod status;
pub(crate) mod vlan;
