//! The programs that use what ADD makes: QEMU, libvirt, containerd, podman.

mod chain;
mod containerd;
mod cri;
mod libvirt;
mod limits;
mod nri;
mod podman;
mod primary;
mod qemu;
