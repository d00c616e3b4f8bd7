//! The limits of an export as all workers share them: the gate, and what it cost those who came.
//!
//! Driver of [`crate::throttle`]: it has the clock and the lock. Workers come here only while something is
//! limited, see [`super::Policy`].

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::throttle::{Cost, Gate, Limits, Place, Rate, Wait};

/// What waited for its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttled {
    /// Requests that did not begin at once.
    pub requests: u64,
    /// How long all of them together waited, in nanoseconds.
    pub nanoseconds: u64,
}

/// What is limited, and who waits.
#[derive(Debug)]
pub(crate) struct Throttle {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    limits: Limits,
    /// Besides them, the most bytes a second that may be written.
    brake: Option<Rate>,
    gate: Gate,
    throttled: Throttled,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            state: Mutex::default(),
        }
    }
}

impl Throttle {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn time(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.began).as_nanos();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }

    pub(crate) fn limits(&self) -> Limits {
        self.state().limits
    }

    pub(crate) fn throttled(&self) -> Throttled {
        self.state().throttled
    }

    /// Other limits from now on; whether anything is limited then.
    pub(crate) fn change(&self, limits: Limits) -> bool {
        let now = self.time(Instant::now());
        let mut state = self.state();
        state.limits = limits;
        state.gate.change(&limits, now);
        !limits.is_none() || state.brake.is_some()
    }

    /// At most so many bytes a second may be written, besides; whether anything is limited then.
    pub(crate) fn brake(&self, rate: Option<Rate>) -> bool {
        let now = self.time(Instant::now());
        let mut state = self.state();
        state.brake = rate;
        state.gate.brake(rate, now);
        !state.limits.is_none() || rate.is_some()
    }

    /// Whether a request may begin; see [`Gate::ask`].
    pub(crate) fn ask(&self, place: Option<Place>, now: Instant, cost: Cost) -> Result<(), Wait> {
        let now = self.time(now);
        self.state().gate.ask(place, now, cost)
    }

    /// One that has a place waits no longer.
    pub(crate) fn leave(&self, place: &Place) {
        self.state().gate.leave(place);
    }

    /// A request begins that may not wait: those behind it pay for it.
    pub(crate) fn overdraw(&self, now: Instant, cost: Cost) {
        let now = self.time(now);
        self.state().gate.overdraw(now, cost);
    }

    /// One began that has waited so long.
    pub(crate) fn has_waited(&self, waited: Duration) {
        let waited = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        let throttled = &mut self.state().throttled;
        throttled.requests += 1;
        throttled.nanoseconds = throttled.nanoseconds.saturating_add(waited);
    }
}
