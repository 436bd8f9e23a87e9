//! Neighbours: which hardware address has an IP address, as far as the kernel knows.

use std::net::IpAddr;

use nix::errno::Errno;

use super::{
    Socket,
    address::{address, bytes, family},
    attr::{nested, number},
    batch::{Batch, CREATE, DUMP, REPLACE},
    error::{NetlinkError, or_absent},
    message::Message,
};
use crate::types::mac::MacAddr;

/// Messages of `linux/rtnetlink.h`.
pub(super) const NEW_NEIGHBOR: u16 = 28;
const DELETE_NEIGHBOR: u16 = 29;
const GET_NEIGHBOR: u16 = 30;
/// Bytes of `struct ndmsg`, and its attributes.
const HEADER: usize = 12;
const ADDRESS: u16 = 1;
const HARDWARE_ADDRESS: u16 = 2;
const INTERFACE: u16 = 8;
/// States of `linux/neighbour.h`.
const REACHABLE: u16 = 0x02;
const STALE: u16 = 0x04;
const DELAY: u16 = 0x08;
const PROBE: u16 = 0x10;
const FAILED: u16 = 0x20;
/// The kernel does not ask for it, and no frame changes it.
const PERMANENT: u16 = 0x80;
/// `NTF_USE`: the kernel asks for the hardware address as if a packet were sent.
const USE: u8 = 0x01;

/// A neighbour and its hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbor {
    /// The address.
    pub address: IpAddr,
    /// The hardware address.
    pub mac: MacAddr,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighborState {
    /// It has this hardware address, and has said so within the last half minute or so.
    Confirmed(MacAddr),
    /// It has had it, and the kernel is asking whether it still has.
    Asked(MacAddr),
    /// It has had it, perhaps long ago.
    Stale(MacAddr),
    /// No host answered the kernel.
    Failed,
}

/// The state of a neighbour on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownNeighbor {
    /// The index of the interface.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// What the kernel knows of it.
    pub state: NeighborState,
}

impl NeighborState {
    /// The hardware address that it has, or has had.
    #[must_use]
    pub fn mac(self) -> Option<MacAddr> {
        match self {
            Self::Confirmed(mac) | Self::Asked(mac) | Self::Stale(mac) => Some(mac),
            Self::Failed => None,
        }
    }
}

impl Socket {
    /// Fixes the hardware address of a neighbour on an interface.
    pub fn set_neighbor(&mut self, index: u32, neighbor: &Neighbor) -> Result<(), NetlinkError> {
        let header = header(index, neighbor.address, PERMANENT);
        self.request_bytes((NEW_NEIGHBOR, CREATE | REPLACE), &header, |to| {
            to.put(ADDRESS, &bytes(neighbor.address));
            to.put(HARDWARE_ADDRESS, &neighbor.mac.0);
        })
    }

    /// Forgets a neighbour. One that is not known is no error.
    pub fn delete_neighbor(&mut self, index: u32, ip: IpAddr) -> Result<(), NetlinkError> {
        let header = header(index, ip, 0);
        or_absent(self.request_bytes((DELETE_NEIGHBOR, 0), &header, |to| {
            to.put(ADDRESS, &bytes(ip));
        }))
    }

    /// Has the kernel ask on an interface which host has an address that it knows no neighbour for.
    pub fn probe_neighbor(&mut self, index: u32, ip: IpAddr) -> Result<(), NetlinkError> {
        let mut header = header(index, ip, 0);
        header[10] = USE;
        self.request_bytes((NEW_NEIGHBOR, CREATE), &header, |to| {
            to.put(ADDRESS, &bytes(ip));
        })
    }

    /// Has the kernel ask a neighbour whose state is [`NeighborState::Stale`] whether it still has its
    /// address. One that the kernel has forgotten is no error.
    pub fn verify_neighbor(&mut self, index: u32, ip: IpAddr) -> Result<(), NetlinkError> {
        let header = header(index, ip, PROBE);
        let asked = self.request_bytes((NEW_NEIGHBOR, 0), &header, |to| {
            to.put(ADDRESS, &bytes(ip));
        });
        match asked {
            // It has no hardware address any more.
            Err(error) if error.errno() == Some(Errno::EINVAL) => Ok(()),
            other => or_absent(other),
        }
    }

    /// The neighbours on an interface whose hardware address is fixed.
    pub fn neighbors(&mut self, index: u32) -> Result<Vec<Neighbor>, NetlinkError> {
        self.neighbors_of(index, |message| {
            let (found, state) = read(message)?;
            let mac = found.state.mac().filter(|_| state & PERMANENT != 0)?;
            let address = found.address;
            (found.interface == index).then_some(Neighbor { address, mac })
        })
    }

    /// The neighbours on an interface that have said which hardware address they have, or whose
    /// hardware address is fixed.
    pub fn known_neighbors(&mut self, index: u32) -> Result<Vec<KnownNeighbor>, NetlinkError> {
        self.neighbors_of(index, |message| {
            let known = KnownNeighbor::read(message)?;
            (known.interface == index && known.state.mac().is_some()).then_some(known)
        })
    }

    fn neighbors_of<T>(
        &mut self,
        index: u32,
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let header = [0; HEADER];
        let write = |batch: &mut Batch| {
            batch.add((GET_NEIGHBOR, DUMP), &header, |to| {
                to.put(INTERFACE, &index.to_ne_bytes());
            });
        };
        self.read_list(write, read)
    }
}

impl KnownNeighbor {
    /// Reads a message of the kernel. None where the kernel has not found anything out yet, or has
    /// nothing to find out.
    pub(super) fn read(message: &Message<'_>) -> Option<Self> {
        read(message).map(|(known, _)| known)
    }
}

/// A neighbour, and its state in the kernel's words.
fn read(message: &Message<'_>) -> Option<(KnownNeighbor, u16)> {
    let payload = message.payload();
    let parts = payload.get(HEADER..)?;
    let state = u16::from_ne_bytes(payload.get(8..10)?.try_into().ok()?);
    let mac = || Some(MacAddr(nested(parts, HARDWARE_ADDRESS)?.try_into().ok()?));
    let known = KnownNeighbor {
        interface: number(&payload[4..])?,
        address: address(nested(parts, ADDRESS)?)?,
        state: match state {
            FAILED => NeighborState::Failed,
            _ if state & (REACHABLE | PERMANENT) != 0 => NeighborState::Confirmed(mac()?),
            _ if state & (DELAY | PROBE) != 0 => NeighborState::Asked(mac()?),
            _ if state & STALE != 0 => NeighborState::Stale(mac()?),
            _ => return None,
        },
    };
    Some((known, state))
}

/// `struct ndmsg`.
fn header(index: u32, ip: IpAddr, state: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = family(ip);
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header
}
