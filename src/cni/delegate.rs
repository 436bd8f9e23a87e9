//! An IPAM plugin, to which the addresses are delegated: found and called as the specification
//! says (section 4, "Plugin Delegation").

use std::{
    fs,
    io::{self, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use log::{debug, info, warn};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    environment::{Environment, Verb},
    error::{CniError, Result, code},
    ipam_result::IpamResult,
    version::Version,
};
use crate::{
    host::{
        file_id::Inode,
        program::{self, Bounds, Output, ProgramError},
        signals,
    },
    macvtap::error::AttachError,
};

/// How long a call of ours may take in all: a plugin may wait for a DHCP server, or for a lock in
/// the API server. The kubelet gives a sandbox 4 minutes to start and 2 to stop, with all its
/// networks; a runtime that asks for STATUS answers no other request meanwhile.
const ADD_TIMEOUT: Duration = Duration::from_mins(1);
const OTHER_TIMEOUT: Duration = Duration::from_secs(30);
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// The part of ADD that is kept for releasing what a plugin may have reserved.
const CLEAN_UP_TIME: Duration = Duration::from_secs(15);
/// Bytes that a plugin may print.
const MAX_OUTPUT_BYTES: usize = 1 << 20;
/// Characters of a plugin's message that are passed on.
const MAX_MESSAGE: usize = 2000;

/// An IPAM plugin, called for one attachment.
#[derive(Clone, Copy)]
pub struct Delegate<'a> {
    /// Its name.
    pub plugin: &'a str,
    /// What the runtime called us with.
    pub environment: &'a Environment,
    /// The configuration as the runtime wrote it.
    pub stdin: &'a [u8],
}

/// Addresses that an IPAM plugin gave, until they are released.
pub struct Lease<'a> {
    delegate: Delegate<'a>,
    /// What it gave.
    pub result: IpamResult,
}

impl<'a> Delegate<'a> {
    /// Asks for addresses. What a failed call may have reserved is released.
    pub fn add(self, version: Version) -> Result<Lease<'a>> {
        find(self.plugin, &self.environment.path)?;
        let answer = self.call(&Verb::Add).and_then(|stdout| {
            let read = IpamResult::read(&stdout, version);
            read.map_err(|flaw| {
                self.error(
                    code::DECODING,
                    &Verb::Add,
                    &format!("its result is wrong: {flaw}"),
                )
            })
        });
        match answer {
            Ok(result) => {
                info!(plugin = self.plugin, addresses = result.ips.len(); "addresses received");
                Ok(Lease {
                    delegate: self,
                    result,
                })
            }
            Err(error) => Err(match self.call(&Verb::Del) {
                Ok(_) => error,
                Err(second) => CniError {
                    msg: format!("{}; and releasing its addresses: {}", error.msg, second.msg),
                    ..error
                },
            }),
        }
    }

    /// Calls a verb that answers nothing.
    pub fn forward(self, verb: &Verb) -> Result<()> {
        self.call(verb).map(|_| ())
    }

    fn call(self, verb: &Verb) -> Result<Vec<u8>> {
        let program = find(self.plugin, &self.environment.path)?;
        debug!(plugin = self.plugin, program:? = program, verb = verb.name(); "calling the IPAM plugin");
        let mut command = Command::new(&program);
        let Environment {
            container_id,
            netns,
            ifname,
            args,
            path,
            ..
        } = self.environment;
        command.env("CNI_COMMAND", verb.name());
        for (name, value) in [
            ("CNI_CONTAINERID", container_id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", ifname),
            ("CNI_ARGS", args),
            ("CNI_PATH", path),
        ] {
            command.env(name, value);
        }
        signals::keep_exit_statuses().map_err(|error| {
            let why = format!("{error:#}");
            self.error(code::INTERNAL, verb, &why)
        })?;
        let bounds = Bounds {
            timeout: time_left(
                &self.environment.verb,
                verb,
                self.environment.called.elapsed(),
            ),
            max_bytes: MAX_OUTPUT_BYTES,
        };
        let output = program::run(&mut command, self.stdin, bounds);
        let output = output.map_err(|error| self.failed(verb, &error))?;
        // A reader that has closed it loses what it did not read.
        let _ = io::stderr().write_all(&output.stderr);
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.refused(verb, &output))
    }

    fn failed(self, verb: &Verb, error: &ProgramError) -> CniError {
        let code = match error {
            ProgramError::TimedOut(_) => code::TRY_AGAIN,
            ProgramError::TooLong(_) => code::DECODING,
            ProgramError::NotStarted(_) | ProgramError::Failed(_) => code::INTERNAL,
        };
        self.error(code, verb, &error.to_string())
    }

    /// What it printed says why, under a code of its own, or else how it ended.
    fn refused(self, verb: &Verb, output: &Output) -> CniError {
        let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if let Some(msg) = json["msg"].as_str() {
            let code = json["code"]
                .as_u64()
                .and_then(|code| u32::try_from(code).ok());
            let code = code.filter(|code| *code != 0).unwrap_or(code::INTERNAL);
            let details = json["details"].as_str().unwrap_or_default();
            return CniError {
                details: shortened(details),
                ..self.error(code, verb, &shortened(msg))
            };
        }
        let how = match output.status.signal().map(Signal::try_from) {
            Some(Ok(signal)) => format!("it was killed by {signal}"),
            Some(Err(_)) => "it was killed by a signal".to_owned(),
            None => format!("it ended with {} and no error of CNI", output.status),
        };
        let said = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes));
        let said = said
            .iter()
            .map(|text| text.trim())
            .find(|text| !text.is_empty());
        let said = said.map_or_else(String::new, |text| {
            format!(", saying {:?}", shortened(text))
        });
        self.error(code::INTERNAL, verb, &format!("{how}{said}"))
    }

    fn error(self, code: u32, verb: &Verb, why: &str) -> CniError {
        let text = format!(
            "IPAM plugin {:?} failed ({}): {why}",
            self.plugin,
            verb.name()
        );
        CniError::new(code, text)
    }
}

impl Lease<'_> {
    /// Does `work`, and gives the addresses back if it fails.
    pub fn release_unless<T>(
        &self,
        work: impl FnOnce() -> std::result::Result<T, AttachError>,
    ) -> std::result::Result<T, AttachError> {
        work().map_err(|error| match self.release() {
            Ok(()) => error,
            Err(second) => error.context(format!("addresses could not be released ({second})")),
        })
    }

    /// Gives the addresses back.
    pub fn release(&self) -> Result<()> {
        warn!(plugin = self.delegate.plugin; "ADD failed; the addresses are released");
        self.delegate.forward(&Verb::Del)
    }
}

/// How long a plugin may take to serve `verb` when `elapsed` of our own call `called` is over. All
/// that it does for one call shares one time.
fn time_left(called: &Verb, verb: &Verb, elapsed: Duration) -> Duration {
    let whole = match (called, verb) {
        (Verb::Add, Verb::Add) => ADD_TIMEOUT.saturating_sub(CLEAN_UP_TIME),
        (Verb::Add, _) => ADD_TIMEOUT,
        (Verb::Status, _) => STATUS_TIMEOUT,
        _ => OTHER_TIMEOUT,
    };
    whole.saturating_sub(elapsed)
}

/// The plugin's file: the first one of that name in the directories of `CNI_PATH`. With the texts
/// of the reference implementation.
fn find(plugin: &str, path: &str) -> Result<PathBuf> {
    if plugin.contains('/') || matches!(plugin, "." | "..") {
        let text = format!("invalid ipam.type: invalid plugin name: {plugin}");
        return Err(CniError::new(code::CONFIG, text));
    }
    let directories = path.split(':').filter(|directory| !directory.is_empty());
    let mut files = directories
        .clone()
        .map(|directory| Path::new(directory).join(plugin));
    let is_file = |file: &PathBuf| fs::metadata(file).is_ok_and(|found| found.is_file());
    let Some(file) = files.find(is_file) else {
        let directories: Vec<&str> = directories.collect();
        let text = format!(
            "failed to find plugin {plugin:?} in path [{}], which is to give addresses (ipam.type)",
            directories.join(" ")
        );
        return Err(CniError::new(code::INTERNAL, text));
    };
    let inode = |path: &Path| fs::metadata(path).ok().map(|found| Inode::of(&found));
    if inode(&file).is_some_and(|found| Some(found) == inode(Path::new("/proc/self/exe"))) {
        let text = format!("invalid ipam.type {plugin:?}: this plugin gives no addresses");
        return Err(CniError::new(code::CONFIG, text));
    }
    Ok(file)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_calls_of_a_plugin_share_the_time_of_one_call() {
        let left = |called, verb, elapsed| {
            time_left(&called, &verb, Duration::from_secs(elapsed)).as_secs()
        };
        for (called, verb, elapsed, expected) in [
            (Verb::Add, Verb::Add, 0, 45),
            (Verb::Add, Verb::Add, 2, 43),
            // It hung: its addresses are released in the time that was kept.
            (Verb::Add, Verb::Del, 45, 15),
            (Verb::Add, Verb::Del, 59, 1),
            (Verb::Add, Verb::Del, 61, 0),
            (Verb::Del, Verb::Del, 0, 30),
            (Verb::Check, Verb::Check, 1, 29),
            (Verb::Gc, Verb::Gc, 0, 30),
            (Verb::Status, Verb::Status, 0, 5),
        ] {
            assert_eq!(
                left(called.clone(), verb, elapsed),
                expected,
                "{called:?} {elapsed}"
            );
        }
    }
}
