//! The macvtaps of pods that use the tap without the CNI plugin. They are in the host's network
//! namespace, where kubevirt/macvtap-cni has all of them.

use anyhow::{Context, Result};
use log::{info, warn};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use crate::{
    host::tap,
    macvtap::tap_only,
    netlink::Socket,
    types::{device_id::DeviceId, link_name::LinkName, mode::Mode},
};

/// Does the work beside the event loop, in the order in which it is asked for: the kernel takes up
/// to 20 ms to delete a link.
#[derive(Clone)]
pub struct TapOnly(mpsc::UnboundedSender<Job>);

enum Job {
    Clear(Vec<DeviceId>),
    Ensure(Vec<DeviceId>, oneshot::Sender<Result<()>>),
    CreateOriginal(String, LinkName, Mode, oneshot::Sender<Result<u32>>),
}

impl TapOnly {
    /// Starts the task, which ends with the last handle.
    #[must_use]
    pub fn start() -> Self {
        let (sender, mut jobs) = mpsc::unbounded_channel::<Job>();
        tokio::spawn(async move {
            while let Some(job) = jobs.recv().await {
                // A panic is printed.
                let _ = spawn_blocking(|| job.run()).await;
            }
        });
        Self(sender)
    }

    /// Deletes what [`Self::ensure`] made for the former pods of these devices, some time later.
    /// The kubelet has allocated them to another pod, so those are gone.
    pub fn clear(&self, devices: Vec<DeviceId>) {
        // The task only ends after the last handle.
        let _ = self.0.send(Job::Clear(devices));
    }

    /// Makes the taps of these devices that do not exist. The kubelet asks after CNI ADD, which
    /// made them unless the pod has no such network.
    pub async fn ensure(&self, devices: Vec<DeviceId>) -> Result<()> {
        self.ask(|outcome| Job::Ensure(devices, outcome)).await
    }

    /// Creates the macvtap of a device of kubevirt/macvtap-cni, as that does, for CNI ADD to
    /// move it into the pod; the number of its tap.
    pub async fn create_original(&self, id: String, lower: LinkName, mode: Mode) -> Result<u32> {
        self.ask(|outcome| Job::CreateOriginal(id, lower, mode, outcome))
            .await
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        let (sender, outcome) = oneshot::channel();
        let sent = self.0.send(job(sender));
        sent.ok().context("the task tap-only has ended")?;
        outcome.await.context("the task tap-only has ended")?
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
            Self::CreateOriginal(id, lower, mode, outcome) => {
                let created = tap_only::create_original(&id, &lower, mode);
                let _ =
                    outcome.send(created.with_context(|| format!("creating the macvtap of {id}")));
            }
        }
    }
}

fn ensure(device: &DeviceId) -> Result<()> {
    if !tap::devices(device.tap)?.is_empty() {
        return tap_only::check_owner(device);
    }
    tap_only::create_for(device).with_context(|| format!("creating the macvtap of {device}"))?;
    info!(device:%; "created a macvtap without the CNI plugin");
    Ok(())
}

/// Allocate must not fail for it: an error there is the end of the pod, while CNI ADD clears up
/// as well.
fn clear(device: &DeviceId) {
    let host = Socket::open().map_err(anyhow::Error::from);
    match host.and_then(|mut host| tap_only::delete_of(&mut host, device)) {
        Ok(true) => info!(device:%; "deleted the macvtap of a previous pod"),
        Ok(false) => {}
        Err(error) => {
            let error = format!("{error:#}");
            warn!(device:%, error:%; "cannot delete the macvtap of a previous pod");
        }
    }
}
