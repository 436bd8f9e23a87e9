//! Live migrations of a real guest between two nodes, with and without learning.

#![expect(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "in a test a panic is how to fail, and what is printed is shown then"
)]

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../kubelet/mod.rs"]
mod kubelet;
#[path = "../netns/mod.rs"]
mod netns;
#[path = "../learning/switch.rs"]
mod switch;
#[path = "../guest/traffic.rs"]
mod traffic;
#[path = "../consumers/wire.rs"]
mod wire;

mod migration;
mod qmp;
mod start;
mod table;
