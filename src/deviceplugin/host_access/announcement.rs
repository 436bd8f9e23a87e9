//! The frame that answers a guest that asks for the node's hardware address, or has another one. Pure.

use std::net::IpAddr;

use super::claim::{ARP, Claim, IPV6};
use crate::{netlink::Neighbor, types::mac::MacAddr};

/// Of a neighbour advertisement: solicited, and in place of what the guest knew (RFC 4861, 4.4).
const SOLICITED_OVERRIDE: u8 = 0x60;
/// `ND_OPT_TARGET_LL_ADDR`, of one unit of 8 bytes.
const TARGET_OPTION: [u8; 2] = [2, 1];
/// Bytes of a neighbour advertisement with that option.
const ADVERTISEMENT: u8 = 32;
const ICMPV6: u8 = 58;

/// The frame by which `node` says to `guest` that it has its address. None if they are of different
/// families.
#[must_use]
pub fn frame(node: Claim, guest: &Neighbor) -> Option<Vec<u8>> {
    let (ethertype, packet) = match (node.address, guest.address) {
        (IpAddr::V4(own), IpAddr::V4(other)) => {
            let start = [0, 1, 8, 0, 6, 4, 0, 2];
            let own = [&node.mac.0[..], &own.octets()].concat();
            let other = [&guest.mac.0[..], &other.octets()].concat();
            (ARP, [&start[..], &own, &other].concat())
        }
        (IpAddr::V6(own), IpAddr::V6(other)) => {
            let addresses = [own.octets(), other.octets()].concat();
            (IPV6, advertisement(node.mac, &addresses))
        }
        _ => return None,
    };
    Some(
        [
            &guest.mac.0[..],
            &node.mac.0,
            &ethertype.to_be_bytes(),
            &packet,
        ]
        .concat(),
    )
}

/// A neighbour advertisement of the first of these addresses to the second.
fn advertisement(mac: MacAddr, addresses: &[u8]) -> Vec<u8> {
    let header = [0x60, 0, 0, 0, 0, ADVERTISEMENT, ICMPV6, 255];
    let start = [136, 0, 0, 0, SOLICITED_OVERRIDE, 0, 0, 0];
    let mut message = [&start[..], &addresses[..16], &TARGET_OPTION, &mac.0].concat();
    let pseudo = [0, 0, 0, ADVERTISEMENT, 0, 0, 0, ICMPV6];
    let sum = checksum(&[addresses, &pseudo, &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    [&header[..], addresses, &message].concat()
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
    use super::*;

    const NODE: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 5]);

    fn between(own: &str, other: &str) -> (Claim, Option<Vec<u8>>) {
        let node = Claim {
            mac: NODE,
            address: own.parse().unwrap(),
        };
        let guest = Neighbor {
            mac: GUEST,
            address: other.parse().unwrap(),
        };
        (node, frame(node, &guest))
    }

    #[test]
    fn says_that_the_node_has_its_address() {
        for (own, other) in [("10.0.0.1", "10.0.0.5"), ("fd00::1", "fd00::5")] {
            let (node, frame) = between(own, other);
            let frame = frame.unwrap();
            assert_eq!(Claim::read(&frame), Some(node));
            assert_eq!(frame[..6], GUEST.0);
        }
        assert_eq!(between("10.0.0.1", "fd00::5").1, None);
    }

    #[test]
    fn the_checksum_is_right() {
        let frame = between("fd00::1", "fd00::5").1.unwrap();
        let pseudo = [0, 0, 0, ADVERTISEMENT, 0, 0, 0, ICMPV6];
        assert_eq!(
            checksum(&[&frame[22..54], &pseudo, &frame[54..]].concat()),
            0
        );
    }
}
