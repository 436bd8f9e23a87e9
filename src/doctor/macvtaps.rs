//! Whether the macvtaps, their taps and their lower devices are as they should be.

use std::collections::BTreeMap;

use super::finding::Finding;
use crate::{
    host::{char_device::Found, container, devnode, tap},
    macvtap::inventory::{Inventory, Macvtap},
    types::{device_id::is_tap_number, device_number::DeviceNumber, plural::count},
};

/// Whether lower devices with macvtaps are eligible; not those that are `named` already.
pub fn lower_devices(inventory: &Inventory, named: &[String]) -> Vec<Finding> {
    let used = inventory
        .lower_devices
        .iter()
        .filter(|lower| lower.macvtaps > 0 && !named.contains(&lower.link.name));
    used.map(|lower| {
        let name = &lower.link.name;
        let macvtaps = count(lower.macvtaps, "macvtap");
        match &lower.ineligible {
            None if !lower.link.carrier => Finding::note(
                "lower device",
                format!("{name} has {macvtaps} and no carrier: look at the cable and the switch"),
            ),
            None => Finding::ok("lower device", format!("{name} has {macvtaps}")),
            Some(reason) => Finding::fail(
                "lower device",
                format!("{name} has {macvtaps} but {}", reason.reason),
                format!("ip link set {name} up, or remove it from its bridge or bond"),
            ),
        }
    })
    .collect()
}

pub fn macvtaps(inventory: &Inventory) -> Vec<Finding> {
    let mut findings = Vec::new();
    for macvtap in &inventory.macvtaps {
        let number = macvtap.link.index;
        if is_tap_number(number) {
            let devices = inventory.taps.get(&number);
            findings.extend(node(macvtap, devices.map_or(&[], Vec::as_slice)));
            findings.extend(tap_only(macvtap));
        }
    }
    findings.extend(shared_names(&inventory.taps));
    findings.extend(inventory.macvtaps.iter().filter_map(other_mac));
    findings.extend(same_mac(&inventory.macvtaps));
    findings.extend(stale_nodes());
    if findings.iter().all(Finding::is_ok) {
        let text = format!(
            "{}, no problems",
            count(inventory.macvtaps.len(), "macvtap")
        );
        findings.push(Finding::ok("macvtaps", text));
    }
    if !inventory.unseen.is_empty() {
        let taps = count(inventory.unseen.len(), "tap");
        let text = format!("{taps} in network namespaces that are not visible from here");
        findings.push(Finding::note("macvtaps", text));
    }
    findings
}

/// Whether an allocated tap's node is that of its macvtap, and its owner may open it.
fn node(macvtap: &Macvtap, devices: &[DeviceNumber]) -> Option<Finding> {
    let number = macvtap.link.index;
    let path = tap::path(number);
    let path = path.display();
    let again = "delete the pod: its replacement gets a new tap";
    let fail = |text: String, fix: String| Some(Finding::fail("tap", text, fix));
    match (macvtap.node?, devices) {
        // It went after it had been listed.
        (_, []) => None,
        (Found::Device(found, owner, mode), [device]) if found == *device => {
            (mode & 0o600 != 0o600).then(|| {
                Finding::fail(
                    "tap",
                    format!(
                        "user {} cannot open {path}: its mode is {mode:04o}",
                        owner.user
                    ),
                    format!("chmod 600 {path}"),
                )
            })
        }
        (Found::Device(found, ..), [device]) => fail(
            format!("{path} is device {found} instead of {device}: a VM would use another macvtap"),
            format!("rm {path}; then {again}"),
        ),
        (Found::Foreign, _) => fail(
            format!("{path} is not a character device"),
            format!("rm -r {path}; then {again}"),
        ),
        (Found::Nothing, [_]) if container::is_ours() => None,
        (Found::Nothing, [_]) => fail(format!("{path} is missing"), again.to_owned()),
        (_, several) => fail(
            format!(
                "{} have tap number {number}",
                count(several.len(), "macvtap")
            ),
            again.to_owned(),
        ),
    }
}

/// The taps of others that have one name: the kernel numbers them in each network namespace.
fn shared_names(taps: &BTreeMap<u32, Vec<DeviceNumber>>) -> Vec<Finding> {
    let others = taps.iter().filter(|(number, _)| !is_tap_number(**number));
    let shared = others.filter(|(_, devices)| devices.len() > 1);
    shared
        .map(|(number, devices)| {
            let path = tap::path(*number);
            let path = path.display();
            let devices: Vec<String> = devices.iter().map(ToString::to_string).collect();
            let text = format!(
                "taps {} have the name {path}, which opens one of them",
                devices.join(" and ")
            );
            Finding::fail(
                "tap",
                text,
                "delete all but one, and create them with other indexes",
            )
        })
        .collect()
}

fn tap_only(macvtap: &Macvtap) -> Option<Finding> {
    macvtap.is_tap_only().then(|| {
        let name = &macvtap.link.name;
        let text = format!("{name} is in the node's network namespace: its pod uses the tap alone");
        Finding::note("macvtap", text)
    })
}

/// Port security is for the MAC that a macvtap had at ADD.
fn other_mac(macvtap: &Macvtap) -> Option<Finding> {
    let security = macvtap.limits.security.as_ref()?;
    let mac = macvtap.link.mac.filter(|mac| !security.allows(*mac))?;
    let tap = macvtap.link.index;
    let text =
        format!("tap {tap} has MAC {mac}, and drops its guest's frames: security is {security}");
    let fix = "give ADD the MAC, or list it in security.mac; then delete the pod";
    Some(Finding::fail("security", text, fix))
}

/// The kernel allows a MAC once on a lower device that is up; a second macvtap with it is
/// down, or about to fail.
fn same_mac(macvtaps: &[Macvtap]) -> Vec<Finding> {
    let mut taps: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for macvtap in macvtaps {
        if let (Some(lower), Some(mac)) = (&macvtap.lower, macvtap.link.mac) {
            let tap = macvtap.link.index.to_string();
            taps.entry((lower, mac)).or_default().push(tap);
        }
    }
    let shared = taps.into_iter().filter(|(_, taps)| taps.len() > 1);
    shared
        .map(|((lower, mac), taps)| {
            let taps = taps.join(" and ");
            let text = format!("taps {taps} on {lower} have the same MAC, {mac}");
            Finding::fail("MAC", text, "change the MAC of one of the VMs")
        })
        .collect()
}

/// Nodes that would open any tap that gets their device number next. The taps are listed after
/// the nodes: that of a new macvtap is not stale.
fn stale_nodes() -> Vec<Finding> {
    let (Ok(nodes), Ok(numbers)) = (devnode::numbers(), tap::numbers()) else {
        return Vec::new();
    };
    let stale = nodes
        .into_iter()
        .filter(|number| is_tap_number(*number) && !numbers.contains(number));
    stale
        .map(|number| {
            let path = tap::path(number);
            let path = path.display();
            let text = format!("{path} is a stale node: it has no macvtap");
            Finding::fail("tap", text, format!("rm -r {path}"))
        })
        .collect()
}
