//! Addresses, one or all of a network.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use anyhow::{Context, Result, ensure};

/// Whether an address is an IPv6 one that counts on its link alone, as the kernel sets them by itself.
#[must_use]
pub fn is_ipv6_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The address alone.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        let length = if address.is_ipv4() { 32 } else { 128 };
        Self { address, length }
    }

    /// The addresses that begin with the same `length` bits as `address`; all bits count if it has
    /// fewer.
    #[must_use]
    pub fn around(address: IpAddr, length: u8) -> Self {
        let host = Self::host(address);
        let length = length.min(host.length);
        let host_bits = u32::from(host.length - length);
        let address = match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
                Ipv4Addr::from(u32::from(address) & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                Ipv6Addr::from(u128::from(address) & mask).into()
            }
        };
        Self { address, length }
    }

    /// How many bits they have in common.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.length
    }

    /// The address, if it is the only one.
    #[must_use]
    pub fn single(&self) -> Option<IpAddr> {
        (*self == Self::host(self.address)).then_some(self.address)
    }

    /// Whether they are IPv4 addresses.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// The first of the addresses, in network order: 4 bytes or 16.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        match self.address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, other) = (self.bytes(), Self::host(address).bytes());
        let same = |((own, other), mask): ((&u8, &u8), u8)| (own ^ other) & mask == 0;
        own.len() == other.len() && own.iter().zip(&other).zip(self.mask()).all(same)
    }

    /// The bits that they have in common, as long as [`Self::bytes`].
    #[must_use]
    pub fn mask(&self) -> Vec<u8> {
        let byte = |index: usize| {
            let bits = usize::from(self.length).saturating_sub(8 * index).min(8);
            0xff_u8
                .checked_shl(8 - u32::try_from(bits).unwrap_or(8))
                .unwrap_or(0)
        };
        (0..self.bytes().len()).map(byte).collect()
    }
}

impl FromStr for Prefix {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let wanted = || format!("{text:?} is not an address or a prefix, such as 192.0.2.0/24");
        let mut prefix = Self::host(address.parse().with_context(wanted)?);
        if let Some(length) = length {
            let length: u8 = length.parse().with_context(wanted)?;
            ensure!(length <= prefix.length, wanted());
            prefix.length = length;
        }
        let outside = std::iter::zip(prefix.bytes(), prefix.mask()).any(|(a, m)| a & !m != 0);
        ensure!(
            !outside,
            "{text:?} has bits behind its prefix; \
             write the address alone, or the first address of the network"
        );
        Ok(prefix)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, length } = self;
        if *self == Self::host(*address) {
            write!(f, "{address}")
        } else {
            write!(f, "{address}/{length}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses_and_networks() {
        for (text, mask) in [
            ("192.0.2.0/24", vec![255, 255, 255, 0]),
            ("192.0.2.5", vec![255; 4]),
            ("0.0.0.0/0", vec![0; 4]),
            ("10.32.0.0/11", vec![255, 224, 0, 0]),
            ("fe80::/10", [vec![0xff, 0xc0], vec![0; 14]].concat()),
            ("2001:db8::1", vec![255; 16]),
        ] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix.mask(), mask, "{text}");
            assert_eq!(prefix.to_string(), text);
        }
    }

    #[test]
    fn contains_the_addresses_of_the_network() {
        for (prefix, address, contained) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("192.0.2.5", "192.0.2.5", true),
            ("192.0.2.5", "192.0.2.4", false),
            ("0.0.0.0/0", "198.51.100.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
        ] {
            let prefix: Prefix = prefix.parse().unwrap();
            let found = prefix.contains(address.parse().unwrap());
            assert_eq!(found, contained, "{prefix} {address}");
        }
    }

    #[test]
    fn ipv6_link_local_addresses() {
        let is = |text: &str| is_ipv6_link_local(text.parse().unwrap());
        assert!(is("fe80::1") && is("febf::1"));
        for address in ["192.0.2.1", "2001:db8::1", "169.254.0.1", "fec0::1"] {
            assert!(!is(address), "{address}");
        }
    }

    #[test]
    fn refuses_what_is_neither() {
        for text in [
            "",
            "192.0.2",
            "192.0.2.0/33",
            "fe80::/129",
            "x/24",
            "10.0.0.1/",
        ] {
            let error = text.parse::<Prefix>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?} is not")), "{error}");
        }
        let error = "192.0.2.5/24".parse::<Prefix>().unwrap_err();
        assert!(error.to_string().contains("behind its prefix"), "{error}");
    }
}
