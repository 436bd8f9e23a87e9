//! The hardware of network interfaces, as sysfs shows it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::netlink::Link;

/// What a physical interface is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// The address of the PCI device, as in `0000:3b:00.1`.
    pub pci_address: Option<String>,
    /// The name of the driver.
    pub driver: Option<String>,
    /// The vendor of the PCI device.
    pub vendor: Option<u16>,
}

impl Hardware {
    /// The hardware of an interface of our network namespace; none if it has none.
    ///
    /// sysfs may be that of another network namespace, which has an interface of this name as
    /// well: it is believed if index and MAC are the same.
    #[must_use]
    pub fn of(link: &Link) -> Option<Self> {
        let interface = Path::new("/sys/class/net").join(&link.name);
        let says = |file: &str, expected: String| {
            read(&interface.join(file)).is_some_and(|text| text.eq_ignore_ascii_case(&expected))
        };
        if !says("ifindex", link.index.to_string()) || !says("address", link.mac?.to_string()) {
            return None;
        }
        let device = fs::canonicalize(interface.join("device")).ok()?;
        let pci = pci_device(&device);
        let driver = fs::canonicalize(device.join("driver")).ok();
        Some(Self {
            driver: driver.as_deref().and_then(name),
            vendor: pci.and_then(|pci| vendor(&read(&pci.join("vendor"))?)),
            pci_address: pci.and_then(name),
        })
    }
}

/// A vendor's number, as sysfs and `lspci -n` write it.
#[must_use]
pub fn vendor(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u16::from_str_radix(digits, 16).ok()
}

/// The PCI device that a device is, or is part of: a virtio device is part of one.
fn pci_device(device: &Path) -> Option<&Path> {
    device
        .ancestors()
        .find(|path| name(path).is_some_and(|name| is_pci_address(&name)))
}

/// Domain, bus, device and function: `0000:3b:00.1`.
fn is_pci_address(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '.']).collect();
    let hex = |part: &&str| part.chars().all(|digit| digit.is_ascii_hexdigit());
    let lengths = parts.iter().map(|part| part.len());
    parts.iter().all(hex)
        && lengths.skip(1).eq([2, 2, 1])
        && text.matches(':').count() == 2
        && parts[0].len() >= 4
}

fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

fn read(path: &PathBuf) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtio_device_is_part_of_a_pci_device() {
        let device = Path::new("/sys/devices/pci0000:00/0000:00:03.0/virtio2");
        let pci = pci_device(device).and_then(name);
        assert_eq!(pci.as_deref(), Some("0000:00:03.0"));
        assert_eq!(pci_device(Path::new("/sys/devices/virtual/net/br0")), None);
    }

    #[test]
    fn knows_pci_addresses_and_vendors() {
        for text in ["0000:3b:00.1", "10000:e1:00.0"] {
            assert!(is_pci_address(text), "{text}");
        }
        for text in [
            "pci0000:00",
            "0000:3b:00",
            "0000.3b.00.1",
            "3b:00.1",
            "virtio2",
        ] {
            assert!(!is_pci_address(text), "{text}");
        }
        assert_eq!(vendor("0x15b3"), Some(0x15b3));
        assert_eq!(vendor("8086"), Some(0x8086));
        assert_eq!(vendor("0x"), None);
        assert_eq!(vendor("intel"), None);
    }
}
