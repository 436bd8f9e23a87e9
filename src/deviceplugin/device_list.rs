//! The devices of resources: from configuration and links to the lists for the kubelet. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    config::{Configuration, DEFAULT_CAPACITY, ResourceConfig},
    grpc::api::{Device, ListAndWatchResponse, NumaNode, TopologyInfo},
};
use crate::{
    macvtap::lower::LowerDevice,
    netlink::Link,
    types::{
        device_id::{self, DeviceId},
        mode::Mode,
    },
};

/// The devices of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceList {
    /// The resource.
    pub resource: ResourceConfig,
    /// The IDs of the devices.
    pub ids: Arc<Vec<String>>,
    /// Why pods cannot use the devices; none if they can.
    pub unhealthy_reason: Option<String>,
    /// The NUMA node of the lower device, if it has one.
    pub numa_node: Option<i64>,
}

impl DeviceList {
    /// Whether resource and health are those of another list.
    #[must_use]
    pub fn has_same_health(&self, other: &Self) -> bool {
        self.resource == other.resource && self.unhealthy_reason == other.unhealthy_reason
    }

    /// The message to the kubelet. Devices without a lower device are unhealthy, not absent:
    /// pods keep what was allocated to them.
    #[must_use]
    pub fn to_message(&self) -> ListAndWatchResponse {
        let health = match self.unhealthy_reason {
            None => "Healthy",
            Some(_) => "Unhealthy",
        };
        let topology = self.numa_node.map(|id| TopologyInfo {
            nodes: vec![NumaNode { id }],
        });
        let devices = self.ids.iter().map(|id| Device {
            id: id.clone(),
            health: health.to_owned(),
            topology: topology.clone(),
        });
        ListAndWatchResponse {
            devices: devices.collect(),
        }
    }
}

/// The resources to offer, by name. Discovery keeps those that it found before, `known`: the
/// devices of a NIC that is gone for a moment keep their IDs.
#[must_use]
pub fn resources(
    configuration: &Configuration,
    links: &[Link],
    known: &BTreeMap<String, ResourceConfig>,
) -> BTreeMap<String, ResourceConfig> {
    let by_name = |resource: ResourceConfig| (resource.name.clone(), resource);
    match configuration {
        Configuration::Listed(resources) => resources.iter().cloned().map(by_name).collect(),
        Configuration::Discover => {
            let found = links.iter().filter_map(|link| {
                let discovered = LowerDevice::of(link.clone()).undiscovered().is_none();
                discovered.then_some(ResourceConfig {
                    name: link.name.clone(),
                    lower: link.name.parse().ok()?,
                    mode: Mode::Bridge,
                    capacity: DEFAULT_CAPACITY,
                })
            });
            let known = known.values().cloned();
            found.chain(known).map(by_name).collect()
        }
    }
}

/// Why pods cannot use a resource's devices; none if they can.
#[must_use]
pub fn unhealthy_reason(
    configuration: &Configuration,
    resource: &ResourceConfig,
    links: &[Link],
) -> Option<String> {
    let lower = match LowerDevice::among(links, &resource.lower) {
        Ok(lower) => lower,
        Err(ineligible) => return Some(ineligible.to_string()),
    };
    match (lower.ineligible_among(links), configuration) {
        (Some(ineligible), _) => Some(ineligible.to_string()),
        (None, Configuration::Discover) => lower.undiscovered(),
        (None, Configuration::Listed(_)) => None,
    }
}

/// The IDs of all devices of all resources.
///
/// No two have the same tap. Where two resources would, the one whose name comes later skips
/// the slot.
#[must_use]
pub fn device_ids(
    hostname: &str,
    resources: &BTreeMap<String, ResourceConfig>,
) -> BTreeMap<String, Arc<Vec<String>>> {
    let mut taken = BTreeSet::new();
    let ids = resources.values().map(|resource| {
        let slots = device_id::slots(hostname, &resource.name, resource.capacity, &mut taken);
        let ids = slots.into_iter().map(|(slot, tap)| {
            let id = DeviceId {
                resource: resource.name.clone(),
                slot,
                lower: resource.lower.clone(),
                mode: resource.mode,
                tap,
            };
            id.to_string()
        });
        (resource.name.clone(), Arc::new(ids.collect()))
    });
    ids.collect()
}

/// The devices to prefer: those that must be included, then those whose tap exists nowhere on
/// the machine, then the others.
#[must_use]
pub fn prefer(
    available: &[String],
    must_include: &[String],
    size: usize,
    existing: &BTreeSet<u32>,
) -> Vec<String> {
    let exists = |id: &&String| {
        let parsed = id.parse::<DeviceId>();
        parsed.is_ok_and(|id| existing.contains(&id.tap))
    };
    let others = available.iter().filter(|id| !must_include.contains(id));
    let (held, free): (Vec<&String>, Vec<&String>) = others.partition(exists);
    let preferred = must_include.iter().chain(free).chain(held);
    preferred.take(size).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::mac::MacAddr;

    fn nic(name: &str) -> Link {
        Link {
            index: 2,
            name: name.into(),
            ethernet: true,
            up: true,
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            ..Link::default()
        }
    }

    fn resource(name: &str, lower: &str) -> ResourceConfig {
        ResourceConfig {
            name: name.into(),
            lower: lower.parse().unwrap(),
            mode: Mode::Bridge,
            capacity: 100,
        }
    }

    fn by_name<const N: usize>(list: [ResourceConfig; N]) -> BTreeMap<String, ResourceConfig> {
        list.map(|resource| (resource.name.clone(), resource))
            .into()
    }

    #[test]
    fn discovery_remembers_what_it_found() {
        let known = BTreeMap::new();
        let found = resources(&Configuration::Discover, &[nic("eth0")], &known);
        assert_eq!(found, by_name([resource("eth0", "eth0")]));
        let later = resources(&Configuration::Discover, &[nic("eth1")], &found);
        let expected = [resource("eth0", "eth0"), resource("eth1", "eth1")];
        assert_eq!(later, by_name(expected));
        let links = [nic("eth1")];
        assert!(unhealthy_reason(&Configuration::Discover, &later["eth0"], &links).is_some());
        assert!(unhealthy_reason(&Configuration::Discover, &later["eth1"], &links).is_none());
        let enslaved = [Link {
            master: Some(9),
            ..nic("eth1")
        }];
        assert!(unhealthy_reason(&Configuration::Discover, &later["eth1"], &enslaved).is_some());
    }

    #[test]
    fn a_listed_resource_is_offered_whatever_its_lower_device_is() {
        let listed = Configuration::Listed(vec![resource("dataplane", "veth0")]);
        let found = resources(&listed, &[], &BTreeMap::new());
        assert_eq!(found, by_name([resource("dataplane", "veth0")]));
        assert!(unhealthy_reason(&listed, &found["dataplane"], &[]).is_some());
        let veth = Link {
            kind: Some("veth".into()),
            ..nic("veth0")
        };
        assert_eq!(
            unhealthy_reason(&listed, &found["dataplane"], &[veth]),
            None
        );
    }

    #[test]
    fn no_two_devices_of_a_node_have_the_same_tap() {
        let many = |name: &str| ResourceConfig {
            capacity: 10_000,
            ..resource(name, "eth0")
        };
        let ids = device_ids("node1", &by_name([many("b"), many("a")]));
        let taps: BTreeSet<u32> = ids
            .values()
            .flat_map(|ids| ids.iter())
            .map(|id| id.parse::<DeviceId>().unwrap().tap)
            .collect();
        assert_eq!(taps.len(), 20_000);
        assert_eq!(ids["a"], device_ids("node1", &by_name([many("a")]))["a"]);
    }

    #[test]
    fn the_message_has_health_and_numa_node() {
        let device = |reason: Option<&str>, numa_node| {
            let list = DeviceList {
                resource: resource("a", "eth0"),
                ids: Arc::new(vec!["a".to_owned()]),
                unhealthy_reason: reason.map(str::to_owned),
                numa_node,
            };
            list.to_message().devices.remove(0)
        };
        assert_eq!(device(None, None).health, "Healthy");
        assert_eq!(device(Some("down"), None).health, "Unhealthy");
        assert_eq!(device(None, None).topology, None);
        assert_eq!(device(None, Some(1)).topology.unwrap().nodes[0].id, 1);
    }

    #[test]
    fn prefers_taps_that_do_not_exist() {
        let ids: Vec<String> = (0..4)
            .map(|slot| format!("xMvp{slot}@eth0:bridge:{}", (1 << 24) + slot))
            .collect();
        let existing = BTreeSet::from([1 << 24, (1 << 24) + 1]);
        let of = |must: &[String], size| prefer(&ids, must, size, &existing);
        assert_eq!(of(&[], 2), ids[2..]);
        assert_eq!(of(&[], 3), [&ids[2..], &ids[..1]].concat());
        assert_eq!(of(&ids[..1], 2), [ids[0].clone(), ids[2].clone()]);
        assert_eq!(of(&[], 9).len(), 4);
        assert!(of(&[], 0).is_empty());
    }
}
