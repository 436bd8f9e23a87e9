//! The macvtap of a pod that uses the tap without the CNI plugin. It is in the host's
//! network namespace, as all of kubevirt/macvtap-cni's do.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{
    create::{Spec, create},
    guard::Settings,
    inventory,
    lower::LowerDevice,
};
use crate::{
    host::tap,
    netlink::{Change, Link, MAX_ALIAS, Socket},
    types::{
        device_id::{DeviceId, Devices, MAX_SLOTS, TAPS, original_link_name, original_taps},
        link_name::LinkName,
        mode::Mode,
        port_options::NO_OPTIONS,
        resource_options::NO_RESOURCE_OPTIONS,
    },
};

/// Makes the device's macvtap in our own network namespace.
pub fn create_for(device: &DeviceId) -> Result<()> {
    let mut host = Socket::open()?;
    let lower = LowerDevice::eligible(&mut host, &device.lower)?;
    let flaw = device.options.mtu;
    if let Some(flaw) = flaw.and_then(|mtu| LowerDevice::mtu_flaw(&lower.link, mtu)) {
        bail!("{flaw}");
    }
    let name = name_for(device);
    let spec = Spec {
        mtu: device.options.mtu,
        options: &device.options.port,
        ..spec(&name, &lower, device.mode, device.tap)
    };
    create_alone(&mut host, device.tap, &spec)
}

/// The name of the device's macvtap in our own network namespace.
#[must_use]
pub fn name_for(device: &DeviceId) -> String {
    original_link_name(&device.without_options().to_string())
}

/// Makes the macvtap of a device of kubevirt/macvtap-cni in our own network namespace, under the
/// name by which CNI ADD finds it, in place of one that was left there; its index.
pub fn create_original(id: &str, lower: &LinkName, mode: Mode) -> Result<u32> {
    let mut host = Socket::open()?;
    let lower = LowerDevice::eligible(&mut host, lower)?;
    let name = original_link_name(id);
    let left = host.link_by_name(&name)?.filter(Link::is_macvtap);
    if let Some(left) = left {
        host.delete(left.index)?;
    }
    let taken = tap::numbers()?;
    let mut indexes = original_taps(id);
    let index = indexes.find(|index| !taken.contains(index));
    let index = index.context("all tap numbers that were tried are in use")?;
    create_alone(&mut host, index, &spec(&name, &lower, mode, index))?;
    Ok(index)
}

/// What a macvtap for the tap alone is like.
fn spec<'a>(name: &'a str, lower: &'a LowerDevice, mode: Mode, index: u32) -> Spec<'a> {
    Spec {
        name,
        index: Some(index),
        lower,
        mode,
        mac: None,
        mtu: None,
        group: 0,
        options: &NO_OPTIONS,
    }
}

fn create_alone(host: &mut Socket, index: u32, spec: &Spec<'_>) -> Result<()> {
    let settings = Settings {
        host_stack: false,
        promiscuous: false,
        all_multicast: true,
    };
    let ((), macvtap) = create(host, None, spec)?.attach(|macvtap| {
        macvtap.prepare(settings)?;
        macvtap.set_up(None, None, Instant::now())?;
        // Its node is the kernel's matter: the /dev of this container is not the node's.
        if tap::devices(index)?.len() == 1 {
            return Ok(());
        }
        let path = tap::path(index);
        Err(anyhow!("{} is in use by another macvtap", path.display()).into())
    })?;
    macvtap.keep();
    Ok(())
}

/// Fails if the device's tap, which exists, is another device's or another node's. Where its
/// network namespace cannot be found, nothing speaks against it.
pub fn check_owner(device: &DeviceId) -> Result<()> {
    let path = tap::path(device.tap).display().to_string();
    ensure!(
        tap::devices(device.tap)?.len() == 1,
        "{path} exists more than once on this machine"
    );
    let Some(found) = inventory::find(device.tap)? else {
        return Ok(());
    };
    let lower = Socket::open()?.link_by_name(&device.lower)?;
    let same_lower = match (&found.lower, lower) {
        (Some(name), Some(lower)) => *name == lower.name,
        // It was renamed since.
        (Some(_), None) => true,
        (None, _) => false,
    };
    let mode = if found.is_parked() {
        Some(Mode::Bridge)
    } else {
        found.link.mode
    };
    let same_mode = mode == Some(device.mode);
    let (interface, netns) = (&found.link.name, &found.netns);
    ensure!(
        same_lower && same_mode,
        "{path} is interface {interface:?} in netns {netns:?}, which is not a {} macvtap on {:?} \
         of this node; if nodes share a kernel, their NODE_NAMEs have to differ",
        device.mode,
        device.lower.to_string()
    );
    Ok(())
}

/// The resources of a node.
pub struct Resources<'a> {
    /// What the numbers of its taps derive from.
    pub node: &'a str,
    /// The names of the resources.
    pub names: BTreeSet<&'a str>,
}

impl Resources<'_> {
    /// The devices whose macvtaps these links of our own network namespace are, each with its lower
    /// device: index and name are hashes of the device. Discovery names resources after their lower
    /// devices. There are many devices, so that all links are looked up together.
    #[must_use]
    pub fn devices_of(&self, links: &[(&Link, &Link)]) -> Vec<DeviceId> {
        let mut series: BTreeMap<(&str, LinkName, Mode), BTreeMap<u32, &Link>> = BTreeMap::new();
        for &(link, lower) in links {
            for (resource, name) in self.names_for(lower) {
                let Some(mode) = link.mode else { continue };
                let links = series.entry((resource, name, mode)).or_default();
                links.insert(link.index, link);
            }
        }
        let found = series.iter().flat_map(|((resource, lower, mode), links)| {
            let devices = Devices {
                node: self.node,
                resource,
                lower,
                mode: *mode,
                options: &NO_RESOURCE_OPTIONS,
            };
            let devices = devices.with_taps(|tap| links.contains_key(&tap), MAX_SLOTS);
            devices.filter(|device| is_named_for(links[&device.tap], device))
        });
        found.collect()
    }

    /// The resources that may have devices on a lower device, with each name that it may have in
    /// their IDs.
    fn names_for<'a>(&'a self, lower: &'a Link) -> impl Iterator<Item = (&'a str, LinkName)> {
        let names = [&lower.name].into_iter().chain(&lower.alt_names);
        let names: Vec<LinkName> = names.filter_map(|name| name.parse().ok()).collect();
        let resources = self.names.iter().copied().chain([lower.name.as_str()]);
        resources.flat_map(move |resource| {
            let names = names.clone();
            names.into_iter().map(move |name| (resource, name))
        })
    }
}

/// Whether this link of our own network namespace looks as if [`create_for`] had made it, for
/// whatever device.
#[must_use]
pub fn is_candidate(link: &Link) -> bool {
    link.is_macvtap()
        && TAPS.contains(&link.index)
        && link.name.starts_with("mvt")
        && link.lower_nsid.is_none()
}

/// Whether this link of our own network namespace has the name of the device's macvtap.
#[must_use]
pub fn is_named_for(link: &Link, device: &DeviceId) -> bool {
    link.is_macvtap() && link.index == device.tap && link.name == name_for(device)
}

/// Whether the device's tap, which exists, is that of a macvtap in our own network namespace.
pub fn is_here(host: &mut Socket, device: &DeviceId) -> Result<bool> {
    Ok(host.link(device.tap)?.is_some_and(|link| link.is_macvtap()))
}

/// Whether the device's macvtap is in our own network namespace. Another link with that index is
/// not.
pub fn exists(host: &mut Socket, device: &DeviceId) -> Result<bool> {
    match host.link(device.tap)? {
        Some(link) => is_of(host, device, &link),
        None => Ok(false),
    }
}

/// Shows with the device's macvtap in our own network namespace which pod has it. The kernel has no
/// room for the longest names, which are left out.
pub fn note_pod(host: &mut Socket, device: &DeviceId, pod: &str) -> Result<()> {
    if pod.len() <= MAX_ALIAS && exists(host, device)? {
        let change = Change {
            alias: Some(pod),
            ..Change::default()
        };
        host.change(device.tap, &change)?;
    }
    Ok(())
}

/// Deletes the device's macvtap in our own network namespace, which a former pod had. False if
/// there is none.
pub fn delete_of(host: &mut Socket, device: &DeviceId) -> Result<bool> {
    Ok(exists(host, device)? && host.delete(device.tap)?)
}

/// The same if the macvtap still shows this pod. One that was made since shows none.
pub fn delete_of_pod(host: &mut Socket, device: &DeviceId, pod: &str) -> Result<bool> {
    let link = host.link(device.tap)?.filter(|link| link.alias == pod);
    match link {
        Some(link) => Ok(is_of(host, device, &link)? && host.delete(device.tap)?),
        None => Ok(false),
    }
}

/// Whether `link` is what [`create_for`] makes for this very device.
fn is_of(host: &mut Socket, device: &DeviceId, link: &Link) -> Result<bool> {
    let name = name_for(device);
    if !link.is_macvtap() || link.name != name || link.mode != Some(device.mode) {
        return Ok(false);
    }
    let lower = link
        .lower_here()
        .map(|index| host.link(index))
        .transpose()?
        .flatten();
    Ok(lower.is_some_and(|lower| lower.is_called(&device.lower)))
}
