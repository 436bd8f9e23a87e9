//! What a macvtap can be set to beside its mode. Pure.

use serde_json::Value;

use super::{
    json::{Fields, Invalid},
    mac::MacAddr,
};

/// Frames in a tap's ring, which is allocated at once, and of those that wait on a lower device:
/// there the highest number of all its ports counts, also for other pods.
pub const MAX_QUEUE_LENGTH: u64 = 65_536;
/// `MAX_TAP_QUEUES` of the kernel.
pub const MAX_QUEUES: u64 = 256;

/// Frames that wait on a lower device to be copied to its ports, in the kernel's default.
const DEFAULT_CUTOFF: i32 = 1;

/// Options of a macvtap. What is none is the kernel's choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortOptions {
    /// Frames in the transmit queue, which is also the length of the tap's ring.
    pub queue_length: Option<u32>,
    /// Transmit and receive queues.
    pub queues: Option<u32>,
    /// Broadcast frames that wait on the lower device for all its ports; the highest number of
    /// them counts (`IFLA_MACVLAN_BC_QUEUE_LEN`).
    pub broadcast_queue_length: Option<u32>,
    /// Up to how many ports a multicast frame is for, if it does not wait; -1 if none waits. It is
    /// one number for the lower device (`IFLA_MACVLAN_BC_CUTOFF`).
    pub broadcast_cutoff: Option<i32>,
    /// The addresses that a port in source mode receives from.
    pub allowed_sources: Vec<MacAddr>,
}

/// [`PortOptions::NONE`], to be borrowed.
pub static NO_OPTIONS: PortOptions = PortOptions::NONE;

impl PortOptions {
    /// Options that leave everything to the kernel.
    pub const NONE: Self = Self {
        queue_length: None,
        queues: None,
        broadcast_queue_length: None,
        broadcast_cutoff: None,
        allowed_sources: Vec::new(),
    };

    /// The first option that a macvtap with the options `found` has not; none if it has all of
    /// them.
    #[must_use]
    pub fn difference(&self, found: &Self) -> Option<String> {
        let cutoff = Some(found.broadcast_cutoff.unwrap_or(DEFAULT_CUTOFF));
        let numbers = [
            (
                "txQueueLen",
                as_i64(self.queue_length),
                as_i64(found.queue_length),
            ),
            ("queues", as_i64(self.queues), as_i64(found.queues)),
            (
                "bcQueueLen",
                as_i64(self.broadcast_queue_length),
                as_i64(found.broadcast_queue_length),
            ),
            (
                "broadcastCutoff",
                self.broadcast_cutoff.map(i64::from),
                cutoff.map(i64::from),
            ),
        ];
        let differs = numbers.iter().find_map(|(key, wanted, found)| {
            let wanted = wanted.filter(|_| wanted != found)?;
            let found = found.map_or_else(|| "unknown".to_owned(), |found| found.to_string());
            Some(format!("{key} is {found}, not {wanted}"))
        });
        let sources = || {
            let same = is_same(&self.allowed_sources, &found.allowed_sources);
            let found = &found.allowed_sources;
            (!same).then(|| format!("allowedSources are {}", names(found)))
        };
        differs.or_else(sources)
    }
}

/// The key `txQueueLen`.
pub fn queue_length(fields: &Fields<'_>) -> Result<Option<u32>, Invalid> {
    number(fields, "txQueueLen", (1, MAX_QUEUE_LENGTH))
}

/// The key `queues`.
pub fn queues(fields: &Fields<'_>) -> Result<Option<u32>, Invalid> {
    number(fields, "queues", (1, MAX_QUEUES))
}

/// The key `bcQueueLen`.
pub fn broadcast_queue_length(fields: &Fields<'_>) -> Result<Option<u32>, Invalid> {
    number(fields, "bcQueueLen", (0, MAX_QUEUE_LENGTH))
}

/// The key `broadcastCutoff`.
pub fn broadcast_cutoff(fields: &Fields<'_>) -> Result<Option<i32>, Invalid> {
    let Some(number) = fields.integer("broadcastCutoff")? else {
        return Ok(None);
    };
    let within = i32::try_from(number).ok().filter(|number| *number >= -1);
    let wanted = format!("a whole number from -1 to {}", i32::MAX);
    let refused = || Invalid::new("broadcastCutoff", &number.into(), &wanted);
    within.ok_or_else(refused).map(Some)
}

/// The key `allowedSources`, which has up to `limit` addresses; in their order, each once.
pub fn sources(fields: &Fields<'_>, limit: usize) -> Result<Option<Vec<MacAddr>>, Invalid> {
    let Some(value) = fields.value("allowedSources") else {
        return Ok(None);
    };
    let wanted = format!("a list of up to {limit} MAC addresses, none of them a multicast one");
    let refused = || Invalid::new("allowedSources", value, &wanted);
    let mac = |value: &Value| {
        let mac: MacAddr = value.as_str()?.parse().ok()?;
        mac.is_assignable().then_some(mac)
    };
    let list = value.as_array();
    let list = list.filter(|list| (1..=limit).contains(&list.len()));
    let macs: Option<Vec<MacAddr>> = list.and_then(|list| list.iter().map(mac).collect());
    let mut macs = macs.ok_or_else(refused)?;
    macs.sort_unstable();
    macs.dedup();
    Ok(Some(macs))
}

/// A whole number within bounds.
pub fn number(
    fields: &Fields<'_>,
    key: &str,
    (lowest, highest): (u64, u64),
) -> Result<Option<u32>, Invalid> {
    let Some(number) = fields.integer(key)? else {
        return Ok(None);
    };
    let within = u64::try_from(number).ok();
    let within = within.filter(|number| (lowest..=highest).contains(number));
    let within = within.and_then(|number| u32::try_from(number).ok());
    let wanted = format!("a whole number from {lowest} to {highest}");
    let refused = || Invalid::new(key, &number.into(), &wanted);
    within.ok_or_else(refused).map(Some)
}

fn as_i64(number: Option<u32>) -> Option<i64> {
    number.map(i64::from)
}

fn is_same(some: &[MacAddr], others: &[MacAddr]) -> bool {
    some.len() == others.len() && some.iter().all(|mac| others.contains(mac))
}

fn names(macs: &[MacAddr]) -> String {
    let names: Vec<String> = macs.iter().map(MacAddr::to_string).collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_may_be_anything() {
        let found = PortOptions {
            queue_length: Some(1000),
            queues: Some(1),
            broadcast_queue_length: Some(1000),
            ..PortOptions::NONE
        };
        assert_eq!(PortOptions::NONE.difference(&found), None);
        assert_eq!(found.difference(&found), None);
    }

    #[test]
    fn names_the_first_difference() {
        let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
        let none = || PortOptions::NONE;
        #[rustfmt::skip]
        let table = [
            (PortOptions { queue_length: Some(7), ..none() }, "txQueueLen is unknown, not 7"),
            (PortOptions { queues: Some(4), ..none() }, "queues is unknown, not 4"),
            (PortOptions { broadcast_queue_length: Some(9), ..none() },
                "bcQueueLen is unknown, not 9"),
            (PortOptions { broadcast_cutoff: Some(-1), ..none() },
                "broadcastCutoff is 1, not -1"),
            (PortOptions { allowed_sources: vec![mac(1)], ..none() }, "allowedSources are none"),
        ];
        for (wanted, expected) in table {
            let difference = wanted.difference(&PortOptions::NONE);
            assert_eq!(difference.as_deref(), Some(expected));
        }
        let of = |macs: &[u8]| PortOptions {
            allowed_sources: macs.iter().copied().map(mac).collect(),
            ..PortOptions::NONE
        };
        assert_eq!(of(&[1, 2]).difference(&of(&[2, 1])), None);
        let difference = of(&[1]).difference(&of(&[2, 1])).unwrap();
        assert!(difference.contains("00:02, 02:"), "{difference}");
        let kernel_default = PortOptions {
            broadcast_cutoff: Some(1),
            ..PortOptions::NONE
        };
        assert_eq!(kernel_default.difference(&PortOptions::NONE), None);
    }
}
