//! What `link list` prints as JSON, and `kubectl macvtap` reads. Keys are only ever added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    host::container,
    macvtap::{
        inventory::{Inventory, LowerUse, Macvtap},
        security::Description,
    },
    netlink::{Counter, Qdisc},
    types::{mode::Mode, owner, status::ResourceStatus},
};

/// The macvtaps and lower devices of a machine.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listing {
    /// The macvtaps, by the number of their tap.
    pub macvtaps: Vec<MacvtapEntry>,
    /// The lower devices, by their name.
    pub lower_devices: Vec<LowerDeviceEntry>,
    /// Numbers of taps whose network namespace could not be found.
    pub unseen_taps: Vec<u32>,
    /// The number of network namespaces that could not be entered.
    pub closed_namespaces: usize,
    /// Why the first of them could not be entered.
    #[serde(default)]
    pub closed_reason: Option<String>,
    /// Whether it is seen from the device plugin's container, which has neither the node's
    /// processes nor its `/dev`.
    #[serde(default)]
    pub in_container: bool,
}

/// A macvtap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MacvtapEntry {
    /// The number of its tap, which is its interface index.
    pub tap: u32,
    /// Its name.
    pub interface: String,
    /// Its MAC address.
    pub mac: Option<String>,
    /// The mode that it is configured to have.
    pub mode: Option<String>,
    /// Whether it is parked by learning.
    pub parked: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Its lower device, if that is in this network namespace.
    pub lower_device: Option<String>,
    /// Its network namespace: a name, or a process in it; empty for this one.
    pub netns: String,
    /// The pod's namespace and name.
    pub pod: Option<String>,
    /// The container of the pod that has its tap.
    #[serde(default)]
    pub container: Option<String>,
    /// Whether it is in this network namespace because its pod uses the tap alone.
    #[serde(default)]
    pub tap_only: bool,
    /// The owner of its tap.
    pub owner: Option<Owner>,
    /// The processes that have its tap open.
    pub holders: Vec<String>,
    /// Bytes that it received.
    pub received_bytes: u64,
    /// Frames that it received.
    pub received_packets: u64,
    /// Bytes that it sent.
    pub sent_bytes: u64,
    /// Frames that it sent.
    pub sent_packets: u64,
    /// The security that is in force for what its guest sends.
    #[serde(default)]
    pub security: Option<String>,
    /// The MAC addresses that security lets its guest use; any if none.
    #[serde(default)]
    pub security_macs: Vec<String>,
    /// Frames that security dropped, by reason.
    #[serde(default)]
    pub security_dropped: BTreeMap<String, u64>,
    /// The rate of what its guest receives.
    #[serde(default)]
    pub ingress: Option<RateEntry>,
    /// The rate of what its guest sends.
    #[serde(default)]
    pub egress: Option<RateEntry>,
}

impl MacvtapEntry {
    /// What tells it from all others of the machine: its network namespace and its number there.
    #[must_use]
    pub fn key(&self) -> (String, u32) {
        (self.netns.clone(), self.tap)
    }
}

/// A rate, and what it did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateEntry {
    /// Bits per second.
    pub rate: u64,
    /// Bytes that wait.
    pub waiting_bytes: u64,
    /// How often a frame had to wait.
    pub throttled: u64,
    /// Frames that found no room to wait.
    pub dropped_packets: u64,
}

/// The owner of a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Owner {
    /// The user's number.
    pub user: u32,
    /// The group's number.
    pub group: u32,
}

/// A lower device.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LowerDeviceEntry {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: Option<String>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Whether it has a carrier. Former versions do not say.
    #[serde(default = "has_carrier")]
    pub carrier: bool,
    /// The number of macvtaps on it.
    pub macvtaps: usize,
    /// Whether macvtaps can be created on it now.
    pub eligible: bool,
    /// Why not.
    pub reason: Option<String>,
    /// The resources of this node's device plugin that are on it.
    #[serde(default)]
    pub resources: Vec<String>,
}

fn has_carrier() -> bool {
    true
}

impl From<&Inventory> for Listing {
    fn from(inventory: &Inventory) -> Self {
        let closed = inventory.closed.as_ref();
        Self {
            macvtaps: inventory.macvtaps.iter().map(MacvtapEntry::from).collect(),
            lower_devices: inventory
                .lower_devices
                .iter()
                .map(LowerDeviceEntry::from)
                .collect(),
            unseen_taps: inventory.unseen.clone(),
            closed_namespaces: closed.map_or(0, |(count, _)| *count),
            closed_reason: closed.map(|(_, reason)| reason.clone()),
            in_container: container::is_ours(),
        }
    }
}

impl From<&Macvtap> for MacvtapEntry {
    fn from(macvtap: &Macvtap) -> Self {
        let link = &macvtap.link;
        let security = macvtap.limits.security.as_ref();
        let parked = macvtap.is_parked();
        let mode = if parked {
            Some(Mode::Bridge)
        } else {
            link.mode
        };
        Self {
            tap: link.index,
            interface: link.name.clone(),
            mac: link.mac.map(|mac| mac.to_string()),
            mode: mode.map(|mode| mode.to_string()),
            parked,
            mtu: link.mtu,
            up: link.up,
            lower_device: macvtap.lower.clone(),
            netns: macvtap.netns.clone(),
            pod: macvtap.pod.clone(),
            container: macvtap.container.clone(),
            tap_only: macvtap.is_tap_only(),
            owner: macvtap.owner().map(Owner::from),
            holders: macvtap.holders.clone(),
            received_bytes: link.stats.received_bytes,
            received_packets: link.stats.received_frames,
            sent_bytes: link.stats.sent_bytes,
            sent_packets: link.stats.sent_frames,
            security: security.map(|security| security.name.clone()),
            security_macs: security.map(mac_texts).unwrap_or_default(),
            security_dropped: drops(&macvtap.limits.dropped),
            ingress: macvtap.limits.ingress.as_ref().map(RateEntry::from),
            egress: macvtap.limits.egress.as_ref().map(RateEntry::from),
        }
    }
}

fn drops(counters: &[Counter]) -> BTreeMap<String, u64> {
    let drops = counters.iter();
    drops
        .map(|counter| (counter.name.clone(), counter.frames))
        .collect()
}

fn mac_texts(security: &Description) -> Vec<String> {
    security.macs.iter().map(ToString::to_string).collect()
}

impl From<owner::Owner> for Owner {
    fn from(owner::Owner { user, group }: owner::Owner) -> Self {
        Self { user, group }
    }
}

impl From<&Qdisc> for RateEntry {
    fn from(qdisc: &Qdisc) -> Self {
        Self {
            rate: qdisc.tbf.map_or(0, |tbf| 8 * tbf.rate),
            waiting_bytes: qdisc.backlog_bytes.into(),
            throttled: qdisc.throttled.into(),
            dropped_packets: qdisc.dropped_frames.into(),
        }
    }
}

impl MacvtapEntry {
    /// Whether both are the same but for their traffic.
    pub fn is_alike(&self, other: &Self) -> bool {
        let other = Self {
            received_bytes: self.received_bytes,
            received_packets: self.received_packets,
            sent_bytes: self.sent_bytes,
            sent_packets: self.sent_packets,
            security_dropped: self.security_dropped.clone(),
            ingress: other
                .ingress
                .as_ref()
                .map(|rate| rate.counted_as(self.ingress.as_ref())),
            egress: other
                .egress
                .as_ref()
                .map(|rate| rate.counted_as(self.egress.as_ref())),
            ..other.clone()
        };
        *self == other
    }

    /// The security, with the MACs that it is for if its own is none of them any more.
    pub fn shown_security(&self) -> Option<String> {
        let name = self.security.clone()?;
        let own = |mac| self.security_macs.contains(mac);
        let is_own = self.security_macs.is_empty() || self.mac.as_ref().is_none_or(own);
        let macs = self.security_macs.join(", ");
        Some(if is_own {
            name
        } else {
            format!("{name} (for {macs})")
        })
    }

    /// What was dropped, by reason: those of security, then those of the rates.
    pub fn shown_drops(&self) -> String {
        let by_security = self.security_dropped.iter();
        let by_security = by_security.map(|(reason, count)| (reason.replace('_', " "), *count));
        let by_rate = [("rate in", &self.ingress), ("rate out", &self.egress)];
        let by_rate = by_rate.into_iter().filter_map(|(name, rate)| {
            let rate = rate.as_ref()?;
            Some((name.to_owned(), rate.dropped_packets))
        });
        let drops = by_security.chain(by_rate).filter(|(_, count)| *count > 0);
        let drops: Vec<String> = drops
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        drops.join(", ")
    }

    /// The mode that it is configured to have, and whether it is parked, in words.
    pub fn shown_mode(&self) -> String {
        match &self.mode {
            Some(mode) if self.parked => format!("{mode} (parked)"),
            Some(mode) => mode.clone(),
            None => "unknown".to_owned(),
        }
    }
}

impl From<&LowerUse> for LowerDeviceEntry {
    fn from(lower: &LowerUse) -> Self {
        Self {
            name: lower.link.name.clone(),
            mac: lower.link.mac.map(|mac| mac.to_string()),
            mtu: lower.link.mtu,
            up: lower.link.up,
            carrier: lower.link.carrier,
            macvtaps: lower.macvtaps,
            eligible: lower.ineligible.is_none(),
            reason: lower
                .ineligible
                .as_ref()
                .map(|found| found.reason.to_string()),
            resources: Vec::new(),
        }
    }
}

impl RateEntry {
    /// The rate, with the numbers of another one.
    fn counted_as(&self, other: Option<&Self>) -> Self {
        Self {
            rate: self.rate,
            ..other.cloned().unwrap_or_default()
        }
    }
}

impl Listing {
    /// Adds the resources of the device plugin to their lower devices.
    pub fn add_resources(&mut self, resources: &[ResourceStatus]) {
        for lower in &mut self.lower_devices {
            let on_it = resources
                .iter()
                .filter(|resource| resource.lower_device == lower.name);
            lower.resources = on_it.map(|resource| resource.name.clone()).collect();
        }
    }
}

/// Which macvtaps are listed: those for which everything that is given holds.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Names of interfaces or numbers of taps, one of which it has.
    pub names: Vec<String>,
    /// A pod's name, or its namespace and name with a slash between.
    pub pod: Option<String>,
    /// A lower device.
    pub lower_device: Option<String>,
}

impl Filter {
    /// Whether a macvtap is listed.
    pub fn accepts(&self, macvtap: &MacvtapEntry) -> bool {
        let named = |name: &String| *name == macvtap.interface || *name == macvtap.tap.to_string();
        let in_pod = |wanted: &String| macvtap.pod.as_ref().is_some_and(|pod| is_pod(pod, wanted));
        (self.names.is_empty() || self.names.iter().any(named))
            && self.pod.as_ref().is_none_or(in_pod)
            && (self.lower_device.is_none() || self.lower_device == macvtap.lower_device)
    }

    /// Leaves what is accepted in a listing. Of taps that are not seen only the number is known:
    /// they may be on the lower device.
    pub fn apply(&self, listing: &mut Listing) {
        listing.macvtaps.retain(|macvtap| self.accepts(macvtap));
        if let Some(name) = &self.lower_device {
            listing.lower_devices.retain(|lower| lower.name == *name);
        } else if !self.names.is_empty() || self.pod.is_some() {
            listing.lower_devices.clear();
        }
        let named = |tap: &u32| self.names.is_empty() || self.names.contains(&tap.to_string());
        listing
            .unseen_taps
            .retain(|tap| self.pod.is_none() && named(tap));
    }
}

fn is_pod(pod: &str, wanted: &str) -> bool {
    let name = pod.rsplit_once('/').map(|(_, name)| name);
    pod == wanted || name == Some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn macvtap(tap: u32, pod: Option<&str>, lower: &str) -> MacvtapEntry {
        MacvtapEntry {
            tap,
            interface: "net1".to_owned(),
            lower_device: Some(lower.to_owned()),
            pod: pod.map(str::to_owned),
            ..MacvtapEntry::default()
        }
    }

    #[test]
    fn filters_by_name_pod_and_lower_device() {
        let all = [
            macvtap(1, Some("vms/a"), "eth0"),
            macvtap(2, Some("other/a"), "eth1"),
            macvtap(3, None, "eth1"),
        ];
        let taps = |names: &[&str], pod: Option<&str>, lower: Option<&str>| -> Vec<u32> {
            let filter = Filter {
                names: names.iter().map(|&name| name.to_owned()).collect(),
                pod: pod.map(str::to_owned),
                lower_device: lower.map(str::to_owned),
            };
            let accepted = all.iter().filter(|macvtap| filter.accepts(macvtap));
            accepted.map(|macvtap| macvtap.tap).collect()
        };
        assert_eq!(taps(&[], None, None), [1, 2, 3]);
        assert_eq!(taps(&["net1"], None, None), [1, 2, 3]);
        assert_eq!(taps(&["1", "3"], None, None), [1, 3]);
        assert_eq!(taps(&["net2"], None, None), [0; 0]);
        assert_eq!(taps(&[], Some("a"), None), [1, 2]);
        assert_eq!(taps(&[], Some("vms/a"), None), [1]);
        assert_eq!(taps(&[], Some("s/a"), None), [0; 0]);
        assert_eq!(taps(&[], None, Some("eth1")), [2, 3]);
        assert_eq!(taps(&["2"], Some("a"), Some("eth1")), [2]);
    }
}
