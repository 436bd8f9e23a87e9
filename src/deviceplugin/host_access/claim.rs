//! What guests say of their addresses: the frames of ARP and of neighbour discovery. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use socket2::SockFilter;

use crate::{
    learning::{
        filter,
        frame::{ICMPV6, IPV6, NEIGHBOR_SOLICITATION, ROUTER_SOLICITATION},
    },
    netlink::bpf::{
        JUMP, JUMP_AT_LEAST, JUMP_EQUAL, JUMP_GREATER, LOAD_BYTE, LOAD_HALF, LOAD_WORD, RETURN,
    },
    types::mac::MacAddr,
};

/// An ethertype.
pub const ARP: u16 = 0x0806;
/// What an ARP for IPv4 over Ethernet begins with (RFC 826).
const ARP_START: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Where the parts of an IPv6 packet are in the frame.
const NEXT_HEADER: usize = 20;
const HOP_LIMIT: usize = 21;
const SOURCE: usize = 22;
const TYPE: usize = 54;
const TARGET: usize = 62;
/// The last four bytes of these, and the sender of an ARP.
const SOURCE_END: u32 = 34;
const TARGET_END: u32 = 74;
const ARP_SENDER: u32 = 28;
/// Neighbour discovery is ICMPv6 of types up to this one, and never forwarded (RFC 4861).
pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// `SKF_AD_OFF` with `SKF_AD_PKTTYPE` and `SKF_AD_IFINDEX`.
const PACKET_TYPE: u32 = 0xffff_f000 + 4;
const INTERFACE: u32 = 0xffff_f000 + 8;
/// `PACKET_OTHERHOST`: also what has the tag of a VLAN that there is not.
const OTHER_HOST: u32 = 3;
/// Jumps reach 255 instructions.
const MAX_INTERFACES: usize = 200;

/// A host says that it has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The host's hardware address.
    pub mac: MacAddr,
    /// The address.
    pub address: IpAddr,
}

/// What a frame says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Its sender has the address.
    Has(Claim),
    /// Its sender has the address in a moment, unless another host answers.
    Takes(Claim),
}

impl Statement {
    /// Reads an untagged frame. None if it claims no address.
    #[must_use]
    pub fn read(frame: &[u8]) -> Option<Self> {
        let mac = MacAddr(frame.get(6..12)?.try_into().ok()?);
        let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
        match kind {
            ARP => {
                let address = sender(frame, mac)?.into();
                Some(Self::Has(Claim { mac, address }))
            }
            IPV6 => neighbor_discovery(frame, mac),
            _ => None,
        }
    }

    /// Who claims which address.
    #[must_use]
    pub fn claim(self) -> Claim {
        match self {
            Self::Has(claim) | Self::Takes(claim) => claim,
        }
    }
}

/// The sender of an ARP. One that looks whether an address is free has none, and announces the address
/// once it is (RFC 5227).
fn sender(frame: &[u8], mac: MacAddr) -> Option<Ipv4Addr> {
    let packet = frame.get(14..42)?;
    let is_own = packet.starts_with(&ARP_START) && packet[8..14] == mac.0;
    let address: [u8; 4] = packet[14..18].try_into().ok()?;
    Some(address.into()).filter(|address: &Ipv4Addr| is_own && !address.is_unspecified())
}

/// Who solicits, the address that is advertised, or the one that is looked for before it is taken: a
/// host that has found it free does not have to announce it (RFC 4862).
fn neighbor_discovery(frame: &[u8], mac: MacAddr) -> Option<Statement> {
    let is_discovery =
        frame.get(NEXT_HEADER) == Some(&ICMPV6) && frame.get(HOP_LIMIT) == Some(&255);
    let kind = *frame.get(TYPE).filter(|_| is_discovery)?;
    let address = |at: usize| {
        let bytes: [u8; 16] = frame.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(bytes)).filter(|address| !address.is_unspecified())
    };
    let claim = |address: Ipv6Addr| Claim {
        mac,
        address: address.into(),
    };
    match kind {
        ROUTER_SOLICITATION => Some(Statement::Has(claim(address(SOURCE)?))),
        NEIGHBOR_ADVERTISEMENT => Some(Statement::Has(claim(address(TARGET)?))),
        NEIGHBOR_SOLICITATION => Some(match (address(SOURCE), address(TARGET)?) {
            (Some(source), _) => Statement::Has(claim(source)),
            (None, target) => Statement::Takes(claim(target)),
        }),
        _ => None,
    }
}

/// The filter of a packet socket: lets through what may be a claim, received by one of
/// `interfaces` from one of `macs`.
#[must_use]
pub fn from_guests(interfaces: &BTreeSet<u32>, macs: &BTreeSet<MacAddr>) -> Vec<SockFilter> {
    let mut program = received_by(interfaces);
    program.extend([
        step(LOAD_WORD, PACKET_TYPE, 0, 0),
        step(JUMP_EQUAL, OTHER_HOST, 7, 0),
        step(LOAD_HALF, 12, 0, 0),
        step(JUMP_EQUAL, ARP.into(), 6, 0),
        step(LOAD_BYTE, 20, 0, 0),
        step(JUMP_EQUAL, ICMPV6.into(), 0, 3),
        step(LOAD_BYTE, 54, 0, 0),
        step(JUMP_AT_LEAST, ROUTER_SOLICITATION.into(), 0, 1),
        step(JUMP_GREATER, NEIGHBOR_ADVERTISEMENT.into(), 0, 1),
        step(RETURN, 0, 0, 0),
    ]);
    program.extend(filter::from(macs));
    program
}

/// The filter of a packet socket: lets through what may say that its sender has one of `addresses`,
/// received by one of `interfaces`. Of IPv6 addresses the last four bytes are compared.
#[must_use]
pub fn from_the_wire(interfaces: &BTreeSet<u32>, addresses: &BTreeSet<IpAddr>) -> Vec<SockFilter> {
    let mut program = received_by(interfaces);
    program.extend([
        step(LOAD_WORD, PACKET_TYPE, 0, 0),
        step(JUMP_EQUAL, OTHER_HOST, 10, 0),
        step(LOAD_HALF, 12, 0, 0),
        step(JUMP_EQUAL, ARP.into(), 11, 0),
        step(LOAD_BYTE, 20, 0, 0),
        step(JUMP_EQUAL, ICMPV6.into(), 0, 6),
        step(LOAD_BYTE, 54, 0, 0),
        step(JUMP_EQUAL, NEIGHBOR_ADVERTISEMENT.into(), 5, 0),
        step(JUMP_AT_LEAST, ROUTER_SOLICITATION.into(), 0, 3),
        step(JUMP_GREATER, NEIGHBOR_ADVERTISEMENT.into(), 2, 0),
        step(LOAD_WORD, SOURCE_END, 0, 0),
        step(JUMP, 4, 0, 0),
        step(RETURN, 0, 0, 0),
        step(LOAD_WORD, TARGET_END, 0, 0),
        step(JUMP, 1, 0, 0),
        step(LOAD_WORD, ARP_SENDER, 0, 0),
    ]);
    let ends = addresses.iter().map(|address| match address {
        IpAddr::V4(ip) => ip.to_bits(),
        IpAddr::V6(ip) => u32::try_from(ip.to_bits() & 0xffff_ffff).unwrap_or_default(),
    });
    program.extend(filter::any_of(&ends.collect()));
    program
}

/// The beginning of a program: stops what others than these interfaces received.
fn received_by(interfaces: &BTreeSet<u32>) -> Vec<SockFilter> {
    let mut program = vec![step(LOAD_WORD, INTERFACE, 0, 0)];
    let count = interfaces.len().min(MAX_INTERFACES);
    for (place, index) in interfaces.iter().take(count).enumerate() {
        let away = u8::try_from(count - place).unwrap_or(u8::MAX);
        program.push(step(JUMP_EQUAL, *index, away, 0));
    }
    program.push(step(RETURN, 0, 0, 0));
    program
}

fn step(code: u16, operand: u32, yes: u8, no: u8) -> SockFilter {
    SockFilter::new(code, yes, no, operand)
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
        let has = |frame: &[u8]| match Statement::read(frame) {
            Some(Statement::Has(claim)) => Some(claim.address.to_string()),
            _ => None,
        };
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
            assert_eq!(has(&frame).as_deref(), expected, "{frame:?}");
            let whole = Statement::read(&frame);
            for end in 0..frame.len() {
                let part = Statement::read(&frame[..end]);
                assert!(part.is_none() || part == whole, "{end} of {frame:?}");
            }
        }
    }

    #[test]
    fn reads_who_is_about_to_take_an_address() {
        let frame = discovery(135, 255, "::", "2001:db8::5");
        let claim = Claim {
            mac: MacAddr(MAC),
            address: "2001:db8::5".parse().unwrap(),
        };
        assert_eq!(Statement::read(&frame), Some(Statement::Takes(claim)));
        assert_eq!(
            Statement::read(&discovery(135, 64, "::", "2001:db8::5")),
            None
        );
        assert_eq!(Statement::read(&discovery(135, 255, "::", "::")), None);
    }
}
