//! Host access on one lower device: its macvlan, and the guests that the node reaches by it.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use anyhow::{Context, Result};
use log::debug;

use super::{
    barrier::MAX_GUESTS,
    claim::Claim,
    guests::{Guests, Port},
    interface::Interface,
    node::{Node, Refusal},
};
use crate::{
    netlink::{Link, Socket},
    types::{link_name::LinkName, mac::MacAddr, status::HostAccessStatus},
};

/// Host access on a lower device.
#[derive(Debug)]
pub struct Access {
    /// The name of the lower device.
    pub lower: LinkName,
    /// The taps of the resources with host access.
    pub taps: BTreeSet<u32>,
    guests: Guests,
    node: Node,
    /// The index of the macvlan, once there is one.
    pub index: Option<u32>,
    /// The MACs of the guests, as many as are supported.
    pub macs: BTreeSet<MacAddr>,
    /// Whether other hosts were just asked for addresses that guests claim.
    pub is_probing: bool,
    /// Published status.
    pub status: HostAccessStatus,
}

/// The node's state that all of them use.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The macvtaps of guests; none if they are not known yet.
    pub ports: Option<&'a [Port]>,
}

impl Access {
    /// Host access on this lower device, which is to be synced.
    #[must_use]
    pub fn new(lower: LinkName) -> Self {
        Self {
            lower,
            taps: BTreeSet::new(),
            guests: Guests::default(),
            node: Node::default(),
            index: None,
            macs: BTreeSet::new(),
            is_probing: false,
            status: HostAccessStatus::default(),
        }
    }

    /// Brings the kernel in line with the guests.
    pub fn sync(&mut self, host: &mut Socket, lower: &Link, surroundings: Surroundings<'_>) {
        let mut status = HostAccessStatus {
            lower_device: self.lower.to_string(),
            ..HostAccessStatus::default()
        };
        self.is_probing = false;
        if let Err(error) = self.try_sync(host, (lower, surroundings), &mut status) {
            status.errors.push(format!("{error:#}"));
        }
        self.status = status;
    }

    fn try_sync(
        &mut self,
        host: &mut Socket,
        (lower, surroundings): (&Link, Surroundings<'_>),
        status: &mut HostAccessStatus,
    ) -> Result<()> {
        let interface = Interface::ensure(host, lower, surroundings.node)?;
        status.interface = interface.name.to_string();
        if self.index.replace(interface.index).is_none() {
            self.adopt(host, &interface)?;
        }
        let Some(ports) = surroundings.ports else {
            return Ok(());
        };
        let ports = ports.iter().filter(|port| self.has(port, lower)).cloned();
        let mut ports: Vec<Port> = ports.collect();
        let macs: BTreeSet<MacAddr> = ports.iter().map(|port| port.mac).collect();
        status.errors.extend(unsupported(macs.len()));
        self.macs = macs.into_iter().take(MAX_GUESTS).collect();
        ports.retain(|port| self.macs.contains(&port.mac));
        interface.open_to(host, &self.macs)?;
        self.node = Node::read(host, lower.index, interface.index)?;
        if self.node.addresses.is_empty() {
            let text = "the lower device has no address of the node".to_owned();
            status.errors.push(text);
        }
        let errors = interface.sync_addresses(host, &self.node)?;
        status.errors.extend(errors);
        self.check_claims();
        let guests = self.guests.reachable(&ports, &self.node);
        let errors = interface.sync_guests(host, &guests, &self.node)?;
        status.errors.extend(errors);
        status.addresses = u64::try_from(guests.len()).unwrap_or(u64::MAX);
        self.probe(host, lower)
    }

    /// Forgets the claims of guests that are gone, and those to addresses of other hosts.
    fn check_claims(&mut self) {
        self.guests.retain(&self.macs);
        for (claim, refusal) in self.guests.refuse(&self.node) {
            self.log(claim, refusal);
        }
    }

    /// Asks which host on the link has the addresses that guests claim: not that of another host is
    /// to lead to a guest. The kernel has the answer the next time.
    fn probe(&mut self, host: &mut Socket, lower: &Link) -> Result<()> {
        let unprobed = self.guests.take_unprobed();
        self.is_probing = !unprobed.is_empty();
        let is_unknown = |address: &IpAddr| !self.node.neighbors.contains_key(address);
        for address in unprobed.into_iter().filter(is_unknown) {
            let probed = host.probe_neighbor(lower.index, address);
            probed.with_context(|| format!("asking which host has {address}"))?;
        }
        Ok(())
    }

    fn has(&self, port: &Port, lower: &Link) -> bool {
        port.lower == lower.index && self.taps.contains(&port.tap)
    }

    /// What a former device plugin knew, the kernel still has.
    fn adopt(&mut self, host: &mut Socket, interface: &Interface) -> Result<()> {
        let now = Instant::now();
        for (address, mac) in interface.neighbors(host)? {
            self.guests.adopt(Claim { mac, address }, now);
        }
        Ok(())
    }

    /// Takes note of what a guest claims. True if it changes anything.
    pub fn claim(&mut self, claim: Claim, now: Instant) -> bool {
        if !self.macs.contains(&claim.mac) {
            return false;
        }
        if let Some(refusal) = self.node.refusal_of(&claim) {
            self.log(claim, refusal);
            return false;
        }
        self.guests.claim(claim, now)
    }

    fn log(&self, claim: Claim, refusal: Refusal) {
        let (lower, Claim { mac, address }) = (&*self.lower, claim);
        debug!(lower, mac:%, address:%, reason:% = refusal; "no route to what a guest claims");
    }
}

/// What is not supported of this number of guests.
fn unsupported(guests: usize) -> Option<String> {
    let left = guests.checked_sub(MAX_GUESTS).filter(|left| *left > 0)?;
    Some(format!(
        "{guests} guests, but only {MAX_GUESTS} are supported: {left} have no host access"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_many_guests_are_not_supported() {
        let text = "600 guests, but only 500 are supported: 100 have no host access";
        assert_eq!(unsupported(600).as_deref(), Some(text));
        assert_eq!(unsupported(MAX_GUESTS), None);
    }
}
