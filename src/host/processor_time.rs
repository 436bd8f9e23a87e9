//! The processor time that a thread uses. Unlike the time that passes it does not depend on what else
//! the machine does, nor on the kernel's locks.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// What the calling thread has used so far, in the kernel too.
pub fn of_thread() -> Result<Duration> {
    let used = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    Ok(used
        .context("reading the processor time of a thread")?
        .into())
}

#[cfg(test)]
mod tests {
    use std::{thread::sleep, time::Instant};

    use super::*;

    #[test]
    fn waiting_costs_none_and_work_does() {
        let start = of_thread().unwrap();
        sleep(Duration::from_millis(300));
        let slept = of_thread().unwrap();
        assert!(slept < start + Duration::from_millis(200));
        let begun = Instant::now();
        while of_thread().unwrap() < slept + Duration::from_millis(20) {
            assert!(begun.elapsed() < Duration::from_mins(1));
        }
    }
}
