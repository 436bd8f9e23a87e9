//! The ports that are there when learning starts, found by the marker that ADD gave them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use log::debug;

use super::{
    group::GROUP,
    netns::PodNetns,
    port::{Observation, Port},
    table::{Entry, Existence},
};
use crate::{
    host::{netns::Netns, tap},
    netlink::Link,
    types::{
        device_id::{STANDALONE_TAPS, TAPS},
        device_number::DeviceNumber,
        mac::MacAddr,
        mode::Mode,
    },
};

/// Where Docker, and CRI-O before 1.20, bind the network namespaces of pods.
const DOCKER_DIR: &str = "/run/docker/netns";
const CRIO_DIR: &str = "/run/crio/ns";

/// What the kernel says of a link that is a port.
pub struct PortLink {
    /// Its MAC.
    pub mac: MacAddr,
    /// The index of its lower device.
    pub lower: u32,
    /// Mode and counter.
    pub kernel: Observation,
}

/// Reads a link as a port: a macvtap in bridge mode that ADD made, which may be parked now.
#[must_use]
pub fn port_of(link: &Link) -> Option<PortLink> {
    let parked = match link.mode {
        Some(Mode::Bridge) => false,
        Some(Mode::Vepa) => true,
        _ => return None,
    };
    (link.is_macvtap() && link.group == GROUP).then_some(())?;
    Some(PortLink {
        mac: link.mac?,
        lower: link.lower?,
        kernel: Observation {
            parked,
            sent_frames: link.stats.sent_frames,
        },
    })
}

/// Where network namespaces of pods are looked for.
pub struct Places(Vec<PathBuf>);

impl Places {
    /// The directory that lists them, and others that are known.
    #[must_use]
    pub fn new(netns_dir: &Path) -> Self {
        Self(vec![netns_dir.into(), DOCKER_DIR.into()])
    }

    /// Finds the netns of a pod where a later device plugin will find it too. A port that it
    /// did not find would stay parked.
    pub fn locate(&self, netns: &PodNetns) -> Result<PodNetns> {
        let listed = self.lists(&netns.path) && netns.open()?.is_some();
        if listed {
            return Ok(netns.clone());
        }
        let found = self
            .paths()
            .find(|(_, identity)| *identity == netns.identity);
        let (path, identity) = found.with_context(|| {
            let path = netns.path.display();
            format!("{path} is not a network namespace that is found here; is /run/netns mounted?")
        })?;
        Ok(PodNetns { path, identity })
    }

    fn lists(&self, path: &Path) -> bool {
        let parent = path.parent();
        parent.is_some_and(|parent| self.0.iter().any(|dir| dir == parent))
    }

    /// The network namespaces, each once.
    fn paths(&self) -> impl Iterator<Item = (PathBuf, (u64, u64))> {
        let listed = self.0.iter().flat_map(|dir| entries(dir));
        let of_crio = entries(Path::new(CRIO_DIR)).map(|pod| pod.join("net"));
        let of_processes = entries(Path::new("/proc")).map(|process| process.join("ns/net"));
        let mut seen = BTreeSet::new();
        let paths = listed.chain(of_crio).chain(of_processes);
        paths.filter_map(move |path| {
            let found = fs::metadata(&path).ok()?;
            let identity = (found.dev(), found.ino());
            seen.insert(identity).then_some((path, identity))
        })
    }

    /// Finds the ports that there are. What is wrong with one network namespace does not
    /// concern the others.
    pub fn find_ports(&self, now: Instant) -> Result<Vec<(u32, Entry)>> {
        let (host, taps) = (Netns::current()?, tap::by_number()?);
        let own = host.identity()?;
        let mut ports = Vec::new();
        for (path, identity) in self.paths().filter(|(_, identity)| *identity != own) {
            let netns = PodNetns { path, identity };
            match ports_in(&netns, &host, &taps, now) {
                Ok(found) => ports.extend(found),
                Err(error) => {
                    let path = netns.path.display();
                    debug!(netns:% = path, error = format!("{error:#}"); "no ports looked for");
                }
            }
        }
        Ok(ports)
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// The ports of a pod. Its owner may have made links that look like some.
fn ports_in(
    pod: &PodNetns,
    host: &Netns,
    taps: &BTreeMap<u32, Vec<DeviceNumber>>,
    now: Instant,
) -> Result<Vec<(u32, Entry)>> {
    let Some(mut socket) = pod.socket()? else {
        return Ok(Vec::new());
    };
    let mut ports: Vec<(Link, PortLink)> = Vec::new();
    for link in socket.links()? {
        ports.extend(port_of(&link).map(|port| (link, port)));
    }
    if ports.is_empty() {
        return Ok(Vec::new());
    }
    // The list above made the kernel give the netns of each lower device its number here.
    let host_nsid = socket.nsid(host.as_fd())?;
    ports.retain(|(link, _)| {
        let ours = host_nsid.is_some() && link.lower_nsid == host_nsid && is_own_tap(link, taps);
        if !ours {
            let (path, name) = (pod.path.display(), &link.name);
            debug!(netns:% = path, interface:% = name; "not a port of ours");
        }
        ours
    });
    let ports = ports.into_iter().map(|(link, port)| {
        let entry = Entry {
            port: Port::found(port.kernel, now),
            mac: port.mac,
            lower: port.lower,
            ifname: link.name,
            netns: pod.clone(),
            first_frame: Vec::new(),
            existence: Existence::Seen,
        };
        (link.index, entry)
    });
    Ok(ports.collect())
}

/// Whether the link's index is one that ADD gives, and the machine has that tap once.
fn is_own_tap(link: &Link, taps: &BTreeMap<u32, Vec<DeviceNumber>>) -> bool {
    let in_range = TAPS.contains(&link.index) || STANDALONE_TAPS.contains(&link.index);
    in_range
        && taps
            .get(&link.index)
            .is_some_and(|devices| devices.len() == 1)
}

/// The path under which a container has what the runtime calls `/var/run/...`.
#[must_use]
pub fn path_in_container(netns: &str) -> PathBuf {
    let rest = netns.strip_prefix("/var/run/");
    rest.map_or_else(|| netns.into(), |rest| Path::new("/run").join(rest))
}
