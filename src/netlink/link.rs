//! A link, as decoded from the kernel's `RTM_NEWLINK`.

use anyhow::{Context, Result};
use neli::consts::rtnl::{Iff, Ifla};

use super::{
    attr::{all, attributes, nested, number, text},
    message::{Message, messages},
};

use crate::types::{mac::MacAddr, mode::Mode, port_options::PortOptions};

/// Bytes of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
/// `ARPHRD_ETHER` of `linux/if_arp.h`.
const ETHERNET: u16 = 1;

/// `IFLA_ALT_IFNAME` of `linux/if_link.h`.
const ALT_IFNAME: u16 = 53;
/// `AF_INET6`, a family within `IFLA_AF_SPEC`.
const INET6: u16 = 10;
/// `IFLA_INET6_ADDR_GEN_MODE` of `linux/if_link.h`.
const ADDR_GEN_MODE: u16 = 8;
/// `IFLA_INFO_SLAVE_KIND`.
const MASTER_KIND: u16 = 4;
/// `IFLA_VLAN_PROTOCOL`, in network byte order.
const VLAN_PROTOCOL: u16 = 5;
/// IEEE 802.1Q; service VLANs, 802.1ad, have numbers of their own.
const ETH_P_8021Q: u16 = 0x8100;

/// `IFLA_MACVLAN_MODE` and its like of `linux/if_link.h`.
#[neli::neli_enum(serialized_type = "u16")]
pub(super) enum IflaMacvlan {
    Mode = 1,
    MacaddrMode = 3,
    Macaddr = 4,
    MacaddrData = 5,
    BcQueueLen = 7,
    BcCutoff = 9,
}
impl neli::consts::rtnl::RtaType for IflaMacvlan {}

/// `IFLA_VLAN_ID` of `linux/if_link.h`.
#[neli::neli_enum(serialized_type = "u16")]
pub(super) enum IflaVlan {
    Id = 1,
}
impl neli::consts::rtnl::RtaType for IflaVlan {}

/// What the kernel says of a network interface.
#[expect(clippy::struct_excessive_bools, reason = "the kernel's flags")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The interface index, unique within its network namespace.
    pub index: u32,
    /// The interface's name.
    pub name: String,
    /// Its alternative names (`ip link property add dev eth0 altname ...`).
    pub alt_names: Vec<String>,
    /// A text of the program that made the link, or uses it; empty by default.
    pub alias: String,
    /// The link kind (`macvtap`, `veth`, `bond`...); physical interfaces have none.
    pub kind: Option<String>,
    /// The mode, of a macvtap or macvlan.
    pub mode: Option<Mode>,
    /// The number, of an 802.1Q VLAN interface.
    pub vlan: Option<u16>,
    /// The index of the interface below. It counts in the network namespace `lower_nsid`.
    pub lower: Option<u32>,
    /// Where `lower` is, if in another network namespace than this link.
    pub lower_nsid: Option<i32>,
    /// The index of the bridge, bond, VRF or the like that this link belongs to.
    pub master: Option<u32>,
    /// The kind of `master`.
    pub master_kind: Option<String>,
    /// Bytes of payload in a frame.
    pub mtu: u32,
    /// Frames in the transmit queue; also the length of a tap's ring.
    pub queue_length: u32,
    /// The hardware address, if it is an Ethernet one.
    pub mac: Option<MacAddr>,
    /// The hardware address that the device was made with, of physical interfaces.
    pub permanent_mac: Option<MacAddr>,
    /// The link group; 0 by default.
    pub group: u32,
    /// What else it is set to, of a macvtap or macvlan.
    pub options: PortOptions,
    /// What went through it.
    pub stats: Stats,
    /// Whether frames have an Ethernet header.
    pub ethernet: bool,
    /// Whether the administrator has set it up.
    pub up: bool,
    /// Whether it has a carrier: a cable with a partner at its other end, or what is the like.
    pub carrier: bool,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// Whether it was asked to receive frames for every address (`IFF_PROMISC`).
    pub promiscuous: bool,
    /// Whether it receives every multicast frame.
    pub all_multicast: bool,
    /// Whether the kernel answers and sends ARP requests on it (no `IFF_NOARP`).
    pub arp: bool,
    /// By which of `IN6_ADDR_GEN_MODE_*` of `linux/if_link.h` the kernel gives it IPv6 addresses;
    /// none without IPv6.
    pub address_mode: Option<u8>,
}

/// What went through a link since it was made, `rtnl_link_stats64` of `linux/if_link.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames that came in.
    pub received_frames: u64,
    /// Frames that went out.
    pub sent_frames: u64,
    /// Bytes that came in.
    pub received_bytes: u64,
    /// Bytes that went out.
    pub sent_bytes: u64,
}

impl Stats {
    fn decode(payload: &[u8]) -> Self {
        let at = |index: usize| {
            let bytes = payload.get(8 * index..8 * index + 8);
            let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
            u64::from_ne_bytes(bytes.unwrap_or_default())
        };
        Self {
            received_frames: at(0),
            sent_frames: at(1),
            received_bytes: at(2),
            sent_bytes: at(3),
        }
    }
}

impl Link {
    /// The kind as messages name it; physical interfaces have none.
    #[must_use]
    pub fn kind_name(&self) -> &str {
        self.kind.as_deref().unwrap_or("physical")
    }

    /// Whether this is its name or one of its alternative names.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.alt_names.iter().any(|alt| alt == name)
    }

    /// Whether it is a port of a bridge, bond or the like, which takes its frames before a macvtap
    /// could. A VRF only decides by which routes packets go (`drivers/net/vrf.c`).
    #[must_use]
    pub fn is_port(&self) -> bool {
        self.master.is_some() && self.master_kind.as_deref() != Some("vrf")
    }

    /// The index of the interface below, if that is in the same network namespace. Otherwise the
    /// number says nothing here: another interface may have it.
    #[must_use]
    pub fn lower_here(&self) -> Option<u32> {
        self.lower.filter(|_| self.lower_nsid.is_none())
    }

    /// Whether it is a macvtap, the only kind that this program deletes or moves.
    #[must_use]
    pub fn is_macvtap(&self) -> bool {
        self.kind.as_deref() == Some("macvtap")
    }

    /// Reads a message that describes a link; none if it has no payload. Not by neli, which makes
    /// a buffer of its own for each of the 50 attributes.
    pub(super) fn read(message: &Message<'_>) -> Result<Option<Self>> {
        let payload = message.payload();
        if payload.is_empty() {
            return Ok(None);
        }
        let described = payload.split_first_chunk();
        let (header, rest) = described.context("a netlink message that describes no whole link")?;
        let mut link = Self::decode(header)?;
        for attribute in attributes(rest) {
            link.set(attribute.kind.into(), attribute.payload);
        }
        Ok(Some(link))
    }

    /// Reads `struct ifinfomsg` of `linux/rtnetlink.h`.
    fn decode(header: &[u8; IFINFOMSG]) -> Result<Self> {
        let [_, _, t0, t1, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *header;
        let index = i32::from_ne_bytes([i0, i1, i2, i3]);
        let flags = Iff::from(u32::from_ne_bytes([f0, f1, f2, f3]));
        Ok(Self {
            index: u32::try_from(index).context("a negative interface index")?,
            ethernet: u16::from_ne_bytes([t0, t1]) == ETHERNET,
            up: flags.contains(Iff::UP),
            carrier: flags.contains(Iff::LOWERUP),
            loopback: flags.contains(Iff::LOOPBACK),
            promiscuous: flags.contains(Iff::PROMISC),
            all_multicast: flags.contains(Iff::ALLMULTI),
            arp: !flags.contains(Iff::NOARP),
            ..Self::default()
        })
    }

    fn set(&mut self, kind: Ifla, payload: &[u8]) {
        match kind {
            Ifla::Ifname => self.name = text(payload),
            Ifla::Ifalias => self.alias = text(payload),
            Ifla::Address => self.mac = payload.try_into().ok().map(MacAddr),
            Ifla::PermAddress => self.permanent_mac = payload.try_into().ok().map(MacAddr),
            Ifla::Mtu => self.mtu = number(payload).unwrap_or_default(),
            Ifla::Txqlen => {
                self.queue_length = number(payload).unwrap_or_default();
                self.options.queue_length = Some(self.queue_length);
            }
            Ifla::NumTxQueues => self.options.queues = number(payload),
            Ifla::Link => self.lower = number(payload).filter(|index| *index != 0),
            Ifla::LinkNetnsid => self.lower_nsid = number(payload).map(u32::cast_signed),
            Ifla::Group => self.group = number(payload).unwrap_or_default(),
            Ifla::Stats64 => self.stats = Stats::decode(payload),
            Ifla::Master => self.master = number(payload),
            Ifla::Linkinfo => self.read_info(payload),
            Ifla::AfSpec => {
                let inet6 = nested(payload, INET6).unwrap_or_default();
                let mode = nested(inet6, ADDR_GEN_MODE);
                self.address_mode = mode.and_then(|mode| mode.first().copied());
            }
            Ifla::PropList => self.alt_names = all(payload, ALT_IFNAME).map(text).collect(),
            _ => {}
        }
    }

    /// `IFLA_LINKINFO`: the kind, the data of that kind, and the kind of the master.
    pub(super) fn read_info(&mut self, payload: &[u8]) {
        self.kind = nested(payload, 1).map(text);
        self.master_kind = nested(payload, MASTER_KIND).map(text);
        if self.kind.as_deref() == Some("vlan") {
            let data = nested(payload, 2).unwrap_or_default();
            let protocol = nested(data, VLAN_PROTOCOL).and_then(|value| value.try_into().ok());
            let is_802_1q = protocol.is_none_or(|value| u16::from_be_bytes(value) == ETH_P_8021Q);
            let id = nested(data, IflaVlan::Id.into()).and_then(|id| id.try_into().ok());
            self.vlan = id.map(u16::from_ne_bytes).filter(|_| is_802_1q);
        }
        if matches!(self.kind.as_deref(), Some("macvtap" | "macvlan")) {
            let data = nested(payload, 2).unwrap_or_default();
            let find = |kind: IflaMacvlan| nested(data, kind.into());
            let mode = find(IflaMacvlan::Mode).and_then(number);
            self.mode = mode.and_then(Mode::from_raw);
            let sources = find(IflaMacvlan::MacaddrData).unwrap_or_default();
            let sources = all(sources, IflaMacvlan::Macaddr.into());
            let sources = sources.filter_map(|mac| mac.try_into().ok());
            self.options.allowed_sources = sources.map(MacAddr).collect();
            self.options.broadcast_queue_length = find(IflaMacvlan::BcQueueLen).and_then(number);
            let cutoff = find(IflaMacvlan::BcCutoff).and_then(number);
            self.options.broadcast_cutoff = cutoff.map(u32::cast_signed);
        }
    }
}

/// The links that a datagram describes, in answer to a request of this number: what a socket
/// reads, for tests with other bytes than the kernel's.
pub fn read_links(datagram: &[u8], sequence: u32) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    for message in messages(datagram) {
        let message = message?;
        if message.sequence != sequence {
            continue;
        }
        if message.is_final() {
            message.outcome()?;
            break;
        }
        links.extend(Link::read(&message)?);
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + payload.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn reads_kind_and_mode_of_whole_descriptions_only() {
        let data = attribute(1, &4_u32.to_ne_bytes());
        let info = [attribute(1, b"macvtap\0"), attribute(0x8002, &data)].concat();
        let mut link = Link::default();
        link.read_info(&info);
        assert!(link.is_macvtap());
        assert_eq!(link.mode, Some(Mode::Bridge));
        for length in 0..info.len() {
            Link::default().read_info(&info[..length]);
        }
        let info = [info, attribute(4, b"vrf\0")].concat();
        link.read_info(&info);
        link.master = Some(7);
        assert!(!link.is_port(), "a VRF takes no frames");
        link.master_kind = Some("bridge".to_owned());
        assert!(link.is_port());
        let names = [attribute(53, b"eth0\0"), attribute(53, b"lan\0")].concat();
        link.set(Ifla::PropList, &names);
        assert!(link.is_called("lan") && link.is_called("eth0") && !link.is_called("la"));
    }
}
