//! Which lower devices a node has, for node-feature-discovery, which makes node labels of it: with
//! NRI the scheduler knows of no resource.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use log::{info, warn};

use crate::{
    host::{file_id::FileId, files},
    macvtap::{discovery::Discovery, lower::LowerDevice},
    netlink::Link,
    types::device_id::NAMESPACE,
};

/// The name of the file in the directory of feature files.
const NAME: &str = "macvtap";

/// The feature file. It is removed when this is dropped: without a device plugin the node can
/// attach nothing.
pub struct NodeFeatures {
    path: PathBuf,
    /// What is to be in it; none before the first update.
    text: Option<String>,
    /// What was written last, and the file that it was written to.
    written: Option<(String, FileId)>,
    last_error: String,
}

impl NodeFeatures {
    /// A file in this directory, which is written by [`Self::update`].
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            path: dir.join(NAME),
            text: None,
            written: None,
            last_error: String::new(),
        }
    }

    /// Writes which lower devices macvtaps can be made on now, if they are others than before.
    pub fn update(&mut self, links: &[Link], configured: &BTreeSet<&str>) {
        self.text = Some(features(links, configured));
        self.write();
    }

    /// Writes the file if it is missing, or if what is to be in it was not written yet. To be
    /// called from time to time.
    pub fn write(&mut self) {
        let written = self.written.as_ref().map(|(text, _)| text);
        let Some(text) = self.text.as_ref() else {
            return;
        };
        if written == Some(text) && self.path.exists() {
            return;
        }
        match write(&self.path, text) {
            Ok(file) => {
                info!(file:% = self.path.display(), lower_devices = text.lines().count(); "node features written");
                self.last_error.clear();
                self.written = Some((text.clone(), file));
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.last_error != error {
                    warn!(error = error.as_str(); "node features not written; retrying");
                    self.last_error = error;
                }
            }
        }
    }
}

impl Drop for NodeFeatures {
    fn drop(&mut self) {
        let own = self.written.as_ref().map(|(_, file)| *file);
        let found = FileId::of(&self.path).ok().flatten();
        // Another device plugin may have written its own meanwhile.
        if found.is_some()
            && found == own
            && let Err(error) = files::remove(&self.path)
        {
            warn!(error = format!("{error:#}"); "node features not removed");
        }
    }
}

fn write(path: &Path, text: &str) -> Result<FileId> {
    files::replace(path, text.as_bytes())?;
    FileId::of(path)?.with_context(|| format!("{} vanished", path.display()))
}

/// A line for each NIC, bond and VLAN interface, and each lower device that the configuration
/// names, as far as macvtaps can be made on it now.
fn features(links: &[Link], configured: &BTreeSet<&str>) -> String {
    let lowers = links.iter().filter(|link| {
        let lower = LowerDevice::of((*link).clone());
        let offered = Discovery::default().reason_against(link).is_none()
            || link.kind.as_deref() == Some("vlan")
            || configured.iter().any(|name| link.is_called(name));
        offered && is_label(&link.name) && lower.ineligible_among(links).is_none()
    });
    let names: BTreeSet<&str> = lowers.map(|link| link.name.as_str()).collect();
    let labels = names
        .iter()
        .map(|name| format!("{NAMESPACE}/lower-device.{name}=true\n"));
    labels.collect()
}

/// Whether the name of a label can end with this (`IsQualifiedName` of Kubernetes).
fn is_label(name: &str) -> bool {
    name.chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::mac::MacAddr;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            ethernet: true,
            up: true,
            ..Link::default()
        }
    }

    #[test]
    fn lists_what_macvtaps_can_be_made_on() {
        let down = Link {
            up: false,
            ..link(6, "eth2", None)
        };
        let port = Link {
            master: Some(2),
            ..link(7, "eth3", None)
        };
        let links = [
            link(1, "eth0", None),
            link(2, "bond0", Some("bond")),
            link(3, "eth0.100", Some("vlan")),
            link(4, "cali1", Some("veth")),
            link(5, "named", Some("veth")),
            down,
            port,
            link(8, "odd!", None),
        ];
        let text = features(&links, &["named", "missing"].into());
        let names = text.lines().map(|line| {
            let line = line.strip_prefix("macvtap.network.kubevirt.io/lower-device.");
            line.unwrap().strip_suffix("=true").unwrap()
        });
        let names: Vec<&str> = names.collect();
        assert_eq!(names, ["bond0", "eth0", "eth0.100", "named"]);
    }
}
