//! What a resource sets its macvtaps to where a network does not. Pure.
//!
//! It stands in the device IDs, behind the mode, so that ADD knows it without asking the device
//! plugin, and pods keep what they were given:
//!
//! ```text
//! +m1400 MTU   +t300 txQueueLen   +q4 queues   +b2000 bcQueueLen   +c-1 broadcastCutoff
//! +s020000000001 one of allowedSources
//! ```

use std::{fmt, str::FromStr};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};

use super::{
    json::{Fields, Invalid},
    keys::Keys,
    mac::MacAddr,
    mode::Mode,
    port_options::{self, MAX_QUEUE_LENGTH, MAX_QUEUES, PortOptions},
};

/// The addresses that a resource allows at most: each takes 14 bytes of each of its device IDs.
pub const MAX_SOURCES: usize = 4;
/// The smallest MTU of a macvtap (`ETH_MIN_MTU` of the kernel), and the largest that a link can have
/// in practice (`ETH_MAX_MTU`).
pub const MIN_MTU: u64 = 68;
const MAX_MTU: u64 = 65_535;

/// The keys of a resource entry that are read here.
pub const KEYS: [&str; 6] = [
    "mtu",
    "txQueueLen",
    "queues",
    "bcQueueLen",
    "broadcastCutoff",
    "allowedSources",
];

/// Options of a resource. What is none is left to the network, or else to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceOptions {
    /// The MTU in bytes.
    pub mtu: Option<u32>,
    /// The other ones.
    pub port: PortOptions,
}

/// [`ResourceOptions::NONE`], to be borrowed.
pub static NO_RESOURCE_OPTIONS: ResourceOptions = ResourceOptions::NONE;

impl ResourceOptions {
    /// No options.
    pub const NONE: Self = Self {
        mtu: None,
        port: PortOptions::NONE,
    };

    /// Reads those of a resource entry whose macvtaps are in this mode.
    pub fn read(fields: &Fields<'_>, mode: Mode, keys: &mut Keys) -> Result<Self, Invalid> {
        Ok(Self {
            mtu: keys.take(port_options::number(fields, "mtu", (MIN_MTU, MAX_MTU)))?,
            port: PortOptions {
                queue_length: keys.take(port_options::queue_length(fields))?,
                queues: keys.take(port_options::queues(fields))?,
                broadcast_queue_length: keys.take(port_options::broadcast_queue_length(fields))?,
                broadcast_cutoff: keys.take(port_options::broadcast_cutoff(fields))?,
                allowed_sources: sources(fields, mode, keys)?,
            },
        })
    }
}

/// Those that a port in source mode receives from: without them it is of no use.
fn sources(fields: &Fields<'_>, mode: Mode, keys: &mut Keys) -> Result<Vec<MacAddr>, Invalid> {
    let sources = port_options::sources(fields, MAX_SOURCES);
    if mode == Mode::Source {
        return Ok(sources?.unwrap_or_default());
    }
    let none = sources.and_then(|_| match fields.value("allowedSources") {
        None => Ok(None),
        Some(value) => {
            let wanted = format!("left out: it needs mode source, not {mode}");
            Err(Invalid::new("allowedSources", value, &wanted))
        }
    });
    Ok(keys.take(none)?.unwrap_or_default())
}

impl fmt::Display for ResourceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mtu, port } = self;
        let numbers = [
            ('m', mtu.map(i64::from)),
            ('t', port.queue_length.map(i64::from)),
            ('q', port.queues.map(i64::from)),
            ('b', port.broadcast_queue_length.map(i64::from)),
            ('c', port.broadcast_cutoff.map(i64::from)),
        ];
        for (letter, number) in numbers {
            if let Some(number) = number {
                write!(f, "+{letter}{number}")?;
            }
        }
        port.allowed_sources
            .iter()
            .try_for_each(|source| write!(f, "+s{}", hex::encode(source.0)))
    }
}

/// Reads what [`fmt::Display`] writes, and nothing else.
impl FromStr for ResourceOptions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut found = Self::NONE;
        for option in text.split('+').skip(1) {
            found
                .set(option)
                .with_context(|| format!("the option {option:?}"))?;
        }
        ensure!(found.to_string() == text, "malformed options {text:?}");
        Ok(found)
    }
}

impl ResourceOptions {
    fn set(&mut self, option: &str) -> Result<()> {
        let port = &mut self.port;
        let letter = option.chars().next().context("it is empty")?;
        let value = &option[letter.len_utf8()..];
        match letter {
            'm' => self.mtu = Some(bounded(value, (MIN_MTU, MAX_MTU))?),
            't' => port.queue_length = Some(bounded(value, (1, MAX_QUEUE_LENGTH))?),
            'q' => port.queues = Some(bounded(value, (1, MAX_QUEUES))?),
            'b' => port.broadcast_queue_length = Some(bounded(value, (0, MAX_QUEUE_LENGTH))?),
            'c' => {
                let number: i32 = value.parse()?;
                ensure!(number >= -1, "it is not from -1 to {}", i32::MAX);
                port.broadcast_cutoff = Some(number);
            }
            's' => {
                let mut mac = [0; 6];
                let decoded = hex::decode_to_slice(value, &mut mac);
                decoded.map_err(|error| anyhow!("{error}"))?;
                let mac = MacAddr(mac);
                let is_one = mac.is_assignable() && port.allowed_sources.len() < MAX_SOURCES;
                ensure!(
                    is_one,
                    "it is not one of up to {MAX_SOURCES} unicast addresses"
                );
                port.allowed_sources.push(mac);
            }
            _ => bail!("it is not known; macvtap may be older than the device plugin"),
        }
        Ok(())
    }
}

/// A device ID can be written by hand, so that its numbers have the bounds of a configuration's.
fn bounded(value: &str, (lowest, highest): (u64, u64)) -> Result<u32> {
    let number: u32 = value.parse()?;
    let within = (lowest..=highest).contains(&number.into());
    ensure!(within, "it is not from {lowest} to {highest}");
    Ok(number)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(json: &Value, mode: Mode) -> Result<ResourceOptions, Invalid> {
        ResourceOptions::read(&Fields::of(json).unwrap(), mode, &mut Keys::new(false))
    }

    #[test]
    fn what_is_read_is_written_and_read_back() {
        let all = json!({
            "mtu": 9000, "txQueueLen": 65_536, "queues": 256, "bcQueueLen": 65_536,
            "broadcastCutoff": -1,
            "allowedSources": ["02:00:00:00:00:02", "02:00:00:00:00:01"],
        });
        for (json, mode, text) in [
            (json!({}), Mode::Bridge, ""),
            (json!({"queues": 4}), Mode::Vepa, "+q4"),
            (
                json!({"MTU": 1400, "txqueuelen": 1}),
                Mode::Bridge,
                "+m1400+t1",
            ),
            (
                all,
                Mode::Source,
                "+m9000+t65536+q256+b65536+c-1+s020000000001+s020000000002",
            ),
        ] {
            let options = read(&json, mode).unwrap();
            assert_eq!(options.to_string(), text);
            assert_eq!(text.parse::<ResourceOptions>().unwrap(), options);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        #[rustfmt::skip]
        let table = [
            (json!({"mtu": 67}), ["mtu 67", "from 68 to 65535"]),
            (json!({"mtu": "1400"}), ["mtu", "whole number"]),
            (json!({"txQueueLen": 0}), ["txQueueLen 0", "from 1 to 65536"]),
            (json!({"queues": 257}), ["queues 257", "from 1 to 256"]),
            (json!({"bcQueueLen": -1}), ["bcQueueLen -1", "from 0"]),
            (json!({"broadcastCutoff": -2}), ["broadcastCutoff -2", "from -1"]),
            (json!({"allowedSources": []}), ["allowedSources []", "list of up to 4"]),
            (json!({"allowedSources": ["02:00:00:00:00:01"]}), ["allowedSources", "mode source, not bridge"]),
        ];
        for (json, parts) in table {
            let error = read(&json, Mode::Bridge).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{json}: {error}");
            }
        }
    }

    #[test]
    fn only_what_is_written_is_read() {
        for text in [
            "+",
            "+q",
            "+q04",
            "+q+4",
            "q4",
            "+q4+",
            "+q4+t1",
            "+q4+q4",
            "+x1",
            "+s0200",
            "+s02000000000A",
            "+é1",
            "+c+1",
        ] {
            assert!(text.parse::<ResourceOptions>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_id_has_no_higher_numbers_than_a_configuration() {
        for text in [
            "+m67",
            "+m65536",
            "+t0",
            "+t65537",
            "+q0",
            "+q257",
            "+b65537",
            "+b4294967295",
            "+c-2",
            "+s010000000001",
            "+s000000000000",
            &"+s020000000001".repeat(5),
        ] {
            let error = text.parse::<ResourceOptions>().unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains("it is not "), "{text}: {error}");
        }
        for text in ["+m68+t65536+q256+b0+c-1", "+m65535"] {
            assert!(text.parse::<ResourceOptions>().is_ok(), "{text}");
        }
    }
}
