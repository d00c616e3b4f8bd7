//! What a session was asked to keep to: a deadline, and how far its clients may be slowed down for it.
//!
//! A disk that is written to faster than the link carries never arrives. Left alone that shows at the end; here it is
//! seen in time. From what the link carries when it is busy, what clients write, and how much of that has to travel
//! (what is written over before it is sent does not) it is worked out how long the rest takes, and how fast clients may
//! write so that it is there by the deadline: with `B` bytes a second of the link, `R` bytes left, `T` seconds left and
//! `a` bytes to send for each byte written, that is `(B - R/T) / a`. They are slowed down to that and no further, and not
//! at all if they write less anyway.
//!
//! Machine: it is told figures and the time. Must never be used to decide what is right to send.
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "rates are measured, and none of them is negative where it becomes a number of bytes"
)]

mod landing;

use std::fmt;

use serde::Serialize;

use self::landing::Landing;
use crate::clock::Micros;

/// How often figures are taken.
const EVERY: Micros = Micros::from_millis(250);
/// Over how long the link is measured: what is durable at the target comes in bursts.
const LINK_EVERY: Micros = Micros::from_secs(1);
/// How much of the link is counted on: the rest is for what cannot be foreseen.
const COUNTED_ON: f64 = 0.9;
/// Of what the link carries, what clients may take when the deadline is past or cannot be kept: the disk arrives all the same.
const WHEN_LATE: f64 = 0.5;
/// Writers that take less than this share of what they may are not held back by it.
const IDLE: f64 = 0.8;
/// For so long, before they are let go.
const IDLE_FOR: Micros = Micros::from_secs(2);
/// For so long what was measured of the link says something of now.
const FRESH: Micros = Micros::from_secs(10);
/// Clients are never slowed down to less.
const LEAST: f64 = 64.0 * 1024.0;
/// Kept free before the deadline for the switchover.
const RESERVE: Micros = Micros::from_secs(1);
/// How much of a new figure is taken into the old one.
const NEW: f64 = 0.2;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The target is to be in step by then, on the session's clock.
    pub deadline: Option<Micros>,
    /// By how many of a hundred clients' writes may be slowed down for it; `None` for as far as it takes.
    pub max_slowdown: Option<u8>,
}

/// Figures of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Bytes that are to be sent, those included that are on the way, as far as is known or can be guessed.
    pub left: u64,
    /// Bytes that are durable at the target, all together.
    pub done: u64,
    /// Bytes that clients wrote, all together.
    pub written: u64,
    /// Bytes that have to travel because of that.
    pub added: u64,
    /// Whether the target is reached.
    pub connected: bool,
}

/// How long it will take, in seconds; most of the time between `least` and `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// Most likely.
    pub seconds: u64,
    /// If the link is as fast as it was at its best.
    pub least: u64,
    /// If it is as slow as it was; `None`: never.
    pub most: Option<u64>,
}

/// Why a wish cannot be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// Even if nobody wrote anything it would take so many seconds, of which so many are left.
    Deadline {
        /// Needed.
        needed: u64,
        /// Left.
        left: u64,
    },
    /// Clients would have to write at most so many bytes a second, and may only be slowed down to so many.
    Slowdown {
        /// What the deadline needs.
        needed: u64,
        /// What they may be slowed down to.
        allowed: u64,
    },
    /// The deadline is past.
    Late,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline { needed, left } => write!(
                f,
                "the deadline cannot be kept: what is left takes {needed} s even if nothing is written, and {left} s are \
                 left; a seed would save most of the transfer"
            ),
            Self::Slowdown { needed, allowed } => write!(
                f,
                "the deadline cannot be kept: writes would have to be held to {needed} bytes a second, and may only be \
                 slowed down to {allowed}"
            ),
            Self::Late => f.write_str(
                "the deadline is past; writes are held so far that the disk still arrives",
            ),
        }
    }
}

/// A figure that varies: where it lies, and how far from there it usually is.
#[derive(Clone, Copy, Debug, Default)]
struct Varying {
    mean: f64,
    off: f64,
    known: bool,
}

impl Varying {
    fn learn(&mut self, value: f64) {
        if !self.known {
            *self = Self {
                mean: value,
                off: value / 4.0,
                known: true,
            };
            return;
        }
        self.off += NEW * ((value - self.mean).abs() - self.off);
        self.mean += NEW * (value - self.mean);
    }
}

/// The machine.
#[derive(Debug, Default)]
pub struct Contract {
    wish: Wish,
    at: Option<(Micros, Seen)>,
    /// Since when the link has had more to carry than it could, and what was durable then.
    busy_since: Option<(Micros, u64)>,
    /// What the link carries when it is busy, in bytes a second.
    link: Varying,
    link_at: Micros,
    /// What clients write, and what they wrote when nothing held them.
    writing: Varying,
    free: Varying,
    /// Bytes to send for each byte written.
    share: Varying,
    brake: Option<u64>,
    idle_since: Option<Micros>,
    landing: Option<Landing>,
    unmet: Option<Unmet>,
}

impl Contract {
    /// Keep to that.
    #[must_use]
    pub fn new(wish: Wish) -> Self {
        Self {
            wish,
            ..Self::default()
        }
    }

    /// Another wish from now on.
    pub fn change(&mut self, wish: Wish) {
        self.wish = wish;
        self.unmet = None;
    }

    /// Nothing is to be kept to any more; whether there was a brake.
    pub fn release(&mut self) -> bool {
        self.change(Wish::default());
        self.landing = None;
        self.brake.take().is_some()
    }

    /// The most bytes a second that clients may write; `None` for as many as they like.
    #[must_use]
    pub fn brake(&self) -> Option<u64> {
        self.brake
    }

    /// Why what was wished cannot be, as far as is known.
    #[must_use]
    pub fn unmet(&self) -> Option<Unmet> {
        self.unmet
    }

    /// Look at the figures. Whether the brake is another one now.
    pub fn look(&mut self, now: Micros, seen: Seen) -> bool {
        let Some((at, before)) = self.at else {
            self.at = Some((now, seen));
            return false;
        };
        let span = now.since(at);
        if span < EVERY {
            return false;
        }
        self.at = Some((now, seen));
        self.learn(span.0 as f64 / 1e6, before, seen);
        self.learn_link(now, before, seen);
        let brake = match self.landing {
            Some(_) => self.for_landing(now),
            None => self.decide(now, seen.left as f64),
        };
        let changed = brake != self.brake;
        self.brake = brake;
        changed
    }

    fn learn(&mut self, seconds: f64, before: Seen, seen: Seen) {
        let gain = |after: u64, before: u64| after.saturating_sub(before) as f64;
        let written = gain(seen.written, before.written);
        self.writing.learn(written / seconds);
        let held = self
            .brake
            .is_some_and(|brake| written / seconds > brake as f64 * IDLE);
        if !held {
            self.free.learn(written / seconds);
        }
        if written > 0.0 {
            let share = gain(seen.added, before.added) / written;
            self.share.learn(share.clamp(0.01, 16.0));
        }
    }

    fn learn_link(&mut self, now: Micros, before: Seen, seen: Seen) {
        // With less left than goes out in that time the link was not what was waited for.
        let done = seen.done.saturating_sub(before.done);
        let busy = before.connected && seen.connected && seen.left.min(before.left) > done;
        let first = self.busy_since.filter(|_| busy);
        let (since, had) = *self.busy_since.insert(first.unwrap_or((now, seen.done)));
        let span = now.since(since);
        if span < LINK_EVERY {
            return;
        }
        self.busy_since = Some((now, seen.done));
        let rate = seen.done.saturating_sub(had) as f64 * 1e6 / span.0 as f64;
        // Until the first of it arrives nothing is known.
        if rate > 0.0 || self.link.known {
            self.link.learn(rate);
            self.link_at = now;
        }
    }

    /// Bytes that have to travel for each byte written.
    fn share(&self) -> f64 {
        if self.share.known {
            self.share.mean.max(0.01)
        } else {
            1.0
        }
    }

    /// How fast clients may be slowed down to, at least.
    fn floor(&self) -> f64 {
        let kept = self.wish.max_slowdown.map_or(0.0, |most| {
            self.free.mean * f64::from(100 - most.min(100)) / 100.0
        });
        kept.max(LEAST)
    }

    fn decide(&mut self, now: Micros, left: f64) -> Option<u64> {
        let deadline = self.wish.deadline.filter(|_| self.link.known)?;
        let link = self.link.mean * COUNTED_ON;
        let time = deadline.since(now + RESERVE).0 as f64 / 1e6;
        let converging = link * WHEN_LATE / self.share();
        let floor = self.floor();
        let needed = (link - left / time.max(0.001)) / self.share();
        self.unmet = None;
        // What is about to be in step is in time.
        let soon = RESERVE.0 as f64 / 1e6;
        let slowdown = |needed: f64| Unmet::Slowdown {
            needed: needed.max(0.0) as u64,
            allowed: floor as u64,
        };
        let wanted = if left < link * soon {
            (link - left / soon / 2.0) / self.share()
        } else if self.free.mean > floor && floor * self.share() >= link {
            self.unmet = Some(slowdown(needed));
            converging
        } else if time <= 0.0 {
            self.unmet = Some(Unmet::Late);
            converging
        } else if left / link > time {
            self.unmet = Some(Unmet::Deadline {
                needed: (left / link).ceil() as u64,
                left: time as u64,
            });
            converging
        } else {
            if needed < floor && self.free.mean > needed {
                self.unmet = Some(slowdown(needed));
            }
            needed
        };
        let wanted = wanted.max(floor);
        self.holds(now, wanted).then_some(wanted as u64)
    }

    /// Whether clients have to be held to `wanted`, or still are.
    fn holds(&mut self, now: Micros, wanted: f64) -> bool {
        if self.brake.is_none() {
            self.idle_since = None;
            return self.writing.mean > wanted;
        }
        if self.writing.mean >= wanted * IDLE {
            self.idle_since = None;
            return true;
        }
        let since = *self.idle_since.get_or_insert(now);
        now.since(since) < IDLE_FOR
    }

    /// How long the link takes for so much, if nothing is added; `None` while nothing is known of it, or nothing new: it
    /// may have been bad then.
    #[must_use]
    pub fn time_for(&self, now: Micros, bytes: u64) -> Option<Micros> {
        let known = self.link.mean >= 1.0 && now.since(self.link_at) < FRESH;
        let micros = bytes as f64 * 1e6 / self.link.mean;
        known.then_some(Micros(micros.ceil() as u64))
    }

    /// When the target will be in step; `None` while nothing is known of the link, or if it never will.
    #[must_use]
    pub fn estimate(&self) -> Option<Estimate> {
        let (_, seen) = self.at.filter(|_| self.link.known)?;
        let mut added = self.writing.mean;
        if let Some(brake) = self.brake {
            added = added.min(brake as f64);
        }
        let added = added * self.share();
        let takes = |link: f64| {
            let net = link - added;
            (net > 0.0).then(|| (seen.left as f64 / net).ceil() as u64)
        };
        let off = 2.0 * self.link.off;
        let seconds = takes(self.link.mean)?;
        Some(Estimate {
            seconds,
            least: takes(self.link.mean + off).unwrap_or(seconds),
            most: takes(self.link.mean - off),
        })
    }
}

#[cfg(test)]
mod tests;
