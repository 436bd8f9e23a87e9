//! The addresses of the guests on a lower device: by IPAM, or as they say themselves. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    claim::{Claim, Statement},
    node::{Node, Refusal},
};
use crate::{netlink::NeighborState, types::mac::MacAddr};

/// Addresses of a guest that are kept at most, of those that it claims. A guest with IPv6 has a
/// few, of which some change daily.
const MAX_ADDRESSES: usize = 16;
/// New claims of a guest at once; then one is accepted in each interval.
const MAX_BURST: u32 = 16;
const CLAIM_INTERVAL: Duration = Duration::from_secs(10);

/// A macvtap of a guest that the node reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The number of its tap.
    pub tap: u32,
    /// Its MAC.
    pub mac: MacAddr,
    /// The index of its lower device.
    pub lower: u32,
    /// Whether its guest is elsewhere.
    pub parked: bool,
    /// The addresses that IPAM gave it.
    pub addresses: Vec<IpAddr>,
}

/// What the guests on a lower device claimed.
#[derive(Clone, Debug, Default)]
pub struct Guests {
    claims: BTreeMap<IpAddr, Accepted>,
    /// Since when each guest has made no claim, as far as its new claims are counted: each moves
    /// this on by an interval.
    idle_since: BTreeMap<MacAddr, Instant>,
}

/// A claim, and what became of it.
#[derive(Clone, Copy, Debug)]
struct Accepted {
    mac: MacAddr,
    /// When it was last made.
    at: Instant,
    /// Whether other hosts on the link were asked for the address, as far as the claim counts.
    probed: bool,
    /// Whether they are to be asked, for the first time or again.
    to_probe: bool,
}

impl Guests {
    /// Takes note of what a guest says, in place of what another guest said of the address, unless
    /// it only looks whether the address is free. Of too many claims of one guest the oldest goes.
    /// False if nothing is new, or the guest makes new claims too often.
    pub fn claim(&mut self, statement: Statement, now: Instant) -> bool {
        let Claim { mac, address } = statement.claim();
        match self.claims.get_mut(&address) {
            Some(former) if former.mac == mac => {
                former.at = now;
                return false;
            }
            Some(_) if matches!(statement, Statement::Takes(_)) => return false,
            _ => {}
        }
        if !self.may_claim(mac, now) {
            return false;
        }
        let accepted = Accepted {
            mac,
            at: now,
            probed: false,
            to_probe: true,
        };
        self.claims.insert(address, accepted);
        let of_guest = self.claims.iter().filter(|(_, other)| other.mac == mac);
        if of_guest.clone().count() > MAX_ADDRESSES {
            let oldest = of_guest.min_by_key(|(_, claim)| claim.at);
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.claims.remove(&oldest);
            }
        }
        true
    }

    /// Counts a new claim of a guest. False if there were too many.
    fn may_claim(&mut self, mac: MacAddr, now: Instant) -> bool {
        let start = now.checked_sub(CLAIM_INTERVAL * MAX_BURST).unwrap_or(now);
        let idle = self.idle_since.entry(mac).or_insert(start);
        let next = (*idle).max(start) + CLAIM_INTERVAL;
        let may = next <= now;
        if may {
            *idle = next;
        }
        may
    }

    /// Takes over a claim that was accepted before this device plugin started.
    pub fn adopt(&mut self, claim: Claim, now: Instant) {
        let accepted = Accepted {
            mac: claim.mac,
            at: now,
            probed: true,
            to_probe: false,
        };
        self.claims.insert(claim.address, accepted);
    }

    /// What a guest claims of the address.
    #[must_use]
    pub fn claim_to(&self, address: IpAddr) -> Option<Claim> {
        let accepted = self.claims.get(&address)?;
        Some(accepted.of(address))
    }

    /// The addresses that guests claim.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.claims.keys().copied()
    }

    /// A host that is no guest claims an address: whether a guest does too. Then other hosts are to
    /// be asked for it again.
    pub fn dispute(&mut self, claim: &Claim) -> bool {
        let accepted = self.claims.get_mut(&claim.address);
        let Some(accepted) = accepted.filter(|accepted| accepted.mac != claim.mac) else {
            return false;
        };
        accepted.to_probe = true;
        true
    }

    /// Has the claims not count whose address another host has had, until the kernel has found out
    /// whether it still has; the addresses for which the kernel is to find that out.
    pub fn suspend(&mut self, node: &Node) -> Vec<IpAddr> {
        let mut stale = Vec::new();
        for (address, accepted) in &mut self.claims {
            let claim = accepted.of(*address);
            let Some(owner) = node.other_owner(&claim) else {
                continue;
            };
            (accepted.probed, accepted.to_probe) = (false, true);
            if matches!(owner, NeighborState::Stale(_)) {
                stale.push(*address);
            }
        }
        stale
    }

    /// The addresses that other hosts on the link are to be asked for, and can be: the kernel knows
    /// none that has them. From now on they count as asked for.
    pub fn take_unprobed(&mut self, node: &Node) -> Vec<IpAddr> {
        let unprobed = self.claims.iter_mut().filter(|(address, accepted)| {
            accepted.to_probe && node.other_owner(&accepted.of(**address)).is_none()
        });
        let taken = unprobed.map(|(address, accepted)| {
            (accepted.probed, accepted.to_probe) = (true, false);
            *address
        });
        taken.collect()
    }

    /// Forgets the claims that the node refuses by now.
    pub fn refuse(&mut self, node: &Node) -> Vec<(Claim, Refusal)> {
        let mut refused = Vec::new();
        self.claims.retain(|address, accepted| {
            let claim = accepted.of(*address);
            let refusal = node.refusal_of(&claim);
            refused.extend(refusal.map(|refusal| (claim, refusal)));
            refusal.is_none()
        });
        refused
    }

    /// Forgets what others than the guests with these MACs claimed.
    pub fn retain(&mut self, macs: &BTreeSet<MacAddr>) {
        self.claims.retain(|_, claim| macs.contains(&claim.mac));
        self.idle_since.retain(|mac, _| macs.contains(mac));
    }

    /// The addresses of the guests that are behind `ports` now, as far as the node takes a route
    /// to them. What IPAM says precedes a claim, which counts once other hosts were asked.
    #[must_use]
    pub fn reachable(&self, ports: &[Port], node: &Node) -> BTreeMap<IpAddr, MacAddr> {
        let active = || ports.iter().filter(|port| !port.parked);
        let macs: BTreeSet<MacAddr> = active().map(|port| port.mac).collect();
        let claimed = self.claims.iter().filter(|(_, claim)| claim.probed);
        let claimed = claimed.map(|(address, claim)| (*address, claim.mac));
        let claimed = claimed.filter(|(_, mac)| macs.contains(mac));
        let given = active().flat_map(|port| {
            let addresses = port.addresses.iter();
            addresses.map(|address| (*address, port.mac))
        });
        let all = claimed.chain(given);
        all.filter(|(address, _)| node.refusal(*address).is_none())
            .collect()
    }
}

impl Accepted {
    fn of(&self, address: IpAddr) -> Claim {
        let mac = self.mac;
        Claim { mac, address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn claim(mac: MacAddr, last: u8) -> Claim {
        Claim {
            mac,
            address: ip(last),
        }
    }

    fn has(mac: MacAddr, last: u8) -> Statement {
        Statement::Has(claim(mac, last))
    }

    fn port(tap: u32, mac: MacAddr) -> Port {
        Port {
            tap,
            mac,
            lower: 2,
            parked: false,
            addresses: Vec::new(),
        }
    }

    fn reachable(guests: &mut Guests, ports: &[Port]) -> BTreeMap<IpAddr, MacAddr> {
        guests.take_unprobed(&node());
        guests.reachable(ports, &node())
    }

    fn node() -> Node {
        Node {
            own: [ip(1)].into(),
            on_link: vec!["10.0.0.0/24".parse().unwrap()],
            ..Node::default()
        }
    }

    #[test]
    fn the_last_claim_counts_and_ipam_precedes_it() {
        let now = Instant::now();
        let mut guests = Guests::default();
        assert!(guests.claim(has(A, 5), now));
        assert!(!guests.claim(has(A, 5), now));
        assert!(guests.claim(has(A, 1), now), "the node's own");
        let mut ports = [port(1, A), port(2, B)];
        assert_eq!(reachable(&mut guests, &ports), [(ip(5), A)].into());
        assert!(guests.claim(has(B, 5), now));
        assert_eq!(reachable(&mut guests, &ports), [(ip(5), B)].into());
        ports[0].addresses = vec![ip(5), ip(1)];
        assert_eq!(reachable(&mut guests, &ports), [(ip(5), A)].into());
    }

    #[test]
    fn a_guest_that_is_elsewhere_is_not_reached_and_one_that_is_gone_is_forgotten() {
        let mut guests = Guests::default();
        guests.claim(has(A, 5), Instant::now());
        let mut ports = [port(1, A)];
        ports[0].addresses = vec![ip(6)];
        ports[0].parked = true;
        assert!(reachable(&mut guests, &ports).is_empty());
        ports[0].parked = false;
        let both = [(ip(5), A), (ip(6), A)].into();
        assert_eq!(reachable(&mut guests, &ports), both);
        guests.retain(&[B].into());
        assert_eq!(reachable(&mut guests, &ports), [(ip(6), A)].into());
    }

    #[test]
    fn of_too_many_claims_the_oldest_goes() {
        let mut guests = Guests::default();
        let start = Instant::now();
        guests.claim(has(B, 99), start);
        for last in 10..40 {
            let at = start + CLAIM_INTERVAL * u32::from(last);
            guests.claim(has(A, last), at);
            // The first one is still in use.
            guests.claim(has(A, 10), at);
        }
        let found = reachable(&mut guests, &[port(1, A), port(2, B)]);
        assert_eq!(found.len(), MAX_ADDRESSES + 1);
        assert!(found.contains_key(&ip(10)) && found.contains_key(&ip(39)));
        assert!(!found.contains_key(&ip(11)));
    }

    /// The node, which knows this of the neighbour with the address 5.
    fn knowing(state: NeighborState) -> Node {
        Node {
            neighbors: [(ip(5), state)].into(),
            ..node()
        }
    }

    #[test]
    fn a_guest_that_looks_whether_an_address_is_free_gets_it_unless_another_has_it() {
        let (mut guests, now) = (Guests::default(), Instant::now());
        let takes = |mac| Statement::Takes(claim(mac, 5));
        let ports = [port(1, A), port(2, B)];
        assert!(guests.claim(takes(A), now));
        assert!(!guests.claim(takes(A), now) && !guests.claim(takes(B), now));
        assert_eq!(reachable(&mut guests, &ports), [(ip(5), A)].into());
        assert!(guests.claim(has(B, 5), now));
        assert_eq!(reachable(&mut guests, &ports), [(ip(5), B)].into());
    }

    #[test]
    fn a_claim_to_what_another_host_has_had_counts_once_that_is_found_to_be_gone() {
        let (mut guests, ports) = (Guests::default(), [port(1, A)]);
        guests.claim(has(A, 5), Instant::now());
        for (state, to_verify) in [
            (NeighborState::Stale(B), vec![ip(5)]),
            (NeighborState::Asked(B), vec![]),
        ] {
            let node = knowing(state);
            assert!(guests.refuse(&node).is_empty());
            assert_eq!(guests.suspend(&node), to_verify);
            assert!(guests.take_unprobed(&node).is_empty());
            assert!(guests.reachable(&ports, &node).is_empty());
        }
        assert!(guests.suspend(&node()).is_empty());
        assert_eq!(guests.take_unprobed(&node()), [ip(5)]);
        assert_eq!(guests.reachable(&ports, &node()), [(ip(5), A)].into());
    }

    #[test]
    fn a_claim_that_another_host_disputes_is_probed_again_and_counts_meanwhile() {
        let (mut guests, ports) = (Guests::default(), [port(1, A)]);
        guests.claim(has(A, 5), Instant::now());
        assert_eq!(guests.take_unprobed(&node()), [ip(5)]);
        assert!(!guests.dispute(&claim(B, 6)) && !guests.dispute(&claim(A, 5)));
        assert!(guests.dispute(&claim(B, 5)));
        assert_eq!(guests.reachable(&ports, &node()), [(ip(5), A)].into());
        assert_eq!(guests.take_unprobed(&node()), [ip(5)]);
        assert!(guests.take_unprobed(&node()).is_empty());
    }

    #[test]
    fn a_claim_counts_once_other_hosts_were_asked_and_while_none_has_the_address() {
        let (mut guests, ports) = (Guests::default(), [port(1, A)]);
        guests.claim(has(A, 5), Instant::now());
        assert!(guests.reachable(&ports, &node()).is_empty());
        assert_eq!(guests.take_unprobed(&node()), [ip(5)]);
        assert!(guests.take_unprobed(&node()).is_empty());
        assert!(guests.refuse(&node()).is_empty());
        assert_eq!(guests.reachable(&ports, &node()), [(ip(5), A)].into());
        let node = knowing(NeighborState::Confirmed(B));
        assert_eq!(guests.refuse(&node), [(claim(A, 5), Refusal::Taken)]);
        assert!(guests.reachable(&ports, &node).is_empty());
    }

    #[test]
    fn a_guest_that_claims_ever_new_addresses_is_slowed_down() {
        let (mut guests, start) = (Guests::default(), Instant::now());
        let mut accepted = |mac, last, at| guests.claim(has(mac, last), at);
        let count = (10..200).filter(|last| accepted(A, *last, start)).count();
        assert_eq!(count, MAX_BURST as usize);
        assert!(accepted(B, 210, start));
        let later = start + CLAIM_INTERVAL;
        assert!(accepted(A, 211, later) && !accepted(A, 212, later));
    }
}
