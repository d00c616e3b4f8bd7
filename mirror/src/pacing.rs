//! When to send what to the other host: windows, the rate asked for, the rate reached.
//!
//! Must never decide *what* is right to send, only when. Everything in bytes and [`Micros`].

use crate::clock::Micros;

/// How hard a session may work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bulk lanes, at least 1.
    pub lanes: u16,
    /// The longest chunk in bytes; at most 1 MiB, a multiple of 4 KiB.
    ///
    /// A guest's request may wait behind one read of this size, so it is not as large as it can be; half as long, a copy costs
    /// a quarter more of the processor's time.
    pub chunk: u64,
    /// How many reads of the disk are under way at once. One is enough for hundreds of MiB a second,
    /// and a client's request waits behind no more than that.
    pub reads: usize,
    /// Bytes of chunks, and bytes of records, that may be on the way.
    pub window: u64,
    /// Bytes of records kept in memory before changes fall back to the bitmap.
    pub queue: u64,
    /// Bytes of a block that is compared by its hash; a power of two from 4 KiB to 1 MiB, and at least a 128th of a chunk.
    ///
    /// Smaller ones cost more hashes (32 bytes each), larger ones send more that is the same.
    pub block: u32,
    /// How often the target is asked to make things durable.
    pub marker_every: Micros,
    /// How often what is needed to go on after a crash is kept.
    pub save_every: Micros,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lanes: 2,
            chunk: 512 << 10,
            reads: 1,
            window: 32 << 20,
            queue: 64 << 20,
            block: 32 << 10,
            marker_every: Micros::from_millis(100),
            save_every: Micros::from_secs(2),
        }
    }
}

/// Levels of zstd, from none to the one that is worth it only where the link is slow.
const LEVELS: [Option<i32>; 4] = [None, Some(1), Some(3), Some(6)];
/// Bytes a second over one lane beyond which packing costs more time than it spares: who is waited for then is the target.
const FAST: u64 = 150_000_000;
/// How often the level is thought over.
const THINK_EVERY: Micros = Micros::from_millis(250);
/// The longest that packing is not tried where it was of no use.
const MOST_SKIPPED: u32 = 32;

/// How hard to pack what one lane sends: harder where the link is what is waited for, not at all where it is not, and
/// now and then only where the data does not shrink.
#[derive(Debug)]
pub struct Squeeze {
    at: usize,
    since: Micros,
    waited: Micros,
    /// Bytes that the link took since then.
    carried: u64,
    /// Payloads that are sent as they are before packing is tried again, and how many at the next failure.
    skip: u32,
    next_skip: u32,
}

impl Default for Squeeze {
    fn default() -> Self {
        Self {
            at: 1,
            since: Micros(0),
            waited: Micros(0),
            carried: 0,
            skip: 0,
            next_skip: 1,
        }
    }
}

impl Squeeze {
    /// The level for the next payload; `None` for as it is.
    pub fn level(&mut self) -> Option<i32> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        LEVELS.get(self.at).copied().flatten()
    }

    /// A payload was packed, or did not shrink.
    pub fn packed(&mut self, shrank: bool) {
        if shrank {
            self.next_skip = 1;
        } else {
            self.skip = self.next_skip;
            self.next_skip = (self.next_skip * 2).min(MOST_SKIPPED);
        }
    }

    /// The link was waited for during `span`, up to `now`, and has taken so many `bytes`.
    pub fn waited(&mut self, now: Micros, span: Micros, bytes: u64) {
        self.waited = Micros(self.waited.0 + span.0);
        self.carried += bytes;
        let passed = now.since(self.since);
        if passed < THINK_EVERY {
            return;
        }
        let fast = u128::from(self.carried) * 1_000_000 > u128::from(FAST) * u128::from(passed.0);
        if fast || self.waited.0 * 10 < passed.0 {
            self.at = self.at.saturating_sub(1);
        } else if self.waited.0 * 2 > passed.0 {
            self.at = (self.at + 1).min(LEVELS.len() - 1);
        }
        self.since = now;
        self.waited = Micros(0);
        self.carried = 0;
    }
}

/// Lets the bulk copy spend bytes at a rate.
#[derive(Debug)]
pub struct Bucket {
    rate: Option<u64>,
    credit: i64,
    filled: Micros,
}

impl Bucket {
    /// A bucket for `rate` bytes a second.
    #[must_use]
    pub fn new(rate: Option<u64>) -> Self {
        Self {
            rate,
            credit: 0,
            filled: Micros(0),
        }
    }

    /// Bytes a second, if they are limited.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// Change the rate from now on.
    pub fn set_rate(&mut self, rate: Option<u64>) {
        self.rate = rate;
    }

    /// Whether something may be sent at `now`.
    pub fn open(&mut self, now: Micros) -> bool {
        let Some(rate) = self.rate else { return true };
        let rate = i64::try_from(rate).unwrap_or(i64::MAX).max(1);
        let passed = i64::try_from(now.since(self.filled).0.min(1_000_000)).unwrap_or(0);
        let gain = (rate / 1000).saturating_mul(passed) / 1000;
        if gain > 0 {
            self.filled = now;
            // At most a tenth of a second's worth is saved up, so that no burst follows a stall.
            self.credit = self.credit.saturating_add(gain).min(rate / 10);
        }
        self.credit >= 0
    }

    /// `bytes` were sent; the bucket may go below empty by one chunk.
    pub fn spend(&mut self, bytes: u64) {
        if self.rate.is_some() {
            self.credit = self
                .credit
                .saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}

/// Measures how fast bytes arrive durably at the other side.
#[derive(Debug, Default)]
pub struct Meter {
    since: Micros,
    bytes: u64,
    total: u64,
    smooth: u64,
    best: u64,
}

impl Meter {
    /// `bytes` more arrived at `now`.
    pub fn add(&mut self, now: Micros, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.total = self.total.saturating_add(bytes);
        self.tick(now);
    }

    /// Time passed.
    pub fn tick(&mut self, now: Micros) {
        let span = now.since(self.since).0;
        if span < 250_000 {
            return;
        }
        let rate = u128::from(self.bytes) * 1_000_000 / u128::from(span);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        self.smooth = if self.smooth == 0 {
            rate
        } else {
            self.smooth / 4 * 3 + rate / 4
        };
        // What the link did under load, forgotten slowly: an idle link is not a slow one.
        self.best = rate.max(self.best - self.best / 64);
        self.bytes = 0;
        self.since = now;
    }

    /// Bytes a second lately.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.smooth
    }

    /// All bytes so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How long `bytes` will take at the best rate of late; `None` when nothing was measured yet.
    #[must_use]
    pub fn time_for(&self, bytes: u64) -> Option<Micros> {
        if bytes == 0 {
            return Some(Micros(0));
        }
        if self.best == 0 {
            return None;
        }
        let micros = u128::from(bytes) * 1_000_000 / u128::from(self.best);
        Some(Micros(u64::try_from(micros).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_holds_over_time_and_saves_up_no_burst() {
        let rate = 10 << 20;
        let mut bucket = Bucket::new(Some(rate));
        let (mut now, mut sent) = (Micros::from_secs(100), 0);
        for _ in 0..2000 {
            now += Micros::from_millis(1);
            while bucket.open(now) {
                bucket.spend(64 << 10);
                sent += 64 << 10;
            }
        }
        assert!(
            (2 * rate * 9 / 10..2 * rate * 12 / 10).contains(&sent),
            "{sent} in two seconds"
        );
    }

    #[test]
    fn a_link_that_is_faster_than_packing_is_not_packed_for_however_long_it_is_waited_for() {
        let mut squeeze = Squeeze::default();
        for step in 1..=100 {
            squeeze.waited(Micros::from_millis(step * 10), Micros(9_000), 2_000_000);
        }
        assert_eq!(squeeze.level(), None);
    }

    /// A second in which the link is waited for so many of a thousand milliseconds.
    fn second(squeeze: &mut Squeeze, from: u64, share: u64) {
        for step in 1..=100 {
            squeeze.waited(
                Micros::from_millis(from + step * 10),
                Micros(share * 10),
                250_000,
            );
        }
    }

    #[test]
    fn a_slow_link_is_packed_for_hard_and_a_fast_one_not_at_all() {
        let mut squeeze = Squeeze::default();
        assert_eq!(squeeze.level(), Some(1));
        second(&mut squeeze, 1000, 900);
        assert_eq!(squeeze.level(), Some(6));
        second(&mut squeeze, 2000, 300);
        assert_eq!(squeeze.level(), Some(6));
        second(&mut squeeze, 3000, 20);
        assert_eq!(squeeze.level(), None);
    }

    #[test]
    fn what_does_not_shrink_is_tried_now_and_then_only() {
        let mut squeeze = Squeeze::default();
        let mut tried = 0;
        for _ in 0..1000 {
            if squeeze.level().is_some() {
                tried += 1;
                squeeze.packed(false);
            }
        }
        assert!((30..40).contains(&tried), "{tried} of 1000");
        while squeeze.level().is_none() {}
        squeeze.packed(true);
        assert!(squeeze.level().is_some());
    }

    #[test]
    fn an_idle_link_is_not_taken_for_a_slow_one() {
        let mut meter = Meter::default();
        for i in 1..=8 {
            meter.add(Micros::from_millis(250 * i), 25 << 20);
        }
        for i in 9..=16 {
            meter.add(Micros::from_millis(250 * i), 4096);
        }
        assert!(meter.rate() < 20 << 20);
        assert!(meter.time_for(8 << 20).unwrap() < Micros::from_millis(100));
        assert_eq!(meter.time_for(0), Some(Micros(0)));
    }
}
