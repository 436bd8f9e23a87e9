//! What is done to files in more than one place.

use std::{fs, io::ErrorKind, path::Path};

use anyhow::{Context, Result};

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
