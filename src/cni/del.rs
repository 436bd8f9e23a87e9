//! DEL: removes the attachment as far as there is one. What is gone already is no error.

use std::{
    panic::resume_unwind,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use log::{debug, info, warn};
use serde_json::Value;

use super::{
    check::stands_on,
    config,
    environment::Environment,
    error::{CniError, Result, code},
    identity::{Identity, Provenance},
    input::Input,
    policy,
};
use crate::{
    host::{devnode, netns::Netns},
    macvtap::{
        lower::{LowerDevice, LowerError},
        port_security::remove_security,
        shaping,
        sub_interface::Maker,
    },
    netlink::{Link, Socket},
    types::{link_name::LinkName, prefix::is_ipv6_link_local},
};

/// How long a network namespace that is gone may take to be destroyed, and the poll interval.
const NETNS_GRACE: Duration = Duration::from_millis(300);
const NETNS_POLL: Duration = Duration::from_millis(5);
/// The poll interval for an interface that is being deleted.
const LINK_POLL: Duration = Duration::from_millis(1);

/// Gives the addresses back to the IPAM plugin, and removes the interface and, where the kernel does
/// not, the tap's node.
///
/// Goes on after a failure, and reports all of them: the runtime calls again, and an address that
/// is not given back would be lost.
pub fn del(environment: &Environment, input: &Input, netns: Option<&Netns>) -> Result<()> {
    let json = &input.json;
    let identity = Identity::of(json, environment);
    let mut errors = Vec::new();
    let mut place = netns.map(|netns| {
        let place = Place {
            netns,
            environment,
            json,
        };
        Ok((netns.socket()?, place))
    });
    if let Some(Ok((pod, place))) = &mut place {
        errors.extend(place.withdraw_addresses(pod, &identity).err());
    }
    // Before the interface goes, for a DHCP client notifies the server by it.
    errors.extend(input.forward(environment).err());
    let mut taps = Vec::new();
    match place {
        Some(Ok((mut pod, place))) => {
            let (removed, unsecured) = place.detach(&mut pod, &identity);
            match removed {
                Ok(removed) => taps.extend(removed),
                Err(error) => errors.push(error),
            }
            if taps.is_empty() {
                errors.extend(remove_ifbs(&mut pod, identity.taps()).err());
            }
            errors.extend(unsecured.err());
        }
        Some(Err(error)) => errors.push(error),
        None => info!("the netns is gone, and with it the interface"),
    }
    taps.extend_from_slice(identity.taps());
    taps.sort_unstable();
    taps.dedup();
    errors.extend(taps.into_iter().filter_map(|tap| remove_node(tap).err()));
    errors.extend(remove_vlan(json, netns.is_some()).err());
    CniError::all(errors)
}

fn remove_node(tap: u32) -> Result<()> {
    let removed = devnode::remove_stale(tap).map_err(|error| {
        let error = CniError::coded(code::IO, &error);
        error.context("removing the tap's node")
    })?;
    if removed {
        info!(tap; "removed the node");
    }
    Ok(())
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

/// A pod's network namespace, and what was attached there.
struct Place<'a> {
    netns: &'a Netns,
    environment: &'a Environment,
    json: &'a Value,
}

impl Place<'_> {
    /// Deletes the attachment's links, whose taps' numbers it returns, and then its rules. For each of
    /// them the kernel waits until no processor uses it, 20 ms: for the rules as soon as the interface
    /// is gone, while it still waits for that.
    fn detach(&self, pod: &mut Socket, identity: &Identity) -> (Result<Vec<u32>>, Result<()>) {
        if !policy::has_security(self.json) {
            let removed = self.remove_links(pod, identity);
            return (removed, self.remove_security(pod));
        }
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let rules = || self.remove_security_after_links(&done);
            let rules = thread::Builder::new().spawn_scoped(scope, rules);
            let removed = self.remove_links(pod, identity);
            done.store(true, Ordering::Release);
            let unsecured = match rules {
                Ok(rules) => rules.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // One after the other, where there are too many threads.
                Err(_) => self.remove_security(pod),
            };
            (removed, unsecured)
        })
    }

    /// Takes the addresses of IPAM from the interface: once they are given back, another host may get
    /// them, and they have one owner at a time.
    fn withdraw_addresses(&self, pod: &mut Socket, identity: &Identity) -> Result<()> {
        let name = self.environment.ifname.as_str();
        if config::ipam_plugin(self.json).is_none() || LinkName::flaw(name).is_some() {
            return Ok(());
        }
        let Some(link) = pod.link_by_name(name)? else {
            return Ok(());
        };
        if !link.is_macvtap() || !self.is(&link, identity)? {
            return Ok(());
        }
        let found = pod.addresses_of(link.index)?.into_iter();
        let addresses = found.map(|found| found.address);
        for address in addresses.filter(|address| !is_ipv6_link_local(address.ip)) {
            pod.delete_address(link.index, &address)?;
        }
        Ok(())
    }

    /// Waits until the interface is gone, or nothing removes it any more.
    fn remove_security_after_links(&self, done: &AtomicBool) -> Result<()> {
        let mut pod = self.netns.socket()?;
        while !done.load(Ordering::Acquire) && self.has_link(&mut pod)? {
            thread::sleep(LINK_POLL);
        }
        self.remove_security(&mut pod)
    }

    fn has_link(&self, pod: &mut Socket) -> Result<bool> {
        let name = self.environment.ifname.as_str();
        Ok(LinkName::flaw(name).is_none() && pod.link_by_name(name)?.is_some())
    }

    /// Deletes the attachment's links in the pod; the numbers of their taps.
    fn remove_links(&self, pod: &mut Socket, identity: &Identity) -> Result<Vec<u32>> {
        let mut links = Vec::new();
        let name = self.environment.ifname.as_str();
        if LinkName::flaw(name).is_none()
            && let Some(link) = pod.link_by_name(name)?
        {
            if self.is(&link, identity)? {
                links.push(link);
            } else {
                warn!(interface = name; "the interface is not that of this attachment, and stays");
            }
        }
        if let Provenance::Original(name) = &identity.source {
            // Where ADD was stopped in the middle of the hand-over.
            links.extend(pod.link_by_name(name)?);
        }
        let mut removed = Vec::new();
        for link in links {
            removed.extend(delete(pod, &link)?);
        }
        Ok(removed)
    }

    fn is(&self, link: &Link, identity: &Identity) -> Result<bool> {
        let from_host = link.lower_nsid.is_some() || self.environment.netns_override;
        identity.is(link, |lower| self.is_on(lower, link), from_host)
    }

    /// Whether `link` stands on the lower device of this name, or on its VLAN. One that does not
    /// exist was renamed, or never was there and ADD failed.
    fn is_on(&self, lower: &LinkName, link: &Link) -> Result<bool> {
        let in_pod = config::is_in_pod(self.json);
        let mut there = if in_pod {
            self.netns.socket()?
        } else {
            Socket::open()?
        };
        let name = match config::vlan(self.json) {
            Some(vlan) => match vlan.among(&there.links()?) {
                Some(vlan) => vlan.name.clone(),
                None => return Ok(false),
            },
            None => lower.to_string(),
        };
        match LowerDevice::find(&mut there, &name) {
            Ok(found) => Ok(stands_on(link, &found, self.netns, in_pod)?),
            Err(LowerError::Ineligible(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the rules for an interface that is gone. One that is there may be another
    /// attachment, which keeps its rules. The configuration may have lost its keys since ADD, so
    /// they are looked for in any case; that fails the call only where it has them, for the kernel
    /// may have none.
    fn remove_security(&self, pod: &mut Socket) -> Result<()> {
        let name = self.environment.ifname.as_str();
        if LinkName::flaw(name).is_some() || self.has_link(pod)? {
            return Ok(());
        }
        match remove_security(Some(self.netns), name) {
            Err(error) if !policy::has_security(self.json) => {
                debug!(error = format!("{error:#}"); "no rules can be looked for");
                Ok(())
            }
            removed => Ok(removed?),
        }
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
