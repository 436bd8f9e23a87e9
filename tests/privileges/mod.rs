//! Each part with exactly the rights that the manifests give it: capabilities, seccomp profile,
//! read-only root, no new privileges. And with one capability less, which has to be told.

mod cni;
mod container;
mod deviceplugin;
mod install;
