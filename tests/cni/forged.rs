//! Frames that a guest forges, and what it has to be able to send.

/// The guest's MAC and addresses.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
pub const IPV4: [u8; 4] = [192, 0, 2, 5];
pub const IPV6: [u8; 16] = ipv6(5);
/// The link-local address of [`MAC`].
pub const LINK_LOCAL: [u8; 16] = [
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0xaa,
];
/// Those of another.
pub const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0xbb];
pub const OTHER_IPV4: [u8; 4] = [192, 0, 2, 1];
pub const OTHER_IPV6: [u8; 16] = ipv6(1);
const NONE: [u8; 16] = [0; 16];

const fn ipv6(host: u8) -> [u8; 16] {
    [
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host,
    ]
}

/// A frame without its destination, tags, and what marks it.
#[derive(Clone)]
pub struct Frame {
    pub source: [u8; 6],
    pub ethertype: u16,
    pub payload: Vec<u8>,
    /// Where the transport header is in the payload, and which kind of segments can be cut, if
    /// the payload is a TCP or UDP packet.
    pub transport: Option<Transport>,
}

impl Frame {
    pub fn is_ipv4_fragment(&self) -> bool {
        let flags = self.payload.get(6..8).unwrap_or_default();
        self.ethertype == 0x0800 && flags.iter().any(|byte| byte & 0x3f != 0)
    }
}

/// How a packet can be cut.
#[derive(Clone, Copy)]
pub struct Transport {
    pub offset: usize,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso: u8,
    /// Where the checksum is behind `offset`, and how long the header is.
    pub checksum: u16,
    pub length: usize,
}

/// A kind of frame, and whether it passes with `"security": "mac"`.
pub struct Kind {
    pub name: &'static str,
    pub mac: bool,
    pub frame: Frame,
}

fn frame(ethertype: u16, payload: Vec<u8>) -> Frame {
    Frame {
        source: MAC,
        ethertype,
        payload,
        transport: None,
    }
}

// === packets ===

pub fn arp(operation: u8, sender: ([u8; 6], [u8; 4]), target: [u8; 4]) -> Frame {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(sender.0.iter().chain(&sender.1));
    packet.extend([0; 6].iter().chain(&target));
    frame(0x0806, packet)
}

pub fn rarp(sender: [u8; 6], address: [u8; 4]) -> Frame {
    let packet = arp(3, (sender, address), address);
    Frame {
        ethertype: 0x8035,
        ..packet
    }
}

pub fn ipv4(protocol: u8, source: [u8; 4], payload: &[u8]) -> Frame {
    ipv4_with(&[], 0, (protocol, source), payload)
}

fn ipv4_with(options: &[u8], fragment: u16, header: (u8, [u8; 4]), payload: &[u8]) -> Frame {
    let (protocol, source) = header;
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    let length = u16::try_from(20 + options.len() + payload.len()).unwrap();
    let mut packet = vec![0x40 | words, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source);
    packet.extend([192, 0, 2, 77]);
    packet.extend(options);
    let offset = packet.len();
    packet.extend(payload);
    let transport = (fragment == 0).then(|| transport(protocol, offset, 1));
    Frame {
        transport: transport.flatten(),
        ..frame(0x0800, packet)
    }
}

fn transport(protocol: u8, offset: usize, tcp: u8) -> Option<Transport> {
    let (gso, checksum, length) = match protocol {
        6 => (tcp, 16, 20),
        17 => (5, 6, 8),
        _ => return None,
    };
    Some(Transport {
        offset,
        gso,
        checksum,
        length,
    })
}

pub fn ipv6_packet(next: u8, source: [u8; 16], payload: &[u8]) -> Frame {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(source);
    packet.extend(ipv6(77));
    packet.extend(payload);
    Frame {
        transport: transport(next, 40, 4),
        ..frame(0x86dd, packet)
    }
}

pub fn tcp() -> Vec<u8> {
    let mut header = vec![0x30, 0x39, 0, 80];
    header.extend([0; 8]);
    header.extend([0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

pub fn udp(from: u16, to: u16) -> Vec<u8> {
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    [&ports[..], &[0, 8, 0, 0]].concat()
}

fn message(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], &parts.concat()[..]].concat()
}

/// A source or target link-layer address.
fn option(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1], &mac[..]].concat()
}

fn nonce() -> Vec<u8> {
    vec![14, 1, 1, 2, 3, 4, 5, 6]
}

fn solicitation(source: [u8; 16], target: [u8; 16], options: &[u8]) -> Frame {
    ipv6_packet(58, source, &message(135, &[&target, options]))
}

fn advertisement(target: [u8; 16], options: &[u8]) -> Frame {
    ipv6_packet(58, IPV6, &message(136, &[&target, options]))
}

/// What radvd sends: a prefix, the MTU, and last the MAC.
fn router_advertisement() -> Vec<u8> {
    advertised(&option(1, MAC))
}

fn advertised(last: &[u8]) -> Vec<u8> {
    let prefix = [&[3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10][..], &[0; 8], &ipv6(0)].concat();
    let mtu = [5, 1, 0, 0, 0, 0, 5, 0xdc];
    message(134, &[&[0; 8], &prefix, &mtu, last])
}

fn redirect(options: &[u8]) -> Frame {
    let message = message(137, &[&OTHER_IPV6, &IPV6, options]);
    ipv6_packet(58, LINK_LOCAL, &message)
}

/// An extension header of 8 bytes before `payload`.
fn behind(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0], payload].concat()
}

fn fragment(next: u8, offset_and_more: u16, payload: &[u8]) -> Vec<u8> {
    let [a, b] = offset_and_more.to_be_bytes();
    [&[next, 0, a, b, 0, 0, 0, 1], payload].concat()
}

/// LLC and SNAP before a payload: what receivers take out that follow RFC 1042.
fn snap(ethertype: u16, payload: &[u8]) -> Frame {
    let header = [0xaa, 0xaa, 0x03, 0, 0, 0];
    let payload = [&header, &ethertype.to_be_bytes()[..], payload].concat();
    frame(u16::try_from(payload.len() + 16).unwrap(), payload)
}

// === kinds ===

/// What must not pass when security is strict.
#[expect(clippy::too_many_lines, reason = "a table")]
pub fn forged() -> Vec<Kind> {
    let kind = |name, mac, frame| Kind { name, mac, frame };
    let own_tcp = ipv4(6, IPV4, &tcp());
    let advertise = router_advertisement();
    let other_mac = |frame: Frame| Frame {
        source: OTHER,
        ..frame
    };
    let short = |frame: Frame, length: usize| Frame {
        payload: frame.payload[..length].to_vec(),
        transport: None,
        ..frame
    };
    let lying = advertisement(IPV6, &option(2, OTHER));
    vec![
        kind("source MAC", false, other_mac(own_tcp.clone())),
        kind(
            "source MAC of a RARP",
            false,
            other_mac(rarp(OTHER, [0; 4])),
        ),
        kind(
            "source MAC of an unknown protocol",
            false,
            other_mac(frame(0x88b5, vec![0; 46])),
        ),
        kind("ARP sender MAC", false, arp(2, (OTHER, IPV4), OTHER_IPV4)),
        kind(
            "ARP sender address",
            true,
            arp(2, (MAC, OTHER_IPV4), OTHER_IPV4),
        ),
        kind(
            "ARP probe of another's address",
            true,
            arp(1, (MAC, [0; 4]), OTHER_IPV4),
        ),
        kind("ARP of another kind of address", false, {
            let mut packet = arp(2, (MAC, IPV4), IPV4);
            packet.payload[1] = 6;
            packet
        }),
        kind("RARP sender MAC", false, rarp(OTHER, [0; 4])),
        kind("RARP with an address", true, rarp(MAC, OTHER_IPV4)),
        kind("IPv4 source, TCP", true, ipv4(6, OTHER_IPV4, &tcp())),
        kind(
            "IPv4 source, UDP",
            true,
            ipv4(17, OTHER_IPV4, &udp(5000, 5001)),
        ),
        kind(
            "IPv4 source, ICMP",
            true,
            ipv4(1, OTHER_IPV4, &[8, 0, 0, 0, 0, 1, 0, 1]),
        ),
        kind(
            "IPv4 source, not DHCP",
            true,
            ipv4(17, [0; 4], &udp(68, 53)),
        ),
        kind("IPv4 source in a fragment", true, {
            ipv4_with(&[], 0x2001, (17, OTHER_IPV4), &[0; 16])
        }),
        kind("IPv6 source, TCP", true, ipv6_packet(6, OTHER_IPV6, &tcp())),
        kind(
            "IPv6 source, UDP",
            true,
            ipv6_packet(17, OTHER_IPV6, &udp(5000, 5001)),
        ),
        kind(
            "IPv6 source unspecified",
            true,
            ipv6_packet(17, NONE, &udp(546, 547)),
        ),
        kind("IPv6 source unspecified behind hop-by-hop options", true, {
            ipv6_packet(0, NONE, &behind(6, &tcp()))
        }),
        kind("IPv6 source in a fragment", true, {
            ipv6_packet(44, OTHER_IPV6, &fragment(17, 8, &[0; 16]))
        }),
        kind("IPv6 source link-local", true, {
            let mut router = LINK_LOCAL;
            router[15] = 1;
            ipv6_packet(58, router, &message(128, &[]))
        }),
        kind("DHCP server", true, ipv4(17, IPV4, &udp(67, 68))),
        kind(
            "DHCP server by another port",
            true,
            ipv4(17, IPV4, &udp(6700, 68)),
        ),
        kind("DHCP server behind IP options", true, {
            ipv4_with(&[1, 1, 1, 0], 0, (17, IPV4), &udp(67, 68))
        }),
        kind("DHCP server in fragments", true, {
            ipv4_with(&[], 0x2000, (17, IPV4), &udp(67, 68))
        }),
        kind("DHCPv6 server", true, ipv6_packet(17, IPV6, &udp(547, 546))),
        kind(
            "DHCPv6 server by another port",
            true,
            ipv6_packet(17, IPV6, &udp(5470, 546)),
        ),
        kind("DHCPv6 server behind destination options", true, {
            ipv6_packet(60, IPV6, &behind(17, &udp(547, 546)))
        }),
        kind("DHCPv6 server in fragments", true, {
            ipv6_packet(44, IPV6, &fragment(17, 1, &udp(547, 546)))
        }),
        kind(
            "router advertisement",
            true,
            ipv6_packet(58, LINK_LOCAL, &advertise),
        ),
        kind("router advertisement with another's MAC", false, {
            ipv6_packet(58, LINK_LOCAL, &advertised(&option(1, OTHER)))
        }),
        kind("router advertisement with a second MAC", false, {
            let both = [option(1, MAC), option(1, OTHER)].concat();
            ipv6_packet(58, LINK_LOCAL, &advertised(&both))
        }),
        kind("router advertisement with very many options", false, {
            ipv6_packet(58, LINK_LOCAL, &advertised(&nonce().repeat(40)))
        }),
        kind("redirect", true, redirect(&[])),
        kind("redirect with its MAC", true, redirect(&option(2, MAC))),
        kind(
            "redirect with another's MAC",
            false,
            redirect(&option(2, OTHER)),
        ),
        kind("redirect with another's MAC behind a packet", false, {
            redirect(&[&[4, 1, 0, 0, 0, 0, 0, 0], &option(2, OTHER)[..]].concat())
        }),
        kind("router advertisement behind hop-by-hop options", false, {
            ipv6_packet(0, LINK_LOCAL, &behind(58, &advertise))
        }),
        kind("router advertisement behind destination options", false, {
            ipv6_packet(60, LINK_LOCAL, &behind(58, &advertise))
        }),
        kind("router advertisement behind two headers", false, {
            ipv6_packet(60, LINK_LOCAL, &behind(43, &behind(58, &advertise)))
        }),
        kind("router advertisement in a fragment", false, {
            ipv6_packet(44, LINK_LOCAL, &fragment(58, 1, &advertise))
        }),
        kind(
            "router advertisement behind options in a fragment",
            false,
            ipv6_packet(44, LINK_LOCAL, &fragment(60, 1, &behind(58, &advertise))),
        ),
        kind("router advertisement in SNAP", false, {
            snap(0x86dd, &ipv6_packet(58, LINK_LOCAL, &advertise).payload)
        }),
        kind(
            "ARP in SNAP",
            false,
            snap(0x0806, &arp(2, (OTHER, OTHER_IPV4), IPV4).payload),
        ),
        kind(
            "neighbour advertisement of another",
            true,
            advertisement(OTHER_IPV6, &option(2, MAC)),
        ),
        kind(
            "neighbour advertisement with another's MAC",
            false,
            lying.clone(),
        ),
        kind("neighbour advertisement with a second MAC", false, {
            advertisement(IPV6, &[option(2, MAC), option(2, OTHER)].concat())
        }),
        kind("neighbour advertisement behind options", false, {
            ipv6_packet(60, IPV6, &behind(58, &lying.payload[40..]))
        }),
        kind("neighbour solicitation with another's MAC", false, {
            solicitation(IPV6, OTHER_IPV6, &option(1, OTHER))
        }),
        kind("neighbour solicitation, MAC behind a nonce", false, {
            solicitation(IPV6, OTHER_IPV6, &[nonce(), option(1, OTHER)].concat())
        }),
        kind(
            "detection of another's address",
            true,
            solicitation(NONE, OTHER_IPV6, &nonce()),
        ),
        kind("router solicitation with another's MAC", false, {
            ipv6_packet(58, LINK_LOCAL, &message(133, &[&option(1, OTHER)]))
        }),
        kind("short ARP", false, short(arp(2, (MAC, IPV4), IPV4), 8)),
        kind("short IPv4", true, short(own_tcp.clone(), 12)),
        kind("short UDP", true, short(ipv4(17, IPV4, &udp(67, 68)), 22)),
        kind(
            "short IPv6",
            false,
            short(ipv6_packet(58, IPV6, &advertise), 28),
        ),
        kind("unknown protocol", true, frame(0x88b5, vec![0; 46])),
        kind("ARP behind a tag of a former switch", false, {
            let packet = arp(2, (OTHER, IPV4), OTHER_IPV4).payload;
            frame(0x9100, [&[0, 100, 8, 6], &packet[..]].concat())
        }),
        kind(
            "LLC",
            true,
            frame(60, [&[0x42, 0x42, 3], &[0; 43][..]].concat()),
        ),
    ]
}

/// What a guest has to be able to send, whatever security is.
#[expect(clippy::too_many_lines, reason = "a table")]
pub fn honest() -> Vec<Kind> {
    let kind = |name, frame| Kind {
        name,
        mac: true,
        frame,
    };
    vec![
        kind("DHCP discovery", ipv4(17, [0; 4], &udp(68, 67))),
        kind("DHCP renewal", ipv4(17, IPV4, &udp(68, 67))),
        kind("ARP request", arp(1, (MAC, IPV4), OTHER_IPV4)),
        kind("ARP reply", arp(2, (MAC, IPV4), OTHER_IPV4)),
        kind("ARP probe", arp(1, (MAC, [0; 4]), IPV4)),
        kind("ARP announcement", arp(1, (MAC, IPV4), IPV4)),
        kind("RARP of a migration", rarp(MAC, [0; 4])),
        kind("TCP over IPv4", ipv4(6, IPV4, &tcp())),
        kind("UDP over IPv4", ipv4(17, IPV4, &udp(5000, 53))),
        kind(
            "first fragment",
            ipv4_with(&[], 0x2000, (17, IPV4), &udp(5000, 53)),
        ),
        kind(
            "later fragment",
            ipv4_with(&[], 0x0001, (17, IPV4), &[0; 16]),
        ),
        kind(
            "IGMP",
            ipv4_with(&[0x94, 4, 0, 0], 0, (2, IPV4), &[0x22, 0, 0, 0, 0, 0, 0, 0]),
        ),
        kind("IGMP without an address", {
            ipv4_with(
                &[0x94, 4, 0, 0],
                0,
                (2, [0; 4]),
                &[0x22, 0, 0, 0, 0, 0, 0, 0],
            )
        }),
        kind("TCP over IPv6", ipv6_packet(6, IPV6, &tcp())),
        kind("UDP over IPv6", ipv6_packet(17, IPV6, &udp(5000, 53))),
        kind(
            "DHCPv6 solicitation",
            ipv6_packet(17, LINK_LOCAL, &udp(546, 547)),
        ),
        kind("echo", ipv6_packet(58, IPV6, &message(128, &[]))),
        kind("detection of its address", solicitation(NONE, IPV6, &[])),
        kind(
            "detection with a nonce",
            solicitation(NONE, LINK_LOCAL, &nonce()),
        ),
        kind(
            "neighbour solicitation",
            solicitation(IPV6, OTHER_IPV6, &option(1, MAC)),
        ),
        kind("neighbour solicitation with a nonce", {
            solicitation(IPV6, OTHER_IPV6, &[option(1, MAC), nonce()].concat())
        }),
        kind(
            "neighbour advertisement",
            advertisement(IPV6, &option(2, MAC)),
        ),
        kind(
            "neighbour advertisement without a MAC",
            advertisement(LINK_LOCAL, &[]),
        ),
        kind(
            "router solicitation",
            ipv6_packet(58, NONE, &message(133, &[])),
        ),
        kind("router solicitation with a MAC", {
            ipv6_packet(58, LINK_LOCAL, &message(133, &[&option(1, MAC)]))
        }),
        kind(
            "group membership",
            ipv6_packet(0, LINK_LOCAL, &behind(58, &message(143, &[]))),
        ),
        kind("group membership without an address", {
            ipv6_packet(0, NONE, &behind(58, &message(143, &[])))
        }),
        kind(
            "IPv6 fragment",
            ipv6_packet(44, IPV6, &fragment(17, 1, &udp(5000, 53))),
        ),
        kind(
            "later IPv6 fragment",
            ipv6_packet(44, IPV6, &fragment(58, 8, &[0; 16])),
        ),
        kind(
            "TCP behind destination options",
            ipv6_packet(60, IPV6, &behind(6, &tcp())),
        ),
    ]
}
