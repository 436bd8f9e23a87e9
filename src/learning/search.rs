//! Which taps ports are looked for: those that are no known port. Pure.
//!
//! Most of them are none of ours. But a port whose query was lost, or that could not be found at
//! first, must not stay unknown: it is looked for again, less often.

use std::collections::BTreeMap;

/// How often a new tap is looked for at each look at the taps.
const FIRST_SEARCHES: u32 = 3;
/// Of how many looks one leads to a search from then on.
const LOOKS_PER_SEARCH: u32 = 12;

/// The taps that are no known port.
#[derive(Default)]
pub struct UnknownTaps {
    /// At how many looks each of them was there.
    taps: BTreeMap<u32, u32>,
    /// How many looks there were: one count for all taps, so that old ones are looked for together.
    looks: u32,
}

impl UnknownTaps {
    /// Takes in the unknown taps that exist now; whether to look for their ports.
    pub fn update(&mut self, taps: impl Iterator<Item = u32>) -> bool {
        let looks = |tap| (tap, self.taps.get(&tap).map_or(1, |looks| looks + 1));
        self.taps = taps.map(looks).collect();
        self.looks = self.looks.wrapping_add(1);
        let again = self.looks.is_multiple_of(LOOKS_PER_SEARCH) && !self.taps.is_empty();
        again || self.taps.values().any(|looks| *looks <= FIRST_SEARCHES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_is_looked_for_at_once_and_then_less_often() {
        let mut unknown = UnknownTaps::default();
        assert!(!unknown.update([].into_iter()));
        let mut searches = |count| -> Vec<bool> {
            let looks = (0..count).map(|_| unknown.update([7].into_iter()));
            looks.collect()
        };
        assert_eq!(searches(4), [true, true, true, false]);
        assert_eq!(searches(120).iter().filter(|search| **search).count(), 10);
    }

    #[test]
    fn old_taps_are_looked_for_together() {
        let mut unknown = UnknownTaps::default();
        for taps in 1..=30 {
            assert!(unknown.update(0..taps), "tap {taps} is new");
        }
        let mut searches = |count| (0..count).filter(|_| unknown.update(0..30)).count();
        searches(FIRST_SEARCHES);
        assert_eq!(searches(10 * LOOKS_PER_SEARCH), 10);
    }

    #[test]
    fn a_tap_that_was_known_meanwhile_is_new() {
        let mut unknown = UnknownTaps::default();
        for _ in 0..5 {
            unknown.update([7].into_iter());
        }
        assert!(!unknown.update([7].into_iter()));
        assert!(unknown.update([7, 8].into_iter()), "another one came");
        unknown.update([8].into_iter());
        assert!(unknown.update([7, 8].into_iter()));
    }
}
