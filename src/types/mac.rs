//! An Ethernet hardware address.

use std::{fmt, str::FromStr};

use anyhow::{Context, Error, Result, ensure};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether an interface can hold this address as its own: neither a group
    /// address nor all zeroes (`is_valid_ether_addr` in the kernel).
    #[must_use]
    pub fn is_assignable(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl MacAddr {
    /// A random one that an interface can hold, locally administered, as the kernel itself
    /// makes them (`eth_random_addr`). By `getrandom(2)`, which needs no /dev and returns 6 bytes
    /// whole.
    pub fn random() -> Result<Self> {
        let mut octets = [0; 6];
        rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty())
            .context("asking the kernel for random bytes")?;
        Ok(Self(octets).locally_administered())
    }

    /// The one that belongs to these names: always the same, and another one for other names.
    #[must_use]
    pub fn of_names(names: &[&str]) -> Self {
        let [_, _, octets @ ..] = XxHash64::oneshot(0, names.join("\0").as_bytes()).to_be_bytes();
        Self(octets).locally_administered()
    }

    /// Without the bit of groups, and with that of addresses that no manufacturer gave.
    fn locally_administered(mut self) -> Self {
        self.0[0] = self.0[0] & 0xfc | 2;
        self
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = self.0.map(|octet| format!("{octet:02x}"));
        f.write_str(&groups.join(":"))
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddr {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// The forms that Go's `net.ParseMAC` reads, which is what users of CNI know:
/// `02:00:00:00:00:01`, `02-00-00-00-00-01`, `0200.0000.0001` and `020000000001`.
/// Addresses of 8 or 20 octets are refused: they are not Ethernet.
impl FromStr for MacAddr {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (separator, digits) = match text.as_bytes().get(2) {
            Some(b':') => (':', 2),
            Some(b'-') => ('-', 2),
            _ if text.contains('.') => ('.', 4),
            _ => ('.', 12),
        };
        let groups: Vec<&str> = text.split(separator).collect();
        ensure!(
            groups.len() * digits == 12 && groups.iter().all(|group| is_hex(group, digits)),
            "{text:?} is not an Ethernet address of 6 octets, such as 02:00:00:00:00:01"
        );
        let number = u64::from_str_radix(&groups.concat(), 16).context("reading a MAC")?;
        let [_, _, octets @ ..] = number.to_be_bytes();
        Ok(Self(octets))
    }
}

fn is_hex(group: &str, digits: usize) -> bool {
    group.len() == digits && group.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ones_differ_and_are_assignable() {
        let all: std::collections::BTreeSet<MacAddr> =
            (0..100).map(|_| MacAddr::random().unwrap()).collect();
        assert_eq!(all.len(), 100);
        assert!(
            all.iter()
                .all(|mac| mac.is_assignable() && mac.0[0] & 3 == 2)
        );
    }

    #[test]
    fn reads_all_forms_and_prints_one() {
        for text in [
            "02:aB:00:00:0f:10",
            "02-ab-00-00-0F-10",
            "02ab.0000.0f10",
            "02ab00000F10",
        ] {
            let mac: MacAddr = text.parse().unwrap();
            assert_eq!(mac.to_string(), "02:ab:00:00:0f:10", "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:0",
            "02:00:00:00:00:00:00",
            "02:00:00:00:00:00:00:01",
            "02:00:00:00:00:0g",
            "02:00-00:00:00:00",
            "02000000000",
            "0200000000000",
            "+20000000000",
            "0200.0000.00",
            "+2:00:00:00:00:00",
            "02:00:00:00:00:é",
            "é:00:00:00:00:00",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn knows_what_an_interface_can_hold() {
        let assignable = |text: &str| text.parse::<MacAddr>().unwrap().is_assignable();
        assert!(assignable("02:00:00:00:00:01"));
        assert!(!assignable("00:00:00:00:00:00"));
        assert!(!assignable("01:00:5e:00:00:01"));
        assert!(!assignable("ff:ff:ff:ff:ff:ff"));
    }
}
