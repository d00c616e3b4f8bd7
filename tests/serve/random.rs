//! Numbers from a seed, and the seed of this run.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

/// A stream of numbers that depends on its seed alone (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    /// From `DISKFERRY_SEED`, else another one each time; says which.
    pub(crate) fn printed() -> Self {
        let given = std::env::var("DISKFERRY_SEED").ok();
        let seed = given.map_or_else(
            || RandomState::new().hash_one(0),
            |seed| seed.parse().expect("DISKFERRY_SEED is a number"),
        );
        println!("DISKFERRY_SEED={seed}");
        Self(seed)
    }

    /// From this seed.
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
