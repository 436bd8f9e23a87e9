//! When to register with the kubelet. Pure.
//!
//! Registered means that the kubelet's `ListAndWatch` stream is open now. The kubelet never
//! dials again by itself, and some drop a new endpoint when the stream of the former one ends;
//! so the resource is registered again whenever no stream is open.

use std::time::{Duration, Instant};

use super::back_off::BackOff;

/// How long the kubelet may take to open the stream after its answer, and how long a stream has
/// to last to count as a success.
const STREAM_TIMEOUT: Duration = Duration::from_secs(10);

/// The state of a resource's registration.
#[derive(Clone, Copy, Debug)]
pub struct RegistrationState {
    phase: Phase,
    streams: u32,
    back_off: BackOff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be registered at this time.
    Due(Instant),
    /// `Register` was called, and is not answered yet.
    Calling,
    /// `Register` succeeded; the stream has to be opened by this time.
    Expecting(Instant),
    /// The stream is open since this time.
    Registered(Instant),
}

impl RegistrationState {
    /// The state of a resource that was never registered: due now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Due(now),
            streams: 0,
            back_off: BackOff::default(),
        }
    }

    /// The state of a resource that could not be served: due later.
    #[must_use]
    pub fn after_failure(now: Instant) -> Self {
        let mut registration = Self::new(now);
        registration.fail(now);
        registration
    }

    /// Whether to call the kubelet now. If so, the call counts as made.
    pub fn call(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Due(at) if at <= now => {
                self.phase = Phase::Calling;
                true
            }
            Phase::Expecting(until) if until <= now => {
                self.fail(now);
                false
            }
            _ => false,
        }
    }

    /// When [`Self::call`] has to be called again.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Due(at) | Phase::Expecting(at) => Some(at),
            Phase::Calling | Phase::Registered(_) => None,
        }
    }

    /// Handles the answer to the call.
    pub fn answered(&mut self, accepted: bool, now: Instant) {
        if self.phase != Phase::Calling {
            return;
        }
        if !accepted {
            self.fail(now);
        } else if self.streams > 0 {
            self.phase = Phase::Registered(now);
        } else {
            self.phase = Phase::Expecting(now + STREAM_TIMEOUT);
        }
    }

    /// Handles a stream that was opened.
    pub fn opened(&mut self, now: Instant) {
        self.streams += 1;
        if matches!(self.phase, Phase::Expecting(_) | Phase::Due(_)) {
            self.phase = Phase::Registered(now);
        }
    }

    /// Handles a stream that ended.
    pub fn closed(&mut self, now: Instant) {
        self.streams = self.streams.saturating_sub(1);
        let Phase::Registered(since) = self.phase else {
            return;
        };
        if self.streams > 0 {
            return;
        }
        if now.duration_since(since) >= STREAM_TIMEOUT {
            *self = Self::new(now);
        } else {
            // Opened and closed at once: do not go round in circles.
            self.fail(now);
        }
    }

    /// Starts over: the kubelet restarted, or the socket is another one.
    pub fn restart(&mut self, now: Instant) {
        self.phase = Phase::Due(now);
        self.back_off = BackOff::default();
    }

    /// Whether a stream of the kubelet is open.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        matches!(self.phase, Phase::Registered(_))
    }

    fn fail(&mut self, now: Instant) {
        self.phase = Phase::Due(self.back_off.fail(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn called(now: Instant) -> RegistrationState {
        let mut registration = RegistrationState::new(now);
        assert!(registration.call(now));
        registration
    }

    fn registered(now: Instant) -> RegistrationState {
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
        let mut registration = RegistrationState::new(now);
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
        assert_eq!(until - now, STREAM_TIMEOUT);
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
