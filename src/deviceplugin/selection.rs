//! From the configuration and the interfaces of a node to its resources. Pure.

use std::collections::BTreeMap;

use super::config::{Configuration, ResourceConfig};
use crate::{
    macvtap::{selector::Facts, sub_interface::SubInterface},
    netlink::Link,
};

/// The resources to offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// By name.
    pub resources: BTreeMap<String, ResourceConfig>,
    /// Which entries choose no lower device, and why.
    pub warnings: Vec<String>,
}

impl Selection {
    /// Chooses the lower devices. A resource whose lower device is gone, or in doubt, keeps the
    /// one that it has in `former`, and with it the IDs of its devices. What discovery found before
    /// stays while the link exists.
    #[must_use]
    pub fn of(
        configuration: &Configuration,
        (links, facts): (&[Link], &Facts),
        former: &BTreeMap<String, ResourceConfig>,
    ) -> Self {
        let mut selection = Self {
            resources: discovered(configuration, links, former),
            warnings: Vec::new(),
        };
        for (name, selector, entry) in configuration.resources() {
            let former = former.get(name).cloned();
            let selected = selector
                .select(links, facts)
                .map_err(|unselected| format!("lowerDevice {selector} {unselected}"));
            let resource = selected.and_then(|lower| {
                let resource = entry.resource_on(name, lower, links);
                resource.map_err(|error| format!("{error:#}"))
            });
            let resource = resource.map(|resource| keep_name(resource, former.as_ref(), links));
            let resource = match resource {
                Ok(resource) => Some(resource),
                Err(error) => {
                    let text = format!("resource {name}: {error}");
                    let action = match &former {
                        Some(former) => format!("it stays on {:?}", &*former.lower),
                        None => "it is left out".to_owned(),
                    };
                    selection.warnings.push(format!("{text}; {action}"));
                    former
                }
            };
            selection.resources.remove(name);
            let resource = resource.map(|resource| (name.to_owned(), resource));
            selection.resources.extend(resource);
        }
        selection
    }
}

/// A VLAN interface of the node that is gone for the moment, with its lower device for example, comes
/// back under the name that it had: the IDs of the resource's devices have that.
fn keep_name(
    resource: ResourceConfig,
    former: Option<&ResourceConfig>,
    links: &[Link],
) -> ResourceConfig {
    let is_gone = |vlan: &SubInterface| vlan.among(links).is_none();
    match former {
        Some(former)
            if former.vlan == resource.vlan && former.vlan.as_ref().is_some_and(is_gone) =>
        {
            ResourceConfig {
                lower: former.lower.clone(),
                ..resource
            }
        }
        _ => resource,
    }
}

/// What discovery finds, and what it found before and is still there. Links that are gone were
/// renamed, or moved into a pod; devices on them that pods hold stay on the lists all the same.
fn discovered(
    configuration: &Configuration,
    links: &[Link],
    former: &BTreeMap<String, ResourceConfig>,
) -> BTreeMap<String, ResourceConfig> {
    let mut resources = BTreeMap::new();
    for (discovery, entry) in configuration.discoveries() {
        let found = links.iter().filter_map(|link| {
            let offered = discovery.reason_against(link).is_none();
            let lower = link.name.parse().ok().filter(|_| offered)?;
            Some((link.name.clone(), entry.resource(&link.name, lower)))
        });
        resources.extend(found);
    }
    if configuration.discoveries().next().is_some() {
        let is_there =
            |resource: &ResourceConfig| links.iter().any(|link| link.is_called(&resource.lower));
        for (name, resource) in former.iter().filter(|(_, it)| is_there(it)) {
            resources.entry(name.clone()).or_insert(resource.clone());
        }
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        deviceplugin::config::{self, Context},
        types::{mac::MacAddr, mode::Mode},
    };

    fn nic(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            ethernet: true,
            up: true,
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            ..Link::default()
        }
    }

    fn select(text: &str, links: &[Link], former: &Selection) -> Selection {
        let (configuration, warnings) = config::parse(text, Context::default()).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let node = (links, &Facts::default());
        Selection::of(&configuration, node, &former.resources)
    }

    /// The resources, each with its lower device.
    fn pairs(selection: &Selection) -> Vec<(&str, &str)> {
        let resources = selection.resources.iter();
        let pairs = resources.map(|(name, resource)| (name.as_str(), &*resource.lower));
        pairs.collect()
    }

    #[test]
    fn a_vlan_interface_of_the_node_keeps_its_name_while_it_is_gone() {
        let text = r#"[{"name": "lan", "lowerDevice": "eth0", "vlan": 100}]"#;
        let storage = Link {
            kind: Some("vlan".into()),
            vlan: Some(100),
            lower: Some(2),
            ..nic(3, "storage")
        };
        let of = |links: &[Link], former: &Selection| select(text, links, former);
        let found = of(&[nic(2, "eth0"), storage.clone()], &Selection::default());
        assert_eq!(pairs(&found), [("lan", "storage")]);
        let bare = of(&[nic(2, "eth0")], &found);
        assert_eq!(pairs(&bare), [("lan", "storage")]);
        assert_eq!(pairs(&of(&[], &bare)), [("lan", "storage")]);
        // Renamed, it is still that VLAN.
        let renamed = Link {
            name: "backup".into(),
            ..storage
        };
        assert_eq!(
            pairs(&of(&[nic(2, "eth0"), renamed], &bare)),
            [("lan", "backup")]
        );
        let fresh = of(&[nic(2, "eth0")], &Selection::default());
        assert_eq!(pairs(&fresh), [("lan", "eth0.100")]);
    }

    #[test]
    fn discovery_remembers_what_it_found_while_that_exists() {
        let found = select("[]", &[nic(2, "eth0")], &Selection::default());
        assert_eq!(pairs(&found), [("eth0", "eth0")]);
        let port = Link {
            master: Some(3),
            ..nic(2, "eth0")
        };
        let later = select("[]", &[port, nic(4, "eth1")], &found);
        assert_eq!(pairs(&later), [("eth0", "eth0"), ("eth1", "eth1")]);
        let renamed = select("[]", &[nic(2, "ens9"), nic(4, "eth1")], &later);
        assert_eq!(pairs(&renamed), [("ens9", "ens9"), ("eth1", "eth1")]);
    }

    #[test]
    fn a_named_resource_is_offered_whatever_its_lower_device_is() {
        let text = r#"[{"name": "dataplane", "lowerDevice": "veth0"}]"#;
        let found = select(text, &[], &Selection::default());
        assert_eq!(pairs(&found), [("dataplane", "veth0")]);
    }

    #[test]
    fn a_resource_without_a_lower_device_is_left_out_or_stays() {
        let text = r#"[{"name": "a", "lowerDevice": "ens*"}, {"name": "b", "lowerDevice": "x"}]"#;
        let none = select(text, &[nic(2, "eth0")], &Selection::default());
        assert_eq!(pairs(&none), [("b", "x")]);
        assert_eq!(
            none.warnings,
            ["resource a: lowerDevice \"ens*\" matches no interface of this node; it is left out"]
        );
        let one = select(text, &[nic(2, "ens1")], &none);
        assert_eq!(pairs(&one), [("a", "ens1"), ("b", "x")]);
        assert!(one.warnings.is_empty());
        assert_eq!(one.resources["a"].selector.as_deref(), Some("\"ens*\""));
        let two = select(text, &[nic(2, "ens1"), nic(3, "ens2")], &one);
        assert_eq!(two.resources, one.resources);
        assert!(two.warnings[0].ends_with("it stays on \"ens1\""), "{two:?}");
        let gone = select(text, &[], &two);
        assert_eq!(gone.resources, one.resources);
        let other = select(text, &[nic(4, "ens2")], &gone);
        assert_eq!(pairs(&other), [("a", "ens2"), ("b", "x")]);
    }

    #[test]
    fn discovery_is_beside_named_resources_and_below_them() {
        let text = r#"[
            {"discover": {"allow": "e*"}, "mode": "vepa", "capacity": 7},
            {"name": "eth0", "lowerDevice": "eth0", "mode": "private"},
            {"name": "storage", "lowerDevice": "ens?"}
        ]"#;
        let links = [nic(2, "eth0"), nic(3, "eth1"), nic(4, "lan0")];
        let found = select(text, &links, &Selection::default());
        assert_eq!(pairs(&found), [("eth0", "eth0"), ("eth1", "eth1")]);
        assert_eq!(found.resources["eth0"].mode, Mode::Private);
        let eth1 = &found.resources["eth1"];
        assert_eq!((eth1.mode, eth1.capacity), (Mode::Vepa, 7));
        assert_eq!(found.warnings.len(), 1);
    }
}
