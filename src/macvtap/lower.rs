//! Lower devices: the interfaces that macvtaps stand on, and the one rule which are eligible.

use std::fmt;

use crate::{
    netlink::{Link, NetlinkError, Socket},
    types::mode::Mode,
};

/// Frames in a macvtap's queue where its lower device has none.
const QUEUE_LENGTH: u32 = 1000;

/// An interface of the host's network namespace that macvtaps stand on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerDevice {
    /// What the kernel says of it.
    pub link: Link,
}

/// Why no macvtap can be made on a lower device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ineligible {
    /// The name by which the lower device was looked for.
    pub name: String,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a lower device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no such interface.
    Missing,
    /// It has no Ethernet header, or is the loopback interface.
    NotEthernet,
    /// It is not set up: no frame would pass.
    Down,
    /// It is a port of this bridge, bond or the like, which takes its frames.
    Port(String),
    /// This link on it takes its frames, or has it alone.
    Held(String),
}

/// Why a lower device could not be had.
#[derive(Debug)]
pub enum LowerError {
    /// It is not eligible.
    Ineligible(Ineligible),
    /// The kernel could not be asked.
    Netlink(NetlinkError),
}

impl LowerDevice {
    /// Finds a lower device by its name or alternative name.
    pub fn find(host: &mut Socket, name: &str) -> Result<Self, LowerError> {
        let found = host.link_by_name(name)?;
        let Some(link) = found else {
            return Err(Ineligible::new(name, Reason::Missing).into());
        };
        let below = below_macvlan(&link);
        let below = below.map(|index| host.link(index)).transpose()?.flatten();
        Ok(Self::of(below.unwrap_or(link)))
    }

    /// Finds a lower device among the links of the host.
    pub fn among(links: &[Link], name: &str) -> Result<Self, Ineligible> {
        let found = links.iter().find(|link| link.is_called(name));
        let link = found.ok_or_else(|| Ineligible::new(name, Reason::Missing))?;
        let below = below_macvlan(link);
        let below = links.iter().find(|other| Some(other.index) == below);
        Ok(Self::of(below.unwrap_or(link).clone()))
    }

    /// Finds a lower device that a macvtap can be made on now.
    pub fn eligible(host: &mut Socket, name: &str) -> Result<Self, LowerError> {
        let lower = Self::find(host, name)?;
        match lower.ineligible() {
            None => Ok(lower),
            Some(Reason::Port(_)) => {
                let master = lower
                    .link
                    .master
                    .map(|index| host.link(index))
                    .transpose()?;
                let master = master.flatten().map_or_else(String::new, |link| link.name);
                Err(lower.because(Reason::Port(master)).into())
            }
            Some(reason) => Err(lower.because(reason).into()),
        }
    }

    /// A link as a lower device.
    #[must_use]
    pub fn of(link: Link) -> Self {
        Self { link }
    }

    /// What is wrong with it; none if a macvtap can be made on it now. The master of a port is
    /// named by [`Self::ineligible_among`].
    #[must_use]
    pub fn ineligible(&self) -> Option<Reason> {
        match &self.link {
            link if !is_ethernet(link) => Some(Reason::NotEthernet),
            link if link.is_port() => Some(Reason::Port(String::new())),
            link if !link.up => Some(Reason::Down),
            _ => None,
        }
    }

    /// What is wrong with it, by all links of the host: the same rule, and what else stands on it.
    #[must_use]
    pub fn ineligible_among(&self, links: &[Link]) -> Option<Ineligible> {
        let reason = match self.ineligible() {
            Some(Reason::Port(_)) => {
                let master = links
                    .iter()
                    .find(|link| Some(link.index) == self.link.master);
                Reason::Port(master.map_or_else(String::new, |link| link.name.clone()))
            }
            Some(reason) => reason,
            None => Reason::Held(self.user(links)?.name.clone()),
        };
        Some(self.because(reason))
    }

    /// The link on it that keeps macvtaps off: one with a receive handler of its own, or a
    /// macvtap or macvlan in passthru mode. One in another network namespace is not seen.
    fn user<'a>(&self, links: &'a [Link]) -> Option<&'a Link> {
        links.iter().find(|link| {
            let handler = matches!(link.kind.as_deref(), Some("ipvlan" | "ipvtap" | "macsec"));
            let alone = is_macvlan(link) && link.mode.is_some_and(Mode::is_alone);
            link.lower_here() == Some(self.link.index) && (handler || alone)
        })
    }

    /// Whether `macvtap` stands on it, where both are seen from the same network namespace; if
    /// `elsewhere`, the macvtap is seen from another one, of which only the index can be compared.
    #[must_use]
    pub fn carries(&self, macvtap: &Link, elsewhere: bool) -> bool {
        let own = Some(self.link.index);
        if elsewhere {
            let index = if self.is_foreign() {
                self.link.lower
            } else {
                own
            };
            return macvtap.lower == index;
        }
        let device = match below_macvlan(&self.link) {
            None if is_macvlan(&self.link) => (self.link.lower, self.link.lower_nsid),
            _ => (own, None),
        };
        (macvtap.lower, macvtap.lower_nsid) == device
    }

    /// Whether macvtaps on it stand on a device of another network namespace: it is a macvlan that
    /// came from there, as a container has that is a node.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        is_macvlan(&self.link) && below_macvlan(&self.link).is_none()
    }

    /// Why no macvtap on it can have this MTU; none if one can.
    #[must_use]
    pub fn mtu_flaw(link: &Link, mtu: u32) -> Option<String> {
        let Link {
            name, mtu: highest, ..
        } = link;
        (mtu > *highest).then(|| {
            format!("invalid mtu {mtu}: it is above the MTU {highest} of lower device {name:?}")
        })
    }

    fn because(&self, reason: Reason) -> Ineligible {
        Ineligible::new(&self.link.name, reason)
    }

    /// Frames in the queue of a macvtap on it: as many as it has. A tap's ring is as long, so it
    /// must not be none.
    #[must_use]
    pub fn queue_length(&self) -> u32 {
        match self.link.queue_length {
            0 => QUEUE_LENGTH,
            length => length,
        }
    }
}

/// The index of the device under a macvlan in the same network namespace: the kernel makes a
/// macvtap that is to stand on a macvlan beside it, on the same device (`macvlan_common_newlink`).
fn below_macvlan(link: &Link) -> Option<u32> {
    link.lower_here().filter(|_| is_macvlan(link))
}

fn is_macvlan(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("macvlan" | "macvtap"))
}

impl Ineligible {
    fn new(name: &str, reason: Reason) -> Self {
        Self {
            name: name.to_owned(),
            reason,
        }
    }
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, reason } = self;
        write!(f, "lower device {name:?} {reason}")?;
        if *reason == Reason::Down {
            write!(f, "; to set it up: ip link set {name} up")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("does not exist on this node"),
            Self::NotEthernet => f.write_str("is not an Ethernet device"),
            Self::Down => f.write_str("is down"),
            Self::Port(master) if master.is_empty() => {
                f.write_str("is a port of another device; use that one, or take it out")
            }
            Self::Port(master) => {
                write!(f, "is a port of {master:?}; use that one, or take it out")
            }
            Self::Held(other) => write!(f, "is in use by {other:?}"),
        }
    }
}

impl std::error::Error for Ineligible {}

impl fmt::Display for LowerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ineligible(ineligible) => ineligible.fmt(f),
            Self::Netlink(error) => write!(f, "looking up the lower device: {error}"),
        }
    }
}

impl std::error::Error for LowerError {}

impl From<Ineligible> for LowerError {
    fn from(ineligible: Ineligible) -> Self {
        Self::Ineligible(ineligible)
    }
}

impl From<NetlinkError> for LowerError {
    fn from(error: NetlinkError) -> Self {
        Self::Netlink(error)
    }
}

/// Whether it has frames for a macvtap.
#[must_use]
pub fn is_ethernet(link: &Link) -> bool {
    link.ethernet && !link.loopback
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            ethernet: true,
            up: true,
            ..Link::default()
        }
    }

    fn on(lower: u32, kind: &str, mode: Mode) -> Link {
        Link {
            kind: Some(kind.into()),
            lower: Some(lower),
            mode: Some(mode),
            ..nic(9, "upper")
        }
    }

    #[test]
    fn one_rule_for_all() {
        let reason = |links: &[Link]| {
            let lower = LowerDevice::among(links, "eth0");
            let found = lower.map(|lower| lower.ineligible_among(links));
            found.unwrap_or_else(Some).map(|found| found.reason)
        };
        let down = Link {
            up: false,
            ..nic(2, "eth0")
        };
        let port = Link {
            master: Some(3),
            ..nic(2, "eth0")
        };
        let tun = Link {
            ethernet: false,
            ..nic(2, "eth0")
        };
        let lo = Link {
            loopback: true,
            ..nic(2, "eth0")
        };
        assert_eq!(reason(&[]), Some(Reason::Missing));
        assert_eq!(reason(&[nic(2, "eth0")]), None);
        assert_eq!(reason(&[down]), Some(Reason::Down));
        assert_eq!(reason(&[tun]), Some(Reason::NotEthernet));
        assert_eq!(reason(&[lo]), Some(Reason::NotEthernet));
        assert_eq!(
            reason(&[port, nic(3, "br0")]),
            Some(Reason::Port("br0".into()))
        );
    }

    #[test]
    fn a_macvlan_stands_for_the_device_under_it_only_in_its_own_netns() {
        let (eth0, other) = (nic(2, "eth0"), nic(42, "other"));
        let here = on(2, "macvlan", Mode::Bridge);
        let found = LowerDevice::among(&[eth0.clone(), here], "upper").unwrap();
        assert_eq!(found.link, eth0);
        let moved = Link {
            lower_nsid: Some(0),
            ..on(42, "macvlan", Mode::Bridge)
        };
        let found = LowerDevice::among(&[other, moved.clone()], "upper").unwrap();
        assert_eq!(found.link, moved, "index 42 counts in another netns");
        let macvtap = |lower_nsid| Link {
            lower_nsid,
            ..on(42, "macvtap", Mode::Bridge)
        };
        assert!(found.carries(&macvtap(Some(0)), false));
        assert!(!found.carries(&macvtap(None), false));
        assert!(LowerDevice::of(nic(42, "eth0")).carries(&macvtap(Some(0)), true));
    }

    #[test]
    fn what_stands_on_a_device_may_keep_others_off() {
        let eth0 = nic(2, "eth0");
        let lower = LowerDevice::of(eth0.clone());
        for (kind, mode, held) in [
            ("ipvlan", Mode::Bridge, true),
            ("macsec", Mode::Bridge, true),
            ("macvlan", Mode::Passthru, true),
            ("macvtap", Mode::Bridge, false),
        ] {
            let found = lower.ineligible_among(&[eth0.clone(), on(2, kind, mode)]);
            assert_eq!(found.is_some(), held, "{kind}");
        }
    }

    #[test]
    fn a_macvlan_stands_for_the_device_below_it() {
        let links = [nic(2, "eth0"), on(2, "macvlan", Mode::Bridge)];
        let lower = LowerDevice::among(&links, "upper").unwrap();
        assert_eq!(lower.link.name, "eth0");
        assert_eq!(lower.queue_length(), QUEUE_LENGTH);
    }
}
