//! The taps of this machine, as sysfs shows them.
//!
//! N of `/dev/tapN` is an interface index, which is unique within a network namespace only,
//! while the name is machine-wide. So a node is never trusted before its device number was
//! compared with the kernel's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::char_device::Found;
use crate::types::{device_id, device_number::DeviceNumber};

/// The character devices of all network namespaces, by their numbers. The directories that its
/// links point to are visible in one's own namespace only.
const CHAR_DEVICES: &str = "/sys/dev/char";

/// Bytes of `struct virtio_net_hdr`, which a tap has before each frame unless it is set
/// otherwise (`IFF_VNET_HDR` is a macvtap's default).
pub const VNET_HEADER: usize = 10;

/// The path of the node of tap `number`.
#[must_use]
pub fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/tap{number}"))
}

/// The number of the tap whose node has this path, if it is one. Of a descriptor whose node is
/// gone, for its macvtap was moved to another network namespace, the kernel says so behind it.
#[must_use]
pub fn number_in(path: &str) -> Option<u32> {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.strip_prefix("/dev/tap")?.parse().ok()
}

/// A tap and the macvtap interface that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The number of the tap, which is the interface's index.
    pub number: u32,
    /// The name of the interface.
    pub interface: String,
}

/// The tap that this device is, if it is one.
///
/// sysfs has the device in whatever network namespace it is, as a link to
/// `../../devices/virtual/net/net1/macvtap/tap16777301`.
pub fn of(device: DeviceNumber) -> Result<Option<Tap>> {
    let target = match fs::read_link(Path::new(CHAR_DEVICES).join(device.to_string())) {
        Ok(target) => target,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // The device is gone, unless nothing can be seen.
            let mounted = Path::new(CHAR_DEVICES).exists();
            ensure!(
                mounted,
                "{CHAR_DEVICES} does not exist; mount sysfs on /sys"
            );
            return Ok(None);
        }
        Err(error) => return Err(error).context("reading a link in /sys/dev/char"),
    };
    Ok(tap_in(&target.to_string_lossy()))
}

fn tap_in(target: &str) -> Option<Tap> {
    let (before, digits) = target.rsplit_once("/macvtap/tap")?;
    let (_, interface) = before.rsplit_once('/')?;
    Some(Tap {
        number: digits.parse().ok()?,
        interface: interface.to_owned(),
    })
}

/// The number of the tap that this device is, if it is one.
pub fn number_of(device: DeviceNumber) -> Result<Option<u32>> {
    Ok(of(device)?.map(|tap| tap.number))
}

/// The devices that are called tap `number`, in all network namespaces of the machine. More
/// than one if two namespaces use the same interface index. Takes a time that grows with the
/// number of taps.
pub fn devices(number: u32) -> Result<Vec<DeviceNumber>> {
    let major = match major_by_node(number)? {
        Some(major) => Some(major),
        None => major()?,
    };
    let taps = all(major)?
        .into_iter()
        .filter(|(_, found)| *found == number);
    Ok(taps.map(|(device, _)| device).collect())
}

/// The devices of all taps of the machine by their numbers, in all network namespaces.
pub fn by_number() -> Result<BTreeMap<u32, Vec<DeviceNumber>>> {
    let mut taps: BTreeMap<u32, Vec<DeviceNumber>> = BTreeMap::new();
    for (device, number) in all(major()?)? {
        taps.entry(number).or_default().push(device);
    }
    Ok(taps)
}

/// The numbers of all taps of the machine.
pub fn numbers() -> Result<BTreeSet<u32>> {
    Ok(by_number()?.into_keys().collect())
}

/// A tap, as distinct from those that had its number or its device number before it: the inode of
/// its link in sysfs, of which the kernel uses none twice (`__kernfs_new_node`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance(u64);

/// The taps that have these numbers now, in all network namespaces of the machine; numbers that no
/// tap has are left out. Takes a time that grows with the number of taps.
pub fn instances(numbers: &BTreeSet<u32>) -> Result<BTreeMap<u32, BTreeSet<Instance>>> {
    let mut found: BTreeMap<u32, BTreeSet<Instance>> = BTreeMap::new();
    for (number, devices) in by_number()? {
        if numbers.contains(&number) {
            for device in devices {
                if let Some(instance) = instance(device)? {
                    found.entry(number).or_default().insert(instance);
                }
            }
        }
    }
    Ok(found)
}

/// What stands for this device in sysfs; none if it is gone.
fn instance(device: DeviceNumber) -> Result<Option<Instance>> {
    let path = Path::new(CHAR_DEVICES).join(device.to_string());
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(Instance(metadata.ino()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("looking at a link in /sys/dev/char"),
    }
}

/// A number that no tap has, drawn by `seed`, for a macvtap without a device plugin.
pub fn free_number(seed: &str) -> Result<u32> {
    let taken = numbers()?;
    let mut drawn = device_id::standalone_taps(seed, "tap");
    let free = drawn.find(|number| !taken.contains(number));
    free.context("16 tap numbers drawn at random are all in use")
}

/// The major device number of macvtap; none while the kernel has not loaded it. The kernel
/// takes 0.1 ms to print /proc/devices, a fifth of what an ADD costs.
pub fn major() -> Result<Option<u64>> {
    let devices = fs::read_to_string("/proc/devices").context("reading /proc/devices")?;
    Ok(devices.lines().find_map(|line| {
        let (number, name) = line.trim_start().split_once(' ')?;
        (name == "macvtap").then(|| number.parse().ok()).flatten()
    }))
}

/// The major device number of macvtap as the tap's own node has it.
fn major_by_node(number: u32) -> Result<Option<u64>> {
    match Found::at(&path(number))?.number() {
        Some(device) if number_of(device)? == Some(number) => Ok(Some(device.major)),
        _ => Ok(None),
    }
}

/// Every tap of the machine with its number; `major` is macvtap's.
fn all(major: Option<u64>) -> Result<Vec<(DeviceNumber, u32)>> {
    let mut taps = Vec::new();
    let Some(major) = major else {
        return Ok(taps);
    };
    let prefix = format!("{major}:");
    for entry in fs::read_dir(CHAR_DEVICES).context("listing /sys/dev/char")? {
        let entry = entry.context("listing /sys/dev/char")?;
        let name = entry.file_name();
        let minor = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        let Some(minor) = minor.and_then(|minor| minor.parse().ok()) else {
            continue;
        };
        let device = DeviceNumber { major, minor };
        taps.extend(number_of(device)?.map(|number| (device, number)));
    }
    Ok(taps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_shows_its_tap_after_a_move() {
        assert_eq!(number_in("/dev/tap5"), Some(5));
        assert_eq!(number_in("/dev/tap5 (deleted)"), Some(5));
        for other in ["/dev/tap", "/dev/tap5 (gone)", "/tmp/tap5", "/dev/tapestry"] {
            assert_eq!(number_in(other), None, "{other}");
        }
    }

    #[test]
    fn reads_the_target_of_a_link() {
        let tap = tap_in("../../devices/virtual/net/net1/macvtap/tap16777301");
        let net1 = Tap {
            number: 16_777_301,
            interface: "net1".into(),
        };
        assert_eq!(tap, Some(net1));
        for other in [
            "../../devices/virtual/mem/null",
            "/macvtap/tap",
            "../net/net1/macvtap/tapestry",
            "",
        ] {
            assert_eq!(tap_in(other), None, "{other:?}");
        }
    }
}
