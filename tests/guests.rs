//! The programs that use what ADD makes, most of them with a guest: QEMU, libvirt, containerd,
//! podman; and live migrations.

#[macro_use]
extern crate pretty_assertions;

mod consumers;
mod image;
mod migration;
