//! Programs that are stopped at every system call, and system calls that fail with every error
//! that they can: nothing is lost, nothing is left.

mod cni;
mod deviceplugin;
mod injection;
mod install;
