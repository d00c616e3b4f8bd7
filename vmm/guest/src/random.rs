//! Numbers that look random and are always the same for a seed.

/// Splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        finish(self.0) % bound
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The number that belongs at a byte offset of a disk, for a seed.
pub(crate) fn stamp(seed: u64, offset: u64) -> u64 {
    finish((seed ^ offset).wrapping_add(STEP))
}

fn finish(mut mixed: u64) -> u64 {
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
