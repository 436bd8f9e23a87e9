//! The packet sockets of learning: one for each kind of announcement, and one for each lower
//! device whose frames have to be watched.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd},
};

use socket2::SockFilter;

use super::filter;
use crate::{
    host::packet::{PacketError, PacketSocket, Received},
    types::mac::MacAddr,
};

/// Ethertypes of announcements.
const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;

/// The sockets.
pub struct Sockets {
    announcements: [PacketSocket; 2],
    /// By the index of the lower device.
    watches: BTreeMap<u32, PacketSocket>,
}

impl Sockets {
    /// Opens those for announcements. They receive nothing yet.
    pub fn open() -> Result<Self, PacketError> {
        let nothing = filter::untagged_to_group(&BTreeSet::new());
        Ok(Self {
            announcements: [
                PacketSocket::of_type(ARP, &nothing)?,
                PacketSocket::of_type(RARP, &nothing)?,
            ],
            watches: BTreeMap::new(),
        })
    }

    /// Receives announcements of `macs` from now on.
    pub fn receive_announcements_of(&self, macs: &BTreeSet<MacAddr>) -> Result<(), PacketError> {
        let program = filter::untagged_to_group(macs);
        self.announcements
            .iter()
            .try_for_each(|socket| or_all(&program, |program| socket.attach(program)))
    }

    /// Receives all frames of `macs` on a lower device from now on. Returns a socket that is
    /// needed no more.
    pub fn watch(
        &mut self,
        lower: u32,
        macs: &BTreeSet<MacAddr>,
    ) -> Result<Option<PacketSocket>, PacketError> {
        if macs.is_empty() {
            return Ok(self.watches.remove(&lower));
        }
        let program = filter::from(macs);
        if let Some(watch) = self.watches.get(&lower) {
            or_all(&program, |program| watch.attach(program))?;
        } else {
            let watch = or_all(&program, |program| {
                PacketSocket::of_interface(lower, program)
            })?;
            self.watches.insert(lower, watch);
        }
        Ok(None)
    }

    /// The lower devices that are watched.
    pub fn watched(&self) -> Vec<u32> {
        self.watches.keys().copied().collect()
    }

    /// The next frame on a lower device that is watched, if there is one.
    pub fn next_frame(&self, lower: u32, buffer: &mut [u8]) -> Option<Received> {
        self.watches.get(&lower)?.receive(buffer)
    }

    /// The next announcement on any interface, if there is one.
    pub fn next_announcement(&self, buffer: &mut [u8]) -> Option<Received> {
        let mut sockets = self.announcements.iter();
        sockets.find_map(|socket| socket.receive(buffer))
    }

    /// The sockets, to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let watches = self.watches.values().map(AsFd::as_fd);
        self.announcements.iter().map(AsFd::as_fd).chain(watches)
    }
}

/// Attaches `program`, or one that lets all through where the kernel has no room for it.
fn or_all<T>(
    program: &[SockFilter],
    attach: impl Fn(&[SockFilter]) -> Result<T, PacketError>,
) -> Result<T, PacketError> {
    match attach(program) {
        Err(error) if error.is_no_memory() => attach(&filter::all()),
        other => other,
    }
}
