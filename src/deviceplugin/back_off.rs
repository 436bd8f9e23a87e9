//! When what failed is tried again. Pure.

use std::time::{Duration, Instant};

/// The time until the next attempt after each failure in a row.
const INTERVALS: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// The failures in a row of what is tried again.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackOff {
    failures: usize,
}

impl BackOff {
    /// Notes a failure. When to try again.
    pub fn fail(&mut self, now: Instant) -> Instant {
        let interval = INTERVALS[self.failures.min(INTERVALS.len() - 1)];
        self.failures += 1;
        now + interval
    }
}

/// One deadline for all that is tried again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retry {
    back_off: BackOff,
    at: Option<Instant>,
}

impl Retry {
    /// Notes whether something fails now.
    pub fn note(&mut self, fails: bool, now: Instant) {
        if !fails {
            *self = Self::default();
        } else if self.at.is_none() {
            self.at = Some(self.back_off.fail(now));
        }
    }

    /// Whether it is time to try again. If so, that counts as done.
    pub fn is_due(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }

    /// When [`Self::is_due`] has to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_longer_after_each_failure_in_a_row() {
        let start = Instant::now();
        let mut now = start;
        let mut retry = Retry::default();
        retry.note(true, now);
        let mut waits = Vec::new();
        while waits.len() < 6 {
            let at = retry.deadline().unwrap();
            waits.push(at.duration_since(now).as_secs());
            // Failures meanwhile do not put it off.
            retry.note(true, now);
            assert!(!retry.is_due(now));
            now = at;
            assert!(retry.is_due(now) && !retry.is_due(now));
            retry.note(true, now);
        }
        assert_eq!(waits, [1, 2, 5, 10, 10, 10]);
        retry.note(false, now);
        assert_eq!(retry.deadline(), None);
        retry.note(true, now);
        assert_eq!(retry.deadline(), Some(now + INTERVALS[0]));
    }
}
