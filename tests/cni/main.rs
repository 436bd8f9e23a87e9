//! The CNI plugin, as runtimes call it: the built binary in real network namespaces.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "in a test a panic is how to fail"
)]

#[path = "../netns/mod.rs"]
mod netns;

mod add;
mod bad_input;
mod check;
mod del;
mod frames;
mod hand_over;
mod logging;
mod protocol;
mod races;
mod status_gc;
mod tmpfs_dev;
mod versions;
