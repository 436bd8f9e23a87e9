//! Which interface in a pod is an attachment's, for DEL: it must not take one of another network
//! that has the same name. Pure.

use serde_json::Value;

use super::{config, environment::Environment, result, version};
use crate::{
    learning,
    netlink::Link,
    types::{
        device_id::{DeviceId, TAPS, is_tap_number, original_link_name, standalone_taps},
        json::Fields,
        link_name::LinkName,
        mac::MacAddr,
        mode::Mode,
    },
};

/// What the configuration says the attachment is, and what ADD reported.
#[derive(Debug)]
pub struct Identity {
    /// Where its macvtap came from.
    pub source: Provenance,
    macs: Macs,
}

/// Where the macvtap came from.
#[derive(Debug, PartialEq, Eq)]
pub enum Provenance {
    /// The macvtap whose index is the tap of a device ID.
    Allocated(u32),
    /// A macvtap without a device plugin.
    Standalone(Standalone),
    /// One that the original made, and its name on the host.
    Original(String),
    /// Not clear: ADD fails with such a configuration, so that the interface may be another
    /// attachment's.
    Unclear(Unclear),
}

/// A macvtap without a device plugin.
#[derive(Debug, PartialEq, Eq)]
pub struct Standalone {
    /// The indexes of which it has one.
    taps: Vec<u32>,
    /// Its lower device.
    lower: LinkName,
    /// Its mode, if the configuration has a valid one.
    mode: Option<Mode>,
}

/// What shows which interface is that of an attachment whose device ID cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub struct Unclear {
    /// The indexes that it may have without a device ID.
    taps: Vec<u32>,
    /// A key has a wrong type, which it cannot have had when ADD succeeded.
    mistyped: bool,
    /// The runtime gives a result to compare with.
    has_result: bool,
}

/// The MAC that the interface has, by what is known of it.
#[derive(Clone, Copy, Debug, Default)]
struct Macs {
    /// The one that ADD, or a later plugin of the chain, reported.
    reported: Option<MacAddr>,
    /// The one that the configuration and the names of pod and network decide.
    expected: Option<MacAddr>,
    /// Whether an interface with another one than expected may be it all the same. ADD was perhaps
    /// asked for that in `CNI_ARGS`, which Multus does not repeat on DEL, and no result shows it.
    is_guess: bool,
}

impl Identity {
    /// Reads the configuration without judging it.
    pub fn of(json: &Value, environment: &Environment) -> Self {
        let source = Provenance::of(json, environment);
        let mode = match &source {
            Provenance::Standalone(standalone) => standalone.mode,
            _ => None,
        };
        let (args, ifname) = (&environment.args, &environment.ifname);
        let macs = Macs {
            reported: reported_mac(json, environment),
            expected: config::expected_mac(json, args, ifname, mode.unwrap_or_default()),
            is_guess: !reports_results(json),
        };
        Self { source, macs }
    }

    /// Whether `link`, the interface of that name in the pod, is the attachment's.
    ///
    /// `is_on` says whether it stands on the lower device of this name, and is asked only if nothing
    /// else decides. Macvtaps of the original have no index of their own; their lower device is
    /// `from_host`.
    pub fn is<E>(
        &self,
        link: &Link,
        is_on: impl FnOnce(&LinkName) -> Result<bool, E>,
        from_host: bool,
    ) -> Result<bool, E> {
        let index = link.index;
        match &self.source {
            Provenance::Allocated(tap) => Ok(index == *tap),
            Provenance::Standalone(standalone) if standalone.taps.contains(&index) => {
                standalone.is(link, is_on, self.macs)
            }
            Provenance::Standalone(_) => Ok(false),
            Provenance::Original(_) => Ok(!is_tap_number(index) && from_host),
            Provenance::Unclear(unclear) => Ok(unclear.is(link, self.macs)),
        }
    }

    /// The taps that it may have left nodes of.
    pub fn taps(&self) -> &[u32] {
        match &self.source {
            Provenance::Allocated(tap) => std::slice::from_ref(tap),
            Provenance::Standalone(Standalone { taps, .. })
            | Provenance::Unclear(Unclear { taps, .. }) => taps,
            Provenance::Original(_) => &[],
        }
    }
}

impl Provenance {
    fn of(json: &Value, environment: &Environment) -> Self {
        let unclear = || Self::Unclear(Unclear::of(json, environment));
        match config::device_id(json) {
            Some(id) if id.contains('@') => match id.parse::<DeviceId>() {
                Ok(device) => Self::Allocated(device.tap),
                Err(_) => unclear(),
            },
            Some(id) => Self::Original(original_link_name(id)),
            None => match config::lower_device(json) {
                Some(lower) => Self::Standalone(Standalone {
                    taps: taps(environment),
                    lower,
                    mode: config::standalone_mode(json),
                }),
                None => unclear(),
            },
        }
    }
}

impl Standalone {
    /// Whether a macvtap with one of its indexes is it, and not that of another network of the pod
    /// whose interface has the same name.
    fn is<E>(
        &self,
        link: &Link,
        is_on: impl FnOnce(&LinkName) -> Result<bool, E>,
        macs: Macs,
    ) -> Result<bool, E> {
        // Otherwise a later plugin may have set the former MAC again, as tuning does on DEL.
        if macs.is_reported(link) {
            return Ok(true);
        }
        // A parked port of a bridge is as it should be.
        let parked = self.mode == Some(Mode::Bridge) && learning::is_parked(link);
        let in_mode = self.mode.is_some() && (link.mode == self.mode || parked);
        Ok(in_mode && macs.may_be_of(link) && is_on(&self.lower)?)
    }
}

impl Unclear {
    fn of(json: &Value, environment: &Environment) -> Self {
        let mistyped = |value: &Value| !value.is_string();
        let value = |key| Fields::of(json).and_then(|fields| fields.value(key));
        let runtime = value("runtimeConfig").and_then(Fields::of);
        let runtime = runtime.and_then(|runtime| runtime.value("deviceID"));
        let keys = [runtime, value("deviceID"), value("lowerDevice")];
        Self {
            taps: taps(environment),
            mistyped: keys.into_iter().flatten().any(mistyped),
            has_result: value("prevResult").is_some(),
        }
    }

    fn is(&self, link: &Link, macs: Macs) -> bool {
        if !is_tap_number(link.index) {
            return false;
        }
        if macs.is_reported(link) {
            return true;
        }
        let may_be = if TAPS.contains(&link.index) {
            self.mistyped && !self.has_result
        } else {
            self.mistyped && self.taps.contains(&link.index)
        };
        may_be && macs.may_be_of(link)
    }
}

impl Macs {
    fn is_reported(self, link: &Link) -> bool {
        self.reported.is_some() && link.mac == self.reported
    }

    fn may_be_of(self, link: &Link) -> bool {
        self.is_guess || self.expected.is_none() || link.mac == self.expected
    }
}

/// Whether DEL is given what ADD reported: by versions from 0.4.0 on, unless ADD failed.
fn reports_results(json: &Value) -> bool {
    let configured = version::configured(json);
    configured.is_ok_and(|version| version::supported_since(version, "DEL", "0.4.0").is_ok())
}

/// The taps that ADD may have chosen without a device ID.
fn taps(environment: &Environment) -> Vec<u32> {
    let pod_uid = config::pod_uid(&environment.args);
    let seeds = [Some(&environment.container_id), pod_uid.as_ref()];
    let seeds = seeds.into_iter().flatten();
    let taps = seeds.flat_map(|seed| standalone_taps(seed, &environment.ifname));
    taps.collect()
}

/// The MAC that ADD, or a later plugin of the chain, reported for the interface.
fn reported_mac(json: &Value, environment: &Environment) -> Option<MacAddr> {
    let prev = Fields::of(json)?.value("prevResult")?;
    let interface = result::find(prev, &environment.ifname, &environment.netns)?;
    interface.get("mac")?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    /// Whether a macvtap in this mode and group is that of a network in bridge mode.
    fn is(mode: Mode, group: u32, on_lower: bool, macs: Macs) -> bool {
        let standalone = Standalone {
            taps: Vec::new(),
            lower: "eth0".parse().unwrap(),
            mode: Some(Mode::Bridge),
        };
        let link = Link {
            mac: Some(MAC),
            mode: Some(mode),
            group,
            ..Link::default()
        };
        let is_on = |_: &LinkName| Ok::<_, Infallible>(on_lower);
        standalone.is(&link, is_on, macs).unwrap()
    }

    #[test]
    fn a_standalone_macvtap_is_proved_by_its_mac_or_by_lower_device_and_mode() {
        let (bridge, vepa) = (Mode::Bridge, Mode::Vepa);
        let parked = learning::GROUP;
        for (mode, group, on_lower, reported, expected, ours) in [
            (bridge, 0, true, None, None, true),
            (bridge, 0, false, None, None, false),
            (vepa, 0, true, None, None, false),
            (vepa, parked, true, None, None, true),
            // Another network on the same lower device, in the same mode.
            (bridge, 0, true, None, Some(MAC), true),
            (bridge, 0, true, None, Some(OTHER), false),
            // Networks of one name have one MAC.
            (bridge, 0, false, None, Some(MAC), false),
            (vepa, 0, true, None, Some(MAC), false),
            // What ADD reported is it, also after a change of the configuration.
            (vepa, 0, false, Some(MAC), Some(OTHER), true),
            // The tuning plugin has set the former MAC again.
            (bridge, 0, true, Some(OTHER), Some(MAC), true),
            (bridge, 0, false, Some(OTHER), None, false),
        ] {
            let macs = Macs {
                reported,
                expected,
                is_guess: false,
            };
            let found = is(mode, group, on_lower, macs);
            assert_eq!(found, ours, "{mode} {group} {on_lower} {macs:?}");
        }
    }

    /// ADD may have been asked for another MAC, but lower device and mode are the network's.
    #[test]
    fn without_results_a_standalone_macvtap_may_have_another_mac_than_expected() {
        let macs = Macs {
            reported: None,
            expected: Some(OTHER),
            is_guess: true,
        };
        assert!(is(Mode::Bridge, 0, true, macs));
        assert!(!is(Mode::Bridge, 0, false, macs));
        assert!(!is(Mode::Vepa, 0, true, macs));
    }

    #[test]
    fn an_error_about_the_lower_device_does_not_matter_where_the_mac_decides() {
        let standalone = Standalone {
            taps: Vec::new(),
            lower: "eth0".parse().unwrap(),
            mode: None,
        };
        let link = Link {
            mac: Some(MAC),
            ..Link::default()
        };
        let macs = Macs {
            reported: Some(MAC),
            ..Macs::default()
        };
        let found = standalone.is(&link, |_| Err("no lower device"), macs);
        assert_eq!(found, Ok(true));
    }
}
