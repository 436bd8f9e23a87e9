//! Datagrams of netlink messages, taken apart.

use anyhow::{Error, Result, anyhow};
use nix::errno::Errno;

use super::{
    attr::{nested, text},
    error::NetlinkError,
};

/// Bytes of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;
/// `NLMSG_ERROR` and `NLMSG_DONE` of `linux/netlink.h`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`, and `NLM_F_CAPPED` and `NLM_F_ACK_TLVS` of an error message.
const INTERRUPTED: u16 = 0x10;
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`.
const ERROR_TEXT: u16 = 1;

/// One message in a datagram.
pub(super) struct Message<'a> {
    /// The type.
    pub(super) kind: u16,
    flags: u16,
    /// The number of the request that it answers.
    pub(super) sequence: u32,
    /// The whole message, header and padding included.
    pub(super) bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// Whether it ends the replies to a request.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.kind, DONE | ERROR)
    }

    /// Whether the kernel says that things changed while it listed them.
    pub(super) fn is_interrupted(&self) -> bool {
        self.flags & INTERRUPTED != 0
    }

    /// What is behind the header.
    pub(super) fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// What a final message says: done, or refused.
    pub(super) fn outcome(&self) -> Result<(), NetlinkError> {
        let code = self.payload().get(..4).and_then(|b| b.try_into().ok());
        match code.map(i32::from_ne_bytes) {
            Some(0) => Ok(()),
            Some(code) => Err(NetlinkError::Refused {
                errno: Errno::from_raw(code.wrapping_neg()),
                text: self.extended_text(),
            }),
            None => Err(anyhow!("a netlink acknowledgement that is too short").into()),
        }
    }

    /// The text of the extended acknowledgement, an attribute that may follow the error number
    /// and the request, or its header alone. Not by neli, which panics where a request is cut
    /// short.
    fn extended_text(&self) -> Option<String> {
        if self.flags & ACK_TLVS == 0 {
            return None;
        }
        let after_code = self.payload().get(4..)?;
        let request = match (self.kind, self.flags & CAPPED) {
            (DONE, _) => 0,
            (_, 0) => {
                let length = u32::from_ne_bytes(after_code.get(..4)?.try_into().ok()?);
                usize::try_from(length).ok()?.checked_next_multiple_of(4)?
            }
            _ => HEADER,
        };
        nested(after_code.get(request..)?, ERROR_TEXT).map(text)
    }
}

/// Splits a datagram into messages. neli's own iterator panics on a length that is too short.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((message, after)) = split(rest) else {
            rest = &[];
            return Some(Err(Error::msg("a netlink message whose length is wrong")));
        };
        rest = after;
        Some(Ok(message))
    })
}

fn split(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let u16_at = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let length = usize::try_from(u32_at(0)?).ok()?;
    if length < HEADER || length > bytes.len() {
        return None;
    }
    let aligned = length.next_multiple_of(4).min(bytes.len());
    let message = Message {
        kind: u16_at(4)?,
        flags: u16_at(6)?,
        sequence: u32_at(8)?,
        bytes: &bytes[..aligned],
    };
    Some((message, &bytes[aligned..]))
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
        let sound: Vec<_> = messages(&datagram).collect();
        assert_eq!(sound.len(), 2);
        assert!(sound.iter().all(Result::is_ok));
        for length in [0, 15, 21, u32::MAX] {
            let broken = header(length, DONE, &[0; 4]);
            let seen: Vec<_> = messages(&broken).collect();
            assert_eq!(seen.len(), 1, "{length}");
            assert!(seen[0].is_err(), "{length}");
        }
        assert_eq!(messages(&[1, 2, 3]).filter(Result::is_err).count(), 1);
    }

    #[test]
    fn reads_the_outcome() {
        let of = |kind, body: &[u8]| {
            let bytes = header(16 + u32::try_from(body.len()).unwrap(), kind, body);
            let (message, _) = split(&bytes).unwrap();
            message.outcome()
        };
        assert!(of(DONE, &0_i32.to_ne_bytes()).is_ok());
        let error = of(DONE, &(-19_i32).to_ne_bytes()).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENODEV));
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
            split(&bytes).unwrap().0.outcome().unwrap_err().to_string()
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
