//! `link watch`: what changes, a line for each.
//!
//! The kernel reports changes of links to sockets of their own network namespace only. Pods
//! come and go, so the machine is looked at again and again instead.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use anyhow::Result;

use crate::{
    host::stdout::print,
    macvtap::inventory::{Inventory, Macvtap},
};

/// How often the machine is looked at.
const PAUSE: Duration = Duration::from_millis(500);

/// Reports changes, without end.
pub fn watch() -> Result<()> {
    let mut before = snapshot()?;
    for line in before.values() {
        print(&format!("is       {line}\n"))?;
    }
    loop {
        sleep(PAUSE);
        let now = snapshot()?;
        for line in changes(&before, &now) {
            print(&format!("{line}\n"))?;
        }
        before = now;
    }
}

fn snapshot() -> Result<BTreeMap<u32, String>> {
    let mut inventory = Inventory::new()?;
    inventory.find_holders();
    Ok(inventory
        .macvtaps
        .iter()
        .map(|each| (each.link.index, line(each)))
        .collect())
}

fn line(macvtap: &Macvtap) -> String {
    let link = &macvtap.link;
    let text = |text: Option<String>| text.unwrap_or_default();
    format!(
        "tap={} interface={:?} mac={} mode={:?} state={} mtu={} lower={} netns={:?} open_by={:?}",
        link.index,
        link.name,
        text(link.mac.map(|mac| mac.to_string())),
        macvtap.mode(),
        if link.up { "up" } else { "down" },
        link.mtu,
        text(macvtap.lower.clone()),
        macvtap.netns,
        macvtap.holders.join(", "),
    )
}

fn changes(before: &BTreeMap<u32, String>, now: &BTreeMap<u32, String>) -> Vec<String> {
    let gone = before.iter().filter(|(tap, _)| !now.contains_key(tap));
    let gone = gone.map(|(_, line)| format!("gone     {line}"));
    let others = now.iter().filter_map(|(tap, line)| match before.get(tap) {
        None => Some(format!("new      {line}")),
        Some(former) if former != line => Some(format!("changed  {line}")),
        Some(_) => None,
    });
    gone.chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_changed() {
        let of = |list: &[(u32, &str)]| -> BTreeMap<u32, String> {
            list.iter()
                .map(|(tap, line)| (*tap, (*line).to_owned()))
                .collect()
        };
        let lines = changes(
            &of(&[(1, "a"), (2, "b"), (3, "c")]),
            &of(&[(1, "a"), (2, "B"), (4, "d")]),
        );
        assert_eq!(lines, ["gone     c", "changed  B", "new      d"]);
    }
}
