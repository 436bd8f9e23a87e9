//! Which file a path leads to now.

use std::{fs, io::ErrorKind, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result};

/// What makes a file this file. Inode numbers are used again, so the time of the last change
/// of the inode belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl FileId {
    /// The file at `path`; none if there is none.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Ok(metadata) => Ok(Some(Self {
                device: metadata.dev(),
                inode: metadata.ino(),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
        }
    }
}
