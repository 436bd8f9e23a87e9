//! The frames by which the node answers guests, and asks them for addresses. Pure.

use std::net::{IpAddr, Ipv6Addr};

use super::claim::{ARP, Claim, NEIGHBOR_ADVERTISEMENT};
use crate::{
    learning::frame::{ICMPV6, IPV6, NEIGHBOR_SOLICITATION},
    netlink::Neighbor,
    types::mac::MacAddr,
};

/// What an ARP for IPv4 over Ethernet begins with, and its operations (RFC 826).
const ARP_START: [u8; 7] = [0, 1, 8, 0, 6, 4, 0];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
/// Of a neighbour advertisement: solicited, and in place of what the guest knew (RFC 4861, 4.4).
const SOLICITED_OVERRIDE: u8 = 0x60;
/// `ND_OPT_SOURCE_LL_ADDR` and `ND_OPT_TARGET_LL_ADDR`.
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;
/// Bytes of a message with that option.
const MESSAGE: u8 = 32;

/// The frame by which `node` says to `guest` that it has its address. None if they are of different
/// families.
#[must_use]
pub fn answer(node: Claim, guest: &Neighbor) -> Option<Vec<u8>> {
    let packet = match (node.address, guest.address) {
        (IpAddr::V4(own), IpAddr::V4(other)) => {
            let start = [&ARP_START[..], &[REPLY]].concat();
            let own = [&node.mac.0[..], &own.octets()].concat();
            [&start[..], &own, &guest.mac.0, &other.octets()].concat()
        }
        (IpAddr::V6(own), IpAddr::V6(other)) => discovery(
            [own, other],
            [NEIGHBOR_ADVERTISEMENT, SOLICITED_OVERRIDE],
            own,
            (TARGET_OPTION, node.mac),
        ),
        _ => return None,
    };
    Some(frame(node, guest, &packet))
}

/// The frame by which `node` asks `guest` for its hardware address, if it has the address. None if
/// they are of different families.
#[must_use]
pub fn question(node: Claim, guest: &Neighbor) -> Option<Vec<u8>> {
    let packet = match (node.address, guest.address) {
        (IpAddr::V4(own), IpAddr::V4(wanted)) => {
            let start = [&ARP_START[..], &[REQUEST]].concat();
            let own = [&node.mac.0[..], &own.octets()].concat();
            [&start[..], &own, &[0; 6], &wanted.octets()].concat()
        }
        (IpAddr::V6(own), IpAddr::V6(wanted)) => discovery(
            [own, solicited_node(wanted)],
            [NEIGHBOR_SOLICITATION, 0],
            wanted,
            (SOURCE_OPTION, node.mac),
        ),
        _ => return None,
    };
    Some(frame(node, guest, &packet))
}

fn frame(node: Claim, guest: &Neighbor, packet: &[u8]) -> Vec<u8> {
    let ethertype = if node.address.is_ipv4() { ARP } else { IPV6 };
    [
        &guest.mac.0[..],
        &node.mac.0,
        &ethertype.to_be_bytes(),
        packet,
    ]
    .concat()
}

/// The group of the hosts that have an address which ends as this one does (RFC 4291, 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0);
    Ipv6Addr::from_bits(group.to_bits() | (address.to_bits() & 0xff_ffff))
}

/// A message of neighbour discovery about `target`, from the first of these addresses to the second:
/// its type, its flags, and its option.
fn discovery(
    addresses: [Ipv6Addr; 2],
    [kind, flags]: [u8; 2],
    target: Ipv6Addr,
    (option, mac): (u8, MacAddr),
) -> Vec<u8> {
    let addresses = addresses.map(|address| address.octets()).concat();
    let header = [0x60, 0, 0, 0, 0, MESSAGE, ICMPV6, 255];
    let start = [kind, 0, 0, 0, flags, 0, 0, 0];
    // An option's length is counted in units of 8 bytes.
    let mut message = [&start[..], &target.octets(), &[option, 1], &mac.0].concat();
    let pseudo = [0, 0, 0, MESSAGE, 0, 0, 0, ICMPV6];
    let sum = checksum(&[&addresses[..], &pseudo, &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    [&header[..], &addresses, &message].concat()
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| match *word {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::claim::Statement, *};

    const NODE: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 5]);

    fn between(own: &str, other: &str) -> (Claim, Neighbor) {
        let (mac, address) = (NODE, own.parse().unwrap());
        let node = Claim { mac, address };
        let (mac, address) = (GUEST, other.parse().unwrap());
        (node, Neighbor { address, mac })
    }

    #[test]
    fn both_say_that_the_node_has_its_address() {
        for (own, other) in [("10.0.0.1", "10.0.0.5"), ("fd00::1", "fd00::5")] {
            let (node, guest) = between(own, other);
            for frame in [answer(node, &guest), question(node, &guest)] {
                let frame = frame.unwrap();
                assert_eq!(Statement::read(&frame), Some(Statement::Has(node)));
                assert_eq!(frame[..6], GUEST.0);
            }
        }
        let (node, guest) = between("10.0.0.1", "fd00::5");
        assert_eq!((answer(node, &guest), question(node, &guest)), (None, None));
    }

    #[test]
    fn the_checksum_is_right() {
        let (node, guest) = between("fd00::1", "fd00::1:2345");
        for frame in [answer(node, &guest), question(node, &guest)] {
            let frame = frame.unwrap();
            let pseudo = [0, 0, 0, MESSAGE, 0, 0, 0, ICMPV6];
            let sum = checksum(&[&frame[22..54], &pseudo, &frame[54..]].concat());
            assert_eq!(sum, 0);
        }
    }

    #[test]
    fn the_group_of_an_address_has_its_last_three_bytes() {
        let group = solicited_node("fd00::4001:2345".parse().unwrap());
        assert_eq!(group.to_string(), "ff02::1:ff01:2345");
    }
}
