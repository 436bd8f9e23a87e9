//! The thread of host access: it keeps the macvlans of the node in line with the resources and the
//! guests.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use log::{info, warn};

use super::{
    access::{Access, Surroundings},
    claim::{self, Claim},
    guests::Port,
    interface::is_ours,
};
use crate::{
    host::{
        packet::{MAX_FRAME_BYTES, PacketError, PacketSocket},
        worker::Waiter,
    },
    learning::filter,
    netlink::{Link, Socket},
    types::{link_name::LinkName, mac::MacAddr, status::HostAccessStatus},
};

/// How often the kernel is compared with what it is to have, if nothing happens.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// The shortest time until the next comparison for what guests claim, however much that is.
const MIN_INTERVAL: Duration = Duration::from_millis(50);
/// Frames that are taken from one socket before the kernel is looked at.
const MAX_FRAMES_PER_TURN: usize = 256;

/// What is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The lower devices with host access, and the taps of their resources.
    pub lowers: BTreeMap<LinkName, BTreeSet<u32>>,
    /// The macvtaps of guests.
    pub ports: Ports,
}

/// The macvtaps of guests, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    /// Learning is about to find them.
    #[default]
    Awaited,
    /// Learning is off.
    Unknown,
    /// These.
    Known(Vec<Port>),
}

/// What the thread has in common with the event loop.
#[derive(Debug, Default)]
pub struct Shared {
    /// What is to be.
    pub plan: Mutex<Plan>,
    /// What is.
    pub status: Mutex<Vec<HostAccessStatus>>,
}

/// The work of the thread.
pub struct Work {
    shared: Arc<Shared>,
    /// The node's name.
    node: String,
    /// Readable when the plan, links, addresses or routes changed.
    changes: UnixStream,
    accesses: BTreeMap<LinkName, Access>,
    sockets: Vec<PacketSocket>,
    /// What the sockets' filter is for: the indexes of the macvlans, and the MACs of guests.
    filtered: (BTreeSet<u32>, BTreeSet<MacAddr>),
    warnings: BTreeSet<String>,
}

impl Work {
    /// That for this node.
    pub fn new(shared: Arc<Shared>, node: String, changes: UnixStream) -> Self {
        Self {
            shared,
            node,
            changes,
            accesses: BTreeMap::new(),
            sockets: Vec::new(),
            filtered: Default::default(),
            warnings: BTreeSet::new(),
        }
    }

    /// Works until it is time to stop. What there is then stays.
    pub fn run(mut self, waiter: &Waiter) {
        if let Err(error) = self.try_run(waiter) {
            warn!(error = format!("{error:#}"); "host access stopped, routes to guests stay");
        }
    }

    fn try_run(&mut self, waiter: &Waiter) -> Result<()> {
        let mut host = Socket::open()?;
        let mut buffer = vec![0; MAX_FRAME_BYTES];
        loop {
            let error = self.reconcile(&mut host).err();
            self.publish(error);
            if !self.wait(waiter, &mut buffer)? {
                return Ok(());
            }
        }
    }

    /// Waits until the kernel has to be compared again. False if it is time to stop.
    fn wait(&mut self, waiter: &Waiter, buffer: &mut [u8]) -> Result<bool> {
        let start = Instant::now();
        let mut claimed = false;
        loop {
            let interval = if claimed {
                MIN_INTERVAL
            } else {
                SWEEP_INTERVAL
            };
            let pause = (start + interval).saturating_duration_since(Instant::now());
            if pause.is_zero() {
                return Ok(true);
            }
            if waiter.wait(self.descriptors(), pause)?.is_none() {
                return Ok(false);
            }
            claimed |= self.receive(buffer);
            if self.take_changes() {
                return Ok(true);
            }
        }
    }

    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sockets = self.sockets.iter().map(AsFd::as_fd);
        sockets.chain([self.changes.as_fd()])
    }

    fn take_changes(&mut self) -> bool {
        let mut changed = false;
        while matches!(self.changes.read(&mut [0; 64]), Ok(1..)) {
            changed = true;
        }
        changed
    }

    fn reconcile(&mut self, host: &mut Socket) -> Result<()> {
        let plan = self.shared.plan.lock();
        let plan = plan.unwrap_or_else(PoisonError::into_inner).clone();
        self.accesses
            .retain(|lower, _| plan.lowers.contains_key(lower));
        let links = host.links().context("listing links")?;
        let removed = remove_others(host, &links, &plan);
        let surroundings = Surroundings {
            node: &self.node,
            links: &links,
            ports: match &plan.ports {
                Ports::Known(ports) => Some(ports),
                Ports::Awaited | Ports::Unknown => None,
            },
        };
        for (lower, taps) in plan.lowers {
            let access = self.accesses.entry(lower);
            let access = access.or_insert_with_key(|lower| Access::new(lower.clone()));
            access.taps = taps;
            access.sync(host, surroundings);
            if plan.ports == Ports::Unknown {
                let text = "learning is off: its guests are not known";
                access.status.errors.push(text.to_owned());
            }
        }
        removed.and(self.filter().context("receiving what guests claim"))
    }

    // === claims ===

    /// Receives claims. True if they change anything.
    fn receive(&mut self, buffer: &mut [u8]) -> bool {
        let mut changed = false;
        let now = Instant::now();
        for socket in &self.sockets {
            for _ in 0..MAX_FRAMES_PER_TURN {
                let Some(received) = socket.receive(buffer) else {
                    break;
                };
                let Some(claim) = Claim::read(&buffer[..received.length]) else {
                    continue;
                };
                let mut accesses = self.accesses.values_mut();
                let access = accesses.find(|access| access.index == Some(received.index));
                changed |= access.is_some_and(|access| access.claim(claim, now));
            }
        }
        changed
    }

    /// Keeps what the sockets receive in step with the guests.
    fn filter(&mut self) -> Result<(), PacketError> {
        let accesses = || self.accesses.values();
        let interfaces: BTreeSet<u32> = accesses().filter_map(|access| access.index).collect();
        let macs = accesses().flat_map(|access| &access.macs).copied();
        let wanted = (interfaces, macs.collect());
        if wanted.0.is_empty() {
            self.sockets.clear();
        } else if self.sockets.is_empty() {
            let nothing = filter::from(&BTreeSet::new());
            let open = |ethertype| PacketSocket::of_type(ethertype, &nothing);
            self.sockets = vec![open(claim::ARP)?, open(claim::IPV6)?];
        } else if wanted == self.filtered {
            return Ok(());
        }
        let program = claim::program(&wanted.0, &wanted.1);
        for socket in &self.sockets {
            match socket.attach(&program) {
                Err(error) if error.is_no_memory() => socket.attach(&filter::all())?,
                attached => attached?,
            }
        }
        self.filtered = wanted;
        Ok(())
    }

    // === status ===

    /// Publishes how it is, and logs what is new.
    fn publish(&mut self, error: Option<anyhow::Error>) {
        let mut all: Vec<HostAccessStatus> = self
            .accesses
            .values()
            .map(|access| access.status.clone())
            .collect();
        if let Some(error) = error {
            let text = format!("{error:#}");
            let errors = all.iter_mut().map(|status| &mut status.errors);
            errors.for_each(|errors| errors.push(text.clone()));
        }
        let warnings = all.iter().flat_map(HostAccessStatus::warnings);
        let warnings: BTreeSet<String> = warnings.collect();
        for warning in warnings.difference(&self.warnings) {
            warn!("{warning}");
        }
        self.warnings = warnings;
        let published = self.shared.status.lock();
        *published.unwrap_or_else(PoisonError::into_inner) = all;
    }
}

/// Removes the macvlans on lower devices without host access.
fn remove_others(host: &mut Socket, links: &[Link], plan: &Plan) -> Result<()> {
    let is_planned = |link: &&Link| {
        let lower = links.iter().find(|lower| Some(lower.index) == link.lower);
        let lower = lower.filter(|_| link.lower_nsid.is_none());
        lower.is_some_and(|lower| plan.lowers.keys().any(|name| lower.is_called(name)))
    };
    for link in links.iter().filter(|link| is_ours(link)) {
        if is_planned(&link) {
            continue;
        }
        let deleted = host.delete(link.index);
        deleted.with_context(|| format!("deleting {:?}", link.name))?;
        info!(interface = link.name.as_str(); "deleted: host access is off there");
    }
    Ok(())
}
