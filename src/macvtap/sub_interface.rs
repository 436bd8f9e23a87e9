//! Interfaces that this program makes on a lower device: VLANs, for macvtaps to stand on, and
//! macvlans, by which the node reaches macvtaps.
//!
//! Which of them are ours, and whose, their link group says from their first moment on. One that
//! exists already is used, and never removed.

use anyhow::{Context, Result, anyhow, bail, ensure};
use log::info;
use nix::errno::Errno;

use super::lower::{Ineligible, LowerDevice, Reason};
use crate::{
    netlink::{Change, CreateUpper, Link, NetlinkError, Socket, UpperKind},
    types::{
        device_id::short_hash,
        link_name::{LinkName, MAX_NAME},
        mode::Mode,
        prefix::is_ipv6_link_local,
    },
};

/// How often one is made that another call removes at once.
const ATTEMPTS: u32 = 10;

/// An interface on a lower device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubInterface {
    /// The lower device's name.
    pub lower: LinkName,
    /// What it is.
    pub kind: UpperKind,
}

/// Who makes and removes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// The device plugin, for its resources.
    DevicePlugin,
    /// ADD and DEL of networks without a device plugin.
    Cni,
}

impl Maker {
    /// The link group, in ASCII "mvtd" and "mvtc".
    #[must_use]
    pub fn group(self) -> u32 {
        match self {
            Self::DevicePlugin => 0x6d76_7464,
            Self::Cni => 0x6d76_7463,
        }
    }

    /// Whether it made this link.
    #[must_use]
    pub fn made(self, link: &Link) -> bool {
        link.group == self.group() && matches!(link.kind.as_deref(), Some("vlan" | "macvlan"))
    }
}

impl SubInterface {
    /// The macvlan by which the node reaches macvtaps.
    #[must_use]
    pub fn macvlan(lower: LinkName) -> Self {
        Self {
            lower,
            kind: UpperKind::Macvlan,
        }
    }

    /// The VLAN of this number.
    #[must_use]
    pub fn vlan(lower: LinkName, id: u16) -> Self {
        Self {
            lower,
            kind: UpperKind::Vlan(id),
        }
    }

    /// The one that exists. Two VLANs of one number cannot exist, but any number of macvlans: of
    /// those only ours is meant.
    #[must_use]
    pub fn among<'a>(&self, links: &'a [Link]) -> Option<&'a Link> {
        let lower = links.iter().find(|link| link.is_called(&self.lower))?;
        links.iter().find(|link| {
            let is_kind = match self.kind {
                UpperKind::Vlan(id) => link.vlan == Some(id),
                UpperKind::Macvlan | UpperKind::Passthru => {
                    Maker::DevicePlugin.made(link) && link.kind.as_deref() == Some("macvlan")
                }
            };
            is_kind && link.lower_here() == Some(lower.index)
        })
    }

    /// The name that it has, or that it gets.
    pub fn name_among(&self, links: &[Link]) -> Result<LinkName> {
        if let Some(link) = self.among(links) {
            return link.name.parse();
        }
        let lower = links.iter().find(|link| link.is_called(&self.lower));
        let name = self.new_name(lower.map_or(&self.lower, |link| link.name.as_str()));
        let taken = links.iter().any(|link| link.is_called(&name));
        ensure!(
            !taken,
            "interface {name:?} exists, and is not {self}; rename or delete it"
        );
        name.parse()
    }

    /// `eth0.100` and `mvh-eth0`, or a hash where that is too long for a name. What configures a
    /// node's interfaces by patterns such as `eth*` does not mean the macvlan.
    fn new_name(&self, lower: &str) -> String {
        let hash = &short_hash(lower)[..8];
        let (name, hashed) = match self.kind {
            UpperKind::Vlan(id) => (format!("{lower}.{id}"), format!("mv{hash}.{id}")),
            UpperKind::Macvlan | UpperKind::Passthru => {
                (format!("mvh-{lower}"), format!("mvh-{hash}"))
            }
        };
        if name.len() <= MAX_NAME { name } else { hashed }
    }

    /// Makes it if it does not exist, and sets it up if it is ours; its name and index.
    pub fn ensure(&self, host: &mut Socket, maker: Maker) -> Result<(LinkName, u32)> {
        for _ in 0..ATTEMPTS {
            if let Some(found) = self.try_ensure(host, maker)? {
                return Ok(found);
            }
        }
        bail!("{self} keeps being removed")
    }

    /// None if another call removed it meanwhile: nothing was on it yet.
    fn try_ensure(&self, host: &mut Socket, maker: Maker) -> Result<Option<(LinkName, u32)>> {
        let links = host.links().context("listing links")?;
        let name = self.name_among(&links)?;
        if let Some(link) = self.among(&links) {
            let is_ready = link.up || !maker.made(link);
            return Ok((is_ready || set_up(host, link.index)?).then_some((name, link.index)));
        }
        if !self.create(host, &links, maker)? {
            return Ok(None);
        }
        match host.link_by_name(&name)? {
            Some(made) => Ok(set_up(host, made.index)?.then_some((name, made.index))),
            None => Ok(None),
        }
    }

    /// What it is made on: the kernel makes a VLAN on a macvlan itself, and a macvlan beside it.
    fn lower_among(&self, links: &[Link]) -> Result<LowerDevice, Ineligible> {
        let found = LowerDevice::among(links, &self.lower)?;
        let named = links.iter().find(|link| link.is_called(&self.lower));
        Ok(match (self.kind, named) {
            (UpperKind::Vlan(_), Some(link)) => LowerDevice::of(link.clone()),
            _ => found,
        })
    }

    /// Makes it, down. False if another call made it a moment ago.
    pub fn create(&self, host: &mut Socket, links: &[Link], maker: Maker) -> Result<bool> {
        let name = self.name_among(links)?;
        let lower = self.lower_among(links)?;
        match lower.ineligible_among(links) {
            Some(ineligible) if !matches!(ineligible.reason, Reason::Held(_)) => {
                return Err(ineligible.into());
            }
            _ => {}
        }
        let created = host.create_upper(&CreateUpper {
            name: &name,
            lower: lower.link.index,
            kind: self.kind,
            group: maker.group(),
        });
        match created {
            Ok(()) => info!(interface = &*name; "created {self}"),
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                // Or something else has its name.
                self.name_among(&host.links().context("listing links")?)?;
                return Ok(false);
            }
            Err(error) => return Err(self.explain(&name, &error)),
        }
        Ok(true)
    }

    /// Whether it is still the interface with this index, and no other call is about to remove it.
    pub fn stays(&self, host: &mut Socket, index: u32) -> Result<bool> {
        let links = host.links().context("listing links")?;
        let is_held = |index| links.iter().any(|link| is_hold(link, index));
        let found = self.among(&links).map(|link| link.index);
        Ok(found == Some(index) && !is_held(index))
    }

    /// Removes the one that `maker` made, if nothing stands on it. True if there is none of its
    /// any more.
    pub fn remove_unused(&self, host: &mut Socket, maker: Maker) -> Result<bool> {
        let links = host.links().context("listing links")?;
        match self.among(&links).filter(|link| maker.made(link)) {
            Some(link) => delete_unused(host, link, maker),
            None => Ok(true),
        }
    }

    /// Fails if this kernel cannot make one, or if there is another interface of its name.
    pub fn probe(&self, host: &mut Socket) -> Result<()> {
        let links = host.links().context("listing links")?;
        let name = self.name_among(&links)?;
        if self.among(&links).is_some() {
            return Ok(());
        }
        let probed = host.probe_upper(self.kind);
        probed.map_err(|error| self.explain(&name, &error))
    }

    fn explain(&self, name: &str, error: &NetlinkError) -> anyhow::Error {
        let fix = match (error.errno(), self.kind) {
            (Some(Errno::EOPNOTSUPP), UpperKind::Vlan(_)) => {
                ": this kernel has no VLAN interfaces; try: modprobe 8021q"
            }
            _ => "",
        };
        anyhow!("creating {name:?}, {self}: {error}{fix}")
    }
}

impl std::fmt::Display for SubInterface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lower = &self.lower;
        match self.kind {
            UpperKind::Vlan(id) => write!(f, "VLAN {id} of {lower}"),
            UpperKind::Macvlan | UpperKind::Passthru => write!(f, "a macvlan of {lower}"),
        }
    }
}

/// Sets it up, without addresses of its own: the node has nothing to do there. False if it is gone.
fn set_up(host: &mut Socket, index: u32) -> Result<bool> {
    match host.set_up_without_addresses(index) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(false),
        Err(error) => Err(error).context("setting a sub-interface up"),
    }
}

/// Deletes a link that `maker` made, unless something stands on it, or it has an address of its
/// own. Macvtaps and macvlans are seen in whatever network namespace they are, anything else in
/// this one. True if it is gone.
pub fn delete_unused(host: &mut Socket, link: &Link, maker: Maker) -> Result<bool> {
    if !maker.made(link) {
        return Ok(false);
    }
    match try_delete(host, link.index, maker) {
        Ok(true) => {
            info!(interface = link.name.as_str(); "deleted: nothing stands on it any more");
            Ok(true)
        }
        Ok(false) => Ok(false),
        // Another call deleted it meanwhile.
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(true),
        Err(error) => Err(anyhow!(
            "deleting {:?} if it is not used: {error}",
            link.name
        )),
    }
}

fn try_delete(host: &mut Socket, index: u32, maker: Maker) -> Result<bool, NetlinkError> {
    // The kernel sets the link-local address by itself.
    let addresses = host.addresses_of(index)?;
    if addresses
        .iter()
        .any(|found| !is_ipv6_link_local(found.address.ip))
    {
        return Ok(false);
    }
    // A hold is an event for all who follow the links.
    if is_used(&host.links()?, index) {
        return Ok(false);
    }
    let Some(holder) = hold(host, index)? else {
        return Ok(false);
    };
    let links = host.links()?;
    let is_made = |link: &Link| link.index == index && maker.made(link);
    if is_used(&links, index) || !links.iter().any(is_made) {
        host.delete(holder)?;
        return Ok(false);
    }
    // What holds it goes with it.
    if let Err(error) = host.delete(index) {
        host.delete(holder)?;
        return Err(error);
    }
    Ok(true)
}

/// Has the device plugin remove one that a network without it made: a resource is on it now.
pub fn adopt(host: &mut Socket, link: &Link) -> Result<()> {
    let change = Change {
        group: Some(Maker::DevicePlugin.group()),
        ..Change::default()
    };
    match host.change(link.index, &change) {
        Ok(()) => info!(interface = link.name.as_str(); "taken over: a resource is on it"),
        Err(error) if error.errno() == Some(Errno::ENODEV) => {}
        Err(error) => return Err(anyhow!("taking over {:?}: {error}", link.name)),
    }
    Ok(())
}

/// Whether an interface stands on it that does not only hold it, perhaps for a call that was killed,
/// or it is the port of one.
#[must_use]
pub fn is_used(links: &[Link], index: u32) -> bool {
    let stands = |link: &Link| link.lower_here() == Some(index) && !is_hold(link, index);
    let is_port = |link: &Link| link.index == index && link.master.is_some();
    links.iter().any(|link| stands(link) || is_port(link))
}

/// Makes a macvlan that has an interface to itself; its index, or none if there is a macvlan or
/// macvtap on it, in whatever network namespace.
///
/// The kernel makes one in passthru mode only where there is no other, and none beside it: while
/// it is there, no other can come. One that is there already, of a call that was killed or of one
/// at work, holds it as well.
pub fn hold(host: &mut Socket, index: u32) -> Result<Option<u32>, NetlinkError> {
    let name = hold_name(index);
    let created = host.create_upper(&CreateUpper {
        name: &name,
        lower: index,
        kind: UpperKind::Passthru,
        group: 0,
    });
    match created {
        Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::EBUSY)) => Ok(None),
        Err(error) if error.errno() != Some(Errno::EEXIST) => Err(error),
        _ => {
            let found = host.link_by_name(&name)?;
            Ok(found
                .filter(|link| is_hold(link, index))
                .map(|link| link.index))
        }
    }
}

fn hold_name(index: u32) -> String {
    format!("mvu{index:x}")
}

fn is_hold(link: &Link, index: u32) -> bool {
    link.name == hold_name(index)
        && link.kind.as_deref() == Some("macvlan")
        && link.mode == Some(Mode::Passthru)
        && link.lower_here() == Some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            ethernet: true,
            up: true,
            ..Link::default()
        }
    }

    fn vlan(index: u32, name: &str, id: u16, lower: u32) -> Link {
        Link {
            kind: Some("vlan".to_owned()),
            vlan: Some(id),
            lower: Some(lower),
            ..link(index, name)
        }
    }

    fn name(links: &[Link], lower: &str, id: u16) -> String {
        let wanted = SubInterface::vlan(lower.parse().unwrap(), id);
        let name = wanted.name_among(links);
        name.map_or_else(|error| format!("{error:#}"), |name| name.to_string())
    }

    #[test]
    fn a_vlan_has_the_name_that_it_has_or_the_usual_one() {
        let mut eth0 = link(2, "eth0");
        eth0.alt_names = vec!["uplink".to_owned()];
        let links = [
            eth0,
            link(3, "eth1"),
            vlan(4, "storage", 200, 2),
            link(5, "eth0.300"),
            vlan(6, "eth0.400", 400, 3),
            link(7, "enp175s0f0np0"),
        ];
        assert_eq!(name(&links, "eth0", 100), "eth0.100");
        assert_eq!(name(&links, "uplink", 100), "eth0.100");
        assert_eq!(name(&links, "gone0", 100), "gone0.100");
        assert_eq!(name(&links, "eth0", 200), "storage");
        assert_eq!(name(&links, "eth1", 200), "eth1.200");
        assert_eq!(name(&links, "eth1", 400), "eth0.400");
        for id in [300, 400] {
            let error = name(&links, "eth0", id);
            let expected = format!(
                "interface \"eth0.{id}\" exists, and is not VLAN {id} of eth0; rename or delete it"
            );
            assert_eq!(error, expected);
        }
        let long = name(&links, "enp175s0f0np0", 4094);
        assert!(long.len() <= MAX_NAME && long.ends_with(".4094"), "{long}");
        assert_ne!(long, name(&links, "enp175s0f1np1", 4094));
    }

    #[test]
    fn a_vlan_stands_on_the_macvlan_that_is_named() {
        let macvlan = Link {
            kind: Some("macvlan".to_owned()),
            lower: Some(2),
            ..link(3, "mv0")
        };
        let links = [link(2, "eth0"), macvlan];
        let on = |sub: SubInterface| sub.lower_among(&links).unwrap().link.index;
        let mv0 = || "mv0".parse().unwrap();
        assert_eq!(on(SubInterface::vlan(mv0(), 100)), 3);
        assert_eq!(on(SubInterface::vlan("eth0".parse().unwrap(), 100)), 2);
        assert_eq!(on(SubInterface::macvlan(mv0())), 2);
    }

    #[test]
    fn a_macvlan_of_ours_is_known_by_its_group() {
        let wanted = SubInterface::macvlan("eth0".parse().unwrap());
        let name = |links: &[Link]| wanted.name_among(links).unwrap().to_string();
        let macvlan = |index, name: &str, group| Link {
            kind: Some("macvlan".to_owned()),
            lower: Some(2),
            group,
            ..link(index, name)
        };
        let ours = Maker::DevicePlugin.group();
        let vlan = Link {
            group: ours,
            ..vlan(3, "eth0.5", 5, 2)
        };
        let mut links = vec![link(2, "eth0"), vlan, macvlan(4, "podman0", 0)];
        assert_eq!(name(&links), "mvh-eth0");
        links.push(macvlan(5, "renamed", ours));
        assert_eq!(name(&links), "renamed");
        let long = SubInterface::macvlan("enp175s0f0np0".parse().unwrap());
        let long = long.name_among(&links).unwrap();
        assert!(long.starts_with("mvh-") && long.len() == 12, "{long:?}");
    }

    #[test]
    fn the_group_and_the_kind_say_whose_it_is() {
        let made = |group, kind: Option<&str>| {
            let link = Link {
                group,
                kind: kind.map(str::to_owned),
                ..link(2, "x")
            };
            [Maker::DevicePlugin, Maker::Cni].map(|maker| maker.made(&link))
        };
        assert_eq!(made(0x6d76_7464, Some("vlan")), [true, false]);
        assert_eq!(made(0x6d76_7463, Some("vlan")), [false, true]);
        assert_eq!(made(0x6d76_7463, None), [false, false]);
        assert_eq!(made(0, Some("vlan")), [false, false]);
    }

    #[test]
    fn one_is_used_by_what_stands_on_it_here_and_by_the_bridge_that_it_is_a_port_of() {
        let hold = Link {
            lower: Some(4),
            kind: Some("macvlan".to_owned()),
            mode: Some(Mode::Passthru),
            ..link(9, "mvu4")
        };
        let eth = || [link(2, "eth0"), vlan(4, "eth0.100", 100, 2), hold.clone()].to_vec();
        assert!(!is_used(&eth(), 4));
        let mut stacked = eth();
        stacked.push(vlan(5, "eth0.100.7", 7, 4));
        assert!(is_used(&stacked, 4));
        // An index of another network namespace.
        stacked[3].lower_nsid = Some(0);
        assert!(!is_used(&stacked, 4));
        let mut port = eth();
        port[1].master = Some(3);
        assert!(is_used(&port, 4));
    }
}
