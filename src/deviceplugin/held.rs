//! The devices that pods hold. They stay on the lists whatever the configuration is, and their
//! taps are given to no other device. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::config::ResourceConfig;
use crate::types::{
    checkpoint::Allocation,
    device_id::{DeviceId, NAMESPACE, is_original},
    link_name::LinkName,
    mode::Mode,
};

/// What shows that a pod holds a device.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The allocations in the kubelet's checkpoint.
    pub checkpoint: &'a [Allocation],
    /// The devices that were allocated a moment ago, and may not be in the checkpoint yet.
    pub recent: &'a [DeviceId],
    /// The taps that exist.
    pub taps: &'a BTreeSet<u32>,
}

/// The devices that pods hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    by_tap: BTreeMap<u32, DeviceId>,
    /// The IDs that kubevirt/macvtap-cni allocated, by resource.
    originals: BTreeMap<String, Originals>,
    /// What ports there are: by lower device, the modes and the resources of the macvtaps on it.
    ports: BTreeSet<(LinkName, u32, String)>,
}

/// The devices of a resource that kubevirt/macvtap-cni allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Originals {
    /// The IDs.
    pub ids: BTreeSet<String>,
    /// Their taps.
    pub taps: BTreeSet<u32>,
}

impl Held {
    /// Takes in evidence. `listed` are the devices of the last lists: one of them whose tap
    /// exists is held.
    ///
    /// A tap belongs to the first device that held it, for as long as there is evidence.
    pub fn update<'a>(
        &mut self,
        listed: impl Iterator<Item = (u32, &'a str)>,
        evidence: Evidence<'_>,
    ) {
        let checkpoint = evidence.checkpoint.iter();
        let named = checkpoint.flat_map(|allocation| &allocation.devices);
        let named = named.filter_map(|id| id.parse::<DeviceId>().ok());
        let named: Vec<DeviceId> = named.chain(evidence.recent.iter().cloned()).collect();
        let ids: BTreeSet<String> = named.iter().map(DeviceId::to_string).collect();
        self.by_tap
            .retain(|tap, device| evidence.taps.contains(tap) || ids.contains(&device.to_string()));
        let existing = listed.filter(|(tap, _)| evidence.taps.contains(tap));
        let existing: Vec<DeviceId> = existing.filter_map(|(_, id)| id.parse().ok()).collect();
        self.insert(named.into_iter().chain(existing));
        self.originals = originals(evidence.checkpoint);
        let attached = self.by_tap.iter();
        let attached = attached.filter(|(tap, _)| evidence.taps.contains(tap));
        self.ports = attached.map(|(_, device)| port(device)).collect();
    }

    /// Takes in devices whose macvtap exists, unless others have their taps.
    pub fn hold(&mut self, devices: &[DeviceId]) {
        self.insert(devices.iter().cloned());
        self.ports.extend(devices.iter().map(port));
    }

    fn insert(&mut self, devices: impl Iterator<Item = DeviceId>) {
        for device in devices {
            self.by_tap.entry(device.tap).or_insert(device);
        }
    }

    /// Why no device of a resource can be used now; none if they can: a macvtap in passthru mode
    /// has its lower device to itself. It is in the network namespace of its pod, where the node's
    /// links do not show it.
    #[must_use]
    pub fn conflict(&self, resource: &ResourceConfig) -> Option<String> {
        let ResourceConfig {
            name, lower, mode, ..
        } = resource;
        let mut others = self.ports.iter().filter(|(on, as_mode, of)| {
            let is_alone = mode.is_alone() || *as_mode == Mode::Passthru.raw();
            on == lower && is_alone && (of, *as_mode) != (name, mode.raw())
        });
        let (_, _, other) = others.next()?;
        Some(format!(
            "lower device {:?} is in use by a pod with resource {other:?}: passthru mode needs it \
             alone",
            lower.to_string()
        ))
    }

    /// The device that holds this tap.
    #[must_use]
    pub fn at(&self, tap: u32) -> Option<&DeviceId> {
        self.by_tap.get(&tap)
    }

    /// The devices whose tap is among these.
    pub fn with_taps<'a>(&'a self, taps: &'a BTreeSet<u32>) -> impl Iterator<Item = &'a DeviceId> {
        let devices = self.by_tap.values();
        devices.filter(|device| taps.contains(&device.tap))
    }

    /// The devices of a resource.
    pub fn of_resource(&self, resource: &str) -> impl Iterator<Item = &DeviceId> {
        let devices = self.by_tap.values();
        devices.filter(move |device| device.resource == resource)
    }

    /// Whether pods hold devices of a resource.
    #[must_use]
    pub fn has(&self, resource: &str) -> bool {
        self.resources().any(|name| name == resource)
    }

    /// The devices of a resource that kubevirt/macvtap-cni allocated.
    #[must_use]
    pub fn originals_of(&self, resource: &str) -> Option<&Originals> {
        self.originals.get(resource)
    }

    /// The names of the resources whose devices are held.
    pub fn resources(&self) -> impl Iterator<Item = &str> {
        let devices = self.by_tap.values();
        let names = devices.map(|device| device.resource.as_str());
        names.chain(self.originals.keys().map(String::as_str))
    }

    /// Whether another device holds this tap.
    #[must_use]
    pub fn is_taken(&self, tap: u32, id: &str) -> bool {
        let device = self.by_tap.get(&tap);
        device.is_some_and(|device| device.to_string() != id)
    }
}

fn port(device: &DeviceId) -> (LinkName, u32, String) {
    let mode = device.mode.raw();
    (device.lower.clone(), mode, device.resource.clone())
}

fn originals(checkpoint: &[Allocation]) -> BTreeMap<String, Originals> {
    let mut found: BTreeMap<String, Originals> = BTreeMap::new();
    for allocation in checkpoint {
        let prefix = allocation.resource.strip_prefix(NAMESPACE);
        let Some(resource) = prefix.and_then(|rest| rest.strip_prefix('/')) else {
            continue;
        };
        let ids = allocation.devices.iter().filter(|id| is_original(id));
        let ids: BTreeSet<String> = ids.cloned().collect();
        if !ids.is_empty() {
            let originals = found.entry(resource.to_owned()).or_default();
            originals.ids.extend(ids);
            originals.taps.extend(&allocation.taps);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::resource_options::ResourceOptions;

    const OLD: &str = "aMvp0@eth0:bridge:16777300";
    const NEW: &str = "aMvp0@eth1:vepa:16777300";

    fn allocation(id: &str) -> Allocation {
        Allocation {
            pod_uid: "1".to_owned(),
            resource: format!("{NAMESPACE}/a"),
            devices: [id.to_owned()].into(),
            taps: [16_777_300].into(),
        }
    }

    fn update(held: &mut Held, listed: &str, checkpoint: &[Allocation], taps: &[u32]) {
        let evidence = Evidence {
            checkpoint,
            recent: &[],
            taps: &taps.iter().copied().collect(),
        };
        held.update([(16_777_300, listed)].into_iter(), evidence);
    }

    #[test]
    fn a_tap_is_its_first_holders_while_there_is_evidence() {
        let mut held = Held::default();
        update(&mut held, OLD, &[], &[]);
        assert!(!held.is_taken(16_777_300, NEW));
        update(&mut held, OLD, &[], &[16_777_300]);
        assert!(held.is_taken(16_777_300, NEW) && !held.is_taken(16_777_300, OLD));
        // The configuration changed.
        update(&mut held, NEW, &[], &[16_777_300]);
        assert!(held.is_taken(16_777_300, NEW));
        // The tap is gone, as in a reboot, but the pod has the device.
        update(&mut held, NEW, &[allocation(OLD)], &[]);
        assert!(held.is_taken(16_777_300, NEW));
        assert_eq!(held.of_resource("a").count(), 1);
        update(&mut held, NEW, &[], &[]);
        assert_eq!(held, Held::default());
    }

    #[test]
    fn passthru_needs_a_lower_device_without_ports() {
        let resource = |name: &str, mode| ResourceConfig {
            name: name.to_owned(),
            lower: "eth0".parse().unwrap(),
            selector: None,
            mode,
            options: ResourceOptions::NONE,
            capacity: 1,
            volume_hotplug: false,
            host_access: false,
            vlan: None,
        };
        for (port, name, mode, conflicts) in [
            ("aMvp0@eth0:bridge:16777300", "b", Mode::Bridge, false),
            ("aMvp0@eth0:bridge:16777300", "b", Mode::Passthru, true),
            ("aMvp0@eth0:bridge:16777300", "a", Mode::Passthru, true),
            ("aMvp0@eth0:passthru:16777300", "a", Mode::Passthru, false),
            ("aMvp0@eth0:passthru:16777300", "b", Mode::Passthru, true),
            ("aMvp0@eth0:passthru:16777300", "b", Mode::Bridge, true),
            ("aMvp0@eth1:passthru:16777300", "b", Mode::Bridge, false),
        ] {
            let mut held = Held::default();
            update(&mut held, port, &[allocation(port)], &[]);
            let conflict = |held: &Held| held.conflict(&resource(name, mode)).is_some();
            assert!(!conflict(&held), "the macvtap does not exist yet: {port}");
            update(&mut held, port, &[], &[16_777_300]);
            assert_eq!(conflict(&held), conflicts, "{port} {name} {mode}");
        }
    }

    #[test]
    fn a_device_that_was_just_allocated_is_held() {
        let mut held = Held::default();
        let evidence = Evidence {
            checkpoint: &[],
            recent: &[OLD.parse().unwrap()],
            taps: &BTreeSet::new(),
        };
        held.update(std::iter::empty(), evidence);
        assert!(held.is_taken(16_777_300, NEW));
    }

    #[test]
    fn devices_of_the_original_are_those_of_the_checkpoint() {
        let mut held = Held::default();
        update(&mut held, NEW, &[allocation("aMvp0")], &[]);
        let originals = held.originals_of("a").unwrap();
        assert!(originals.ids.contains("aMvp0") && originals.taps.contains(&16_777_300));
        assert_eq!(held.resources().collect::<Vec<_>>(), ["a"]);
        assert!(held.originals_of("b").is_none());
        assert!(
            !held.is_taken(16_777_300, NEW),
            "its number is the kernel's choice"
        );
    }
}
