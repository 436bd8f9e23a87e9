//! Which lower devices a node has, for node-feature-discovery, which makes node labels of it: with
//! NRI the scheduler knows of no resource.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use log::{info, warn};

use crate::{
    host::files,
    macvtap::{discovery::Discovery, lower::LowerDevice},
    netlink::Link,
    types::device_id::NAMESPACE,
};

/// The name of the file in the directory of feature files.
const NAME: &str = "macvtap";
/// Where the file is written before it has its name. node-feature-discovery skips hidden files.
const TEMPORARY: &str = ".macvtap.tmp";

/// The feature file. It is removed when this is dropped: without a device plugin the node can
/// attach nothing.
pub struct NodeFeatures {
    dir: PathBuf,
    /// What was written last.
    text: Option<String>,
    last_error: String,
}

impl NodeFeatures {
    /// A file in this directory, which is written by [`Self::update`].
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            text: None,
            last_error: String::new(),
        }
    }

    /// Writes which lower devices macvtaps can be made on now, if they are others than before.
    pub fn update(&mut self, links: &[Link], configured: &BTreeSet<&str>) {
        let text = features(links, configured);
        if self.text.as_ref() == Some(&text) {
            return;
        }
        match write(&self.dir, &text) {
            Ok(()) => {
                info!(directory:% = self.dir.display(), lower_devices = text.lines().count(); "node features written");
                self.last_error.clear();
                self.text = Some(text);
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
        if self.text.is_some()
            && let Err(error) = files::remove(&self.dir.join(NAME))
        {
            warn!(error = format!("{error:#}"); "node features not removed");
        }
    }
}

fn write(dir: &Path, text: &str) -> Result<()> {
    let (temporary, path) = (dir.join(TEMPORARY), dir.join(NAME));
    fs::write(&temporary, text).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, &path).with_context(|| format!("writing {}", path.display()))
}

/// A line for each NIC, bond and VLAN interface, and each lower device that the configuration
/// names, as far as macvtaps can be made on it now.
fn features(links: &[Link], configured: &BTreeSet<&str>) -> String {
    let lowers = links.iter().filter(|link| {
        let lower = LowerDevice::of((*link).clone());
        let offered = Discovery::default().reason_against(link).is_none()
            || link.kind.as_deref() == Some("vlan")
            || configured.contains(link.name.as_str());
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
