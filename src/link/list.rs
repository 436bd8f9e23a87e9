//! `link list`.

use anyhow::Result;

use super::table::{Table, bytes, print_sentence};
use crate::{
    host::stdout::print,
    macvtap::inventory::{Inventory, Macvtap},
};

/// Lists macvtaps and lower devices.
pub fn list(json: bool) -> Result<()> {
    let mut inventory = Inventory::new()?;
    inventory.find_holders();
    inventory.find_pods();
    if json {
        return print(&format!("{:#}\n", inventory.to_json()));
    }
    macvtaps(&inventory)?;
    print("\n")?;
    lower_devices(&inventory)
}

fn macvtaps(inventory: &Inventory) -> Result<()> {
    let mut table = Table::new(&[
        "TAP",
        "INTERFACE",
        "MAC",
        "MODE",
        "STATE",
        "LOWER",
        "NETNS",
        "POD",
        "OPEN BY",
        "OWNER",
        "MTU",
        "RECEIVED",
        "SENT",
    ]);
    for macvtap in &inventory.macvtaps {
        table.row(&row(macvtap));
    }
    if table.is_empty() {
        print_sentence("there is no macvtap")?;
    } else {
        table.print()?;
    }
    if !inventory.unseen.is_empty() {
        let taps: Vec<String> = inventory.unseen.iter().map(u32::to_string).collect();
        let taps = taps.join(", ");
        print_sentence(&format!(
            "in network namespaces that cannot be found: {taps}"
        ))?;
    }
    if let Some((count, why)) = &inventory.closed {
        print_sentence(&format!(
            "{count} network namespaces were not looked into: {why}"
        ))?;
    }
    Ok(())
}

fn lower_devices(inventory: &Inventory) -> Result<()> {
    let mut table = Table::new(&["LOWER DEVICE", "MACVTAPS", "MTU", "ELIGIBLE"]);
    for lower in &inventory.lower_devices {
        let ineligible = lower.ineligible.as_ref();
        table.row(&[
            lower.link.name.clone(),
            lower.macvtaps.to_string(),
            lower.link.mtu.to_string(),
            ineligible.map_or_else(|| "yes".to_owned(), |found| format!("no: {}", found.reason)),
        ]);
    }
    table.print()
}

fn row(macvtap: &Macvtap) -> Vec<String> {
    let link = &macvtap.link;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let holders = (!macvtap.holders.is_empty()).then(|| macvtap.holders.join(", "));
    vec![
        link.index.to_string(),
        link.name.clone(),
        or_none(link.mac.map(|mac| mac.to_string())),
        macvtap.mode(),
        if link.up { "up" } else { "down" }.to_owned(),
        or_none(macvtap.lower.clone()),
        or_none(Some(macvtap.netns.clone()).filter(|name| !name.is_empty())),
        or_none(macvtap.pod.clone()),
        or_none(holders),
        or_none(
            macvtap
                .owner()
                .map(|owner| format!("{}:{}", owner.user, owner.group)),
        ),
        link.mtu.to_string(),
        bytes(link.stats.received_bytes),
        bytes(link.stats.sent_bytes),
    ]
}
