//! No two device IDs that are ever advertised share a tap while one of them exists: random
//! configuration changes, allocations and ends of pods, by the functions that decide.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use macvtap::{
    deviceplugin::{
        config::ResourceConfig,
        device_list::{self, DeviceList, ListedDevice, Plan},
        held::{Evidence, Held},
    },
    types::{
        checkpoint::Allocation,
        device_id::{DeviceId, NAMESPACE},
        mode::Mode,
    },
};

/// Pseudo-random numbers, the same in each run (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end).unwrap()).unwrap()
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// A node, with the pods that hold devices: whether the tap of each exists, and whether the
/// kubelet's checkpoint names it.
struct World {
    dice: Dice,
    configured: BTreeMap<String, ResourceConfig>,
    devices: BTreeMap<String, Arc<Vec<ListedDevice>>>,
    held: Held,
    lists: BTreeMap<String, DeviceList>,
    pods: Vec<(DeviceId, bool, bool)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            dice: Dice(seed),
            configured: BTreeMap::new(),
            devices: BTreeMap::new(),
            held: Held::default(),
            lists: BTreeMap::new(),
            pods: Vec::new(),
        };
        world.configure();
        world
    }

    /// Another configuration of up to three resources.
    fn configure(&mut self) {
        let names = ["a", "b", "c"];
        let count = 1 + self.dice.below(names.len());
        let resources = names[..count].iter().map(|name| ResourceConfig {
            name: (*name).to_owned(),
            lower: self.dice.pick(&["eth0", "eth1"]).parse().unwrap(),
            selector: None,
            mode: self.dice.pick(&[Mode::Bridge, Mode::Vepa, Mode::Private]),
            options: self.dice.pick(&["", "+q4"]).parse().unwrap(),
            capacity: 1 + self.dice.below(40),
            volume_hotplug: false,
            host_access: false,
            vlan: None,
        });
        let resources = resources.map(|resource| (resource.name.clone(), resource));
        let configured = resources.collect();
        self.look();
        self.configured = configured;
        self.devices = device_list::devices("node", &self.configured);
    }

    /// What the device plugin looks at, as the supervisor does.
    fn look(&mut self) {
        let taps: BTreeSet<u32> = self
            .pods
            .iter()
            .filter(|(_, exists, _)| *exists)
            .map(|(device, ..)| device.tap)
            .collect();
        let named = self.pods.iter().filter(|(_, _, named)| *named);
        let checkpoint: Vec<Allocation> = named
            .map(|(device, ..)| Allocation {
                pod_uid: "1".to_owned(),
                resource: format!("{NAMESPACE}/{}", device.resource),
                devices: [device.to_string()].into(),
                taps: [device.tap].into(),
            })
            .collect();
        let listed = self.devices.values().flat_map(|devices| devices.iter());
        let listed = listed.map(|device| (device.tap, device.id.as_str()));
        let evidence = Evidence {
            checkpoint: &checkpoint,
            recent: &[],
            taps: &taps,
        };
        self.held.update(listed, evidence);
    }

    fn advertise(&mut self) {
        self.look();
        let former = self.held.resources().filter_map(|name| {
            let resource = device_list::former_resource(name, &self.held)?;
            Some((name.to_owned(), resource))
        });
        let resources: BTreeMap<_, _> = former.chain(self.configured.clone()).collect();
        let lists = resources.into_iter().map(|(name, resource)| {
            let devices = self.devices.get(&name).cloned().unwrap_or_default();
            let list = DeviceList {
                plan: Plan::new(&name, &devices, &self.held),
                resource,
                unhealthy_reason: None,
                unhealthy_former: BTreeSet::new(),
                numa_node: None,
            };
            (name, list)
        });
        self.lists = lists.collect();
    }

    fn healthy(&self) -> Vec<DeviceId> {
        let messages = self.lists.values().map(DeviceList::to_message);
        let devices = messages.flat_map(|message| message.devices);
        let healthy = devices.filter(|device| device.health == "Healthy");
        healthy.map(|device| device.id.parse().unwrap()).collect()
    }

    /// The kubelet allocates a healthy device that no pod has; CNI ADD may follow.
    fn allocate(&mut self) {
        let mut free = self.healthy();
        free.retain(|device| {
            let named = |(other, _, named): &(DeviceId, bool, bool)| *named && other == device;
            !self.pods.iter().any(named)
        });
        if free.is_empty() {
            return;
        }
        let device = free.swap_remove(self.dice.below(free.len()));
        // ADD fails while the tap of the device's former pod exists.
        let blocked = self
            .pods
            .iter()
            .any(|(other, exists, _)| *exists && other.tap == device.tap);
        let exists = !blocked && self.dice.below(2) == 0;
        self.pods.push((device, exists, true));
    }

    /// One of the ends of a pod: the kubelet forgets it, or its tap goes, first.
    fn end(&mut self) {
        if self.pods.is_empty() {
            return;
        }
        let index = self.dice.below(self.pods.len());
        let pod = &mut self.pods[index];
        if self.dice.below(2) == 0 {
            pod.1 = false;
        } else {
            pod.2 = false;
        }
        self.pods.retain(|(_, exists, named)| *exists || *named);
    }

    fn check(&self) {
        let mut holders: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
        for (device, ..) in &self.pods {
            holders
                .entry(device.tap)
                .or_default()
                .insert(device.to_string());
        }
        let mut healthy: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
        for device in self.healthy() {
            healthy
                .entry(device.tap)
                .or_default()
                .insert(device.to_string());
        }
        for (tap, ids) in &holders {
            assert_eq!(ids.len(), 1, "two devices with tap {tap}: {ids:?}");
            // Its device stays on the list, and no other one with that tap is healthy.
            assert_eq!(healthy.get(tap), Some(ids));
        }
        assert!(healthy.values().all(|ids| ids.len() == 1), "{healthy:?}");
    }
}

#[test]
fn no_two_advertised_ids_share_a_tap_while_one_of_them_exists() {
    for seed in 1..=40 {
        let mut world = World::new(seed);
        // A device ID with a tap that another resource's device will have: handed out by an
        // earlier version, which did not hash the lower device.
        let theirs = world.devices.values().next().unwrap()[0].id.clone();
        let theirs: DeviceId = theirs.parse().unwrap();
        let old = DeviceId {
            lower: "eth9".parse().unwrap(),
            ..theirs
        };
        world.pods.push((old, true, true));
        for _ in 0..50 {
            world.advertise();
            world.check();
            match world.dice.below(4) {
                0 => world.configure(),
                1 | 2 => world.allocate(),
                _ => world.end(),
            }
        }
    }
}
