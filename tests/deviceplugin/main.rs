//! The device plugin, as the kubelet sees it: the built binary against a stand-in for the kubelet.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "in a test a panic is how to fail"
)]

#[path = "../kubelet/mod.rs"]
mod kubelet;
#[path = "../netns/mod.rs"]
mod netns;

mod configuration;
mod devices;
mod kind;
mod metrics;
mod probe;
mod registration;
mod signals;
mod trouble;
