//! Learning where VMs live, and migrations by it.

#![expect(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "in a test a panic is how to fail, and what is printed is shown then"
)]

#[path = "../kubelet/mod.rs"]
mod kubelet;
#[path = "../netns/mod.rs"]
mod netns;

mod ports;
mod switch;
