//! What a node has on a lower device: its addresses and networks. By them it is decided which
//! addresses of guests it takes a route to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use super::claim::Claim;
use crate::{
    netlink::{InstalledRoute, NeighborState, NetlinkError, ROUTE_PROTOCOL, Socket},
    types::{
        ip_config::InterfaceAddress,
        prefix::{Prefix, is_ipv6_link_local},
    },
};

/// A node's addresses and networks on a lower device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its addresses there, but those of the link alone.
    pub addresses: Vec<InterfaceAddress>,
    /// All addresses of the node.
    pub own: BTreeSet<IpAddr>,
    /// The networks whose hosts are on the link.
    pub on_link: Vec<Prefix>,
    /// The gateways of its routes by the lower device.
    pub gateways: BTreeSet<IpAddr>,
    /// The single addresses that other routes lead to.
    pub routed: BTreeSet<IpAddr>,
    /// The hosts that the node knows by the lower device.
    pub neighbors: BTreeMap<IpAddr, NeighborState>,
}

/// Why the node takes no route to an address of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is the node's own.
    Own,
    /// It is that of a gateway.
    Gateway,
    /// It is in no network that the node has on the lower device.
    NotOnLink,
    /// The node has a route to it.
    Routed,
    /// Another host on the link has it.
    Taken,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "is an address of the node",
            Self::Gateway => "is the address of a gateway of the node",
            Self::NotOnLink => "is not in a network that the node has on the lower device",
            Self::Routed => "has a route of the node's own",
            Self::Taken => "is the address of another host on the link",
        })
    }
}

impl Node {
    /// Asks the kernel. Of the routes by the interface `access` those of ours do not count.
    pub fn read(host: &mut Socket, lower: u32, access: u32) -> Result<Self, NetlinkError> {
        let addresses = host.addresses_of(lower)?.into_iter();
        let usable = addresses.filter(|found| !found.tentative && !found.duplicate);
        let addresses = usable.map(|found| found.address);
        let is_ours = |route: &InstalledRoute| {
            route.interface == Some(access) && route.protocol == ROUTE_PROTOCOL
        };
        let routes = host.routes(|route| {
            let is_single = is_single(&route.destination);
            route.is_main() && !is_ours(route) && (is_single || route.interface == Some(lower))
        })?;
        let by_lower = || routes.iter().filter(|route| route.interface == Some(lower));
        let on_link = by_lower().filter(|route| route.gateway.is_none());
        let on_link = on_link.map(|route| route.destination);
        let single = routes.iter().filter_map(|route| route.destination.single());
        Ok(Self {
            addresses: addresses.filter(|own| is_routable(own.ip)).collect(),
            own: host
                .all_addresses()?
                .into_iter()
                .map(|(_, ip)| ip)
                .collect(),
            on_link: on_link.filter(|prefix| prefix.length() > 0).collect(),
            gateways: by_lower().filter_map(|route| route.gateway).collect(),
            routed: single.collect(),
            neighbors: host
                .known_neighbors(lower)?
                .into_iter()
                .map(|known| (known.address, known.state))
                .collect(),
        })
    }

    /// Why it takes no route to an address; none if it does.
    #[must_use]
    pub fn refusal(&self, ip: IpAddr) -> Option<Refusal> {
        let is_host = |prefix: &Prefix| prefix.contains(ip) && is_host_of(prefix, ip);
        if self.own.contains(&ip) {
            Some(Refusal::Own)
        } else if self.gateways.contains(&ip) {
            Some(Refusal::Gateway)
        } else if self.routed.contains(&ip) {
            Some(Refusal::Routed)
        } else if !is_routable(ip) || !self.on_link.iter().any(is_host) {
            Some(Refusal::NotOnLink)
        } else {
            None
        }
    }

    /// Why it takes no route to an address that a guest claims; none if it does.
    #[must_use]
    pub fn refusal_of(&self, claim: &Claim) -> Option<Refusal> {
        let is_taken = matches!(self.other_owner(claim), Some(NeighborState::Confirmed(_)));
        self.refusal(claim.address)
            .or(is_taken.then_some(Refusal::Taken))
    }

    /// What the kernel knows of the address that a guest claims, where that is of another host.
    #[must_use]
    pub fn other_owner(&self, claim: &Claim) -> Option<NeighborState> {
        let known = self.neighbors.get(&claim.address).copied();
        known.filter(|known| known.mac() != Some(claim.mac))
    }

    /// The address that the node has as its source to this one: that of the same network, or the
    /// first. None if it has none of the family.
    #[must_use]
    pub fn source(&self, ip: IpAddr) -> Option<IpAddr> {
        let same_family = || {
            let all = self.addresses.iter();
            all.filter(|own| own.ip.is_ipv4() == ip.is_ipv4())
        };
        let mut same_network = same_family().filter(|own| own.network().contains(ip));
        let source = same_network.next().or_else(|| same_family().next());
        source.map(|own| own.ip)
    }
}

fn is_single(prefix: &Prefix) -> bool {
    prefix.single().is_some()
}

/// Whether it is the address of one host, also beyond the link.
fn is_routable(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !(is_broadcast
        || is_ipv6_link_local(ip)
        || ip.is_loopback()
        || ip.is_multicast()
        || ip.is_unspecified())
}

/// Whether it is neither the first nor the last address of an IPv4 network: those mean all of it.
fn is_host_of(prefix: &Prefix, ip: IpAddr) -> bool {
    let network = InterfaceAddress {
        ip,
        length: prefix.length(),
    };
    let is_first = Prefix::host(ip).bytes() == prefix.bytes();
    network
        .broadcast()
        .is_none_or(|last| last != ip && !is_first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::mac::MacAddr;

    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node() -> Node {
        let addresses = ["10.0.0.1/24", "192.0.2.1/32", "2001:db8::1/64"];
        Node {
            addresses: addresses.map(|text| text.parse().unwrap()).into(),
            own: ["10.0.0.1", "192.0.2.1", "2001:db8::1", "10.0.0.77"]
                .map(ip)
                .into(),
            on_link: ["10.0.0.0/24", "2001:db8::/64", "203.0.113.8/31"]
                .map(|text| text.parse().unwrap())
                .into(),
            gateways: ["10.0.0.254", "2001:db8::fe"].map(ip).into(),
            routed: ["10.0.0.99"].map(ip).into(),
            neighbors: [
                (ip("10.0.0.9"), NeighborState::Confirmed(OTHER)),
                (ip("10.0.0.10"), NeighborState::Stale(OTHER)),
            ]
            .into(),
        }
    }

    #[test]
    fn takes_no_route_to_what_is_not_a_guests() {
        use Refusal::{Gateway, NotOnLink, Own, Routed};
        for (address, refusal) in [
            ("10.0.0.5", None),
            ("203.0.113.8", None),
            ("2001:db8::5", None),
            ("10.0.0.1", Some(Own)),
            ("10.0.0.77", Some(Own)),
            ("2001:db8::1", Some(Own)),
            ("10.0.0.254", Some(Gateway)),
            ("2001:db8::fe", Some(Gateway)),
            ("10.0.0.99", Some(Routed)),
            ("10.0.1.5", Some(NotOnLink)),
            ("10.0.0.0", Some(NotOnLink)),
            ("10.0.0.255", Some(NotOnLink)),
            ("127.0.0.1", Some(NotOnLink)),
            ("224.0.0.5", Some(NotOnLink)),
            ("255.255.255.255", Some(NotOnLink)),
            ("0.0.0.0", Some(NotOnLink)),
            ("fe80::5", Some(NotOnLink)),
            ("ff02::1", Some(NotOnLink)),
            ("::1", Some(NotOnLink)),
            ("8.8.8.8", Some(NotOnLink)),
        ] {
            assert_eq!(node().refusal(ip(address)), refusal, "{address}");
        }
    }

    #[test]
    fn a_guest_does_not_get_the_address_of_another_host() {
        let guest = MacAddr([2, 0, 0, 0, 0, 5]);
        for (mac, address, refusal) in [
            (guest, "10.0.0.5", None),
            (guest, "10.0.0.9", Some(Refusal::Taken)),
            // The kernel may find that it is gone.
            (guest, "10.0.0.10", None),
            (OTHER, "10.0.0.9", None),
            (OTHER, "10.0.0.1", Some(Refusal::Own)),
        ] {
            let address = ip(address);
            assert_eq!(node().refusal_of(&Claim { mac, address }), refusal);
        }
    }

    #[test]
    fn the_source_is_of_the_same_network() {
        let source = |text| node().source(ip(text)).map(|ip| ip.to_string());
        assert_eq!(source("10.0.0.5").as_deref(), Some("10.0.0.1"));
        assert_eq!(source("192.0.2.9").as_deref(), Some("10.0.0.1"));
        assert_eq!(source("2001:db8::5").as_deref(), Some("2001:db8::1"));
        assert_eq!(Node::default().source(ip("10.0.0.5")), None);
    }
}
