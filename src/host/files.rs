//! What is done to files in more than one place.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;

/// Opens a file for reading, with more flags of `open(2)`.
pub fn open_with(path: &Path, flags: OFlag) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).custom_flags(flags.bits()).open(path)
}

/// Removes a file, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        // On a read-only file system that is said of any path.
        Err(error) if error.kind() != ErrorKind::NotFound && !is_absent(path) => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn is_absent(path: &Path) -> bool {
    let found = fs::symlink_metadata(path);
    found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}
