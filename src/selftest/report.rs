//! What the selftest prints: for people step by step, or as JSON at the end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use crate::{host::stdout::print_report, types::plural::count};

/// The steps so far.
pub struct Report {
    json: bool,
    start: Instant,
    steps: Vec<Value>,
    interrupted: Arc<AtomicBool>,
}

impl Report {
    /// Starts a report. From now on SIGINT and SIGTERM end the selftest before its next step, so
    /// that it removes what it made; a second one ends it at once.
    pub fn start(json: bool) -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(signal, 1, Arc::clone(&interrupted))
                .and_then(|_| flag::register(signal, Arc::clone(&interrupted)))
                .context("handling signals")?;
        }
        let report = Self {
            json,
            start: Instant::now(),
            steps: Vec::new(),
            interrupted,
        };
        report.say(
            "macvtap selftest: from discovery to a frame, in temporary network namespaces\n",
        )?;
        Ok(report)
    }

    /// Does a step, unless the selftest was interrupted. `work` returns what it made, and a
    /// description of what was seen.
    pub fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        let interrupted = Arc::clone(&self.interrupted);
        self.last_step(name, || {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted by a signal");
            }
            work()
        })
    }

    /// Does a step even after an interruption.
    pub fn last_step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<(T, String)>,
    ) -> Result<T> {
        let start = Instant::now();
        let outcome = work();
        let took = start.elapsed();
        let (verdict, seen) = match &outcome {
            Ok((_, seen)) => ("ok", seen.clone()),
            Err(error) => ("FAIL", format!("{error:#}")),
        };
        self.say(&format!(
            "  {verdict:4} {name:12} {:>8}  {seen}",
            text(took)
        ))?;
        self.steps.push(json!({
            "step": name,
            "ok": outcome.is_ok(),
            "seen": seen,
            "milliseconds": milliseconds(took),
        }));
        outcome.map(|(made, _)| made)
    }

    /// Prints the end.
    pub fn finish(self, ok: bool) -> Result<()> {
        let took = self.start.elapsed();
        let steps = count(self.steps.len(), "step");
        if ok {
            self.say(&format!("\nAll {steps} passed in {}.", text(took)))?;
        } else {
            self.say("\nThe selftest failed.")?;
        }
        if self.json {
            let document = json!({
                "ok": ok,
                "milliseconds": milliseconds(took),
                "steps": self.steps,
            });
            print_report(&format!("{document:#}\n"))?;
        }
        Ok(())
    }

    fn say(&self, line: &str) -> Result<()> {
        if self.json {
            return Ok(());
        }
        print_report(&format!("{line}\n"))
    }
}

fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e5).round() / 1e2
}

fn text(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}
