//! ADD and DEL. A runtime calls DEL after an ADD that failed or was killed, and later ADD again;
//! after a DEL that failed, DEL again.

use std::{
    fs::{self, DirEntry},
    path::Path,
};

use kit::{
    kubelet::Plugin,
    netns::{
        Cni, Host, LOWER, Node, dev::Dev, device_id, foreign_tap_number, names, tap, tap_exists,
        tap_number, wait_until,
    },
};
use macvtap::netlink::Nft;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::injection::{Fault, alone, each, faults};

/// The ways of ADD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The tap was allocated by the device plugin.
    Allocated,
    /// So it was, and that one learns: ADD asks it.
    Learning,
    /// So it was, on a node whose /dev is a tmpfs.
    Tmpfs,
    /// The macvtap waits on the host.
    Existing,
    /// There is no device plugin.
    Standalone,
    /// The tap was allocated, and what the guest sends and receives is limited.
    Limited,
    /// The tap was allocated, and an IPAM plugin gives addresses.
    Addressed,
}

const WAITING: &str = "dev5Mvp0";
/// Where Debian has the reference plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// A device plugin that answers ADD.
fn learning(node: &Node) -> (Plugin, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let plugin = Plugin::start(&node.host, dir.path());
    plugin.wait_for_log("learning ports=");
    (plugin, dir)
}

struct World {
    way: Way,
    node: Node,
    pod: Host,
    number: u32,
    dev: Option<Dev>,
    /// Where the IPAM plugin keeps what it has leased.
    leases: TempDir,
    _plugin: Option<(Plugin, TempDir)>,
}

impl World {
    fn new(way: Way) -> Self {
        let node = Node::new();
        Self {
            way,
            pod: Host::new(),
            number: match way {
                Way::Existing => foreign_tap_number(),
                _ => tap_number(),
            },
            dev: (way == Way::Tmpfs).then(Dev::new),
            leases: tempfile::tempdir().unwrap(),
            _plugin: (way == Way::Learning).then(|| learning(&node)),
            node,
        }
    }

    /// Sees to what has to be there before ADD.
    fn prepare(&self) {
        if self.way == Way::Existing && self.node.host.link(WAITING).is_none() {
            let number = self.number;
            self.node.host.ip(&format!(
                "link add {WAITING} index {number} link {LOWER} type macvtap"
            ));
        }
    }

    fn call(&self, by: &[String]) -> Cni<'_> {
        let config = match self.way {
            Way::Allocated | Way::Learning | Way::Tmpfs => {
                return self.by(self.node.allocated(&self.pod, self.number), by);
            }
            Way::Limited => {
                let call = self.node.allocated(&self.pod, self.number);
                let call = call.with("security", "mac");
                let call = call.with(
                    "bandwidth",
                    json!({"ingressRate": 8_000_000, "egressRate": 8_000_000}),
                );
                return self.by(call, by);
            }
            Way::Addressed => json!({
                "cniVersion": "1.0.0",
                "deviceID": device_id(self.number),
                "ipamMode": "assign",
                "ipam": {
                    "type": "host-local", "subnet": "10.66.0.0/24", "dataDir": self.leases.path(),
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }),
            Way::Existing => json!({"deviceID": WAITING}),
            Way::Standalone => json!({"lowerDevice": LOWER, "mode": "bridge"}),
        };
        let call = self.node.cni(&self.pod, config);
        let call = call.env("CNI_PATH", PLUGINS);
        // The tap of a standalone one is drawn by the container's ID.
        self.by(
            call.env("CNI_CONTAINERID", &format!("c{}", self.number)),
            by,
        )
    }

    fn by<'a>(&self, call: Cni<'a>, words: &[String]) -> Cni<'a> {
        let enter = self.dev.iter().flat_map(Dev::words);
        let words: Vec<String> = enter.chain(words.iter().cloned()).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        call.by(&words)
    }

    fn assert_nothing_left(&self, after: &str) {
        let links = self.pod.links();
        assert!(links.is_empty(), "{after}: {links:?} is left in the pod");
        let tables = || Ok(Nft::open()?.tables()?);
        let tables = self.pod.0.run(tables).unwrap();
        assert_eq!(tables, [], "{after}: left in the pod");
        let mut on_host = self.node.host.links();
        // Before it was moved, or after it was moved back, it waits as before.
        on_host.retain(|name| self.way != Way::Existing || name != WAITING);
        assert_eq!(on_host, [LOWER], "{after}");
        if self.node.host.link(WAITING).is_none() {
            assert!(!tap_exists(self.number), "{after}: a tap is left");
            assert!(!tap(self.number).exists(), "{after}: a node is left");
        }
        let leases = self.leases.path().join("test");
        let leases = if leases.exists() {
            names(&leases)
        } else {
            Vec::new()
        };
        let left = leases.iter().find(|name| name.starts_with("10."));
        assert_eq!(left, None, "{after}: an address is left");
        if let Some(dev) = &self.dev {
            assert!(dev.names().is_empty(), "{after}: {:?} is left", dev.names());
        }
    }

    /// What strace sees of `verb`.
    fn faults(&self, verb: &str) -> Vec<Fault> {
        let log = tempfile::NamedTempFile::new().unwrap();
        let path = log.path().to_str().unwrap();
        let words = ["strace", "-o", path].map(str::to_owned);
        let answer = self.call(&words).call(verb);
        assert_eq!(answer.status, 0, "{answer:?}");
        faults(Path::new(path))
    }

    /// Waits until the IPAM plugin of a call that was killed has ended, as a runtime's time-outs do.
    fn settle(&self) {
        let ours = format!("CNI_CONTAINERID=c{}\0", self.number);
        let runs = |process: &DirEntry| {
            let environment = fs::read(process.path().join("environ")).unwrap_or_default();
            environment
                .windows(ours.len())
                .any(|part| part == ours.as_bytes())
        };
        wait_until("the IPAM plugin has ended", || {
            let mut processes = fs::read_dir("/proc").unwrap().flatten();
            !processes.any(|process| runs(&process))
        });
    }

    /// Calls a verb that suffers. True if it succeeded; if not, and nothing stopped it, it said
    /// why in the way of CNI.
    fn suffer(&self, verb: &str, fault: &Fault) -> bool {
        let output = if self.way == Way::Addressed {
            let output = self.call(&fault.words_alone()).output(verb);
            self.settle();
            output
        } else {
            let words = fault.words(Path::new("/dev/null"));
            self.call(&words).output(verb)
        };
        let text = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            let result: Value = serde_json::from_str(&text).unwrap_or_default();
            if self.way == Way::Limited && verb == "ADD" {
                // Whatever failed, it is not attached without its limits.
                let call = self.call(&[]).with("prevResult", result.clone());
                call.succeed("CHECK");
            }
            assert_eq!(
                result["interfaces"].is_array(),
                verb == "ADD",
                "{fault}: {text}"
            );
            return true;
        }
        if fault.kills() || fault.ends_it() {
            return false;
        }
        // What cannot be written cannot be read.
        if !(fault.to_string().contains("=write") && text.is_empty()) {
            let error: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
                panic!("{fault}: {error}: {output:?}");
            });
            assert!(error["code"].is_u64(), "{fault}: {error}");
        }
        false
    }
}

fn add(way: Way) {
    let _turn = alone();
    let world = World::new(way);
    world.prepare();
    let faults = world.faults("ADD");
    world.call(&[]).succeed("DEL");
    let suffer = |world: &World, fault: &Fault| {
        let after = fault.to_string();
        world.prepare();
        let succeeded = world.suffer("ADD", fault);
        if !succeeded && !fault.kills() && !fault.ends_it() {
            world.assert_nothing_left(&after);
        }
        world.call(&[]).succeed("DEL");
        world.assert_nothing_left(&after);
        world.prepare();
        let again = world.call(&[]).added();
        again.succeed("CHECK");
        again.succeed("DEL");
        !succeeded
    };
    each(
        &format!("ADD, {way:?}"),
        &faults,
        || World::new(way),
        suffer,
    );
}

fn del(way: Way) {
    let _turn = alone();
    let world = World::new(way);
    world.prepare();
    world.call(&[]).add();
    let faults = world.faults("DEL");
    let suffer = |world: &World, fault: &Fault| {
        let after = fault.to_string();
        world.prepare();
        world.call(&[]).add();
        let succeeded = world.suffer("DEL", fault);
        if succeeded {
            world.assert_nothing_left(&after);
        }
        world.call(&[]).succeed("DEL");
        world.assert_nothing_left(&after);
        !succeeded
    };
    each(
        &format!("DEL, {way:?}"),
        &faults,
        || World::new(way),
        suffer,
    );
}

#[test]
fn add_of_an_allocated_tap() {
    add(Way::Allocated);
}

#[test]
fn add_that_asks_a_device_plugin() {
    add(Way::Learning);
}

#[test]
fn add_on_a_tmpfs() {
    add(Way::Tmpfs);
}

#[test]
fn add_of_a_macvtap_that_waits() {
    add(Way::Existing);
}

#[test]
fn add_without_a_device_plugin() {
    add(Way::Standalone);
}

#[test]
fn add_with_limits() {
    add(Way::Limited);
}

#[test]
fn add_with_addresses() {
    add(Way::Addressed);
}

#[test]
fn del_with_addresses() {
    del(Way::Addressed);
}

#[test]
fn del_with_limits() {
    del(Way::Limited);
}

#[test]
fn del_of_an_allocated_tap() {
    del(Way::Allocated);
}

#[test]
fn del_on_a_tmpfs() {
    del(Way::Tmpfs);
}
