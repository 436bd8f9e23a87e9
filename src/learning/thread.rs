//! The thread that learns: it hears frames, asks the ports what follows, and does it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, ensure};
use log::{debug, info, warn};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};

use super::{
    GROUP,
    frame::{self, Frame},
    is_parked,
    packet::{self, Announcements, Heard, LARGEST, Watch},
    port::{Action, Event, Port},
    query::{self, Query},
};
use crate::{
    host::{netns::Netns, tap},
    netlink::{Change, Link, Socket, errno},
    types::{errors::io_error, mac::MacAddr, mode::Mode, status::LearningStatus},
};

/// How often it is looked whether ports are gone. Their frames just stop.
const SWEEP: Duration = Duration::from_secs(5);
/// Frames that are taken from one socket before others have their turn.
const BATCH: usize = 256;
/// Ports at most. Each costs memory and time; a node has no use for more.
const MOST: usize = 4096;

/// Learning, as long as this lives.
pub struct Learning {
    stats: Arc<Mutex<LearningStatus>>,
    thread: Option<JoinHandle<()>>,
    stop: Option<OwnedFd>,
}

impl Learning {
    /// Begins to learn about the ports in the network namespaces that `netns_dir` lists, and
    /// about those that ADD asks about. Fails if a capability is missing.
    pub fn start(netns_dir: &Path) -> Result<Self> {
        let announcements = announcements_if_allowed()?;
        let listener = query::listen()?;
        let (woken, stop) = pipe2(OFlag::O_CLOEXEC).context("making a pipe")?;
        let stats = Arc::new(Mutex::new(LearningStatus::default()));
        let mut learner = Learner {
            ports: BTreeMap::new(),
            lowers: BTreeMap::new(),
            announcements,
            heard: BTreeSet::new(),
            stats: LearningStatus::default(),
            published: Arc::clone(&stats),
            swept: Instant::now(),
            complaint: String::new(),
        };
        let netns_dir = netns_dir.to_owned();
        let run = move || learner.run(&netns_dir, &listener, &woken);
        let thread = std::thread::Builder::new().name("learning".into());
        let thread = thread.spawn(run).context("starting a thread")?;
        Ok(Self {
            stats,
            thread: Some(thread),
            stop: Some(stop),
        })
    }

    /// What it did so far.
    #[must_use]
    pub fn status(&self) -> LearningStatus {
        let thread = self.thread.as_ref();
        LearningStatus {
            running: thread.is_some_and(|thread| !thread.is_finished()),
            ..*self.stats.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

/// Ends it; ports that are parked become live, for nobody would be there to do it later.
impl Drop for Learning {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A port, and where it is.
struct Place {
    port: Port,
    mac: MacAddr,
    lower: u32,
    ifname: String,
    netns: PodNetns,
    since: Instant,
}

/// Where a pod's network namespace is. It is opened when it is needed and closed at once: a
/// descriptor held would keep the pod's namespace alive.
#[derive(Clone)]
struct PodNetns {
    path: PathBuf,
    identity: (u64, u64),
}

impl PodNetns {
    /// Opens it; none if it is gone, or another one is at the path.
    fn open(&self) -> Result<Option<Netns>> {
        let Some(netns) = Netns::open(&self.path)? else {
            return Ok(None);
        };
        let same = netns.identity()? == self.identity;
        Ok(Some(netns).filter(|_| same))
    }

    /// A netlink socket in it; none if it is gone.
    fn socket(&self) -> Result<Option<Socket>> {
        self.open()?.map(|netns| netns.socket()).transpose()
    }
}

/// What there is for one lower device.
#[derive(Default)]
struct Lower {
    watch: Option<Watch>,
    watched: BTreeSet<MacAddr>,
    /// Whether it gave us back what we sent.
    reflective: bool,
}

struct Learner {
    /// By the number of their tap, which is unique on the machine.
    ports: BTreeMap<u32, Place>,
    lowers: BTreeMap<u32, Lower>,
    announcements: Announcements,
    /// The MACs whose announcements are heard.
    heard: BTreeSet<MacAddr>,
    stats: LearningStatus,
    published: Arc<Mutex<LearningStatus>>,
    swept: Instant,
    complaint: String,
}

impl Learner {
    fn run(&mut self, netns_dir: &Path, listener: &UnixListener, woken: &OwnedFd) {
        self.find_ports(netns_dir);
        let mut buffer = vec![0; LARGEST];
        loop {
            self.follow();
            match self.wait(listener, woken) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    warn!("learning ends, new ports are not parked: {error:#}");
                    break;
                }
            }
            self.hear(&mut buffer);
            self.answer(listener);
            self.tick();
        }
        self.leave();
    }

    /// Waits for something to do. False if it is time to end.
    fn wait(&self, listener: &UnixListener, woken: &OwnedFd) -> Result<bool> {
        let now = Instant::now();
        let deadlines = self
            .ports
            .values()
            .filter_map(|place| place.port.deadline(now));
        let next = deadlines.chain([self.swept + SWEEP]).min();
        let pause = next.unwrap_or(now).saturating_duration_since(now) + Duration::from_millis(1);
        let watches = self
            .lowers
            .values()
            .filter_map(|lower| lower.watch.as_ref());
        let descriptors = [woken.as_fd(), listener.as_fd()].into_iter();
        let descriptors = descriptors.chain(self.announcements.descriptors());
        let descriptors = descriptors.chain(watches.map(Watch::descriptor));
        let mut descriptors: Vec<PollFd> = descriptors
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
        match poll(&mut descriptors, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for frames"),
        }
        let ended = descriptors[0]
            .revents()
            .is_some_and(|events| !events.is_empty());
        Ok(!ended)
    }

    /// Takes what was heard. A frame goes out before it can come back, so whoever watches is
    /// asked first.
    fn hear(&mut self, buffer: &mut [u8]) {
        self.hear_watches(buffer);
        for _ in 0..BATCH {
            let Some(Heard { index, bytes, .. }) = self.announcements.next(buffer) else {
                return;
            };
            let frame = Frame::read(bytes).filter(|frame| frame.announcement);
            if let Some(frame) = frame {
                self.hear_watches(buffer);
                self.stats.announcements += 1;
                self.tell(index, &frame, None);
            }
        }
    }

    fn hear_watches(&mut self, buffer: &mut [u8]) {
        let indices: Vec<u32> = self.lowers.keys().copied().collect();
        for index in indices {
            for _ in 0..BATCH {
                let lower = self.lowers.get(&index);
                let watch = lower.and_then(|lower| lower.watch.as_ref());
                let Some(Heard {
                    outgoing, bytes, ..
                }) = watch.and_then(|watch| watch.next(buffer))
                else {
                    break;
                };
                match Frame::read(bytes) {
                    Some(frame) if outgoing => self.tell(index, &frame, Some(bytes)),
                    // Announcements that come in are heard by their own socket.
                    Some(frame) if !frame.announcement => self.tell(index, &frame, None),
                    _ => {}
                }
            }
        }
    }

    /// Tells the ports with the frame's source on this lower device, and does what follows.
    /// With `own`, the whole frame, it went out.
    fn tell(&mut self, lower: u32, frame: &Frame, own: Option<&[u8]>) {
        let concerned = self
            .ports
            .iter()
            .filter(|(_, place)| place.lower == lower && place.mac == frame.source);
        let taps: Vec<u32> = concerned.map(|(tap, _)| *tap).collect();
        for tap in taps {
            let event = own.map_or(Event::Foreign(frame), |_| Event::Own(frame));
            self.happened(tap, event, own.unwrap_or_default());
        }
    }

    fn happened(&mut self, tap: u32, event: Event<'_>, frame: &[u8]) {
        let Some(place) = self.ports.get_mut(&tap) else {
            return;
        };
        match place.port.hear(event, Instant::now()) {
            Action::Nothing => {}
            Action::Park => self.park(tap),
            Action::ParkUnlessSent => self.park_unless_sent(tap),
            Action::Unpark => self.unpark(tap, None),
            Action::UnparkAndReplay => self.unpark(tap, Some(frame)),
            Action::IgnoreFlood => self.stats.floods += 1,
            Action::IgnoreReflection => {
                self.stats.reflections += 1;
                let lower = self.lowers.entry(place.lower).or_default();
                lower.reflective = true;
            }
        }
    }

    // === what follows ===

    fn park(&mut self, tap: u32) {
        if self.set_mode(tap, Mode::Vepa) {
            self.stats.parks += 1;
            self.log(tap, "parked, its MAC is announced elsewhere");
        }
    }

    fn unpark(&mut self, tap: u32, first: Option<&[u8]>) {
        if !self.set_mode(tap, Mode::Bridge) {
            return;
        }
        self.stats.unparks += 1;
        if let (Some(frame), Some(place)) = (first, self.ports.get(&tap)) {
            replay(place.netns.clone(), tap, frame.to_vec());
            self.stats.replays += 1;
        }
        self.log(tap, "live");
    }

    /// Evidence against a port that is live only because nothing was heard of it.
    fn park_unless_sent(&mut self, tap: u32) {
        let Some(place) = self.ports.get_mut(&tap) else {
            return;
        };
        let Ok(Some(mut socket)) = place.netns.socket() else {
            return; // The next sweep finds that it is gone.
        };
        let Ok(Some(link)) = socket.link(tap) else {
            return;
        };
        let sent = link.stats.sent_frames > 0;
        place.port.looked(sent, Instant::now());
        if !sent {
            self.park(tap);
        }
    }

    /// Sets a port's mode. A port that is gone is forgotten.
    fn set_mode(&mut self, tap: u32, mode: Mode) -> bool {
        let Some(place) = self.ports.get(&tap) else {
            return false;
        };
        let change = Change {
            mode: Some(mode),
            ..Change::default()
        };
        let outcome = match place.netns.socket() {
            Ok(Some(mut socket)) => socket.change(tap, &change).map(|()| true),
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(true) => return true,
            Err(error) if errno(&error) != Some(Errno::ENODEV) => {
                self.stats.failures += 1;
                self.complain(format!(
                    "tap={tap} could not be set to {mode} mode: {error:#}"
                ));
            }
            _ => {
                self.ports.remove(&tap);
            }
        }
        false
    }

    /// Warns, but not twice in a row of the same.
    fn complain(&mut self, complaint: String) {
        if complaint != self.complaint {
            warn!("{complaint}");
            self.complaint = complaint;
        }
    }

    fn log(&self, tap: u32, what: &str) {
        if let Some(place) = self.ports.get(&tap) {
            let Place {
                mac, ifname, lower, ..
            } = place;
            info!("tap={tap} interface={ifname} mac={mac} lower={lower} {what}");
        }
    }

    // === ports that come and go ===

    /// Answers what ADD asks. The frames of the new port are heard before it is set up.
    fn answer(&mut self, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            let request = match query::read_query(stream) {
                Ok(request) => request,
                Err(error) => {
                    self.complain(format!("a question was not answered: {error:#}"));
                    continue;
                }
            };
            let parked = match self.adopt(&request.question) {
                Ok(()) => true,
                Err(error) => {
                    let tap = request.question.tap;
                    self.complain(format!("tap={tap} is not parked: {error:#}"));
                    false
                }
            };
            if let Err(error) = request.answer(parked) {
                debug!("{error:#}"); // It did not wait, and makes the macvtap in bridge mode.
            }
        }
    }

    fn adopt(&mut self, question: &Query) -> Result<()> {
        ensure!(self.ports.len() < MOST, "there are {MOST} ports already");
        let now = Instant::now();
        let place = Place {
            port: Port::new(now),
            mac: question.mac,
            lower: question.lower,
            ifname: question.ifname.clone(),
            netns: PodNetns {
                path: path_in_container(&question.netns),
                identity: question.identity,
            },
            since: now,
        };
        place.netns.open()?.with_context(|| {
            let path = place.netns.path.display();
            format!("{path} is not that network namespace here; is /run/netns mounted?")
        })?;
        self.ports.insert(question.tap, place);
        // The rest is done after the answer: ADD waits for it.
        let outcome = self.follow_watches();
        if outcome.is_err() {
            self.ports.remove(&question.tap);
        }
        outcome
    }

    /// Finds the ports that there are, by the marker that ADD gave them.
    fn find_ports(&mut self, netns_dir: &Path) {
        let entries = match fs::read_dir(netns_dir) {
            Ok(entries) => entries,
            Err(error) => {
                let dir = netns_dir.display();
                info!("no ports of before are looked for in {dir}: {error}");
                return;
            }
        };
        for entry in entries.flatten() {
            if let Err(error) = self.find_ports_in(&entry.path()) {
                debug!("{}: {error:#}", entry.path().display());
            }
        }
        let parked = self.ports.values().filter(|place| place.port.is_parked());
        let (all, parked) = (self.ports.len(), parked.count());
        info!("learning ports={all} parked={parked}");
    }

    fn find_ports_in(&mut self, path: &Path) -> Result<()> {
        let Some(netns) = Netns::open(path)? else {
            return Ok(());
        };
        let identity = netns.identity()?;
        for link in netns.socket()?.links()? {
            if let Some((lower, mac)) = port_of(&link) {
                let (now, parked) = (Instant::now(), is_parked(&link));
                let place = Place {
                    port: Port::found(parked, link.stats.sent_frames > 0, now),
                    mac,
                    lower,
                    ifname: link.name,
                    netns: PodNetns {
                        path: path.to_owned(),
                        identity,
                    },
                    since: now,
                };
                self.ports.insert(link.index, place);
            }
        }
        Ok(())
    }

    /// Lets time pass, and forgets ports that are gone.
    fn tick(&mut self) {
        let now = Instant::now();
        let due = self.ports.iter().filter(|(_, place)| {
            let deadline = place.port.deadline(now);
            deadline.is_some_and(|deadline| deadline <= now)
        });
        let due: Vec<u32> = due.map(|(tap, _)| *tap).collect();
        for tap in due {
            self.happened(tap, Event::Tick, &[]);
        }
        if now < self.swept + SWEEP {
            return;
        }
        self.swept = now;
        if let Ok(taps) = tap::numbers() {
            // ADD asks a moment before it makes the port.
            self.ports
                .retain(|tap, place| taps.contains(tap) || now < place.since + SWEEP);
        }
    }

    // === what is heard ===

    fn follow(&mut self) {
        if let Err(error) = self.try_follow() {
            self.stats.failures += 1;
            self.complain(format!("frames of some ports are not heard: {error:#}"));
        }
        let parked = self.ports.values().filter(|place| place.port.is_parked());
        self.stats.parked = u64::try_from(parked.count()).unwrap_or(u64::MAX);
        self.stats.active = u64::try_from(self.ports.len()).unwrap_or(u64::MAX) - self.stats.parked;
        *self
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = self.stats;
    }

    /// Keeps what the kernel shows us in step with the ports.
    fn try_follow(&mut self) -> Result<()> {
        let heard: BTreeSet<MacAddr> = self.ports.values().map(|place| place.mac).collect();
        if heard != self.heard {
            self.announcements.filter(&heard)?;
            self.heard = heard;
        }
        self.follow_watches()
    }

    fn follow_watches(&mut self) -> Result<()> {
        let now = Instant::now();
        let mut wanted: BTreeMap<u32, BTreeSet<MacAddr>> = BTreeMap::new();
        for place in self.ports.values() {
            let macs = wanted.entry(place.lower).or_default();
            let lower = self.lowers.entry(place.lower).or_default();
            if lower.reflective || place.port.needs_watch(now) {
                macs.insert(place.mac);
            }
        }
        self.lowers.retain(|index, lower| {
            if !wanted.contains_key(index) {
                close(lower.watch.take());
            }
            wanted.contains_key(index)
        });
        for (index, macs) in wanted {
            if let Some(lower) = self.lowers.get_mut(&index) {
                lower.follow(index, macs)?;
            }
        }
        Ok(())
    }

    fn leave(&mut self) {
        let parked = self
            .ports
            .iter()
            .filter(|(_, place)| place.port.is_parked());
        let parked: Vec<u32> = parked.map(|(tap, _)| *tap).collect();
        for tap in parked {
            if self.set_mode(tap, Mode::Bridge) {
                self.log(tap, "live, as nobody will learn any more");
            }
        }
    }
}

impl Lower {
    fn follow(&mut self, index: u32, macs: BTreeSet<MacAddr>) -> Result<()> {
        if macs == self.watched && macs.is_empty() == self.watch.is_none() {
            return Ok(());
        }
        match &self.watch {
            _ if macs.is_empty() => close(self.watch.take()),
            Some(watch) => watch.filter(&macs)?,
            None => self.watch = Some(Watch::open(index, &macs)?),
        }
        self.watched = macs;
        Ok(())
    }
}

/// The lower device and the MAC of a link that is a port: a macvtap that ADD made in bridge
/// mode, which may be parked now.
fn port_of(link: &Link) -> Option<(u32, MacAddr)> {
    let mode = matches!(link.mode, Some(Mode::Bridge | Mode::Vepa));
    let ours = link.is_macvtap() && link.group == GROUP && mode;
    Some((link.lower.filter(|_| ours)?, link.mac?))
}

/// The path under which a container sees what the runtime calls `/var/run/...`.
fn path_in_container(netns: &str) -> PathBuf {
    let rest = netns.strip_prefix("/var/run/");
    rest.map_or_else(|| netns.into(), |rest| Path::new("/run").join(rest))
}

/// Sends a port's first frame from the port again. On a thread of its own: the kernel takes up
/// to 20 ms to close a packet socket (`synchronize_net`).
fn replay(netns: PodNetns, tap: u32, mut bytes: Vec<u8>) {
    frame::complete_checksum(&mut bytes);
    std::thread::spawn(move || {
        let outcome = (|| {
            let netns = netns.open()?.context("its netns is gone")?;
            netns.run(|| packet::send(tap, &bytes))
        })();
        if let Err(error) = outcome {
            let error: Error = error;
            debug!("tap={tap} its first frame is not sent again: {error:#}");
        }
    });
}

fn close(watch: Option<Watch>) {
    if watch.is_some() {
        std::thread::spawn(move || drop(watch));
    }
}

/// The sockets for announcements. Learning hears frames and changes modes in other network
/// namespaces; nothing is opened for a try alone, for packet sockets take long to close.
fn announcements_if_allowed() -> Result<Announcements> {
    let announcements = Announcements::open();
    let denied = |error: &Error| {
        io_error(error).is_some_and(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    let mut missing = Vec::new();
    if announcements.as_ref().is_err_and(denied) {
        missing.push("CAP_NET_RAW");
    }
    if Netns::current()?.run(|| Ok(())).is_err() {
        missing.push("CAP_SYS_ADMIN");
    }
    ensure!(missing.is_empty(), "{} is missing", missing.join(" and "));
    announcements
}
