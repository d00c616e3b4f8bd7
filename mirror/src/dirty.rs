//! Which parts of a disk still have to be copied: a sparse two-level bitmap.
//!
//! One bit a granule of 4 KiB, in leaves of 2 MiB; leaves that are wholly dirty are kept as runs.
//! Memory goes where there are dirty bits: an idle 64 TB disk costs nothing, a wholly dirty one
//! costs one run. Must never forget a granule: clearing is only by [`DirtyMap::claim`].

use std::collections::BTreeMap;

use crate::GRANULE;
use crate::picture::Slots;

/// Granules of a leaf.
const LEAF_GRANULES: u64 = 512;
/// Words of a leaf.
const LEAF_WORDS: usize = 8;
/// Bytes of a leaf.
const LEAF: u64 = LEAF_GRANULES * GRANULE;

type Leaf = [u64; LEAF_WORDS];

/// A set of granules of one disk.
#[derive(Debug, Default)]
pub struct DirtyMap {
    /// Leaves that hold some dirty granules, by leaf number. Never all zero, never all ones, never
    /// inside a run of `full`.
    leaves: BTreeMap<u64, Leaf>,
    /// Runs of wholly dirty leaves: first leaf to the one past the last. Disjoint, not adjacent.
    full: BTreeMap<u64, u64>,
    /// How many granules are dirty.
    count: u64,
    /// The same in bytes, by slot of a picture, if one may be drawn.
    slots: Slots,
}

/// The granules touched by a range of bytes, as first and one past the last.
fn granules(offset: u64, len: u64) -> (u64, u64) {
    let end = offset.saturating_add(len);
    (offset / GRANULE, end.div_ceil(GRANULE))
}

/// The bits `from..to` of a leaf as a mask per word.
fn mask(word: usize, from: u64, to: u64) -> u64 {
    let base = word as u64 * 64;
    let low = from.clamp(base, base + 64) - base;
    let high = to.clamp(base, base + 64) - base;
    if low >= high {
        return 0;
    }
    let ones = high - low;
    if ones == 64 {
        u64::MAX
    } else {
        ((1 << ones) - 1) << low
    }
}

impl DirtyMap {
    /// The map of a disk of `size` bytes, of which a picture may be drawn.
    pub(crate) fn pictured(size: u64) -> Self {
        Self {
            slots: Slots::new(size),
            ..Self::default()
        }
    }

    /// Dirty bytes by slot.
    pub(crate) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// How many bytes are dirty, counted in whole granules.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.count * GRANULE
    }

    /// Whether nothing is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Every granule that the range touches is dirty from now on.
    pub fn mark(&mut self, offset: u64, len: u64) {
        let (mut at, end) = granules(offset, len);
        while at < end {
            let leaf = at / LEAF_GRANULES;
            let leaf_end = (leaf + 1) * LEAF_GRANULES;
            if at == leaf * LEAF_GRANULES && end >= leaf_end {
                let past = end / LEAF_GRANULES;
                self.fill(leaf, past);
                at = past * LEAF_GRANULES;
            } else {
                let stop = end.min(leaf_end);
                self.mark_in_leaf(leaf, at % LEAF_GRANULES, stop - leaf * LEAF_GRANULES);
                at = stop;
            }
        }
    }

    /// Whether every granule that the range touches is dirty.
    #[must_use]
    pub fn covers(&self, offset: u64, len: u64) -> bool {
        let (mut at, end) = granules(offset, len);
        while at < end {
            let leaf = at / LEAF_GRANULES;
            let stop = end.min((leaf + 1) * LEAF_GRANULES);
            if let Some(past) = self.run_of(leaf) {
                at = past * LEAF_GRANULES;
                continue;
            }
            let Some(words) = self.leaves.get(&leaf) else {
                return false;
            };
            let (from, to) = (at % LEAF_GRANULES, stop - leaf * LEAF_GRANULES);
            let all = words.iter().enumerate().all(|(i, word)| {
                let mask = mask(i, from, to);
                word & mask == mask
            });
            if !all {
                return false;
            }
            at = stop;
        }
        true
    }

    /// Take the first dirty run at or after byte `from`, at most `max` bytes of it; wraps to the
    /// start of the disk. The granules are clean afterwards. Offset and length in bytes.
    pub fn claim(&mut self, from: u64, max: u64) -> Option<(u64, u64)> {
        let first = self.next(from).or_else(|| self.next(0))?;
        self.claim_within(first, u64::MAX, max)
    }

    /// The first dirty byte at or after `from`; the first of its granule unless `from` is in it.
    #[must_use]
    pub fn next(&self, from: u64) -> Option<u64> {
        let granule = self.first_from(from / GRANULE)?;
        Some((granule * GRANULE).max(from))
    }

    /// Whether some of these bytes are dirty.
    #[must_use]
    pub fn meets(&self, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len);
        self.next(offset).is_some_and(|next| next < end)
    }

    /// Take the first dirty run at or after byte `from` and before `end`, at most `max` bytes of it. As
    /// [`DirtyMap::claim`] otherwise; `end` is a multiple of 4 KiB, or `u64::MAX`.
    pub fn claim_within(&mut self, from: u64, end: u64, max: u64) -> Option<(u64, u64)> {
        let max = (max / GRANULE).max(1);
        let end = end / GRANULE;
        let first = self
            .first_from(from / GRANULE)
            .filter(|first| *first < end)?;
        let mut past = first;
        while past < end.min(first + max) && self.is_set(past) {
            past += 1;
        }
        self.clear(first, past);
        Some((first * GRANULE, (past - first) * GRANULE))
    }

    /// Parts that hold all that is dirty, offset and length in bytes, in no order. Exact while leaves are few; where they
    /// are more than `most` each counts as a whole.
    #[must_use]
    pub fn outline(&self, most: usize) -> Vec<(u64, u64)> {
        let mut parts: Vec<(u64, u64)> = self
            .full
            .iter()
            .map(|(first, past)| (first * LEAF, (past - first) * LEAF))
            .collect();
        for (leaf, words) in &self.leaves {
            if self.leaves.len() > most {
                parts.push((leaf * LEAF, LEAF));
                continue;
            }
            let is_set = |granule: &u64| {
                let word = words.get((granule / 64) as usize);
                word.is_some_and(|word| word >> (granule % 64) & 1 == 1)
            };
            let at = |granule| leaf * LEAF + granule * GRANULE;
            parts.extend((0..LEAF_GRANULES).filter(is_set).map(|g| (at(g), GRANULE)));
        }
        parts
    }

    /// One past the last leaf of the full run that holds `leaf`.
    fn run_of(&self, leaf: u64) -> Option<u64> {
        let (_, past) = self.full.range(..=leaf).next_back()?;
        (*past > leaf).then_some(*past)
    }

    fn is_set(&self, granule: u64) -> bool {
        let leaf = granule / LEAF_GRANULES;
        let bit = granule % LEAF_GRANULES;
        self.run_of(leaf).is_some()
            || self
                .leaves
                .get(&leaf)
                .and_then(|words| words.get((bit / 64) as usize))
                .is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// The first dirty granule at or after `granule`.
    fn first_from(&self, granule: u64) -> Option<u64> {
        let leaf = granule / LEAF_GRANULES;
        if self.run_of(leaf).is_some() {
            return Some(granule);
        }
        let run = self
            .full
            .range(leaf..)
            .next()
            .map(|(first, _)| first * LEAF_GRANULES);
        let bit = self.leaves.range(leaf..).find_map(|(number, words)| {
            let from = if *number == leaf {
                granule % LEAF_GRANULES
            } else {
                0
            };
            let found = words.iter().enumerate().find_map(|(i, word)| {
                let left = word & mask(i, from, LEAF_GRANULES);
                (left != 0).then(|| i as u64 * 64 + u64::from(left.trailing_zeros()))
            })?;
            Some(number * LEAF_GRANULES + found)
        });
        match (run, bit) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn mark_in_leaf(&mut self, leaf: u64, from: u64, to: u64) {
        if self.run_of(leaf).is_some() {
            return;
        }
        let words = self.leaves.entry(leaf).or_default();
        for (i, word) in words.iter_mut().enumerate() {
            let mask = mask(i, from, to);
            let fresh = u64::from((mask & !*word).count_ones());
            self.count += fresh;
            self.slots.add_at(leaf * LEAF, fresh * GRANULE);
            *word |= mask;
        }
        if *words == [u64::MAX; LEAF_WORDS] {
            self.leaves.remove(&leaf);
            self.join(leaf, leaf + 1);
        }
    }

    /// The leaves `first..past` become wholly dirty.
    fn fill(&mut self, first: u64, past: u64) {
        let inside: Vec<u64> = self
            .leaves
            .range(first..past)
            .map(|(leaf, _)| *leaf)
            .collect();
        for leaf in inside {
            if let Some(words) = self.leaves.remove(&leaf) {
                let known = words.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
                self.count -= known;
                self.slots.take_at(leaf * LEAF, known * GRANULE);
            }
        }
        self.count += (past - first) * LEAF_GRANULES;
        self.slots.add(first * LEAF, (past - first) * LEAF);
        // What was full already is counted once only.
        for (a, b) in self.full.range(..past) {
            let (a, b) = ((*a).max(first), (*b).min(past));
            if a < b {
                self.count -= (b - a) * LEAF_GRANULES;
                self.slots.take(a * LEAF, (b - a) * LEAF);
            }
        }
        self.join(first, past);
    }

    /// Put the run `first..past` among the runs, joined with those it meets.
    fn join(&mut self, mut first: u64, mut past: u64) {
        let met: Vec<(u64, u64)> = self
            .full
            .range(..=past)
            .rev()
            .take_while(|(_, b)| **b >= first)
            .map(|(a, b)| (*a, *b))
            .collect();
        for (a, b) in met {
            self.full.remove(&a);
            first = first.min(a);
            past = past.max(b);
        }
        self.full.insert(first, past);
    }

    /// Clear the granules `from..to`, all of which are dirty.
    fn clear(&mut self, from: u64, to: u64) {
        let mut at = from;
        while at < to {
            let leaf = at / LEAF_GRANULES;
            let stop = to.min((leaf + 1) * LEAF_GRANULES);
            self.slots.take_at(leaf * LEAF, (stop - at) * GRANULE);
            self.split_out(leaf);
            if let Some(words) = self.leaves.get_mut(&leaf) {
                for (i, word) in words.iter_mut().enumerate() {
                    *word &= !mask(i, at % LEAF_GRANULES, stop - leaf * LEAF_GRANULES);
                }
                if *words == [0; LEAF_WORDS] {
                    self.leaves.remove(&leaf);
                }
            }
            at = stop;
        }
        self.count -= to - from;
    }

    /// If `leaf` is inside a run, turn it into a leaf of its own.
    fn split_out(&mut self, leaf: u64) {
        let Some((first, past)) = self.full.range(..=leaf).next_back().map(|(a, b)| (*a, *b))
        else {
            return;
        };
        if past <= leaf {
            return;
        }
        self.full.remove(&first);
        if first < leaf {
            self.full.insert(first, leaf);
        }
        if leaf + 1 < past {
            self.full.insert(leaf + 1, past);
        }
        self.leaves.insert(leaf, [u64::MAX; LEAF_WORDS]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Mark(u64, u64),
        Claim(u64, u64),
        Covers(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = (0_u64..8 << 20, 1_u64..5 << 20);
        prop_oneof![
            place.clone().prop_map(|(a, b)| Step::Mark(a, b)),
            (0_u64..8 << 20, 1_u64..20_000).prop_map(|(a, b)| Step::Mark(a, b)),
            place.clone().prop_map(|(a, b)| Step::Claim(a, b)),
            place.prop_map(|(a, b)| Step::Covers(a, b / 16 + 1)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_map_agrees_with_a_plain_set(steps in prop::collection::vec(step(), 1..40)) {
            let mut map = DirtyMap::pictured(16 << 20);
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Mark(offset, len) => {
                        map.mark(offset, len);
                        let (a, b) = granules(offset, len);
                        model.extend(a..b);
                    }
                    Step::Claim(from, max) => {
                        let from_granule = from / GRANULE;
                        let first = model.range(from_granule..).next().or(model.first()).copied();
                        let claimed = map.claim(from, max);
                        prop_assert_eq!(claimed.map(|(at, _)| at / GRANULE), first);
                        if let Some((at, len)) = claimed {
                            prop_assert!(len <= max.max(GRANULE));
                            for granule in at / GRANULE..(at + len) / GRANULE {
                                prop_assert!(model.remove(&granule));
                            }
                            let next = (at + len) / GRANULE;
                            let stopped_early = len / GRANULE < max / GRANULE;
                            prop_assert!(!(stopped_early && model.contains(&next)));
                        }
                    }
                    Step::Covers(offset, len) => {
                        let (a, b) = granules(offset, len);
                        let all = (a..b).all(|g| model.contains(&g));
                        prop_assert_eq!(map.covers(offset, len), all);
                    }
                }
                prop_assert_eq!(map.bytes(), model.len() as u64 * GRANULE);
                prop_assert_eq!(map.is_empty(), model.is_empty());
                let mut slots = Slots::new(16 << 20);
                for granule in &model {
                    slots.add_at(granule * GRANULE, GRANULE);
                }
                prop_assert_eq!(map.slots(), &slots);
            }
        }
    }

    #[test]
    fn a_wholly_dirty_disk_of_64_tb_costs_one_run() {
        let mut map = DirtyMap::default();
        map.mark(0, 64 << 40);
        assert_eq!((map.full.len(), map.leaves.len()), (1, 0));
        assert_eq!(map.claim(5 << 30, 1 << 20), Some((5 << 30, 1 << 20)));
        assert_eq!(map.bytes(), (64 << 40) - (1 << 20));
    }
}
