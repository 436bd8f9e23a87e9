//! How long `link list` takes with 1,000 macvtaps in 200 network namespaces, against a start
//! of the same program for nothing.
//!
//! Called by `scripts/bench`.

use std::{
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    time::Instant,
};

use kit::{
    binary,
    netns::{Host, LOWER, Node, tap_number},
};
use macvtap::{
    netlink::{Create, Socket},
    types::mode::Mode,
};

const NAMESPACES: usize = 200;
const EACH: usize = 5;
const ROUNDS: usize = 30;

/// A pod with macvtaps, and a process by which it is found.
fn pod(node: &Node, socket: &mut Socket, lower: u32) -> (Host, Child) {
    let host = Host::new();
    for number in 0..EACH {
        let create = Create {
            name: &format!("net{number}"),
            index: Some(tap_number()),
            lower,
            mode: Mode::Bridge,
            mac: None,
            mtu: None,
            queue_length: 1000,
            group: 0,
            netns: Some(host.0.as_fd()),
        };
        socket.create(&create).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "sleep", "600"]);
    let child = host.0.run(|| Ok(command.spawn()?)).unwrap();
    assert!(!node.host.links().is_empty());
    (host, child)
}

fn median(node: &Node, words: &[&str]) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let mut command = Command::new(binary());
            command.args(words).stdout(Stdio::null());
            let start = Instant::now();
            let status = node.host.0.run(|| Ok(command.status()?)).unwrap();
            assert!(status.success());
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn main() {
    let node = Node::new();
    let mut socket = node.host.0.socket().unwrap();
    let lower = socket.link_by_name(LOWER).unwrap().unwrap().index;
    let mut pods: Vec<(Host, Child)> = (0..NAMESPACES)
        .map(|_| pod(&node, &mut socket, lower))
        .collect();
    let start = median(&node, &["--version"]);
    println!("| call | macvtaps | median ms | against --version |");
    println!("| --- | --- | --- | --- |");
    for words in [&["link", "list"][..], &["link", "list", "--json"]] {
        let took = median(&node, words);
        println!(
            "| {} | {} in {NAMESPACES} netns | {took:.1} | {:.0} x |",
            words.join(" "),
            NAMESPACES * EACH,
            took / start
        );
    }
    for (_, child) in &mut pods {
        let _ = child.kill();
        let _ = child.wait();
    }
}
