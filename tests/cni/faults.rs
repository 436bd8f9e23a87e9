//! ADD stopped at every system call, and with system calls that fail: DEL then leaves nothing,
//! and a failed ADD leaves nothing by itself.

use std::{collections::BTreeMap, fs, io::Write};

use serde_json::Value;

use crate::netns::{Case, Cni, LOWER, tap_exists};

fn injected<'a>(call: &Cni<'a>, injection: &str) -> Cni<'a> {
    let inject = format!("--inject={injection}");
    call.clone().by(&["strace", "-o", "/dev/null", &inject])
}

impl Case {
    fn assert_nothing_left(&self, after: &str) {
        assert!(self.pod.links().is_empty(), "{after}: a link is left");
        assert!(!tap_exists(self.number), "{after}: a tap is left");
        assert_eq!(self.node.host.links(), [LOWER], "{after}");
    }
}

/// The system calls of an ADD, and how often each comes.
fn trace(case: &Case) -> BTreeMap<String, u32> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let call = case.call();
    let path = log.path().to_str().unwrap();
    call.clone().by(&["strace", "-o", path]).add();
    call.succeed("DEL");
    let mut calls = BTreeMap::new();
    for line in fs::read_to_string(path).unwrap().lines() {
        // "+++ exited with 0 +++" is none; the program is not ours before execve returned.
        if let Some((name, _)) = line.split_once('(').filter(|(name, _)| *name != "execve") {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

#[test]
fn killed_at_every_system_call() {
    let case = Case::new();
    let call = case.call();
    let mut stopped = 0;
    for (name, count) in trace(&case) {
        for number in 1..=count {
            let injection = format!("{name}:signal=KILL:when={number}");
            let killed = injected(&call, &injection);
            let mut command = killed.command("ADD");
            let mut child = case.node.host.0.run(|| Ok(command.spawn()?)).unwrap();
            let _ = child.stdin.take().unwrap().write_all(call.input());
            assert!(
                !child.wait().unwrap().success(),
                "{injection} did not stop it"
            );
            stopped += 1;
            call.succeed("DEL");
            case.assert_nothing_left(&injection);
        }
    }
    println!("ADD was killed at {stopped} system calls, one after the other");
    assert!(stopped > 60, "{stopped}");
    call.added().succeed("CHECK");
}

#[test]
fn with_each_system_call_failing() {
    let case = Case::new();
    let call = case.call();
    for failure in [
        "openat:error=EMFILE",
        "openat:error=ENOENT",
        "sendto:error=ENOBUFS",
        "recvfrom:error=ENOBUFS",
        "fchownat:error=EPERM",
        "chmod:error=EPERM",
        "setns:error=EPERM",
        "getdents64:error=EIO",
        "readlink:error=EIO",
        "statx:error=EIO",
        "socket:error=EMFILE",
        "bind:error=EIO",
        "fstatfs:error=EIO",
        "write:error=ENOSPC",
        "read:error=EIO",
    ] {
        for number in 1..=8 {
            let injection = format!("{failure}:when={number}");
            let answer = injected(&call, &injection).call("ADD");
            let document: Value = serde_json::from_str(&answer.stdout)
                .unwrap_or_else(|error| panic!("{injection}: {error}: {answer:?}"));
            if answer.status == 0 {
                assert!(document["interfaces"].is_array(), "{injection}");
            } else {
                assert!(document["code"].is_u64(), "{injection}: {document}");
                case.assert_nothing_left(&injection);
            }
            call.succeed("DEL");
            case.assert_nothing_left(&injection);
        }
    }
}
