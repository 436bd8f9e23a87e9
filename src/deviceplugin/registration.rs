//! When to register with the kubelet: the decisions, without doing it. Pure.
//!
//! Registered means that the kubelet's `ListAndWatch` stream is open now. The kubelet never
//! dials again by itself, and some drop a new endpoint when the stream of the
//! former one ends; so whenever no stream is open, it is for us to register again.

use std::time::{Duration, Instant};

/// How long after each failure in a row the next attempt is made.
const BACK_OFF: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];
/// How long the kubelet may take to open the stream after it answered; and how long a stream
/// has to stay before it counts as a success.
const PATIENCE: Duration = Duration::from_secs(10);

/// The state of a resource's registration.
#[derive(Clone, Copy, Debug)]
pub struct Registration {
    state: State,
    streams: u32,
    failures: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be registered at this time.
    Due(Instant),
    /// `Register` was called, and is not answered yet.
    Calling,
    /// `Register` succeeded; the stream has to be opened by this time.
    Expecting(Instant),
    /// The stream is open since this time.
    Registered(Instant),
}

impl Registration {
    /// Of a resource that was never registered: due now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Due(now),
            streams: 0,
            failures: 0,
        }
    }

    /// Of a resource that could not be served: due after a while.
    #[must_use]
    pub fn after_failure(now: Instant) -> Self {
        let mut registration = Self::new(now);
        registration.fail(now);
        registration
    }

    /// Whether the kubelet is to be called now. If so, the call counts as made.
    pub fn call(&mut self, now: Instant) -> bool {
        match self.state {
            State::Due(at) if at <= now => {
                self.state = State::Calling;
                true
            }
            State::Expecting(until) if until <= now => {
                self.fail(now);
                false
            }
            _ => false,
        }
    }

    /// When [`Self::call`] has to be asked again, whatever happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Due(at) | State::Expecting(at) => Some(at),
            State::Calling | State::Registered(_) => None,
        }
    }

    /// The kubelet answered the call.
    pub fn answered(&mut self, accepted: bool, now: Instant) {
        if self.state != State::Calling {
            return;
        }
        if !accepted {
            self.fail(now);
        } else if self.streams > 0 {
            self.state = State::Registered(now);
        } else {
            self.state = State::Expecting(now + PATIENCE);
        }
    }

    /// The kubelet opened a stream.
    pub fn opened(&mut self, now: Instant) {
        self.streams += 1;
        if matches!(self.state, State::Expecting(_) | State::Due(_)) {
            self.state = State::Registered(now);
        }
    }

    /// A stream ended.
    pub fn closed(&mut self, now: Instant) {
        self.streams = self.streams.saturating_sub(1);
        let State::Registered(since) = self.state else {
            return;
        };
        if self.streams > 0 {
            return;
        }
        if now.duration_since(since) >= PATIENCE {
            *self = Self::new(now);
        } else {
            // Opened and closed at once: do not go round in circles.
            self.fail(now);
        }
    }

    /// Another kubelet is there, or our socket is another one: what was before does not count.
    pub fn restart(&mut self, now: Instant) {
        self.state = State::Due(now);
        self.failures = 0;
    }

    /// Whether the kubelet's stream is open.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        matches!(self.state, State::Registered(_))
    }

    fn fail(&mut self, now: Instant) {
        self.state = State::Due(now + BACK_OFF[self.failures.min(BACK_OFF.len() - 1)]);
        self.failures += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn called(now: Instant) -> Registration {
        let mut registration = Registration::new(now);
        assert!(registration.call(now));
        registration
    }

    fn registered(now: Instant) -> Registration {
        let mut registration = called(now);
        registration.answered(true, now);
        registration.opened(now);
        assert!(registration.is_registered());
        registration
    }

    #[test]
    fn calls_once_and_waits_for_the_stream() {
        let now = Instant::now();
        let mut registration = called(now);
        assert!(!registration.call(now));
        registration.answered(true, now);
        assert!(!registration.is_registered());
        registration.opened(now);
        assert!(registration.is_registered());
        assert_eq!(registration.deadline(), None);
    }

    #[test]
    fn the_stream_may_come_before_the_answer() {
        let now = Instant::now();
        let mut registration = called(now);
        registration.opened(now);
        registration.answered(true, now);
        assert!(registration.is_registered());
    }

    #[test]
    fn backs_off_and_never_gives_up() {
        let mut now = Instant::now();
        let mut registration = Registration::new(now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(registration.call(now));
            registration.answered(false, now);
            assert!(!registration.call(now));
            let next = registration.deadline().unwrap();
            waits.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waits, [1, 2, 5, 10, 10, 10, 10, 10]);
    }

    #[test]
    fn an_answer_without_a_stream_is_a_failure() {
        let now = Instant::now();
        let mut registration = called(now);
        registration.answered(true, now);
        let until = registration.deadline().unwrap();
        assert_eq!(until - now, PATIENCE);
        assert!(!registration.call(until));
        assert_eq!(registration.deadline(), Some(until + SECOND));
    }

    #[test]
    fn a_stream_that_ends_is_registered_again_at_once() {
        let now = Instant::now();
        let mut registration = registered(now);
        let later = now + 60 * SECOND;
        registration.closed(later);
        assert!(registration.call(later));
    }

    #[test]
    fn a_stream_that_ends_at_once_is_a_failure() {
        let now = Instant::now();
        let mut registration = registered(now);
        registration.closed(now);
        assert!(!registration.call(now));
        assert_eq!(registration.deadline(), Some(now + SECOND));
    }

    #[test]
    fn the_old_stream_may_end_after_the_new_one_began() {
        let now = Instant::now();
        let mut registration = registered(now);
        registration.restart(now);
        assert!(registration.call(now));
        registration.answered(true, now);
        registration.opened(now);
        registration.closed(now);
        assert!(registration.is_registered());
    }

    #[test]
    fn a_new_kubelet_is_called_without_waiting() {
        let now = Instant::now();
        let mut registration = called(now);
        registration.answered(false, now);
        registration.restart(now);
        assert!(registration.call(now));
        registration.answered(false, now);
        assert_eq!(registration.deadline(), Some(now + SECOND));
    }

    #[test]
    fn a_late_answer_to_an_abandoned_call_changes_nothing() {
        let now = Instant::now();
        let mut registration = called(now);
        registration.restart(now);
        registration.answered(true, now);
        assert!(registration.call(now));
    }
}
