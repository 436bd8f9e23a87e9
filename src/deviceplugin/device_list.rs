//! What a node offers: resources and the links that are there, into lists of devices. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    config::{Configuration, DEFAULT_CAPACITY, Resource, check_name},
    grpc::api::{Device, ListAndWatchResponse, NumaNode, TopologyInfo},
};
use crate::{
    netlink::Link,
    types::{
        device_id::{self, DeviceId},
        mode::Mode,
    },
};

/// A resource's devices, and whether pods can have them now.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The resource.
    pub resource: Resource,
    /// Why not; none if they can.
    pub trouble: Option<String>,
    /// The NUMA node of the lower device, if it has one.
    pub numa_node: Option<i64>,
    /// The IDs of the devices.
    pub ids: Arc<Vec<String>>,
    /// What the kubelet is told.
    pub list: Arc<ListAndWatchResponse>,
}

/// Why discovery does not offer macvtaps on a link; none if it does.
///
/// It offers them on what carries a node's traffic: physical interfaces, which have no link
/// kind, and bonds, as far as they are not themselves below a bond or a bridge.
#[must_use]
pub fn unfit(link: &Link) -> Option<String> {
    if link.loopback {
        return Some("it is the loopback interface".into());
    }
    if !link.ethernet {
        return Some("it is not an Ethernet interface".into());
    }
    if let Some(kind) = link.kind.as_deref().filter(|kind| *kind != "bond") {
        return Some(format!(
            "it is a {kind} interface, neither physical nor a bond"
        ));
    }
    if link.mac.is_none_or(|mac| mac.0 == [0; 6]) {
        return Some("it has no hardware address".into());
    }
    if link.master.is_some() {
        return Some("it is a port of a bond, bridge or the like".into());
    }
    check_name(&link.name).err().map(|error| error.to_string())
}

/// The resources to offer. Discovery keeps those that it found before, `known`: a NIC that
/// is gone for a moment must not take its devices' identity along.
#[must_use]
pub fn resources(
    configuration: &Configuration,
    links: &[Link],
    known: &BTreeMap<String, Resource>,
) -> Vec<Resource> {
    let listed = match configuration {
        Configuration::Listed(resources) => return resources.clone(),
        Configuration::Discover => known.values().cloned(),
    };
    let fit = links.iter().filter(|link| unfit(link).is_none());
    let new = fit.filter(|link| !known.contains_key(&link.name));
    let new = new.map(|link| Resource {
        name: link.name.clone(),
        lower: link.name.clone(),
        mode: Mode::Bridge,
        capacity: DEFAULT_CAPACITY,
    });
    listed.chain(new).collect()
}

/// Why pods cannot have a resource's devices now; none if they can.
#[must_use]
pub fn trouble(
    configuration: &Configuration,
    resource: &Resource,
    links: &[Link],
) -> Option<String> {
    let link = links.iter().find(|link| link.name == resource.lower);
    let Some(link) = link else {
        return Some("the lower device does not exist".into());
    };
    match configuration {
        Configuration::Discover => unfit(link),
        Configuration::Listed(_) => None,
    }
}

/// The IDs of all devices of all resources.
///
/// No two have the same tap. Where two resources would, the one whose name comes later in
/// the alphabet skips the slot, whatever their order in the configuration.
#[must_use]
pub fn device_ids(hostname: &str, resources: &[Resource]) -> BTreeMap<String, Arc<Vec<String>>> {
    let mut by_name: Vec<&Resource> = resources.iter().collect();
    by_name.sort_by(|one, other| one.name.cmp(&other.name));
    let mut taken = BTreeSet::new();
    let ids = by_name.into_iter().map(|resource| {
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

/// The list for the kubelet. Devices in trouble are unhealthy, never absent:
/// a pod that holds one keeps it.
#[must_use]
pub fn list(ids: &[String], healthy: bool, numa_node: Option<i64>) -> ListAndWatchResponse {
    let health = if healthy { "Healthy" } else { "Unhealthy" };
    let topology = numa_node.map(|id| TopologyInfo {
        nodes: vec![NumaNode { id }],
    });
    let devices = ids.iter().map(|id| Device {
        id: id.clone(),
        health: health.to_owned(),
        topology: topology.clone(),
    });
    ListAndWatchResponse {
        devices: devices.collect(),
    }
}

/// The devices to prefer: those that must be taken, then those whose tap
/// exists nowhere on the machine, then the rest.
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
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
            ..Link::default()
        }
    }

    fn resource(name: &str, lower: &str) -> Resource {
        Resource {
            name: name.into(),
            lower: lower.into(),
            mode: Mode::Bridge,
            capacity: 100,
        }
    }

    #[test]
    fn discovery_takes_nics_and_bonds_only() {
        let kind = |kind: &str, name| Link {
            kind: Some(kind.into()),
            ..nic(name)
        };
        assert_eq!(unfit(&nic("eth0")), None);
        assert_eq!(unfit(&kind("bond", "bond0")), None);
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
            assert!(unfit(&link).is_some(), "{}", link.name);
        }
    }

    #[test]
    fn discovery_remembers_what_it_found() {
        let known = BTreeMap::new();
        let found = resources(&Configuration::Discover, &[nic("eth0")], &known);
        assert_eq!(found, [resource("eth0", "eth0")]);
        let known = BTreeMap::from([("eth0".to_owned(), found[0].clone())]);
        let later = resources(&Configuration::Discover, &[nic("eth1")], &known);
        assert_eq!(later, [resource("eth0", "eth0"), resource("eth1", "eth1")]);
        let links = [nic("eth1")];
        assert!(trouble(&Configuration::Discover, &later[0], &links).is_some());
        assert!(trouble(&Configuration::Discover, &later[1], &links).is_none());
        let enslaved = [Link {
            master: Some(9),
            ..nic("eth1")
        }];
        assert!(trouble(&Configuration::Discover, &later[1], &enslaved).is_some());
    }

    #[test]
    fn a_listed_resource_is_offered_whatever_its_lower_device_is() {
        let listed = Configuration::Listed(vec![resource("dataplane", "veth0")]);
        let found = resources(&listed, &[], &BTreeMap::new());
        assert_eq!(found, [resource("dataplane", "veth0")]);
        assert!(trouble(&listed, &found[0], &[]).is_some());
        let veth = Link {
            kind: Some("veth".into()),
            ..nic("veth0")
        };
        assert_eq!(trouble(&listed, &found[0], &[veth]), None);
    }

    #[test]
    fn no_two_devices_of_a_node_have_the_same_tap() {
        let many = |name: &str| Resource {
            capacity: 10_000,
            ..resource(name, "eth0")
        };
        let resources = [many("b"), many("a")];
        let ids = device_ids("node1", &resources);
        let taps: BTreeSet<u32> = ids
            .values()
            .flat_map(|ids| ids.iter())
            .map(|id| id.parse::<DeviceId>().unwrap().tap)
            .collect();
        assert_eq!(taps.len(), 20_000);
        assert_eq!(ids["a"], device_ids("node1", &resources[1..])["a"]);
        let turned = [many("a"), many("b")];
        assert_eq!(ids, device_ids("node1", &turned));
    }

    #[test]
    fn lists_health_and_numa_node() {
        let ids = ["a".to_owned()];
        let list = |healthy, node| super::list(&ids, healthy, node).devices.remove(0);
        assert_eq!(list(true, None).health, "Healthy");
        assert_eq!(list(false, None).health, "Unhealthy");
        assert_eq!(list(true, None).topology, None);
        assert_eq!(list(true, Some(1)).topology.unwrap().nodes[0].id, 1);
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
