//! A mount namespace in which a directory of the machine is one of the test.

use std::path::PathBuf;

use tempfile::TempDir;

use super::Cni;

/// Mounts its first argument on its second, and becomes the command of the others.
const MOUNT: &str = "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"";

/// A directory that takes the place of another one.
pub struct Mounted {
    dir: TempDir,
    target: &'static str,
}

impl Mounted {
    pub fn on(target: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, target }
    }

    /// The words before a command that sees it.
    pub fn words(&self) -> Vec<&str> {
        let dir = self.dir.path().to_str().unwrap();
        let private = ["unshare", "--mount", "--propagation", "private"];
        [&private[..], &["sh", "-c", MOUNT, dir, self.target]].concat()
    }

    /// Calls the plugin so that it sees it.
    pub fn enter<'a>(&self, call: &Cni<'a>) -> Cni<'a> {
        call.clone().by(&self.words())
    }

    /// A file in it, seen from outside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
