//! Packet sockets, `packet(7)`: frames received on interfaces, and sent from them.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::socket::{
        LinkAddr, MsgFlags, recvfrom, send as send_frame, setsockopt, sockopt::RcvBufForce,
    },
};
use pnet_datalink::{
    Channel, ChannelType, Config, DataLinkReceiver, DataLinkSender, NetworkInterface,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u8 = 4;
/// Bytes of the receive buffer. The kernel counts close to 1 KiB for a small frame, and by
/// default has room for some 270 of them (`net.core.rmem_default`).
const RECEIVE_BUFFER: usize = 4 << 20;
/// Bytes of the largest frame that is received whole: an MTU of 9000 with its header, and more.
pub const MAX_FRAME_BYTES: usize = 1 << 14;

/// A frame that a socket received into a buffer.
pub struct Received {
    /// The index of the interface.
    pub index: u32,
    /// Whether the interface sends it.
    pub outgoing: bool,
    /// Bytes of the frame; no more than the buffer holds.
    pub length: usize,
    /// Whether the buffer certainly holds all of it.
    pub is_whole: bool,
}

/// A packet socket.
pub struct PacketSocket {
    socket: Socket,
    // The same socket once more: what bound it closes it when dropped.
    _bound: Option<Bound>,
}

/// The refusal of a packet socket.
#[derive(Debug)]
pub struct PacketError {
    doing: String,
    error: io::Error,
}

impl PacketError {
    /// Whether a right is missing.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.error.kind() == io::ErrorKind::PermissionDenied
    }

    /// Whether the kernel has no room: for a filter, within `net.core.optmem_max`.
    #[must_use]
    pub fn is_no_memory(&self) -> bool {
        self.error.raw_os_error() == Some(Errno::ENOMEM as i32)
    }
}

impl fmt::Display for PacketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.error)
    }
}

impl std::error::Error for PacketError {}

/// Adds what was being done.
fn while_doing(doing: impl Into<String>) -> impl FnOnce(io::Error) -> PacketError {
    let doing = doing.into();
    |error| PacketError { doing, error }
}

type Bound = (Box<dyn DataLinkSender>, Box<dyn DataLinkReceiver>);

impl PacketSocket {
    /// Receives frames of an ethertype that come in by any interface of the netns, if `program`
    /// lets them pass. To a socket that is bound to an ethertype the kernel gives no frame that
    /// goes out (`dev_queue_xmit_nit` of `net/core/dev.c`), so it costs other traffic nothing.
    pub fn of_type(ethertype: u16, program: &[SockFilter]) -> Result<Self, PacketError> {
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        // Until it has its filter it may receive what the filter would stop.
        let socket = open(Some(protocol))?;
        let socket = Self {
            socket,
            _bound: None,
        };
        socket.attach(program)?;
        Ok(socket)
    }

    /// Receives frames that come in or go out by the interface with this index, if `program`
    /// lets them pass. All of them if it is empty.
    pub fn of_interface(index: u32, program: &[SockFilter]) -> Result<Self, PacketError> {
        let socket = open(None)?;
        if !program.is_empty() {
            attach(&socket, program)?;
        }
        let bound = bind(index, &socket)?;
        Ok(Self {
            socket,
            _bound: Some(bound),
        })
    }

    /// Replaces the filter. The kernel does it at once, without a gap.
    pub fn attach(&self, program: &[SockFilter]) -> Result<(), PacketError> {
        attach(&self.socket, program)
    }

    /// Sends a frame by the interface that the socket is bound to.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send_frame(self.socket.as_raw_fd(), frame, MsgFlags::empty());
        sent.map(|_| ()).context("sending a frame")
    }

    /// The next frame, if there is one.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<Received> {
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), buffer) {
                Ok((length, Some(address))) => {
                    return Some(Received {
                        index: u32::try_from(address.ifindex()).ok()?,
                        outgoing: address.pkttype() == OUTGOING,
                        length,
                        is_whole: length < buffer.len(),
                    });
                }
                // That the interface went down or away is reported once.
                Ok((_, None)) | Err(Errno::EINTR | Errno::ENETDOWN) => {}
                Err(_) => return None,
            }
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends a frame by the interface with this index of the calling thread's netns. Returns the
/// socket, because closing it takes the kernel up to 20 ms (`synchronize_net`).
pub fn send(index: u32, frame: &[u8]) -> Result<PacketSocket> {
    let socket = PacketSocket::of_interface(index, &[])?;
    socket.send(frame)?;
    Ok(socket)
}

fn open(protocol: Option<Protocol>) -> Result<Socket, PacketError> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, protocol);
    let socket = socket.map_err(while_doing("opening a packet socket"))?;
    let set = socket.set_nonblocking(true);
    set.map_err(while_doing("making a packet socket nonblocking"))?;
    // Without CAP_NET_ADMIN it stays as it is: bursts may be cut short.
    let _ = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER);
    Ok(socket)
}

/// Binds a copy of the descriptor to an interface. std has no address of that kind.
fn bind(index: u32, socket: &Socket) -> Result<Bound, PacketError> {
    let interface = NetworkInterface {
        name: String::new(),
        description: String::new(),
        index,
        mac: None,
        ips: Vec::new(),
        flags: 0,
    };
    let copy = socket.try_clone();
    let copy = copy.map_err(while_doing("copying a descriptor"))?;
    let config = Config {
        promiscuous: false,
        channel_type: ChannelType::Layer2,
        socket_fd: Some(copy.into_raw_fd()),
        write_buffer_size: 0,
        read_buffer_size: 0,
        ..Config::default()
    };
    let bound = match pnet_datalink::channel(&interface, config) {
        Ok(Channel::Ethernet(sender, receiver)) => Ok((sender, receiver)),
        Ok(_) => Err(io::Error::other("a packet socket of an unknown kind")),
        Err(error) => Err(error),
    };
    bound.map_err(while_doing(format!("binding to interface {index}")))
}

fn attach(socket: &Socket, program: &[SockFilter]) -> Result<(), PacketError> {
    let attached = socket.attach_filter(program);
    attached.map_err(while_doing("attaching a filter to a packet socket"))
}
