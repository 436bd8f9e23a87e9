//! The sockets of host access: what guests say of their addresses, and what other hosts on the wire
//! say of those.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use socket2::SockFilter;

use super::claim::{self, Statement};
use crate::{
    host::packet::{PacketError, PacketSocket},
    learning::{filter, frame},
    types::mac::MacAddr,
};

/// Frames that are taken from one socket before the kernel is looked at.
const MAX_FRAMES_PER_TURN: usize = 256;

/// What is received of guests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FromGuests {
    /// The indexes of the macvlans.
    pub interfaces: BTreeSet<u32>,
    /// The MACs of the guests.
    pub macs: BTreeSet<MacAddr>,
}

/// What is received of other hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FromTheWire {
    /// The indexes of the lower devices.
    pub interfaces: BTreeSet<u32>,
    /// The addresses that guests claim.
    pub addresses: BTreeSet<IpAddr>,
}

/// The sockets: for ARP and for IPv6, of guests and of the wire.
#[derive(Default)]
pub struct Sockets {
    guests: Vec<PacketSocket>,
    wire: Vec<PacketSocket>,
    of_guests: FromGuests,
    of_wire: FromTheWire,
}

impl Sockets {
    /// Receives these from now on.
    pub fn receive_of(&mut self, guests: FromGuests, wire: FromTheWire) -> Result<(), PacketError> {
        if guests != self.of_guests {
            open(&mut self.guests, guests.interfaces.is_empty())?;
            let program = claim::from_guests(&guests.interfaces, &guests.macs);
            attach(&self.guests, &program, &filter::all())?;
            self.of_guests = guests;
        }
        if wire != self.of_wire {
            open(&mut self.wire, wire.addresses.is_empty())?;
            let program = claim::from_the_wire(&wire.interfaces, &wire.addresses);
            // The kernel's table of neighbours shows those that speak to the node.
            attach(&self.wire, &program, &nothing())?;
            self.of_wire = wire;
        }
        Ok(())
    }

    /// Hands what was received to `each`, with the index of the interface.
    pub fn receive(&self, buffer: &mut [u8], mut each: impl FnMut(u32, Statement)) {
        for socket in self.guests.iter().chain(&self.wire) {
            for _ in 0..MAX_FRAMES_PER_TURN {
                let Some(received) = socket.receive(buffer) else {
                    break;
                };
                if let Some(statement) = Statement::read(&buffer[..received.length]) {
                    each(received.index, statement);
                }
            }
        }
    }

    /// The sockets, to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.guests.iter().chain(&self.wire).map(AsFd::as_fd)
    }
}

/// Opens sockets where there are none, or closes them.
fn open(sockets: &mut Vec<PacketSocket>, close: bool) -> Result<(), PacketError> {
    if close {
        sockets.clear();
    } else if sockets.is_empty() {
        let open = |ethertype| PacketSocket::of_type(ethertype, &nothing());
        *sockets = vec![open(claim::ARP)?, open(frame::IPV6)?];
    }
    Ok(())
}

/// Attaches `program`, or `other` where the kernel has no room for it.
fn attach(
    sockets: &[PacketSocket],
    program: &[SockFilter],
    other: &[SockFilter],
) -> Result<(), PacketError> {
    for socket in sockets {
        match socket.attach(program) {
            Err(error) if error.is_no_memory() => socket.attach(other)?,
            attached => attached?,
        }
    }
    Ok(())
}

fn nothing() -> Vec<SockFilter> {
    filter::from(&BTreeSet::new())
}
