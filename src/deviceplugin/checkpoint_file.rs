//! The kubelet's checkpoint, read again when it changed.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use log::warn;

use crate::{
    host::{file_id::FileId, files},
    types::{
        checkpoint::{self, Allocation},
        device_id::{DeviceId, NAMESPACE},
    },
};

/// The checkpoint in a kubelet's directory.
pub struct CheckpointFile {
    path: PathBuf,
    id: Option<FileId>,
    /// Why it could not be read the last time; empty if it could.
    last_error: String,
    allocations: Vec<Allocation>,
    /// The IDs that it named since it was there, or since [`Self::forget_named`].
    named: BTreeSet<String>,
}

impl CheckpointFile {
    /// The checkpoint in `kubelet_dir`, not read yet.
    #[must_use]
    pub fn new(kubelet_dir: &Path) -> Self {
        Self {
            path: kubelet_dir.join(checkpoint::FILE),
            id: None,
            last_error: String::new(),
            allocations: Vec::new(),
            named: BTreeSet::new(),
        }
    }

    /// Whether there is one that was read.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.id.is_some() && self.last_error.is_empty()
    }

    /// The allocations now. One that cannot be read leaves the former ones.
    pub fn read(&mut self) -> &[Allocation] {
        if let Err(error) = self.try_read() {
            let error = format!("{error:#}");
            self.named.clear();
            if self.last_error != error {
                warn!(error = error.as_str(); "cannot read the kubelet's checkpoint; former allocations stay");
                self.last_error = error;
            }
        }
        &self.allocations
    }

    /// The allocations when it was last read.
    #[must_use]
    pub fn allocations(&self) -> &[Allocation] {
        &self.allocations
    }

    /// Whether the kubelet released a device: the file named it and does not any more. That it does
    /// not name it is no proof if it was lost and written anew meanwhile.
    #[must_use]
    pub fn has_released(&self, device: &DeviceId) -> bool {
        let is_it = |id: &String| id.parse().is_ok_and(|other| device.is_same(&other));
        let allocated = self.allocations.iter().flat_map(|each| &each.devices);
        self.exists() && self.named.iter().any(is_it) && !allocated.into_iter().any(is_it)
    }

    /// Reads it as if for the first time: the kubelet that wrote it before has ended.
    pub fn forget_named(&mut self) {
        self.id = None;
        self.named.clear();
        self.read();
    }

    fn try_read(&mut self) -> Result<()> {
        let id = FileId::of(&self.path)?;
        if id == self.id && self.last_error.is_empty() {
            return Ok(());
        }
        self.allocations = if id.is_some() {
            let bytes = files::read(&self.path);
            let bytes = bytes.with_context(|| format!("reading {}", self.path.display()))?;
            checkpoint::allocations(&bytes, NAMESPACE)?
        } else {
            self.named.clear();
            Vec::new()
        };
        let named = self.allocations.iter().flat_map(|each| &each.devices);
        self.named.extend(named.cloned());
        // Not before: what failed is tried again at the next call.
        self.id = id;
        self.last_error.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_could_not_be_read_is_read_at_the_next_call() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = CheckpointFile::new(dir.path());
        // A directory cannot be read as a file, and has no other time of change afterwards.
        let path = dir.path().join(checkpoint::FILE);
        fs::create_dir(&path).unwrap();
        assert!(file.read().is_empty() && !file.exists());
        file.path = dir.path().join("other");
        let text = r#"{"Data": {"PodDeviceEntries": [], "RegisteredDevices": {}}, "Checksum": 0}"#;
        fs::write(&file.path, text).unwrap();
        // As if the file had been there all along.
        file.id = FileId::of(&file.path).unwrap();
        assert!(!file.exists());
        file.read();
        assert!(file.exists());
    }
}
