//! Single addresses: one that an interface has without a network, and the route to one.

use std::net::IpAddr;

use super::{
    Socket,
    address::{
        ADDRESS_FLAGS, DELETE_ADDRESS, DELETE_ROUTE, LINK_SCOPE, MAIN_TABLE, NEW_ADDRESS,
        NEW_ROUTE, ROUTE_DESTINATION, ROUTE_HEADER, ROUTE_INTERFACE, ROUTE_PRIORITY, ROUTE_SOURCE,
        UNICAST, address_header, bytes, family, write_address,
    },
    batch::{CREATE, EXCLUSIVE},
    error::{NetlinkError, or_absent, or_existing},
};
use crate::types::{ip_config::InterfaceAddress, prefix::Prefix};

/// The protocol of our routes, by which they are known (`rtm_protocol`): in ASCII "m". No routing
/// daemon has it in iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 0x6d;

/// The priority of our routes, which the kernel prefers less the higher it is: a route that an
/// administrator adds to the same address wins.
const PRIORITY: u32 = 1_000_000;
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
        let length = Prefix::host(ip).length();
        let header = address_header(index, &InterfaceAddress { ip, length }, LINK_SCOPE);
        self.request_bytes(request, &header, |to| {
            write_address(to, ip);
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
}
