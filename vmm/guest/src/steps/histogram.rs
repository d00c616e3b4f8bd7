//! How long requests took.

/// Buckets of a power of two, as a power of two: what is said is at most an eighth too much.
const FINE: u32 = 3;
/// Powers of two that are told apart; what took longer than 2^40 ticks is in the last bucket.
const POWERS: usize = 40;
const BUCKETS: usize = POWERS << FINE;

/// Counts of times in ticks.
pub(super) struct Histogram {
    counts: [u32; BUCKETS],
    total: u64,
    /// The longest of all.
    pub(super) longest: u64,
}

impl Histogram {
    /// No times.
    pub(super) fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            total: 0,
            longest: 0,
        }
    }

    /// Adds one.
    pub(super) fn add(&mut self, ticks: u64) {
        self.counts[bucket(ticks)] += 1;
        self.total += 1;
        self.longest = self.longest.max(ticks);
    }

    /// What `share` thousandths of all are at most; 0 when there are none.
    pub(super) fn at_most(&self, share: u64) -> u64 {
        let wanted = (self.total * share).div_ceil(1000);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted && wanted > 0 {
                return top(bucket).min(self.longest);
            }
        }
        self.longest
    }
}

fn bucket(ticks: u64) -> usize {
    let ticks = ticks.max(1 << FINE);
    let power = ticks.ilog2() - FINE;
    let fine = (ticks >> power) as usize - (1 << FINE);
    (((power as usize) << FINE) + fine).min(BUCKETS - 1)
}

/// The longest time of a bucket.
fn top(bucket: usize) -> u64 {
    let (power, fine) = (bucket >> FINE, bucket % (1 << FINE));
    (((fine + (1 << FINE) + 1) as u64) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, Histogram, bucket, top};

    #[test]
    fn a_bucket_holds_what_is_at_most_an_eighth_apart() {
        for ticks in (0..2000).chain((3..40).map(|shift| 1 << shift)) {
            let top = top(bucket(ticks));
            assert!(
                top >= ticks && top <= ticks.max(8) + ticks / 8,
                "{ticks}: {top}"
            );
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_share_is_found() {
        let mut times = Histogram::new();
        assert_eq!(times.at_most(500), 0);
        for ticks in 1..=1000 {
            times.add(ticks * 1000);
        }
        let half = times.at_most(500);
        assert!((500_000..=563_000).contains(&half), "{half}");
        assert_eq!(times.at_most(1000), 1_000_000);
    }
}
