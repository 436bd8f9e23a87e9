//! Pods, one after the other: allocated, attached, checked, used, and gone in one way or another.

use std::{
    fs::File,
    io::{Read, Write as _},
    os::unix::fs::MetadataExt,
    sync::PoisonError,
    time::{Duration, Instant},
};

use kit::{
    netns::{
        Answer, Cni, Host, IFNAME, WAIT_TIMEOUT, happens, tap, tap_of, taps::send, wait_until,
    },
    switch::rarp,
};
use macvtap::{
    host::{
        devnode,
        tap::{self as taps, VNET_HEADER},
    },
    types::{
        mac::MacAddr,
        owner::{Access, Owner},
    },
};
use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

use crate::{
    count::Count,
    dice::Dice,
    node::{SoakNode, lock},
};

/// An ethertype for experiments (IEEE 802, table of local ones).
const KIND: [u8; 2] = [0x88, 0xb5];
/// Frames of pods, and frames to them.
const FROM: u8 = 1;
const TO: u8 = 2;

/// Attaches and detaches pods until the soak ends.
pub fn live(node: &SoakNode, mut dice: Dice, count: &Count, going: &dyn Fn() -> bool) {
    let mut pod = node.pod();
    while going() {
        let _work = node.work();
        let id = node.take_id(dice.number());
        let cycle = Cycle {
            node,
            pod: &pod,
            number: tap_of(&id),
            count,
            generation: node.generation(),
        };
        let gone = cycle.run(&id, &mut dice);
        if gone {
            // Its namespace goes without DEL. Another pod may have the ID at once.
            pod = node.pod();
            count.one("netns destroyed without DEL");
        }
        node.give_id_back(id);
    }
}

struct Cycle<'a> {
    node: &'a SoakNode,
    pod: &'a Host,
    number: u32,
    count: &'a Count,
    generation: u64,
}

impl Cycle<'_> {
    /// Whether the lower device was undisturbed since the cycle began.
    fn calm(&self) -> bool {
        self.generation.is_multiple_of(2) && self.node.generation() == self.generation
    }

    /// Fails unless the lower device was disturbed.
    fn excuse(&self, what: &str) {
        assert!(!self.calm(), "tap {}: {what}", self.number);
        self.count.one("event: excused by the lower device");
    }

    /// True if the pod's namespace is to be destroyed.
    fn run(&self, id: &str, dice: &mut Dice) -> bool {
        self.allocate(id);
        let mac = MacAddr::random().unwrap();
        let config = json!({"deviceID": id, "mac": mac.to_string()});
        let call = self.node.node.cni(self.pod, config);
        let call = call.env("CNI_CONTAINERID", &format!("soak-{}", dice.number()));
        if dice.roll(8) == 0 {
            self.kill(&call, dice);
        }
        let answer = call.call("ADD");
        self.count.one("ADD");
        if answer.status != 0 {
            self.failed(&answer);
            return false;
        }
        let result: Value = serde_json::from_str(&answer.stdout).unwrap();
        let call = call.with("prevResult", result);
        self.step(|| self.check_node());
        self.step(|| self.use_tap(mac, dice));
        for _ in 0..dice.roll(8) {
            self.step(|| self.check(&call));
        }
        if dice.roll(4) == 0 {
            self.step(|| self.add_again(&call));
        }
        if dice.roll(4) == 0 {
            self.step(|| self.pre_start(id));
        }
        if dice.roll(4) == 0 {
            self.step(|| self.status(&call));
        }
        if dice.roll(6) == 0 {
            return true;
        }
        for _ in 0..=dice.roll(2) {
            call.succeed("DEL");
            self.count.one("DEL");
        }
        self.assert_nothing_left();
        self.check_foreign();
        false
    }

    /// One step in the life of a pod. After each of them learning agrees with the kernel, and what
    /// is not ours is as it was.
    fn step(&self, work: impl FnOnce()) {
        work();
        self.agree();
        self.check_foreign();
    }

    fn check_foreign(&self) {
        let same = self.node.foreign_is_unchanged();
        if !same {
            self.excuse("a link that is not ours changed");
        }
        self.count.one("foreign links compared");
    }

    fn allocate(&self, id: &str) {
        let (resource, ids) = (self.node.resource(), [id.to_owned()]);
        // The plugin may be about to register, or killed.
        let answer = self
            .node
            .with_kubelet(|kubelet| kubelet.allocate(&resource, &ids));
        if let Ok(answer) = answer {
            let path = &answer.container_responses[0].devices[0].host_path;
            assert_eq!(*path, tap(self.number).to_string_lossy());
            self.count.one("Allocate");
        }
    }

    fn pre_start(&self, id: &str) {
        let (resource, ids) = (self.node.resource(), [id.to_owned()]);
        let answer = self
            .node
            .with_kubelet(|kubelet| kubelet.pre_start(&resource, &ids));
        if answer.is_ok() {
            self.count.one("PreStartContainer");
        }
        // Without a tap, of a lower device that was removed, it makes one on the host.
        let mut socket = self.node.node.host.0.socket().unwrap();
        if !self.calm() && socket.link(self.number).unwrap().is_some() {
            socket.delete(self.number).unwrap();
        }
    }

    fn failed(&self, answer: &Answer) {
        let error = answer.error();
        assert!(self.pod.links().is_empty(), "after {error}");
        self.excuse(&format!("ADD failed: {error}"));
    }

    /// An ADD that is killed, and the DEL that a runtime calls then.
    fn kill(&self, call: &Cni<'_>, dice: &mut Dice) {
        let mut command = call.command("ADD");
        let mut child = self.node.node.host.0.run(|| Ok(command.spawn()?)).unwrap();
        let _ = child.stdin.take().unwrap().write_all(call.input());
        std::thread::sleep(dice.pause(4));
        child.kill().unwrap();
        child.wait().unwrap();
        self.count.one("ADD killed");
        call.succeed("DEL");
        self.count.one("DEL");
        self.assert_nothing_left();
    }

    /// The tap's node is the tap's own, the guest's, and the only one.
    fn check_node(&self) {
        let devices = taps::devices(self.number).unwrap();
        if devices.is_empty() {
            return self.excuse("the tap is gone");
        }
        assert_eq!(devices.len(), 1, "two taps are called {}", self.number);
        let access = Access {
            owner: Owner {
                user: 107,
                group: 107,
            },
            group: false,
        };
        if let Err(error) = devnode::verify(self.number, devices[0], access) {
            return self.excuse(&format!("{error:#}"));
        }
        self.count.one("node verified");
    }

    /// Frames out and in, as a guest's. What comes to the tap is the pod's own.
    fn use_tap(&self, mac: MacAddr, dice: &mut Dice) {
        let file = match devnode::open(self.number) {
            Ok(file) => file,
            Err(error) => return self.excuse(&format!("{error:#}")),
        };
        let rdev = file.metadata().unwrap().rdev();
        let opened = format!("{}:{}", major(rdev), minor(rdev));
        let Some(own) = taps::devices(self.number).unwrap().pop() else {
            return self.excuse("the tap is gone");
        };
        assert_eq!(
            opened,
            own.to_string(),
            "tap {} is a foreign one",
            self.number
        );
        let token = dice.number();
        for _ in 0..=dice.roll(3) {
            let out = frame([0xff; 6], mac.0, FROM, token);
            self.out(&file, &out);
            self.arrive(&file, mac, token);
        }
        if dice.roll(4) == 0 && !self.node.killed {
            self.migrate(&file, mac, token);
        }
    }

    fn out(&self, file: &File, frame: &[u8]) {
        let mut tap = file;
        let bytes = [&[0; VNET_HEADER], frame].concat();
        match tap.write(&bytes) {
            Ok(length) if length == bytes.len() => self.count.one("frame out"),
            other => self.excuse(&format!("no frame could be sent: {other:?}")),
        }
    }

    /// A frame to the pod, from the wire. Once more each second: for so long after a carrier was
    /// lost the kernel may have queues that take frames and drop them (`net/core/link_watch.c`).
    fn arrive(&self, file: &File, mac: MacAddr, token: u64) {
        let start = Instant::now();
        while self.calm() && start.elapsed() < WAIT_TIMEOUT {
            let far = self.node.far.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(far) = far.as_ref() {
                send(far, &frame(mac.0, [2, 0, 0, 0, 0, 0xfe], TO, token));
            }
            drop(far);
            if self.is_read(file, token) {
                return self.count.one("frame in");
            }
            self.count.one("event: a frame to a pod was sent again");
        }
        self.excuse("no frame arrived");
    }

    /// Whether the frame with this token is read from the tap within a second. Nothing that is
    /// meant for another pod may be.
    fn is_read(&self, mut file: &File, token: u64) -> bool {
        let start = Instant::now();
        let mut buffer = [0; 4096];
        while start.elapsed() < Duration::from_secs(1) && self.calm() {
            let Ok(length) = file.read(&mut buffer) else {
                std::thread::sleep(Duration::from_micros(200));
                continue;
            };
            let seen = &buffer[VNET_HEADER..length];
            if seen.get(12..15) == Some(&[KIND[0], KIND[1], TO][..]) {
                let own = seen.get(15..23) == Some(&token.to_be_bytes()[..]);
                assert!(own, "tap {} shows another pod's frame", self.number);
                return true;
            }
        }
        false
    }

    /// The mode that the kernel has the port in, if the pod has one.
    fn mode(&self) -> Option<Value> {
        let link = self.pod.link(IFNAME)?;
        Some(link["linkinfo"]["info_data"]["mode"].clone())
    }

    /// What learning believes of the port is what the kernel says. A device plugin that was
    /// killed may not know it yet.
    fn agree(&self) {
        self.learns("what the kernel says", || {
            let (believed, mode) = (self.node.believed(self.number), self.mode());
            let parked = mode.is_some_and(|mode| mode == "vepa");
            believed.map_or(self.node.killed, |port| port.parked == parked)
        });
        self.count.one("learning and the kernel agree");
    }

    /// Waits until `done`, unless the lower device is disturbed.
    fn learns(&self, what: &str, mut done: impl FnMut() -> bool) {
        let learned = happens(|| done() || !self.calm());
        let state = || {
            let (number, mode) = (self.number, self.mode());
            let learning = self.node.learning();
            let plugin = lock(&self.node.plugin);
            format!(
                "tap {number}, mode {mode:?}: {learning:#?}: {}",
                plugin.log()
            )
        };
        assert!(learned, "not learned: {what}: {}", state());
    }

    /// The VM is announced elsewhere, which parks its port, and is here again with a frame.
    /// Announcements and frames come again each second, as those of QEMU and of guests do.
    fn migrate(&self, file: &File, mac: MacAddr, token: u64) {
        self.becomes("vepa", || {
            let far = self.node.far.read().unwrap_or_else(PoisonError::into_inner);
            far.iter().for_each(|far| send(far, &rarp(mac)));
        });
        self.agree();
        self.becomes("bridge", || {
            self.out(file, &frame([0xff; 6], mac.0, FROM, token));
        });
        self.count.one("migration there and back");
    }

    /// Does something each second until the kernel has the port in a mode.
    fn becomes(&self, mode: &str, act: impl Fn()) {
        let mut acted: Option<Instant> = None;
        self.learns(mode, || {
            if acted.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
                act();
                acted = Some(Instant::now());
            }
            self.mode().is_some_and(|now| now == mode)
        });
    }

    fn check(&self, call: &Cni<'_>) {
        let answer = call.call("CHECK");
        self.count.one("CHECK");
        if answer.status != 0 {
            self.excuse(&format!("CHECK failed: {}", answer.error()));
        }
    }

    /// A runtime that has forgotten: an error, and no harm.
    fn add_again(&self, call: &Cni<'_>) {
        let answer = call.call("ADD");
        self.count.one("ADD a second time");
        if answer.status == 0 {
            return self.excuse("ADD succeeded twice");
        }
        self.check(call);
    }

    fn status(&self, call: &Cni<'_>) {
        let answer = call.call("STATUS");
        self.count.one("STATUS");
        if answer.status != 0 {
            self.excuse(&format!("STATUS failed: {}", answer.error()));
        }
    }

    fn assert_nothing_left(&self) {
        let mut socket = self.pod.0.socket().unwrap();
        let links = socket.links().unwrap();
        assert!(links.iter().all(|link| link.loopback), "{links:?}");
        // The tap of the ID's former pod may still be going, where ADD was killed too early to
        // wait for that.
        wait_until("the tap is gone", || {
            taps::devices(self.number).unwrap().is_empty() && !tap(self.number).exists()
        });
    }
}

/// A frame with a pod's identity in it.
fn frame(destination: [u8; 6], source: [u8; 6], direction: u8, token: u64) -> Vec<u8> {
    let mut frame = [
        &destination[..],
        &source,
        &KIND,
        &[direction],
        &token.to_be_bytes(),
    ]
    .concat();
    frame.resize(60, 0);
    frame
}
