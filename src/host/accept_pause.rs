//! When connections are accepted again after accepting one failed.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use log::warn;

/// The time after a failure until the next attempt: too many descriptors are open. The connection
/// still waits then, so that an attempt at once would fail in the same way, at full speed.
pub const PAUSE: Duration = Duration::from_millis(500);

/// The pause of a listener.
#[derive(Debug, Default)]
pub struct AcceptPause(Option<Instant>);

impl AcceptPause {
    /// Notes that a connection was accepted.
    pub fn end(&mut self) {
        self.0 = None;
    }

    /// Notes that none could be. Until when to pause.
    pub fn begin(&mut self, error: &impl Display) -> Instant {
        // Once, not at each attempt.
        if self.0.is_none() {
            warn!(error:%; "cannot accept connections; retrying");
        }
        let until = Instant::now() + PAUSE;
        self.0 = Some(until);
        until
    }

    /// Until when to pause; none if connections can be accepted now.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        self.0.filter(|until| Instant::now() < *until)
    }
}
