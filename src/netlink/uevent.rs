//! The kernel's uevents: which device number a macvtap's tap got.
//!
//! The kernel sends the uevents of a network namespace's devices to the sockets of that
//! namespace (`uevent_net_broadcast` of `lib/kobject_uevent.c`), before the request that makes
//! the device returns. So a socket that was opened before has the answer when the request has.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket,
    },
};

use crate::types::device_number::DeviceNumber;

/// The multicast group of the kernel's own events; udev's are another.
const KERNEL: u32 = 1;
/// The kernel's events are at most this long (`UEVENT_BUFFER_SIZE` of `linux/kobject.h`, and the
/// path before it).
const MAX_EVENT: usize = 8192;

/// A subscription to the uevents of the network namespace that it was opened in.
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Subscribes.
    pub fn open() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)
            .context("opening a socket for uevents")?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL)).context("subscribing to uevents")?;
        Ok(Self(socket))
    }

    /// The device number of tap `number`, if the kernel announced it. None as well if the
    /// announcement was lost: with 200 KiB of events in between, the kernel drops some.
    #[must_use]
    pub fn tap_added(&self, number: u32) -> Option<DeviceNumber> {
        let mut buffer = [0; MAX_EVENT];
        let mut found = None;
        loop {
            match recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer) {
                // Port 0 is the kernel; a process in the namespace may send as well.
                Ok((length, Some(sender))) if sender.pid() == 0 => {
                    found = tap_in(&buffer[..length], number).or(found);
                }
                Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(_) => return found,
            }
        }
    }
}

/// The device number in an event that announces tap `number`:
/// `add@/devices/virtual/net/net1/macvtap/tap16777301` and, separated by NULs, `MAJOR=239`,
/// `MINOR=4` and others.
fn tap_in(event: &[u8], number: u32) -> Option<DeviceNumber> {
    let mut fields = std::str::from_utf8(event).ok()?.split('\0');
    let path = fields.next()?.strip_prefix("add@")?;
    let (_, tap) = path.rsplit_once("/macvtap/tap")?;
    if tap.parse() != Ok(number) {
        return None;
    }
    let (mut major, mut minor) = (None, None);
    for field in fields {
        match field.split_once('=') {
            Some(("MAJOR", value)) => major = value.parse().ok(),
            Some(("MINOR", value)) => minor = value.parse().ok(),
            _ => {}
        }
    }
    Some(DeviceNumber {
        major: major?,
        minor: minor?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_number_of_the_tap_that_it_looks_for() {
        let path = "/devices/virtual/net/net1/macvtap/tap16777301";
        let event = |action: &str, rest: &str| format!("{action}@{path}\0ACTION={action}\0{rest}");
        let whole = event("add", "MAJOR=239\0MINOR=4\0DEVNAME=tap16777301\0");
        let found = tap_in(whole.as_bytes(), 16_777_301);
        assert_eq!(found.unwrap().to_string(), "239:4");
        for other in [
            event("remove", "MAJOR=239\0MINOR=4\0"),
            event("add", "MINOR=4\0"),
            event("add", "MAJOR=x\0MINOR=4\0"),
            "add@/devices/virtual/net/net1\0MAJOR=239\0MINOR=4".to_owned(),
            String::new(),
        ] {
            assert_eq!(tap_in(other.as_bytes(), 16_777_301), None, "{other:?}");
        }
        assert_eq!(tap_in(whole.as_bytes(), 1_677_730), None);
        assert_eq!(tap_in(&[0xff, 0xfe], 1), None);
    }
}
