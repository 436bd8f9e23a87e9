//! `link watch`: changes of macvtaps, a line for each.
//!
//! The kernel reports changes of links only to sockets of their own network namespace. Pods
//! come and go, so all namespaces are listed again and again instead.

use std::{collections::BTreeMap, path::Path, thread::sleep, time::Duration};

use anyhow::Result;
use serde::Serialize;

use super::{
    listing::{Listing, MacvtapEntry},
    pods,
    terminal::timestamp,
};
use crate::{host::stdout::print, macvtap::inventory::Inventory};

/// How often the machine is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// The macvtaps, by network namespace and tap: a number is unique within a namespace only.
type Snapshot = BTreeMap<(String, u32), MacvtapEntry>;

/// What happened to a macvtap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Event {
    /// It existed before.
    Is,
    New,
    Changed,
    Gone,
}

/// A line of output.
#[derive(Debug, Serialize)]
struct Change<'a> {
    time: String,
    event: Event,
    macvtap: &'a MacvtapEntry,
}

/// Prints what is there, then what changes, without end.
pub fn watch(kubelet_dir: &Path, json: bool) -> Result<()> {
    let mut before = snapshot(kubelet_dir)?;
    for macvtap in before.values() {
        report(Event::Is, macvtap, json)?;
    }
    loop {
        sleep(INTERVAL);
        let now = snapshot(kubelet_dir)?;
        for (event, macvtap) in changes(&before, &now) {
            report(event, macvtap, json)?;
        }
        before = now;
    }
}

fn snapshot(kubelet_dir: &Path) -> Result<Snapshot> {
    let mut inventory = Inventory::new()?;
    inventory.find_holders();
    pods::find(&mut inventory, kubelet_dir);
    let macvtaps = Listing::from(&inventory).macvtaps.into_iter();
    Ok(macvtaps.map(|macvtap| (macvtap.key(), macvtap)).collect())
}

fn changes<'a>(before: &'a Snapshot, now: &'a Snapshot) -> Vec<(Event, &'a MacvtapEntry)> {
    let gone = before.iter().filter(|(tap, _)| !now.contains_key(tap));
    let gone = gone.map(|(_, macvtap)| (Event::Gone, macvtap));
    let others = now
        .iter()
        .filter_map(|(tap, macvtap)| match before.get(tap) {
            None => Some((Event::New, macvtap)),
            Some(former) if !former.is_alike(macvtap) => Some((Event::Changed, macvtap)),
            Some(_) => None,
        });
    gone.chain(others).collect()
}

fn report(event: Event, macvtap: &MacvtapEntry, json: bool) -> Result<()> {
    let time = timestamp();
    let line = if json {
        serde_json::to_string(&Change {
            time,
            event,
            macvtap,
        })?
    } else {
        format!("{time} {:8} {}", event.name(), text(macvtap))
    };
    print(&format!("{line}\n"))
}

fn text(macvtap: &MacvtapEntry) -> String {
    format!(
        "tap={} interface={:?} mac={} mode={:?} state={} mtu={} lower={} netns={:?} pod={:?} \
         container={:?} open_by={:?}",
        macvtap.tap,
        macvtap.interface,
        macvtap.mac.as_deref().unwrap_or_default(),
        macvtap.shown_mode(),
        if macvtap.up { "up" } else { "down" },
        macvtap.mtu,
        macvtap.lower_device.as_deref().unwrap_or_default(),
        macvtap.netns,
        macvtap.pod.as_deref().unwrap_or_default(),
        macvtap.container.as_deref().unwrap_or_default(),
        macvtap.holders.join(", "),
    )
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::Is => "is",
            Self::New => "new",
            Self::Changed => "changed",
            Self::Gone => "gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_what_changed_but_not_traffic() {
        let of = |list: &[(u32, u32, u64)]| -> Snapshot {
            let macvtaps = list.iter().map(|&(tap, mtu, received_bytes)| {
                let macvtap = MacvtapEntry {
                    netns: if mtu == 9000 { "b" } else { "a" }.to_owned(),
                    tap,
                    mtu,
                    received_bytes,
                    ..MacvtapEntry::default()
                };
                (macvtap.key(), macvtap)
            });
            macvtaps.collect()
        };
        let before = of(&[(1, 1500, 0), (2, 1500, 0), (3, 1500, 0)]);
        let now = of(&[(1, 1500, 9), (2, 1400, 0), (4, 1500, 0)]);
        let found = changes(&before, &now);
        let found: Vec<_> = found
            .iter()
            .map(|(event, macvtap)| (*event, macvtap.tap))
            .collect();
        let expected = [(Event::Gone, 3), (Event::Changed, 2), (Event::New, 4)];
        assert_eq!(found, expected);
        // One of the same number in another network namespace.
        let both = of(&[(1, 1500, 0), (1, 9000, 0)]);
        assert_eq!(both.len(), 2);
        assert_eq!(changes(&both, &of(&[(1, 1500, 0)])).len(), 1);
    }
}
