//! Sockets that receive what the kernel reports of changes, filtered before it is queued.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Result;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use socket2::{SockFilter, SockRef};

use super::{
    address::{DELETE_ROUTE, NEW_ROUTE},
    bpf::{JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, RETURN},
};

/// Where the type is in `struct nlmsghdr`.
const TYPE: u32 = 4;

/// Of which routes changes are received.
#[derive(Clone, Copy)]
pub(super) enum Routes {
    /// Those with this value in this byte of the message.
    With(u32, u8),
    /// Those with another one.
    Without(u32, u8),
}

/// Subscribes, without waiting, to these groups of `linux/rtnetlink.h`: all that is about no route, and
/// some routes.
pub(super) fn open(groups: u32, routes: Routes) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkRoute;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
    SockRef::from(&socket).attach_filter(&filter(routes))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

fn filter(routes: Routes) -> [SockFilter; 7] {
    let instruction =
        |code, (then, otherwise), operand| SockFilter::new(code, then, otherwise, operand);
    // A half word is loaded in network byte order.
    let is = |kind: u16| u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    let (place, value, jump) = match routes {
        Routes::With(place, value) => (place, value, (0, 1)),
        Routes::Without(place, value) => (place, value, (1, 0)),
    };
    [
        instruction(LOAD_HALF, (0, 0), TYPE),
        instruction(JUMP_EQUAL, (1, 0), is(NEW_ROUTE)),
        instruction(JUMP_EQUAL, (0, 2), is(DELETE_ROUTE)),
        instruction(LOAD_BYTE, (0, 0), place),
        instruction(JUMP_EQUAL, jump, value.into()),
        instruction(RETURN, (0, 0), u32::MAX),
        instruction(RETURN, (0, 0), 0),
    ]
}
