//! The device ID: it carries the whole allocation, so that nothing has to be remembered.
//!
//! ```text
//! <resource>Mvp<slot>@<lower device>:<mode><options>:<tap>   dataplaneMvp7@eth0:bridge:16777301
//! ```
//!
//! Most resources have no options; [`super::resource_options`] says how they are written.
//!
//! The device plugin makes it, the kubelet keeps it in its checkpoint, Multus
//! hands it to the CNI plugin. The part before `@` is the ID of
//! kubevirt/macvtap-cni, which is still understood on its own.

use std::{collections::BTreeSet, fmt, ops::Range, str::FromStr};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use twox_hash::XxHash64;

use super::{link_name::LinkName, mode::Mode, resource_options::ResourceOptions};

/// The namespace of the resources' names.
pub const NAMESPACE: &str = "macvtap.network.kubevirt.io";

/// The tap numbers of device IDs. They are far above the interface
/// indexes that the kernel hands out by itself, hence free in every pod.
pub const TAPS: Range<u32> = 1 << 24..1 << 25;

/// The number of slots that a resource has at most.
pub const MAX_SLOTS: u32 = 16_384;

/// The tap numbers of attachments without a device plugin: a range of their own,
/// so that they never take an allocated one.
pub const STANDALONE_TAPS: Range<u32> = 1 << 25..1 << 26;

/// Whether a macvtap with this index, which is the number of its tap, can be this program's.
#[must_use]
pub fn is_tap_number(index: u32) -> bool {
    TAPS.contains(&index) || STANDALONE_TAPS.contains(&index)
}

/// The tap numbers of macvtaps that are made as kubevirt/macvtap-cni makes them. The kernel
/// chooses lower ones there, which may be taken in the pod.
const ORIGINAL_TAPS: Range<u32> = 1 << 26..1 << 27;

/// Whether this program makes taps with this number, for a device ID of its own, of
/// kubevirt/macvtap-cni, or for none.
#[must_use]
pub fn is_made_here(number: u32) -> bool {
    is_tap_number(number) || ORIGINAL_TAPS.contains(&number)
}

/// What a device ID says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceId {
    /// The resource's name, without `macvtap.network.kubevirt.io/`.
    pub resource: String,
    /// The place in the resource's list.
    pub slot: u32,
    /// The name of the interface on the node that the macvtap stands on.
    pub lower: LinkName,
    /// The mode of the macvtap.
    pub mode: Mode,
    /// What else it is set to.
    pub options: ResourceOptions,
    /// N of `/dev/tapN`, which is the interface index as well. In [`TAPS`].
    pub tap: u32,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            resource,
            slot,
            lower,
            mode,
            options,
            tap,
        } = self;
        write!(f, "{resource}Mvp{slot}@{lower}:{mode}{options}:{tap}")
    }
}

impl DeviceId {
    /// The same allocation without what rides along: the tap does not depend on it, nor does what
    /// the device plugin makes for the tap alone.
    #[must_use]
    pub fn without_options(&self) -> Self {
        Self {
            options: ResourceOptions::NONE,
            ..self.clone()
        }
    }

    /// Whether two IDs are of one device. A resource's options may have changed in between.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.without_options() == other.without_options()
    }
}

/// Reads what [`fmt::Display`] writes, and nothing else. The first `@` and the last
/// two `:` are the borders: a resource's name holds neither, an interface's
/// name may hold `@`.
impl FromStr for DeviceId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).with_context(|| {
            format!(
                "malformed device ID {text:?}; \
                 the form is <resource>Mvp<slot>@<lower device>:<mode><options>:<tap>"
            )
        })
    }
}

fn parse(text: &str) -> Result<DeviceId> {
    let (original, allocation) = text.split_once('@').context("there is no @")?;
    let (resource, slot) = original.rsplit_once("Mvp").context("there is no Mvp")?;
    ensure!(!resource.is_empty(), "the resource is empty");
    let mut parts = allocation.rsplitn(3, ':');
    let (Some(tap), Some(mode), Some(lower)) = (parts.next(), parts.next(), parts.next()) else {
        bail!("after the @ there are not three parts");
    };
    let (mode, options) = mode.split_at(mode.find('+').unwrap_or(mode.len()));
    let tap = decimal(tap).context("the tap")?;
    ensure!(
        TAPS.contains(&tap),
        "tap {tap} is not in {}..{}",
        TAPS.start,
        TAPS.end
    );
    Ok(DeviceId {
        resource: resource.to_owned(),
        slot: decimal(slot).context("the slot")?,
        lower: lower.parse().context("the lower device")?,
        mode: mode.parse()?,
        options: options.parse()?,
        tap,
    })
}

/// Reads a number in the only way in which this program writes one: no sign, no leading zero.
fn decimal(text: &str) -> Result<u32> {
    text.parse()
        .ok()
        .filter(|number: &u32| number.to_string() == text)
        .ok_or_else(|| anyhow!("{text:?} is not a decimal number"))
}

/// The name under which kubevirt/macvtap-cni has the macvtap of a device ID
/// wait on the host: `mvt` and 12 hexadecimal digits of the ID's hash.
#[must_use]
pub fn original_link_name(id: &str) -> String {
    format!("mvt{}", short_hash(id))
}

/// The low 48 bits of a text's XXH64, as 12 hexadecimal digits.
#[must_use]
pub fn short_hash(text: &str) -> String {
    let hash = XxHash64::oneshot(0, text.as_bytes()) & 0xffff_ffff_ffff;
    format!("{hash:012x}")
}

/// Whether a text is a device ID of kubevirt/macvtap-cni, `<resource>Mvp<number>`.
#[must_use]
pub fn is_original(id: &str) -> bool {
    let parts = id.rsplit_once("Mvp");
    parts.is_some_and(|(resource, slot)| !resource.is_empty() && decimal(slot).is_ok())
}

/// How many tap numbers are tried for an attachment without a device plugin.
pub const STANDALONE_ATTEMPTS: u32 = 16;

/// The tap numbers for an attachment without a device plugin, in the order in which they are
/// tried: the same ones for the same container and interface.
pub fn standalone_taps(container_id: &str, ifname: &str) -> impl Iterator<Item = u32> + use<> {
    let hash = XxHash64::oneshot(0, format!("{container_id}\0{ifname}").as_bytes());
    (0..STANDALONE_ATTEMPTS)
        .map(move |attempt| place(hash.wrapping_add(attempt.into()), &STANDALONE_TAPS))
}

/// The tap numbers for a device of kubevirt/macvtap-cni, in the order in which they are tried.
pub fn original_taps(id: &str) -> impl Iterator<Item = u32> + use<> {
    let hash = XxHash64::oneshot(0, id.as_bytes());
    (0..STANDALONE_ATTEMPTS)
        .map(move |attempt| place(hash.wrapping_add(attempt.into()), &ORIGINAL_TAPS))
}

/// Where a hash falls in a range whose length is a power of two below 2^32.
fn place(hash: u64, range: &Range<u32>) -> u32 {
    let offset = hash % u64::from(range.end - range.start);
    range.start + u32::try_from(offset).unwrap_or_default()
}

/// What the devices of a resource have in common. All of it but the options, and the slot, is hashed
/// into the tap number: a tap belongs to one device ID alone, whatever its options.
#[derive(Clone, Copy, Debug)]
pub struct Devices<'a> {
    /// What keeps the node apart from others on the same kernel: tap names are machine-wide.
    pub node: &'a str,
    /// The resource's name.
    pub resource: &'a str,
    /// The lower device.
    pub lower: &'a LinkName,
    /// The mode.
    pub mode: Mode,
    /// What else they are set to.
    pub options: &'a ResourceOptions,
}

impl<'a> Devices<'a> {
    /// The devices from slot 0 on, always the same. A slot whose tap is in `taken` is skipped;
    /// the taps of those returned are added to it.
    pub fn iter(self, taken: &'a mut BTreeSet<u32>) -> impl Iterator<Item = DeviceId> + 'a {
        let all = (0..=u32::MAX).map(move |slot| self.device(slot));
        all.filter(|device| taken.insert(device.tap))
    }

    /// The devices with a tap that is `wanted` among the first `slots`.
    pub fn with_taps(
        self,
        wanted: impl Fn(u32) -> bool,
        slots: u32,
    ) -> impl Iterator<Item = DeviceId> {
        let slots = (0..slots).filter(move |slot| wanted(self.tap(*slot)));
        slots.map(move |slot| self.device(slot))
    }

    fn device(self, slot: u32) -> DeviceId {
        DeviceId {
            resource: self.resource.to_owned(),
            slot,
            lower: self.lower.clone(),
            mode: self.mode,
            options: self.options.clone(),
            tap: self.tap(slot),
        }
    }

    fn tap(self, slot: u32) -> u32 {
        let Self {
            node,
            resource,
            lower,
            mode,
            ..
        } = self;
        let seed = format!("{node}\0{resource}Mvp{slot}@{lower}:{mode}");
        place(XxHash64::oneshot(0, seed.as_bytes()), &TAPS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::resource_options::NO_RESOURCE_OPTIONS;

    fn id(lower: &str) -> DeviceId {
        DeviceId {
            resource: "dataplane".into(),
            slot: 7,
            lower: lower.parse().unwrap(),
            mode: Mode::Bridge,
            options: ResourceOptions::NONE,
            tap: 16_777_301,
        }
    }

    #[test]
    fn prints_as_designed_and_reads_it_back() {
        assert_eq!(id("eth0").to_string(), "dataplaneMvp7@eth0:bridge:16777301");
        for lower in ["eth0", "eth0.100", "a@b", "br-ex", "@", "é"] {
            assert_eq!(
                id(lower).to_string().parse::<DeviceId>().unwrap(),
                id(lower)
            );
        }
        let odd = DeviceId {
            resource: "Mvp3Mvp".into(),
            ..id("eth0")
        };
        assert_eq!(odd.to_string().parse::<DeviceId>().unwrap(), odd);
    }

    #[test]
    fn options_ride_along() {
        let options: ResourceOptions = "+m1400+q4".parse().unwrap();
        let with = DeviceId {
            options: options.clone(),
            ..id("eth0")
        };
        let text = "dataplaneMvp7@eth0:bridge+m1400+q4:16777301";
        assert_eq!(with.to_string(), text);
        assert_eq!(text.parse::<DeviceId>().unwrap(), with);
        assert_eq!(with.without_options(), id("eth0"));
        assert!(with.is_same(&id("eth0")) && id("eth0").is_same(&with));
        assert!(!with.is_same(&id("eth1")));
        let (eth0, mode) = ("eth0".parse().unwrap(), Mode::Bridge);
        let tap = |options| {
            let devices = Devices {
                node: "node1",
                resource: "dataplane",
                lower: &eth0,
                mode,
                options,
            };
            devices.device(0).tap
        };
        assert_eq!(tap(&options), tap(&NO_RESOURCE_OPTIONS));
    }

    #[test]
    fn refuses_what_it_does_not_write() {
        for text in [
            "",
            "eth0Mvp0",
            "Mvp7@eth0:bridge:16777301",
            "dataplane7@eth0:bridge:16777301",
            "dataplaneMvp@eth0:bridge:16777301",
            "dataplaneMvp07@eth0:bridge:16777301",
            "dataplaneMvp+7@eth0:bridge:16777301",
            "dataplaneMvp7@:bridge:16777301",
            "dataplaneMvp7@eth0:16777301",
            "dataplaneMvp7@eth0:hub:16777301",
            "dataplaneMvp7@eth0:bridge+:16777301",
            "dataplaneMvp7@eth0:bridge+x4:16777301",
            "dataplaneMvp7@eth0:bridge+t1+m1400:16777301",
            "dataplaneMvp7@eth0:bridge:",
            "dataplaneMvp7@eth0:bridge:-1",
            "dataplaneMvp7@eth0:bridge:16777215",
            "dataplaneMvp7@eth0:bridge:33554432",
            "dataplaneMvp7@eth0:bridge:99999999999",
            "dataplaneMvp7@../../x:bridge:16777301",
            "dataplaneMvp7@a:b:bridge:16777301",
            &format!("dataplaneMvp7@{}:bridge:16777301", "x".repeat(128)),
            "dataplaneMvp7@e h:bridge:16777301",
            "dataplaneMvp7@e\0h:bridge:16777301",
        ] {
            let error = text.parse::<DeviceId>().unwrap_err();
            assert!(format!("{error:#}").contains("malformed device ID"));
        }
    }

    #[test]
    fn hashes_link_names_as_the_original_does() {
        for (id, name) in [
            ("eth0Mvp0", "mvtf2644cc3624e"),
            ("eth0Mvp99", "mvt20074e9ae08d"),
            ("dataplaneMvp0", "mvtcc7b47d9091b"),
            ("dev500", "mvt1fe868afb8c3"),
            ("bond0Mvp7", "mvt995da75424ed"),
            (
                "a-very-long-device-id-that-would-overflow-ifname",
                "mvt8ac8386c48ba",
            ),
            ("", "mvtdb3751d8e999"),
        ] {
            assert_eq!(original_link_name(id), name);
        }
    }

    fn taps(devices: Devices<'_>, count: usize) -> Vec<u32> {
        let mut taken = BTreeSet::new();
        let devices = devices.iter(&mut taken).take(count);
        devices.map(|device| device.tap).collect()
    }

    #[test]
    fn every_device_has_a_tap_of_its_own() {
        let eth0 = "eth0".parse().unwrap();
        let devices = Devices {
            node: "node1",
            resource: "dataplane",
            lower: &eth0,
            mode: Mode::Bridge,
            options: &NO_RESOURCE_OPTIONS,
        };
        let many = taps(devices, 10_000);
        assert!(many.iter().all(|tap| TAPS.contains(tap)));
        assert_eq!(many.iter().collect::<BTreeSet<_>>().len(), 10_000);
        // These are in kubelets' checkpoints.
        assert_eq!(many[..2], [32_311_164, 29_506_164]);
        assert_eq!(taps(devices, 100), many[..100]);
        let eth1 = "eth1".parse().unwrap();
        let (node, resource, mode) = ("node2", "other", Mode::Vepa);
        for other in [
            Devices { node, ..devices },
            Devices {
                resource,
                ..devices
            },
            Devices {
                lower: &eth1,
                ..devices
            },
            Devices { mode, ..devices },
        ] {
            let other: BTreeSet<u32> = taps(other, 100).into_iter().collect();
            assert!(many[..100].iter().all(|tap| !other.contains(tap)));
        }
    }

    #[test]
    fn skips_slots_whose_tap_is_taken() {
        let lower = "eth0".parse().unwrap();
        let devices = Devices {
            node: "node1",
            resource: "dataplane",
            lower: &lower,
            mode: Mode::Bridge,
            options: &NO_RESOURCE_OPTIONS,
        };
        let mut taken = BTreeSet::from([taps(devices, 1)[0]]);
        let next = devices.iter(&mut taken).next().unwrap();
        assert_eq!(next.slot, 1);
        assert!(taken.contains(&next.tap));
    }

    #[test]
    fn standalone_taps_stay_out_of_the_allocated_range() {
        let first = |ifname| standalone_taps("c0ffee", ifname).next();
        assert_eq!(first("net1"), first("net1"));
        assert_ne!(first("net1"), first("net2"));
        let many: BTreeSet<u32> = standalone_taps("c0ffee", "net1").collect();
        assert_eq!(many.len(), 16);
        assert!(many.iter().all(|tap| STANDALONE_TAPS.contains(tap)));
    }

    #[test]
    fn knows_ids_of_the_original() {
        for id in ["eth0Mvp0", "dataplaneMvp99", "aMvpMvp7"] {
            assert!(is_original(id), "{id}");
        }
        for id in [
            "macvtap0",
            "Mvp0",
            "eth0Mvp",
            "eth0Mvp01",
            "xMvp0@eth0:bridge:1",
        ] {
            assert!(!is_original(id), "{id}");
        }
    }
}
