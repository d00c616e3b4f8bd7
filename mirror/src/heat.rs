//! Which parts of a disk are written again and again, so that they are copied last.
//!
//! What is written before it was copied costs nothing: it is dirty already. What is written after it was copied has to
//! travel again. So the bytes on the way are least when a part is copied the later the more often it is written (Zheng et
//! al., VEE 2011, in the order that suits a mirror). Must never decide whether a part is copied, only when.

use std::collections::{BTreeMap, VecDeque};

/// Bytes of a region.
pub(crate) const REGION: u64 = 1 << 20;
/// Regions of which writes are counted; others are taken for cold. As bytes less than what the scan for allocated parts waits
/// for, so that hot parts that wait for the scan cannot keep it waiting.
const MOST: usize = 16 << 10;
/// So many writes lately make a region hot.
const HOT: u32 = 3;

/// Writes of late by region.
#[derive(Debug)]
pub(crate) struct Heat {
    region: u64,
    counts: BTreeMap<u64, u32>,
    /// Hot regions to be copied now, the coldest first.
    turn: VecDeque<u64>,
}

impl Heat {
    pub(crate) fn new(region: u64) -> Self {
        Self {
            region,
            counts: BTreeMap::new(),
            turn: VecDeque::new(),
        }
    }

    /// The region that holds this byte.
    pub(crate) fn region_of(&self, offset: u64) -> u64 {
        offset / self.region
    }

    /// First byte of a region, and the one past its last.
    pub(crate) fn bytes_of(&self, region: u64) -> (u64, u64) {
        let start = region.saturating_mul(self.region);
        (start, start.saturating_add(self.region))
    }

    /// These bytes were written. Long changes do not come again and again, so they count for the region they begin in.
    pub(crate) fn touch(&mut self, offset: u64) {
        let region = self.region_of(offset);
        if let Some(count) = self.counts.get_mut(&region) {
            *count = count.saturating_add(1);
        } else if self.counts.len() < MOST {
            self.counts.insert(region, 1);
        }
    }

    /// Time passed: what was counted counts half.
    pub(crate) fn fade(&mut self) {
        self.counts.retain(|_, count| {
            *count /= 2;
            *count > 0
        });
    }

    pub(crate) fn is_hot(&self, region: u64) -> bool {
        self.counts.get(&region).is_some_and(|count| *count >= HOT)
    }

    /// First bytes of the regions that are hot.
    pub(crate) fn hot(&self) -> Vec<u64> {
        let hot = self.counts.iter().filter(|(_, count)| **count >= HOT);
        hot.map(|(region, _)| region.saturating_mul(self.region))
            .collect()
    }

    /// The hot region whose turn it is, if they have one.
    pub(crate) fn turn(&self) -> Option<u64> {
        self.turn.front().copied()
    }

    /// That region has had its turn.
    pub(crate) fn turn_over(&mut self) {
        self.turn.pop_front();
    }

    /// Give each hot region a turn, the coldest first.
    pub(crate) fn give_turns(&mut self) {
        let mut hot: Vec<(u32, u64)> = self
            .counts
            .iter()
            .filter(|(_, count)| **count >= HOT)
            .map(|(region, count)| (*count, *region))
            .collect();
        hot.sort_unstable();
        self.turn = hot.into_iter().map(|(_, region)| region).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_often_has_its_turn_last_and_what_was_no_more_has_none() {
        let mut heat = Heat::new(REGION);
        for _ in 0..100 {
            heat.touch(5 * REGION + 4096);
        }
        for _ in 0..20 {
            heat.touch(3 * REGION);
            heat.touch(9 * REGION);
        }
        for _ in 0..HOT - 1 {
            heat.touch(7 * REGION);
        }
        let turns = |heat: &mut Heat| {
            heat.give_turns();
            let all: Vec<u64> = heat.turn.iter().copied().collect();
            all
        };
        assert_eq!(turns(&mut heat), [3, 9, 5]);
        for _ in 0..3 {
            heat.fade();
        }
        assert_eq!(turns(&mut heat), [5]);
        for _ in 0..10 {
            heat.fade();
        }
        assert!(turns(&mut heat).is_empty() && heat.counts.is_empty());
    }

    #[test]
    fn writes_everywhere_take_no_more_memory_than_said() {
        let mut heat = Heat::new(REGION);
        for region in 0..2 * MOST as u64 {
            heat.touch(region * REGION);
        }
        assert_eq!(heat.counts.len(), MOST);
    }
}
