//! A frame, as far as learning reads it.

use crate::types::mac::MacAddr;

/// The part of a frame by which a reflection is recognised: Ethernet header and ARP packet.
pub const HEAD: usize = 42;
const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
/// Ethertypes of VLAN tags, 802.1Q and 802.1ad.
const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// Hop-by-hop options, and ICMPv6 with the types of multicast listener reports (RFC 2710, RFC 3810), of
/// the end of one, of router solicitations and of neighbour solicitations (RFC 4861).
const HOP_BY_HOP: u8 = 0;
pub(crate) const ICMPV6: u8 = 58;
const LISTENER_REPORT: [u8; 3] = [131, 132, 143];
pub(crate) const ROUTER_SOLICITATION: u8 = 133;
pub(crate) const NEIGHBOR_SOLICITATION: u8 = 135;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The first bytes of a frame.
pub type Head = [u8; HEAD];

/// What learning needs to know of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The source address.
    pub source: MacAddr,
    /// Whether it is a RARP, by which QEMU announces a migrated guest.
    pub rarp: bool,
    /// What it is for.
    pub purpose: Purpose,
    /// Whether it has a VLAN tag. The kernel takes the tag off frames that come in.
    pub tagged: bool,
    /// Its first bytes; zeroes after a shorter frame.
    pub head: Head,
}

/// What a frame is for, as far as that matters to learning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It shows all stations where its sender is: a RARP, or an ARP about the sender itself.
    Announcement,
    /// A kernel sends it by itself to keep its IPv6 in order, whether anyone uses that or not: which
    /// groups it listens to, which routers there are, whether an address is free.
    Housekeeping,
    /// Anything else.
    Other,
}

impl Frame {
    /// Reads an Ethernet frame. None if it is too short to have a header.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let source = MacAddr(bytes.get(6..12)?.try_into().ok()?);
        let kind = u16::from_be_bytes(bytes.get(12..14)?.try_into().ok()?);
        let mut head = [0; HEAD];
        let length = bytes.len().min(HEAD);
        head[..length].copy_from_slice(&bytes[..length]);
        // Sender's and target's protocol address, of the ARP that is for IPv4 (RFC 826).
        let about_itself = kind == ARP && length == HEAD && head[28..32] == head[38..42];
        let group = bytes[0] & 1 == 1;
        Some(Self {
            source,
            tagged: TAGS.contains(&kind),
            rarp: kind == RARP,
            purpose: if group && (kind == RARP || about_itself) {
                Purpose::Announcement
            } else if kind == IPV6 && is_housekeeping(&bytes[14..]) {
                Purpose::Housekeeping
            } else {
                Purpose::Other
            },
            head,
        })
    }
}

impl Purpose {
    /// Whether it is an announcement.
    #[must_use]
    pub fn is_announcement(self) -> bool {
        self == Self::Announcement
    }
}

/// Whether an IPv6 packet is one by which a kernel keeps its IPv6 in order.
fn is_housekeeping(packet: &[u8]) -> bool {
    let byte = |at: usize| packet.get(at).copied();
    match (byte(6), byte(40), byte(48)) {
        // A report has the router alert option before it.
        (Some(HOP_BY_HOP), Some(ICMPV6), Some(kind)) => LISTENER_REPORT.contains(&kind),
        (Some(ICMPV6), Some(ROUTER_SOLICITATION), _) => true,
        (Some(ICMPV6), Some(NEIGHBOR_SOLICITATION), _) => packet[8..24] == [0; 16],
        _ => false,
    }
}

/// Completes the checksum of a TCP or UDP packet that the sender left to its NIC.
/// What is no such packet, or not a whole one, stays as it is.
pub fn complete_checksum(frame: &mut [u8]) {
    let Some((pseudo, at, kind)) = transport(frame) else {
        return;
    };
    let field = at + if kind == TCP { 16 } else { 6 };
    let Some(checksum) = frame.get_mut(field..field + 2) else {
        return;
    };
    if kind == UDP && checksum == [0, 0] {
        return; // The sender does without.
    }
    checksum.fill(0);
    let sum = match fold(pseudo + sum(&frame[at..])) {
        0xffff if kind == UDP => 0xffff, // A zero would mean that there is none (RFC 768).
        sum => !sum,
    };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The sum of the pseudo header, where the transport header is, and its protocol. The frame
/// has to end with the packet: padding would count.
fn transport(frame: &[u8]) -> Option<(u32, usize, u8)> {
    let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
    let packet = frame.get(14..)?;
    let (protocol, at, addresses) = match kind {
        IPV4 => {
            let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
            let length = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            let whole = fragment == 0 && length == packet.len();
            // Version 4, and the header's length in words, of which five are always there.
            let words = packet[0]
                .checked_sub(0x40)
                .filter(|words| (5..16).contains(words))?;
            let at = usize::from(words) * 4;
            (whole.then_some(*packet.get(9)?)?, at, packet.get(12..20)?)
        }
        IPV6 => {
            let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            let whole = packet[0] >> 4 == 6 && length + 40 == packet.len();
            (whole.then_some(*packet.get(6)?)?, 40, packet.get(8..40)?)
        }
        _ => return None,
    };
    let length = u32::try_from(packet.len().checked_sub(at)?).ok()?;
    let pseudo = sum(addresses) + u32::from(protocol) + length;
    matches!(protocol, TCP | UDP).then_some((pseudo, 14 + at, protocol))
}

fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|word| match *word {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    // 64 KiB of 0xffff do not overflow.
    words.sum()
}

fn fold(mut sum: u32) -> u16 {
    while let (carry @ 1.., low) = (sum >> 16, sum & 0xffff) {
        sum = carry + low;
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn frame(destination: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
        [&destination[..], &MAC, &kind.to_be_bytes(), payload].concat()
    }

    fn arp(spa: [u8; 4], tpa: [u8; 4]) -> Vec<u8> {
        let start = [0, 1, 8, 0, 6, 4, 0, 1];
        let payload = [&start[..], &MAC, &spa, &[0; 6], &tpa].concat();
        frame([0xff; 6], ARP, &payload)
    }

    #[test]
    fn recognises_announcements() {
        let read = |bytes: &[u8]| Frame::read(bytes).unwrap();
        let rarp = read(&frame([0xff; 6], RARP, &[0; 28]));
        assert!(rarp.rarp && rarp.purpose.is_announcement() && !rarp.tagged);
        assert!(read(&frame([0xff; 6], 0x8100, &[0; 28])).tagged);
        assert_eq!(rarp.source, MacAddr(MAC));
        assert!(
            read(&arp([10, 0, 0, 1], [10, 0, 0, 1]))
                .purpose
                .is_announcement()
        );
        assert!(
            !read(&arp([10, 0, 0, 1], [10, 0, 0, 2]))
                .purpose
                .is_announcement()
        );
        assert!(
            !read(&arp([10, 0, 0, 1], [10, 0, 0, 1])[..41])
                .purpose
                .is_announcement()
        );
        let unicast = read(&frame([2, 0, 0, 0, 0, 2], RARP, &[0; 28]));
        assert!(!unicast.purpose.is_announcement());
        assert_eq!(Frame::read(&[0; 13]), None);
    }

    #[test]
    fn recognises_what_a_kernel_sends_by_itself() {
        let packet = |next: u8, source: u8, rest: &[u8]| {
            let mut packet = vec![0x60, 0, 0, 0, 0, 24, next, 255];
            packet.extend([[source; 16], [0xff; 16]].concat());
            packet.extend(rest);
            packet.resize(80, 0);
            frame([0x33; 6], IPV6, &packet)
        };
        let report = |kind| packet(0, 0xfe, &[58, 0, 5, 2, 0, 0, 1, 0, kind]);
        for (bytes, expected) in [
            (report(143), true),
            (report(131), true),
            (report(130), false),
            (packet(58, 0xfe, &[133]), true),
            (packet(58, 0, &[135]), true),
            (packet(58, 0xfe, &[135]), false),
            (packet(58, 0xfe, &[136]), false),
            (packet(17, 0xfe, &[133]), false),
        ] {
            assert_eq!(
                Frame::read(&bytes).unwrap().purpose == Purpose::Housekeeping,
                expected
            );
        }
        let cut_short = &packet(58, 0, &[135])[..60];
        for end in 14..cut_short.len() {
            Frame::read(&cut_short[..end]).unwrap();
        }
    }

    #[test]
    fn completes_a_checksum_that_was_left_out() {
        // An IPv4 packet with UDP, 10.0.0.1 to 10.0.0.2, ports 1 and 2, "hi!".
        let mut packet = vec![0x45, 0, 0, 31, 0, 0, 0, 0, 64, UDP, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 11, 0x14, 0x1c]);
        packet.extend(b"hi!");
        let mut whole = frame([0xff; 6], IPV4, &packet);
        complete_checksum(&mut whole);
        // One's complement of the sum over pseudo header, UDP header and payload.
        assert_eq!(
            fold(transport(&whole).unwrap().0 + sum(&whole[34..])),
            0xffff
        );
        for end in 0..whole.len() {
            let mut part = whole[..end].to_vec();
            complete_checksum(&mut part);
            assert_eq!(part, whole[..end], "not a whole packet");
        }
    }
}
