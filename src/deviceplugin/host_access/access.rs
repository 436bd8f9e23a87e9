//! Host access on one lower device: its macvlan, and the guests that the node reaches by it.

use std::{collections::BTreeSet, time::Instant};

use anyhow::Result;
use log::debug;

use super::{
    barrier::MAX_GUESTS,
    claim::Claim,
    guests::{Guests, Port},
    interface::Interface,
    node::Node,
};
use crate::{
    macvtap::lower::LowerDevice,
    netlink::{Link, Socket},
    types::{link_name::LinkName, mac::MacAddr, status::HostAccessStatus},
};

/// Host access on a lower device.
#[derive(Debug)]
pub struct Access {
    lower: LinkName,
    /// The taps of the resources with host access.
    pub taps: BTreeSet<u32>,
    guests: Guests,
    node: Node,
    /// The index of the macvlan, once there is one.
    pub index: Option<u32>,
    /// The MACs of the guests.
    pub macs: BTreeSet<MacAddr>,
    /// How it is.
    pub status: HostAccessStatus,
}

/// What all of a node have in common.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The links of the host.
    pub links: &'a [Link],
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
            status: HostAccessStatus::default(),
        }
    }

    /// Brings the kernel in line with what there is.
    pub fn sync(&mut self, host: &mut Socket, surroundings: Surroundings<'_>) {
        let mut status = HostAccessStatus {
            lower_device: self.lower.to_string(),
            ..HostAccessStatus::default()
        };
        if let Err(error) = self.try_sync(host, surroundings, &mut status) {
            status.errors.push(format!("{error:#}"));
        }
        self.status = status;
    }

    fn try_sync(
        &mut self,
        host: &mut Socket,
        surroundings: Surroundings<'_>,
        status: &mut HostAccessStatus,
    ) -> Result<()> {
        let lower = LowerDevice::among(surroundings.links, &self.lower)?.link;
        let interface = Interface::ensure(host, &lower, surroundings.node)?;
        status.interface = interface.name.to_string();
        if self.index.replace(interface.index).is_none() {
            self.adopt(host, &interface)?;
        }
        let Some(ports) = surroundings.ports else {
            return Ok(());
        };
        let ports = ports.iter().filter(|port| self.has(port, &lower)).cloned();
        let ports: Vec<Port> = ports.collect();
        self.macs = ports.iter().map(|port| port.mac).collect();
        if self.macs.len() > MAX_GUESTS {
            let text = format!("of {} guests it is for {MAX_GUESTS}", self.macs.len());
            status.errors.push(text);
        }
        interface.open_to(host, &self.macs)?;
        self.node = Node::read(host, lower.index, interface.index)?;
        if self.node.addresses.is_empty() {
            let text = "the lower device has no address of the node".to_owned();
            status.errors.push(text);
        }
        status
            .errors
            .extend(interface.sync_addresses(host, &self.node)?);
        self.guests.retain(&self.macs);
        let guests = self.guests.reachable(&ports, &self.node);
        let errors = interface.sync_guests(host, &guests, &self.node)?;
        status.errors.extend(errors);
        status.addresses = u64::try_from(guests.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    fn has(&self, port: &Port, lower: &Link) -> bool {
        port.lower == lower.index && self.taps.contains(&port.tap)
    }

    /// What a former device plugin knew, the kernel still has.
    fn adopt(&mut self, host: &mut Socket, interface: &Interface) -> Result<()> {
        let now = Instant::now();
        for (address, mac) in interface.neighbors(host)? {
            self.guests.claim(Claim { mac, address }, now);
        }
        Ok(())
    }

    /// Takes note of what a guest claims. True if it changes anything.
    pub fn claim(&mut self, claim: Claim, now: Instant) -> bool {
        if !self.macs.contains(&claim.mac) {
            return false;
        }
        if let Some(refusal) = self.node.refusal(claim.address) {
            let (lower, Claim { mac, address }) = (&*self.lower, claim);
            debug!(lower, mac:%, address:%, reason:% = refusal; "no route to what a guest claims");
            return false;
        }
        self.guests.claim(claim, now)
    }
}
