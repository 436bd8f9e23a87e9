//! Packet sockets, `packet(7)`: what is heard on lower devices, and what is sent from ports.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd},
};

use anyhow::{Context, Error, Result, bail};
use nix::{
    errno::Errno,
    sys::socket::{LinkAddr, MsgFlags, recvfrom, send as send_frame},
};
use pnet_datalink::{
    Channel, ChannelType, Config, DataLinkReceiver, DataLinkSender, NetworkInterface,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::filter;
use crate::types::mac::MacAddr;

/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u8 = 4;
/// Ethertypes of announcements.
const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
/// Bytes of the largest frame that is looked at: an MTU of 9000 with its header, and more.
pub const LARGEST: usize = 1 << 14;

/// A frame that was heard.
pub struct Heard<'a> {
    /// The index of the interface.
    pub index: u32,
    /// Whether it goes out by it.
    pub outgoing: bool,
    /// The frame.
    pub bytes: &'a [u8],
}

/// A socket that hears the announcements that come in by any interface of the netns. It is
/// bound to their two ethertypes: to such sockets the kernel shows no frame that goes out
/// (`dev_queue_xmit_nit` of `net/core/dev.c`), so it costs other traffic nothing.
pub struct Announcements([Socket; 2]);

impl Announcements {
    /// Opens it. It hears nothing yet.
    pub fn open() -> Result<Self> {
        let open = |kind: u16| -> Result<Socket> {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol(kind)));
            let socket = socket.context("opening a packet socket")?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let sockets = Self([open(ARP)?, open(RARP)?]);
        sockets.filter(&BTreeSet::new())?;
        Ok(sockets)
    }

    /// Hears those of `macs` from now on.
    pub fn filter(&self, macs: &BTreeSet<MacAddr>) -> Result<()> {
        let program = filter::by_source(macs, true);
        self.0
            .iter()
            .try_for_each(|socket| attach(socket, &program))
    }

    /// The sockets, to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd)
    }

    /// The next announcement, if there is one.
    pub fn next<'a>(&self, buffer: &'a mut [u8]) -> Option<Heard<'a>> {
        let received = self.0.iter().find_map(|socket| receive(socket, buffer))?;
        Some(received.with(buffer))
    }
}

/// A socket that hears what goes out by one interface and what comes in.
pub struct Watch {
    socket: Socket,
    // Holds the same socket; it is what could bind it.
    _bound: Bound,
}

impl Watch {
    /// Watches the interface with this index for frames from `macs`.
    pub fn open(index: u32, macs: &BTreeSet<MacAddr>) -> Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None);
        let socket = socket.context("opening a packet socket")?;
        attach(&socket, &filter::by_source(macs, false))?;
        let bound = bind(index, &socket)?;
        Ok(Self {
            socket,
            _bound: bound,
        })
    }

    /// Watches for these from now on. The kernel changes it at once, without a gap.
    pub fn filter(&self, macs: &BTreeSet<MacAddr>) -> Result<()> {
        attach(&self.socket, &filter::by_source(macs, false))
    }

    /// The socket, to wait for.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next frame, if there is one.
    pub fn next<'a>(&self, buffer: &'a mut [u8]) -> Option<Heard<'a>> {
        Some(receive(&self.socket, buffer)?.with(buffer))
    }
}

type Bound = (Box<dyn DataLinkSender>, Box<dyn DataLinkReceiver>);

/// Sends a frame by the interface with this index of the calling thread's netns.
pub fn send(index: u32, frame: &[u8]) -> Result<()> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None);
    let socket = socket.context("opening a packet socket")?;
    let _bound = bind(index, &socket)?;
    let sent = send_frame(socket.as_raw_fd(), frame, MsgFlags::empty());
    sent.context("sending a frame")?;
    Ok(())
}

/// Binds a copy of the descriptor to an interface. std has no address of that kind.
fn bind(index: u32, socket: &Socket) -> Result<Bound> {
    let interface = NetworkInterface {
        name: String::new(),
        description: String::new(),
        index,
        mac: None,
        ips: Vec::new(),
        flags: 0,
    };
    let copy = socket.try_clone().context("copying a descriptor")?;
    let config = Config {
        promiscuous: false,
        channel_type: ChannelType::Layer2,
        socket_fd: Some(copy.into_raw_fd()),
        write_buffer_size: 0,
        read_buffer_size: 0,
        ..Config::default()
    };
    match pnet_datalink::channel(&interface, config) {
        Ok(Channel::Ethernet(sender, receiver)) => Ok((sender, receiver)),
        Ok(_) => bail!("a packet socket of an unknown kind"),
        Err(error) => Err(Error::new(error).context(format!("binding to interface {index}"))),
    }
}

fn protocol(kind: u16) -> Protocol {
    Protocol::from(i32::from(kind.to_be()))
}

fn attach(socket: &Socket, program: &[SockFilter]) -> Result<()> {
    let attached = socket.attach_filter(program);
    attached.context("attaching a filter to a packet socket")
}

/// What the kernel says of a frame, whose bytes are in a buffer.
struct Received {
    index: u32,
    outgoing: bool,
    length: usize,
}

impl Received {
    fn with(self, buffer: &[u8]) -> Heard<'_> {
        Heard {
            index: self.index,
            outgoing: self.outgoing,
            bytes: &buffer[..self.length],
        }
    }
}

/// One frame. None also when the interface went down or away, which the socket tells once.
fn receive(socket: &Socket, buffer: &mut [u8]) -> Option<Received> {
    loop {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), buffer) {
            Ok((length, Some(address))) => {
                return Some(Received {
                    index: u32::try_from(address.ifindex()).ok()?,
                    outgoing: address.pkttype() == OUTGOING,
                    length: length.min(buffer.len()),
                });
            }
            Ok((_, None)) | Err(Errno::EINTR | Errno::ENETDOWN) => {}
            Err(_) => return None,
        }
    }
}
