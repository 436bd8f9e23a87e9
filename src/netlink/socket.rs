//! A netlink socket: one request, then its replies or the kernel's refusal. It knows messages,
//! not what they are about.

use std::{
    io::{self, Cursor, ErrorKind},
    os::fd::{AsRawFd, BorrowedFd},
};

use anyhow::{Context, anyhow};
use neli::{
    Size, ToBytes,
    consts::{
        nl::{NlType, NlmF},
        socket::{Msg, NlFamily},
    },
    nl::{NlPayload, NlmsghdrBuilder},
    socket::NlSocket,
};
use nix::{
    errno::Errno,
    sys::socket::{NetlinkAddr, connect},
};

use super::{
    batch::{ACK, Attributes, Batch},
    error::NetlinkError,
    message::{HEADER, Message, messages},
};

/// Bytes that a reply about one link usually fits into. The buffer grows to what a reply needs.
const USUAL_REPLY: usize = 4096;
/// Bytes of the longest reply that is taken; a link with all that can be attached to it is far
/// below.
const MAX_REPLY: usize = 16 << 20;
/// The kernel fills lists into buffers as long as ours is, up to 32 KiB (`netlink_dump` in
/// `af_netlink.c`).
const LIST_REPLY: usize = 32 << 10;
/// How often a list is begun again because things changed meanwhile.
const LIST_ATTEMPTS: u32 = 20;
/// `RTM_GETNSID` of `linux/rtnetlink.h`, `NETNSA_FD` of `linux/net_namespace.h`.
const GETNSID: u16 = 90;
const NETNSA_FD: u16 = 3;

/// A netlink socket of the network namespace that the calling thread was in when it was opened.
pub struct Socket {
    netlink: NlSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens an rtnetlink socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::of_family(NlFamily::Route)
    }

    /// Opens a socket of a netlink family in the calling thread's network namespace.
    pub(super) fn of_family(family: NlFamily) -> Result<Self, NetlinkError> {
        let netlink = NlSocket::new(family).context("opening a netlink socket")?;
        let asked = netlink.enable_ext_ack(true);
        asked.context("asking netlink for extended acknowledgements")?;
        // Without it the kernel ignores the filters of a dump, among them the network namespace.
        let strict = netlink.enable_strict_checking(true);
        strict.context("asking netlink for strict checking")?;
        listen_to_the_kernel_alone(&netlink).context("connecting a netlink socket")?;
        Ok(Self {
            netlink,
            sequence: 0,
            buffer: vec![0; USUAL_REPLY],
        })
    }

    /// Sends a request that is answered by an acknowledgement alone.
    pub(super) fn request<T, P>(
        &mut self,
        kind: T,
        flags: NlmF,
        body: P,
    ) -> Result<(), NetlinkError>
    where
        T: NlType,
        P: Size + ToBytes,
    {
        self.send(kind, flags | NlmF::ACK, body)?;
        self.replies(|_| Ok(()))?;
        Ok(())
    }

    /// Sends a request of which neli has no type, answered by an acknowledgement alone.
    pub(super) fn request_bytes(
        &mut self,
        (kind, flags): (u16, u16),
        header: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) -> Result<(), NetlinkError> {
        let write = |batch: &mut Batch| batch.add((kind, flags | ACK), header, attributes);
        self.exchange(write, |_| Ok(())).map(|_| ())
    }

    /// Sends a request that is answered by one message, from which `read` takes what it says.
    pub(super) fn get<T, P, R>(
        &mut self,
        kind: T,
        body: P,
        read: impl Fn(&Message<'_>) -> anyhow::Result<R>,
    ) -> Result<R, NetlinkError>
    where
        T: NlType,
        P: Size + ToBytes,
    {
        self.send(kind, NlmF::empty(), body)?;
        self.answer(read)
    }

    /// Sends a request that is answered by a list; `read` takes what is wanted from each message.
    ///
    /// Where the kernel says that things changed while it was listing them
    /// (`NLM_F_DUMP_INTR`), the list may be wrong: it is asked for again.
    pub(super) fn dump<T, P, R>(
        &mut self,
        kind: T,
        body: &P,
        read: impl Fn(&Message<'_>) -> anyhow::Result<Option<R>>,
    ) -> Result<Vec<R>, NetlinkError>
    where
        T: NlType,
        P: Size + ToBytes + Clone,
    {
        self.collect(|socket, list| {
            socket.send(kind, NlmF::DUMP, body.clone())?;
            socket.replies(|message| {
                list.extend(read(message)?);
                Ok(())
            })
        })
    }

    /// The number by which the socket's network namespace knows another one, if it does
    /// (`RTM_GETNSID`, whose header is shorter than those that neli pads).
    pub fn nsid(&mut self, netns: BorrowedFd<'_>) -> Result<Option<i32>, NetlinkError> {
        let sequence = self.next_sequence();
        let mut bytes = 28_u32.to_ne_bytes().to_vec();
        bytes.extend(GETNSID.to_ne_bytes());
        bytes.extend(NlmF::REQUEST.bits().to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 8]); // no port; no family, padded
        bytes.extend(8_u16.to_ne_bytes());
        bytes.extend(NETNSA_FD.to_ne_bytes());
        bytes.extend(netns.as_raw_fd().to_ne_bytes());
        self.send_bytes(&bytes)?;
        self.answer(|message| {
            // The attribute is the first: NETNSA_NSID.
            let number = message.bytes.get(HEADER + 8..HEADER + 12);
            let number = number.and_then(|bytes| bytes.try_into().ok());
            Ok(number.map(i32::from_ne_bytes).filter(|number| *number >= 0))
        })
    }

    /// Sends requests in one datagram; `each` takes the replies to them, up to the
    /// acknowledgement. False if the kernel interrupted a dump.
    pub(super) fn exchange(
        &mut self,
        write: impl FnOnce(&mut Batch),
        each: impl FnMut(&Message<'_>) -> anyhow::Result<()>,
    ) -> Result<bool, NetlinkError> {
        let mut batch = Batch::new(self.next_sequence());
        write(&mut batch);
        self.send_bytes(&batch.into_bytes())?;
        self.replies(each)
    }

    /// Sends a request for a list, of which `read` takes what it needs. It is sent again where
    /// the list changed meanwhile.
    pub(super) fn read_list<R>(
        &mut self,
        write: impl Fn(&mut Batch),
        read: impl Fn(&Message<'_>) -> Option<R>,
    ) -> Result<Vec<R>, NetlinkError> {
        self.collect(|socket, list| {
            socket.exchange(&write, |message| {
                list.extend(read(message));
                Ok(())
            })
        })
    }

    /// Collects a list by `ask`, which is false if the kernel interrupted it.
    fn collect<R>(
        &mut self,
        ask: impl Fn(&mut Self, &mut Vec<R>) -> Result<bool, NetlinkError>,
    ) -> Result<Vec<R>, NetlinkError> {
        for attempt in 0..LIST_ATTEMPTS {
            let mut list = Vec::new();
            let asked = ask(self, &mut list);
            // One message is longer than the kernel's buffer, which becomes as long as ours once it has
            // received into that: a program for 500 guests.
            if attempt < 2 && asked.as_ref().is_err_and(is_too_long) {
                self.grow(LIST_REPLY);
                continue;
            }
            if asked? {
                // Sockets that stay open need no room for lists meanwhile.
                self.buffer.truncate(USUAL_REPLY);
                self.buffer.shrink_to_fit();
                return Ok(list);
            }
        }
        let text = format!("a list changed during each of {LIST_ATTEMPTS} attempts to read it");
        Err(anyhow!(text).into())
    }

    fn send<T, P>(&mut self, kind: T, flags: NlmF, body: P) -> Result<(), NetlinkError>
    where
        T: NlType,
        P: Size + ToBytes,
    {
        let sequence = self.next_sequence();
        let message = NlmsghdrBuilder::default()
            .nl_type(kind)
            .nl_flags(flags | NlmF::REQUEST)
            .nl_seq(sequence)
            .nl_payload(NlPayload::Payload(body))
            .build()
            .context("encoding a netlink request")?;
        let mut bytes = Cursor::new(Vec::new());
        let encoded = message.to_bytes(&mut bytes);
        encoded.context("encoding a netlink request")?;
        self.send_bytes(bytes.get_ref())
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send_bytes(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let sent = self.netlink.send(bytes, Msg::empty());
        sent.context("sending a netlink request")?;
        Ok(())
    }

    /// Takes the one message that answers the request just sent.
    fn answer<R>(
        &mut self,
        read: impl Fn(&Message<'_>) -> anyhow::Result<R>,
    ) -> Result<R, NetlinkError> {
        loop {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue; // left over from a request that was given up
                }
                if message.is_final() {
                    message.outcome()?;
                    return Err(
                        anyhow!("the kernel acknowledged a request without an answer").into(),
                    );
                }
                return Ok(read(&message)?);
            }
        }
    }

    /// Hands the replies to the request just sent to `each`, up to the final one. False if the
    /// kernel interrupted the dump.
    fn replies(
        &mut self,
        mut each: impl FnMut(&Message<'_>) -> anyhow::Result<()>,
    ) -> Result<bool, NetlinkError> {
        let mut complete = true;
        loop {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue; // left over from a request that was given up
                }
                complete &= !message.is_interrupted();
                if message.is_final() {
                    return message.outcome().map(|()| complete);
                }
                each(&message)?;
            }
            // Of a long list the kernel then sends more at a time.
            self.grow((2 * length).min(LIST_REPLY));
        }
    }

    /// Receives a datagram whole, however long it is.
    fn receive(&mut self) -> anyhow::Result<usize> {
        // With MSG_TRUNC the kernel returns the length that the datagram really has.
        let length = self.receive_with(Msg::PEEK | Msg::TRUNC)?;
        if length > MAX_REPLY {
            return Err(anyhow!("a netlink reply of {length} bytes"));
        }
        self.grow(length);
        self.receive_with(Msg::TRUNC)
    }

    fn receive_with(&mut self, flags: Msg) -> anyhow::Result<usize> {
        loop {
            match self.netlink.recv(&mut self.buffer, flags) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => return Ok(received.context("receiving a netlink reply")?.0),
            }
        }
    }

    fn grow(&mut self, length: usize) {
        if self.buffer.len() < length {
            self.buffer.resize(length, 0);
        }
    }
}

/// Connects a socket to the kernel. A process with `CAP_NET_ADMIN` in a pod's network namespace can
/// send to any netlink socket there; a connected one refuses what does not come from its peer
/// (`netlink_getsockbyportid` in `af_netlink.c`).
fn listen_to_the_kernel_alone(netlink: &NlSocket) -> io::Result<()> {
    // Binds it too, to a port that the kernel chooses.
    connect(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    // What came between the two.
    loop {
        match netlink.recv([], Msg::DONTWAIT) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if !is_passing(&error) => return Err(error),
            _ => {}
        }
    }
}

fn is_too_long(error: &NetlinkError) -> bool {
    error.errno() == Some(Errno::EMSGSIZE)
}

/// Whether receiving can go on: after a signal, or where others filled the buffer (`ENOBUFS`).
fn is_passing(error: &io::Error) -> bool {
    error.kind() == ErrorKind::Interrupted || error.raw_os_error() == Some(Errno::ENOBUFS as i32)
}
