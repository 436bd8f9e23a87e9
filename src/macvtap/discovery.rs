//! Which interfaces of a node discovery offers. Pure.

use super::{
    lower::{LowerDevice, Reason},
    sub_interface::Maker,
};
use crate::{
    netlink::Link,
    types::{glob::Glob, resource_name},
};

/// What discovery looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Names of which the interface has to have one; none if any will do.
    pub allow: Vec<Glob>,
    /// Names that it must not have.
    pub deny: Vec<Glob>,
    /// Link kinds of which it has to be one.
    pub kinds: Vec<Glob>,
}

/// What carries a node's traffic: physical interfaces, which have no link kind, and bonds.
impl Default for Discovery {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            deny: Vec::new(),
            kinds: vec![Glob::new("physical"), Glob::new("bond")],
        }
    }
}

impl Discovery {
    /// Why it does not offer an interface; none if it does.
    ///
    /// An interface that is itself below a bond or a bridge is not offered. One that is down is:
    /// it may come up.
    #[must_use]
    pub fn reason_against(&self, link: &Link) -> Option<String> {
        match LowerDevice::of(link.clone()).ineligible() {
            None | Some(Reason::Down) => {}
            Some(reason) => return Some(reason.to_string()),
        }
        if [Maker::DevicePlugin, Maker::Cni]
            .iter()
            .any(|maker| maker.made(link))
        {
            return Some("is made for a resource or network that names its VLAN".to_owned());
        }
        let kind = link.kind_name();
        let upper = ["macvtap", "macvlan", "ipvlan", "ipvtap"].contains(&kind);
        if upper || !self.kinds.iter().any(|glob| glob.matches(kind)) {
            return Some(self.other_kind(kind));
        }
        let names = std::iter::once(&link.name).chain(&link.alt_names);
        let names: Vec<&str> = names.map(String::as_str).collect();
        if has_one(&names, &self.deny) {
            return Some("has a name that the configuration denies".to_owned());
        }
        if !self.allows(&names) {
            return Some("has no name that the configuration allows".to_owned());
        }
        if link.mac.is_none_or(|mac| mac.0 == [0; 6]) {
            return Some("has no hardware address".to_owned());
        }
        let name = resource_name::check(&link.name);
        name.err()
            .map(|error| format!("cannot give a resource its name: {error}"))
    }

    /// Whether it offers an interface with these names, if nothing else is against it.
    #[must_use]
    pub fn allows(&self, names: &[&str]) -> bool {
        let allowed = self.allow.is_empty() || has_one(names, &self.allow);
        allowed && !has_one(names, &self.deny)
    }

    fn other_kind(&self, kind: &str) -> String {
        if self.kinds == Self::default().kinds {
            return format!("is a {kind} interface, neither physical nor a bond");
        }
        format!("is a {kind} interface, none of the configured kinds")
    }
}

fn has_one(names: &[&str], globs: &[Glob]) -> bool {
    let mut globs = globs.iter();
    globs.any(|glob| names.iter().any(|name| glob.matches(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::mac::MacAddr;

    fn nic(name: &str) -> Link {
        Link {
            index: 2,
            name: name.into(),
            alt_names: vec![format!("alt-{name}")],
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            ethernet: true,
            up: true,
            ..Link::default()
        }
    }

    fn kind(kind: &str, name: &str) -> Link {
        Link {
            kind: Some(kind.into()),
            ..nic(name)
        }
    }

    #[test]
    fn takes_nics_and_bonds_only() {
        let why = |link: &Link| Discovery::default().reason_against(link);
        assert_eq!(why(&nic("eth0")), None);
        assert_eq!(why(&kind("bond", "bond0")), None);
        let mut links = [
            kind("veth", "veth0"),
            kind("vlan", "eth0.5"),
            kind("macvtap", "mvt0"),
            nic("eth0@odd"),
            nic("lo"),
            nic("teql0"),
            nic("ib0"),
            nic("sit0"),
            nic("eth1"),
        ];
        links[4].loopback = true;
        links[5].ethernet = false;
        links[6].mac = None;
        links[7].mac = Some(MacAddr([0; 6]));
        links[8].master = Some(3);
        for link in links {
            assert!(why(&link).is_some(), "{}", link.name);
        }
    }

    /// It would keep a VLAN that a resource had.
    #[test]
    fn takes_no_vlan_that_was_made_for_a_resource() {
        let vlans = Discovery {
            kinds: vec![Glob::new("vlan")],
            ..Discovery::default()
        };
        let of_node = kind("vlan", "eth0.5");
        assert_eq!(vlans.reason_against(&of_node), None);
        for maker in [Maker::DevicePlugin, Maker::Cni] {
            let made = Link {
                group: maker.group(),
                ..of_node.clone()
            };
            let reason = vlans.reason_against(&made);
            assert!(reason.unwrap().contains("VLAN"));
        }
    }

    #[test]
    fn takes_what_is_allowed_and_not_denied() {
        let globs = |texts: &[&str]| texts.iter().map(|text| Glob::new(text)).collect();
        let discovery = Discovery {
            allow: globs(&["ens*", "alt-lan?"]),
            deny: globs(&["*f1"]),
            kinds: globs(&["physical", "v*"]),
        };
        for (link, offered) in [
            (nic("ens1f0"), true),
            (nic("ens1f1"), false),
            (nic("lan0"), true),
            (nic("eth0"), false),
            (kind("vlan", "ens1.5"), true),
            (kind("bond", "ens9"), false),
            (kind("macvtap", "ens8"), false),
        ] {
            let reason = discovery.reason_against(&link);
            assert_eq!(reason.is_none(), offered, "{}: {reason:?}", link.name);
        }
    }
}
