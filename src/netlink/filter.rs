//! A packet filter, as nf_tables and classic BPF can both express it. Pure.
//!
//! ADD makes one each time, so its parts are small and in place.

use std::{fmt, ops::Deref};

/// Chains of rules. A frame enters the first one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The chains; a rule leads to later ones only.
    pub chains: Vec<Chain>,
}

/// The name of a chain: a word, and behind how many tags it looks at a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The word.
    pub word: &'static str,
    /// The tags.
    pub tags: u16,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tags {
            0 => f.write_str(self.word),
            tags => write!(f, "{}_behind_{tags}_tags", self.word),
        }
    }
}

/// Bytes of a frame that are compared: at most 16, which is an IPv6 address, and as much as
/// nf_tables loads at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    length: usize,
    bytes: [u8; Self::MAX],
}

impl Bytes {
    const MAX: usize = 16;

    /// The first of `bytes`, as many as can be compared.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        bytes.iter().copied().collect()
    }
}

impl FromIterator<u8> for Bytes {
    fn from_iter<T: IntoIterator<Item = u8>>(all: T) -> Self {
        let (mut length, mut bytes) = (0, [0; Self::MAX]);
        for (place, byte) in bytes.iter_mut().zip(all) {
            *place = byte;
            length += 1;
        }
        Self { length, bytes }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Rules, of which the first that matches decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The chain's name, unique in the filter.
    pub name: Name,
    /// The rules.
    pub rules: Vec<Rule>,
    /// What becomes of a frame that no rule matches.
    pub last: Verdict,
}

/// What becomes of a frame for which all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The conditions. One that looks beyond the end of the frame does not hold.
    pub conditions: Vec<Condition>,
    /// What becomes of the frame.
    pub verdict: Verdict,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Accept,
    /// It is dropped, and counted by the counter of this name.
    Drop(&'static str),
    /// The chain of this name decides.
    Goto(Name),
}

/// A condition on the bytes at `offset` from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Bytes from the first of the Ethernet header.
    pub offset: u16,
    /// The bits that count, as many bytes as are compared.
    pub mask: Bytes,
    /// What they have to be.
    pub test: Test,
}

/// What the bits that count have to be. Numbers are in network order, as in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Equal to this.
    Is(Bytes),
    /// Anything but this.
    IsNot(Bytes),
    /// A number from the first to the second, of at most 4 bytes.
    Between(Bytes, Bytes),
}

impl Condition {
    /// These bytes are at `offset`.
    #[must_use]
    pub fn is(offset: u16, bytes: &[u8]) -> Self {
        Self::whole(offset, Test::Is(Bytes::new(bytes)), bytes.len())
    }

    /// The bits of `mask` are as in `bytes`.
    #[must_use]
    pub fn masked(offset: u16, mask: &[u8], bytes: &[u8]) -> Self {
        let bits = bytes.iter().zip(mask).map(|(byte, mask)| byte & mask);
        Self {
            offset,
            mask: Bytes::new(mask),
            test: Test::Is(bits.collect()),
        }
    }

    /// The byte is a number from `low` to `high`.
    #[must_use]
    pub fn byte(offset: u16, low: u8, high: u8) -> Self {
        let test = Test::Between(Bytes::new(&[low]), Bytes::new(&[high]));
        Self::whole(offset, test, 1)
    }

    /// The bits of `mask` in two bytes are a number from `low` to `high`.
    #[must_use]
    pub fn bits(offset: u16, mask: u16, low: u16, high: u16) -> Self {
        let [mask, low, high] = [mask, low, high].map(|bits| Bytes::new(&bits.to_be_bytes()));
        Self {
            offset,
            mask,
            test: Test::Between(low, high),
        }
    }

    fn whole(offset: u16, test: Test, length: usize) -> Self {
        Self {
            offset,
            mask: std::iter::repeat_n(0xff, length).collect(),
            test,
        }
    }

    /// Other bytes than those are there. A condition on a range stays as it is.
    #[must_use]
    pub fn negated(self) -> Self {
        let test = match self.test {
            Test::Is(bytes) => Test::IsNot(bytes),
            Test::IsNot(bytes) => Test::Is(bytes),
            other @ Test::Between(..) => other,
        };
        Self { test, ..self }
    }

    /// The frame has a byte at `offset`.
    #[must_use]
    pub fn exists(offset: u16) -> Self {
        Self::byte(offset, 0, 0xff)
    }

    /// The bytes of the frame that it needs.
    #[must_use]
    pub fn extent(&self) -> usize {
        usize::from(self.offset) + self.mask.len()
    }

    /// Whether every bit counts.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.mask.iter().all(|mask| *mask == 0xff)
    }
}

impl Filter {
    /// The names of the chains.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let chains = self.chains.iter();
        chains.map(|chain| chain.name.to_string()).collect()
    }

    /// The names of the counters that frames are dropped by, each once.
    #[must_use]
    pub fn counters(&self) -> Vec<&'static str> {
        let of_rules = self.chains.iter().flat_map(|chain| {
            let verdicts = chain.rules.iter().map(|rule| &rule.verdict);
            verdicts.chain([&chain.last])
        });
        let mut names: Vec<&'static str> = of_rules
            .filter_map(|verdict| match verdict {
                Verdict::Drop(counter) => Some(*counter),
                _ => None,
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}
