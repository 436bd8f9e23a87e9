//! Which devices pods hold, as far as the kubelet and the kernel show it now.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use log::warn;

use super::{
    checkpoint_file::CheckpointFile,
    device_list::ListedDevice,
    held::{Evidence, Held},
};
use crate::{host::tap, types::device_id::DeviceId};

/// The shortest time between two looks.
const INTERVAL: Duration = Duration::from_millis(200);
/// How long after its allocation a device counts as held without other evidence. The kubelet
/// writes its checkpoint at once.
const RECENT: Duration = Duration::from_mins(1);

/// The devices that pods hold.
pub struct PodDevices {
    held: Held,
    checkpoint: CheckpointFile,
    /// What was allocated, and when.
    recent: Vec<(Instant, DeviceId)>,
    looked_at: Instant,
}

impl PodDevices {
    /// Those of the kubelet with this directory; none before the first look.
    #[must_use]
    pub fn new(kubelet_dir: &Path) -> Self {
        Self {
            held: Held::default(),
            checkpoint: CheckpointFile::new(kubelet_dir),
            recent: Vec::new(),
            looked_at: Instant::now(),
        }
    }

    /// What was seen at the last look.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Whether it is time to look again.
    pub fn is_due(&self) -> bool {
        self.looked_at.elapsed() > INTERVAL
    }

    /// Whether the kubelet's checkpoint can be relied on.
    pub fn has_checkpoint(&self) -> bool {
        self.checkpoint.exists()
    }

    /// Handles the allocation of devices to a container.
    pub fn allocated(&mut self, devices: &[DeviceId]) {
        let now = Instant::now();
        let devices = devices.iter().cloned();
        self.recent.extend(devices.map(|device| (now, device)));
    }

    /// Whether the kubelet has allocated a device and not released it.
    pub fn is_allocated(&self, device: &DeviceId) -> bool {
        let named = self.checkpoint.allocations().iter();
        let mut named = named.flat_map(|allocation| &allocation.devices);
        named.any(|id| id.parse().is_ok_and(|other| device.is_same(&other)))
            || self.recent.iter().any(|(_, recent)| device.is_same(recent))
    }

    /// Whether the kubelet has released a device that it had allocated.
    pub fn is_released(&self, device: &DeviceId) -> bool {
        self.checkpoint.has_released(device)
    }

    /// Handles a new kubelet: its checkpoint may be another one.
    pub fn kubelet_restarted(&mut self) {
        self.checkpoint.forget_named();
    }

    /// The resources of which pods hold devices, or of which the kubelet's checkpoint names some.
    pub fn resources(&mut self) -> impl Iterator<Item = &str> {
        let allocations = self.checkpoint.read().iter();
        let named = allocations.filter_map(|allocation| allocation.resource.split_once('/'));
        self.held.resources().chain(named.map(|(_, name)| name))
    }

    /// Looks again. `listed` are the devices of the last lists.
    pub fn look<'a>(&mut self, listed: impl Iterator<Item = &'a ListedDevice>) {
        self.looked_at = Instant::now();
        self.recent.retain(|(at, _)| at.elapsed() < RECENT);
        let recent: Vec<DeviceId> = self.recent.iter().map(|(_, it)| it.clone()).collect();
        let taps = match tap::numbers() {
            Ok(taps) => taps,
            Err(error) => {
                warn!(error = format!("{error:#}"); "cannot list the taps");
                return;
            }
        };
        let evidence = Evidence {
            checkpoint: self.checkpoint.read(),
            recent: &recent,
            taps: &taps,
        };
        let listed = listed.map(|device| (device.tap, device.id.as_str()));
        self.held.update(listed, evidence);
    }

    /// Takes in devices whose macvtap is in our own network namespace, for the tap alone.
    pub fn hold(&mut self, devices: &[DeviceId]) {
        self.held.hold(devices);
    }
}
