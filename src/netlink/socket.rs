//! A netlink socket: one request, then its replies or the kernel's refusal.

use std::{
    fmt,
    io::Cursor,
    os::fd::{AsRawFd, BorrowedFd},
};

use anyhow::{Context, Error, Result, bail, ensure};
use neli::{
    FromBytes, ToBytes,
    consts::{
        nl::NlmF,
        rtnl::Rtm,
        socket::{Msg, NlFamily},
    },
    nl::{NlPayload, Nlmsghdr, NlmsghdrBuilder},
    rtnl::Ifinfomsg,
    socket::NlSocket,
    utils::Groups,
};
use nix::errno::Errno;

use super::link::{Link, nested, text};

/// The kernel fills dumps into buffers of at most 32 KiB (`netlink_dump` in `af_netlink.c`).
const BUFFER: usize = 32 * 1024;
const HEADER: usize = 16;
/// `NLMSG_ERROR` and `NLMSG_DONE` of `linux/netlink.h`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_CAPPED` and `NLM_F_ACK_TLVS` of an error message, `NLMSGERR_ATTR_MSG`.
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
const ERROR_TEXT: u16 = 1;
/// `RTM_GETNSID` of `linux/rtnetlink.h`, `NETNSA_FD` of `linux/net_namespace.h`.
const GETNSID: u16 = 90;
const NETNSA_FD: u16 = 3;
/// How often a dump is begun again because the links changed meanwhile.
const DUMP_ATTEMPTS: u32 = 20;

/// The kernel's "no" to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetlinkError {
    /// The error number.
    pub errno: Errno,
    /// The text of the extended acknowledgement; many refusals come without one.
    pub text: Option<String>,
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the kernel answered {} ({})",
            self.errno.desc(),
            name(self.errno)
        )?;
        if let Some(text) = &self.text {
            write!(f, ": {text}")?;
        }
        // rtnetlink_rcv_msg of net/core/rtnetlink.c, and each change of a link in another netns.
        if self.errno == Errno::EPERM {
            f.write_str("; it needs CAP_NET_ADMIN")?;
        }
        Ok(())
    }
}

impl std::error::Error for NetlinkError {}

fn name(errno: Errno) -> String {
    format!("{errno:?}")
}

/// The error number of the refusal in `error`'s chain, if the kernel refused.
#[must_use]
pub fn errno(error: &Error) -> Option<Errno> {
    error
        .downcast_ref::<NetlinkError>()
        .map(|refused| refused.errno)
}

pub(super) type Message = Nlmsghdr<Rtm, Ifinfomsg>;

/// A socket of the network namespace that it was opened in, for good: what the
/// thread does later does not matter.
pub struct Socket {
    netlink: NlSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let socket = NlSocket::connect(NlFamily::Route, None, Groups::empty())
            .context("opening a netlink socket")?;
        socket
            .enable_ext_ack(true)
            .context("asking netlink for extended acknowledgements")?;
        // Without strict checking the kernel ignores the filters of a dump, among
        // them the network namespace. Kernels before 4.20 do not know the option.
        let _ = socket.enable_strict_checking(true);
        Ok(Self {
            netlink: socket,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Sends a request that is answered by an acknowledgement alone.
    pub(super) fn request(&mut self, kind: Rtm, flags: NlmF, body: Ifinfomsg) -> Result<()> {
        self.send(kind, flags | NlmF::ACK, body)?;
        self.replies(&mut |_| Ok(()))?;
        Ok(())
    }

    /// Sends a request that is answered by one message.
    pub(super) fn get(&mut self, kind: Rtm, body: Ifinfomsg) -> Result<Ifinfomsg> {
        self.send(kind, NlmF::ACK, body)?;
        let mut answer = None;
        self.replies(&mut |frame| {
            answer = frame.message()?.get_payload().cloned();
            Ok(())
        })?;
        answer.context("the kernel acknowledged the request, but sent no answer")
    }

    /// The number by which the socket's network namespace knows another one, if it does
    /// (`RTM_GETNSID`, whose header is shorter than those that neli pads).
    pub fn nsid(&mut self, netns: BorrowedFd<'_>) -> Result<Option<i32>> {
        let flags = (NlmF::REQUEST | NlmF::ACK).bits();
        let sequence = self.next_sequence();
        let mut bytes = 28_u32.to_ne_bytes().to_vec();
        bytes.extend(GETNSID.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 8]); // no port; no family, padded
        bytes.extend(8_u16.to_ne_bytes());
        bytes.extend(NETNSA_FD.to_ne_bytes());
        bytes.extend(netns.as_raw_fd().to_ne_bytes());
        self.send_bytes(&bytes)?;
        let mut found = None;
        self.replies(&mut |frame| {
            // The attribute is the first: NETNSA_NSID.
            let number = frame.bytes.get(HEADER + 8..HEADER + 12);
            let number = number.and_then(|bytes| bytes.try_into().ok());
            found = number.map(i32::from_ne_bytes).filter(|number| *number >= 0);
            Ok(())
        })?;
        Ok(found)
    }

    /// Lists links, as `body` asks for.
    ///
    /// Where the kernel says that things changed while it was listing them
    /// (`NLM_F_DUMP_INTR`), the list may be wrong: it is asked for again.
    pub(super) fn dump(&mut self, body: &Ifinfomsg) -> Result<Vec<Link>> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut links = Vec::new();
            self.send(Rtm::Getlink, NlmF::DUMP, body.clone())?;
            if self.replies(&mut |frame| frame.add_link(&mut links))? {
                return Ok(links);
            }
        }
        bail!("links changed during each of {DUMP_ATTEMPTS} attempts to list them")
    }

    fn send(&mut self, kind: Rtm, flags: NlmF, body: Ifinfomsg) -> Result<()> {
        let sequence = self.next_sequence();
        let message = NlmsghdrBuilder::default()
            .nl_type(kind)
            .nl_flags(flags | NlmF::REQUEST)
            .nl_seq(sequence)
            .nl_payload(NlPayload::Payload(body))
            .build()?;
        let mut bytes = Cursor::new(Vec::new());
        message.to_bytes(&mut bytes)?;
        self.send_bytes(bytes.get_ref())
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send_bytes(&self, bytes: &[u8]) -> Result<()> {
        let sent = self.netlink.send(bytes, Msg::empty());
        sent.context("sending a netlink request")?;
        Ok(())
    }

    /// Hands the replies to the request just sent to `each`, up to the final
    /// one. False if the kernel interrupted the dump.
    fn replies(&mut self, each: &mut dyn FnMut(&Frame<'_>) -> Result<()>) -> Result<bool> {
        let mut complete = true;
        loop {
            let length = self.receive()?;
            let datagram = &self.buffer[..length];
            if read(datagram, self.sequence, &mut complete, each)? {
                return Ok(complete);
            }
        }
    }

    fn receive(&mut self) -> Result<usize> {
        // With MSG_TRUNC the kernel returns the length that the datagram really had.
        let (length, _) = loop {
            match self.netlink.recv(&mut self.buffer, Msg::TRUNC) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other.context("receiving a netlink reply")?,
            }
        };
        ensure!(
            length <= self.buffer.len(),
            "a netlink reply of {length} bytes is longer than the kernel's own limit"
        );
        Ok(length)
    }
}

/// Hands the replies to request number `sequence` in a datagram to `each`. True if the final one
/// is among them; `complete` becomes false if the kernel interrupted the dump.
fn read(
    datagram: &[u8],
    sequence: u32,
    complete: &mut bool,
    each: &mut dyn FnMut(&Frame<'_>) -> Result<()>,
) -> Result<bool> {
    for frame in frames(datagram) {
        let frame = frame?;
        if frame.sequence != sequence {
            continue; // left over from a request that was given up
        }
        *complete &= frame.flags & NlmF::DUMP_INTR.bits() == 0;
        match frame.kind {
            DONE | ERROR => return outcome(&frame).map(|()| true),
            _ => each(&frame)?,
        }
    }
    Ok(false)
}

/// The links that one datagram tells of, in answer to a request of that number. What a socket
/// reads, for whoever wants to try it on other bytes than the kernel's.
pub fn read_links(datagram: &[u8], sequence: u32) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    read(datagram, sequence, &mut true, &mut |frame| {
        frame.add_link(&mut links)
    })?;
    Ok(links)
}

/// One message in a datagram.
struct Frame<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    bytes: &'a [u8],
}

impl Frame<'_> {
    fn message(&self) -> Result<Message> {
        Message::from_bytes(&mut Cursor::new(self.bytes)).context("decoding a netlink reply")
    }

    /// Adds the link that it tells of, if it tells of one.
    fn add_link(&self, links: &mut Vec<Link>) -> Result<()> {
        let link = self.message()?.get_payload().map(Link::decode);
        links.extend(link.transpose()?);
        Ok(())
    }
}

/// Splits a datagram into messages. neli's own iterator panics on a length that
/// is too short.
fn frames(datagram: &[u8]) -> impl Iterator<Item = Result<Frame<'_>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((frame, after)) = split(rest) else {
            rest = &[];
            return Some(Err(Error::msg("a netlink message whose length is wrong")));
        };
        rest = after;
        Some(Ok(frame))
    })
}

fn split(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let u16_at = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let length = usize::try_from(u32_at(0)?).ok()?;
    if length < HEADER || length > bytes.len() {
        return None;
    }
    let aligned = length.next_multiple_of(4).min(bytes.len());
    let frame = Frame {
        kind: u16_at(4)?,
        flags: u16_at(6)?,
        sequence: u32_at(8)?,
        bytes: &bytes[..aligned],
    };
    Some((frame, &bytes[aligned..]))
}

/// What the final message of a reply says.
fn outcome(frame: &Frame<'_>) -> Result<()> {
    let code = frame.bytes.get(HEADER..HEADER + 4);
    let code = code.and_then(|bytes| Some(i32::from_ne_bytes(bytes.try_into().ok()?)));
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(NetlinkError {
            errno: Errno::from_raw(code.wrapping_neg()),
            text: extended_text(frame),
        }
        .into()),
        None => bail!("a netlink acknowledgement that is too short"),
    }
}

/// The text of the extended acknowledgement, an attribute that may follow the error number and
/// the request, or its header alone. Not by neli, which panics where a request is cut short.
fn extended_text(frame: &Frame<'_>) -> Option<String> {
    if frame.flags & ACK_TLVS == 0 {
        return None;
    }
    let after_code = frame.bytes.get(HEADER + 4..)?;
    let attributes = if frame.kind == DONE {
        after_code
    } else {
        let request = u32::from_ne_bytes(after_code.get(..4)?.try_into().ok()?);
        let capped = frame.flags & CAPPED != 0;
        let request = if capped {
            HEADER
        } else {
            usize::try_from(request).ok()?
        };
        after_code.get(request.checked_next_multiple_of(4)?..)?
    };
    nested(attributes, ERROR_TEXT).map(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(length: u32, kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn splits_a_datagram_and_stops_at_a_wrong_length() {
        let mut datagram = header(20, DONE, &[0; 4]);
        datagram.extend(header(16, DONE, &[]));
        let sound: Vec<_> = frames(&datagram).collect();
        assert_eq!(sound.len(), 2);
        assert!(sound.iter().all(Result::is_ok));
        for length in [0, 15, 21, u32::MAX] {
            let broken = header(length, DONE, &[0; 4]);
            let seen: Vec<_> = frames(&broken).collect();
            assert_eq!(seen.len(), 1, "{length}");
            assert!(seen[0].is_err(), "{length}");
        }
        assert_eq!(frames(&[1, 2, 3]).filter(Result::is_err).count(), 1);
    }

    #[test]
    fn reads_the_outcome() {
        let of = |kind, body: &[u8]| {
            let bytes = header(16 + u32::try_from(body.len()).unwrap(), kind, body);
            let (frame, _) = split(&bytes).unwrap();
            outcome(&frame)
        };
        assert!(of(DONE, &0_i32.to_ne_bytes()).is_ok());
        let error = of(DONE, &(-19_i32).to_ne_bytes()).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::ENODEV));
        assert_eq!(
            error.to_string(),
            "the kernel answered No such device (ENODEV)"
        );
        assert!(of(DONE, &[]).is_err());
        assert!(of(ERROR, &(-1_i32).to_ne_bytes()).is_err());
    }

    #[test]
    fn reads_the_text_behind_a_whole_request_or_its_header() {
        let text = [9_u16.to_ne_bytes(), ERROR_TEXT.to_ne_bytes()].concat();
        let text = [&text[..], b"busy\0\0\0\0"].concat();
        let refused = |flags: u16, kind: u16, request: &[u8]| {
            let body = [&(-16_i32).to_ne_bytes()[..], request, &text].concat();
            let mut bytes = header(16 + u32::try_from(body.len()).unwrap(), kind, &body);
            bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
            outcome(&split(&bytes).unwrap().0).unwrap_err().to_string()
        };
        let with = "the kernel answered Device or resource busy (EBUSY): busy";
        let without = "the kernel answered Device or resource busy (EBUSY)";
        let whole = header(32, 16, &[0; 16]);
        let alone = header(4000, 16, &[]);
        assert_eq!(refused(ACK_TLVS, ERROR, &whole), with);
        assert_eq!(refused(ACK_TLVS | CAPPED, ERROR, &alone), with);
        assert_eq!(refused(ACK_TLVS, DONE, &[]), with);
        assert_eq!(refused(0, ERROR, &whole), without);
        // As no kernel sends it.
        assert_eq!(refused(ACK_TLVS, ERROR, &alone), without);
        assert_eq!(refused(ACK_TLVS, ERROR, &[0xff; 16]), without);
    }
}
