//! What stands at a path where a character device is expected.

use std::{
    fs::{self, Metadata},
    io::ErrorKind,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use anyhow::{Context, Result};
use nix::sys::stat;

use crate::types::{device_number::DeviceNumber, owner::Owner};

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A character device with this number, owner and permission bits.
    Device(DeviceNumber, Owner, u32),
    /// A file of another type.
    Foreign,
}

impl Found {
    /// What a file is, by what the kernel says of it.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        if !metadata.file_type().is_char_device() {
            return Self::Foreign;
        }
        let number = DeviceNumber {
            major: stat::major(metadata.rdev()),
            minor: stat::minor(metadata.rdev()),
        };
        let owner = Owner {
            user: metadata.uid(),
            group: metadata.gid(),
        };
        Self::Device(number, owner, metadata.mode() & 0o7777)
    }

    /// Looks at a path, without following a symbolic link.
    pub fn at(path: &Path) -> Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(metadata) => Ok(Self::of(&metadata)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::Nothing),
            Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
        }
    }

    /// The device's number, if it is a device.
    #[must_use]
    pub fn number(self) -> Option<DeviceNumber> {
        match self {
            Self::Device(number, ..) => Some(number),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_from_other_files() {
        let at = |path| Found::at(Path::new(path)).unwrap();
        assert_eq!(at("/dev/nothing-here"), Found::Nothing);
        assert_eq!(at("/proc/self/stat"), Found::Foreign);
        assert_eq!(at("/dev/null").number().unwrap().to_string(), "1:3");
    }
}
