//! A thread that waits for descriptors and times until it is stopped.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};

/// The thread, as long as this lives: dropped, it stops the thread and waits for its end.
pub struct Worker {
    thread: Option<JoinHandle<()>>,
    stop: Option<OwnedFd>,
}

/// How the thread waits.
pub struct Waiter(OwnedFd);

impl Worker {
    /// Starts `work` in a thread of this name.
    pub fn start(name: &str, work: impl FnOnce(&Waiter) + Send + 'static) -> Result<Self> {
        let (stopped, stop) = pipe2(OFlag::O_CLOEXEC).context("making a pipe")?;
        let thread = thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || work(&Waiter(stopped)));
        Ok(Self {
            thread: Some(thread.context("starting a thread")?),
            stop: Some(stop),
        })
    }

    /// Whether the thread runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let thread = self.thread.as_ref();
        thread.is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread is printed by the thread.
            let _ = thread.join();
        }
    }
}

impl Waiter {
    /// Waits until one of these can be read, or for `pause` at most. Which of them can; none if
    /// it is time to stop.
    pub fn wait<'a>(
        &'a self,
        descriptors: impl Iterator<Item = BorrowedFd<'a>>,
        pause: Duration,
    ) -> Result<Option<Vec<bool>>> {
        let all = [self.0.as_fd()].into_iter().chain(descriptors);
        let mut all: Vec<PollFd> = all
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        // poll waits for whole milliseconds.
        let pause = pause.saturating_add(Duration::from_millis(u64::from(!pause.is_zero())));
        let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
        let ready = match poll(&mut all, timeout) {
            Ok(_) => all.iter().map(is_ready).collect(),
            Err(Errno::EINTR) => vec![false; all.len()],
            Err(error) => return Err(error).context("waiting for descriptors"),
        };
        // A pipe whose other end is closed has POLLHUP.
        Ok(match &ready[..] {
            [false, others @ ..] => Some(others.to_vec()),
            _ => None,
        })
    }
}

fn is_ready(descriptor: &PollFd<'_>) -> bool {
    let events = descriptor.revents();
    events.is_some_and(|events| !events.is_empty())
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream, sync::mpsc};

    use super::*;

    #[test]
    fn waits_for_what_can_be_read_and_ends_when_it_is_dropped() {
        let (quiet, _other) = UnixStream::pair().unwrap();
        let (readable, mut sender) = UnixStream::pair().unwrap();
        sender.write_all(b"x").unwrap();
        let (report, reports) = mpsc::channel();
        let worker = Worker::start("worker", move |waiter| {
            let both = || [quiet.as_fd(), readable.as_fd()].into_iter();
            report
                .send(waiter.wait(both(), Duration::MAX).unwrap())
                .unwrap();
            let only_quiet = || [quiet.as_fd()].into_iter();
            let short = Duration::from_millis(1);
            report
                .send(waiter.wait(only_quiet(), short).unwrap())
                .unwrap();
            while waiter
                .wait(only_quiet(), Duration::from_hours(1))
                .unwrap()
                .is_some()
            {}
        });
        let worker = worker.unwrap();
        assert_eq!(reports.recv().unwrap(), Some(vec![false, true]));
        assert_eq!(reports.recv().unwrap(), Some(vec![false]));
        assert!(worker.is_running());
        drop(worker);
        assert!(reports.recv().is_err(), "the thread has ended");
    }
}
