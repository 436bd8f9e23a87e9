//! How the lower device of a resource is chosen among the interfaces of a node. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use super::lower::{LowerDevice, Reason, is_ethernet};
use crate::{
    host::hardware::Hardware,
    netlink::Link,
    types::{glob::Glob, link_name::LinkName, mac::MacAddr, plural::list, prefix::Prefix},
};

/// How the lower device of a resource is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// By its name or alternative name, whether it exists or not.
    Named(LinkName),
    /// By what it is like: the first of these that matches one.
    Matching {
        /// What to look for, the preferred first.
        criteria: Vec<Criteria>,
        /// How the configuration says it.
        text: String,
    },
}

/// What an interface is looked for by. All that is given has to be true of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Criteria {
    /// Its name or an alternative name.
    pub name: Option<Glob>,
    /// An alternative name.
    pub alt_name: Option<Glob>,
    /// Its MAC, permanent or present.
    pub mac: Option<MacAddr>,
    /// The address of its PCI device.
    pub pci_address: Option<Glob>,
    /// The name of its driver.
    pub driver: Option<Glob>,
    /// The vendor of its PCI device.
    pub vendor: Option<u16>,
    /// Its link kind, `physical` where it has none.
    pub kind: Option<Glob>,
    /// It has the node's default route.
    pub default_route: bool,
    /// It has an address of this network.
    pub address: Option<Prefix>,
}

/// What is known of the interfaces of a node beside what the kernel says of each link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The hardware of physical interfaces, by interface index.
    pub hardware: BTreeMap<u32, Hardware>,
    /// The addresses, each with the index of its interface.
    pub addresses: Vec<(u32, IpAddr)>,
    /// The indexes of the interfaces of the preferred default route.
    pub default_route: BTreeSet<u32>,
}

/// Why no lower device was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unselected {
    /// Nothing matches but these, each with why it cannot be used.
    None(Vec<String>),
    /// These match.
    Several(Vec<String>),
}

impl Selector {
    /// Whether it needs [`Facts`].
    #[must_use]
    pub fn needs_facts(&self) -> bool {
        self.has(|wanted| wanted.needs_hardware() || wanted.needs_addresses())
    }

    /// Whether it needs the addresses and the default route of [`Facts`].
    #[must_use]
    pub fn needs_addresses(&self) -> bool {
        self.has(Criteria::needs_addresses)
    }

    fn has(&self, such: impl Fn(&Criteria) -> bool) -> bool {
        match self {
            Self::Named(_) => false,
            Self::Matching { criteria, .. } => criteria.iter().any(such),
        }
    }

    /// How the configuration says it, if it is no plain name.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Named(_) => None,
            Self::Matching { text, .. } => Some(text),
        }
    }

    /// Chooses among the links of a node. Criteria that match several are not passed over: what
    /// comes after them was not meant for that case.
    pub fn select(&self, links: &[Link], facts: &Facts) -> Result<LinkName, Unselected> {
        let criteria = match self {
            Self::Named(name) => return Ok(name.clone()),
            Self::Matching { criteria, .. } => criteria,
        };
        let mut left_out = Vec::new();
        for wanted in criteria {
            let (chosen, ports) = wanted.matching(links, facts);
            left_out.extend(ports);
            match chosen.as_slice() {
                [] => {}
                [link] => match link.name.parse() {
                    Ok(name) => return Ok(name),
                    Err(error) => left_out.push(format!("{error:#}")),
                },
                several => {
                    let names = several.iter().map(|link| link.name.clone());
                    let mut names: Vec<String> = names.collect();
                    names.sort();
                    return Err(Unselected::Several(names));
                }
            }
        }
        Err(Unselected::None(left_out))
    }
}

impl Criteria {
    fn needs_hardware(&self) -> bool {
        self.pci_address.is_some() || self.driver.is_some() || self.vendor.is_some()
    }

    fn needs_addresses(&self) -> bool {
        self.address.is_some() || self.default_route
    }

    /// The links that match and can be a lower device, and why others that match cannot.
    ///
    /// A VLAN interface has the MAC of the one below it, and a bond that of its ports: what stands
    /// on another match, and what is a port, is not meant.
    fn matching<'a>(&self, links: &'a [Link], facts: &Facts) -> (Vec<&'a Link>, Vec<String>) {
        let all = links.iter().filter(|link| self.matches(link, facts));
        let all: Vec<&Link> = all.filter(|link| can_be_lower(link)).collect();
        let (ports, free): (Vec<&Link>, Vec<&Link>) = all.iter().partition(|link| link.is_port());
        let chosen = free.iter().filter(|link| !stands_on(link, &all));
        let why = |link: &&Link| {
            let ineligible = LowerDevice::of((*link).clone()).ineligible_among(links);
            let reason = ineligible.map_or(Reason::Port(String::new()), |found| found.reason);
            format!("{} {reason}", link.name)
        };
        (chosen.copied().collect(), ports.iter().map(why).collect())
    }

    fn matches(&self, link: &Link, facts: &Facts) -> bool {
        let any = |glob: &Option<Glob>, texts: &[&str]| {
            let matches = |glob: &Glob| texts.iter().any(|text| glob.matches(text));
            glob.as_ref().is_none_or(matches)
        };
        let alt_names: Vec<&str> = link.alt_names.iter().map(String::as_str).collect();
        let names = [&alt_names[..], &[link.name.as_str()]].concat();
        let hardware = facts.hardware.get(&link.index);
        let text = |of: fn(&Hardware) -> Option<&str>| -> Vec<&str> {
            hardware.and_then(of).into_iter().collect()
        };
        let macs = [link.permanent_mac, link.mac];
        let has_address = |network: Prefix| {
            let mut addresses = facts.addresses.iter();
            addresses.any(|(index, address)| *index == link.index && network.contains(*address))
        };
        let vendor = hardware.and_then(|hardware| hardware.vendor);
        any(&self.name, &names)
            && any(&self.alt_name, &alt_names)
            && any(&self.kind, &[link.kind_name()])
            && any(
                &self.pci_address,
                &text(|found| found.pci_address.as_deref()),
            )
            && any(&self.driver, &text(|found| found.driver.as_deref()))
            && (self.vendor.is_none() || self.vendor == vendor)
            && self.mac.is_none_or(|mac| macs.contains(&Some(mac)))
            && (!self.default_route || facts.default_route.contains(&link.index))
            && self.address.is_none_or(has_address)
    }
}

/// Whether macvtaps can stand on such a link at all.
fn can_be_lower(link: &Link) -> bool {
    let kind = link.kind.as_deref();
    let upper = matches!(
        kind,
        Some("macvtap" | "macvlan" | "ipvlan" | "ipvtap" | "ifb")
    );
    is_ethernet(link) && !upper
}

/// Whether a link stands on one of these. A veth names its other end as if it stood on that.
fn stands_on(link: &Link, others: &[&Link]) -> bool {
    let below = link
        .lower_here()
        .filter(|_| link.kind.as_deref() != Some("veth"));
    below.is_some_and(|index| others.iter().any(|other| other.index == index))
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "{name:?}"),
            Self::Matching { text, .. } => text.fmt(f),
        }
    }
}

impl fmt::Display for Unselected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None(left_out) if left_out.is_empty() => {
                f.write_str("matches no interface of this node")
            }
            Self::None(left_out) => {
                let left_out = left_out.join("; ");
                write!(f, "matches no interface that can be used: {left_out}")
            }
            Self::Several(names) => {
                let names = list(names);
                write!(
                    f,
                    "matches {names}; make it match one, or list the preferred ones first"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            alt_names: vec![format!("en{name}")],
            mac: Some(mac(index)),
            ethernet: true,
            up: true,
            ..Link::default()
        }
    }

    fn mac(last: u32) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, u8::try_from(last).unwrap()])
    }

    fn kind(kind: &str, link: Link) -> Link {
        Link {
            kind: Some(kind.into()),
            ..link
        }
    }

    /// Two NICs and a third in a bridge, a bond of two ports, a VLAN, a macvtap, loopback.
    fn links() -> Vec<Link> {
        let port = |master, link| Link {
            master: Some(master),
            ..link
        };
        let bonded = |index, name| Link {
            mac: Some(mac(20)),
            permanent_mac: Some(mac(index)),
            ..port(6, nic(index, name))
        };
        let on = |lower, link: Link| Link {
            lower: Some(lower),
            mac: Some(mac(lower)),
            ..link
        };
        let lo = Link {
            loopback: true,
            ..nic(1, "lo")
        };
        let bond = Link {
            mac: Some(mac(20)),
            ..nic(6, "bond0")
        };
        vec![
            lo,
            nic(2, "eth0"),
            nic(3, "eth1"),
            port(7, nic(4, "lan0")),
            bonded(20, "fast0"),
            bonded(21, "fast1"),
            kind("bond", bond),
            kind("bridge", nic(7, "br0")),
            kind("vlan", on(2, nic(8, "eth0.100"))),
            kind("macvtap", on(2, nic(9, "eth9"))),
        ]
    }

    fn facts() -> Facts {
        let hardware = |slot: u32, driver: &str, vendor| Hardware {
            pci_address: Some(format!("0000:{slot:02x}:00.0")),
            driver: Some(driver.to_owned()),
            vendor: Some(vendor),
        };
        Facts {
            hardware: BTreeMap::from([
                (2, hardware(2, "e1000e", 0x8086)),
                (3, hardware(3, "mlx5_core", 0x15b3)),
                (20, hardware(0x20, "ice", 0x8086)),
                (21, hardware(0x21, "ice", 0x8086)),
            ]),
            addresses: vec![
                (2, "192.0.2.7".parse().unwrap()),
                (7, "10.1.2.3".parse().unwrap()),
                (3, "2001:db8::3".parse().unwrap()),
            ],
            default_route: BTreeSet::from([7]),
        }
    }

    fn select(criteria: &[Criteria]) -> String {
        let selector = Selector::Matching {
            criteria: criteria.to_vec(),
            text: String::new(),
        };
        let selected = selector.select(&links(), &facts());
        selected.map_or_else(|why| why.to_string(), |name| name.to_string())
    }

    fn name(glob: &str) -> Criteria {
        Criteria {
            name: Some(Glob::new(glob)),
            ..Criteria::default()
        }
    }

    #[test]
    fn finds_the_one_that_is_meant() {
        let none = Criteria::default;
        let glob = |text| Some(Glob::new(text));
        let address = |text: &str| Some(text.parse().unwrap());
        #[rustfmt::skip]
        let table = [
            (name("eth1"), "eth1"),
            (name("?th1"), "eth1"),
            (name("eneth1"), "eth1"),
            (name("br*"), "br0"),
            (Criteria { alt_name: glob("*th1"), ..none() }, "eth1"),
            (Criteria { alt_name: glob("eth1"), ..none() }, "matches no interface of this node"),
            // Not the VLAN and the macvtap on it, nor the ports of the bond.
            (Criteria { mac: Some(mac(2)), ..none() }, "eth0"),
            (Criteria { mac: Some(mac(20)), ..none() }, "bond0"),
            (Criteria { pci_address: glob("0000:03:00.0"), ..none() }, "eth1"),
            (Criteria { driver: glob("mlx*"), ..none() }, "eth1"),
            (Criteria { vendor: Some(0x8086), kind: glob("physical"), ..none() }, "eth0"),
            (Criteria { vendor: Some(0x1af4), ..none() }, "matches no interface of this node"),
            (Criteria { kind: glob("vlan"), ..none() }, "eth0.100"),
            (Criteria { default_route: true, ..none() }, "br0"),
            (Criteria { address: address("10.0.0.0/8"), ..none() }, "br0"),
            (Criteria { address: address("2001:db8::/32"), ..none() }, "eth1"),
            (Criteria { address: address("10.0.0.0/8"), ..name("eth*") },
                "matches no interface of this node"),
        ];
        for (criteria, expected) in table {
            let found = select(std::slice::from_ref(&criteria));
            assert_eq!(found, expected, "{criteria:?}");
        }
    }

    #[test]
    fn needs_no_more_than_it_is_chosen_by() {
        let none = Criteria::default;
        let glob = || Some(Glob::new("*"));
        #[rustfmt::skip]
        let table = [
            (name("eth*"), (false, false)),
            (Criteria { pci_address: glob(), ..none() }, (true, false)),
            (Criteria { driver: glob(), ..none() }, (true, false)),
            (Criteria { vendor: Some(0x8086), ..none() }, (true, false)),
            (Criteria { default_route: true, ..none() }, (true, true)),
            (Criteria { address: "10.0.0.0/8".parse().ok(), ..none() }, (true, true)),
        ];
        for (criteria, expected) in table {
            let selector = Selector::Matching {
                criteria: vec![criteria],
                text: String::new(),
            };
            let needs = (selector.needs_facts(), selector.needs_addresses());
            assert_eq!(needs, expected, "{selector:?}");
        }
    }

    #[test]
    fn says_what_stands_in_the_way() {
        assert_eq!(
            select(&[name("eth?")]),
            "matches eth0 and eth1; make it match one, or list the preferred ones first"
        );
        let port = select(&[name("lan*")]);
        assert!(port.contains("lan0 is a port of \"br0\""), "{port}");
        for loopback_or_macvtap in ["lo", "eth9"] {
            let found = select(&[name(loopback_or_macvtap)]);
            assert_eq!(found, "matches no interface of this node");
        }
    }

    #[test]
    fn the_first_of_a_list_that_matches_is_taken() {
        assert_eq!(select(&[name("ens*"), name("eth1"), name("eth0")]), "eth1");
        assert_eq!(select(&[name("lan0"), name("eth0")]), "eth0");
        let several = select(&[name("eth?"), name("eth1")]);
        assert!(several.starts_with("matches eth0 and eth1"), "{several}");
    }

    #[test]
    fn a_name_needs_no_interface() {
        let named = Selector::Named("eth7".parse().unwrap());
        let selected = named.select(&[], &Facts::default());
        assert_eq!(selected.unwrap().to_string(), "eth7");
    }

    #[test]
    fn both_ends_of_a_veth_match() {
        let end = |index, lower, name| Link {
            lower: Some(lower),
            ..kind("veth", nic(index, name))
        };
        let selector = Selector::Matching {
            criteria: vec![name("veth*")],
            text: String::new(),
        };
        let ends = [end(5, 6, "veth0"), end(6, 5, "veth1")];
        let selected = selector.select(&ends, &Facts::default());
        let names = vec!["veth0".to_owned(), "veth1".to_owned()];
        assert_eq!(selected, Err(Unselected::Several(names)));
    }
}
