//! How long `link list` takes with 1,000 macvtaps in 200 network namespaces, against a start
//! of the same program for nothing.
//!
//! Called by `scripts/bench`.

use std::{
    process::{Child, Command, Stdio},
    time::Instant,
};

use kit::{
    binary,
    netns::{Host, Node},
};

const NAMESPACES: usize = 200;
const EACH: usize = 5;
const ROUNDS: usize = 30;

/// A pod with macvtaps, and a process by which it is found.
fn pod(node: &Node) -> (Host, Child) {
    let host = Host::new();
    node.attach(&host, 0..EACH);
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "sleep", "600"]);
    let child = host.0.run(|| Ok(command.spawn()?)).unwrap();
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
    let mut pods: Vec<(Host, Child)> = (0..NAMESPACES).map(|_| pod(&node)).collect();
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
