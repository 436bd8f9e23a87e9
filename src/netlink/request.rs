//! The requests about links, encoded: create, change, delete, get, list.

use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, anyhow};
use neli::{
    consts::{
        nl::NlmF,
        rtnl::{Iff, Ifla, IflaInfo, RtAddrFamily, Rtm},
    },
    rtnl::{Ifinfomsg, IfinfomsgBuilder, Rtattr},
    types::{Buffer, RtBuffer},
};
use nix::errno::Errno;

use super::{
    attr::attribute,
    error::NetlinkError,
    link::{IflaMacvlan, IflaVlan, Link},
    socket::Socket,
};
use crate::types::{mac::MacAddr, mode::Mode, port_options::PortOptions};

/// `MACVLAN_MACADDR_SET`: the list replaces the one that there was.
const MACADDR_SET: u32 = 3;

/// `VETH_INFO_PEER` of `linux/veth.h`.
#[neli::neli_enum(serialized_type = "u16")]
enum VethInfo {
    Peer = 1,
}
impl neli::consts::rtnl::RtaType for VethInfo {}

/// The families within `IFLA_AF_SPEC`: `AF_INET6`.
#[neli::neli_enum(serialized_type = "u16")]
enum AfSpec {
    Inet6 = 10,
}
impl neli::consts::rtnl::RtaType for AfSpec {}

/// `IFLA_INET6_ADDR_GEN_MODE` of `linux/if_link.h`.
#[neli::neli_enum(serialized_type = "u16")]
enum IflaInet6 {
    AddrGenMode = 8,
}
impl neli::consts::rtnl::RtaType for IflaInet6 {}

/// `IN6_ADDR_GEN_MODE_NONE`: the kernel gives the link no address by itself.
pub const NO_IPV6_ADDRESSES: u8 = 1;

/// Bits of `IFLA_EXT_MASK`, of `linux/rtnetlink.h`. With any of them the kernel sizes the reply
/// to a dump by the largest link (`rtnl_calcit`); without, a link beyond 16 KiB cuts it short.
/// `RTEXT_FILTER_SKIP_STATS` leaves the statistics out, `RTEXT_FILTER_MRP` is about bridges
/// alone and adds nothing here.
const WITHOUT_STATS: u32 = 1 << 3;
const WITH_STATS: u32 = 1 << 4;

/// Bytes of a name with its NUL; only an alternative name is longer.
const IFNAMSIZ: usize = 16;

type Attribute = Rtattr<Ifla, Buffer>;

/// A macvtap to be made. It is made down: whatever has to be set before its first
/// frame is set by a [`Change`].
pub struct Create<'a> {
    /// The name it gets.
    pub name: &'a str,
    /// The interface index it gets, and with it the number of its tap; the kernel's choice if none.
    pub index: Option<u32>,
    /// The index of the lower device, in the socket's network namespace.
    pub lower: u32,
    /// The mode.
    pub mode: Mode,
    /// The hardware address; a random one if none.
    pub mac: Option<MacAddr>,
    /// The MTU in bytes; that of the lower device if none.
    pub mtu: Option<u32>,
    /// Frames in the transmit queue, which is also the length of the tap's ring.
    pub queue_length: u32,
    /// The group it is put into; 0 is what links are in by themselves.
    pub group: u32,
    /// What else it is set to.
    pub options: &'a PortOptions,
    /// The network namespace to make it in; the socket's own if none.
    pub netns: Option<BorrowedFd<'a>>,
}

/// The kind of an interface that stands on another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UpperKind {
    /// A VLAN of this number.
    Vlan(u16),
    /// A macvlan in bridge mode.
    Macvlan,
    /// A macvlan that has the interface below to itself.
    Passthru,
}

/// An interface to be made on another one, in the same network namespace. It is made down.
#[derive(Clone, Copy, Debug)]
pub struct CreateUpper<'a> {
    /// The name it gets.
    pub name: &'a str,
    /// The index of the interface below.
    pub lower: u32,
    /// What it is.
    pub kind: UpperKind,
    /// The group it is put into.
    pub group: u32,
}

/// What to change of a link. What is none stays as it is.
#[derive(Clone, Copy, Default)]
pub struct Change<'a> {
    /// The network namespace to move the link to. With it the index may change.
    pub netns: Option<BorrowedFd<'a>>,
    /// The new name.
    pub name: Option<&'a str>,
    /// The new hardware address.
    pub mac: Option<MacAddr>,
    /// The new MTU in bytes.
    pub mtu: Option<u32>,
    /// The mode, of a macvtap.
    pub mode: Option<Mode>,
    /// The group.
    pub group: Option<u32>,
    /// The text that the kernel shows with the link, of [`MAX_ALIAS`] bytes at most.
    pub alias: Option<&'a str>,
    /// Set up, or down.
    pub up: Option<bool>,
    /// Ask for frames to every address, or no longer.
    pub promiscuous: Option<bool>,
    /// Ask for every multicast frame, or no longer.
    pub all_multicast: Option<bool>,
    /// Let the kernel answer and send ARP requests, or not (`IFF_NOARP`).
    pub arp: Option<bool>,
    /// How the kernel gives the link IPv6 addresses by itself, as [`Link::address_mode`]. Has to be
    /// set in a request of its own before the link goes up: in one request the flags are applied
    /// first.
    pub address_mode: Option<u8>,
}

/// `IFALIASZ` of `linux/if.h`, without the final zero.
pub const MAX_ALIAS: usize = 255;

impl Socket {
    /// Makes a macvtap.
    pub fn create(&mut self, new: &Create<'_>) -> Result<(), NetlinkError> {
        let queue_length = new.options.queue_length.unwrap_or(new.queue_length);
        let mut attributes = vec![
            attribute(Ifla::Ifname, new.name)?,
            attribute(Ifla::Link, new.lower)?,
            attribute(Ifla::Txqlen, queue_length)?,
            attribute(Ifla::Group, new.group)?,
            link_info("macvtap", &macvlan_data(new)?)?,
        ];
        if let Some(queues) = new.options.queues {
            attributes.push(attribute(Ifla::NumTxQueues, queues)?);
            attributes.push(attribute(Ifla::NumRxQueues, queues)?);
        }
        attributes.extend(common(new.netns, new.mac, new.mtu)?);
        let flags = NlmF::CREATE | NlmF::EXCL;
        self.request(Rtm::Newlink, flags, body(new.index, attributes)?)
    }

    /// Makes an interface on another one.
    pub fn create_upper(&mut self, new: &CreateUpper<'_>) -> Result<(), NetlinkError> {
        let attributes = vec![
            attribute(Ifla::Ifname, new.name)?,
            attribute(Ifla::Link, new.lower)?,
            attribute(Ifla::Group, new.group)?,
            new.kind.info()?,
        ];
        let flags = NlmF::CREATE | NlmF::EXCL;
        self.request(Rtm::Newlink, flags, body(None, attributes)?)
    }

    /// Makes a pair of Ethernet interfaces that are wired to each other; the
    /// second one in the network namespace `netns`.
    pub fn create_veth(
        &mut self,
        name: &str,
        peer: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let mut there = vec![attribute(Ifla::Ifname, peer)?];
        there.extend(common(Some(netns), None, None)?);
        let info = attribute(VethInfo::Peer, body(None, there)?)?;
        let attributes = vec![attribute(Ifla::Ifname, name)?, link_info("veth", &[info])?];
        let flags = NlmF::CREATE | NlmF::EXCL;
        self.request(Rtm::Newlink, flags, body(None, attributes)?)
    }

    /// Makes an `ifb` device with this index: frames that are redirected to it wait in its queue,
    /// and then go on where they were.
    pub fn create_ifb(&mut self, name: &str, index: u32) -> Result<(), NetlinkError> {
        let no_data = attribute(IflaMacvlan::Mode, Buffer::new())?;
        let attributes = vec![
            attribute(Ifla::Ifname, name)?,
            link_info("ifb", &[no_data])?,
        ];
        let flags = NlmF::CREATE | NlmF::EXCL;
        self.request(Rtm::Newlink, flags, body(Some(index), attributes)?)
    }

    /// Asks the kernel for a macvtap without saying on top of what. Nothing can
    /// come of it but a refusal, which shows whether the kernel has macvtap
    /// (loading the module if need be) and whether we may make one.
    pub fn probe_macvtap(&mut self) -> Result<(), NetlinkError> {
        let mode = attribute(IflaMacvlan::Mode, Mode::Bridge.raw())?;
        self.probe(link_info("macvtap", &[mode])?)
    }

    /// The same for an interface of another kind.
    pub fn probe_upper(&mut self, kind: UpperKind) -> Result<(), NetlinkError> {
        self.probe(kind.info()?)
    }

    fn probe(&mut self, info: Attribute) -> Result<(), NetlinkError> {
        let attributes = vec![info];
        let flags = NlmF::CREATE | NlmF::EXCL;
        match self.request(Rtm::Newlink, flags, body(None, attributes)?) {
            Err(error) if error.errno() == Some(Errno::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// Changes the link with this index.
    ///
    /// Not atomic: the kernel moves first, then sets MAC and MTU, renames, and
    /// sets the flags, and leaves done what it did before a refusal.
    pub fn change(&mut self, index: u32, change: &Change<'_>) -> Result<(), NetlinkError> {
        let mut attributes = common(change.netns, change.mac, change.mtu)?;
        if let Some(name) = change.name {
            attributes.push(attribute(Ifla::Ifname, name)?);
        }
        if let Some(group) = change.group {
            attributes.push(attribute(Ifla::Group, group)?);
        }
        if let Some(alias) = change.alias {
            attributes.push(attribute(Ifla::Ifalias, alias.as_bytes())?);
        }
        if let Some(mode) = change.mode {
            let mode = attribute(IflaMacvlan::Mode, mode.raw())?;
            attributes.push(link_info("macvtap", &[mode])?);
        }
        if let Some(mode) = change.address_mode {
            attributes.push(address_mode(mode)?);
        }
        let (value, mask) = change.flags();
        let body = message(Some(index))?
            .ifi_flags(value)
            .ifi_change(mask)
            .rtattrs(attributes.into_iter().collect())
            .build()
            .context("encoding a netlink request")?;
        self.request(Rtm::Newlink, NlmF::empty(), body)
    }

    /// Sets a link up that gets no IPv6 address of its own.
    pub fn set_up_without_addresses(&mut self, index: u32) -> Result<(), NetlinkError> {
        let without_addresses = Change {
            address_mode: Some(NO_IPV6_ADDRESSES),
            ..Change::default()
        };
        match self.change(index, &without_addresses) {
            // There is no IPv6 in this kernel.
            Err(error) if error.errno() == Some(Errno::EAFNOSUPPORT) => {}
            other => other?,
        }
        let up = Change {
            up: Some(true),
            ..Change::default()
        };
        self.change(index, &up)
    }

    /// Deletes the link with this index. False if there is none.
    pub fn delete(&mut self, index: u32) -> Result<bool, NetlinkError> {
        let body = body(Some(index), Vec::new())?;
        absent(self.request(Rtm::Dellink, NlmF::empty(), body)).map(|done| done.is_some())
    }

    /// Deletes all links of a group. The kernel waits once for all of them.
    pub fn delete_group(&mut self, group: u32) -> Result<(), NetlinkError> {
        let body = body(None, vec![attribute(Ifla::Group, group)?])?;
        self.request(Rtm::Dellink, NlmF::empty(), body)
    }

    /// The link with this index, if there is one; without statistics.
    pub fn link(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        self.find(Some(index), Vec::new(), WITHOUT_STATS)
    }

    /// The link with this index, if there is one.
    pub fn link_with_stats(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        self.find(Some(index), Vec::new(), WITH_STATS)
    }

    /// The link with this name or alternative name, if there is one; without statistics.
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let kind = if name.len() < IFNAMSIZ {
            Ifla::Ifname
        } else {
            Ifla::AltIfname
        };
        self.find(None, vec![attribute(kind, name)?], WITHOUT_STATS)
    }

    /// All links of the socket's network namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        self.list(Vec::new())
    }

    /// All links of the network namespace that the socket's own knows as `nsid`.
    pub fn links_in(&mut self, nsid: i32) -> Result<Vec<Link>, NetlinkError> {
        self.list(vec![attribute(Ifla::IfNetnsid, nsid)?])
    }

    fn list(&mut self, mut attributes: Vec<Attribute>) -> Result<Vec<Link>, NetlinkError> {
        attributes.push(attribute(Ifla::ExtMask, WITH_STATS)?);
        self.dump(Rtm::Getlink, &body(None, attributes)?, Link::read)
    }

    fn find(
        &mut self,
        index: Option<u32>,
        mut attributes: Vec<Attribute>,
        mask: u32,
    ) -> Result<Option<Link>, NetlinkError> {
        attributes.push(attribute(Ifla::ExtMask, mask)?);
        let body = body(index, attributes)?;
        let found = self.get(Rtm::Getlink, body, |message| {
            Link::read(message)?.ok_or_else(|| anyhow!("a link without description"))
        });
        absent(found)
    }
}

impl UpperKind {
    fn info(self) -> anyhow::Result<Attribute> {
        let macvlan = |mode: Mode| {
            let mode = attribute(IflaMacvlan::Mode, mode.raw())?;
            link_info("macvlan", &[mode])
        };
        match self {
            Self::Vlan(id) => link_info("vlan", &[attribute(IflaVlan::Id, id)?]),
            Self::Macvlan => macvlan(Mode::Bridge),
            Self::Passthru => macvlan(Mode::Passthru),
        }
    }
}

impl Change<'_> {
    /// The flags that it sets, and which it touches.
    fn flags(&self) -> (Iff, Iff) {
        let touched = [
            (Iff::UP, self.up),
            (Iff::PROMISC, self.promiscuous),
            (Iff::ALLMULTI, self.all_multicast),
            (Iff::NOARP, self.arp.map(|arp| !arp)),
        ];
        let (mut value, mut mask) = (Iff::empty(), Iff::empty());
        for (flag, wanted) in touched {
            if let Some(on) = wanted {
                mask |= flag;
                value.set(flag, on);
            }
        }
        (value, mask)
    }
}

/// None where the kernel says that there is no such link.
fn absent<T>(outcome: Result<T, NetlinkError>) -> Result<Option<T>, NetlinkError> {
    match outcome {
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
        other => other.map(Some),
    }
}

fn message(index: Option<u32>) -> anyhow::Result<IfinfomsgBuilder> {
    let index = i32::try_from(index.unwrap_or(0)).context("an interface index over 2^31")?;
    Ok(IfinfomsgBuilder::default()
        .ifi_family(RtAddrFamily::Unspecified)
        .ifi_index(index))
}

fn body(index: Option<u32>, attributes: Vec<Attribute>) -> anyhow::Result<Ifinfomsg> {
    let attributes: RtBuffer<Ifla, Buffer> = attributes.into_iter().collect();
    Ok(message(index)?.rtattrs(attributes).build()?)
}

/// The attributes that creation and change have in common.
fn common(
    netns: Option<BorrowedFd<'_>>,
    mac: Option<MacAddr>,
    mtu: Option<u32>,
) -> anyhow::Result<Vec<Attribute>> {
    let netns = netns.map(|netns| attribute(Ifla::NetNsFd, netns.as_raw_fd()));
    let mac = mac.map(|mac| attribute(Ifla::Address, mac.0));
    let mtu = mtu.map(|mtu| attribute(Ifla::Mtu, mtu));
    [netns, mac, mtu].into_iter().flatten().collect()
}

/// Mode and options of a macvtap.
fn macvlan_data(new: &Create<'_>) -> anyhow::Result<Vec<Rtattr<IflaMacvlan, Buffer>>> {
    let mut data = vec![attribute(IflaMacvlan::Mode, new.mode.raw())?];
    let options = new.options;
    if let Some(length) = options.broadcast_queue_length {
        data.push(attribute(IflaMacvlan::BcQueueLen, length)?);
    }
    if let Some(cutoff) = options.broadcast_cutoff {
        data.push(attribute(IflaMacvlan::BcCutoff, cutoff)?);
    }
    if !options.allowed_sources.is_empty() {
        data.push(attribute(IflaMacvlan::MacaddrMode, MACADDR_SET)?);
        let mut sources = attribute(IflaMacvlan::MacaddrData, Buffer::new())?;
        for source in &options.allowed_sources {
            sources = sources.nest(&attribute(IflaMacvlan::Macaddr, source.0)?)?;
        }
        data.push(sources);
    }
    Ok(data)
}

fn link_info<T: neli::consts::rtnl::RtaType>(
    kind: &str,
    data: &[Rtattr<T, Buffer>],
) -> anyhow::Result<Attribute> {
    let kind = attribute(IflaInfo::Kind, kind)?;
    let data = data
        .iter()
        .try_fold(attribute(IflaInfo::Data, Buffer::new())?, Rtattr::nest)?;
    Ok(attribute(Ifla::Linkinfo, Buffer::new())?
        .nest(&kind)?
        .nest(&data)?)
}

fn address_mode(mode: u8) -> anyhow::Result<Attribute> {
    let mode = attribute(IflaInet6::AddrGenMode, mode)?;
    let inet6 = attribute(AfSpec::Inet6, Buffer::new())?.nest(&mode)?;
    Ok(attribute(Ifla::AfSpec, Buffer::new())?.nest(&inet6)?)
}

#[cfg(test)]
mod tests {
    use neli::ToBytes;

    use super::*;

    /// What is sent for an upper interface is what the kernel says of one.
    #[test]
    fn the_message_of_an_upper_interface_has_its_kind() {
        for (kind, name, vlan, mode) in [
            (UpperKind::Vlan(100), "vlan", Some(100), None),
            (UpperKind::Vlan(4094), "vlan", Some(4094), None),
            (UpperKind::Macvlan, "macvlan", None, Some(Mode::Bridge)),
            (UpperKind::Passthru, "macvlan", None, Some(Mode::Passthru)),
        ] {
            let mut bytes = std::io::Cursor::new(Vec::new());
            kind.info().unwrap().to_bytes(&mut bytes).unwrap();
            let mut link = Link::default();
            link.read_info(&bytes.get_ref()[4..]);
            let found = (link.kind.as_deref(), link.vlan, link.mode);
            assert_eq!(found, (Some(name), vlan, mode), "{kind:?}");
        }
    }
}
