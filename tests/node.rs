//! What runs on a node, without a guest: the device plugin, learning, the installer, the binary
//! as such.

#[macro_use]
extern crate pretty_assertions;

mod binary;
mod corpus;
mod deviceplugin;
mod files;
mod install;
mod learning;
mod netlink;
mod privileges;
