//! The thread that learns: it receives frames, asks the ports what follows, and does it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Error, Result, bail, ensure};
use log::{debug, info, warn};

use super::{
    closer::Closer,
    frame::{self, Frame},
    netns::PodNetns,
    pins::Pins,
    port::{Action, Event, Observation, Port},
    query::{self, Received, Request},
    recovery::{Places, PortLink, path_in_container, port_of},
    search::UnknownTaps,
    sockets::Sockets,
    table::{Entry, Existence, MAX_PORTS, Table},
};
use crate::{
    host::{
        accept_pause::AcceptPause,
        control_socket::{BindError, Connection},
        listener::Listener,
        netns::Netns,
        packet::{MAX_FRAME_BYTES, PacketError},
        tap,
        worker::{Waiter, Worker},
    },
    types::{
        mac::MacAddr,
        mode::Mode,
        status::{LearningStatus, PortStatus},
    },
};

/// How often sockets are made again that were removed, or could not be made.
const SOCKETS_INTERVAL: Duration = Duration::from_secs(2);
/// How long changes of the MACs whose announcements are received are collected. The kernel translates
/// a filter of all of them, which would hold up the ADD of a new port; the watch of that has them
/// meanwhile.
const ANNOUNCEMENTS_DELAY: Duration = Duration::from_millis(50);
/// How often it is looked whether there are taps of which ADD did not query: its query may have
/// been lost.
const SEARCH_INTERVAL: Duration = Duration::from_secs(5);
/// Frames that are taken from one socket before others have their turn.
const MAX_FRAMES_PER_TURN: usize = 256;
/// Queries that are answered before frames have their turn.
const MAX_QUERIES_PER_TURN: usize = 8;
/// How long the end of learning waits for macvtaps that ADD is about to make, and how often it
/// looks. ADD takes milliseconds.
const UNPARK_TIMEOUT: Duration = Duration::from_secs(1);
const UNPARK_INTERVAL: Duration = Duration::from_millis(5);

/// Learning, as long as this lives. At its end ports that are parked become active, for nothing
/// would unpark them later.
pub struct Learning {
    /// None until it has looked for ports.
    status: Arc<Mutex<Option<LearningStatus>>>,
    worker: Worker,
}

/// Is called when ports come, go or change.
pub type OnChange = Arc<dyn Fn() + Send + Sync>;

impl Learning {
    /// Starts to learn about the ports in the network namespaces that `netns_dir` lists, and
    /// about those that ADD queries about. Fails if a capability is missing, or with
    /// [`BindError::InUse`] while another device plugin learns.
    pub fn start(
        netns_dir: &Path,
        kubelet_dir: &Path,
        on_change: OnChange,
    ) -> Result<Self, BindError> {
        let mut listener = query::listener(kubelet_dir)?;
        listener.bind()?;
        let sockets = sockets_if_allowed()?;
        let status = Arc::new(Mutex::new(None));
        let mut learner = Learner {
            table: Table::default(),
            sockets,
            closer: Closer::default(),
            places: Places::new(netns_dir, kubelet_dir),
            pins: Pins::default(),
            unknown: UnknownTaps::default(),
            search_at: Instant::now() + SEARCH_INTERVAL,
            listener,
            accept_pause: AcceptPause::default(),
            unwatched: BTreeSet::new(),
            announcements_failed: false,
            announced: BTreeSet::new(),
            announcements_at: Some(Instant::now()),
            sockets_at: Instant::now() + SOCKETS_INTERVAL,
            status: LearningStatus::default(),
            published: Arc::clone(&status),
            on_change,
            last_warning: String::new(),
        };
        let worker = Worker::start("learning", move |waiter| learner.run(waiter))?;
        Ok(Self { status, worker })
    }

    /// Does without learning: makes the ports active that a device plugin which was killed left
    /// parked, unless another one learns.
    pub fn do_without(netns_dir: &Path, kubelet_dir: &Path) -> Result<()> {
        if query::find().is_some() {
            return Ok(());
        }
        Places::new(netns_dir, kubelet_dir).unpark_all()
    }

    /// How it is, and what it did so far.
    #[must_use]
    pub fn status(&self) -> LearningStatus {
        LearningStatus {
            running: self.is_running(),
            ..self.published().unwrap_or_default()
        }
    }

    /// The ports, by the number of their tap; none until they were looked for.
    #[must_use]
    pub fn ports(&self) -> Option<BTreeMap<u32, PortStatus>> {
        self.published().map(|status| status.ports)
    }

    fn published(&self) -> Option<LearningStatus> {
        let published = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        published.clone()
    }

    /// Whether its thread runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.worker.is_running()
    }
}

struct Learner {
    table: Table,
    sockets: Sockets,
    closer: Closer,
    places: Places,
    pins: Pins,
    /// Taps that are no known port.
    unknown: UnknownTaps,
    /// When ports are looked for again.
    search_at: Instant,
    listener: Listener,
    accept_pause: AcceptPause,
    /// Lower devices whose frames could not be watched.
    unwatched: BTreeSet<u32>,
    /// Whether announcements of some ports are not received.
    announcements_failed: bool,
    /// The MACs whose announcements are received. Those of others are, as far as they are watched.
    announced: BTreeSet<MacAddr>,
    /// When they follow the ports; none if they do.
    announcements_at: Option<Instant>,
    /// When sockets that are missing are made again.
    sockets_at: Instant,
    status: LearningStatus,
    published: Arc<Mutex<Option<LearningStatus>>>,
    on_change: OnChange,
    last_warning: String,
}

impl Learner {
    fn run(&mut self, waiter: &Waiter) {
        self.find_ports();
        self.publish();
        self.log_ports();
        let mut buffer = Vec::new();
        loop {
            // Without a port no frame matters.
            if self.table.len() > 0 {
                buffer.resize(MAX_FRAME_BYTES, 0);
            }
            self.sync_filters(&mut buffer);
            self.publish();
            match self.wait(waiter) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    warn!(error = format!("{error:#}"); "learning stopped, new ports are not parked");
                    break;
                }
            }
            self.receive(&mut buffer);
            self.answer_queries();
            self.pass_deadlines();
        }
        self.unpark_all();
    }

    /// Waits for something to do. False if it is time to stop.
    fn wait(&self, waiter: &Waiter) -> Result<bool> {
        let now = Instant::now();
        let accept_at = self.accept_pause.until();
        let deadline = self.table.deadline().into_iter();
        let deadline = deadline.chain([self.sockets_at, self.search_at]);
        let deadline = deadline.chain(self.announcements_at);
        let deadline = deadline.chain(accept_at).min();
        let pause = deadline.unwrap_or(now).saturating_duration_since(now);
        let queries = accept_at.is_none().then(|| self.listener.descriptors());
        let queries = queries.into_iter().flatten();
        let ready = waiter.wait(self.sockets.descriptors().chain(queries), pause)?;
        Ok(ready.is_some())
    }

    // === frames ===

    /// Receives what there is. A frame goes out before it can come back, so the watches come
    /// first.
    fn receive(&mut self, buffer: &mut [u8]) {
        self.receive_watched(buffer);
        for _ in 0..MAX_FRAMES_PER_TURN {
            let Some(received) = self.sockets.next_announcement(buffer) else {
                return;
            };
            let frame = Frame::read(&buffer[..received.length]);
            if let Some(frame) = frame.filter(|frame| frame.purpose.is_announcement()) {
                self.receive_watched(buffer);
                for tap in self.table.taps(received.index, frame.source) {
                    self.receive_announced(tap, &frame);
                }
            }
        }
    }

    fn receive_watched(&mut self, buffer: &mut [u8]) {
        for lower in self.sockets.watched() {
            for _ in 0..MAX_FRAMES_PER_TURN {
                let Some(received) = self.sockets.next_frame(lower, buffer) else {
                    break;
                };
                let bytes = &buffer[..received.length];
                let Some(frame) = Frame::read(bytes) else {
                    continue;
                };
                for tap in self.table.taps(lower, frame.source) {
                    if received.outgoing {
                        // A segment that the NIC is to divide can be longer than the buffer.
                        if received.is_whole {
                            self.table.keep_first_frame(tap, bytes);
                        }
                        self.handle(tap, Event::Sent(&frame));
                    } else if frame.purpose.is_announcement()
                        && !self.announced.contains(&frame.source)
                    {
                        self.receive_announced(tap, &frame);
                    } else {
                        self.handle(tap, Event::Seen);
                    }
                }
            }
        }
    }

    fn receive_announced(&mut self, tap: u32, frame: &Frame) {
        self.status.announcements += 1;
        self.handle(tap, Event::Announced(frame));
    }

    fn pass_deadlines(&mut self) {
        let now = Instant::now();
        for tap in self.table.due(now) {
            self.handle(tap, Event::Deadline);
        }
        if now >= self.search_at {
            self.search_at = now + SEARCH_INTERVAL;
            self.search_unknown();
        }
        if now >= self.sockets_at {
            self.sockets_at = now + SOCKETS_INTERVAL;
            if let Err(error) = self.listener.bind() {
                self.warn(format!("ADD cannot query: {error}"));
            }
            for lower in std::mem::take(&mut self.unwatched) {
                self.table.set_stale(lower);
            }
            if std::mem::take(&mut self.announcements_failed) {
                self.table.set_macs_changed();
            }
        }
    }

    // === what follows ===

    fn handle(&mut self, tap: u32, event: Event<'_>) {
        let mut action = self.table.receive(tap, event, Instant::now());
        while action != Action::Nothing {
            action = match self.act(tap, action) {
                Ok(Some(next)) => next,
                Ok(None) => return self.handle_absence(tap),
                Err(error) => return self.handle_failure(tap, &error),
            };
        }
    }

    /// Does what a port decided; what it decides then. None if its macvtap does not exist.
    fn act(&mut self, tap: u32, action: Action) -> Result<Option<Action>> {
        match action {
            Action::Look => return self.look(tap),
            Action::Park => return self.park(tap),
            Action::Unpark => return self.unpark(tap, false),
            Action::UnparkAndReplay => return self.unpark(tap, true),
            Action::Nothing => {}
            Action::IgnoreFlood => self.status.floods += 1,
            Action::IgnoreSpoof => self.status.spoofs += 1,
            Action::IgnoreReflection => {
                self.status.reflections += 1;
                if let Some(lower) = self.table.get(tap).map(|entry| entry.lower) {
                    self.table.set_reflective(lower);
                }
            }
        }
        Ok(Some(Action::Nothing))
    }

    fn look(&mut self, tap: u32) -> Result<Option<Action>> {
        let Some(port) = self.observe(tap)? else {
            return Ok(None);
        };
        let now = Instant::now();
        self.table.update(tap, now, |entry| {
            (entry.mac, entry.ifname) = (port.mac, port.ifname);
        });
        Ok(Some(self.table.looked(tap, port.kernel, now)))
    }

    /// The counter of before: a frame that the VM sends in the same moment ends it.
    fn park(&mut self, tap: u32) -> Result<Option<Action>> {
        let Some(port) = self.observe(tap)? else {
            return Ok(None);
        };
        if !self.pin(tap)? || !self.set_mode(tap, Mode::Vepa)? {
            return Ok(None);
        }
        self.status.parks += 1;
        self.log(tap, "parked: its MAC is announced elsewhere");
        let kernel = Observation {
            parked: true,
            ..port.kernel
        };
        Ok(Some(self.changed(tap, kernel)))
    }

    fn unpark(&mut self, tap: u32, replays: bool) -> Result<Option<Action>> {
        if !self.set_mode(tap, Mode::Bridge)? {
            return Ok(None);
        }
        self.status.unparks += 1;
        if replays {
            self.replay(tap);
        }
        self.log(tap, "active");
        let port = self.observe(tap)?;
        Ok(port.map(|port| self.changed(tap, port.kernel)))
    }

    /// Sends a port's first frame again from the port. Before its counter is read: the port is
    /// not to be taken for one whose VM has sent another frame.
    fn replay(&mut self, tap: u32) {
        let Some(entry) = self.table.get(tap) else {
            return;
        };
        if entry.first_frame.is_empty() {
            return;
        }
        let mut frame = entry.first_frame.clone();
        frame::complete_checksum(&mut frame);
        match entry.netns.send(tap, &frame) {
            Ok(socket) => {
                self.status.replays += 1;
                if let Some(socket) = socket {
                    self.closer.close(socket);
                }
            }
            Err(error) => debug!(tap, error = format!("{error:#}"); "first frame not replayed"),
        }
    }

    /// Sets a port's mode. False if its macvtap does not exist.
    fn set_mode(&self, tap: u32, mode: Mode) -> Result<bool> {
        let entry = self.table.get(tap);
        entry.map_or(Ok(false), |entry| entry.netns.set_mode(tap, mode))
    }

    /// Pins the netns of a port that is to be parked. False if it is gone.
    fn pin(&mut self, tap: u32) -> Result<bool> {
        let entry = self.table.get(tap);
        entry.map_or(Ok(false), |entry| self.pins.pin(tap, &entry.netns))
    }

    /// Takes note of a change that the kernel accepted, after which it says this.
    fn changed(&mut self, tap: u32, kernel: Observation) -> Action {
        let now = Instant::now();
        self.table.update(tap, now, |entry| {
            entry.port.changed(kernel, now);
            entry.first_frame = Vec::new();
        });
        Action::Nothing
    }

    /// What the kernel says of a port. None if its macvtap does not exist, or is not in bridge
    /// mode any more.
    fn observe(&self, tap: u32) -> Result<Option<PortLink>> {
        let link = self.table.get(tap).map(|entry| entry.netns.link(tap));
        Ok(link.transpose()?.flatten().and_then(port_of))
    }

    /// Forgets a port whose macvtap does not exist, unless it is still to be made, or the path of
    /// its network namespace is another one now: where that is known by a process alone, the
    /// process may end before the pod.
    fn handle_absence(&mut self, tap: u32) {
        let now = Instant::now();
        let Some(entry) = self.table.get(tap) else {
            return;
        };
        if let Some(netns) = self.places.follow(&entry.netns) {
            self.table.set_netns(tap, netns);
        } else if entry.is_gone(now) {
            return self.forget(tap);
        }
        self.table
            .update(tap, now, |entry| entry.port.schedule_look(now));
    }

    /// Forgets a port whose macvtap does not exist, or whose netns is found by nothing any more: then
    /// it is not left parked.
    fn forget(&mut self, tap: u32) {
        match self.pins.unpark(tap) {
            Ok(true) => self.log(
                tap,
                "active: its network namespace cannot be found any more",
            ),
            Ok(false) => debug!(tap; "port is gone"),
            Err(error) => self.warn(format!("tap {tap} stays parked: {error:#}")),
        }
        self.table.remove(tap);
    }

    fn handle_failure(&mut self, tap: u32, error: &Error) {
        let now = Instant::now();
        self.table.update(tap, now, |entry| entry.port.failed(now));
        self.status.failures += 1;
        self.warn(format!("tap {tap}: {error:#}; it is tried again"));
    }

    /// Warns, but does not repeat itself.
    fn warn(&mut self, warning: String) {
        if warning != self.last_warning {
            warn!("{warning}");
            self.last_warning = warning;
        }
    }

    fn log(&self, tap: u32, state: &str) {
        if let Some(entry) = self.table.get(tap) {
            let Entry {
                mac, ifname, lower, ..
            } = entry;
            info!(tap, interface:% = ifname, mac:% = mac, lower; "{state}");
        }
    }

    // === ports that come ===

    fn find_ports(&mut self) {
        let now = Instant::now();
        let is_known = |tap| self.table.get(tap).is_some();
        match self.places.find_ports(is_known, now) {
            Ok(found) => {
                let room = MAX_PORTS.saturating_sub(self.table.len());
                for (tap, entry) in found.into_iter().take(room) {
                    self.table.insert(tap, entry, now);
                }
            }
            Err(error) => self.warn(format!("ports that exist are not learned: {error:#}")),
        }
    }

    fn log_ports(&self) {
        let (ports, parked) = (self.table.len(), self.table.parked());
        info!(ports, parked; "learning");
    }

    /// Looks for ports if there are taps that are none yet.
    fn search_unknown(&mut self) {
        let taps = match tap::numbers() {
            Ok(taps) => taps,
            Err(error) => return self.warn(format!("listing taps: {error:#}")),
        };
        let unknown = taps
            .into_iter()
            .filter(|tap| self.table.get(*tap).is_none());
        let is_due = self.unknown.update(unknown);
        let known = self.table.len();
        if is_due {
            self.find_ports();
        }
        if self.table.len() > known {
            self.log_ports();
        }
    }

    fn answer_queries(&mut self) {
        if self.accept_pause.until().is_some() {
            return;
        }
        for _ in 0..MAX_QUERIES_PER_TURN {
            match self.listener.accept() {
                Ok(Some(connection)) => {
                    self.accept_pause.end();
                    self.answer(connection);
                }
                Ok(None) => return,
                Err(error) => {
                    self.accept_pause.begin(&format!("{error:#}"));
                    return;
                }
            }
        }
    }

    /// Answers ADD. The frames of the new port are received before it is set up.
    fn answer(&mut self, connection: Connection) {
        let request = match Received::by(connection) {
            Ok(Some(Received::Query(request))) => request,
            Ok(Some(Received::Addresses(found))) => {
                return self.table.set_addresses(found.tap, found.addresses);
            }
            Ok(None) => return,
            Err(error) => return self.warn(format!("a query was not answered: {error:#}")),
        };
        let adopted = self.adopt(&request);
        if let Err(error) = &adopted {
            let tap = request.query.tap;
            self.warn(format!("tap {tap} is not parked: {error:#}"));
        }
        if let Err(error) = request.answer(adopted.is_ok()) {
            // ADD did not wait, and makes the macvtap in bridge mode.
            debug!(error = format!("{error:#}"); "answer not sent");
        }
    }

    fn adopt(&mut self, Request { query, process, .. }: &Request) -> Result<()> {
        ensure!(
            self.table.len() < MAX_PORTS,
            "there are {MAX_PORTS} ports already"
        );
        let now = Instant::now();
        let netns = PodNetns {
            path: path_in_container(&query.netns),
            identity: query.identity,
        };
        let netns = self.places.locate(&netns, *process)?;
        ensure!(
            self.pins.pin(query.tap, &netns)?,
            "its network namespace is gone"
        );
        let entry = Entry {
            port: Port::new(now),
            mac: query.mac,
            lower: query.lower,
            ifname: query.ifname.clone(),
            netns,
            first_frame: Vec::new(),
            addresses: Vec::new(),
            existence: Existence::Awaited(now),
        };
        self.table.insert(query.tap, entry, now);
        self.sync_watches();
        if self.unwatched.contains(&query.lower) {
            self.table.remove(query.tap);
            bail!("the frames of its lower device cannot be watched");
        }
        Ok(())
    }

    // === sockets ===

    /// Keeps what the kernel gives us in step with the ports.
    fn sync_filters(&mut self, buffer: &mut [u8]) {
        self.sync_watches();
        let now = Instant::now();
        if self.table.have_macs_changed() {
            self.announcements_at
                .get_or_insert(now + ANNOUNCEMENTS_DELAY);
        }
        if self.announcements_at.is_some_and(|at| at <= now) {
            self.announcements_at = None;
            self.sync_announcements(buffer);
        }
    }

    fn sync_announcements(&mut self, buffer: &mut [u8]) {
        let Some(macs) = self.table.take_macs() else {
            return;
        };
        match self.sockets.receive_announcements_of(&macs) {
            Ok(()) => {
                // What came before by the watches alone.
                self.receive_watched(buffer);
                self.announced = macs;
            }
            Err(error) => {
                self.announcements_failed = true;
                self.status.failures += 1;
                self.warn(format!(
                    "announcements of some ports are not received: {error:#}"
                ));
            }
        }
    }

    fn sync_watches(&mut self) {
        for (lower, macs) in self.table.take_stale() {
            match self.sockets.watch(lower, &macs) {
                Ok(unused) => {
                    self.unwatched.remove(&lower);
                    if let Some(socket) = unused {
                        self.closer.close(socket);
                    }
                }
                Err(error) => {
                    self.unwatched.insert(lower);
                    self.status.failures += 1;
                    self.warn(format!("lower device {lower} is not watched: {error:#}"));
                }
            }
        }
    }

    fn sync_pins(&mut self, changed: &[(u32, Option<PortStatus>)]) {
        for (tap, status) in changed {
            if status.as_ref().is_none_or(|status| !status.parked) {
                self.pins.unpin(*tap);
            } else if let Err(error) = self.pin(*tap) {
                self.warn(format!("tap {tap} may stay parked: {error:#}"));
            }
        }
    }

    fn publish(&mut self) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        self.status.parked = count(self.table.parked());
        self.status.active = count(self.table.len() - self.table.parked());
        let changed = self.table.take_changed();
        self.sync_pins(&changed);
        let mut published = self
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_new = published.is_none() || !changed.is_empty();
        let mut ports = published.take().unwrap_or_default().ports;
        for (tap, status) in changed {
            match status {
                Some(status) => ports.insert(tap, status),
                None => ports.remove(&tap),
            };
        }
        *published = Some(LearningStatus {
            ports,
            ..self.status.clone()
        });
        drop(published);
        if is_new {
            (self.on_change)();
        }
    }

    /// A port that ADD is about to make starts parked, as it was answered: it is waited for.
    fn unpark_all(&mut self) {
        let deadline = Instant::now() + UNPARK_TIMEOUT;
        let parked = self.table.iter();
        let parked = parked.filter(|(_, entry)| entry.port.is_parked());
        let mut parked: Vec<u32> = parked.map(|(tap, _)| tap).collect();
        loop {
            parked.retain(|tap| !self.unpark_last(*tap));
            if parked.is_empty() || Instant::now() >= deadline {
                return;
            }
            sleep(UNPARK_INTERVAL);
        }
    }

    /// Unparks a port for good. False if its macvtap is still to be made.
    fn unpark_last(&mut self, tap: u32) -> bool {
        let set = self.set_mode(tap, Mode::Bridge);
        match set.and_then(|set| Ok(set || self.pins.unpark(tap)?)) {
            Ok(true) => self.log(tap, "active: learning stops"),
            Ok(false) => {
                let entry = self.table.get(tap);
                return entry.is_none_or(|entry| entry.is_gone(Instant::now()));
            }
            Err(error) => self.warn(format!("tap {tap} stays parked: {error:#}")),
        }
        true
    }
}

/// Opens the sockets, if learning can work: it receives frames, and changes modes in other
/// network namespaces. Nothing is opened only to try, for packet sockets take long to close.
fn sockets_if_allowed() -> Result<Sockets> {
    let sockets = Sockets::open();
    let mut missing = Vec::new();
    if sockets.as_ref().is_err_and(PacketError::is_denied) {
        missing.push("CAP_NET_RAW");
    }
    if Netns::current()?.run(|| Ok(())).is_err() {
        missing.push("CAP_SYS_ADMIN");
    }
    ensure!(missing.is_empty(), "{} is missing", missing.join(" and "));
    Ok(sockets?)
}
