//! The ports, and what follows from all of them together. Plain data: it knows neither sockets
//! nor threads.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    netns::PodNetns,
    port::{Action, Event, Observation, Port},
};
use crate::types::{mac::MacAddr, status::PortStatus};

/// Ports at most. Each costs memory and time; a node has no use for more.
pub const MAX_PORTS: usize = 4096;
/// How long after its query ADD has made the macvtap, or has failed.
const CREATION_TIMEOUT: Duration = Duration::from_secs(5);

/// A port, and where it is.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its state.
    pub port: Port,
    /// Its MAC.
    pub mac: MacAddr,
    /// The index of its lower device.
    pub lower: u32,
    /// Its interface's name in the pod.
    pub ifname: String,
    /// Its pod's netns.
    pub netns: PodNetns,
    /// The frame in question whether it is the port's first.
    pub first_frame: Vec<u8>,
    /// The addresses that IPAM gave it.
    pub addresses: Vec<IpAddr>,
    /// Whether its macvtap was seen, or until when it may still be made.
    pub existence: Existence,
}

/// Whether the macvtap of a port exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existence {
    /// It did when the kernel was asked last.
    Seen,
    /// ADD is about to make it, since then.
    Awaited(Instant),
}

impl Entry {
    /// Whether the port is to be forgotten if its macvtap does not exist at `now`.
    #[must_use]
    pub fn is_gone(&self, now: Instant) -> bool {
        match self.existence {
            Existence::Seen => true,
            Existence::Awaited(since) => now >= since + CREATION_TIMEOUT,
        }
    }

    fn status(&self) -> PortStatus {
        PortStatus {
            interface: self.ifname.clone(),
            netns: self.netns.path.display().to_string(),
            mac: self.mac.to_string(),
            lower: self.lower,
            parked: self.port.is_parked(),
            addresses: self.addresses.clone(),
            ..PortStatus::default()
        }
    }
}

/// Where the table has noted a port, by its tap's number.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Note {
    lower: u32,
    mac: MacAddr,
    deadline: Instant,
    watched: bool,
    parked: bool,
}

/// The ports.
#[derive(Default)]
pub struct Table {
    /// By the number of their tap. Of several links with one number none is a port.
    entries: BTreeMap<u32, (Entry, Note)>,
    /// (lower device, MAC, tap).
    by_address: BTreeSet<(u32, MacAddr, u32)>,
    /// Those of `by_address` whose frames have to be watched.
    watched: BTreeSet<(u32, MacAddr, u32)>,
    deadlines: BTreeSet<(Instant, u32)>,
    parked: usize,
    /// Lower devices that gave back what they sent.
    reflective: BTreeSet<u32>,
    /// Lower devices whose filter is out of date.
    stale: BTreeSet<u32>,
    macs_changed: bool,
    /// Taps whose port came, went or changed as far as [`PortStatus`] shows it.
    changed: BTreeSet<u32>,
}

impl Table {
    /// The number of ports.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The number of ports that are parked.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.parked
    }

    /// The ports, by the number of their tap.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.entries.iter().map(|(tap, (entry, _))| (*tap, entry))
    }

    /// The port of a tap.
    #[must_use]
    pub fn get(&self, tap: u32) -> Option<&Entry> {
        self.entries.get(&tap).map(|(entry, _)| entry)
    }

    /// Adds a port, in place of a former one with the tap.
    pub fn insert(&mut self, tap: u32, entry: Entry, now: Instant) {
        self.remove(tap);
        let note = Note::of(&entry, now);
        self.add_note(tap, note);
        self.entries.insert(tap, (entry, note));
    }

    /// Forgets a port.
    pub fn remove(&mut self, tap: u32) -> Option<Entry> {
        let (entry, note) = self.entries.remove(&tap)?;
        self.remove_note(tap, note);
        Some(entry)
    }

    /// Changes a port. None if there is none.
    pub fn update<T>(
        &mut self,
        tap: u32,
        now: Instant,
        change: impl FnOnce(&mut Entry) -> T,
    ) -> Option<T> {
        let (entry, old) = self.entries.get_mut(&tap)?;
        let result = change(entry);
        let new = Note::of(entry, now);
        let old = std::mem::replace(old, new);
        if old.address() != new.address() {
            self.remove_address(tap, old);
            self.add_address(tap, new);
        } else if old.watched != new.watched {
            self.set_watched(tap, new);
        }
        self.deadlines.remove(&(old.deadline, tap));
        self.deadlines.insert((new.deadline, tap));
        if old.parked != new.parked {
            self.parked = self.parked + usize::from(new.parked) - usize::from(old.parked);
            self.changed.insert(tap);
        }
        Some(result)
    }

    /// Notes where the netns of a port is.
    pub fn set_netns(&mut self, tap: u32, netns: PodNetns) {
        if let Some((entry, _)) = self.entries.get_mut(&tap) {
            entry.netns = netns;
            self.changed.insert(tap);
        }
    }

    /// Notes the addresses that IPAM gave a port.
    pub fn set_addresses(&mut self, tap: u32, addresses: Vec<IpAddr>) {
        if let Some((entry, _)) = self.entries.get_mut(&tap) {
            entry.addresses = addresses;
            self.changed.insert(tap);
        }
    }

    /// Keeps the frame in question of a port that has not sent any yet.
    pub fn keep_first_frame(&mut self, tap: u32, frame: &[u8]) {
        let entry = self.entries.get_mut(&tap).map(|(entry, _)| entry);
        if let Some(entry) = entry.filter(|entry| entry.port.awaits_first_frame()) {
            entry.first_frame = frame.to_vec();
        }
    }

    /// Gives a port what happened; what to do.
    pub fn receive(&mut self, tap: u32, event: Event<'_>, now: Instant) -> Action {
        let action = self.update(tap, now, |entry| entry.port.receive(event, now));
        action.unwrap_or(Action::Nothing)
    }

    /// Gives a port what the kernel says of it; what to do.
    pub fn looked(&mut self, tap: u32, kernel: Observation, now: Instant) -> Action {
        let action = self.update(tap, now, |entry| {
            entry.existence = Existence::Seen;
            entry.port.looked(kernel, now)
        });
        action.unwrap_or(Action::Nothing)
    }

    /// The taps of the ports with this MAC on a lower device: one, but for a moment.
    #[must_use]
    pub fn taps(&self, lower: u32, mac: MacAddr) -> Vec<u32> {
        let range = (lower, mac, 0)..=(lower, mac, u32::MAX);
        let found = self.by_address.range(range);
        found.map(|(_, _, tap)| *tap).collect()
    }

    /// When the next deadline of a port is.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(time, _)| *time)
    }

    /// The taps of the ports whose deadline has passed.
    #[must_use]
    pub fn due(&self, now: Instant) -> Vec<u32> {
        let due = self.deadlines.range(..=(now, u32::MAX));
        due.map(|(_, tap)| *tap).collect()
    }

    // === filters ===

    /// Notes that a lower device gives back what it sends.
    pub fn set_reflective(&mut self, lower: u32) {
        if self.reflective.insert(lower) {
            self.stale.insert(lower);
        }
    }

    /// Notes that the filter of a lower device has to be set again.
    pub fn set_stale(&mut self, lower: u32) {
        self.stale.insert(lower);
    }

    /// The lower devices whose filter is out of date, with the MACs to watch there.
    pub fn take_stale(&mut self) -> Vec<(u32, BTreeSet<MacAddr>)> {
        let stale = std::mem::take(&mut self.stale);
        let with_macs = stale
            .into_iter()
            .map(|lower| (lower, self.watched_on(lower)));
        with_macs.collect()
    }

    fn watched_on(&mut self, lower: u32) -> BTreeSet<MacAddr> {
        let lowest = MacAddr([0; 6]);
        let highest = MacAddr([0xff; 6]);
        let range = (lower, lowest, 0)..=(lower, highest, u32::MAX);
        let mut all = self.by_address.range(range.clone()).peekable();
        if all.peek().is_none() {
            self.reflective.remove(&lower); // The index may be another device's one day.
        }
        if self.reflective.contains(&lower) {
            return all.map(|(_, mac, _)| *mac).collect();
        }
        let watched = self.watched.range(range);
        watched.map(|(_, mac, _)| *mac).collect()
    }

    /// Whether the MACs of all ports changed since they were last taken.
    #[must_use]
    pub fn have_macs_changed(&self) -> bool {
        self.macs_changed
    }

    /// The MACs of all ports, if they changed since the last call.
    pub fn take_macs(&mut self) -> Option<BTreeSet<MacAddr>> {
        let changed = std::mem::take(&mut self.macs_changed);
        let macs = self.by_address.iter().map(|(_, mac, _)| *mac);
        changed.then(|| macs.collect())
    }

    /// Notes that the MACs have to be taken again.
    pub fn set_macs_changed(&mut self) {
        self.macs_changed = true;
    }

    // === status ===

    /// The ports that changed since the last call; none where one is gone.
    pub fn take_changed(&mut self) -> Vec<(u32, Option<PortStatus>)> {
        let changed = std::mem::take(&mut self.changed);
        let with_status = changed.into_iter().map(|tap| {
            let entry = self.get(tap);
            (tap, entry.map(Entry::status))
        });
        with_status.collect()
    }

    // === notes ===

    fn add_note(&mut self, tap: u32, note: Note) {
        self.add_address(tap, note);
        self.deadlines.insert((note.deadline, tap));
        self.parked += usize::from(note.parked);
    }

    fn remove_note(&mut self, tap: u32, note: Note) {
        self.remove_address(tap, note);
        self.deadlines.remove(&(note.deadline, tap));
        self.parked -= usize::from(note.parked);
    }

    fn add_address(&mut self, tap: u32, note: Note) {
        let (lower, mac) = note.address();
        self.macs_changed |= self.by_address.insert((lower, mac, tap));
        self.changed.insert(tap);
        self.set_watched(tap, note);
    }

    fn set_watched(&mut self, tap: u32, note: Note) {
        let (lower, mac) = note.address();
        if note.watched {
            self.watched.insert((lower, mac, tap));
        } else {
            self.watched.remove(&(lower, mac, tap));
        }
        self.stale.insert(lower);
    }

    fn remove_address(&mut self, tap: u32, note: Note) {
        let (lower, mac) = note.address();
        self.macs_changed |= self.by_address.remove(&(lower, mac, tap));
        self.changed.insert(tap);
        self.watched.remove(&(lower, mac, tap));
        self.stale.insert(lower);
    }
}

impl Note {
    fn of(entry: &Entry, now: Instant) -> Self {
        Self {
            lower: entry.lower,
            mac: entry.mac,
            deadline: entry.port.deadline(now),
            watched: entry.port.needs_watch(now),
            parked: entry.port.is_parked(),
        }
    }

    fn address(self) -> (u32, MacAddr) {
        (self.lower, self.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn entry(lower: u32, mac: MacAddr, parked: bool, now: Instant) -> Entry {
        let kernel = Observation {
            parked,
            sent_frames: 1,
        };
        Entry {
            port: Port::found(kernel, now),
            mac,
            lower,
            ifname: "net1".to_owned(),
            netns: PodNetns {
                path: "/run/netns/a".into(),
                identity: (4, 5),
            },
            first_frame: Vec::new(),
            addresses: Vec::new(),
            existence: Existence::Awaited(now),
        }
    }

    #[test]
    fn finds_ports_by_lower_device_and_mac() {
        let now = Instant::now();
        let mut table = Table::default();
        table.insert(1, entry(2, MAC, true, now), now);
        table.insert(2, entry(2, OTHER, false, now), now);
        table.insert(3, entry(3, MAC, false, now), now);
        assert_eq!(table.taps(2, MAC), [1]);
        assert_eq!(table.taps(3, MAC), [3]);
        assert_eq!((table.len(), table.parked()), (3, 1));
        table.update(3, now, |entry| entry.mac = OTHER);
        assert!(table.taps(3, MAC).is_empty());
        assert_eq!(table.taps(3, OTHER), [3]);
        // Another port with the tap takes its place.
        table.insert(1, entry(3, MAC, false, now), now);
        assert!(table.taps(2, MAC).is_empty());
        assert_eq!((table.len(), table.parked()), (3, 0));
        table.remove(1);
        assert_eq!(table.len(), 2);
        let gone = table.take_changed().into_iter();
        let gone: Vec<u32> = gone
            .filter(|(_, status)| status.is_none())
            .map(|(tap, _)| tap)
            .collect();
        assert_eq!(gone, [1]);
        assert!(table.take_changed().is_empty());
    }

    #[test]
    fn filters_are_renewed_only_where_ports_changed() {
        let now = Instant::now();
        let mut table = Table::default();
        table.insert(1, entry(2, MAC, true, now), now);
        table.insert(2, entry(3, OTHER, false, now), now);
        assert!(table.have_macs_changed());
        assert_eq!(table.take_macs(), Some([MAC, OTHER].into()));
        assert!(!table.have_macs_changed());
        let both = [(2, [MAC].into()), (3, [OTHER].into())];
        assert_eq!(table.take_stale(), both);
        table.looked(
            1,
            Observation {
                parked: true,
                sent_frames: 1,
            },
            now,
        );
        assert!(table.take_stale().is_empty() && table.take_macs().is_none());
        // Three seconds after its last change an active port is not watched any more.
        let later = now + Duration::from_secs(4);
        table.receive(2, Event::Deadline, later);
        assert_eq!(table.take_stale(), [(3, [].into())]);
        table.set_reflective(3);
        assert_eq!(table.take_stale(), [(3, [OTHER].into())]);
        table.remove(2);
        assert_eq!(table.take_stale(), [(3, [].into())]);
    }

    #[test]
    fn deadlines_come_in_order() {
        let now = Instant::now();
        let mut table = Table::default();
        assert_eq!(table.deadline(), None);
        table.insert(1, entry(2, MAC, true, now), now);
        table.insert(2, entry(2, OTHER, true, now + Duration::from_secs(1)), now);
        let first = table.deadline().unwrap();
        assert!(table.due(now).is_empty());
        assert_eq!(table.due(first), [1]);
        table.remove(1);
        assert!(table.deadline().unwrap() > first);
    }

    /// Independently of how often it is looked.
    #[test]
    fn a_port_that_was_seen_is_gone_at_once_and_one_that_is_awaited_later() {
        let now = Instant::now();
        let mut port = entry(2, MAC, true, now);
        assert!(!port.is_gone(now + CREATION_TIMEOUT / 2));
        assert!(port.is_gone(now + CREATION_TIMEOUT));
        port.existence = Existence::Seen;
        assert!(port.is_gone(now));
    }
}
