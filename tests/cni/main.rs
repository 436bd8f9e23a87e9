//! The CNI plugin, as runtimes call it: the built binary in real network namespaces.

#[macro_use]
extern crate pretty_assertions;

mod add;
mod bad_input;
mod bandwidth;
mod check;
mod cost;
mod del;
mod forged;
mod frames;
mod hand_over;
mod ipam;
mod link_in_container;
mod logging;
mod mac_policy;
mod modes;
mod proof;
mod protocol;
mod races;
mod security;
mod status_gc;
mod tmpfs_dev;
mod user_namespaces;
mod versions;
mod vlan;
mod warnings;
