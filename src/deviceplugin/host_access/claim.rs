//! What guests say of their addresses: the frames of ARP and of neighbour discovery. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use socket2::SockFilter;

use crate::{
    learning::filter,
    netlink::bpf::{
        JUMP_AT_LEAST, JUMP_EQUAL, JUMP_GREATER, LOAD_BYTE, LOAD_HALF, LOAD_WORD, RETURN,
    },
    types::mac::MacAddr,
};

/// Ethertypes.
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;
/// What an ARP for IPv4 over Ethernet begins with (RFC 826).
const ARP_START: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Where the parts of an IPv6 packet are in the frame.
const NEXT_HEADER: usize = 20;
const HOP_LIMIT: usize = 21;
const TYPE: usize = 54;
/// Neighbour discovery is ICMPv6, of these types, and never forwarded (RFC 4861).
const ICMPV6: u8 = 58;
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// `SKF_AD_OFF` with `SKF_AD_PKTTYPE` and `SKF_AD_IFINDEX`.
const PACKET_TYPE: u32 = 0xffff_f000 + 4;
const INTERFACE: u32 = 0xffff_f000 + 8;
/// `PACKET_OTHERHOST`: also what has the tag of a VLAN that there is not.
const OTHER_HOST: u32 = 3;
/// Jumps reach 255 instructions.
const MAX_INTERFACES: usize = 250;

/// A host says that it has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The host's hardware address.
    pub mac: MacAddr,
    /// The address.
    pub address: IpAddr,
}

impl Claim {
    /// Reads an untagged frame. None if it claims no address.
    #[must_use]
    pub fn read(frame: &[u8]) -> Option<Self> {
        let mac = MacAddr(frame.get(6..12)?.try_into().ok()?);
        let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
        let address = match kind {
            ARP => sender(frame, mac)?.into(),
            IPV6 => owner(frame)?.into(),
            _ => return None,
        };
        Some(Self { mac, address })
    }
}

/// The sender of an ARP. One that looks whether an address is free has none (RFC 5227).
fn sender(frame: &[u8], mac: MacAddr) -> Option<Ipv4Addr> {
    let packet = frame.get(14..42)?;
    let is_own = packet.starts_with(&ARP_START) && packet[8..14] == mac.0;
    let address: [u8; 4] = packet[14..18].try_into().ok()?;
    Some(address.into()).filter(|address: &Ipv4Addr| is_own && !address.is_unspecified())
}

/// Who solicits, or the address that is advertised. One that looks whether an address is free has
/// none (RFC 4862).
fn owner(frame: &[u8]) -> Option<Ipv6Addr> {
    let is_discovery =
        frame.get(NEXT_HEADER) == Some(&ICMPV6) && frame.get(HOP_LIMIT) == Some(&255);
    let at = match *frame.get(TYPE)? {
        ROUTER_SOLICITATION | NEIGHBOR_SOLICITATION => 22,
        NEIGHBOR_ADVERTISEMENT => 62,
        _ => return None,
    };
    let address: [u8; 16] = frame.get(at..at + 16)?.try_into().ok()?;
    Some(address.into()).filter(|address: &Ipv6Addr| is_discovery && !address.is_unspecified())
}

/// The filter of a packet socket: lets through what may be a claim, received by one of
/// `interfaces` from one of `macs`.
#[must_use]
pub fn program(interfaces: &BTreeSet<u32>, macs: &BTreeSet<MacAddr>) -> Vec<SockFilter> {
    let step = |code, operand, yes, no| SockFilter::new(code, yes, no, operand);
    let mut program = vec![step(LOAD_WORD, INTERFACE, 0, 0)];
    let count = interfaces.len().min(MAX_INTERFACES);
    for (place, index) in interfaces.iter().take(count).enumerate() {
        let away = u8::try_from(count - place).unwrap_or(u8::MAX);
        program.push(step(JUMP_EQUAL, *index, away, 0));
    }
    let (icmpv6, first, last) = (ICMPV6, ROUTER_SOLICITATION, NEIGHBOR_ADVERTISEMENT);
    program.extend([
        step(RETURN, 0, 0, 0),
        step(LOAD_WORD, PACKET_TYPE, 0, 0),
        step(JUMP_EQUAL, OTHER_HOST, 7, 0),
        step(LOAD_HALF, 12, 0, 0),
        step(JUMP_EQUAL, ARP.into(), 6, 0),
        step(LOAD_BYTE, 20, 0, 0),
        step(JUMP_EQUAL, icmpv6.into(), 0, 3),
        step(LOAD_BYTE, 54, 0, 0),
        step(JUMP_AT_LEAST, first.into(), 0, 1),
        step(JUMP_GREATER, last.into(), 0, 1),
        step(RETURN, 0, 0, 0),
    ]);
    program.extend(filter::from(macs));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn frame(kind: u16, packet: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &MAC, &kind.to_be_bytes(), packet].concat()
    }

    fn arp(sha: [u8; 6], spa: [u8; 4]) -> Vec<u8> {
        let packet = [&ARP_START[..], &[0, 1], &sha, &spa, &[0; 6], &[10, 0, 0, 9]];
        frame(ARP, &packet.concat())
    }

    fn discovery(kind: u8, hops: u8, source: &str, target: &str) -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let start = [0x60, 0, 0, 0, 0, 24, ICMPV6, hops];
        let addresses = [address(source), address("ff02::1")].concat();
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &address(target)].concat();
        frame(IPV6, &[&start[..], &addresses, &message].concat())
    }

    #[test]
    fn reads_who_has_an_address() {
        let (own, other, any) = ("2001:db8::5", "2001:db8::9", "::");
        for (frame, expected) in [
            (arp(MAC, [10, 0, 0, 5]), Some("10.0.0.5")),
            (arp(MAC, [0; 4]), None),
            (arp([2; 6], [10, 0, 0, 5]), None),
            (frame(0x0800, &[0; 40]), None),
            (discovery(135, 255, own, other), Some(own)),
            (discovery(135, 255, any, own), None),
            (discovery(136, 255, "fe80::1", own), Some(own)),
            (discovery(133, 255, own, any), Some(own)),
            (discovery(134, 255, own, other), None),
            (discovery(135, 64, own, other), None),
        ] {
            let claim = Claim::read(&frame);
            let address = claim.map(|claim| claim.address.to_string());
            assert_eq!(address.as_deref(), expected, "{frame:?}");
            for end in 0..frame.len() {
                let part = Claim::read(&frame[..end]);
                assert!(part.is_none() || part == claim, "{end} of {frame:?}");
            }
        }
    }
}
