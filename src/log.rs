//! Logs of the libraries, on stderr.
//!
//! A guest or a client decides how often some lines are written, and somebody's disk holds what is logged: each
//! place in the program says so much, and then how often it was silent.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::args::GlobalArgs;

/// So many lines of one place at once.
const BURST: u32 = 20;
/// One more after each of these.
const PACE: Duration = Duration::from_secs(5);

/// Logs on stderr from now on; `RUST_LOG` overrules the flags.
pub(crate) fn to_stderr(global: &GlobalArgs) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    tracing_subscriber::registry()
        .with(filter)
        .with(Sparing::default())
        .with(lines)
        .init();
}

/// Lets warnings and errors through as often as [`Place`] allows. What was asked for in detail comes whole.
#[derive(Default)]
struct Sparing {
    places: Mutex<HashMap<Identifier, Place>>,
}

// A layer of its own: a filter of one layer that decides by events leaves the subscriber's state inconsistent when it
// refuses one.
impl<S: Subscriber> Layer<S> for Sparing {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let place = event.metadata();
        if *place.level() > Level::WARN {
            return true;
        }
        let now = Instant::now();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = places.entry(place.callsite()).or_insert(Place::new(now));
        let turn = seen.turn(now);
        drop(places);
        if let Some(silent @ 1..) = turn {
            eprintln!("{silent} lines like the next one were left out");
        }
        turn.is_some()
    }
}

/// How much one place in the program has said.
#[derive(Clone, Copy)]
struct Place {
    /// Lines that it may still say at once.
    left: u32,
    /// When the last of them was added.
    since: Instant,
    /// Lines that were left out since it spoke.
    silent: u64,
}

impl Place {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
            silent: 0,
        }
    }

    /// It wants to speak at `now`: how often it was silent before, or nothing if it is silent once more.
    fn turn(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.since).as_nanos() / PACE.as_nanos();
        let earned = u32::try_from(passed).unwrap_or(u32::MAX);
        let room = BURST - self.left;
        self.left += earned.min(room);
        // Whoever has all that can be saved saves no time for later either.
        self.since = if earned >= room {
            now
        } else {
            self.since + PACE * earned
        };
        if self.left == 0 {
            self.silent += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.silent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_so_much_and_then_how_often_it_was_silent() {
        let began = Instant::now();
        let mut place = Place::new(began);
        let said = (0..1000).filter(|_| place.turn(began).is_some()).count();
        assert_eq!(said, BURST as usize);
        assert_eq!(place.turn(began + PACE.mul_f32(0.99)), None);
        assert_eq!(place.turn(began + PACE), Some(1000 - u64::from(BURST) + 1));
        assert_eq!(place.turn(began + PACE), None);
        assert_eq!(place.turn(began + PACE * 2), Some(1));
        // After a long rest it may say as much as at first, and no more.
        let later = began + PACE * 10_000;
        let said = (0..1000).filter(|_| place.turn(later).is_some()).count();
        assert_eq!(said, BURST as usize);
    }
}
