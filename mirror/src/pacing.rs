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
    /// A guest's request may wait behind one read of this size, so it is not as large as it can be.
    pub chunk: u64,
    /// How many reads of the disk are under way at once. One is enough for hundreds of MiB a second,
    /// and a client's request waits behind no more than that.
    pub reads: usize,
    /// Bytes of chunks, and bytes of records, that may be on the way.
    pub window: u64,
    /// Bytes of records kept in memory before changes fall back to the bitmap.
    pub queue: u64,
    /// Bytes a second for the bulk copy; `None` for as fast as it goes.
    pub rate: Option<u64>,
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
            chunk: 256 << 10,
            reads: 1,
            window: 32 << 20,
            queue: 64 << 20,
            rate: None,
            block: 32 << 10,
            marker_every: Micros::from_millis(100),
            save_every: Micros::from_secs(2),
        }
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
