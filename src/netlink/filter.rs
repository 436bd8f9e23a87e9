//! A packet filter, as nf_tables and classic BPF can both express it. Pure.

/// Chains of rules. A frame enters the first one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The chains; a rule leads to later ones only.
    pub chains: Vec<Chain>,
}

/// Rules, of which the first that matches decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The chain's name, unique in the filter.
    pub name: String,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Accept,
    /// It is dropped, and counted by the counter of this name.
    Drop(&'static str),
    /// The chain of this name decides.
    Goto(String),
}

/// A condition on the bytes at `offset` from the start of the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Bytes from the first of the Ethernet header.
    pub offset: u16,
    /// The bits that count, as many bytes as are compared.
    pub mask: Vec<u8>,
    /// What they have to be.
    pub test: Test,
}

/// What the bits that count have to be. Numbers are in network order, as in the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// Equal to this.
    Is(Vec<u8>),
    /// Anything but this.
    IsNot(Vec<u8>),
    /// A number from the first to the second, of at most 4 bytes.
    Between(Vec<u8>, Vec<u8>),
}

impl Condition {
    /// These bytes are at `offset`.
    #[must_use]
    pub fn is(offset: u16, bytes: &[u8]) -> Self {
        Self::masked(offset, &vec![0xff; bytes.len()], bytes)
    }

    /// The bits of `mask` are as in `bytes`.
    #[must_use]
    pub fn masked(offset: u16, mask: &[u8], bytes: &[u8]) -> Self {
        let bits = bytes.iter().zip(mask).map(|(byte, mask)| byte & mask);
        Self {
            offset,
            mask: mask.to_vec(),
            test: Test::Is(bits.collect()),
        }
    }

    /// Other bytes than these are at `offset`.
    #[must_use]
    pub fn is_not(offset: u16, bytes: &[u8]) -> Self {
        Self {
            offset,
            mask: vec![0xff; bytes.len()],
            test: Test::IsNot(bytes.to_vec()),
        }
    }

    /// The byte is a number from `low` to `high`.
    #[must_use]
    pub fn byte(offset: u16, low: u8, high: u8) -> Self {
        Self {
            offset,
            mask: vec![0xff],
            test: Test::Between(vec![low], vec![high]),
        }
    }

    /// The bits of `mask` in two bytes are a number from `low` to `high`.
    #[must_use]
    pub fn bits(offset: u16, mask: u16, low: u16, high: u16) -> Self {
        Self {
            offset,
            mask: mask.to_be_bytes().to_vec(),
            test: Test::Between(low.to_be_bytes().to_vec(), high.to_be_bytes().to_vec()),
        }
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
