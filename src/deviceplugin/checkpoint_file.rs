//! The kubelet's checkpoint, read again when it changed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use log::warn;

use crate::{
    host::file_id::FileId,
    types::{
        checkpoint::{self, Allocation},
        device_id::NAMESPACE,
    },
};

/// The checkpoint in a kubelet's directory.
pub struct CheckpointFile {
    path: PathBuf,
    id: Option<FileId>,
    failed: bool,
    allocations: Vec<Allocation>,
}

impl CheckpointFile {
    /// The checkpoint in `kubelet_dir`, not read yet.
    #[must_use]
    pub fn new(kubelet_dir: &Path) -> Self {
        Self {
            path: kubelet_dir.join(checkpoint::FILE),
            id: None,
            failed: false,
            allocations: Vec::new(),
        }
    }

    /// Whether there is one that was read.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.id.is_some() && !self.failed
    }

    /// The allocations now. One that cannot be read leaves the former ones.
    pub fn read(&mut self) -> &[Allocation] {
        if let Err(error) = self.try_read() {
            self.failed = true;
            let error = format!("{error:#}");
            warn!(error; "cannot read the kubelet's checkpoint; former allocations stay");
        }
        &self.allocations
    }

    /// The allocations when it was last read.
    #[must_use]
    pub fn allocations(&self) -> &[Allocation] {
        &self.allocations
    }

    fn try_read(&mut self) -> Result<()> {
        let id = FileId::of(&self.path)?;
        if id == self.id {
            return Ok(());
        }
        self.id = id;
        if id.is_none() {
            self.allocations.clear();
            return Ok(());
        }
        let bytes = fs::read(&self.path);
        let bytes = bytes.with_context(|| format!("reading {}", self.path.display()))?;
        self.allocations = checkpoint::allocations(&bytes, NAMESPACE)?;
        self.failed = false;
        Ok(())
    }
}
