//! What is done to files in more than one place.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use tempfile::Builder;

/// Opens a file for reading, with more flags of `open(2)`.
pub fn open_with(path: &Path, flags: OFlag) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).custom_flags(flags.bits()).open(path)
}

/// Makes a file have this content, and every user be able to read it. Who reads it meanwhile finds
/// the former one or this, whole. Not written if it has it.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    if read(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    let written = || {
        let dir = path.parent().context("it has no directory")?;
        let mut builder = Builder::new();
        // Hidden: some look at all files of a directory.
        builder.prefix(".macvtap");
        let mut file = builder.tempfile_in(dir)?;
        file.write_all(content)?;
        file.as_file()
            .set_permissions(Permissions::from_mode(0o644))?;
        file.persist(path)?;
        anyhow::Ok(())
    };
    written().with_context(|| format!("writing {}", path.display()))
}

/// Reads a regular file; what else is there, such as a FIFO, would not end.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open_with(path, OFlag::O_NONBLOCK)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_is_written_only_if_its_content_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let inode = || fs::metadata(&path).unwrap().ino();
        replace(&path, b"one").unwrap();
        let first = inode();
        replace(&path, b"one").unwrap();
        assert_eq!(inode(), first);
        // Kept open, so that its inode is not used again.
        let _before = File::open(&path).unwrap();
        replace(&path, b"two").unwrap();
        assert_ne!(inode(), first);
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o644);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = replace(&dir.path().join("missing/file"), b"").unwrap_err();
        assert!(format!("{error:#}").contains("missing/file"), "{error:#}");
    }
}
