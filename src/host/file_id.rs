//! Which file a path leads to now.

use std::{
    fs::{self, Metadata},
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::Path,
};

use anyhow::{Context, Result};

/// Device and inode, which identify a file while it exists (`inode(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inode(u64, u64);

impl Inode {
    /// The inode of the file that `metadata` is of.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self(metadata.dev(), metadata.ino())
    }
}

/// Whether the directory at `path` was deleted while a mount still leads to it: what is put there is
/// not found under the path outside.
#[must_use]
pub fn is_orphaned(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.nlink() == 0)
}

/// A file, also after it is gone: inode numbers are used again, so the time of the last change
/// of the content belongs to it. Of a socket that is when it was made, whatever owner and mode it
/// gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    inode: Inode,
    modified: (i64, i64),
}

impl FileId {
    /// The file at `path`; none if there is none.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Ok(metadata) => Ok(Some(Self {
                inode: Inode::of(&metadata),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
        }
    }
}
