//! The ports that exist already: found by the marker that ADD gave them, or, if
//! kubevirt/macvtap-cni made them, by the kubelet's checkpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use log::{debug, info, warn};

use super::{
    group::{GROUP, is_parked},
    netns::{PROC, PodNetns},
    port::{Observation, Port},
    table::{Entry, Existence},
};
use crate::{
    host::{
        files,
        netns::{self, Netns, entries},
    },
    netlink::Link,
    types::{
        checkpoint,
        device_id::{NAMESPACE, is_tap_number},
        mac::MacAddr,
        mode::Mode,
    },
};

/// Ports of one network namespace that are taken over; a pod can make links that look like some.
const MAX_PORTS_PER_NETNS: usize = 64;

/// Where Docker, and CRI-O before 1.20, bind the network namespaces of pods.
const DOCKER_DIR: &str = "/run/docker/netns";
const CRIO_DIR: &str = "/run/crio/ns";

/// What the kernel says of a link that is a port.
pub struct PortLink {
    /// Its MAC.
    pub mac: MacAddr,
    /// The index of its lower device.
    pub lower: u32,
    /// Its name.
    pub ifname: String,
    /// Mode and counter.
    pub kernel: Observation,
}

/// Reads a link as a port: a macvtap in bridge mode that ADD made, which may be parked now.
#[must_use]
pub fn port_of(link: Link) -> Option<PortLink> {
    let parked = match link.mode {
        Some(Mode::Bridge) => false,
        Some(Mode::Vepa) => true,
        _ => return None,
    };
    (link.is_macvtap() && link.group == GROUP).then_some(())?;
    Some(PortLink {
        mac: link.mac?,
        lower: link.lower?,
        ifname: link.name,
        kernel: Observation {
            parked,
            sent_frames: link.stats.sent_frames,
        },
    })
}

/// Where ports are looked for.
pub struct Places {
    /// The directories that list network namespaces.
    dirs: [PathBuf; 2],
    checkpoint: PathBuf,
}

impl Places {
    /// The directory that lists the network namespaces, and the kubelet's.
    #[must_use]
    pub fn new(netns_dir: &Path, kubelet_dir: &Path) -> Self {
        Self {
            dirs: [netns_dir.into(), DOCKER_DIR.into()],
            checkpoint: kubelet_dir.join(checkpoint::FILE),
        }
    }

    /// Finds the netns of a pod where a later device plugin will find it too, so not in the
    /// process `client`, which enters it for a moment to make the port. A port that it did not
    /// find would stay parked.
    pub fn locate(&self, netns: &PodNetns, client: i32) -> Result<PodNetns> {
        if self.lists(&netns.path) && netns.open()?.is_some() {
            return Ok(netns.clone());
        }
        self.find(netns, Some(client)).with_context(|| {
            let path = netns.path.display();
            format!("{path} is not a network namespace that is found here; is /run/netns mounted?")
        })
    }

    /// Where the netns of a pod is now, if not at its path any more.
    pub fn follow(&self, netns: &PodNetns) -> Option<PodNetns> {
        let moved = matches!(netns.open(), Ok(None));
        moved.then(|| self.find(netns, None)).flatten()
    }

    fn find(&self, netns: &PodNetns, but: Option<i32>) -> Option<PodNetns> {
        let mut paths = self.paths(but);
        let (path, identity) = paths.find(|(_, identity)| *identity == netns.identity)?;
        Some(PodNetns { path, identity })
    }

    fn lists(&self, path: &Path) -> bool {
        let parent = path.parent();
        parent.is_some_and(|parent| self.dirs.iter().any(|dir| dir == parent))
    }

    /// The network namespaces, each once: those that are bound, then those of processes but one.
    fn paths(&self, but: Option<i32>) -> impl Iterator<Item = (PathBuf, (u64, u64))> {
        let listed = self.dirs.iter().flat_map(|dir| entries(dir));
        let of_crio = entries(Path::new(CRIO_DIR)).map(|pod| pod.join("net"));
        let but = but.map(|process| Path::new(PROC).join(process.to_string()));
        let processes = entries(Path::new(PROC)).filter(move |path| Some(path) != but.as_ref());
        let of_processes = processes.map(|process| process.join("ns/net"));
        netns::each_once(listed.chain(of_crio).chain(of_processes))
    }

    /// Finds the ports that are not known. A pod can give the number of another pod's tap to a link
    /// of its own, and it does not show which of the two is the port: both become active.
    pub fn find_ports(
        &self,
        is_known: impl Fn(u32) -> bool,
        now: Instant,
    ) -> Result<Vec<(u32, Entry)>> {
        let mut claims: BTreeMap<u32, Vec<(PodNetns, Link)>> = BTreeMap::new();
        for (pod, link) in self.find_links()? {
            if !is_known(link.index) {
                claims.entry(link.index).or_default().push((pod, link));
            }
        }
        let mut ports = Vec::new();
        for (tap, claims) in claims {
            if claims.len() > 1 {
                debug!(tap, claims = claims.len(); "not learned: several links have its number");
                unpark(claims);
            } else {
                ports.extend(
                    claims
                        .into_iter()
                        .filter_map(|(pod, link)| entry(pod, link, now)),
                );
            }
        }
        Ok(ports)
    }

    /// Makes the ports active that are parked. Nothing may be learning.
    pub fn unpark_all(&self) -> Result<()> {
        unpark(self.find_links()?);
        Ok(())
    }

    /// Finds the links that are ports. What is wrong with one network namespace does not concern
    /// the others.
    fn find_links(&self) -> Result<Vec<(PodNetns, Link)>> {
        let allocated = self.allocated();
        let host = Netns::current()?;
        let own = host.identity()?;
        let mut found = Vec::new();
        for (path, identity) in self.paths(None).filter(|(_, identity)| *identity != own) {
            let pod = PodNetns { path, identity };
            let links = candidates(&pod, &host).unwrap_or_else(|error| {
                let path = pod.path.display();
                debug!(netns:% = path, error = format!("{error:#}"); "no ports looked for");
                Vec::new()
            });
            let ours = links.into_iter().filter(|link| is_ours(link, &allocated));
            let ours = ours.take(MAX_PORTS_PER_NETNS);
            found.extend(ours.map(|link| (pod.clone(), link)));
        }
        Ok(found)
    }

    /// The taps that the kubelet has allocated.
    fn allocated(&self) -> BTreeSet<u32> {
        let allocated = match files::read(&self.checkpoint) {
            Ok(bytes) => checkpoint::allocations(&bytes, NAMESPACE),
            Err(error) if error.kind() == ErrorKind::NotFound => return BTreeSet::new(),
            Err(error) => Err(error.into()),
        };
        let allocated = allocated.unwrap_or_else(|error| {
            let path = self.checkpoint.display();
            warn!(path:% = path, error = format!("{error:#}"); "checkpoint not read");
            Vec::new()
        });
        let taps = allocated.into_iter().flat_map(|allocation| allocation.taps);
        taps.collect()
    }
}

fn unpark(links: Vec<(PodNetns, Link)>) {
    for (pod, link) in links.into_iter().filter(|(_, link)| is_parked(link)) {
        let tap = link.index;
        match pod.set_mode(tap, Mode::Bridge) {
            Ok(true) => info!(tap, interface:% = link.name; "active: nothing learns"),
            Ok(false) => {}
            Err(error) => warn!(tap, error = format!("{error:#}"); "port stays parked"),
        }
    }
}

/// The macvtaps of a pod on lower devices of the host. The pod's owner may have made others.
fn candidates(pod: &PodNetns, host: &Netns) -> Result<Vec<Link>> {
    let Some(mut socket) = pod.socket()? else {
        return Ok(Vec::new());
    };
    let mut links = socket.links()?;
    links.retain(Link::is_macvtap);
    if links.is_empty() {
        return Ok(links);
    }
    // The list made the kernel number the netns of each lower device.
    let host = socket.nsid(host.as_fd())?;
    links.retain(|link| host.is_some() && link.lower_nsid == host);
    Ok(links)
}

/// Whether ADD made the link, or kubevirt/macvtap-cni did, which marks none and takes the indexes
/// that the kernel gives.
fn is_ours(link: &Link, allocated: &BTreeSet<u32>) -> bool {
    let is_marked = port_of(link.clone()).is_some();
    let is_allocated = allocated.contains(&link.index);
    (is_marked && is_tap_number(link.index)) || (is_allocated && (is_marked || is_unmarked(link)))
}

fn is_unmarked(link: &Link) -> bool {
    link.group == 0 && link.mode == Some(Mode::Bridge)
}

/// The port that a link is. One without the marker gets it, or could not be found again.
fn entry(pod: PodNetns, mut link: Link, now: Instant) -> Option<(u32, Entry)> {
    if is_unmarked(&link) {
        match pod.set_group(link.index, GROUP) {
            Ok(true) => link.group = GROUP,
            Ok(false) => return None,
            Err(error) => {
                warn!(tap = link.index, error = format!("{error:#}"); "port not taken over");
                return None;
            }
        }
    }
    let tap = link.index;
    let port = port_of(link)?;
    let entry = Entry {
        port: Port::found(port.kernel, now),
        mac: port.mac,
        lower: port.lower,
        ifname: port.ifname,
        netns: pod,
        first_frame: Vec::new(),
        addresses: Vec::new(),
        existence: Existence::Seen,
    };
    Some((tap, entry))
}

/// The path under which a container has what the runtime calls `/var/run/...`.
#[must_use]
pub fn path_in_container(netns: &str) -> PathBuf {
    let rest = netns.strip_prefix("/var/run/");
    rest.map_or_else(|| netns.into(), |rest| Path::new("/run").join(rest))
}
