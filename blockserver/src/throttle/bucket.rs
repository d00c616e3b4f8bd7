//! A bucket of tokens that fills at a rate.
//!
//! Machine. It counts in billionths of a token: so many a second are as many billionths a nanosecond, which
//! is a whole number, so nothing is ever rounded and nothing drifts.

/// Billionths in a token.
const WHOLE: i128 = 1_000_000_000;

/// How fast tokens come, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_second: u64,
    burst: u64,
}

impl Rate {
    /// The highest rate and the largest burst, in tokens.
    pub const MOST: u64 = 1 << 60;

    /// So many a second, of which at most `burst` are kept; `None` unless both are 1 to [`Self::MOST`].
    #[must_use]
    pub fn new(per_second: u64, burst: u64) -> Option<Self> {
        let sound = |number| (1..=Self::MOST).contains(&number);
        #[rustfmt::skip]
        let rate = Self { per_second, burst };
        (sound(per_second) && sound(burst)).then_some(rate)
    }

    /// The burst if nothing is said: what comes in a tenth of a second.
    #[must_use]
    pub fn usual_burst(per_second: u64) -> u64 {
        (per_second / 10).max(1)
    }

    /// Tokens a second.
    #[must_use]
    pub fn per_second(self) -> u64 {
        self.per_second
    }

    /// Tokens that are kept.
    #[must_use]
    pub fn burst(self) -> u64 {
        self.burst
    }

    fn full(self) -> i128 {
        i128::from(self.burst).saturating_mul(WHOLE)
    }

    /// What a bucket holds at most: full, and what a wait that was rounded up to a nanosecond brought besides.
    fn most(self) -> i128 {
        self.full()
            .saturating_add(self.per_second.saturating_sub(1).into())
    }
}

/// Tokens of one kind. What is in it may be a debt.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    /// Billionths of tokens.
    fill: i128,
    /// The time that `fill` is of.
    at: u64,
}

impl Bucket {
    /// A full one, now.
    #[must_use]
    pub fn new(rate: Rate, now: u64) -> Self {
        Self {
            rate,
            fill: rate.full(),
            at: now,
        }
    }

    /// What the bucket is like.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Fill in what has come since. A time from before is now: clocks of several workers differ.
    fn pass(&mut self, now: u64) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let came = i128::from(passed).saturating_mul(i128::from(self.rate.per_second));
        self.fill = self.fill.saturating_add(came).min(self.rate.most());
    }

    /// Nanoseconds until `amount` may be taken if `ahead` is taken before; 0 means now. What is more than
    /// the bucket keeps may be taken when it is full.
    pub fn wait(&mut self, now: u64, ahead: u128, amount: u64) -> u64 {
        self.pass(now);
        let ahead = i128::try_from(ahead).unwrap_or(i128::MAX);
        let wanted = ahead.saturating_add(amount.min(self.rate.burst).into());
        let missing = wanted.saturating_mul(WHOLE).saturating_sub(self.fill);
        let missing = u128::try_from(missing).unwrap_or(0);
        let wait = missing.div_ceil(self.rate.per_second.into());
        u64::try_from(wait).unwrap_or(u64::MAX)
    }

    /// Whether all of `amount` may be taken with `ahead` left in it.
    #[must_use]
    pub fn spares(&self, ahead: u128, amount: u64) -> bool {
        let ahead = i128::try_from(ahead).unwrap_or(i128::MAX);
        let wanted = ahead.saturating_add(amount.into());
        wanted.saturating_mul(WHOLE) <= self.fill
    }

    /// Take `amount`, for which [`Self::wait`] has just said 0.
    pub fn take(&mut self, amount: u64) {
        let taken = i128::from(amount).saturating_mul(WHOLE);
        self.fill = self.fill.saturating_sub(taken);
    }

    /// From now on it fills at another rate. What is in it stays, as far as it is kept: who changes the
    /// rate again and again makes no tokens by that.
    pub fn change(&mut self, rate: Rate, now: u64) {
        self.pass(now);
        self.rate = rate;
        self.fill = self.fill.min(rate.most());
    }
}
