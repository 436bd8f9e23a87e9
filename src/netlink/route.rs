//! Addresses and default routes, as far as lower devices are chosen by them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    Socket,
    attr::{nested, number},
    batch::DUMP,
    error::NetlinkError,
    message::Message,
};

/// `RTM_GETADDR` and `RTM_GETROUTE` of `linux/rtnetlink.h`.
const GET_ADDRESS: u16 = 22;
const GET_ROUTE: u16 = 26;
/// `AF_INET` and `AF_INET6`.
const INET: u8 = 2;
const INET6: u8 = 10;
/// Bytes of `struct ifaddrmsg`, `struct rtmsg` and `struct rtnexthop`.
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const HOP_HEADER: usize = 8;
/// `IFA_ADDRESS`; `IFA_LOCAL`, which is the own address where the other is that of a peer.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
/// `RTA_OIF`, `RTA_PRIORITY`, `RTA_MULTIPATH`, `RTA_TABLE`.
const INTERFACE: u16 = 4;
const PRIORITY: u16 = 6;
const MULTIPATH: u16 = 9;
const TABLE: u16 = 15;
/// `RT_TABLE_MAIN`, `RTN_UNICAST`.
const MAIN: u32 = 254;
const UNICAST: u8 = 1;

/// A default route: its priority, and the indexes of its interfaces.
type DefaultRoute = (u32, Vec<u32>);

impl Socket {
    /// All addresses of the socket's network namespace, each with the index of its interface.
    pub fn all_addresses(&mut self) -> Result<Vec<(u32, IpAddr)>, NetlinkError> {
        let header = [0; ADDRESS_HEADER];
        self.read_list(
            |batch| batch.add((GET_ADDRESS, DUMP), &header, |_| {}),
            |message| address(message.payload()),
        )
    }

    /// The indexes of the interfaces of the default route that the kernel prefers: the one with
    /// the lowest priority number in the main table, of IPv4 if there is one.
    pub fn default_route(&mut self) -> Result<BTreeSet<u32>, NetlinkError> {
        for family in [INET, INET6] {
            let routes = self.default_routes(family)?;
            let lowest = routes.iter().map(|(priority, _)| *priority).min();
            let preferred = routes.into_iter();
            let preferred = preferred.filter(|(priority, _)| Some(*priority) == lowest);
            let indexes: BTreeSet<u32> = preferred.flat_map(|(_, indexes)| indexes).collect();
            if !indexes.is_empty() {
                return Ok(indexes);
            }
        }
        Ok(BTreeSet::new())
    }

    fn default_routes(&mut self, family: u8) -> Result<Vec<DefaultRoute>, NetlinkError> {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family;
        self.read_list(
            |batch| batch.add((GET_ROUTE, DUMP), &header, |_| {}),
            |message: &Message<'_>| default_route(message.payload()),
        )
    }
}

fn address(payload: &[u8]) -> Option<(u32, IpAddr)> {
    let index = number(payload.get(4..)?)?;
    let attributes = payload.get(ADDRESS_HEADER..)?;
    let bytes = nested(attributes, LOCAL).or_else(|| nested(attributes, ADDRESS))?;
    Some((index, ip_address(bytes)?))
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| Ipv4Addr::from(bytes).into());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|bytes| Ipv6Addr::from(bytes).into());
    v4.or_else(|_| v6()).ok()
}

fn default_route(payload: &[u8]) -> Option<DefaultRoute> {
    let [_, prefix, _, _, table, _, _, kind, ..] = *payload else {
        return None;
    };
    let attributes = payload.get(ROUTE_HEADER..)?;
    let table = nested(attributes, TABLE).map_or(Some(table.into()), number)?;
    if prefix != 0 || kind != UNICAST || table != MAIN {
        return None;
    }
    let interface = nested(attributes, INTERFACE).and_then(number);
    let hops = nested(attributes, MULTIPATH).map(hops).unwrap_or_default();
    let priority = nested(attributes, PRIORITY).map_or(Some(0), number)?;
    Some((priority, interface.into_iter().chain(hops).collect()))
}

/// The interfaces of the hops of a route with several: `struct rtnexthop`, each with attributes.
fn hops(mut rest: &[u8]) -> Vec<u32> {
    let mut indexes = Vec::new();
    while let [a, b, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let index = rest.get(4..).and_then(number);
        indexes.extend(index.filter(|_| length >= HOP_HEADER));
        let after = rest.get(length.max(HOP_HEADER).next_multiple_of(4)..);
        rest = after.unwrap_or_default();
    }
    indexes
}
