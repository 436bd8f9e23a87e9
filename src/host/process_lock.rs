//! A lock that one process of a node has until it ends.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::control_socket;

/// The lock. It is a file in a directory that only root can enter.
#[derive(Debug)]
pub struct ProcessLock {
    dir: PathBuf,
    name: &'static str,
    lock: Option<Flock<File>>,
}

impl ProcessLock {
    /// The lock `name` in `dir`, not taken yet.
    #[must_use]
    pub fn new(dir: PathBuf, name: &'static str) -> Self {
        Self {
            dir,
            name,
            lock: None,
        }
    }

    /// Takes it, if this process does not have it. Fails while another one has.
    pub fn take(&mut self) -> Result<()> {
        if self.lock.is_none() {
            control_socket::make_private_dir(&self.dir)?;
            self.lock = Some(lock(&self.dir.join(self.name))?);
        }
        Ok(())
    }
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).open(path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => bail!("another process has the lock {}", path.display()),
        Err((_, errno)) => Err(errno).with_context(|| format!("locking {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let lock = || ProcessLock::new(dir.path().join("dir"), "lock");
        let (mut first, mut second) = (lock(), lock());
        first.take().unwrap();
        first.take().unwrap();
        let error = format!("{:#}", second.take().unwrap_err());
        assert!(error.contains("another process has the lock"), "{error}");
        drop(first);
        second.take().unwrap();
    }
}
