//! Changes of routes and neighbours, as the kernel reports them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};

use super::{
    address::{DELETE_ROUTE, NEW_ROUTE},
    event_socket::{self, Routes},
    message::messages,
    neighbor::{KnownNeighbor, NEW_NEIGHBOR},
    single_address::ROUTE_PROTOCOL,
};

/// `RTMGRP_NEIGH`, `RTMGRP_IPV4_ROUTE` and `RTMGRP_IPV6_ROUTE` of `linux/rtnetlink.h`.
const GROUPS: u32 = 0x04 | 0x40 | 0x400;
/// Those of others, by the protocol in `struct rtmsg`: our own would have us look again.
const ROUTES_OF_OTHERS: Routes = Routes::Without(21, ROUTE_PROTOCOL);
/// Bytes of the longest message that is read whole. Of a route its type is enough.
const MAX_MESSAGE: usize = 4096;

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteChange {
    /// Routes of others than this program, or the kernel had more changes than there was room for.
    Routes,
    /// What the kernel knows of a neighbour.
    Neighbor(KnownNeighbor),
}

/// A subscription to the routes and neighbours of the network namespace that it was opened in.
pub struct RouteWatch(OwnedFd);

impl RouteWatch {
    /// Subscribes.
    pub fn open() -> Result<Self> {
        let socket = event_socket::open(GROUPS, ROUTES_OF_OTHERS);
        let socket = socket.context("subscribing to changes of routes and neighbours")?;
        Ok(Self(socket))
    }

    /// The next change, if there is one.
    #[must_use]
    pub fn next(&self) -> Option<RouteChange> {
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(change) = read(&buffer[..length]) {
                        return Some(change);
                    }
                }
                Err(Errno::ENOBUFS) => return Some(RouteChange::Routes),
                Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }
}

impl AsFd for RouteWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a datagram says, which the kernel fills with one message. One that is cut short is a route
/// with many hops.
fn read(datagram: &[u8]) -> Option<RouteChange> {
    let Some(Ok(message)) = messages(datagram).next() else {
        return Some(RouteChange::Routes);
    };
    match message.kind {
        NEW_NEIGHBOR => KnownNeighbor::read(&message).map(RouteChange::Neighbor),
        NEW_ROUTE | DELETE_ROUTE => Some(RouteChange::Routes),
        _ => None,
    }
}
