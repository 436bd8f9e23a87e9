//! IP addresses of interfaces, and the routes by them.

use std::net::IpAddr;

use super::{
    Socket,
    attr::{attributes, nested, number},
    batch::{Attributes, CREATE, DUMP, EXCLUSIVE},
    error::{NetlinkError, or_absent, or_existing},
    message::Message,
};
use crate::types::{
    ip_config::{InterfaceAddress, Route},
    prefix::Prefix,
};

/// Messages of `linux/rtnetlink.h`.
pub(super) const NEW_ADDRESS: u16 = 20;
pub(super) const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
pub(super) const NEW_ROUTE: u16 = 24;
pub(super) const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
/// Bytes of `struct ifaddrmsg` and of `struct rtmsg`.
const ADDRESS_HEADER: usize = 8;
pub(super) const ROUTE_HEADER: usize = 12;

/// `AF_INET` and `AF_INET6`.
const INET: u8 = 2;
const INET6: u8 = 10;

/// Attributes. What each belongs to stands in its name.
const ADDRESS_ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_BROADCAST: u16 = 4;
pub(super) const ADDRESS_FLAGS: u16 = 8;
pub(super) const ROUTE_DESTINATION: u16 = 1;
pub(super) const ROUTE_INTERFACE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
pub(super) const ROUTE_PRIORITY: u16 = 6;
pub(super) const ROUTE_SOURCE: u16 = 7;
const ROUTE_METRICS: u16 = 8;
const ROUTE_MULTIPATH: u16 = 9;
const ROUTE_TABLE: u16 = 15;
const METRIC_MTU: u16 = 2;
const METRIC_ADVMSS: u16 = 8;

/// `IFA_F_DADFAILED` and `IFA_F_TENTATIVE`.
const DUPLICATE: u32 = 0x08;
const TENTATIVE: u32 = 0x40;
/// `RT_TABLE_MAIN`, `RTPROT_BOOT`, `RTN_UNICAST`, `RTNH_F_ONLINK`, `RT_SCOPE_LINK`.
pub(super) const MAIN_TABLE: u8 = 254;
const BOOT: u8 = 3;
pub(super) const UNICAST: u8 = 1;
const ONLINK: u32 = 4;
pub(super) const LINK_SCOPE: u8 = 253;

/// An address that an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssignedAddress {
    /// The address.
    pub address: InterfaceAddress,
    /// Whether the kernel still looks for another host that has it.
    pub tentative: bool,
    /// Whether it found one.
    pub duplicate: bool,
}

/// A way that packets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstalledRoute {
    /// Where it leads.
    pub destination: Prefix,
    /// The next hop; none if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The index of the interface; none for a route of the kernel's own.
    pub interface: Option<u32>,
    /// The routing table.
    pub table: u32,
    /// The priority; 0 is the highest.
    pub priority: u32,
    /// The address that packets by it have as their source; the kernel's choice if none.
    pub source: Option<IpAddr>,
    /// Who made it, as `rtm_protocol` of `linux/rtnetlink.h`.
    pub protocol: u8,
}

impl InstalledRoute {
    /// Whether it leads everywhere, for all packets that no rule sends by another table.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.destination.length() == 0 && self.is_main()
    }

    /// Whether it is in the main table.
    #[must_use]
    pub fn is_main(&self) -> bool {
        self.table == u32::from(MAIN_TABLE)
    }
}

impl Socket {
    /// Gives an interface an address. One that it has already is left as it is.
    pub fn add_address(
        &mut self,
        index: u32,
        address: &InterfaceAddress,
    ) -> Result<(), NetlinkError> {
        let request = (NEW_ADDRESS, CREATE | EXCLUSIVE);
        let header = address_header(index, address, 0);
        let added = self.request_bytes(request, &header, |to| {
            write_address(to, address.ip);
            if let Some(broadcast) = address.broadcast() {
                to.put(ADDRESS_BROADCAST, &bytes(broadcast));
            }
        });
        or_existing(added)
    }

    /// Takes an address from an interface, with its network. One that is not there is no error.
    pub fn delete_address(
        &mut self,
        index: u32,
        address: &InterfaceAddress,
    ) -> Result<(), NetlinkError> {
        let header = address_header(index, address, 0);
        let write = |to: &mut Attributes<'_>| write_address(to, address.ip);
        or_absent(self.request_bytes((DELETE_ADDRESS, 0), &header, write))
    }

    /// All addresses of the socket's network namespace, each with the index of its interface.
    pub fn all_addresses(&mut self) -> Result<Vec<(u32, IpAddr)>, NetlinkError> {
        let header = [0; ADDRESS_HEADER];
        let read = |message: &Message<'_>| {
            let (index, found) = AssignedAddress::read(message)?;
            Some((index, found.address.ip))
        };
        self.read_list(
            |batch| batch.add((GET_ADDRESS, DUMP), &header, |_| ()),
            read,
        )
    }

    /// The addresses that an interface has.
    pub fn addresses_of(&mut self, index: u32) -> Result<Vec<AssignedAddress>, NetlinkError> {
        let mut header = [0; ADDRESS_HEADER];
        header[4..].copy_from_slice(&index.to_ne_bytes());
        let read = |message: &Message<'_>| Some(AssignedAddress::read(message)?.1);
        self.read_list(
            |batch| batch.add((GET_ADDRESS, DUMP), &header, |_| ()),
            read,
        )
    }

    /// Adds a route by an interface, beside others to the same destination. One that is there
    /// already is left as it is.
    pub fn add_route(&mut self, index: u32, route: &Route) -> Result<(), NetlinkError> {
        let destination = route.destination;
        let family = if destination.is_ipv4() { INET } else { INET6 };
        let default = if route.gateway.is_some() {
            0
        } else {
            LINK_SCOPE
        };
        let scope = route.scope.unwrap_or(default);
        let flags = if route.onlink { ONLINK } else { 0 };
        let mut header = [0; ROUTE_HEADER];
        header[..8].copy_from_slice(&[
            family,
            destination.length(),
            0,
            0,
            MAIN_TABLE,
            BOOT,
            scope,
            UNICAST,
        ]);
        header[8..].copy_from_slice(&flags.to_ne_bytes());
        let added = self.request_bytes((NEW_ROUTE, CREATE), &header, |to| {
            to.put(ROUTE_DESTINATION, &destination.bytes());
            to.put(ROUTE_INTERFACE, &index.to_ne_bytes());
            write_options(to, route);
        });
        or_existing(added)
    }

    /// The routes of the socket's network namespace, of all tables, that are `wanted`. No other is
    /// kept: a router has a million.
    pub fn routes(
        &mut self,
        wanted: impl Fn(&InstalledRoute) -> bool,
    ) -> Result<Vec<InstalledRoute>, NetlinkError> {
        let header = [0; ROUTE_HEADER];
        let routes = self.read_list(
            |batch| batch.add((GET_ROUTE, DUMP), &header, |_| ()),
            |message| {
                let mut routes = InstalledRoute::read(message)?;
                routes.retain(&wanted);
                (!routes.is_empty()).then_some(routes)
            },
        )?;
        Ok(routes.into_iter().flatten().collect())
    }
}

/// `struct ifaddrmsg`.
pub(super) fn address_header(
    index: u32,
    address: &InterfaceAddress,
    scope: u8,
) -> [u8; ADDRESS_HEADER] {
    let mut header = [0; ADDRESS_HEADER];
    (header[0], header[1], header[3]) = (family(address.ip), address.length, scope);
    header[4..].copy_from_slice(&index.to_ne_bytes());
    header
}

pub(super) fn write_address(to: &mut Attributes<'_>, ip: IpAddr) {
    to.put(ADDRESS_LOCAL, &bytes(ip));
    to.put(ADDRESS_ADDRESS, &bytes(ip));
}

fn write_options(to: &mut Attributes<'_>, route: &Route) {
    if let Some(gateway) = route.gateway {
        to.put(ROUTE_GATEWAY, &bytes(gateway));
    }
    for (kind, option) in [(ROUTE_PRIORITY, route.priority), (ROUTE_TABLE, route.table)] {
        if let Some(number) = option {
            to.put(kind, &number.to_ne_bytes());
        }
    }
    if route.mtu.is_none() && route.advmss.is_none() {
        return;
    }
    to.nest(ROUTE_METRICS, |to| {
        for (kind, option) in [(METRIC_MTU, route.mtu), (METRIC_ADVMSS, route.advmss)] {
            if let Some(number) = option {
                to.put(kind, &number.to_ne_bytes());
            }
        }
    });
}

impl AssignedAddress {
    /// The index of an interface, and an address that it has.
    fn read(message: &Message<'_>) -> Option<(u32, Self)> {
        let payload = message.payload();
        let parts = payload.get(ADDRESS_HEADER..)?;
        // On a link between two hosts ADDRESS is the other's. IPv6 has no LOCAL otherwise.
        let ip = nested(parts, ADDRESS_LOCAL).or_else(|| nested(parts, ADDRESS_ADDRESS))?;
        let flags = nested(parts, ADDRESS_FLAGS).and_then(number);
        let flags = flags.unwrap_or_else(|| u32::from(payload[2]));
        let address = Self {
            address: InterfaceAddress {
                ip: address(ip)?,
                length: payload[1],
            },
            tentative: flags & TENTATIVE != 0,
            duplicate: flags & DUPLICATE != 0,
        };
        Some((number(&payload[4..])?, address))
    }
}

impl InstalledRoute {
    /// The ways of a route: one, or as many as it has next hops.
    fn read(message: &Message<'_>) -> Option<Vec<Self>> {
        let payload = message.payload();
        let parts = payload.get(ROUTE_HEADER..)?;
        let (family, length, kind) = (payload[0], payload[1], payload[7]);
        if kind != UNICAST || ![INET, INET6].contains(&family) {
            return None;
        }
        let any = if family == INET {
            &[0; 4][..]
        } else {
            &[0; 16]
        };
        let destination = address(nested(parts, ROUTE_DESTINATION).unwrap_or(any))?;
        let table = nested(parts, ROUTE_TABLE).and_then(number);
        let route = |(interface, gateway): Hop<'_>| Self {
            destination: Prefix::around(destination, length),
            gateway: gateway.and_then(address),
            interface: interface.and_then(number),
            table: table.unwrap_or_else(|| u32::from(payload[4])),
            priority: nested(parts, ROUTE_PRIORITY)
                .and_then(number)
                .unwrap_or_default(),
            source: nested(parts, ROUTE_SOURCE).and_then(address),
            protocol: payload[5],
        };
        if let Some(hops) = nested(parts, ROUTE_MULTIPATH) {
            return Some(next_hops(hops).map(route).collect());
        }
        let hop = [ROUTE_INTERFACE, ROUTE_GATEWAY].map(|kind| nested(parts, kind));
        Some(vec![route(hop.into())])
    }
}

/// The index of an interface and the address of a gateway, as the kernel wrote them.
type Hop<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// Each `struct rtnexthop`, which begins with its length like an attribute, and has the index of the
/// interface, then attributes.
fn next_hops(hops: &[u8]) -> impl Iterator<Item = Hop<'_>> {
    attributes(hops).map(|hop| {
        let attributes = hop.payload.get(4..).unwrap_or_default();
        (hop.payload.get(..4), nested(attributes, ROUTE_GATEWAY))
    })
}

pub(super) fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { INET } else { INET6 }
}

pub(super) fn bytes(ip: IpAddr) -> Vec<u8> {
    Prefix::host(ip).bytes()
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}
