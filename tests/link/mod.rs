//! `macvtap link` and `macvtap doctor`, on macvtaps in all states.

#![expect(clippy::too_many_lines, reason = "a test is read from top to bottom")]

mod captures;
mod doctor;
mod helper;
mod kubectl;
mod limits;
mod list;

use std::{
    fs::File,
    process::{Child, Command, Output, Stdio},
};

use kit::{binary, netns::Host};

/// What is looked at is the whole machine, so one test at a time.
fn alone() -> File {
    kit::lock_dev()
}

/// A process in a network namespace, by which that is found.
struct Resident(Child);

impl Resident {
    fn new(host: &Host) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sleep", "600"]);
        Self(host.0.run(|| Ok(command.spawn()?)).unwrap())
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the binary in a network namespace.
fn run(host: &Host, words: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command
        .args(words)
        .stdin(Stdio::null())
        .env_remove("CNI_COMMAND");
    host.output(&mut command)
}

/// Runs it; it has to succeed. What it printed.
fn succeed(host: &Host, words: &[&str]) -> String {
    let output = run(host, words);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs it; it has to fail. What it said.
fn fail(host: &Host, words: &[&str]) -> String {
    let output = run(host, words);
    assert!(!output.status.success(), "{words:?}");
    String::from_utf8(output.stderr).unwrap()
}
