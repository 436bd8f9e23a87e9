//! What is known of one port, and what follows from what happens: a state machine without
//! sockets.
//!
//! A port is a macvtap in bridge mode. It is *active* while its VM is behind it. A port without
//! a VM is *parked*: in VEPA mode, where frames to its MAC go out to the wire instead of
//! nowhere, and frames from its MAC that come in from the wire reach its neighbours
//! (`macvlan_queue_xmit` and `macvlan_handle_frame` in the kernel's `macvlan.c`).
//!
//! The kernel is the truth: a port is parked when the kernel says so, and a VM has sent when the
//! port's own counter says so. Any neighbour can send frames with the VM's MAC.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::frame::{Frame, Head, Purpose};

/// How long a new port waits for its VM's first frame before it becomes active without one,
/// unless there is evidence that the VM is elsewhere. Until then neighbours do not reach a VM
/// that sends nothing; a migration whose preparation takes longer loses the protection.
pub const FIRST_FRAME_TIMEOUT: Duration = Duration::from_mins(1);
/// A frame that comes in is one of ours, reflected, if it went out within this.
const REFLECTION_WINDOW: Duration = Duration::from_millis(200);
/// How long a port is watched after a change.
const WATCH_AFTER_CHANGE: Duration = Duration::from_secs(3);
/// How often a port is parked within [`PARKS_WINDOW`]; further announcements are ignored then.
/// A migration does it once.
const MAX_PARKS: usize = 5;
const PARKS_WINDOW: Duration = Duration::from_secs(10);
/// Own announcements that are remembered. QEMU sends 5 within 0.8 s, the guest as many.
const MAX_OWN: usize = 32;
/// How long after a change the port is first compared with the kernel; then twice as long each
/// time, up to these.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LOOK_INTERVAL_PARKED: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long until a change that the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a frame that was counted may take to be received.
const RECEIPT: Duration = Duration::from_millis(1);
/// The kernel counts a frame just after it has shown it. So often it is looked again whether
/// the port has sent it, after 1 ms, 2 ms, 4 ms and so on.
const MAX_LOOKS: u32 = 7;

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The lower device sent a frame with the port's MAC.
    Sent(&'a Frame),
    /// The lower device received a frame with the port's MAC.
    Seen,
    /// The lower device received an announcement of the port's MAC.
    Announced(&'a Frame),
    /// [`Port::deadline`] passed.
    Deadline,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Look what the kernel says of the port, for [`Port::looked`].
    Look,
    /// Set VEPA mode.
    Park,
    /// Set bridge mode.
    Unpark,
    /// Set bridge mode, and send the first frame again from the port: it went out while the
    /// port was parked, so the neighbours did not receive it.
    UnparkAndReplay,
    /// Count a frame of our own that came back.
    IgnoreReflection,
    /// Count an announcement that is one too many.
    IgnoreFlood,
    /// Count a frame with the port's MAC that another port sent.
    IgnoreSpoof,
}

/// What the kernel says of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Whether it is in VEPA mode.
    pub parked: bool,
    /// How many frames it has sent.
    pub sent_frames: u64,
}

/// What the next look at the kernel has to decide.
#[derive(Clone, Copy, Debug)]
enum Question {
    /// Did the port send the frame with its MAC?
    Sent { replay: bool, looks: u32 },
    /// Its MAC was seen elsewhere: has it ever sent anything?
    EverSent,
    /// It has sent its first frame: is that one still to be received here?
    Counted,
    /// The kernel of its pod has sent a frame by itself: how many frames does that account for? So
    /// many it had sent at the last look.
    Housekeeping { counted: Option<u64>, looks: u32 },
}

/// A port.
#[derive(Clone, Debug)]
pub struct Port {
    kernel: Observation,
    /// The mode that it is to have, and has unless the kernel refused it.
    park: bool,
    /// Whether its VM ever sent anything.
    sent: bool,
    /// Whether its MAC was seen elsewhere before it sent anything.
    elsewhere: bool,
    question: Option<Question>,
    /// When the mode changed last.
    since: Instant,
    look_at: Instant,
    look_interval: Duration,
    parks: VecDeque<Instant>,
    own: VecDeque<(Instant, Head)>,
}

impl Port {
    /// A port that is about to be made, parked.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        let kernel = Observation {
            parked: true,
            sent_frames: 0,
        };
        Self::found(kernel, now)
    }

    /// A port that exists.
    #[must_use]
    pub fn found(kernel: Observation, now: Instant) -> Self {
        Self {
            kernel,
            park: kernel.parked,
            sent: kernel.sent_frames > 0,
            elsewhere: false,
            question: None,
            since: now,
            look_at: now + FIRST_LOOK,
            look_interval: FIRST_LOOK,
            parks: VecDeque::new(),
            own: VecDeque::new(),
        }
    }

    /// Whether it is parked.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.kernel.parked
    }

    /// Whether the frames that the lower device sends have to be watched for its own. That
    /// costs each of them a third of a microsecond.
    #[must_use]
    pub fn needs_watch(&self, now: Instant) -> bool {
        self.kernel.parked || self.park || !self.sent || now < self.since + WATCH_AFTER_CHANGE
    }

    /// Whether the next frame that it sends is its first, and may have to be sent again.
    #[must_use]
    pub fn awaits_first_frame(&self) -> bool {
        self.kernel.parked && !self.sent
    }

    /// When [`Event::Deadline`] is due.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Instant {
        let timeout = self.is_waiting().then(|| self.since + FIRST_FRAME_TIMEOUT);
        let watched = Some(self.since + WATCH_AFTER_CHANGE).filter(|time| *time > now);
        let others = [timeout, watched].into_iter().flatten();
        others.chain([self.look_at]).min().unwrap_or(self.look_at)
    }

    fn is_waiting(&self) -> bool {
        self.kernel.parked && self.park && !self.sent && !self.elsewhere
    }

    /// Receives what happened at `now`.
    pub fn receive(&mut self, event: Event<'_>, now: Instant) -> Action {
        match event {
            Event::Sent(frame) => self.receive_sent(frame, now),
            Event::Seen => self.receive_seen(),
            Event::Announced(frame) => self.receive_announced(frame, now),
            Event::Deadline if now >= self.look_at => Action::Look,
            Event::Deadline => self.next_change(now),
        }
    }

    fn receive_sent(&mut self, frame: &Frame, now: Instant) -> Action {
        if frame.purpose.is_announcement() {
            self.own.push_back((now, frame.head));
            if self.own.len() > MAX_OWN {
                self.own.pop_front();
            }
        }
        if self.sent && !self.kernel.parked {
            self.park = false; // If the kernel refused to park it: the VM is here again.
            return Action::Nothing;
        }
        if frame.purpose == Purpose::Housekeeping
            && self.kernel.parked
            && (self.sent || self.elsewhere)
        {
            return self.receive_housekeeping();
        }
        // A migrated guest's announcements are repeated by QEMU itself, and a neighbour on the
        // same VLAN is rare enough for its own retry.
        let replay = !self.sent && !frame.rarp && !frame.tagged;
        let pending = match self.question {
            Some(Question::Sent { looks, .. }) => Some(looks),
            _ => None,
        };
        let looks = pending.unwrap_or_default();
        self.question = Some(Question::Sent { replay, looks });
        // While a frame is in question the next look is due soon anyhow.
        pending.map_or(Action::Look, |_| Action::Nothing)
    }

    /// Where a VM is elsewhere, its pod's kernel may still speak, with `hostStack`. Its frames are no
    /// evidence of the VM, which does not live by them alone.
    fn receive_housekeeping(&mut self) -> Action {
        match &mut self.question {
            // The next look is due soon anyhow: a flood costs no more.
            Some(Question::Sent { .. }) => Action::Nothing,
            Some(Question::Housekeeping { counted, .. }) => {
                *counted = None;
                Action::Nothing
            }
            _ => {
                self.question = Some(Question::Housekeeping {
                    counted: None,
                    looks: 0,
                });
                Action::Look
            }
        }
    }

    fn receive_seen(&mut self) -> Action {
        if self.sent {
            return Action::Nothing;
        }
        self.elsewhere = true;
        if self.kernel.parked {
            return Action::Nothing;
        }
        // In bridge mode a VM's own unicast to a neighbour looks as if it came in.
        self.question = Some(Question::EverSent);
        Action::Look
    }

    fn receive_announced(&mut self, frame: &Frame, now: Instant) -> Action {
        if self.is_reflection(frame, now) {
            return Action::IgnoreReflection;
        }
        if !self.sent {
            return self.receive_seen();
        }
        if self.park {
            return Action::Nothing;
        }
        self.decide_to_park(now)
    }

    fn is_reflection(&self, frame: &Frame, now: Instant) -> bool {
        let is_recent = |(time, _): &&(Instant, Head)| now <= *time + REFLECTION_WINDOW;
        let mut recent = self.own.iter().rev().take_while(is_recent);
        recent.any(|(_, head)| *head == frame.head)
    }

    /// Takes in what the kernel says of the port. Where it says something else than was
    /// believed, the kernel is right.
    pub fn looked(&mut self, kernel: Observation, now: Instant) -> Action {
        let sent = kernel.sent_frames > self.kernel.sent_frames;
        if kernel.parked != self.kernel.parked {
            (self.park, self.since) = (kernel.parked, now);
        }
        if let Some(Question::Housekeeping { counted, looks }) = self.question
            && kernel.parked
            && looks < MAX_LOOKS
        {
            return self.account(kernel, (counted, looks), now);
        }
        if sent && self.question.is_none() && kernel.parked && !self.sent {
            self.question = Some(Question::Counted);
            self.look_at = now + RECEIPT;
            return Action::Nothing;
        }
        self.kernel = kernel;
        self.schedule_look(now);
        match (self.question.take(), sent) {
            (question, true) => self.has_sent(question, now),
            (Some(Question::Sent { looks, .. }), false) if looks == MAX_LOOKS => {
                Action::IgnoreSpoof
            }
            (Some(Question::Sent { replay, looks }), false) => {
                self.look_at = now + Duration::from_millis(1 << looks);
                let looks = looks + 1;
                self.question = Some(Question::Sent { replay, looks });
                Action::Nothing
            }
            (Some(Question::EverSent), false) if !self.sent && !self.park => {
                self.decide_to_park(now)
            }
            _ => self.next_change(now),
        }
    }

    /// Takes the frames that the pod's kernel has sent by itself out of the account, once all of them
    /// were counted: a frame of the VM among them would have been received by then.
    fn account(
        &mut self,
        kernel: Observation,
        (counted, looks): (Option<u64>, u32),
        now: Instant,
    ) -> Action {
        if counted == Some(kernel.sent_frames) {
            self.question = None;
            self.kernel = kernel;
            self.schedule_look(now);
            return self.next_change(now);
        }
        self.look_at = now + Duration::from_millis(1 << looks);
        self.question = Some(Question::Housekeeping {
            counted: Some(kernel.sent_frames),
            looks: looks + 1,
        });
        Action::Nothing
    }

    /// The port's counter advanced: a VM is behind it.
    fn has_sent(&mut self, question: Option<Question>, now: Instant) -> Action {
        self.sent = true;
        self.elsewhere = false;
        if !self.kernel.parked {
            return self.next_change(now);
        }
        self.park = false;
        match question {
            Some(Question::Sent { replay: true, .. }) => Action::UnparkAndReplay,
            _ => Action::Unpark,
        }
    }

    /// The change that is still to be made, if one is.
    fn next_change(&mut self, now: Instant) -> Action {
        if self.is_waiting() && now >= self.since + FIRST_FRAME_TIMEOUT {
            self.park = false;
        }
        match (self.kernel.parked, self.park) {
            (false, true) => Action::Park,
            (true, false) => Action::Unpark,
            _ => Action::Nothing,
        }
    }

    fn decide_to_park(&mut self, now: Instant) -> Action {
        let past = |time: &Instant| now >= *time + PARKS_WINDOW;
        while self.parks.front().is_some_and(past) {
            self.parks.pop_front();
        }
        if self.parks.len() >= MAX_PARKS {
            return Action::IgnoreFlood;
        }
        self.park = true;
        Action::Park
    }

    /// The kernel accepted a change of the mode, and says this now.
    pub fn changed(&mut self, kernel: Observation, now: Instant) {
        if kernel.parked {
            self.parks.push_back(now);
        }
        self.kernel = kernel;
        (self.park, self.since) = (kernel.parked, now);
        self.look_interval = FIRST_LOOK;
        self.look_at = now + FIRST_LOOK;
    }

    /// The kernel could not be asked, or refused a change: both are tried again.
    pub fn failed(&mut self, now: Instant) {
        self.look_at = now + RETRY;
    }

    /// The kernel will be looked at again, later each time.
    pub fn schedule_look(&mut self, now: Instant) {
        let longest = if self.kernel.parked {
            LOOK_INTERVAL_PARKED
        } else {
            LOOK_INTERVAL
        };
        self.look_interval = (self.look_interval * 2).min(longest);
        self.look_at = now + self.look_interval;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Action::{IgnoreFlood, IgnoreReflection, IgnoreSpoof, Park, Unpark, UnparkAndReplay},
        *,
    };

    /// A frame by its letter in a story.
    fn frame(letter: char) -> Frame {
        let (group, kind): (u8, [u8; 2]) = match letter {
            'u' => (2, [8, 0]),          // unicast
            'b' => (0xff, [8, 0]),       // broadcast
            't' => (0xff, [0x81, 0]),    // broadcast with a VLAN tag
            'h' => (0x33, [0x86, 0xdd]), // a router solicitation
            'r' => (0xff, [0x80, 0x35]), // RARP
            'a' | 'A' => (0xff, [8, 6]), // an ARP about itself; A is another one than a
            _ => panic!("{letter}"),
        };
        let mut bytes = vec![group, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1];
        bytes.extend(kind);
        bytes.resize(60, 0);
        bytes[20] = if letter == 'h' { 58 } else { letter as u8 };
        bytes[54] = 133;
        Frame::read(&bytes).unwrap()
    }

    /// A port, and the kernel as it sees it.
    struct Story {
        port: Port,
        now: Instant,
        kernel: Observation,
        /// Frames that the kernel has shown, but not counted yet.
        uncounted: u64,
        refuses: bool,
        actions: Vec<Action>,
    }

    impl Story {
        fn of(port: Port, now: Instant) -> Self {
            Self {
                kernel: port.kernel,
                port,
                now,
                uncounted: 0,
                refuses: false,
                actions: Vec::new(),
            }
        }

        fn receive(&mut self, event: Event<'_>) {
            let mut action = self.port.receive(event, self.now);
            if action == Action::Look {
                action = self.port.looked(self.kernel, self.now);
                self.kernel.sent_frames += std::mem::take(&mut self.uncounted);
            }
            let parked = match action {
                Action::Nothing => return,
                Action::Park => Some(true),
                Action::Unpark | Action::UnparkAndReplay => Some(false),
                _ => None,
            };
            self.actions.push(action);
            match parked {
                Some(_) if self.refuses => self.port.failed(self.now),
                Some(parked) => {
                    self.kernel.parked = parked;
                    self.port.changed(self.kernel, self.now);
                }
                None => {}
            }
        }

        fn pass(&mut self, pause: Duration) {
            let end = self.now + pause;
            while self.port.deadline(self.now) <= end {
                self.now = self.port.deadline(self.now);
                self.receive(Event::Deadline);
            }
            self.now = end;
        }

        /// Milliseconds, or a letter and that of a frame: "o" for one that the port sends, "l"
        /// for one that is counted late, "s" for one that a neighbour sends with its MAC, "f"
        /// for one that comes in. "c" for a frame with another MAC that the port sends, "m" for
        /// another mode by an administrator, "x" while the kernel refuses changes.
        fn play(&mut self, word: &str) {
            if let Ok(pause) = word.parse() {
                return self.pass(Duration::from_millis(pause));
            }
            let mut letters = word.chars();
            let (what, letter) = (letters.next().unwrap(), letters.next());
            let frame = letter.map(frame);
            match (what, &frame) {
                ('c', None) => self.kernel.sent_frames += 1,
                ('m', None) => self.kernel.parked = !self.kernel.parked,
                ('x', None) => self.refuses = !self.refuses,
                ('o', Some(frame)) => {
                    self.kernel.sent_frames += 1;
                    self.receive(Event::Sent(frame));
                }
                ('l', Some(frame)) => {
                    self.uncounted += 1;
                    self.receive(Event::Sent(frame));
                }
                ('s', Some(frame)) => self.receive(Event::Sent(frame)),
                ('f', Some(frame)) if frame.purpose.is_announcement() => {
                    self.receive(Event::Announced(frame));
                }
                ('f', Some(_)) => self.receive(Event::Seen),
                _ => panic!("{word}"),
            }
        }
    }

    /// The actions of a story, and whether it ends parked.
    fn play(port: Port, start: Instant, words: &str) -> (Vec<Action>, bool) {
        let mut story = Story::of(port, start);
        words.split_whitespace().for_each(|word| story.play(word));
        assert_eq!(story.kernel.parked, story.port.is_parked(), "{words}");
        (story.actions, story.port.is_parked())
    }

    const STARTS: &[(&str, &[Action], bool)] = &[
        // A VM starts: its first frame goes to the neighbours as well.
        ("ob ou", &[UnparkAndReplay], false),
        ("ou", &[UnparkAndReplay], false),
        ("lb 1", &[UnparkAndReplay], false),
        // It is counted before it is received.
        ("c 20 sb", &[UnparkAndReplay], false),
        // With a tag it does not go out twice.
        ("ot", &[Unpark], false),
        // Its frames have other MACs than its interface.
        ("c 1000", &[Unpark], false),
        ("5000 c 1000", &[Unpark], false),
        // A VM that sends nothing.
        ("59999", &[], true),
        ("60000", &[Unpark], false),
        ("60000 70000", &[Unpark], false),
        // The answer to ADD came too late.
        ("m 20", &[], false),
        ("m 70000 fb", &[Park], true),
        ("m ob 5000 fr", &[Park], true),
    ];

    const MIGRATIONS: &[(&str, &[Action], bool)] = &[
        // A migrated VM is announced by QEMU.
        ("or 50 or ob", &[Unpark], false),
        // While it is prepared the VM is seen at the source.
        ("fb fu 70000 or", &[Unpark], false),
        ("ft 70000", &[], true),
        // Evidence after the timeout.
        ("60000 fb", &[Unpark, Park], true),
        ("60000 fu", &[Unpark, Park], true),
        ("60000 ft", &[Unpark, Park], true),
        ("60000 c fu", &[Unpark], false),
        // It migrates away, and its last frames come late.
        ("ob 5000 fr", &[UnparkAndReplay, Park], true),
        ("ob 5000 fa fr fr", &[UnparkAndReplay, Park], true),
        ("ob 5000 fb fu ft", &[UnparkAndReplay], false),
        // Away and back.
        ("ob 5000 fr 100 or", &[UnparkAndReplay, Park, Unpark], false),
        // Parked after it has sent, it waits without end.
        ("ob 5000 fr 90000", &[UnparkAndReplay, Park], true),
    ];

    /// The kernel of the pod has IPv6 as well.
    const HOUSEKEEPING: &[(&str, &[Action], bool)] = &[
        // It is the guest itself, as far as is known.
        ("oh", &[UnparkAndReplay], false),
        // The VM is elsewhere.
        ("fb oh 70000", &[], true),
        ("fb lh 70000", &[], true),
        ("fb oh oh lh 5 oh 70000", &[], true),
        ("ob 5000 fr 100 oh 90000", &[UnparkAndReplay, Park], true),
        // It comes back, or was here all the time.
        ("ob 5000 fr oh ou", &[UnparkAndReplay, Park, Unpark], false),
        (
            "ob 5000 fr oh 90 ou",
            &[UnparkAndReplay, Park, Unpark],
            false,
        ),
        ("ob 5000 fr ou oh", &[UnparkAndReplay, Park, Unpark], false),
        (
            "ob 5000 fr oh 90 c 1000",
            &[UnparkAndReplay, Park, Unpark],
            false,
        ),
        // A neighbour that pretends to be its kernel does not keep it parked.
        ("fb sh sh 9 sh or", &[Unpark], false),
        ("fb sh 5 lr sh 5", &[Unpark], false),
    ];

    const DISTURBANCES: &[(&str, &[Action], bool)] = &[
        // What we sent comes back.
        ("ob oa 199 fa", &[UnparkAndReplay, IgnoreReflection], false),
        ("ob oa 201 fa", &[UnparkAndReplay, Park], true),
        ("ob oa fA", &[UnparkAndReplay, Park], true),
        ("or or fr", &[Unpark, IgnoreReflection], false),
        // A neighbour pretends to be the VM.
        ("fb sb sb sr 1000", &[IgnoreSpoof], true),
        ("sb 10 ob 100", &[UnparkAndReplay], false),
        ("sb 1000 or", &[IgnoreSpoof, Unpark], false),
        ("60000 sb 1000 fb", &[Unpark, IgnoreSpoof, Park], true),
        (
            "ob 5000 fr sr 1000",
            &[UnparkAndReplay, Park, IgnoreSpoof],
            true,
        ),
        // What the kernel refuses is tried again until it agrees.
        ("ob 5000 x fr x 1000", &[UnparkAndReplay, Park, Park], true),
        (
            "x ob 1000 x 1000",
            &[UnparkAndReplay, Unpark, Unpark],
            false,
        ),
        ("x 60000 x 1000", &[Unpark, Unpark], false),
        // Unless the VM turns out to be here.
        ("ob 5000 x fr ob x 9000", &[UnparkAndReplay, Park], false),
    ];

    #[test]
    fn learns() {
        let now = Instant::now();
        for (story, actions, parked) in [STARTS, MIGRATIONS, HOUSEKEEPING, DISTURBANCES].concat() {
            let expected = (actions.to_vec(), parked);
            assert_eq!(play(Port::new(now), now, story), expected, "{story}");
        }
    }

    /// Spoofed announcements without end park it five times in ten seconds, then no more.
    #[test]
    fn a_flood_of_announcements_parks_a_few_times_only() {
        let now = Instant::now();
        let flood = "or fa or fa or fa or fa or fa or fa";
        let limited = [&[Unpark, Park].repeat(5)[..], &[Unpark, IgnoreFlood]].concat();
        assert_eq!(play(Port::new(now), now, flood), (limited.clone(), false));
        let parked_again = [&limited[..], &[Park]].concat();
        let later = format!("{flood} 10000 fa");
        assert_eq!(play(Port::new(now), now, &later), (parked_again, true));
    }

    #[test]
    fn is_watched_while_something_is_open() {
        let now = Instant::now();
        let later = now + WATCH_AFTER_CHANGE;
        assert!(Port::new(now).needs_watch(later));
        let kernel = |sent_frames| Observation {
            parked: false,
            sent_frames,
        };
        let port = Port::found(kernel(1), now);
        assert!(port.needs_watch(now));
        assert!(!port.needs_watch(later));
        let mut story = Story::of(port, later);
        story.play("fr");
        assert!(story.port.needs_watch(later + PARKS_WINDOW), "parked");
        let silent = Port::found(kernel(0), now);
        assert!(silent.needs_watch(later), "never sent");
    }

    #[test]
    fn a_deadline_is_never_in_the_past_for_long() {
        let start = Instant::now();
        for refuses in [false, true] {
            let mut story = Story::of(Port::new(start), start);
            story.refuses = refuses;
            let mut deadlines = 0;
            while story.now < start + Duration::from_mins(3) {
                story.now = story.now.max(story.port.deadline(story.now));
                story.receive(Event::Deadline);
                deadlines += 1;
            }
            assert!(deadlines < 200, "{deadlines}");
        }
    }
}
