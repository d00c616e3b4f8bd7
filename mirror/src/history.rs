//! What a session's figures come to over its time: the report of a move, and how far the target is behind.
//!
//! Machine: it is shown the figures again and again, and when that was. What happens between two looks is put to the
//! account of the first. Must never be used to decide anything, and none of its sums goes back.

use std::collections::VecDeque;

use serde::Serialize;

use crate::clock::Micros;
use crate::contract::Estimate;
use crate::session::{Progress, Stage};

/// Over how long a rate is measured at least.
const RATE_OVER: Micros = Micros::from_millis(500);
/// So many moments are remembered at which numbers were given out; when there are more, every other one is forgotten.
const MOMENTS: usize = 1024;
const SECOND: u64 = 1_000_000;

/// How long a session was in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// The stage.
    pub stage: Stage,
    /// Microseconds, all times together.
    pub took: u64,
}

/// What was moved over the session's sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// Bytes written to sockets, everything counted.
    pub sent: u64,
    /// Bytes by which packing made that less.
    pub spared: u64,
}

/// What did not have to travel, and why. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Saved {
    /// Nothing was allocated there, or it was known to be zero without being read.
    pub holes: u64,
    /// It was read, and zero.
    pub zeros: u64,
    /// The target had it, as hashes showed.
    pub hashes: u64,
    /// A client wrote over it while it waited.
    pub overwritten: u64,
    /// Packing made it so much shorter.
    pub packing: u64,
}

/// A rate in bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// Over the whole session.
    pub average: u64,
    /// The highest over half a second or more.
    pub peak: u64,
}

/// The first estimate that there was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Forecast {
    /// Microseconds after the session began.
    pub at: u64,
    /// Seconds from then on.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Seconds that it took from then on until the target was in step for the first time, if it ever was.
    pub took: Option<u64>,
}

/// A session from its beginning to now, or to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Microseconds.
    pub took: u64,
    /// The stages in the order in which they were first met.
    pub phases: Vec<Phase>,
    /// Bytes read of the disk.
    pub read: u64,
    /// Bytes that were sent and are durable at the target, before they were packed.
    pub transferred: u64,
    /// Bytes written to sockets.
    pub wire: u64,
    /// What did not have to travel.
    pub saved: Saved,
    /// Bytes a second that became durable at the target.
    pub rate: Rate,
    /// Bytes a second that clients wrote.
    pub dirty_rate: Rate,
    /// How often the link was lost.
    pub reconnects: u64,
    /// How long requests were held at the switchover, in microseconds.
    pub pause: Option<u64>,
    /// The first estimate, and what came of it.
    pub forecast: Option<Forecast>,
}

/// A rate as it is measured.
#[derive(Debug, Default)]
struct Measured {
    /// When the span began that is measured, and what the sum was then.
    from: (Micros, u64),
    now: u64,
    peak: u64,
}

impl Measured {
    fn see(&mut self, at: Micros, sum: u64) {
        let (since, was) = self.from;
        let span = at.since(since);
        if span < RATE_OVER {
            return;
        }
        self.now = per_second(sum.saturating_sub(was), span);
        self.peak = self.peak.max(self.now);
        self.from = (at, sum);
    }
}

fn per_second(bytes: u64, span: Micros) -> u64 {
    let rate = u128::from(bytes) * u128::from(SECOND) / u128::from(span.0.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// The history of a session.
#[derive(Debug, Default)]
pub struct History {
    seen: Option<(Micros, Stage)>,
    report: Report,
    rate: Measured,
    dirty: Measured,
    behind: Behind,
    in_step_at: Option<Micros>,
}

impl History {
    /// The figures at `at`, counted from the session's beginning; later than those before.
    pub fn see(&mut self, at: Micros, progress: &Progress, wire: Wire) {
        self.account(at, progress.stage);
        self.judge(at, progress);
        let transferred = progress.copied.saturating_add(progress.streamed);
        let report = &mut self.report;
        raise(&mut report.read, progress.read);
        raise(&mut report.transferred, transferred);
        raise(&mut report.wire, wire.sent);
        raise(&mut report.saved.zeros, progress.zero);
        raise(&mut report.saved.overwritten, progress.left_out);
        raise(&mut report.saved.packing, wire.spared);
        // Of what the target had some may have been lost and sent again: not a sum.
        report.saved.hashes = progress.same;
        report.saved.holes = progress.holes;
        raise(&mut report.reconnects, progress.reconnects);
        report.pause = progress.pause.or(report.pause);
        self.rate.see(at, report.transferred);
        self.dirty.see(at, progress.written);
        let rate = |sum, measured: &Measured| {
            let average = per_second(sum, at);
            // What was too short to be measured had its peak as well.
            let peak = measured.peak.max(average);
            Rate { average, peak }
        };
        report.rate = rate(report.transferred, &self.rate);
        report.dirty_rate = rate(progress.written, &self.dirty);
        self.behind.see(at, progress);
    }

    /// The time since the last look belongs to the stage that was seen then.
    fn account(&mut self, at: Micros, stage: Stage) {
        let (since, was) = self.seen.unwrap_or((Micros(0), stage));
        let span = at.since(since).0;
        self.report.took += span;
        let mut phases = self.report.phases.iter_mut();
        match phases.find(|phase| phase.stage == was) {
            Some(phase) => phase.took += span,
            None => self.report.phases.push(Phase {
                stage: was,
                took: span,
            }),
        }
        if !self.has_met(stage) {
            self.report.phases.push(Phase { stage, took: 0 });
        }
        self.seen = Some((at, stage));
    }

    /// What the first estimate was, and what came of it.
    fn judge(&mut self, at: Micros, progress: &Progress) {
        if self.in_step_at.is_none() && was_reached(progress.stage) {
            self.in_step_at = Some(at);
            if let Some(forecast) = &mut self.report.forecast {
                forecast.took = Some(at.since(Micros(forecast.at)).0.div_ceil(SECOND));
            }
        }
        let first = self.report.forecast.is_none() && self.in_step_at.is_none();
        if let Some(estimate) = progress.estimate.filter(|_| first) {
            self.report.forecast = Some(Forecast {
                at: at.0,
                estimate,
                took: None,
            });
        }
    }

    /// Whether a look met that stage.
    #[must_use]
    pub fn has_met(&self, stage: Stage) -> bool {
        self.report.phases.iter().any(|phase| phase.stage == stage)
    }

    /// What it comes to so far.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Bytes a second that clients wrote lately.
    #[must_use]
    pub fn dirty_rate(&self) -> u64 {
        self.dirty.now
    }

    /// Microseconds ago, at the most, the disk was what the target has of it; `None` before it was in step.
    #[must_use]
    pub fn behind(&self) -> Option<u64> {
        self.behind.by
    }
}

/// How far the target is behind.
#[derive(Debug, Default)]
struct Behind {
    /// When which number was the last one given out, oldest first.
    moments: VecDeque<(Micros, u64)>,
    by: Option<u64>,
    /// The moment that the target has.
    has: Option<Micros>,
}

impl Behind {
    fn see(&mut self, at: Micros, progress: &Progress) {
        let (last, durable) = progress.numbers;
        if self.moments.len() >= MOMENTS {
            let mut keep = false;
            self.moments.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.moments.push_back((at, last));
        // What went to the bitmap has no place among the numbers.
        if progress.remaining == 0 && progress.scanned >= progress.size {
            let nothing = progress.unacknowledged == 0 && durable >= last;
            while let Some((moment, number)) = self.moments.front().copied()
                && (number <= durable || nothing)
            {
                self.moments.pop_front();
                self.has = Some(moment);
            }
        }
        self.by = self.has.map(|moment| at.since(moment).0);
    }
}

/// Whether the target has been in step by then. A switchover may follow between two looks.
fn was_reached(stage: Stage) -> bool {
    !matches!(stage, Stage::Connecting | Stage::Copying | Stage::Ended)
}

fn raise(sum: &mut u64, to: u64) {
    *sum = (*sum).max(to);
}

#[cfg(test)]
mod tests;
