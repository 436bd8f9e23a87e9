//! Changes of links, addresses and routes, as the kernel reports them.

use std::{
    cell::Cell,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
        recv, socket,
    },
};
use socket2::{SockFilter, SockRef};
use tokio::{io::unix::AsyncFd, time::Instant};

use super::{
    address::{DELETE_ROUTE, NEW_ROUTE},
    bpf::{JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, RETURN},
};

/// `RTMGRP_LINK` of `linux/rtnetlink.h`.
const LINK_GROUP: u32 = 1;
/// `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`.
const ADDRESS_GROUPS: u32 = 0x10 | 0x40 | 0x100 | 0x400;
/// Changes that come within this are one. A flapping link causes thousands.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// How many times as long as the processor time that it takes to handle changes, they are left alone
/// afterwards: on a node with a million routes that is long, and they may change all the time.
const REST: u32 = 9;

/// Where the type is in `struct nlmsghdr`, and behind that the length of the destination in
/// `struct rtmsg`.
const TYPE: u32 = 4;
const DESTINATION_LENGTH: u32 = 17;

/// A subscription to the links of the network namespace that it was opened in.
pub struct LinkWatch {
    socket: AsyncFd<OwnedFd>,
    /// When the changes that came will have settled. Kept here, so that a wait that is given up
    /// for something else and begun again ends all the same.
    settled: Cell<Option<Instant>>,
    /// Until when changes are left alone.
    resting: Cell<Instant>,
}

impl LinkWatch {
    /// Subscribes.
    pub fn open() -> Result<Self> {
        let socket = subscribe().context("subscribing to link events")?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; what that asks of the caller, an OwnedFd keeps"
        )]
        let socket = AsyncFd::new(socket).context("subscribing to link events")?;
        Ok(Self {
            socket,
            settled: Cell::new(None),
            resting: Cell::new(Instant::now()),
        })
    }

    /// Subscribes to addresses and default routes as well, or no longer.
    pub fn follow_addresses(&self, wanted: bool) -> Result<()> {
        let fd = self.socket.as_raw_fd();
        let groups = LINK_GROUP | if wanted { ADDRESS_GROUPS } else { 0 };
        let bound: nix::Result<NetlinkAddr> = getsockname(fd);
        // Bound again with the same number, the socket gets other groups (`netlink_bind`).
        let changed = bound.and_then(|address| bind(fd, &NetlinkAddr::new(address.pid(), groups)));
        changed.context("subscribing to changes of addresses and routes")
    }

    /// Returns when links changed since the last call: list them again.
    ///
    /// What the events say does not matter, so it is no loss when the kernel drops some of them.
    pub async fn changed(&self) -> Result<()> {
        let ready = self.socket.readable().await;
        drop(ready.context("waiting for link events")?);
        let settled = self
            .settled
            .get()
            .unwrap_or_else(|| self.resting.get().max(Instant::now() + DEBOUNCE));
        self.settled.set(Some(settled));
        tokio::time::sleep_until(settled).await;
        let ready = self.socket.readable().await;
        let mut ready = ready.context("waiting for link events")?;
        let mut start = [0; 16];
        loop {
            match recv(self.socket.as_raw_fd(), &mut start, MsgFlags::empty()) {
                // ENOBUFS: the kernel had more events than there was room for.
                Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error).context("reading link events"),
            }
        }
        ready.clear_ready();
        self.settled.set(None);
        Ok(())
    }

    /// To be called after changes were handled, which took so much of a processor's time: bounds the
    /// part of it that they take.
    pub fn rest(&self, took: Duration) {
        self.resting.set(Instant::now() + took * REST);
    }
}

/// Passes what is no route, and default routes. The kernel drops the others before it queues them: a
/// router changes 100,000 at a time.
fn filter() -> [SockFilter; 7] {
    let instruction =
        |code, (then, otherwise), operand| SockFilter::new(code, then, otherwise, operand);
    // A half word is loaded in network byte order.
    let is = |kind: u16| u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    [
        instruction(LOAD_HALF, (0, 0), TYPE),
        instruction(JUMP_EQUAL, (1, 0), is(NEW_ROUTE)),
        instruction(JUMP_EQUAL, (0, 2), is(DELETE_ROUTE)),
        instruction(LOAD_BYTE, (0, 0), DESTINATION_LENGTH),
        instruction(JUMP_EQUAL, (0, 1), 0),
        instruction(RETURN, (0, 0), u32::MAX),
        instruction(RETURN, (0, 0), 0),
    ]
}

fn subscribe() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkRoute;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    SockRef::from(&socket).attach_filter(&filter())?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINK_GROUP))?;
    Ok(socket)
}
