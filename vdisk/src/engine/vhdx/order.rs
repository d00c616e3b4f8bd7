//! Whether blocks lie in the order of the disk without gaps, as a defragmented file has them.
//!
//! Between two blocks there may be regions and the log, which are not moved. Sector bitmap blocks count as
//! a gap: they lie where they were first needed. Does no I/O.

use crate::format::Region;
use crate::units::{FileOffset, MIB};

/// The blocks met so far, each of which lay where it belongs.
#[derive(Debug)]
pub(super) struct Order {
    /// What is not moved, by place.
    fixed: Vec<Region>,
    block_size: u64,
    /// End of the last one; nothing once one did not lie where it belongs.
    end: Option<u64>,
}

impl Order {
    /// No block was met; `fixed` is what is not moved.
    pub(super) fn new(mut fixed: Vec<Region>, block_size: u64) -> Self {
        fixed.sort_by_key(|region| region.at.0);
        Self {
            fixed,
            block_size,
            end: Some(MIB),
        }
    }

    /// The next block of the disk lies at `at`; whether that and every one before are in order.
    pub(super) fn meets(&mut self, at: u64) -> bool {
        let in_order = self.end.is_some_and(|end| self.first_place(end) == at);
        self.end = in_order.then_some(at + self.block_size);
        in_order
    }

    /// The first place for a block from `from` on.
    fn first_place(&self, from: u64) -> u64 {
        let mut place = Region {
            at: FileOffset(from),
            len: self.block_size,
        };
        for region in &self.fixed {
            if region.overlaps(&place) {
                place.at = FileOffset(region.end());
            }
        }
        place.at.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(block: u64) -> Order {
        let region = |at, len| Region {
            at: FileOffset(at * MIB),
            len: len * MIB,
        };
        Order::new(vec![region(8, 1), region(1, 2), region(3, 1)], block * MIB)
    }

    #[test]
    fn blocks_are_in_order_when_nothing_but_regions_lies_between_them() {
        let mut order = order(2);
        assert!(order.meets(4 * MIB) && order.meets(6 * MIB) && order.meets(9 * MIB));
        assert!(order.meets(11 * MIB) && !order.meets(14 * MIB));
        // What comes after one that is not is not either.
        assert!(!order.meets(16 * MIB));
    }

    #[test]
    fn a_gap_at_the_beginning_is_a_gap() {
        assert!(!order(1).meets(5 * MIB));
    }
}
