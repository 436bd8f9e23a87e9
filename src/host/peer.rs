//! Who is at the other end of a Unix socket.

use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// The user who connected, or who listened (`SO_PEERCRED`, `unix(7)`).
pub fn user(socket: &impl AsFd) -> nix::Result<u32> {
    Ok(getsockopt(socket, PeerCredentials)?.uid())
}

/// Whether that is root. Not if the kernel does not tell.
#[must_use]
pub fn is_root(socket: &impl AsFd) -> bool {
    user(socket) == Ok(0)
}
