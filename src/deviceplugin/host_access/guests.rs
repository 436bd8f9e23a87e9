//! The addresses of the guests on a lower device: by IPAM, or as they say themselves. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use super::{claim::Claim, node::Node};
use crate::types::mac::MacAddr;

/// Addresses of a guest that are kept at most, of those that it claims. A guest with IPv6 has a
/// few, of which some change daily.
const MAX_ADDRESSES: usize = 16;

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
pub struct Guests(BTreeMap<IpAddr, (MacAddr, Instant)>);

impl Guests {
    /// Takes note of a claim, in place of one that another guest made to the address. Of too many
    /// claims of one guest the oldest goes. False if nothing is new.
    pub fn claim(&mut self, claim: Claim, now: Instant) -> bool {
        let Claim { mac, address } = claim;
        let former = self.0.insert(address, (mac, now));
        if former.is_some_and(|(former, _)| former == mac) {
            return false;
        }
        let of_guest = self.0.iter().filter(|(_, (other, _))| *other == mac);
        if of_guest.clone().count() > MAX_ADDRESSES {
            let oldest = of_guest.min_by_key(|(_, (_, at))| *at);
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.0.remove(&oldest);
            }
        }
        true
    }

    /// Forgets what others than the guests with these MACs claimed.
    pub fn retain(&mut self, macs: &BTreeSet<MacAddr>) {
        self.0.retain(|_, (mac, _)| macs.contains(mac));
    }

    /// The addresses of the guests that are behind `ports` now, as far as the node takes a route
    /// to them. What IPAM says precedes a claim.
    #[must_use]
    pub fn reachable(&self, ports: &[Port], node: &Node) -> BTreeMap<IpAddr, MacAddr> {
        let active = || ports.iter().filter(|port| !port.parked);
        let macs: BTreeSet<MacAddr> = active().map(|port| port.mac).collect();
        let claimed = self.0.iter().map(|(address, (mac, _))| (*address, *mac));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    fn port(tap: u32, mac: MacAddr) -> Port {
        Port {
            tap,
            mac,
            lower: 2,
            parked: false,
            addresses: Vec::new(),
        }
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
        assert!(guests.claim(claim(A, 5), now));
        assert!(!guests.claim(claim(A, 5), now));
        assert!(guests.claim(claim(A, 1), now), "the node's own");
        let mut ports = [port(1, A), port(2, B)];
        assert_eq!(guests.reachable(&ports, &node()), [(ip(5), A)].into());
        assert!(guests.claim(claim(B, 5), now));
        assert_eq!(guests.reachable(&ports, &node()), [(ip(5), B)].into());
        ports[0].addresses = vec![ip(5), ip(1)];
        assert_eq!(guests.reachable(&ports, &node()), [(ip(5), A)].into());
    }

    #[test]
    fn a_guest_that_is_elsewhere_is_not_reached_and_one_that_is_gone_is_forgotten() {
        let mut guests = Guests::default();
        guests.claim(claim(A, 5), Instant::now());
        let mut ports = [port(1, A)];
        ports[0].addresses = vec![ip(6)];
        ports[0].parked = true;
        assert!(guests.reachable(&ports, &node()).is_empty());
        ports[0].parked = false;
        let both = [(ip(5), A), (ip(6), A)].into();
        assert_eq!(guests.reachable(&ports, &node()), both);
        guests.retain(&[B].into());
        assert_eq!(guests.reachable(&ports, &node()), [(ip(6), A)].into());
    }

    #[test]
    fn of_too_many_claims_the_oldest_goes() {
        let mut guests = Guests::default();
        let start = Instant::now();
        guests.claim(claim(B, 99), start);
        for last in 10..40 {
            let at = start + Duration::from_secs(last.into());
            guests.claim(claim(A, last), at);
            // The first one is still in use.
            guests.claim(claim(A, 10), at);
        }
        let found = guests.reachable(&[port(1, A), port(2, B)], &node());
        assert_eq!(found.len(), MAX_ADDRESSES + 1);
        assert!(found.contains_key(&ip(10)) && found.contains_key(&ip(39)));
        assert!(!found.contains_key(&ip(11)));
    }
}
