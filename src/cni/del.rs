//! DEL: removes the attachment as far as there is one. What is gone already is no error.

use std::{
    slice, thread,
    time::{Duration, Instant},
};

use log::{debug, info, warn};
use serde_json::Value;

use super::{
    config,
    environment::Environment,
    error::{CniError, Result, code},
    input::Input,
    policy, result,
};
use crate::{
    host::{devnode, netns::Netns},
    macvtap::{port_security::Interface, shaping, sub_interface::Maker},
    netlink::{Link, Socket},
    types::{
        device_id::{DeviceId, is_tap_number, original_link_name, standalone_taps},
        json::Fields,
        link_name::LinkName,
        mac::MacAddr,
    },
};

/// How long a network namespace that is gone may take to be destroyed, and how often it is looked.
const NETNS_GRACE: Duration = Duration::from_millis(300);
const NETNS_POLL: Duration = Duration::from_millis(5);

/// What the configuration says the attachment is.
#[derive(Debug, PartialEq, Eq)]
enum Attachment {
    /// The macvtap whose index is the tap of a device ID.
    Allocated(u32),
    /// A macvtap with one of these indexes: there is no device plugin.
    Standalone(Vec<u32>),
    /// One that the original made, and its name on the host.
    Original(String),
    /// Not clear: ADD fails with such a configuration, so that the interface may be another
    /// attachment's.
    Unclear(Unclear),
}

/// What shows which interface is that of an attachment whose device ID cannot be used.
#[derive(Debug, PartialEq, Eq)]
struct Unclear {
    /// The indexes that it may have without a device ID.
    taps: Vec<u32>,
    /// The MAC that ADD reported.
    mac: Option<MacAddr>,
    /// Any index of ours will do: a key has a wrong type, which it cannot have had when ADD
    /// succeeded, and the runtime gives no result to compare with.
    any: bool,
}

impl Unclear {
    fn of(json: &Value, environment: &Environment) -> Self {
        let mistyped = |value: &Value| !value.is_string();
        let value = |key| Fields::of(json).and_then(|fields| fields.value(key));
        let runtime = value("runtimeConfig").and_then(Fields::of);
        let runtime = runtime.and_then(|runtime| runtime.value("deviceID"));
        let keys = [runtime, value("deviceID"), value("lowerDevice")];
        let given = value("prevResult").is_some();
        Self {
            taps: standalone(environment),
            mac: reported_mac(json, environment),
            any: !given && keys.into_iter().flatten().any(mistyped),
        }
    }

    fn is(&self, link: &Link) -> bool {
        let reported = self.mac.is_some() && link.mac == self.mac;
        self.taps.contains(&link.index) || (is_tap_number(link.index) && (reported || self.any))
    }
}

impl Attachment {
    fn of(json: &Value, environment: &Environment) -> Self {
        let unclear = || Self::Unclear(Unclear::of(json, environment));
        match config::device_id(json) {
            Some(id) if id.contains('@') => match id.parse::<DeviceId>() {
                Ok(device) => Self::Allocated(device.tap),
                Err(_) => unclear(),
            },
            Some(id) => Self::Original(original_link_name(id)),
            None if config::lower_device(json).is_some() => {
                Self::Standalone(standalone(environment))
            }
            None => unclear(),
        }
    }

    /// Whether `link`, the interface of that name in the pod, is the attachment. Macvtaps of the
    /// original have no index of their own; their lower device is on the host.
    fn is(&self, link: &Link, environment: &Environment) -> bool {
        let index = link.index;
        let from_host = link.lower_nsid.is_some() || environment.netns_override;
        match self {
            Self::Allocated(tap) => index == *tap,
            Self::Standalone(taps) => taps.contains(&index),
            Self::Original(_) => !is_tap_number(index) && from_host,
            Self::Unclear(unclear) => unclear.is(link),
        }
    }

    /// The taps that it may have left nodes of.
    fn taps(&self) -> &[u32] {
        match self {
            Self::Allocated(tap) => slice::from_ref(tap),
            Self::Standalone(taps) | Self::Unclear(Unclear { taps, .. }) => taps,
            Self::Original(_) => &[],
        }
    }
}

/// The taps that ADD may have chosen without a device ID.
fn standalone(environment: &Environment) -> Vec<u32> {
    let pod_uid = config::pod_uid(&environment.args);
    let seeds = [Some(&environment.container_id), pod_uid.as_ref()];
    let seeds = seeds.into_iter().flatten();
    let taps = seeds.flat_map(|seed| standalone_taps(seed, &environment.ifname));
    taps.collect()
}

/// The MAC that ADD, or a later plugin of the chain, reported for the interface.
fn reported_mac(json: &Value, environment: &Environment) -> Option<MacAddr> {
    let prev = Fields::of(json)?.value("prevResult")?;
    let interface = result::find(prev, &environment.ifname, &environment.netns)?;
    interface.get("mac")?.as_str()?.parse().ok()
}

/// Gives the addresses back to the IPAM plugin, and removes the interface and, where the kernel does
/// not, the tap's node.
///
/// Goes on after a failure, and reports all of them: the runtime calls again, and an address that
/// is not given back would be lost.
pub fn del(environment: &Environment, input: &Input, netns: Option<&Netns>) -> Result<()> {
    let json = &input.json;
    let attachment = Attachment::of(json, environment);
    let mut errors = Vec::new();
    // First, for a DHCP client notifies the server by the interface.
    errors.extend(input.forward(environment).err());
    let mut taps = Vec::new();
    match netns.map(Netns::socket) {
        Some(Ok(mut pod)) => {
            match remove_links(&mut pod, &attachment, environment) {
                Ok(removed) => taps.extend(removed),
                Err(error) => errors.push(error),
            }
            if taps.is_empty() {
                errors.extend(remove_ifbs(&mut pod, attachment.taps()).err());
            }
            let removed = remove_security(&mut pod, netns, environment, json);
            errors.extend(removed.err());
        }
        Some(Err(error)) => errors.push(error.into()),
        None => info!("the netns is gone, and with it the interface"),
    }
    taps.extend_from_slice(attachment.taps());
    taps.sort_unstable();
    taps.dedup();
    for number in taps {
        match devnode::remove_stale(number) {
            Ok(true) => info!(tap = number; "removed the node"),
            Ok(false) => {}
            Err(error) => {
                let error = CniError::coded(code::IO, &error);
                errors.push(error.context("removing the tap's node"));
            }
        }
    }
    errors.extend(remove_vlan(json, netns.is_some()).err());
    CniError::all(errors)
}

/// Removes the VLAN interface that ADD made, after the last macvtap on it. Where the netns is gone,
/// the macvtap may be going away still.
fn remove_vlan(json: &Value, has_netns: bool) -> Result<()> {
    let Some(vlan) = config::vlan(json) else {
        return Ok(());
    };
    let mut host = Socket::open()?;
    let start = Instant::now();
    loop {
        let removed = vlan.remove_unused(&mut host, Maker::Cni)?;
        if removed || has_netns || start.elapsed() > NETNS_GRACE {
            return Ok(());
        }
        thread::sleep(NETNS_POLL);
    }
}

/// Removes the rules for an interface that is gone. One that is there may be another attachment,
/// which keeps its rules. The configuration may have lost its keys since ADD, so they are looked
/// for in any case; that fails the call only where it has them, for the kernel may have none.
fn remove_security(
    pod: &mut Socket,
    netns: Option<&Netns>,
    environment: &Environment,
    json: &Value,
) -> Result<()> {
    let name = environment.ifname.as_str();
    if LinkName::flaw(name).is_some() || pod.link_by_name(name)?.is_some() {
        return Ok(());
    }
    let interface = Interface {
        netns,
        name,
        index: 0,
    };
    match interface.remove_security() {
        Err(error) if !policy::has_security(json) => {
            debug!(error = format!("{error:#}"); "no rules can be looked for");
            Ok(())
        }
        removed => Ok(removed?),
    }
}

/// Removes what shaped an interface that went with its lower device.
fn remove_ifbs(pod: &mut Socket, taps: &[u32]) -> Result<()> {
    for &tap in taps {
        if pod.link(tap)?.is_none() {
            shaping::remove_ifb(pod, tap)?;
        }
    }
    Ok(())
}

/// Deletes the attachment's links in the pod; the numbers of their taps.
fn remove_links(
    pod: &mut Socket,
    attachment: &Attachment,
    environment: &Environment,
) -> Result<Vec<u32>> {
    let mut links = Vec::new();
    if LinkName::flaw(&environment.ifname).is_none() {
        let found = pod.link_by_name(&environment.ifname)?;
        links.extend(found.filter(|link| attachment.is(link, environment)));
    }
    if let Attachment::Original(name) = attachment {
        // Where ADD was stopped in the middle of the hand-over.
        links.extend(pod.link_by_name(name)?);
    }
    let mut removed = Vec::new();
    for link in links {
        removed.extend(delete(pod, &link)?);
    }
    Ok(removed)
}

fn delete(pod: &mut Socket, link: &Link) -> Result<Option<u32>> {
    let (name, tap) = (link.name.as_str(), link.index);
    if !link.is_macvtap() {
        warn!(interface = name; "the interface is no macvtap and not ours to delete");
        return Ok(None);
    }
    let deleted = shaping::delete_with_ifb(pod, tap).map_err(CniError::from);
    if deleted.map_err(|error| error.context(&format!("deleting {name:?}")))? {
        info!(tap; "detached");
    }
    Ok(Some(tap))
}
