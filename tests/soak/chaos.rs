//! What happens to a node.

use std::{
    io::Write,
    os::fd::AsFd,
    process::{Command, Stdio},
    sync::PoisonError,
    time::Duration,
};

use kit::netns::{FAR_END, LOWER, taps::far_tap};

use crate::{
    count::Count,
    dice::Dice,
    node::{BYSTANDER, SoakNode, lock, wait_for_wire},
};

/// Link events at a time.
const EVENTS: u64 = 1000;

/// One thing after the other.
pub fn disturb(node: &SoakNode, mut dice: Dice, count: &Count, going: &dyn Fn() -> bool) {
    while going() {
        std::thread::sleep(Duration::from_millis(100) + dice.pause(700));
        let _work = node.work();
        match dice.roll(8) {
            0 => {
                node.disturb(flap);
                count.one("event: lower device down and up");
            }
            1 => {
                node.disturb(rename);
                count.one("event: lower device renamed and back");
            }
            2 => {
                node.disturb(make_again);
                count.one("event: lower device removed and made again");
            }
            3 if node.killed => {
                node.restart_plugin();
                count.one("event: device plugin killed and started");
            }
            4 => {
                node.restart_kubelet();
                count.one("event: kubelet restarted");
            }
            5 => {
                node.configure(usize::try_from(100 + dice.roll(50)).unwrap());
                count.one("event: configuration changed");
            }
            6 => {
                lock(&node.plugin).signal("HUP");
                count.one("event: SIGHUP");
            }
            _ => {
                send_link_events(node);
                count.add("event: link event", EVENTS);
            }
        }
    }
}

fn host(node: &SoakNode, words: &str) {
    node.node.host.ip(words);
}

fn flap(node: &SoakNode) {
    for _ in 0..3 {
        host(node, &format!("link set {LOWER} down"));
        host(node, &format!("link set {LOWER} up"));
    }
    wait_for_wire(&node.node);
}

fn rename(node: &SoakNode) {
    host(node, &format!("link set {LOWER} down"));
    host(node, &format!("link set {LOWER} name elsewhere"));
    host(node, "link set elsewhere up");
    std::thread::sleep(Duration::from_millis(20));
    host(node, "link set elsewhere down");
    host(node, &format!("link set elsewhere name {LOWER}"));
    host(node, &format!("link set {LOWER} up"));
    wait_for_wire(&node.node);
}

fn make_again(node: &SoakNode) {
    let mut far = node.far.write().unwrap_or_else(PoisonError::into_inner);
    drop(far.take());
    host(node, &format!("link delete {LOWER}"));
    std::thread::sleep(Duration::from_millis(20));
    let mut socket = node.node.host.0.socket().unwrap();
    let wire = node.node.wire.0.as_fd();
    socket.create_veth(LOWER, FAR_END, wire).unwrap();
    host(node, &format!("link set {LOWER} up"));
    node.node.wire.ip(&format!("link set {FAR_END} up"));
    *far = Some(far_tap(&node.node));
    wait_for_wire(&node.node);
    node.create_foreign();
}

fn send_link_events(node: &SoakNode) {
    let lines = (0..EVENTS).map(|number| format!("link set {BYSTANDER} alias a{number}\n"));
    let lines: String = lines.collect();
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]).stdin(Stdio::piped());
    let mut child = node.node.host.0.run(|| Ok(command.spawn()?)).unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}
