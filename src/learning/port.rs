//! What is known of one port, and what follows from what happens: a state machine without
//! sockets.
//!
//! A port is a macvtap in bridge mode. It is *live* when a VM is behind it. A port without one
//! is *parked*: in VEPA mode, where frames for its MAC go out to the wire instead of to nobody,
//! and frames from its MAC that come in from the wire reach its neighbours
//! (`macvlan_queue_xmit` and `macvlan_handle_frame` in the kernel's `macvlan.c`).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::frame::{Frame, Head};

/// How long a port waits for its VM's first frame before it is live without one, unless there
/// is evidence that the VM is elsewhere. A VM that says nothing is out of its neighbours' reach
/// until then; a migration whose preparation takes longer loses the protection.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// A frame that comes in is one of ours, reflected, if it went out within this.
const REFLECTION: Duration = Duration::from_millis(200);
/// How long a port is watched after a change.
const SETTLE: Duration = Duration::from_secs(3);
/// So often a port is parked within [`WINDOW`]; further announcements are ignored then.
/// Migrations do it once.
const PARKS: usize = 5;
const WINDOW: Duration = Duration::from_secs(10);
/// Own announcements that are remembered. QEMU sends 5 within 0.8 s, the guest as many.
const REMEMBERED: usize = 32;

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A frame with the port's MAC went out by the lower device: its VM is here.
    Own(&'a Frame),
    /// A frame with the port's MAC came in.
    Foreign(&'a Frame),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Set VEPA mode.
    Park,
    /// Set VEPA mode unless the port has sent something, which its counter tells.
    ParkUnlessSent,
    /// Set bridge mode.
    Unpark,
    /// Set bridge mode, and send the frame again from the port: it went out while the port was
    /// parked, so its neighbours did not get it.
    UnparkAndReplay,
    /// Nothing but to count: it was a frame of our own that came back.
    IgnoreReflection,
    /// Nothing but to count: too many announcements.
    IgnoreFlood,
}

/// A port.
#[derive(Clone, Debug)]
pub struct Port {
    parked: bool,
    /// Whether its VM ever sent anything.
    sent: bool,
    /// Whether its MAC was seen elsewhere before it sent anything.
    elsewhere: bool,
    since: Instant,
    parks: VecDeque<Instant>,
    own: VecDeque<(Instant, Head)>,
}

impl Port {
    /// A port that is about to be made, parked.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self::found(true, false, now)
    }

    /// A port that exists: whether it is parked, and has sent anything.
    #[must_use]
    pub fn found(parked: bool, sent: bool, now: Instant) -> Self {
        Self {
            parked,
            sent,
            elsewhere: false,
            since: now,
            parks: VecDeque::new(),
            own: VecDeque::new(),
        }
    }

    /// Whether it is parked.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.parked
    }

    /// Whether the frames that go out have to be watched for its own. That costs each frame
    /// of the lower device a third of a microsecond.
    #[must_use]
    pub fn needs_watch(&self, now: Instant) -> bool {
        self.parked || !self.sent || now < self.since + SETTLE
    }

    /// When [`Event::Tick`] has to come.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let patience = (self.waits()).then(|| self.since + PATIENCE);
        let settled = Some(self.since + SETTLE).filter(|time| *time > now);
        [patience, settled].into_iter().flatten().min()
    }

    fn waits(&self) -> bool {
        self.parked && !self.sent && !self.elsewhere
    }

    /// Takes in what happened at `now`.
    pub fn hear(&mut self, event: Event<'_>, now: Instant) -> Action {
        match event {
            Event::Own(frame) => self.own(frame, now),
            Event::Foreign(frame) => self.foreign(frame, now),
            Event::Tick if self.waits() && now >= self.since + PATIENCE => self.unpark(now),
            Event::Tick => Action::Nothing,
        }
    }

    fn own(&mut self, frame: &Frame, now: Instant) -> Action {
        if frame.announcement {
            self.own.push_back((now, frame.head));
            if self.own.len() > REMEMBERED {
                self.own.pop_front();
            }
        }
        let first = !std::mem::replace(&mut self.sent, true);
        self.elsewhere = false;
        match self.parked {
            false => Action::Nothing,
            // A migrated guest's announcements are repeated by QEMU itself.
            true if first && !frame.rarp => {
                self.unpark(now);
                Action::UnparkAndReplay
            }
            true => self.unpark(now),
        }
    }

    fn foreign(&mut self, frame: &Frame, now: Instant) -> Action {
        if self.is_reflection(frame, now) {
            return Action::IgnoreReflection;
        }
        if !self.sent {
            self.elsewhere = true;
            return match (self.parked, frame.group) {
                (true, _) => Action::Nothing,
                (false, true) => self.park(now),
                // In bridge mode a VM's own unicast to a neighbour looks as if it came in.
                (false, false) => Action::ParkUnlessSent,
            };
        }
        if frame.announcement && !self.parked {
            return self.park(now);
        }
        Action::Nothing
    }

    fn is_reflection(&self, frame: &Frame, now: Instant) -> bool {
        let recent = self
            .own
            .iter()
            .rev()
            .take_while(|(time, _)| now <= *time + REFLECTION);
        frame.announcement && recent.into_iter().any(|(_, head)| *head == frame.head)
    }

    fn park(&mut self, now: Instant) -> Action {
        while self.parks.front().is_some_and(|time| now >= *time + WINDOW) {
            self.parks.pop_front();
        }
        if self.parks.len() >= PARKS {
            return Action::IgnoreFlood;
        }
        self.parks.push_back(now);
        self.parked(now);
        Action::Park
    }

    /// Takes note that [`Action::ParkUnlessSent`] found that the port had sent, or parked it.
    pub fn looked(&mut self, sent: bool, now: Instant) {
        if sent {
            self.sent = true;
            self.elsewhere = false;
        } else {
            self.parked(now);
        }
    }

    fn parked(&mut self, now: Instant) {
        (self.parked, self.since) = (true, now);
    }

    fn unpark(&mut self, now: Instant) -> Action {
        (self.parked, self.since) = (false, now);
        Action::Unpark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is heard: the letters of the table.
    fn frame(letter: char) -> Frame {
        let (group, kind): (u8, [u8; 2]) = match letter {
            'u' => (2, [8, 0]),          // unicast
            'b' => (0xff, [8, 0]),       // broadcast
            'r' => (0xff, [0x80, 0x35]), // RARP
            'a' | 'A' => (0xff, [8, 6]), // an ARP about itself; A is another one than a
            _ => panic!("{letter}"),
        };
        let mut bytes = vec![group, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1];
        bytes.extend(kind);
        bytes.resize(42, 0);
        bytes[20] = letter as u8;
        Frame::read(&bytes).unwrap()
    }

    /// A story: "o" or "f" with a letter for frames that go out or come in, or milliseconds.
    /// The actions, and whether it ends parked.
    fn tell(mut port: Port, start: Instant, story: &str) -> (Vec<Action>, bool) {
        let (mut now, mut actions) = (start, Vec::new());
        for word in story.split_whitespace() {
            let action = if let Ok(pause) = word.parse() {
                now += Duration::from_millis(pause);
                port.hear(Event::Tick, now)
            } else {
                let frame = frame(word.chars().nth(1).unwrap());
                if word.starts_with('o') {
                    port.hear(Event::Own(&frame), now)
                } else {
                    port.hear(Event::Foreign(&frame), now)
                }
            };
            actions.push(action);
        }
        actions.retain(|action| *action != Action::Nothing);
        (actions, port.is_parked())
    }

    #[test]
    fn learns() {
        use Action::{
            IgnoreFlood, IgnoreReflection, Park, ParkUnlessSent, Unpark, UnparkAndReplay,
        };
        // Spoofed without end: five times in ten seconds, then no more.
        let flood = "or fa or fa or fa or fa or fa or fa";
        let limited = [&[Unpark, Park].repeat(5)[..], &[Unpark, IgnoreFlood]].concat();
        let parked_again = [&limited[..], &[Park]].concat();
        let later = format!("{flood} 10000 fa");
        let table: &[(&str, &[Action], bool)] = &[
            // A VM starts: its first frame goes to the neighbours as well.
            ("ob ou", &[UnparkAndReplay], false),
            ("ou", &[UnparkAndReplay], false),
            // A migrated VM is announced by QEMU.
            ("or 50 or ob", &[Unpark], false),
            // While it is prepared the VM is heard from the source.
            ("fb fu 70000 or", &[Unpark], false),
            // A VM that says nothing.
            ("59999", &[], true),
            ("60000", &[Unpark], false),
            ("60000 70000", &[Unpark], false),
            // Evidence after the timer.
            ("60000 fb", &[Unpark, Park], true),
            ("60000 fu", &[Unpark, ParkUnlessSent], false),
            // It migrates away, and its last frames come late.
            ("ob 5000 fr", &[UnparkAndReplay, Park], true),
            ("ob 5000 fa fr fr", &[UnparkAndReplay, Park], true),
            ("ob 5000 fb fu", &[UnparkAndReplay], false),
            // Away and back.
            ("ob 5000 fr 100 or", &[UnparkAndReplay, Park, Unpark], false),
            // What we sent comes back.
            ("ob oa 199 fa", &[UnparkAndReplay, IgnoreReflection], false),
            ("ob oa 201 fa", &[UnparkAndReplay, Park], true),
            ("ob oa fA", &[UnparkAndReplay, Park], true),
            ("or or fr", &[Unpark, IgnoreReflection], false),
            // Parked after it has sent, it waits without end.
            ("ob 5000 fr 90000", &[UnparkAndReplay, Park], true),
            (flood, &limited, false),
            (&later, &parked_again, true),
        ];
        let now = Instant::now();
        for (story, actions, parked) in table {
            let expected = (actions.to_vec(), *parked);
            assert_eq!(tell(Port::new(now), now, story), expected, "{story}");
        }
    }

    #[test]
    fn is_watched_while_something_is_open() {
        let now = Instant::now();
        let later = now + SETTLE;
        assert!(Port::new(now).needs_watch(later));
        let mut port = Port::found(false, true, now);
        assert!(port.needs_watch(now));
        assert!(!port.needs_watch(later));
        assert_eq!(port.deadline(now), Some(later));
        assert_eq!(port.deadline(later), None);
        port.hear(Event::Foreign(&frame('r')), later);
        assert!(port.needs_watch(later + WINDOW), "parked");
        assert!(
            Port::found(false, false, now).needs_watch(later),
            "never sent"
        );
    }

    #[test]
    fn a_port_that_sent_by_its_counter_is_not_parked() {
        let now = Instant::now();
        let mut port = Port::found(false, false, now);
        assert_eq!(
            port.hear(Event::Foreign(&frame('u')), now),
            Action::ParkUnlessSent
        );
        port.looked(true, now);
        assert!(!port.is_parked());
        let mut port = Port::found(false, false, now);
        port.looked(false, now);
        assert!(port.is_parked());
    }
}
