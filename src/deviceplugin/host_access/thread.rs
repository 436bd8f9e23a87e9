//! The thread of host access: it keeps the macvlans of the node in line with the resources and the
//! guests.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use log::{info, warn};

use super::{
    access::{Access, Surroundings},
    guests::Port,
    interface::is_ours,
    sockets::{FromGuests, FromTheWire, Sockets},
};
use crate::{
    host::{
        packet::{MAX_FRAME_BYTES, PacketError},
        process_lock::ProcessLock,
        processor_time,
        worker::Waiter,
    },
    macvtap::lower::LowerDevice,
    netlink::{Link, RouteChange, RouteWatch, Socket},
    types::{link_name::LinkName, status::HostAccessStatus},
};

/// How often the kernel is compared with what it is to have, if nothing happens.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// The thread rests after each comparison: at least this long, and this many times as long as the
/// processor time that the comparison took. So neither guests nor link events keep a processor busy,
/// and a machine that is busy with something else does not make the thread deaf.
const REST: u32 = 9;
const MIN_INTERVAL: Duration = Duration::from_millis(50);

/// The taps of the resources on each lower device, by its name or alternative name.
type Lowers = BTreeMap<LinkName, BTreeSet<u32>>;

/// Desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The lower devices with host access, and the taps of their resources.
    pub lowers: Lowers,
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

/// State shared with the event loop.
#[derive(Debug, Default)]
pub struct Shared {
    /// Desired state.
    pub plan: Mutex<Plan>,
    /// Published status.
    pub status: Mutex<Vec<HostAccessStatus>>,
}

/// The work of the thread.
pub struct Work {
    shared: Arc<Shared>,
    /// The node's name.
    node: String,
    /// Readable when the plan, links, addresses or routes changed.
    changes: UnixStream,
    /// One device plugin of a node makes and deletes macvlans. Of two, each would delete what the
    /// other makes.
    lock: ProcessLock,
    /// By the index of the lower device, which may have several names.
    accesses: BTreeMap<u32, Access>,
    /// By the name of the lower device, which does not exist for now.
    absent: BTreeMap<LinkName, Access>,
    /// Lower devices that do not exist.
    missing: Vec<HostAccessStatus>,
    sockets: Sockets,
    warnings: BTreeSet<String>,
}

impl Work {
    /// That for this node.
    pub fn new(
        shared: Arc<Shared>,
        node: String,
        (changes, lock): (UnixStream, ProcessLock),
    ) -> Self {
        Self {
            shared,
            node,
            changes,
            lock,
            accesses: BTreeMap::new(),
            absent: BTreeMap::new(),
            missing: Vec::new(),
            sockets: Sockets::default(),
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
        let routes = RouteWatch::open()?;
        let mut buffer = vec![0; MAX_FRAME_BYTES];
        loop {
            let start = processor_time::of_thread()?;
            let error = self.reconcile(&mut host).err();
            self.publish(error);
            let took = processor_time::of_thread()?.saturating_sub(start);
            let pause = (took * REST).max(MIN_INTERVAL);
            if !rest(waiter, pause)? || !self.wait(waiter, &routes, &mut buffer)? {
                return Ok(());
            }
        }
    }

    /// Waits until the kernel has to be compared again. False if it is time to stop.
    fn wait(&mut self, waiter: &Waiter, routes: &RouteWatch, buffer: &mut [u8]) -> Result<bool> {
        let end = Instant::now() + SWEEP_INTERVAL;
        loop {
            let pause = end.saturating_duration_since(Instant::now());
            let is_probing = self.accesses.values().any(|access| access.is_probing);
            if pause.is_zero() || is_probing {
                return Ok(true);
            }
            let others = [self.changes.as_fd(), routes.as_fd()];
            let descriptors = self.sockets.descriptors().chain(others);
            if waiter.wait(descriptors, pause)?.is_none() {
                return Ok(false);
            }
            let changes = [
                self.receive(buffer),
                self.take_route_changes(routes),
                self.take_changes(),
            ];
            if changes.contains(&true) {
                return Ok(true);
            }
            // A guest that repeats itself is not read at once.
            if !rest(waiter, MIN_INTERVAL)? {
                return Ok(false);
            }
        }
    }

    /// Takes what the kernel says of routes and neighbours. True if it changes anything.
    fn take_route_changes(&mut self, routes: &RouteWatch) -> bool {
        let mut changed = false;
        while let Some(change) = routes.next() {
            changed |= match change {
                RouteChange::Routes => true,
                RouteChange::Neighbor(known) => {
                    let access = self.accesses.get_mut(&known.interface);
                    access.is_some_and(|access| access.learn(&known))
                }
            };
        }
        changed
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
        let links = host.links().context("listing links")?;
        if let Err(error) = self.lock.take() {
            self.accesses.clear();
            self.missing.clear();
            // Without a lower device of its own it has nothing to report.
            let needed = (!plan.lowers.is_empty()).then_some(error);
            return needed.map_or(Ok(()), |error| {
                Err(error.context("host access is left to another device plugin"))
            });
        }
        let lowers = self.resolve(plan.lowers, &links);
        let removed = remove_others(host, &links, &lowers);
        let surroundings = Surroundings {
            node: &self.node,
            ports: match &plan.ports {
                Ports::Known(ports) => Some(ports),
                Ports::Awaited | Ports::Unknown => None,
            },
        };
        for (access, lower) in on_lowers(&mut self.accesses, &lowers) {
            access.prepare(host, lower, surroundings);
        }
        let filtered = self.filter().context("receiving what guests claim");
        for (access, lower) in on_lowers(&mut self.accesses, &lowers) {
            access.sync(host, lower);
            if plan.ports == Ports::Unknown {
                let text = "learning is off: its guests are not known";
                access.status.errors.push(text.to_owned());
            }
        }
        let filtered = filtered.and(self.filter().context("receiving what guests claim"));
        removed.and(filtered)
    }

    /// Finds the lower devices, which may have several names, and gives each its taps. By index.
    fn resolve(&mut self, named: Lowers, links: &[Link]) -> BTreeMap<u32, Link> {
        self.missing.clear();
        let (mut found, mut all_taps) = (BTreeMap::new(), BTreeMap::new());
        for (name, taps) in named {
            match LowerDevice::among(links, &name) {
                Ok(LowerDevice { link }) => {
                    let (_, of_link) = all_taps
                        .entry(link.index)
                        .or_insert_with(|| (name, BTreeSet::new()));
                    of_link.extend(taps);
                    found.insert(link.index, link);
                }
                Err(error) => self.missing.push(HostAccessStatus {
                    lower_device: name.to_string(),
                    errors: vec![error.to_string()],
                    ..HostAccessStatus::default()
                }),
            }
        }
        self.assign(all_taps);
        found
    }

    /// Keeps what is known of guests while a lower device has another name or is made again: they
    /// do not repeat their claims soon.
    fn assign(&mut self, all_taps: BTreeMap<u32, (LinkName, BTreeSet<u32>)>) {
        let gone = self
            .accesses
            .extract_if(.., |index, _| !all_taps.contains_key(index));
        let gone = gone.map(|(_, access)| (access.lower.clone(), access));
        self.absent.extend(gone);
        for (index, (name, taps)) in all_taps {
            let former = self.absent.remove(&name);
            let access = self.accesses.entry(index);
            let access = access.or_insert_with(|| former.unwrap_or_else(|| Access::new(name)));
            access.taps = taps;
        }
        let is_missing = |name: &LinkName| {
            let mut missing = self.missing.iter();
            missing.any(|status| *status.lower_device == **name)
        };
        self.absent.retain(|name, _| is_missing(name));
    }

    // === claims ===

    /// Receives claims. True if they change anything.
    fn receive(&mut self, buffer: &mut [u8]) -> bool {
        let now = Instant::now();
        let (accesses, mut changed) = (&mut self.accesses, false);
        self.sockets.receive(buffer, |index, statement| {
            if let Some(access) = accesses.get_mut(&index) {
                changed |= access.dispute(&statement.claim());
            }
            let mut accesses = accesses.values_mut();
            let access = accesses.find(|access| access.index == Some(index));
            changed |= access.is_some_and(|access| access.claim(statement, now));
        });
        changed
    }

    /// Keeps what the sockets receive in step with the guests.
    fn filter(&mut self) -> Result<(), PacketError> {
        let accesses = || self.accesses.values();
        let guests = FromGuests {
            interfaces: accesses().filter_map(|access| access.index).collect(),
            macs: accesses()
                .flat_map(|access| &access.macs)
                .copied()
                .collect(),
        };
        let wire = FromTheWire {
            interfaces: self.accesses.keys().copied().collect(),
            addresses: accesses().flat_map(Access::claimed).collect(),
        };
        self.sockets.receive_of(guests, wire)
    }

    // === status ===

    /// Publishes the status, and logs what is new.
    fn publish(&mut self, error: Option<anyhow::Error>) {
        let accesses = self.accesses.values().map(|access| &access.status);
        let mut all: Vec<HostAccessStatus> = accesses.chain(&self.missing).cloned().collect();
        let mut warnings = BTreeSet::new();
        if let Some(error) = error {
            let text = format!("{error:#}");
            if all.is_empty() {
                warnings.insert(format!("host access: {text}"));
            }
            let errors = all.iter_mut().map(|status| &mut status.errors);
            errors.for_each(|errors| errors.push(text.clone()));
        }
        warnings.extend(all.iter().flat_map(HostAccessStatus::warnings));
        for warning in warnings.difference(&self.warnings) {
            warn!("{warning}");
        }
        self.warnings = warnings;
        let published = self.shared.status.lock();
        *published.unwrap_or_else(PoisonError::into_inner) = all;
    }
}

/// Leaves what comes in to the kernel. False if it is time to stop.
fn rest(waiter: &Waiter, rest: Duration) -> Result<bool> {
    let end = Instant::now() + rest;
    loop {
        let pause = end.saturating_duration_since(Instant::now());
        if pause.is_zero() {
            return Ok(true);
        }
        if waiter.wait(std::iter::empty(), pause)?.is_none() {
            return Ok(false);
        }
    }
}

/// Each with its lower device.
fn on_lowers<'a>(
    accesses: &'a mut BTreeMap<u32, Access>,
    lowers: &'a BTreeMap<u32, Link>,
) -> impl Iterator<Item = (&'a mut Access, &'a Link)> {
    let accesses = accesses.iter_mut();
    accesses.filter_map(|(index, access)| Some((access, lowers.get(index)?)))
}

/// Deletes the macvlans on lower devices without host access. The first error, if one stays.
fn remove_others(host: &mut Socket, links: &[Link], lowers: &BTreeMap<u32, Link>) -> Result<()> {
    let is_planned = |link: &Link| {
        let lower = link.lower_here();
        lower.is_some_and(|lower| lowers.contains_key(&lower))
    };
    let others = links
        .iter()
        .filter(|link| is_ours(link) && !is_planned(link));
    let mut removed = Ok(());
    for link in others {
        let deleted = host.delete(link.index);
        match deleted.with_context(|| format!("deleting {:?}", link.name)) {
            Ok(_) => info!(interface = link.name.as_str(); "deleted: host access is off there"),
            Err(error) => removed = removed.and(Err(error)),
        }
    }
    removed
}
