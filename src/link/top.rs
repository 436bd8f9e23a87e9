//! `link top`: who sends and receives how much, the busiest first.

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::table::{Table, bytes, width};
use crate::{
    host::stdout::print,
    macvtap::inventory::{Inventory, Macvtap},
    netlink::Stats,
};

/// Shows the traffic of each `interval` seconds, `count` times or without end.
pub fn top(interval: f64, count: Option<u32>) -> Result<()> {
    let interval = Duration::from_secs_f64(interval);
    let mut before = (Instant::now(), stats(&Inventory::new()?.macvtaps));
    let mut turn = 0;
    while count.is_none_or(|count| turn < count) {
        sleep(interval);
        let mut inventory = Inventory::new()?;
        inventory.find_pods();
        let macvtaps = inventory.macvtaps;
        let now = (Instant::now(), stats(&macvtaps));
        let seconds = (now.0 - before.0).as_secs_f64();
        show(&macvtaps, &before.1, seconds)?;
        before = now;
        turn += 1;
    }
    Ok(())
}

fn stats(macvtaps: &[Macvtap]) -> BTreeMap<u32, Stats> {
    let stats = macvtaps
        .iter()
        .map(|each| (each.link.index, each.link.stats));
    stats.collect()
}

/// Bytes and packets a second: received, sent.
fn rates(now: Stats, before: Stats, seconds: f64) -> [u64; 4] {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a rate for people"
    )]
    let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
    [
        rate(now.received_bytes, before.received_bytes),
        rate(now.sent_bytes, before.sent_bytes),
        rate(now.received_frames, before.received_frames),
        rate(now.sent_frames, before.sent_frames),
    ]
}

fn show(macvtaps: &[Macvtap], before: &BTreeMap<u32, Stats>, seconds: f64) -> Result<()> {
    let rate = |macvtap: &Macvtap| {
        let former = before.get(&macvtap.link.index).copied();
        // A macvtap that is new has all its traffic from this interval.
        rates(macvtap.link.stats, former.unwrap_or_default(), seconds)
    };
    let mut sorted: Vec<(&Macvtap, [u64; 4])> = macvtaps
        .iter()
        .map(|macvtap| (macvtap, rate(macvtap)))
        .collect();
    sorted.sort_by_key(|(macvtap, rates)| {
        (std::cmp::Reverse(rates[0] + rates[1]), macvtap.link.index)
    });
    let mut table = Table::new(&[
        "TAP",
        "RECEIVED/s",
        "SENT/s",
        "PACKETS IN/s",
        "OUT/s",
        "INTERFACE",
        "LOWER",
        "POD OR NETNS",
    ]);
    for (macvtap, [received, sent, packets_in, packets_out]) in sorted {
        table.row(&[
            macvtap.link.index.to_string(),
            bytes(received),
            bytes(sent),
            packets_in.to_string(),
            packets_out.to_string(),
            macvtap.link.name.clone(),
            macvtap.lower.clone().unwrap_or_default(),
            macvtap.pod.clone().unwrap_or_else(|| macvtap.netns.clone()),
        ]);
    }
    if width().is_some() {
        print("\x1b[H\x1b[2J")?; // from the top of a clear screen
    }
    table.print()
}
