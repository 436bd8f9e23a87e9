//! The requests about links, encoded: create, change, delete, get, list.

use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use neli::{
    consts::{
        nl::NlmF,
        rtnl::{Iff, Ifla, IflaInfo, RtAddrFamily, Rtm},
    },
    rtnl::{Ifinfomsg, IfinfomsgBuilder, Rtattr, RtattrBuilder},
    types::{Buffer, RtBuffer},
};
use nix::errno::Errno;

use super::{Link, Socket, socket::errno};
use crate::types::{mac::MacAddr, mode::Mode};

/// `IFLA_MACVLAN_MODE` of `linux/if_link.h`.
#[neli::neli_enum(serialized_type = "u16")]
enum IflaMacvlan {
    Mode = 1,
}
impl neli::consts::rtnl::RtaType for IflaMacvlan {}

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
const ADDR_GEN_MODE_NONE: u8 = 1;

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
    /// The network namespace to make it in; the socket's own if none.
    pub netns: Option<BorrowedFd<'a>>,
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
    /// Set up, or down.
    pub up: Option<bool>,
    /// Ask for frames to every address, or no longer.
    pub promiscuous: Option<bool>,
    /// Ask for every multicast frame, or no longer.
    pub all_multicast: Option<bool>,
    /// Let the kernel give the link no IPv6 address by itself. Has to be set in a request of
    /// its own before the link goes up: in one request the flags are applied first.
    pub no_ipv6_addresses: bool,
}

impl Socket {
    /// Makes a macvtap.
    pub fn create(&mut self, new: &Create<'_>) -> Result<()> {
        let mode = attribute(IflaMacvlan::Mode, new.mode.raw())?;
        let mut attributes = vec![
            attribute(Ifla::Ifname, new.name)?,
            attribute(Ifla::Link, new.lower)?,
            attribute(Ifla::Txqlen, new.queue_length)?,
            attribute(Ifla::Group, new.group)?,
            link_info("macvtap", &mode)?,
        ];
        attributes.extend(common(new.netns, new.mac, new.mtu)?);
        let flags = NlmF::CREATE | NlmF::EXCL;
        self.request(Rtm::Newlink, flags, body(new.index, attributes)?)
    }

    /// Makes a pair of Ethernet interfaces that are wired to each other; the
    /// second one in the network namespace `netns`.
    pub fn create_veth(&mut self, name: &str, peer: &str, netns: BorrowedFd<'_>) -> Result<()> {
        let mut there = vec![attribute(Ifla::Ifname, peer)?];
        there.extend(common(Some(netns), None, None)?);
        let info = attribute(VethInfo::Peer, body(None, there)?)?;
        let attributes = vec![attribute(Ifla::Ifname, name)?, link_info("veth", &info)?];
        let flags = NlmF::CREATE | NlmF::EXCL;
        self.request(Rtm::Newlink, flags, body(None, attributes)?)
    }

    /// Asks the kernel for a macvtap without saying on top of what. Nothing can
    /// come of it but a refusal, and that tells whether the kernel has macvtap
    /// (loading the module if need be) and whether we may make one.
    pub fn probe_macvtap(&mut self) -> Result<()> {
        let mode = attribute(IflaMacvlan::Mode, Mode::Bridge.raw())?;
        let attributes = vec![link_info("macvtap", &mode)?];
        let flags = NlmF::CREATE | NlmF::EXCL;
        match self.request(Rtm::Newlink, flags, body(None, attributes)?) {
            Err(error) if errno(&error) == Some(Errno::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// Changes the link with this index.
    ///
    /// Not atomic: the kernel moves first, then sets MAC and MTU, renames, and
    /// sets the flags, and leaves done what it did before a refusal.
    pub fn change(&mut self, index: u32, change: &Change<'_>) -> Result<()> {
        let mut attributes = common(change.netns, change.mac, change.mtu)?;
        if let Some(name) = change.name {
            attributes.push(attribute(Ifla::Ifname, name)?);
        }
        if let Some(mode) = change.mode {
            let mode = attribute(IflaMacvlan::Mode, mode.raw())?;
            attributes.push(link_info("macvtap", &mode)?);
        }
        if change.no_ipv6_addresses {
            attributes.push(no_ipv6_addresses()?);
        }
        let (mut value, mut mask) = (Iff::empty(), Iff::empty());
        for (flag, wanted) in [
            (Iff::UP, change.up),
            (Iff::PROMISC, change.promiscuous),
            (Iff::ALLMULTI, change.all_multicast),
        ] {
            value |= if wanted == Some(true) {
                flag
            } else {
                Iff::empty()
            };
            mask |= if wanted.is_some() { flag } else { Iff::empty() };
        }
        let body = message(Some(index))?
            .ifi_flags(value)
            .ifi_change(mask)
            .rtattrs(attributes.into_iter().collect());
        self.request(Rtm::Newlink, NlmF::empty(), body.build()?)
    }

    /// Deletes the link with this index. False if there is none.
    pub fn delete(&mut self, index: u32) -> Result<bool> {
        let body = body(Some(index), Vec::new())?;
        absent(self.request(Rtm::Dellink, NlmF::empty(), body)).map(|done| done.is_some())
    }

    /// The link with this index, if there is one.
    pub fn link(&mut self, index: u32) -> Result<Option<Link>> {
        self.find(body(Some(index), Vec::new())?)
    }

    /// The link with this name or alternative name, if there is one.
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>> {
        let attributes = vec![attribute(Ifla::Ifname, name)?];
        self.find(body(None, attributes)?)
    }

    /// All links of the socket's network namespace.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        self.dump(&body(None, Vec::new())?)
    }

    /// All links of the network namespace that the socket's own knows as `nsid`.
    pub fn links_in(&mut self, nsid: i32) -> Result<Vec<Link>> {
        let attributes = vec![attribute(Ifla::IfNetnsid, nsid)?];
        self.dump(&body(None, attributes)?)
    }

    fn find(&mut self, body: Ifinfomsg) -> Result<Option<Link>> {
        let answer = absent(self.get(Rtm::Getlink, body))?;
        answer.as_ref().map(Link::decode).transpose()
    }
}

/// None where the kernel says that there is no such link.
fn absent<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
        other => other.map(Some),
    }
}

fn message(index: Option<u32>) -> Result<IfinfomsgBuilder> {
    let index = i32::try_from(index.unwrap_or(0)).context("an interface index over 2^31")?;
    Ok(IfinfomsgBuilder::default()
        .ifi_family(RtAddrFamily::Unspecified)
        .ifi_index(index))
}

fn body(index: Option<u32>, attributes: Vec<Attribute>) -> Result<Ifinfomsg> {
    let attributes: RtBuffer<Ifla, Buffer> = attributes.into_iter().collect();
    Ok(message(index)?.rtattrs(attributes).build()?)
}

/// The attributes that creation and change have in common.
fn common(
    netns: Option<BorrowedFd<'_>>,
    mac: Option<MacAddr>,
    mtu: Option<u32>,
) -> Result<Vec<Attribute>> {
    let netns = netns.map(|netns| attribute(Ifla::NetNsFd, netns.as_raw_fd()));
    let mac = mac.map(|mac| attribute(Ifla::Address, mac.0));
    let mtu = mtu.map(|mtu| attribute(Ifla::Mtu, mtu));
    [netns, mac, mtu].into_iter().flatten().collect()
}

fn link_info<T: neli::consts::rtnl::RtaType>(
    kind: &str,
    data: &Rtattr<T, Buffer>,
) -> Result<Attribute> {
    let kind = attribute(IflaInfo::Kind, kind)?;
    let data = attribute(IflaInfo::Data, Buffer::new())?.nest(data)?;
    Ok(attribute(Ifla::Linkinfo, Buffer::new())?
        .nest(&kind)?
        .nest(&data)?)
}

fn no_ipv6_addresses() -> Result<Attribute> {
    let mode = attribute(IflaInet6::AddrGenMode, ADDR_GEN_MODE_NONE)?;
    let inet6 = attribute(AfSpec::Inet6, Buffer::new())?.nest(&mode)?;
    Ok(attribute(Ifla::AfSpec, Buffer::new())?.nest(&inet6)?)
}

fn attribute<T, P>(kind: T, payload: P) -> Result<Rtattr<T, Buffer>>
where
    T: neli::consts::rtnl::RtaType,
    P: neli::Size + neli::ToBytes,
{
    Ok(RtattrBuilder::default()
        .rta_type(kind)
        .rta_payload(payload)
        .build()?)
}
