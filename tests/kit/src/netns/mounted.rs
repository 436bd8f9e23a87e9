//! A mount namespace in which a directory of the machine is one of the test.

use std::{fs, path::PathBuf};

use macvtap::types::{checkpoint, device_id::NAMESPACE};
use serde_json::json;
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
        let own = call.wrapper.iter().map(String::as_str);
        let words: Vec<&str> = self.words().into_iter().chain(own).collect();
        call.clone().by(&words)
    }

    /// A file in it, seen from outside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// The checkpoint of a node's kubelet.
pub struct Checkpoint(Mounted);

impl Checkpoint {
    /// One by which pods, by their UIDs, have these devices.
    pub fn new(allocated: &[(&str, &str)]) -> Self {
        let entries = allocated.iter().map(|(pod, device)| {
            json!({
                "PodUID": pod, "ContainerName": "compute", "ResourceName": format!("{NAMESPACE}/a"),
                "DeviceIDs": {"-1": [device]}, "AllocResp": "",
            })
        });
        let entries: Vec<_> = entries.collect();
        let data = json!({"PodDeviceEntries": entries, "RegisteredDevices": {}});
        Self::of(&json!({"Data": data, "Checksum": 1}).to_string())
    }

    /// One with this text.
    pub fn of(text: &str) -> Self {
        let mounted = Mounted::on("/var/lib");
        let dir = mounted.path("kubelet/device-plugins");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(checkpoint::FILE), text).unwrap();
        Self(mounted)
    }

    /// The words before a command on that node.
    pub fn words(&self) -> Vec<&str> {
        self.0.words()
    }

    /// Calls the plugin on that node.
    pub fn enter<'a>(&self, call: &Cni<'a>) -> Cni<'a> {
        self.0.enter(call)
    }
}
