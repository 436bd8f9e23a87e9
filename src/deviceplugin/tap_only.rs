//! The macvtaps of pods that use the tap without the CNI plugin. They are in the host's network
//! namespace, where kubevirt/macvtap-cni has all of them.

use std::sync::mpsc;

use anyhow::{Context, Result, ensure};
use log::{info, warn};
use tokio::sync::oneshot;

use crate::{
    host::tap,
    netlink::{Change, Create, Link, Socket},
    types::device_id::{DeviceId, original_link_name},
};

/// Does the work on a thread of its own, in the order in which it is asked for: the kernel takes
/// up to 20 ms to delete a link.
#[derive(Clone)]
pub struct TapOnly(mpsc::Sender<Job>);

enum Job {
    Clear(Vec<DeviceId>),
    Ensure(Vec<DeviceId>, oneshot::Sender<Result<()>>),
}

impl TapOnly {
    /// Starts the thread, which ends with the last handle.
    pub fn start() -> Result<Self> {
        let (sender, jobs) = mpsc::channel();
        let thread = std::thread::Builder::new().name("tap-only".into());
        let thread = thread.spawn(move || jobs.into_iter().for_each(Job::run));
        thread.context("starting a thread")?;
        Ok(Self(sender))
    }

    /// Deletes what [`Self::ensure`] made for the former pods of these devices, some time later.
    /// The kubelet has allocated them to another pod, so those are gone.
    pub fn clear(&self, devices: Vec<DeviceId>) {
        // The thread only ends after the last handle.
        let _ = self.0.send(Job::Clear(devices));
    }

    /// Makes the taps of these devices that do not exist. The kubelet asks after CNI ADD, which
    /// made them unless the pod has no such network.
    pub async fn ensure(&self, devices: Vec<DeviceId>) -> Result<()> {
        let (sender, outcome) = oneshot::channel();
        let sent = self.0.send(Job::Ensure(devices, sender));
        sent.ok().context("the thread tap-only has ended")?;
        outcome.await.context("the thread tap-only has ended")?
    }
}

impl Job {
    fn run(self) {
        match self {
            Self::Clear(devices) => devices.iter().for_each(clear),
            Self::Ensure(devices, outcome) => {
                // The kubelet may have given up.
                let _ = outcome.send(devices.iter().try_for_each(ensure));
            }
        }
    }
}

fn ensure(device: &DeviceId) -> Result<()> {
    if !tap::devices(device.tap)?.is_empty() {
        return Ok(());
    }
    let name = original_link_name(&device.to_string());
    let mut host = Socket::open()?;
    create(&mut host, device, &name)
        .with_context(|| format!("creating macvtap {name:?} on {:?}", device.lower))?;
    let alone = set_up(&mut host, device.tap).and_then(|()| {
        let count = tap::devices(device.tap)?.len();
        let path = tap::path(device.tap);
        ensure!(count == 1, "{} is in use elsewhere by now", path.display());
        Ok(())
    });
    if let Err(error) = alone {
        host.delete(device.tap)?;
        return Err(error);
    }
    info!(device:% = device, interface = name; "created a macvtap without the CNI plugin");
    Ok(())
}

fn create(host: &mut Socket, device: &DeviceId, name: &str) -> Result<()> {
    let lower = host.link_by_name(&device.lower)?;
    let lower = lower.context("the lower device does not exist")?;
    host.create(&Create {
        name,
        index: Some(device.tap),
        lower: lower.index,
        mode: device.mode,
        mac: None,
        mtu: None,
        queue_length: tap::queue_length(&lower),
        group: 0,
        netns: None,
    })
}

fn set_up(host: &mut Socket, index: u32) -> Result<()> {
    let quiet = Change {
        no_ipv6_addresses: true,
        ..Change::default()
    };
    // Fails if the kernel has no IPv6, and then there is nothing to turn off.
    if let Err(error) = host.change(index, &quiet) {
        warn!(tap = index, error:% = format!("{error:#}"); "cannot turn off IPv6");
    }
    let up = Change {
        up: Some(true),
        all_multicast: Some(true),
        ..Change::default()
    };
    host.change(index, &up).context("setting it up")
}

/// A failure is no more than a warning: CNI ADD clears up as well.
fn clear(device: &DeviceId) {
    let cleared = Socket::open().and_then(|mut host| {
        let link = host.link(device.tap)?;
        match link.filter(Link::is_macvtap) {
            Some(_) => host.delete(device.tap),
            None => Ok(false),
        }
    });
    match cleared {
        Ok(true) => info!(device:% = device; "deleted the macvtap of the previous pod"),
        Ok(false) => {}
        Err(error) => warn!(
            device:% = device, error:% = format!("{error:#}");
            "cannot delete the macvtap of the previous pod"
        ),
    }
}
