//! What the selftest prints, for people as it goes or as JSON at the end.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use anyhow::{Error, Result};
use serde_json::{Value, json};

/// The steps so far.
pub struct Report {
    json: bool,
    start: Instant,
    steps: Vec<Value>,
}

impl Report {
    /// Begins a report.
    pub fn start(json: bool) -> Self {
        let report = Self {
            json,
            start: Instant::now(),
            steps: Vec::new(),
        };
        report
            .say("macvtap selftest: from discovery to a frame, in throw-away network namespaces\n");
        report
    }

    /// Does a step. `work` tells what was seen beside what it made.
    pub fn step<T>(&mut self, name: &str, work: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        let start = Instant::now();
        let outcome = work();
        let took = start.elapsed();
        let (verdict, seen) = match &outcome {
            Ok((_, seen)) => ("ok", seen.clone()),
            Err(error) => ("FAILED", format!("{error:#}")),
        };
        self.say(&format!(
            "  {verdict:6} {name:12} {:>8}  {seen}",
            text(took)
        ));
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
        let count = self.steps.len();
        if ok {
            self.say(&format!("\nAll {count} steps held, in {}.", text(took)));
        } else {
            self.say("\nThe selftest FAILED. Nothing was left behind.");
        }
        if self.json {
            let document = json!({
                "ok": ok,
                "milliseconds": milliseconds(took),
                "steps": self.steps,
            });
            writeln!(io::stdout(), "{document:#}").map_err(Error::from)?;
        }
        Ok(())
    }

    fn say(&self, line: &str) {
        if !self.json {
            // Whoever closed standard output still gets the exit status.
            let _ = writeln!(io::stdout(), "{line}");
        }
    }
}

fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e5).round() / 1e2
}

fn text(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}
