//! The device plugin: it goes on, or it ends and says why; the one that is started next works.

use std::{
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;
use kit::{
    kubelet::{Plugin, RESOURCE, WAIT_TIMEOUT, command},
    netns::{Node, wait_until},
};
use macvtap::selftest::kubelet::{Kubelet, Resource};
use tempfile::TempDir;

use super::injection::{Fault, alone, each, faults, hit_unfailing};

struct World {
    node: Node,
    dir: TempDir,
    kubelet: Kubelet,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kubelet = Kubelet::start(dir.path()).unwrap();
        Self {
            node: Node::new(),
            dir,
            kubelet,
        }
    }

    fn start(&self, by: &[&str]) -> Plugin {
        let mut command = command(by, self.dir.path());
        command.arg("--netns-dir").arg(self.dir.path());
        command.args(["--status-address", "127.0.0.1:0"]);
        Plugin::spawn(&self.node.host, command)
    }

    /// Takes a device as a pod would.
    fn allocate(&self) -> Result<()> {
        let resource = self.kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, is_listed)?;
        let ids = [resource.healthy()[0].clone()];
        self.kubelet.allocate(RESOURCE, &ids)?;
        Ok(())
    }
}

fn is_listed(resource: &Resource) -> bool {
    resource.connected && !resource.healthy().is_empty()
}

/// A device plugin under strace, which would leave it behind at its own end.
struct Traced(Plugin);

impl Traced {
    /// Sends a signal to what strace runs; one to strace would not reach it.
    fn signal(&self, name: &str) {
        let children = format!("/proc/{0}/task/{0}/children", self.0.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        for child in children.split_whitespace() {
            let mut command = Command::new("kill");
            let _ = command.arg(format!("-{name}")).arg(child).status();
        }
    }

    /// Ends it. Once more where a fault hit the very signal, or the line that says that it came.
    fn finish(&mut self, fault: Option<&Fault>) -> Option<i32> {
        let (start, mut signalled) = (Instant::now(), None);
        let again = Duration::from_millis(300);
        let is_late = |signalled: Instant| signalled.elapsed() > again;
        while self.0.is_alive() {
            let is_lost = || !self.0.log().contains("shutting down");
            if signalled.is_none_or(|signalled| is_late(signalled) && is_lost()) {
                self.signal("TERM");
                signalled = Some(Instant::now());
            }
            std::thread::sleep(Duration::from_millis(2));
            assert!(
                start.elapsed() < WAIT_TIMEOUT,
                "{fault:?}: {}",
                self.0.log()
            );
        }
        self.0.end().0
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.signal("KILL");
    }
}

/// Waits for one of two ends: true if the kubelet has the devices, false if the plugin is gone.
fn settled(world: &World, plugin: &mut Plugin, fault: &Fault) -> bool {
    let start = Instant::now();
    loop {
        let resource = world.kubelet.resource(RESOURCE);
        if resource.as_ref().is_some_and(is_listed) {
            return true;
        }
        if !plugin.is_alive() {
            return false;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{fault}: {}",
            plugin.log()
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn from_start_to_end() {
    let _turn = alone();
    let world = World::new();
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut plugin =
        Traced(world.start(&["strace", "-f", "-y", "-o", log.path().to_str().unwrap()]));
    world.allocate().unwrap();
    assert_eq!(plugin.finish(None), Some(0));
    let faults = faults(log.path());
    let suffer = |world: &World, fault: &Fault| {
        let trace = tempfile::NamedTempFile::new().unwrap();
        let stopped = || is_stopped(world, fault, trace.path());
        match panic::catch_unwind(AssertUnwindSafe(stopped)) {
            // What the kernel never does says nothing.
            Err(_) if hit_unfailing(trace.path()) => false,
            Err(failure) => panic::resume_unwind(failure),
            Ok(stopped) => stopped,
        }
    };
    each("device plugin", &faults, World::new, suffer);
}

/// Whether the fault ends a device plugin before it is told to end.
fn is_stopped(world: &World, fault: &Fault, trace: &Path) -> bool {
    let words = fault.words(trace);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut plugin = Traced(world.start(&words));
    if settled(world, &mut plugin.0, fault) {
        // The fault may hit just this, and the kubelet tries again.
        let _ = world.allocate();
        plugin.finish(Some(fault));
    }
    let (status, log) = (plugin.0.end().0, plugin.0.log());
    let silent = fault.kills() || fault.ends_it();
    // Libraries panic where their own pipes fail, which never do.
    let said = ["macvtap: ", "panicked at", "second signal"];
    let said = said.iter().any(|text| log.contains(text));
    assert!(
        status == Some(0) || silent || said,
        "{fault}: {status:?}: {log}"
    );
    assert!(!log.contains("panicked at src/"), "{fault}: {log}");
    let mut next = world.start(&[]);
    // The kubelet may still know the former one.
    wait_until("the next one allocates", || world.allocate().is_ok());
    next.signal("TERM");
    assert_eq!(next.end().0, Some(0), "{fault}: {}", next.log());
    status != Some(0)
}
