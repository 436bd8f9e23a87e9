//! What keeps a node's taps apart from those of other nodes on the same kernel (`KinD`): the name
//! that the cluster knows the node by, or else a random seed. Not the host name, which DHCP
//! and cloud-init change, and which may not be unique.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use log::warn;
use tempfile::NamedTempFile;

use crate::host::control_socket;

/// The file with the seed, in our directory beside the kubelet's sockets.
const FILE: &str = "node-seed";
/// A source of random text.
const RANDOM: &str = "/proc/sys/kernel/random/uuid";
/// Bytes of a seed.
const LENGTH: usize = 36;

/// The identity of a node.
pub enum NodeIdentity {
    /// The node's name in the cluster.
    Name(String),
    /// A random seed, and the directory where it is kept.
    Seed(String, PathBuf),
}

impl NodeIdentity {
    /// The identity of the node with this name, or with this kubelet's directory.
    pub fn new(name: Option<&str>, kubelet_dir: &Path) -> Result<Self> {
        if let Some(name) = name {
            return Ok(Self::Name(name.to_owned()));
        }
        let seed = fs::read_to_string(RANDOM).with_context(|| format!("reading {RANDOM}"))?;
        let dir = control_socket::dir_in(kubelet_dir);
        let mut identity = Self::Seed(seed.trim_end().to_owned(), dir);
        identity.refresh();
        Ok(identity)
    }

    /// What is hashed into tap numbers.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Name(text) | Self::Seed(text, _) => text,
        }
    }

    /// The node's name in the cluster, if that is known.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Seed(..) => None,
        }
    }

    /// Reads the seed that is kept, or keeps the present one: the kubelet's directory may come
    /// late, or be replaced. True if the identity changed.
    pub fn refresh(&mut self) -> bool {
        let Self::Seed(seed, dir) = self else {
            return false;
        };
        match read_or_write(dir, seed) {
            Ok(kept) if kept != *seed => {
                *seed = kept;
                true
            }
            Ok(_) => false,
            Err(error) => {
                let error = format!("{error:#}");
                warn!(error; "cannot keep the node's seed; set NODE_NAME or --node-name");
                false
            }
        }
    }
}

/// The seed in `dir`; `seed` if there is none yet, which is written then.
fn read_or_write(dir: &Path, seed: &str) -> Result<String> {
    let path = dir.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) if text.len() == LENGTH => return Ok(text),
        Ok(text) => bail!("{} has {} bytes, not {LENGTH}", path.display(), text.len()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    }
    // The directory is made when the kubelet has made its own.
    if !dir.parent().is_some_and(Path::is_dir) {
        return Ok(seed.to_owned());
    }
    control_socket::make_private_dir(dir)?;
    // Under its name it is whole, and the first of two that write stays.
    let mut file = NamedTempFile::new_in(dir).context("making a temporary file")?;
    file.write_all(seed.as_bytes())
        .context("writing the seed")?;
    match file.persist_noclobber(&path) {
        Err(error) if error.error.kind() != ErrorKind::AlreadyExists => {
            Err(error.error).with_context(|| format!("making {}", path.display()))
        }
        _ => fs::read_to_string(&path).with_context(|| format!("reading {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: Option<&str>, dir: &Path) -> String {
        NodeIdentity::new(name, dir).unwrap().text().to_owned()
    }

    #[test]
    fn a_seed_is_kept_and_differs_between_nodes() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [one, other] = dirs.each_ref().map(|dir| text(None, dir.path()));
        assert_eq!(one.len(), LENGTH);
        assert_ne!(one, other);
        assert_eq!(text(None, dirs[0].path()), one);
        assert_eq!(text(Some("node1"), dirs[0].path()), "node1");
    }

    #[test]
    fn a_seed_is_kept_when_the_directory_comes_and_goes() {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("device-plugins");
        let mut identity = NodeIdentity::new(None, &dir).unwrap();
        let seed = identity.text().to_owned();
        for _ in 0..2 {
            fs::create_dir(&dir).unwrap();
            assert!(!identity.refresh());
            assert_eq!(text(None, &dir), seed);
            fs::remove_dir_all(&dir).unwrap();
        }
        // Another device plugin was first.
        fs::create_dir(&dir).unwrap();
        let first = text(None, &dir);
        assert!(identity.refresh());
        assert_eq!(identity.text(), first);
    }
}
