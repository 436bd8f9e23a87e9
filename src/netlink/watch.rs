//! Changes of links, addresses and routes, as the kernel reports them.

use std::{
    cell::Cell,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, NetlinkAddr, bind, getsockname, recv},
};
use tokio::{io::unix::AsyncFd, time::Instant};

use super::event_socket::{self, Routes};

/// `RTMGRP_LINK` of `linux/rtnetlink.h`.
const LINK_GROUP: u32 = 1;
/// `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`.
const ADDRESS_GROUPS: u32 = 0x10 | 0x40 | 0x100 | 0x400;
/// Changes that come within this are one. A flapping link causes thousands.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// How many times as long as the processor time that it takes to handle changes, they are left alone
/// afterwards: on a node with a million routes that is long, and they may change all the time.
const REST: u32 = 9;

/// Default routes, by the length of the destination in `struct rtmsg`: a router changes 100,000 others at
/// a time.
const DEFAULT_ROUTES: Routes = Routes::With(17, 0);

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
        let socket = event_socket::open(LINK_GROUP, DEFAULT_ROUTES);
        let socket = socket.context("subscribing to link events")?;
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
