//! Which mebibytes of an image file are in use: one bit each, so that 64 TiB take 8 MiB.
//!
//! Every object of a VHDX file begins at a multiple of 1 MiB and takes whole mebibytes, so one pass
//! over all objects finds every overlap (MS-VHDX 2.1). Does no I/O and decides nothing.

use crate::format::MAX_FILE_OFFSET;
use crate::units::MIB;

const WORD: u64 = 64;
/// No mebibyte from here on can be claimed.
const LIMIT: u64 = MAX_FILE_OFFSET / MIB;

/// The mebibytes in use. All numbers are in mebibytes from the start of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpaceMap {
    words: Vec<u64>,
    used: u64,
}

/// What opening an image has found in use.
#[derive(Clone, Debug, Default)]
pub struct Occupied {
    /// The mebibytes of headers, log and regions, and of blocks if `scanned`.
    pub map: SpaceMap,
    /// Whether the whole BAT was read.
    pub scanned: bool,
    /// Nothing in use lies from this byte of the file on.
    pub end: u64,
}

/// The part of word `word` that lies in `first..end`, as a mask.
fn mask(word: u64, first: u64, end: u64) -> u64 {
    let base = word * WORD;
    let low = first.saturating_sub(base).min(WORD);
    let high = end.saturating_sub(base).min(WORD);
    let below = |bits: u64| {
        if bits == WORD {
            u64::MAX
        } else {
            (1 << bits) - 1
        }
    };
    below(high) & !below(low)
}

impl SpaceMap {
    /// A map with nothing in use.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn word(&self, word: u64) -> u64 {
        self.words.get(word as usize).copied().unwrap_or(0)
    }

    /// Takes `count` mebibytes from `first`. When one of them is in use (or lies beyond 128 TiB)
    /// nothing is taken, and the error is that mebibyte.
    pub fn claim(&mut self, first: u64, count: u64) -> Result<(), u64> {
        let end = first.saturating_add(count);
        if end > LIMIT {
            return Err(first.max(LIMIT));
        }
        if count == 0 {
            return Ok(());
        }
        let (from, to) = (first / WORD, (end - 1) / WORD);
        for word in from..=to {
            let taken = self.word(word) & mask(word, first, end);
            if taken != 0 {
                return Err(word * WORD + u64::from(taken.trailing_zeros()));
            }
        }
        self.fill(first, count);
        Ok(())
    }

    /// Takes `count` mebibytes from `first`, whatever of them was in use; those beyond 128 TiB are not.
    pub fn fill(&mut self, first: u64, count: u64) {
        let end = first.saturating_add(count).min(LIMIT);
        if first >= end {
            return;
        }
        let (from, to) = (first / WORD, (end - 1) / WORD);
        if self.words.len() as u64 <= to {
            self.words.resize(to as usize + 1, 0);
        }
        for word in from..=to {
            if let Some(bits) = self.words.get_mut(word as usize) {
                let new = mask(word, first, end) & !*bits;
                *bits |= new;
                self.used += u64::from(new.count_ones());
            }
        }
    }

    /// Gives `count` mebibytes from `first` back; what was not in use stays so.
    pub fn release(&mut self, first: u64, count: u64) {
        let end = first
            .saturating_add(count)
            .min(self.words.len() as u64 * WORD);
        if first >= end {
            return;
        }
        for word in first / WORD..=(end - 1) / WORD {
            if let Some(bits) = self.words.get_mut(word as usize) {
                let gone = *bits & mask(word, first, end);
                *bits &= !gone;
                self.used -= u64::from(gone.count_ones());
            }
        }
    }

    /// Whether a mebibyte is in use.
    #[must_use]
    pub fn is_used(&self, mib: u64) -> bool {
        self.word(mib / WORD) >> (mib % WORD) & 1 == 1
    }

    /// How many are in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
    }

    /// The mebibyte after the last one in use.
    #[must_use]
    pub fn end(&self) -> u64 {
        let last = self.words.iter().rposition(|bits| *bits != 0);
        last.map_or(0, |word| {
            let bits = self.words.get(word).copied().unwrap_or(0);
            (word as u64 + 1) * WORD - u64::from(bits.leading_zeros())
        })
    }

    /// The first mebibyte at or after `from` that is free if `free`, in use if not; at most `limit`.
    fn next(&self, from: u64, limit: u64, free: bool) -> u64 {
        let mut at = from;
        while at < limit {
            let word = self.word(at / WORD);
            let candidates = if free { !word } else { word };
            let wanted = candidates & mask(at / WORD, at, u64::MAX);
            if wanted != 0 {
                return (at / WORD * WORD + u64::from(wanted.trailing_zeros())).min(limit);
            }
            if !free && at / WORD >= self.words.len() as u64 {
                return limit;
            }
            at = (at / WORD + 1) * WORD;
        }
        limit
    }

    /// The free runs below `limit`: first mebibyte and how many, in ascending order.
    pub fn free_runs(&self, limit: u64) -> impl Iterator<Item = (u64, u64)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = self.next(at, limit, true);
            at = self.next(first, limit, false);
            (first < limit).then_some((first, at - first))
        })
    }

    /// The lowest `count` free mebibytes in a row at or after `from` and wholly below `limit`.
    #[must_use]
    pub fn find_free(&self, from: u64, count: u64, limit: u64) -> Option<u64> {
        let mut at = from;
        loop {
            let first = self.next(at, limit, true);
            let end = first.checked_add(count).filter(|end| *end <= limit)?;
            at = self.next(first, end, false);
            if at == end {
                return Some(first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn absurd_claims_take_no_memory() {
        let mut map = SpaceMap::new();
        assert!(map.claim(u64::MAX, u64::MAX).is_err());
        assert!(map.claim(LIMIT, 1).is_err());
        assert_eq!(map.words.capacity(), 0);
        assert!(map.claim(LIMIT - 1, 1).is_ok());
        assert_eq!(map.end(), LIMIT);
    }

    proptest! {
        #[test]
        fn it_is_a_set(
            steps in prop::collection::vec((any::<bool>(), 0..400_u64, 0..150_u64), 0..40),
            from in 0..500_u64, count in 1..200_u64, limit in 0..700_u64,
        ) {
            let mut map = SpaceMap::new();
            let mut model = BTreeSet::new();
            for (claim, first, count) in steps {
                let range = first..first + count;
                if claim {
                    let taken = range.clone().find(|mib| model.contains(mib));
                    prop_assert_eq!(map.claim(first, count).err(), taken);
                    if taken.is_none() {
                        model.extend(range);
                    }
                } else {
                    map.release(first, count);
                    model.retain(|mib| !range.contains(mib));
                }
            }
            prop_assert_eq!(map.used(), model.len() as u64);
            prop_assert_eq!(map.end(), model.last().map_or(0, |last| last + 1));
            prop_assert!((0..600).all(|mib| map.is_used(mib) == model.contains(&mib)));
            let free: Vec<u64> = map.free_runs(limit).flat_map(|(f, n)| f..f + n).collect();
            let expected: Vec<u64> = (0..limit).filter(|mib| !model.contains(mib)).collect();
            prop_assert_eq!(free, expected);
            let lowest = (from..limit.saturating_sub(count - 1))
                .find(|first| (*first..first + count).all(|mib| !model.contains(&mib)));
            prop_assert_eq!(map.find_free(from, count, limit), lowest);
        }
    }
}
