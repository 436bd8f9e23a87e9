//! How much a guest may send and receive: from rates to token buckets. Pure.

use crate::netlink::Tbf;

/// The lowest and the highest rate, in bits per second.
pub const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000;
/// The longest burst, in bits: the kernel counts bytes with 32 bits.
pub const MAX_BURST: u64 = 8 * u32::MAX as u64;

/// Bytes of headers that a frame has beside the MTU: Ethernet, and two tags.
const HEADERS: u32 = 14 + 8;
/// The longest burst, in seconds at the rate. The kernel says how long it is in 32 bits of 64 ns,
/// which end after 274.9 s (`tbf_dump`); a longer one could not be compared, nor shown.
const MAX_BURST_SECONDS: u64 = 274;
/// The highest MTU that the kernel knows.
const MAX_MTU: u32 = 65535;
/// A burst for which there is no number lasts this long: as long as a busy node may let a timer
/// wait, or the rate would not be reached.
const BURST_MILLISECONDS: u64 = 10;
/// What may wait for a guest lasts this long, and is within these bounds in bytes. What comes on
/// top is dropped, which is how TCP finds out about the rate.
const QUEUE_MILLISECONDS: u64 = 100;
const MIN_QUEUE: u64 = 128 << 10;
const MAX_QUEUE: u64 = 16 << 20;
/// Bytes that may wait to be sent by a guest. TCP in a guest has at most some megabytes on their
/// way (`tcp_wmem`), and where the tap has a send buffer, that is full before.
const SEND_QUEUE: u32 = 16 << 20;

/// The rates of an attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Of what the guest receives.
    pub ingress: Option<Limit>,
    /// Of what the guest sends.
    pub egress: Option<Limit>,
}

/// A rate, and what may be above it for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second.
    pub rate: u64,
    /// Bits after a pause; chosen by the rate if none.
    pub burst: Option<u64>,
}

impl Limit {
    /// The bucket for what a guest receives by frames of `mtu`.
    #[must_use]
    pub fn to_guest(self, mtu: u32) -> Tbf {
        let queue = self
            .bytes_in(QUEUE_MILLISECONDS)
            .clamp(MIN_QUEUE, MAX_QUEUE);
        let mut tbf = self.from_guest(mtu);
        tbf.limit = saturated(queue).saturating_add(tbf.burst);
        tbf
    }

    /// The bucket for what a guest sends by frames of `mtu`. It takes the longest frame at least;
    /// the kernel cuts segments that wait for the card to cut them.
    #[must_use]
    pub fn from_guest(self, mtu: u32) -> Tbf {
        let burst = self.burst.map(|bits| bits / 8);
        let burst = burst.unwrap_or_else(|| self.bytes_in(BURST_MILLISECONDS));
        let rate = self.rate / 8;
        let burst = burst.min(rate * MAX_BURST_SECONDS).max(frames(mtu));
        Tbf {
            rate,
            burst: saturated(burst),
            limit: SEND_QUEUE,
        }
    }

    /// Whether this bucket has the rate and the burst, rounded by the kernel, and lets frames of
    /// `mtu` pass. It may have been made for frames of another MTU.
    #[must_use]
    pub fn is(self, found: &Tbf, mtu: u32) -> bool {
        let rounded = |burst: u32| burst / 100 + 1;
        let (least, most) = (self.from_guest(mtu), self.from_guest(mtu.max(MAX_MTU)));
        found.rate == least.rate
            && found.burst.saturating_add(rounded(least.burst)) >= least.burst
            && found.burst <= most.burst.saturating_add(rounded(most.burst))
    }

    fn bytes_in(self, milliseconds: u64) -> u64 {
        self.rate / 8 * milliseconds / 1000
    }
}

/// A rate as people write it, in bits per second; 0 for none.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'M', 'G']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, ""),
    };
    let factor = match unit {
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => 1,
    };
    let number = digits.parse::<u64>().ok();
    let rate = number.and_then(|number| number.checked_mul(factor));
    rate.filter(|rate| *rate == 0 || RATES.contains(rate))
        .ok_or_else(|| {
            let (low, high) = (RATES.start(), RATES.end());
            format!("must be 0, or from {low} to {high} bits per second, as in 100M")
        })
}

/// Bytes of the fewest frames that a bucket takes.
fn frames(mtu: u32) -> u64 {
    2 * u64::from(mtu + HEADERS)
}

fn saturated(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_as_people_write_them() {
        for (text, rate) in [
            ("0", Some(0)),
            ("1000", Some(1000)),
            ("500k", Some(500_000)),
            ("10G", Some(10_000_000_000)),
            ("999", None),
            ("1", None),
            ("2000G", None),
            ("-1", None),
            ("1.5G", None),
            ("G", None),
            ("18446744073709551616", None),
        ] {
            assert_eq!(parse_rate(text).ok(), rate, "{text}");
        }
    }

    #[test]
    fn buckets_by_rate_burst_and_mtu() {
        for (rate, burst, mtu, expected) in [
            // rate, burst, and what may wait for the guest beside the burst
            (1_000_000, None, 1500, (125_000, 3044, 128 << 10)),
            (1_000_000, None, 9000, (125_000, 18044, 128 << 10)),
            (100_000_000, None, 1500, (12_500_000, 125_000, 1_250_000)),
            (
                10_000_000_000,
                None,
                1500,
                (1_250_000_000, 12_500_000, 16 << 20),
            ),
            (
                8_000_000,
                Some(800_000),
                1500,
                (1_000_000, 100_000, 128 << 10),
            ),
            (8_000_000, Some(8), 1500, (1_000_000, 3044, 128 << 10)),
        ] {
            let limit = Limit { rate, burst };
            let tbf = limit.to_guest(mtu);
            let found = (tbf.rate, tbf.burst, tbf.limit - tbf.burst);
            assert_eq!(found, expected);
            assert_eq!(limit.from_guest(mtu).limit, 16 << 20);
        }
        for (rate, burst) in [
            (1_000, 34_250),
            (10_000_000, 342_500_000),
            (200_000_000, u32::MAX),
        ] {
            let longest = Limit {
                rate,
                burst: Some(MAX_BURST),
            };
            assert_eq!(longest.to_guest(1500).burst, burst);
        }
    }

    #[test]
    fn a_bucket_is_the_limits_if_frames_pass() {
        let limit = |burst| Limit {
            rate: 1_000_000,
            burst,
        };
        let made = limit(None).from_guest(1500);
        assert!(limit(None).is(&made, 1500));
        assert!(limit(None).is(&made, 1400), "made for longer frames");
        assert!(!limit(None).is(&made, 9000), "would drop them");
        let other_rate = Tbf { rate: 1, ..made };
        assert!(!limit(None).is(&other_rate, 1500));
        let burst = Some(8_000_000);
        let rounded = Tbf {
            burst: 999_000,
            ..made
        };
        assert!(limit(burst).is(&rounded, 1500));
        for burst in [900_000, 1_100_000] {
            let other = Tbf { burst, ..made };
            assert!(!limit(Some(8_000_000)).is(&other, 1500));
        }
    }
}
