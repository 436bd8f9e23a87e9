//! The macvtaps of pods that use the tap without the CNI plugin. They are in the host's network
//! namespace, where kubevirt/macvtap-cni has all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use log::{info, warn};
use tokio::{sync::oneshot, time::sleep};

use crate::{
    host::tap::{self, Instance},
    macvtap::tap_only,
    netlink::Socket,
    types::{device_id::DeviceId, link_name::LinkName, mode::Mode},
};

/// How long a container waits for the end of the tap that its device's former pod has. A network
/// namespace takes up to 0.1 s to be destroyed; the kubelet asks again after seconds.
const FORMER_POD_TIMEOUT: Duration = Duration::from_secs(2);
/// The time between two looks at it.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Does the work on a thread of its own, in the order in which it is asked for: the kernel takes up
/// to 20 ms to delete a link.
#[derive(Clone)]
pub struct TapOnly(mpsc::Sender<Job>);

enum Job {
    Allocated(Vec<DeviceId>, Instances),
    Clear(Vec<DeviceId>),
    ClearOf(Vec<(DeviceId, String)>),
    WarnKept(Vec<DeviceId>),
    NotePods(Vec<(DeviceId, String)>, Instant),
    Adopt(Vec<DeviceId>),
    Ensure(Vec<DeviceId>, oneshot::Sender<Result<Option<DeviceId>>>),
    CreateOriginal(String, LinkName, Mode, oneshot::Sender<Result<u32>>),
}

/// Taps by their number.
type Instances = BTreeMap<u32, BTreeSet<Instance>>;

/// What is known of devices since their last allocation, by the number of their tap.
#[derive(Default)]
struct Known {
    /// When that was, if it was since the start.
    allocated_at: BTreeMap<u32, Instant>,
    /// The taps that were there at the allocation: those of former pods.
    former: Instances,
    /// Those whose macvtap was seen in a pod, where CNI ADD made it.
    attached: BTreeSet<u32>,
    /// Those of which a warning was logged.
    warned: BTreeSet<u32>,
}

impl TapOnly {
    /// Starts the thread, which ends with the last handle.
    pub fn start() -> Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name("tap-only".into());
        let thread = thread.spawn(move || {
            let mut known = Known::default();
            for job in jobs {
                job.run(&mut known);
            }
        });
        thread.context("starting a thread")?;
        Ok(Self(sender))
    }

    /// Notes that the kubelet allocates these devices to another pod, and deletes, some time later,
    /// what [`Self::ensure`] made for the former ones.
    pub fn allocated(&self, devices: Vec<DeviceId>) {
        let former = tap::instances(&numbers(&devices)).unwrap_or_else(|error| {
            // An error of Allocate would be the end of the pod.
            let error = format!("{error:#}");
            warn!(error; "taps of former pods not known");
            Instances::new()
        });
        self.send(Job::Allocated(devices, former));
    }

    /// Deletes what [`Self::ensure`] made for the pods that had these devices, some time later: the
    /// kubelet has released the devices.
    pub fn clear(&self, devices: Vec<DeviceId>) {
        self.send(Job::Clear(devices));
    }

    /// Deletes the macvtaps of these devices that still show these pods, which are gone. The kubelet
    /// may have allocated the devices again since it was asked.
    pub fn clear_of(&self, devices: Vec<(DeviceId, String)>) {
        self.send(Job::ClearOf(devices));
    }

    /// Logs that the macvtaps of these devices are kept, each once: their pods may run, though the
    /// kubelet does not know that they have them.
    pub fn warn_kept(&self, devices: Vec<DeviceId>) {
        self.send(Job::WarnKept(devices));
    }

    /// Shows with the macvtaps of these devices which pods have them, by what the kubelet was asked
    /// at this time. Those that were allocated since may be other pods'.
    pub fn note_pods(&self, devices: Vec<(DeviceId, String)>, asked_at: Instant) {
        self.send(Job::NotePods(devices, asked_at));
    }

    /// Notes which of these devices, which pods have, have their macvtaps in the pods now.
    pub fn adopt(&self, devices: Vec<DeviceId>) {
        self.send(Job::Adopt(devices));
    }

    /// Makes the taps of these devices that do not exist. The kubelet asks after CNI ADD, which
    /// made them unless the pod has no such network.
    pub async fn ensure(&self, devices: Vec<DeviceId>) -> Result<()> {
        let deadline = Instant::now() + FORMER_POD_TIMEOUT;
        while let Some(device) = self
            .ask(|outcome| Job::Ensure(devices.clone(), outcome))
            .await?
        {
            if Instant::now() >= deadline {
                let path = tap::path(device.tap);
                bail!(
                    "{} is still that of the pod that had device {device} before; the kubelet tries \
                     again; if this goes on, delete the pod",
                    path.display()
                );
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Creates the macvtap of a device of kubevirt/macvtap-cni, as that does, for CNI ADD to
    /// move it into the pod; the number of its tap.
    pub async fn create_original(&self, id: String, lower: LinkName, mode: Mode) -> Result<u32> {
        self.ask(|outcome| Job::CreateOriginal(id, lower, mode, outcome))
            .await
    }

    fn send(&self, job: Job) {
        // The thread only ends after the last handle.
        let _ = self.0.send(job);
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        let (sender, outcome) = oneshot::channel();
        let sent = self.0.send(job(sender));
        sent.ok().context("the thread tap-only has ended")?;
        outcome.await.context("the thread tap-only has ended")?
    }
}

impl Job {
    fn run(self, known: &mut Known) {
        match self {
            Self::Allocated(devices, former) => known.allocated(&devices, former),
            Self::Clear(devices) => devices.iter().for_each(clear),
            Self::ClearOf(devices) => devices.iter().for_each(clear_of),
            Self::WarnKept(devices) => devices.iter().for_each(|device| known.warn_kept(device)),
            Self::NotePods(devices, asked_at) => known.note_pods(&devices, asked_at),
            Self::Adopt(devices) => known.adopt(&devices),
            Self::Ensure(devices, outcome) => {
                // The kubelet may have given up.
                let _ = outcome.send(known.ensure(&devices));
            }
            Self::CreateOriginal(id, lower, mode, outcome) => {
                let created = tap_only::create_original(&id, &lower, mode);
                let _ =
                    outcome.send(created.with_context(|| format!("creating the macvtap of {id}")));
            }
        }
    }
}

impl Known {
    fn allocated(&mut self, devices: &[DeviceId], mut former: Instances) {
        for device in devices {
            self.attached.remove(&device.tap);
            self.warned.remove(&device.tap);
            self.former.remove(&device.tap);
            self.allocated_at.insert(device.tap, Instant::now());
            clear(device);
        }
        self.former.append(&mut former);
    }

    fn adopt(&mut self, devices: &[DeviceId]) {
        let attached = Socket::open()
            .map_err(anyhow::Error::from)
            .and_then(|mut host| {
                let mut attached = BTreeSet::new();
                for device in devices {
                    if !tap_only::is_here(&mut host, device)? {
                        attached.insert(device.tap);
                    }
                }
                Ok(attached)
            });
        match attached {
            Ok(mut attached) => self.attached.append(&mut attached),
            Err(error) => {
                let error = format!("{error:#}");
                warn!(error; "macvtaps of pods not known");
            }
        }
    }

    /// Makes the taps of devices that do not exist. Fails if one that exists is another's; the first
    /// that a former pod still has.
    fn ensure(&mut self, devices: &[DeviceId]) -> Result<Option<DeviceId>> {
        let found = tap::instances(&numbers(devices))?;
        for device in devices {
            let Some(taps) = found.get(&device.tap) else {
                self.create(device)?;
                continue;
            };
            let former = self.former.get(&device.tap);
            if former.is_some_and(|former| !former.is_disjoint(taps)) {
                return Ok(Some(device.clone()));
            }
            tap_only::check_owner(device)?;
            if !tap_only::is_here(&mut Socket::open()?, device)? {
                self.attached.insert(device.tap);
            }
        }
        Ok(None)
    }

    /// Not in place of one in the pod, which had the settings of its network: its security, its MAC
    /// and its limits.
    fn create(&self, device: &DeviceId) -> Result<()> {
        ensure!(
            !self.attached.contains(&device.tap),
            "the pod's macvtap with {} is gone, as when {} is removed and made again, and only CNI \
             ADD makes it: delete the pod",
            tap::path(device.tap).display(),
            device.lower
        );
        tap_only::create_for(device)
            .with_context(|| format!("creating the macvtap of {device}"))?;
        info!(device:%; "created a macvtap without the CNI plugin");
        Ok(())
    }

    fn note_pods(&self, devices: &[(DeviceId, String)], asked_at: Instant) {
        let is_current = |(device, _): &&(DeviceId, String)| {
            let allocated_at = self.allocated_at.get(&device.tap);
            allocated_at.is_none_or(|allocated_at| *allocated_at < asked_at)
        };
        devices.iter().filter(is_current).for_each(note_pod);
    }

    fn warn_kept(&mut self, device: &DeviceId) {
        if self.warned.insert(device.tap) {
            warn!(
                device:%;
                "kept the macvtap of a pod that the kubelet does not know to have it; if no \
                 container uses its tap, remove it with: ip link delete {}",
                tap_only::name_for(device)
            );
        }
    }
}

fn note_pod((device, pod): &(DeviceId, String)) {
    let host = Socket::open().map_err(anyhow::Error::from);
    if let Err(error) = host.and_then(|mut host| tap_only::note_pod(&mut host, device, pod)) {
        let error = format!("{error:#}");
        warn!(device:%, error; "cannot show which pod has a macvtap");
    }
}

fn numbers(devices: &[DeviceId]) -> BTreeSet<u32> {
    devices.iter().map(|device| device.tap).collect()
}

fn clear(device: &DeviceId) {
    clear_by(device, |host| tap_only::delete_of(host, device));
}

fn clear_of((device, pod): &(DeviceId, String)) {
    clear_by(device, |host| tap_only::delete_of_pod(host, device, pod));
}

/// Allocate must not fail for it: an error there is the end of the pod, while CNI ADD clears up
/// as well.
fn clear_by(device: &DeviceId, delete: impl FnOnce(&mut Socket) -> Result<bool>) {
    let host = Socket::open().map_err(anyhow::Error::from);
    match host.and_then(|mut host| delete(&mut host)) {
        Ok(true) => info!(device:%; "deleted the macvtap of a previous pod"),
        Ok(false) => {}
        Err(error) => {
            let error = format!("{error:#}");
            warn!(device:%, error:%; "cannot delete the macvtap of a previous pod");
        }
    }
}
