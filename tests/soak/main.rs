//! Two nodes on one kernel under everything at once: pods that come and go in every way, plugins
//! that are killed, kubelets that restart, lower devices that flap, are renamed or vanish.
//!
//! `scripts/soak MINUTES` runs it for longer than the minute that it takes otherwise.

#[macro_use]
extern crate pretty_assertions;

mod chaos;
mod count;
mod dice;
mod foreign;
mod node;
mod pod;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use count::Count;
use dice::Dice;
use node::SoakNode;

/// Pods at once on each node.
const PODS: u64 = 6;
/// How often everything stands still and is counted.
const EPOCH: Duration = Duration::from_secs(5);

#[test]
fn nothing_is_lost_and_nothing_is_left() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(60, |text| text.parse().unwrap());
    let seed =
        std::env::var("SOAK_SEED").map_or_else(|_| dice::seed(), |text| text.parse().unwrap());
    println!("soak of {seconds} s, SOAK_SEED={seed}");
    let until = Instant::now() + Duration::from_secs(seconds);
    let (count, over) = (&Count::default(), &AtomicBool::new(false));
    let going = move || !over.load(Ordering::Relaxed);
    // The second node's device plugin is killed now and then, the first one's must not grow.
    let nodes = [
        SoakNode::new("soak-a", false),
        SoakNode::new("soak-b", true),
    ];
    std::thread::scope(|scope| {
        let _end = End(over);
        for (which, node) in (0..).zip(&nodes) {
            for worker in 0..PODS {
                let dice = Dice::new(seed ^ (which << 32 | worker));
                scope.spawn(move || {
                    let _end = End(over);
                    pod::live(node, dice, count, &going);
                });
            }
            let dice = Dice::new(seed ^ (which << 32 | PODS));
            scope.spawn(move || {
                let _end = End(over);
                chaos::disturb(node, dice, count, &going);
            });
        }
        while Instant::now() < until && going() {
            std::thread::sleep(EPOCH.min(until.saturating_duration_since(Instant::now())));
            for node in &nodes {
                node.take_stock();
            }
        }
    });
    for node in &nodes {
        node.take_stock();
        node.assert_ports_forgotten();
    }
    println!("{count}");
}

/// A thread that ends, in whatever way, ends all.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
