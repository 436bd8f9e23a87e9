//! Host access on one lower device: its macvlan, and the guests that the node reaches by it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use anyhow::{Context, Result};
use log::debug;

use super::{
    barrier::MAX_GUESTS,
    claim::{Claim, Statement},
    guests::{Guests, Port},
    interface::Interface,
    node::{Node, Refusal},
};
use crate::{
    netlink::{KnownNeighbor, Link, NeighborState, Socket},
    types::{link_name::LinkName, mac::MacAddr, status::HostAccessStatus},
};

/// Addresses that guests are asked for at once.
const MAX_WANTED: usize = 8;

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
    /// Addresses that the node looks for and no host on the wire has.
    wanted: BTreeSet<IpAddr>,
    /// For the next [`sync`](Self::sync).
    prepared: Option<Prepared>,
    /// Published status.
    pub status: HostAccessStatus,
}

/// The macvlan, and the macvtaps of guests that are supported.
type Prepared = (Interface, Vec<Port>);

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
            wanted: BTreeSet::new(),
            prepared: None,
            status: HostAccessStatus::default(),
        }
    }

    /// Finds the macvlan, or makes it, and the guests. What these say is to be received before
    /// [`sync`](Self::sync) lets them pass: they say it once.
    pub fn prepare(&mut self, host: &mut Socket, lower: &Link, surroundings: Surroundings<'_>) {
        self.status = HostAccessStatus {
            lower_device: self.lower.to_string(),
            ..HostAccessStatus::default()
        };
        self.is_probing = false;
        match self.try_prepare(host, lower, surroundings) {
            Ok(prepared) => self.prepared = prepared,
            Err(error) => self.status.errors.push(format!("{error:#}")),
        }
    }

    fn try_prepare(
        &mut self,
        host: &mut Socket,
        lower: &Link,
        surroundings: Surroundings<'_>,
    ) -> Result<Option<Prepared>> {
        let interface = Interface::ensure(host, lower, surroundings.node)?;
        self.status.interface = interface.name.to_string();
        if self.index.replace(interface.index).is_none() {
            self.adopt(host, &interface)?;
        }
        let Some(ports) = surroundings.ports else {
            return Ok(None);
        };
        let ports = ports.iter().filter(|port| self.has(port, lower)).cloned();
        let mut ports: Vec<Port> = ports.collect();
        let macs: BTreeSet<MacAddr> = ports.iter().map(|port| port.mac).collect();
        self.status.errors.extend(unsupported(macs.len()));
        self.macs = supported(&self.macs, macs);
        ports.retain(|port| self.macs.contains(&port.mac));
        Ok(Some((interface, ports)))
    }

    /// Brings the kernel in line with the guests.
    pub fn sync(&mut self, host: &mut Socket, lower: &Link) {
        let Some(prepared) = self.prepared.take() else {
            return;
        };
        if let Err(error) = self.try_sync(host, lower, &prepared) {
            self.status.errors.push(format!("{error:#}"));
        }
    }

    fn try_sync(
        &mut self,
        host: &mut Socket,
        lower: &Link,
        (interface, ports): &Prepared,
    ) -> Result<()> {
        interface.open_to(host, &self.macs)?;
        self.node = Node::read(host, lower.index, interface.index)?;
        let errors = &mut self.status.errors;
        if self.node.addresses.is_empty() {
            errors.push("the lower device has no address of the node".to_owned());
        }
        errors.extend(interface.sync_addresses(host, &self.node)?);
        self.check_claims();
        let guests = self.guests.reachable(ports, &self.node);
        let errors = interface.sync_guests(host, &guests, &self.node)?;
        self.status.errors.extend(errors);
        self.status.addresses = u64::try_from(guests.len()).unwrap_or(u64::MAX);
        self.probe(host, lower)?;
        self.ask(interface, ports, &guests)
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
        for address in self.guests.suspend(&self.node) {
            let asked = host.verify_neighbor(lower.index, address);
            asked.with_context(|| format!("asking whether another host still has {address}"))?;
        }
        let unprobed = self.guests.take_unprobed(&self.node);
        self.is_probing = !unprobed.is_empty();
        let is_unknown = |address: &IpAddr| !self.node.neighbors.contains_key(address);
        for address in unprobed.into_iter().filter(is_unknown) {
            let probed = host.probe_neighbor(lower.index, address);
            probed.with_context(|| format!("asking which host has {address}"))?;
        }
        Ok(())
    }

    /// Asks the guests that are here for the addresses that the node looks for: it would never learn
    /// of one that says nothing.
    fn ask(
        &mut self,
        interface: &Interface,
        ports: &[Port],
        reachable: &BTreeMap<IpAddr, MacAddr>,
    ) -> Result<()> {
        let active = ports.iter().filter(|port| !port.parked);
        let macs: BTreeSet<MacAddr> = active.map(|port| port.mac).collect();
        for address in std::mem::take(&mut self.wanted) {
            if self.node.refusal(address).is_none() && !reachable.contains_key(&address) {
                interface.ask(&macs, address, &self.node)?;
            }
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

    /// Takes note of what a guest says. True if it changes anything.
    pub fn claim(&mut self, statement: Statement, now: Instant) -> bool {
        let claim = statement.claim();
        if !self.macs.contains(&claim.mac) {
            return false;
        }
        if let Some(refusal) = self.node.refusal_of(&claim) {
            self.log(claim, refusal);
            return false;
        }
        self.guests.claim(statement, now)
    }

    /// Takes note of what another host on the wire says. True if a guest says the same.
    pub fn dispute(&mut self, claim: &Claim) -> bool {
        !self.macs.contains(&claim.mac) && self.guests.dispute(claim)
    }

    /// Takes note of what the kernel found out about an address on the lower device. True if there
    /// is something to do about it.
    pub fn learn(&mut self, known: &KnownNeighbor) -> bool {
        let KnownNeighbor { address, state, .. } = *known;
        match (self.guests.claim_to(address), state) {
            (Some(claim), _) => {
                let former = self.node.other_owner(&claim);
                former.is_some() || state.mac().is_some_and(|mac| mac != claim.mac)
            }
            (None, NeighborState::Failed) => {
                self.wanted.len() < MAX_WANTED && self.wanted.insert(address)
            }
            (None, _) => false,
        }
    }

    /// The addresses that guests claim.
    pub fn claimed(&self) -> impl Iterator<Item = IpAddr> {
        self.guests.addresses()
    }

    fn log(&self, claim: Claim, refusal: Refusal) {
        let (lower, Claim { mac, address }) = (&*self.lower, claim);
        debug!(lower, mac:%, address:%, reason:% = refusal; "no route to what a guest claims");
    }
}

/// The MACs of `guests`, as many as are supported: those that were before, and then others.
fn supported(before: &BTreeSet<MacAddr>, guests: BTreeSet<MacAddr>) -> BTreeSet<MacAddr> {
    let (old, new): (Vec<_>, Vec<_>) = guests.into_iter().partition(|mac| before.contains(mac));
    old.into_iter().chain(new).take(MAX_GUESTS).collect()
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
    fn a_guest_that_comes_takes_no_others_place() {
        let mac = |n: usize| {
            let [.., high, low] = n.to_be_bytes();
            MacAddr([2, 0, 0, 0, high, low])
        };
        let before = (1000..1000 + MAX_GUESTS).map(mac).collect();
        let all = (0..2000).map(mac).collect();
        assert_eq!(supported(&before, all), before);
        let left: BTreeSet<_> = (999..1001).map(mac).collect();
        assert_eq!(supported(&before, left.clone()), left);
    }

    #[test]
    fn says_how_many_guests_are_not_supported() {
        let text = "600 guests, but only 500 are supported: 100 have no host access";
        assert_eq!(unsupported(600).as_deref(), Some(text));
        assert_eq!(unsupported(MAX_GUESTS), None);
    }
}
