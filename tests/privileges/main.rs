//! Each part with exactly the rights that the manifests give it: capabilities, seccomp profile,
//! read-only root, no new privileges. And with one capability less, which has to be told.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "in a test a panic is how to fail"
)]

#[path = "../kubelet/mod.rs"]
mod kubelet;
#[path = "../netns/mod.rs"]
mod netns;

mod cni;
mod container;
mod deviceplugin;
mod install;
