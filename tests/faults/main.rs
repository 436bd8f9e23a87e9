//! Programs that are stopped at every system call, and system calls that fail with every error
//! that they can: nothing is lost, nothing is left.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "in a test a panic is how to fail, and a figure is worth a line"
)]

#[path = "../kubelet/mod.rs"]
mod kubelet;
#[path = "../netns/mod.rs"]
mod netns;

mod cni;
mod deviceplugin;
mod injection;
mod install;
