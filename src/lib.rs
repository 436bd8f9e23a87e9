//! macvtap networking for virtual machines on Kubernetes: the parts of the
//! `macvtap` binary, as a library for its tests and benchmarks.
//!
//! Imports run down this list, never up: the choice of an applet, the applets, the command
//! line's types, `macvtap`, `learning`, `host`, `netlink`, `types`.

#![forbid(unsafe_code)]
#![warn(
    missing_docs,
    clippy::exit,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used
)]

pub mod applets;

pub mod cni;
pub mod deviceplugin;
pub(crate) mod doctor;
pub(crate) mod install;
pub mod kubectl;
pub(crate) mod link;
pub mod selftest;

pub mod cli;
pub mod dispatch;
pub(crate) mod glog;
pub(crate) mod shell;
pub(crate) mod usage;

pub mod macvtap;

pub mod learning;

pub mod host;

pub mod netlink;

pub mod types;
