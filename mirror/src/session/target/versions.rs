//! Which number wrote which bytes of the target's disk, for as long as something older may come.
//!
//! Must never forget a number above what was said to be past.

use std::collections::BTreeMap;

/// Byte ranges with the number that wrote them last.
#[derive(Debug, Default)]
pub(super) struct Versions {
    /// First byte to (one past the last, number). Disjoint.
    ranges: BTreeMap<u64, (u64, u64)>,
}

impl Versions {
    pub(super) fn clear(&mut self) {
        self.ranges.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The parts of `start..end` that may be overwritten: those whose number `yields`. They get
    /// `number`.
    pub(super) fn claim(
        &mut self,
        start: u64,
        end: u64,
        number: u64,
        yields: impl Fn(u64) -> bool,
    ) -> Vec<(u64, u64)> {
        let met: Vec<(u64, u64, u64)> = self
            .ranges
            .range(..end)
            .rev()
            .take_while(|(_, (past, _))| *past > start)
            .map(|(a, (b, n))| (*a, *b, *n))
            .collect();
        let mut parts = Vec::new();
        let mut at = start;
        for (a, b, n) in met.into_iter().rev() {
            if !yields(n) {
                if at < a {
                    parts.push((at, a));
                }
                at = at.max(b);
                continue;
            }
            // Its ends beyond the claim keep their number.
            self.ranges.remove(&a);
            if a < start {
                self.ranges.insert(a, (start, n));
            }
            if b > end {
                self.ranges.insert(end, (b, n));
            }
        }
        if at < end {
            parts.push((at, end));
        }
        for (a, b) in &parts {
            self.ranges.insert(*a, (*b, number));
        }
        parts
    }

    /// Nothing with a number up to `past` matters any more.
    pub(super) fn forget(&mut self, past: u64) {
        self.ranges.retain(|_, (_, number)| *number > past);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_map_agrees_with_a_number_per_byte(
            steps in prop::collection::vec((0_u64..100, 1_u64..40, 1_u64..20, any::<bool>()), 1..60)
        ) {
            let mut versions = Versions::default();
            let mut model = [0_u64; 160];
            for (start, len, number, ties) in steps {
                let end = start + len;
                let yields = |n: u64| if ties { n <= number } else { n < number };
                let parts = versions.claim(start, end, number, yields);
                let mut expected = Vec::new();
                for at in start..end {
                    if yields(model[at as usize]) {
                        model[at as usize] = number;
                        expected.push(at);
                    }
                }
                let got: Vec<u64> = parts.iter().flat_map(|(a, b)| *a..*b).collect();
                prop_assert_eq!(got, expected);
            }
            for (a, (b, n)) in &versions.ranges {
                prop_assert!((*a..*b).all(|at| model[at as usize] == *n));
            }
        }
    }
}
