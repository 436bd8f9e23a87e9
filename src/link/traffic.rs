//! How much each macvtap sends and receives in a second.

use std::{cmp::Reverse, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use super::{listing::MacvtapEntry, table::bytes};

/// The columns of `link top`.
pub const COLUMNS: [&str; 8] = [
    "TAP",
    "RECEIVED/s",
    "SENT/s",
    "PACKETS IN/s",
    "OUT/s",
    "INTERFACE",
    "LOWER",
    "POD OR NETNS",
];

/// The traffic of one macvtap, per second.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// The number of its tap.
    pub tap: u32,
    /// Its name.
    pub interface: String,
    /// Its lower device.
    pub lower_device: Option<String>,
    /// The pod's namespace and name.
    pub pod: Option<String>,
    /// Its network namespace.
    pub netns: String,
    /// Bytes received in a second.
    #[serde(rename = "receivedBytesPerSecond", alias = "receivedBytes")]
    pub received_bytes: u64,
    /// Bytes sent in a second.
    #[serde(rename = "sentBytesPerSecond", alias = "sentBytes")]
    pub sent_bytes: u64,
    /// Frames received in a second.
    #[serde(rename = "receivedPacketsPerSecond", alias = "receivedPackets")]
    pub received_packets: u64,
    /// Frames sent in a second.
    #[serde(rename = "sentPacketsPerSecond", alias = "sentPackets")]
    pub sent_packets: u64,
}

impl Traffic {
    /// The cells of its row.
    pub fn row(&self) -> Vec<String> {
        vec![
            self.tap.to_string(),
            bytes(self.received_bytes),
            bytes(self.sent_bytes),
            self.received_packets.to_string(),
            self.sent_packets.to_string(),
            self.interface.clone(),
            self.lower_device.clone().unwrap_or_default(),
            self.pod.clone().unwrap_or_else(|| self.netns.clone()),
        ]
    }

    /// By what a list of them is sorted: the busiest first.
    pub fn rank(&self) -> (Reverse<u64>, u32) {
        (Reverse(self.received_bytes + self.sent_bytes), self.tap)
    }
}

/// The traffic between two listings, `seconds` apart. All that a new macvtap has is new.
pub fn between(before: &[MacvtapEntry], now: &[MacvtapEntry], seconds: f64) -> Vec<Traffic> {
    let before = before.iter().map(|each| (each.key(), each));
    let before: BTreeMap<(String, u32), &MacvtapEntry> = before.collect();
    let mut list: Vec<Traffic> = now
        .iter()
        .map(|macvtap| {
            let before = before.get(&macvtap.key());
            let rate = |counter: fn(&MacvtapEntry) -> u64| {
                let former = before.map_or(0, |before| counter(before));
                per_second(counter(macvtap).saturating_sub(former), seconds)
            };
            Traffic {
                tap: macvtap.tap,
                interface: macvtap.interface.clone(),
                lower_device: macvtap.lower_device.clone(),
                pod: macvtap.pod.clone(),
                netns: macvtap.netns.clone(),
                received_bytes: rate(|each| each.received_bytes),
                sent_bytes: rate(|each| each.sent_bytes),
                received_packets: rate(|each| each.received_packets),
                sent_packets: rate(|each| each.sent_packets),
            }
        })
        .collect();
    list.sort_by_key(Traffic::rank);
    list
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a rate for people"
)]
fn per_second(count: u64, seconds: f64) -> u64 {
    (count as f64 / seconds) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macvtaps_of_one_number_are_told_apart_by_their_network_namespaces() {
        let of = |counts: [u64; 2]| {
            let netns = ["a", "b"].into_iter().zip(counts);
            let macvtaps = netns.map(|(netns, received_bytes)| MacvtapEntry {
                tap: 7,
                netns: netns.to_owned(),
                received_bytes,
                ..MacvtapEntry::default()
            });
            macvtaps.collect::<Vec<_>>()
        };
        let traffic = between(&of([1000, 50]), &of([1020, 51]), 1.0);
        let rates: Vec<u64> = traffic.iter().map(|each| each.received_bytes).collect();
        assert_eq!(rates, [20, 1]);
    }
}
