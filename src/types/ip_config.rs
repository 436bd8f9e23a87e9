//! The IP configuration of an interface: its addresses and routes.

use std::{fmt, net::IpAddr, str::FromStr};

use anyhow::{Context, Result, ensure};

use super::prefix::Prefix;

/// An address of an interface, with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Bits of the prefix.
    pub length: u8,
}

/// A route by an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: Prefix,
    /// The next hop; none if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway is taken to be on the link, although no address of the interface is in
    /// its network.
    pub onlink: bool,
    /// The MTU in bytes; that of the interface if none.
    pub mtu: Option<u32>,
    /// The maximum segment size that TCP announces; the kernel's choice if none.
    pub advmss: Option<u32>,
    /// The priority, also called metric; the kernel's default if none.
    pub priority: Option<u32>,
    /// The routing table; the main table if none.
    pub table: Option<u32>,
    /// The scope, as `rt_scope_t` of `linux/rtnetlink.h`; by the gateway if none.
    pub scope: Option<u8>,
}

/// What is configured on an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpConfig {
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// The routes by it.
    pub routes: Vec<Route>,
}

impl InterfaceAddress {
    /// The network that it is in.
    #[must_use]
    pub fn network(&self) -> Prefix {
        Prefix::around(self.ip, self.length)
    }

    /// The address to which all hosts of its network listen; none where there is no such address.
    #[must_use]
    pub fn broadcast(&self) -> Option<IpAddr> {
        match self.ip {
            IpAddr::V4(ip) if self.length < 31 => {
                let host_bits = u32::MAX.checked_shr(self.length.into()).unwrap_or(0);
                Some(IpAddr::from((u32::from(ip) | host_bits).to_be_bytes()))
            }
            _ => None,
        }
    }
}

impl FromStr for InterfaceAddress {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let wanted = || format!("{text:?} is not an address with its prefix, such as 192.0.2.5/24");
        let (ip, length) = text.split_once('/').with_context(wanted)?;
        let ip: IpAddr = ip.parse().with_context(wanted)?;
        let length: u8 = length.parse().with_context(wanted)?;
        ensure!(length <= Prefix::host(ip).length(), wanted());
        Ok(Self { ip, length })
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        match self.gateway {
            Some(gateway) => write!(f, " via {gateway}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_an_address_with_its_network() {
        for (text, network, broadcast) in [
            ("192.0.2.5/24", "192.0.2.0/24", Some("192.0.2.255")),
            ("10.0.0.1/32", "10.0.0.1", None),
            ("10.0.0.0/31", "10.0.0.0/31", None),
            ("10.1.2.3/0", "0.0.0.0/0", Some("255.255.255.255")),
            ("2001:db8::5/64", "2001:db8::/64", None),
            ("2001:db8::5/128", "2001:db8::5", None),
        ] {
            let address: InterfaceAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.network().to_string(), network);
            let broadcast = broadcast.map(|text| text.parse().unwrap());
            assert_eq!(address.broadcast(), broadcast, "{text}");
        }
        for text in ["", "192.0.2.5", "192.0.2.5/33", "x/24", "::1/129", "::1/-1"] {
            assert!(text.parse::<InterfaceAddress>().is_err(), "{text}");
        }
    }
}
