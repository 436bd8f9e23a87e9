//! Chance that can be had again.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// A random seed.
pub fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// `SplitMix64`.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.number() % sides
    }

    /// So many milliseconds at most.
    pub fn pause(&mut self, most: u64) -> Duration {
        Duration::from_micros(self.roll(most * 1000))
    }
}
