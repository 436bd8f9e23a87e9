//! Single addresses: one that an interface has without a network, the route to one, and the
//! hardware address of the neighbour that has one.

use std::net::IpAddr;

use nix::errno::Errno;

use super::{
    Socket,
    address::{
        ADDRESS_ADDRESS, ADDRESS_FLAGS, ADDRESS_HEADER, ADDRESS_LOCAL, DELETE_ROUTE, LINK_SCOPE,
        MAIN_TABLE, NEW_ADDRESS, NEW_ROUTE, ROUTE_DESTINATION, ROUTE_HEADER, ROUTE_INTERFACE,
        ROUTE_PRIORITY, ROUTE_SOURCE, UNICAST, address, bytes, family,
    },
    attr::{nested, number},
    batch::{Batch, CREATE, DUMP, EXCLUSIVE, REPLACE},
    error::{NetlinkError, or_existing},
    message::Message,
};
use crate::types::{mac::MacAddr, prefix::Prefix};

/// The protocol of our routes, by which they are known (`rtm_protocol`): in ASCII "m". No routing
/// daemon has it in iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 0x6d;

/// The priority of our routes, which the kernel prefers less the higher it is: a route that an
/// administrator adds to the same address wins.
const PRIORITY: u32 = 1_000_000;
/// Messages of `linux/rtnetlink.h`.
const DELETE_ADDRESS: u16 = 21;
const NEW_NEIGHBOR: u16 = 28;
const DELETE_NEIGHBOR: u16 = 29;
const GET_NEIGHBOR: u16 = 30;
/// Bytes of `struct ndmsg`, and its attributes.
const NEIGHBOR_HEADER: usize = 12;
const NEIGHBOR_ADDRESS: u16 = 1;
const NEIGHBOR_MAC: u16 = 2;
const NEIGHBOR_INTERFACE: u16 = 8;
/// `NUD_PERMANENT`: the kernel does not ask for it, and no frame changes it.
const PERMANENT: u16 = 0x80;
/// `NUD_INCOMPLETE`, `NUD_FAILED` and `NUD_NOARP`: no host has said that it has the address.
const UNCONFIRMED: u16 = 0x01 | 0x20 | 0x40;
/// `NTF_USE`: the kernel asks for the hardware address as if a packet were sent.
const USE: u8 = 0x01;
/// `IFA_F_NODAD` and `IFA_F_NOPREFIXROUTE`.
const NO_DAD: u32 = 0x02;
const NO_PREFIX_ROUTE: u32 = 0x200;

/// A route to one address, on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRoute {
    /// The address.
    pub destination: IpAddr,
    /// The source address of packets by it.
    pub source: IpAddr,
}

/// A neighbour and its hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbor {
    /// The address.
    pub address: IpAddr,
    /// The hardware address.
    pub mac: MacAddr,
}

impl Socket {
    /// Gives an interface an address without its network, of the scope of the link. The kernel does
    /// not look whether another interface or host has it. One that is there is left as it is.
    pub fn add_single_address(&mut self, index: u32, ip: IpAddr) -> Result<(), NetlinkError> {
        or_existing(self.change_single((NEW_ADDRESS, CREATE | EXCLUSIVE), index, ip))
    }

    /// Takes such an address from an interface. One that is not there is no error.
    pub fn delete_single_address(&mut self, index: u32, ip: IpAddr) -> Result<(), NetlinkError> {
        or_absent(self.change_single((DELETE_ADDRESS, 0), index, ip))
    }

    fn change_single(
        &mut self,
        request: (u16, u16),
        index: u32,
        ip: IpAddr,
    ) -> Result<(), NetlinkError> {
        let flags = NO_DAD | NO_PREFIX_ROUTE;
        let mut header = [0; ADDRESS_HEADER];
        (header[0], header[1]) = (family(ip), Prefix::host(ip).length());
        header[3] = LINK_SCOPE;
        header[4..].copy_from_slice(&index.to_ne_bytes());
        self.request_bytes(request, &header, |to| {
            to.put(ADDRESS_LOCAL, &bytes(ip));
            to.put(ADDRESS_ADDRESS, &bytes(ip));
            to.put(ADDRESS_FLAGS, &flags.to_ne_bytes());
        })
    }

    /// Adds a route of ours by an interface. Fails if there is another one of its priority to
    /// the address, by whatever interface.
    pub fn add_address_route(
        &mut self,
        index: u32,
        route: &AddressRoute,
    ) -> Result<(), NetlinkError> {
        self.change_route((NEW_ROUTE, CREATE | EXCLUSIVE), index, route)
    }

    /// Deletes a route of ours. One that is not there is no error.
    pub fn delete_address_route(
        &mut self,
        index: u32,
        route: &AddressRoute,
    ) -> Result<(), NetlinkError> {
        or_absent(self.change_route((DELETE_ROUTE, 0), index, route))
    }

    fn change_route(
        &mut self,
        request: (u16, u16),
        index: u32,
        route: &AddressRoute,
    ) -> Result<(), NetlinkError> {
        let AddressRoute {
            destination,
            source,
        } = *route;
        let mut header = [0; ROUTE_HEADER];
        header[..8].copy_from_slice(&[
            family(destination),
            Prefix::host(destination).length(),
            0,
            0,
            MAIN_TABLE,
            ROUTE_PROTOCOL,
            LINK_SCOPE,
            UNICAST,
        ]);
        self.request_bytes(request, &header, |to| {
            to.put(ROUTE_DESTINATION, &bytes(destination));
            to.put(ROUTE_SOURCE, &bytes(source));
            to.put(ROUTE_INTERFACE, &index.to_ne_bytes());
            to.put(ROUTE_PRIORITY, &PRIORITY.to_ne_bytes());
        })
    }

    /// Fixes the hardware address of a neighbour on an interface.
    pub fn set_neighbor(&mut self, index: u32, neighbor: &Neighbor) -> Result<(), NetlinkError> {
        let header = neighbor_header(index, neighbor.address, PERMANENT);
        self.request_bytes((NEW_NEIGHBOR, CREATE | REPLACE), &header, |to| {
            to.put(NEIGHBOR_ADDRESS, &bytes(neighbor.address));
            to.put(NEIGHBOR_MAC, &neighbor.mac.0);
        })
    }

    /// Forgets a neighbour. One that is not known is no error.
    pub fn delete_neighbor(&mut self, index: u32, ip: IpAddr) -> Result<(), NetlinkError> {
        let header = neighbor_header(index, ip, 0);
        or_absent(self.request_bytes((DELETE_NEIGHBOR, 0), &header, |to| {
            to.put(NEIGHBOR_ADDRESS, &bytes(ip));
        }))
    }

    /// Has the kernel ask on an interface which host has an address that it knows no neighbour for.
    pub fn probe_neighbor(&mut self, index: u32, ip: IpAddr) -> Result<(), NetlinkError> {
        let mut header = neighbor_header(index, ip, 0);
        header[10] = USE;
        self.request_bytes((NEW_NEIGHBOR, CREATE), &header, |to| {
            to.put(NEIGHBOR_ADDRESS, &bytes(ip));
        })
    }

    /// The neighbours on an interface whose hardware address is fixed.
    pub fn neighbors(&mut self, index: u32) -> Result<Vec<Neighbor>, NetlinkError> {
        self.neighbors_in(index, |state| state & PERMANENT != 0)
    }

    /// The neighbours on an interface that have said which hardware address they have, or whose
    /// hardware address is fixed.
    pub fn known_neighbors(&mut self, index: u32) -> Result<Vec<Neighbor>, NetlinkError> {
        self.neighbors_in(index, |state| state != 0 && state & UNCONFIRMED == 0)
    }

    fn neighbors_in(
        &mut self,
        index: u32,
        is_wanted: impl Fn(u16) -> bool,
    ) -> Result<Vec<Neighbor>, NetlinkError> {
        let header = [0; NEIGHBOR_HEADER];
        let write = |batch: &mut Batch| {
            batch.add((GET_NEIGHBOR, DUMP), &header, |to| {
                to.put(NEIGHBOR_INTERFACE, &index.to_ne_bytes());
            });
        };
        self.read_list(write, |message| {
            let (found, state, neighbor) = Neighbor::read(message)?;
            (found == index && is_wanted(state)).then_some(neighbor)
        })
    }
}

impl Neighbor {
    /// The index of an interface, and the state of a neighbour there with a hardware address.
    fn read(message: &Message<'_>) -> Option<(u32, u16, Self)> {
        let payload = message.payload();
        let parts = payload.get(NEIGHBOR_HEADER..)?;
        let state = u16::from_ne_bytes(payload.get(8..10)?.try_into().ok()?);
        let mac = nested(parts, NEIGHBOR_MAC)?;
        let neighbor = Self {
            address: address(nested(parts, NEIGHBOR_ADDRESS)?)?,
            mac: MacAddr(mac.try_into().ok()?),
        };
        Some((number(&payload[4..])?, state, neighbor))
    }
}

/// `struct ndmsg`.
fn neighbor_header(index: u32, ip: IpAddr, state: u16) -> [u8; NEIGHBOR_HEADER] {
    let mut header = [0; NEIGHBOR_HEADER];
    header[0] = family(ip);
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header
}

/// What is not there, and is to go, is gone.
fn or_absent(deleted: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match deleted {
        Err(error)
            if matches!(
                error.errno(),
                Some(Errno::EADDRNOTAVAIL | Errno::ESRCH | Errno::ENOENT | Errno::ENODEV)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}
