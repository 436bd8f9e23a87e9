//! The limit of open descriptors.

use log::warn;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the limit as far as the parent allows, as Go's runtime does. systemd starts services
/// with 1024, which is kept small for programs that use `select(2)` (systemd.exec(5)); we do not.
pub fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(error:%; "cannot raise the limit of open files");
    }
}
