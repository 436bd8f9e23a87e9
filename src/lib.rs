//! macvtap networking for virtual machines on Kubernetes: the parts of the
//! `macvtap` binary, as a library for its tests and benchmarks.

#![forbid(unsafe_code)]

pub mod call;
pub mod cli;
pub mod cni;
pub mod device_id;
pub mod deviceplugin;
pub mod doctor;
pub mod failures;
pub mod fields;
pub mod files;
pub mod holder;
pub mod install;
pub mod learning;
pub mod link;
pub mod logging;
pub mod mac;
pub mod mode;
pub mod netlink;
pub mod netns;
pub mod peer;
pub mod selftest;
pub mod survey;
pub mod tap;
