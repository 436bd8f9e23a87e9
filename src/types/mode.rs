//! The macvlan modes: which other ports of a lower device a port exchanges frames with.

use std::{fmt, str::FromStr};

use anyhow::{Error, Result, anyhow};
use clap::ValueEnum;

/// A mode of a macvtap, numbered as `enum macvlan_mode` in `linux/if_link.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, ValueEnum, PartialOrd, Ord)]
#[repr(u32)]
pub enum Mode {
    /// Ports do not reach each other.
    Private = 1,
    /// Frames between ports go out to the switch, which must send them back.
    Vepa = 2,
    /// Ports reach each other directly.
    #[default]
    Bridge = 4,
    /// The only port of its lower device, whose address it takes over.
    Passthru = 8,
    /// Receives from listed source addresses only.
    Source = 16,
}

impl Mode {
    /// Every mode, in the order in which messages name them.
    pub const ALL: [Mode; 5] = [
        Mode::Bridge,
        Mode::Private,
        Mode::Vepa,
        Mode::Passthru,
        Mode::Source,
    ];

    /// The mode with the kernel's number `raw`, if there is one.
    #[must_use]
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.raw() == raw)
    }

    /// The mode that a person names, in whatever case and with whatever blanks around it.
    pub fn named(text: &str) -> Result<Self> {
        let word = text.trim().to_ascii_lowercase();
        word.parse().map_err(|_| unknown(text))
    }

    /// Whether a port in this mode has its lower device to itself.
    #[must_use]
    pub fn is_alone(self) -> bool {
        self == Self::Passthru
    }

    /// The kernel's number, the value of `IFLA_MACVLAN_MODE`.
    #[must_use]
    pub fn raw(self) -> u32 {
        self as u32
    }

    /// The word by which configurations and `ip link` name the mode.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Private => "private",
            Mode::Vepa => "vepa",
            Mode::Bridge => "bridge",
            Mode::Passthru => "passthru",
            Mode::Source => "source",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| unknown(text))
    }
}

fn unknown(text: &str) -> Error {
    let known = Mode::ALL.map(Mode::name).join(", ");
    anyhow!("unknown mode {text:?}; the modes are {known}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_back_to_the_mode() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse::<Mode>().unwrap(), mode);
            assert_eq!(Mode::from_raw(mode.raw()), Some(mode));
        }
        assert_eq!(Mode::from_raw(3), None);
        assert!("Bridge".parse::<Mode>().is_err());
        for text in ["Bridge", " bridge\n", "BRIDGE"] {
            assert_eq!(Mode::named(text).unwrap(), Mode::Bridge);
        }
        let error = Mode::named("Hub ").unwrap_err().to_string();
        assert!(error.contains("\"Hub \""), "{error}");
        assert!("".parse::<Mode>().is_err());
    }
}
