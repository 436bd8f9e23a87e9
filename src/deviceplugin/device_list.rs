//! The devices of resources: from configuration and links to the lists for the kubelet. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    config::ResourceConfig,
    grpc::api::{
        ContainerPreferredAllocationRequest, Device, ListAndWatchResponse, NumaNode, TopologyInfo,
    },
    held::{Held, Originals},
};
use crate::{
    macvtap::lower::LowerDevice,
    netlink::Link,
    types::{
        device_id::{DeviceId, Devices},
        resource_options::ResourceOptions,
    },
};

/// A device on a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedDevice {
    /// The ID.
    pub id: String,
    /// The number of its tap.
    pub tap: u32,
}

/// The devices of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceList {
    /// The resource.
    pub resource: ResourceConfig,
    /// Its devices.
    pub plan: Plan,
    /// Why pods cannot use the devices of the configuration; none if they can.
    pub unhealthy_reason: Option<String>,
    /// The former devices that pods cannot use.
    pub unhealthy_former: BTreeSet<String>,
    /// The NUMA node of the lower device, if it has one.
    pub numa_node: Option<i64>,
}

/// The devices of a resource, apart from their health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The devices by the configuration.
    pub devices: Arc<Vec<ListedDevice>>,
    /// The taps of those of them that another device holds.
    pub contested: Arc<BTreeSet<u32>>,
    /// The devices of former configurations and of the original that pods hold.
    pub former: Arc<Former>,
}

/// The devices that a resource has besides those of its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Former {
    /// Those with an ID of ours.
    pub devices: Vec<DeviceId>,
    /// Those that kubevirt/macvtap-cni allocated.
    pub originals: Originals,
}

impl Former {
    /// What pods hold of a resource besides `devices`.
    fn of(resource: &str, devices: &[ListedDevice], held: &Held) -> Self {
        let listed: BTreeSet<&str> = devices.iter().map(|device| device.id.as_str()).collect();
        let held_devices = held.of_resource(resource);
        let former = held_devices.filter(|device| !listed.contains(device.to_string().as_str()));
        Self {
            devices: former.cloned().collect(),
            originals: held.originals_of(resource).cloned().unwrap_or_default(),
        }
    }

    /// The devices that pods cannot use; those of the original as those of the configuration.
    #[must_use]
    pub fn unhealthy(&self, originals: bool, links: &[Link]) -> BTreeSet<String> {
        let devices = self.devices.iter();
        let devices = devices.filter(|device| unhealthy_reason(&device.lower, links).is_some());
        let unhealthy = devices.map(DeviceId::to_string);
        let originals = self.originals.ids.iter().filter(|_| originals);
        unhealthy.chain(originals.cloned()).collect()
    }

    /// The IDs.
    pub fn ids(&self) -> impl Iterator<Item = String> {
        let devices = self.devices.iter().map(DeviceId::to_string);
        devices.chain(self.originals.ids.iter().cloned())
    }
}

impl DeviceList {
    /// Whether resource and health are those of another list.
    #[must_use]
    pub fn has_same_health(&self, other: &Self) -> bool {
        self.resource == other.resource && self.unhealthy_reason == other.unhealthy_reason
    }

    /// The number of devices.
    #[must_use]
    pub fn size(&self) -> usize {
        let Plan {
            devices, former, ..
        } = &self.plan;
        devices.len() + former.devices.len() + former.originals.ids.len()
    }

    /// The numbers of the devices' taps.
    pub fn taps(&self) -> impl Iterator<Item = u32> {
        let Plan {
            devices, former, ..
        } = &self.plan;
        let own = devices.iter().map(|device| device.tap);
        let former_own = former.devices.iter().map(|device| device.tap);
        own.chain(former_own)
            .chain(former.originals.taps.iter().copied())
    }

    /// The number of devices that pods can use.
    #[must_use]
    pub fn healthy(&self) -> usize {
        let devices = self.plan.devices.iter();
        let former = self.plan.former.ids();
        devices.filter(|listed| self.is_healthy(listed)).count()
            + former.filter(|id| self.is_former_healthy(id)).count()
    }

    /// Whether pods can use a device of the configuration.
    fn is_healthy(&self, listed: &ListedDevice) -> bool {
        self.unhealthy_reason.is_none() && !self.plan.contested.contains(&listed.tap)
    }

    /// Whether pods can use a former device.
    fn is_former_healthy(&self, id: &str) -> bool {
        !self.unhealthy_former.contains(id)
    }

    /// The message to the kubelet. Devices without a lower device are unhealthy, not absent:
    /// pods keep what was allocated to them.
    #[must_use]
    pub fn to_message(&self) -> ListAndWatchResponse {
        let topology = self.numa_node.map(|id| TopologyInfo {
            nodes: vec![NumaNode { id }],
        });
        let device = |id: String, healthy: bool| Device {
            id,
            health: if healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
            topology: topology.clone(),
        };
        let devices = self.plan.devices.iter();
        let devices = devices.map(|listed| device(listed.id.clone(), self.is_healthy(listed)));
        let former = self.plan.former.ids().map(|id| {
            let healthy = self.is_former_healthy(&id);
            device(id, healthy)
        });
        ListAndWatchResponse {
            devices: devices.chain(former).collect(),
        }
    }
}

/// A resource that is not configured any more, of which pods hold devices.
#[must_use]
pub fn former_resource(name: &str, held: &Held) -> Option<ResourceConfig> {
    let device = held.of_resource(name).next();
    // Discovery, of the original too, names resources after their lower devices.
    let lower = match device {
        Some(device) => device.lower.clone(),
        None => name.parse().ok()?,
    };
    Some(ResourceConfig {
        name: name.to_owned(),
        lower,
        selector: None,
        mode: device.map(|device| device.mode).unwrap_or_default(),
        options: ResourceOptions::NONE,
        capacity: 0,
        volume_hotplug: false,
        host_access: false,
        vlan: None,
    })
}

/// Why pods cannot use devices on this lower device; none if they can.
#[must_use]
pub fn unhealthy_reason(lower: &str, links: &[Link]) -> Option<String> {
    let ineligible = match LowerDevice::among(links, lower) {
        Ok(lower) => lower.ineligible_among(links),
        Err(ineligible) => Some(ineligible),
    };
    ineligible.map(|ineligible| ineligible.to_string())
}

/// Why pods cannot use the devices of a resource; none if they can.
#[must_use]
pub fn ineligible(resource: &ResourceConfig, plan: &Plan, links: &[Link]) -> Option<String> {
    occupied(resource, plan, links).or_else(|| {
        let lower = LowerDevice::among(links, &resource.lower).ok()?;
        LowerDevice::mtu_flaw(&lower.link, resource.options.mtu?)
    })
}

/// Why no macvtap of a resource can be made on its lower device; none if one can. Its own macvtap in
/// passthru mode, which is in our network namespace where a pod wants the tap alone, keeps no pod from
/// its device.
fn occupied(resource: &ResourceConfig, plan: &Plan, links: &[Link]) -> Option<String> {
    if !resource.mode.is_alone() {
        return unhealthy_reason(&resource.lower, links);
    }
    let has = |tap| plan.devices.iter().any(|device| device.tap == tap);
    let is_own = |link: &Link| link.is_macvtap() && has(link.index);
    let others = links.iter().filter(|link| !is_own(link)).cloned();
    unhealthy_reason(&resource.lower, &others.collect::<Vec<Link>>())
}

/// The devices of all resources. No two of them have the same tap: where two resources would,
/// the one whose name comes later skips the slot.
#[must_use]
pub fn devices(
    node: &str,
    resources: &BTreeMap<String, ResourceConfig>,
) -> BTreeMap<String, Arc<Vec<ListedDevice>>> {
    let mut taken = BTreeSet::new();
    let devices = resources.values().map(|resource| {
        let devices = Devices {
            node,
            resource: &resource.name,
            lower: &resource.lower,
            mode: resource.mode,
            options: &resource.options,
        };
        let devices = devices.iter(&mut taken).take(resource.capacity);
        let devices = devices.map(|device| ListedDevice {
            id: device.to_string(),
            tap: device.tap,
        });
        (resource.name.clone(), Arc::new(devices.collect()))
    });
    devices.collect()
}

impl Plan {
    /// The plan of the resource `name`, with `devices` by its configuration.
    #[must_use]
    pub fn new(name: &str, devices: &Arc<Vec<ListedDevice>>, held: &Held) -> Self {
        let contested = devices
            .iter()
            .filter(|device| held.is_taken(device.tap, &device.id));
        Self {
            devices: devices.clone(),
            former: Former::of(name, devices, held).into(),
            contested: Arc::new(contested.map(|device| device.tap).collect()),
        }
    }
}

/// The devices to prefer: those that must be included, then those of the present configuration
/// whose tap exists nowhere on the machine, then others without a tap, then the rest.
#[must_use]
pub fn prefer(
    request: &ContainerPreferredAllocationRequest,
    former: &Former,
    existing: &BTreeSet<u32>,
) -> Vec<String> {
    let former: BTreeSet<String> = former.ids().collect();
    let rank = |id: &String| match id.parse::<DeviceId>() {
        Ok(device) => (existing.contains(&device.tap), former.contains(id)),
        Err(_) => (true, true),
    };
    let must_include = &request.must_include_device_ids;
    let available = request.available_device_ids.iter();
    let mut others: Vec<&String> = available.filter(|id| !must_include.contains(id)).collect();
    others.sort_by_cached_key(|id| rank(id));
    let size = usize::try_from(request.allocation_size).unwrap_or_default();
    let preferred = must_include.iter().chain(others);
    preferred.take(size).cloned().collect()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        deviceplugin::{config::MAX_CAPACITY, held::Evidence},
        types::{
            checkpoint::Allocation, device_id::NAMESPACE, mac::MacAddr, mode::Mode,
            resource_options::MAX_SOURCES,
        },
    };

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
            selector: None,
            mode: Mode::Bridge,
            options: ResourceOptions::NONE,
            capacity: 100,
            volume_hotplug: false,
            host_access: false,
            vlan: None,
        }
    }

    fn by_name<const N: usize>(list: [ResourceConfig; N]) -> BTreeMap<String, ResourceConfig> {
        list.map(|resource| (resource.name.clone(), resource))
            .into()
    }

    #[test]
    fn devices_are_unhealthy_where_their_mtu_cannot_be() {
        let mut resource = resource("lan", "eth0");
        let links = [Link {
            mtu: 1500,
            ..nic("eth0")
        }];
        let plan = Plan::new("lan", &Arc::default(), &Held::default());
        for (mtu, healthy) in [(None, true), (Some(1500), true), (Some(9000), false)] {
            resource.options.mtu = mtu;
            let reason = ineligible(&resource, &plan, &links);
            assert_eq!(reason.is_none(), healthy, "{reason:?}");
        }
        let reason = ineligible(&resource, &plan, &links).unwrap();
        assert!(reason.contains("above the MTU 1500 of"), "{reason}");
    }

    #[test]
    fn devices_are_healthy_if_add_would_take_their_lower_device() {
        let reason = |link| unhealthy_reason("eth0", &[link]);
        let veth = Some("veth".to_owned());
        assert_eq!(reason(nic("eth0")), None);
        assert_eq!(
            reason(Link {
                kind: veth,
                ..nic("eth0")
            }),
            None
        );
        assert!(reason(nic("eth1")).is_some());
        let (up, master, ethernet) = (false, Some(9), false);
        assert!(reason(Link { up, ..nic("eth0") }).is_some());
        assert!(
            reason(Link {
                master,
                ..nic("eth0")
            })
            .is_some()
        );
        assert!(
            reason(Link {
                ethernet,
                ..nic("eth0")
            })
            .is_some()
        );
    }

    #[test]
    fn no_two_devices_of_a_node_have_the_same_tap() {
        let many = |name: &str| ResourceConfig {
            capacity: 10_000,
            ..resource(name, "eth0")
        };
        let all = devices("node1", &by_name([many("b"), many("a")]));
        let taps = all.values().flat_map(|devices| devices.iter());
        let taps: BTreeSet<u32> = taps.map(|device| device.tap).collect();
        assert_eq!(taps.len(), 20_000);
        assert_eq!(all["a"], devices("node1", &by_name([many("a")]))["a"]);
    }

    fn list(devices: &[ListedDevice], held: &Held) -> DeviceList {
        DeviceList {
            resource: resource("a", "eth0"),
            plan: Plan::new("a", &Arc::new(devices.to_vec()), held),
            unhealthy_reason: None,
            unhealthy_former: BTreeSet::new(),
            numa_node: None,
        }
    }

    fn device(id: &str) -> ListedDevice {
        ListedDevice {
            id: id.to_owned(),
            tap: id.parse::<DeviceId>().unwrap().tap,
        }
    }

    #[test]
    fn the_message_has_health_and_numa_node() {
        let first = |reason: Option<&str>, numa_node| {
            let list = DeviceList {
                unhealthy_reason: reason.map(str::to_owned),
                numa_node,
                ..list(&[device("aMvp0@eth0:bridge:16777300")], &Held::default())
            };
            list.to_message().devices.remove(0)
        };
        assert_eq!(first(None, None).health, "Healthy");
        assert_eq!(first(Some("down"), None).health, "Unhealthy");
        assert_eq!(first(None, None).topology, None);
        assert_eq!(first(None, Some(1)).topology.unwrap().nodes[0].id, 1);
    }

    /// A kubelet accepts messages of 4 MiB.
    #[test]
    fn the_longest_list_is_accepted() {
        let options = format!("+m65535+t65536+q256+b65536+c{}", i32::MAX);
        let options = options + &"+s020000000001".repeat(MAX_SOURCES);
        let longest = ResourceConfig {
            lower: "enp175s0f0np0.4".parse().unwrap(),
            mode: Mode::Passthru,
            options: options.parse().unwrap(),
            capacity: MAX_CAPACITY,
            ..resource(&"r".repeat(63), "eth0")
        };
        let name = longest.name.clone();
        let devices = devices("node1", &by_name([longest.clone()]));
        let list = DeviceList {
            resource: longest,
            plan: Plan::new(&name, &devices[&name], &Held::default()),
            unhealthy_reason: Some("down".into()),
            numa_node: Some(7),
            ..list(&[], &Held::default())
        };
        let length = list.to_message().encoded_len();
        assert!(length < 4 << 20, "{length}");
    }

    #[test]
    fn devices_that_pods_hold_stay_and_keep_their_tap() {
        let mut held = Held::default();
        let ids = [
            "aMvp0@eth9:vepa:16777300",
            "aMvp0",
            "bMvp1@eth0:bridge:16777301",
        ];
        let allocation = |id: &str| Allocation {
            pod_uid: "1".to_owned(),
            resource: format!("{NAMESPACE}/{}", &id[..1]),
            devices: [id.to_owned()].into(),
            taps: [77].into(),
        };
        let evidence = Evidence {
            checkpoint: &ids.map(allocation),
            recent: &[],
            taps: &BTreeSet::new(),
        };
        held.update(std::iter::empty(), evidence);
        let devices = [
            device("aMvp0@eth0:bridge:16777300"),
            device("aMvp1@eth0:bridge:16777302"),
        ];
        let list = list(&devices, &held);
        let message = list.to_message().devices;
        let found: Vec<(&str, &str)> = message
            .iter()
            .map(|device| (device.id.as_str(), device.health.as_str()))
            .collect();
        let expected = [
            (devices[0].id.as_str(), "Unhealthy"),
            (devices[1].id.as_str(), "Healthy"),
            (ids[0], "Healthy"),
            (ids[1], "Healthy"),
        ];
        assert_eq!(found, expected);
        assert_eq!((list.size(), list.healthy()), (4, 3));
        assert!(list.taps().any(|tap| tap == 77));
    }

    #[test]
    fn prefers_taps_that_do_not_exist() {
        let ids: Vec<String> = (0..4)
            .map(|slot| format!("xMvp{slot}@eth0:bridge:{}", (1 << 24) + slot))
            .collect();
        let existing = BTreeSet::from([1 << 24, (1 << 24) + 1]);
        let former = Former::default();
        let request =
            |available: &[String], must: &[String], size| ContainerPreferredAllocationRequest {
                available_device_ids: available.to_vec(),
                must_include_device_ids: must.to_vec(),
                allocation_size: size,
            };
        let of = |must: &[String], size| prefer(&request(&ids, must, size), &former, &existing);
        assert_eq!(of(&[], 2), ids[2..]);
        assert_eq!(of(&[], 3), [&ids[2..], &ids[..1]].concat());
        assert_eq!(of(&ids[..1], 2), [ids[0].clone(), ids[2].clone()]);
        assert_eq!(of(&[], 9).len(), 4);
        assert!(of(&[], 0).is_empty());
        let former = Former {
            devices: vec![ids[2].parse().unwrap()],
            originals: Originals {
                ids: ["xMvp0".to_owned()].into(),
                taps: BTreeSet::new(),
            },
        };
        let available = [vec!["xMvp0".to_owned()], ids.clone()].concat();
        let preferred = prefer(&request(&available, &[], 9), &former, &existing);
        let order = [&ids[3], &ids[2], &ids[0], &ids[1], &available[0]];
        assert_eq!(preferred.iter().collect::<Vec<_>>(), order);
    }
}
