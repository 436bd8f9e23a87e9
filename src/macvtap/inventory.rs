//! What macvtaps this machine has, in whatever network namespace, and on which lower devices
//! more can be made.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::AsFd,
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    error::{AttachError, Kind},
    limits::Limits,
    lower::{self, Ineligible, LowerDevice},
    port_security::Interface,
};
use crate::{
    host::{
        char_device::Found,
        devnode,
        netns::{self, Netns},
        tap,
    },
    learning,
    netlink::{Link, Socket},
    types::{device_id::TAPS, device_number::DeviceNumber, owner::Owner},
};

/// Where libcni keeps the results of ADD, with the pod's name (`libcni` of
/// containernetworking/cni, "cache").
const RESULTS: &str = "/var/lib/cni/results";
/// Results that are read at most.
const MOST_RESULTS: usize = 10_000;

/// A macvtap, and where it is.
#[derive(Clone, Debug)]
pub struct Macvtap {
    /// What the kernel says of it.
    pub link: Link,
    /// The name of its network namespace, or the process that is in it; empty for our own.
    pub netns: String,
    /// Its lower device, if that is in our network namespace.
    pub lower: Option<String>,
    /// The pod's namespace and name, as far as the runtime reported it to [`Inventory::find_pods`].
    pub pod: Option<String>,
    /// The name of the container that has its tap, if the caller asked for it.
    pub container: Option<String>,
    /// What stands at the path of its tap's node in our `/dev`, if we may look there.
    pub node: Option<Found>,
    /// What its guest may send and receive.
    pub limits: Limits,
    /// The processes that have its tap open, as far as [`Inventory::find_holders`] could see them.
    pub holders: Vec<String>,
}

/// A lower device, and what stands on it.
#[derive(Clone, Debug)]
pub struct LowerUse {
    /// What the kernel says of it.
    pub link: Link,
    /// How many macvtaps are on it.
    pub macvtaps: usize,
    /// Why no more can be created on it now.
    pub ineligible: Option<Ineligible>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// The macvtaps, by the number of their tap.
    pub macvtaps: Vec<Macvtap>,
    /// The lower devices, by their name.
    pub lower_devices: Vec<LowerUse>,
    /// The devices of the machine's taps by their numbers.
    pub taps: BTreeMap<u32, Vec<DeviceNumber>>,
    /// Those of them whose network namespace could not be found.
    pub unseen: Vec<u32>,
    /// Network namespaces that could not be looked into: how many, and why the first.
    pub closed: Option<(usize, String)>,
}

impl Macvtap {
    /// Whether it waits in VEPA mode for its VM, by learning.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        learning::is_parked(&self.link)
    }

    /// Whether the device plugin made it for a pod that uses the tap alone: by its place, its
    /// number and its name, which is that of a macvtap of kubevirt/macvtap-cni.
    #[must_use]
    pub fn is_tap_only(&self) -> bool {
        let Link { index, name, .. } = &self.link;
        self.netns.is_empty() && TAPS.contains(index) && name.starts_with("mvt")
    }

    /// Which interface it is, and of whom, as part of a sentence.
    #[must_use]
    pub fn place(&self) -> String {
        let place = match (&self.pod, self.netns.as_str()) {
            (Some(pod), netns) => format!("pod {pod} (netns {netns})"),
            (None, "") => "the host's netns".to_owned(),
            (None, netns) => format!("netns {netns}"),
        };
        format!("interface {:?} in {place}", self.link.name)
    }

    /// Who may open its tap, if the node is in our `/dev`.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        match self.node {
            Some(Found::Device(_, owner, _)) => Some(owner),
            _ => None,
        }
    }
}

impl Inventory {
    /// Looks at the machine.
    pub fn new() -> Result<Self> {
        let home = Netns::current()?;
        let links = Socket::open()?.links().context("listing links")?;
        let names: BTreeMap<u32, String> = links
            .iter()
            .map(|link| (link.index, link.name.clone()))
            .collect();
        let mut inventory = Self {
            macvtaps: Vec::new(),
            lower_devices: Vec::new(),
            taps: BTreeMap::new(),
            unseen: Vec::new(),
            closed: None,
        };
        for path in netns::all() {
            let found = macvtaps_in(&path, &home, &names);
            match found {
                Ok(found) => inventory.macvtaps.extend(found),
                // One that vanished while we looked is none any more.
                Err(_) if !path.exists() => {}
                Err(error) => {
                    let why = format!("{error:#}");
                    let (count, _) = inventory.closed.get_or_insert((0, why));
                    *count += 1;
                }
            }
        }
        inventory.macvtaps.sort_by_key(|macvtap| macvtap.link.index);
        let seen: BTreeSet<u32> = inventory
            .macvtaps
            .iter()
            .map(|macvtap| macvtap.link.index)
            .collect();
        inventory.taps = tap::by_number()?;
        let unseen = inventory.taps.keys().filter(|tap| !seen.contains(tap));
        inventory.unseen = unseen.copied().collect();
        inventory.lower_devices = lower_devices(&links, &inventory.macvtaps);
        Ok(inventory)
    }

    /// Looks which processes have the taps open: at each descriptor of each process.
    pub fn find_holders(&mut self) {
        let holders = holders();
        for macvtap in &mut self.macvtaps {
            let devices = self.taps.get(&macvtap.link.index).into_iter().flatten();
            let own = devices.filter(|device| is_tap_of(**device, &macvtap.link));
            let of = own.filter_map(|device| holders.get(&(macvtap.link.index, *device)));
            macvtap.holders = of.flatten().cloned().collect();
        }
    }

    /// Reads what pods the runtime says are in the network namespaces.
    pub fn find_pods(&mut self) {
        let pods = pods(Path::new(RESULTS));
        for macvtap in &mut self.macvtaps {
            macvtap.pod = pods.get(&macvtap.netns).cloned();
        }
    }
}

/// Finds the macvtap with this tap number in any network namespace that can be entered.
pub fn find(number: u32) -> Result<Option<Macvtap>> {
    let home = Netns::current()?;
    let links = Socket::open()?.links().context("listing links")?;
    let names = links.into_iter().map(|link| (link.index, link.name));
    let names = names.collect();
    let found = netns::all().find_map(|path| {
        let macvtaps = macvtaps_in(&path, &home, &names).ok()?.into_iter();
        macvtaps
            .into_iter()
            .find(|macvtap| macvtap.link.index == number)
    });
    Ok(found)
}

fn macvtaps_in(path: &Path, home: &Netns, lowers: &BTreeMap<u32, String>) -> Result<Vec<Macvtap>> {
    let Some(netns) = Netns::open_mounted(path)? else {
        return Ok(Vec::new());
    };
    let ours = netns.is(home)?;
    // Our own is not to be entered, which would need a right.
    let elsewhere = (!ours).then_some(&netns);
    let mut socket = elsewhere.map_or_else(|| Ok(Socket::open()?), Netns::socket)?;
    let mut links = socket.links()?;
    links.retain(Link::is_macvtap);
    if links.is_empty() {
        return Ok(Vec::new());
    }
    // The number by which this namespace knows ours. A lower device without one is in the same
    // namespace as its macvtap.
    let (nsid, name) = if ours {
        (None, String::new())
    } else {
        (socket.nsid(home.as_fd())?, name_of(path))
    };
    let lower_name = |link: &Link| {
        // None: both are in one namespace, which is ours or not.
        let is_on_ours = link.lower_nsid.map_or(ours, |_| link.lower_nsid == nsid);
        let lower = link.lower.filter(|_| is_on_ours)?;
        lowers.get(&lower).cloned()
    };
    let found = links.into_iter().map(|link| {
        Ok(Macvtap {
            netns: name.clone(),
            lower: lower_name(&link),
            pod: None,
            container: None,
            node: devnode::find(link.index).ok(),
            limits: Limits::read(&Interface::of(&link, elsewhere), &mut socket)?,
            holders: Vec::new(),
            link,
        })
    });
    found.collect()
}

/// What people call a network namespace: its name, or a process in it.
fn name_of(path: &Path) -> String {
    if let Ok(name) = path.strip_prefix(netns::NAMED) {
        return name.display().to_string();
    }
    let process = path
        .components()
        .nth(2)
        .map(|part| part.as_os_str().to_string_lossy());
    let process = process.unwrap_or_default();
    match fs::read_to_string(format!("/proc/{process}/comm")) {
        Ok(name) => format!("{} ({process})", name.trim_end()),
        Err(_) => format!("process {process}"),
    }
}

/// Fails if a process has tap `number` open, as far as that can be seen from here.
pub fn check_not_open(number: u32) -> Result<(), AttachError> {
    let of_tap = holders().into_iter().filter(|((tap, _), _)| *tap == number);
    let processes: Vec<String> = of_tap.flat_map(|(_, processes)| processes).collect();
    if processes.is_empty() {
        return Ok(());
    }
    let text = format!(
        "{} is still open in {}",
        tap::path(number).display(),
        processes.join(", ")
    );
    Err(AttachError::new(Kind::TryAgain, text))
}

/// Whether a device with the tap number of a macvtap is its own, as far as sysfs shows it. It has
/// no network namespace: one with the name of the interface there is.
fn is_tap_of(device: DeviceNumber, link: &Link) -> bool {
    let found = tap::of(device).ok().flatten();
    found.is_some_and(|tap| tap.interface == link.name)
}

/// By number and device of a tap, the processes that have it open. Several taps can have one number,
/// so one name in `/dev`.
fn holders() -> BTreeMap<(u32, DeviceNumber), Vec<String>> {
    let mut holders: BTreeMap<(u32, DeviceNumber), Vec<String>> = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(id) = name.to_str().filter(|name| name.parse::<u32>().is_ok()) else {
            continue;
        };
        let descriptors = fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten();
        let taps = descriptors.flatten().filter_map(|descriptor| {
            let target = fs::read_link(descriptor.path()).ok()?;
            let number = tap::number_in(target.to_str()?)?;
            let found = fs::metadata(descriptor.path()).ok()?;
            Some((number, Found::of(&found).number()?))
        });
        // Once for each of several queues.
        for tap in taps.collect::<BTreeSet<(u32, DeviceNumber)>>() {
            let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let holder = format!("{} ({id})", comm.trim_end());
            holders.entry(tap).or_default().push(holder);
        }
    }
    holders
}

/// By the name of a network namespace, the pod that the runtime says is in it.
fn pods(results: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(results).into_iter().flatten().flatten();
    let read = |path: &Path| -> Option<(String, String)> {
        let value: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        let argument = |wanted: &str| {
            let arguments = value["cniArgs"].as_array()?.iter();
            let found = arguments
                .filter(|pair| pair[0] == wanted)
                .find_map(|pair| pair[1].as_str());
            found.map(str::to_owned)
        };
        let pod = argument("K8S_POD_NAME")?;
        let namespace = argument("K8S_POD_NAMESPACE").unwrap_or_default();
        let interfaces = value["result"]["interfaces"].as_array()?.iter();
        let sandbox = interfaces.filter_map(|each| each["sandbox"].as_str());
        let sandbox = sandbox.into_iter().find(|path| !path.is_empty())?;
        let name = Path::new(sandbox).file_name()?.to_str()?.to_owned();
        Some((name, format!("{namespace}/{pod}")))
    };
    entries
        .take(MOST_RESULTS)
        .filter_map(|entry| read(&entry.path()))
        .collect()
}

fn lower_devices(links: &[Link], macvtaps: &[Macvtap]) -> Vec<LowerUse> {
    let candidates = links.iter().filter(|link| {
        lower::is_ethernet(link) && !matches!(link.kind.as_deref(), Some("macvtap" | "macvlan"))
    });
    let on = |link: &Link| {
        let lowers = macvtaps.iter().filter_map(|macvtap| macvtap.lower.as_ref());
        lowers.filter(|lower| **lower == link.name).count()
    };
    let mut lowers: Vec<LowerUse> = candidates
        .map(|link| LowerUse {
            macvtaps: on(link),
            ineligible: LowerDevice::of(link.clone()).ineligible_among(links),
            link: link.clone(),
        })
        .collect();
    lowers.sort_by(|a, b| a.link.name.cmp(&b.link.name));
    lowers
}

/// Says which other macvtap on the lower device of `link` has its MAC, and whose it is, as far as
/// that can be found out.
#[must_use]
pub fn holder_of_mac(link: &Link) -> Option<String> {
    let mut inventory = Inventory::new().ok()?;
    inventory.macvtaps.retain(|other| {
        let same = other.link.mac == link.mac && other.link.lower == link.lower;
        same && other.lower.is_some() && other.link.index != link.index
    });
    inventory.find_pods();
    inventory.macvtaps.first().map(Macvtap::place)
}

/// The macvtaps on a lower device of our own network namespace, as far as they can be found.
#[must_use]
pub fn on(lower: &str) -> Vec<Macvtap> {
    let Ok(mut inventory) = Inventory::new() else {
        return Vec::new();
    };
    let is_on = |macvtap: &Macvtap| macvtap.lower.as_deref() == Some(lower);
    inventory.macvtaps.retain(is_on);
    inventory.find_pods();
    inventory.macvtaps
}

/// Says which interface has tap `number`, and where, as far as that can be found out: namespaces
/// that cannot be entered are passed over.
#[must_use]
pub fn locate(number: u32) -> String {
    let found = netns::all().find_map(|path| {
        let netns = Netns::open(&path).ok().flatten()?;
        let link = netns.socket().ok()?.link(number).ok().flatten()?;
        link.is_macvtap().then(|| {
            let pod = pods(Path::new(RESULTS)).remove(&name_of(&path));
            let pod = pod.map_or_else(String::new, |pod| format!(" of pod {pod}"));
            let (name, path) = (&link.name, path.display());
            format!("interface {name:?} in netns {path}{pod}")
        })
    });
    found.unwrap_or_else(|| "an interface in a netns that is being destroyed".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finds_pods_in_the_results_and_survives_what_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let result = json!({
            "kind": "cniCacheV1", "containerId": "c", "ifName": "eth0",
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "vms"], ["K8S_POD_NAME", "a"]],
            "result": {"interfaces": [{"name": "cni0"}, {"sandbox": "/var/run/netns/cni-1"}]},
        });
        fs::write(dir.path().join("a"), result.to_string()).unwrap();
        fs::write(dir.path().join("b"), "{").unwrap();
        fs::write(dir.path().join("c"), "[]").unwrap();
        let expected = BTreeMap::from([("cni-1".to_owned(), "vms/a".to_owned())]);
        assert_eq!(pods(dir.path()), expected);
        assert!(pods(Path::new("/nowhere")).is_empty());
    }
}
