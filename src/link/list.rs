//! `link list`.

use anyhow::Result;

use super::{
    listing::{Filter, Listing, LowerDeviceEntry, MacvtapEntry, RateEntry},
    pods,
    table::{Table, bytes},
    terminal::print_sentence,
};
use crate::{
    cli, deviceplugin::status, host::stdout::print, macvtap::inventory::Inventory,
    types::plural::count,
};

/// The columns of macvtaps, those first that are most often looked for.
pub const COLUMNS: [&str; 18] = [
    "TAP",
    "POD",
    "INTERFACE",
    "MAC",
    "STATE",
    "MODE",
    "LOWER",
    "NETNS",
    "OPEN BY",
    "OWNER",
    "MTU",
    "RECEIVED",
    "SENT",
    "SECURITY",
    "RATE IN",
    "RATE OUT",
    "DROPPED",
    "CONTAINER",
];
/// The columns of lower devices.
pub const LOWER_COLUMNS: [&str; 5] = ["LOWER DEVICE", "MACVTAPS", "RESOURCES", "MTU", "ELIGIBLE"];

/// Taps that are listed by their number alone.
const MAX_UNSEEN: usize = 10;

/// Lists macvtaps and lower devices.
pub fn list(options: &cli::List) -> Result<()> {
    let mut inventory = Inventory::new()?;
    inventory.find_holders();
    pods::find(&mut inventory, &options.kubelet_dir);
    let mut listing = Listing::from(&inventory);
    // There may be no device plugin.
    if let Ok(status) = status::query(&options.kubelet_dir) {
        listing.add_resources(&status.resources);
    }
    filter(options).apply(&mut listing);
    if options.json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&listing)?));
    }
    macvtaps(&listing, options)?;
    if listing.lower_devices.is_empty() {
        return Ok(());
    }
    print("\n")?;
    let mut table = Table::new(&LOWER_COLUMNS);
    for lower in &listing.lower_devices {
        table.row(&lower_row(lower));
    }
    table.print(options.wide)
}

/// The filter that the command line gives.
pub fn filter(options: &cli::List) -> Filter {
    Filter {
        names: options.names.clone(),
        pod: options.pod.clone(),
        lower_device: options.lower_device.clone(),
    }
}

fn macvtaps(listing: &Listing, options: &cli::List) -> Result<()> {
    let mut table = Table::new(&COLUMNS);
    for macvtap in &listing.macvtaps {
        table.row(&row(macvtap));
    }
    if !table.is_empty() {
        table.print(options.wide)?;
    }
    for note in notes(listing) {
        print_sentence(&note)?;
    }
    Ok(())
}

/// What the table does not show, and why.
pub fn notes(listing: &Listing) -> Vec<String> {
    let mut notes = Vec::new();
    // The taps are those of all network namespaces.
    if !listing.unseen_taps.is_empty() {
        let taps = abridged(&listing.unseen_taps);
        notes.push(format!(
            "Taps in network namespaces that are not visible from here: {taps}"
        ));
    } else if listing.macvtaps.is_empty() {
        notes.push("No macvtaps found.".to_owned());
    }
    if let Some(reason) = &listing.closed_reason {
        let namespaces = count(listing.closed_namespaces, "network namespace");
        notes.push(format!("{namespaces} could not be read: {reason}"));
    }
    if listing.in_container && !listing.macvtaps.is_empty() {
        notes.push(
            "This container does not see the node's processes and /dev. To see OPEN BY and OWNER, \
             run on the node: macvtap link list"
                .to_owned(),
        );
    }
    notes
}

fn abridged(taps: &[u32]) -> String {
    let (shown, rest) = taps.split_at(taps.len().min(MAX_UNSEEN));
    let shown: Vec<String> = shown.iter().map(u32::to_string).collect();
    let more = match rest.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    shown.join(", ") + &more
}

/// The cells of a macvtap.
pub fn row(macvtap: &MacvtapEntry) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let named = |text: String| or_none(Some(text).filter(|text| !text.is_empty()));
    let owner = macvtap
        .owner
        .map(|owner| format!("{}:{}", owner.user, owner.group));
    let tap_only = || macvtap.tap_only.then(|| "(tap only)".to_owned());
    let pod = macvtap.pod.clone().or_else(tap_only);
    vec![
        macvtap.tap.to_string(),
        or_none(pod),
        macvtap.interface.clone(),
        or_none(macvtap.mac.clone()),
        if macvtap.up { "up" } else { "down" }.to_owned(),
        macvtap.shown_mode(),
        or_none(macvtap.lower_device.clone()),
        named(macvtap.netns.clone()),
        named(macvtap.holders.join(", ")),
        or_none(owner),
        macvtap.mtu.to_string(),
        bytes(macvtap.received_bytes),
        bytes(macvtap.sent_bytes),
        or_none(macvtap.shown_security()),
        or_none(macvtap.ingress.as_ref().map(rate)),
        or_none(macvtap.egress.as_ref().map(rate)),
        named(macvtap.shown_drops()),
        or_none(macvtap.container.clone()),
    ]
}

fn rate(entry: &RateEntry) -> String {
    format!("{}it/s", bytes(entry.rate).replace('B', "b"))
}

/// The cells of a lower device.
pub fn lower_row(lower: &LowerDeviceEntry) -> Vec<String> {
    let eligible = match &lower.reason {
        None if lower.up && !lower.carrier => "yes, without carrier".to_owned(),
        None => "yes".to_owned(),
        Some(reason) => format!("no: {reason}"),
    };
    vec![
        lower.name.clone(),
        lower.macvtaps.to_string(),
        match lower.resources.join(", ") {
            none if none.is_empty() => "-".to_owned(),
            names => names,
        },
        lower.mtu.to_string(),
        eligible,
    ]
}
