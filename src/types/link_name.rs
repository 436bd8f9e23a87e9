//! The name of a network interface.

use std::{fmt, ops::Deref, str::FromStr};

/// Bytes of the longest name (`IFNAMSIZ` of `linux/if.h` without the NUL).
pub const MAX_NAME: usize = 15;
/// Bytes of the longest alternative name (`ALTIFNAMSIZ` without the NUL).
const MAX_ALT_NAME: usize = 127;

/// A name by which the kernel may know an interface (`dev_valid_name` of `net/core/dev.c`), which
/// may be an alternative one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkName(String);

/// Why a text is not the name of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// There is none.
    Empty,
    /// It has more than 127 bytes.
    TooLong,
    /// It is `.` or `..`.
    Dots,
    /// It holds `/`, `:`, NUL or white space.
    Characters,
    /// It holds `%`, which makes a pattern of it: the kernel would take `net%d` for `net0`.
    Pattern,
}

impl LinkName {
    /// The first flaw of `text` as a name, in the order in which the reference implementation of
    /// CNI looks for them; none if it is a name.
    #[must_use]
    pub fn flaw(text: &str) -> Option<Flaw> {
        let characters = |char: char| matches!(char, '/' | ':' | '\0') || char.is_whitespace();
        match text {
            "" => Some(Flaw::Empty),
            "." | ".." => Some(Flaw::Dots),
            _ if text.len() > MAX_ALT_NAME => Some(Flaw::TooLong),
            _ if text.contains(characters) => Some(Flaw::Characters),
            _ if text.contains('%') => Some(Flaw::Pattern),
            _ => None,
        }
    }

    /// Whether the kernel gives no interface this name: it has settings of that name, in
    /// `/proc/sys/net/ipv4/conf` (`sysctl_dev_name_is_allowed` of `net/ipv4/devinet.c`).
    #[must_use]
    pub fn is_reserved(name: &str) -> bool {
        matches!(name, "all" | "default")
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "is empty",
            Self::TooLong => "is longer than 127 bytes",
            Self::Dots => "is . or ..",
            Self::Characters => "contains a slash, a colon, a NUL or white space",
            Self::Pattern => "contains %, which makes a pattern of it",
        })
    }
}

impl FromStr for LinkName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Self::flaw(text) {
            None => Ok(Self(text.to_owned())),
            Some(flaw) => Err(anyhow::anyhow!("the interface name {text:?} {flaw}")),
        }
    }
}

impl Deref for LinkName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_the_kernel_takes() {
        for name in ["eth0", "eth0.100", "a@b", "br-ex", "é", &"x".repeat(127)] {
            assert_eq!(name.parse::<LinkName>().unwrap().to_string(), name);
        }
        for (text, flaw) in [
            ("", Flaw::Empty),
            (".", Flaw::Dots),
            ("..", Flaw::Dots),
            (&"x".repeat(128), Flaw::TooLong),
            ("a/b", Flaw::Characters),
            ("a:b", Flaw::Characters),
            ("a b", Flaw::Characters),
            ("a\0b", Flaw::Characters),
            ("net%d", Flaw::Pattern),
        ] {
            assert_eq!(LinkName::flaw(text), Some(flaw), "{text:?}");
            assert!(text.parse::<LinkName>().is_err(), "{text:?}");
        }
    }
}
