//! What a process inherits from its parent through `execve(2)`: blocked signals stay blocked,
//! ignored ones ignored.

use std::sync::{Arc, atomic::AtomicBool};

use anyhow::{Context, Result};
use nix::sys::signal::SigSet;
use signal_hook::{consts::SIGCHLD, flag};

/// Unblocks all signals. To be called before the first thread, which would inherit the mask.
///
/// The standard library ignores SIGPIPE, whatever the parent did, and gives children an empty
/// mask and the default for SIGPIPE.
pub fn unblock() -> Result<()> {
    let unblocked = SigSet::empty().thread_set_mask();
    unblocked.context("unblocking signals")
}

/// Makes children of this process waitable: where the parent ignored SIGCHLD, the kernel
/// would reap them itself (`wait(2)`).
pub fn keep_exit_statuses() -> Result<()> {
    let handled = flag::register(SIGCHLD, Arc::new(AtomicBool::new(false)));
    handled.map(|_| ()).context("handling SIGCHLD")
}
