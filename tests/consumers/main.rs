//! The programs that use what ADD makes: QEMU, libvirt, containerd, podman.

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

mod chain;
mod containerd;
mod cri;
mod libvirt;
mod podman;
mod qemu;
mod wire;
