//! How far long work has come: a bar on a terminal, a line now and then, or JSON.
//!
//! Shows one phase at a time and never runs backwards. It is on stderr, and by itself only when that
//! is a terminal, so that a script's output stays clean.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::args::ProgressMode;
use crate::report::Report;
use crate::size;

/// How often a line is written where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// How a progress is shown.
enum Shown {
    Not,
    Bar(ProgressBar),
    Lines,
    Json,
}

/// The progress of one phase of a job.
pub(crate) struct Progress {
    phase: &'static str,
    /// 0 if nobody knows.
    total: u64,
    done: u64,
    /// Of those, what was done before this phase began.
    before: u64,
    moved: u64,
    started: Instant,
    last: Instant,
    shown: Shown,
}

#[derive(Serialize)]
struct Body {
    phase: &'static str,
    done_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_bytes: Option<u64>,
    bytes_per_second: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_remaining: Option<u64>,
}

impl Progress {
    /// Begins `phase`, of `total` bytes; 0 if their number shows at the end.
    pub(crate) fn new(report: Report, mode: ProgressMode, phase: &'static str, total: u64) -> Self {
        let auto = || match (report.is_json(), report.is_quiet()) {
            (true, _) => Shown::Json,
            (false, false) if io::stderr().is_terminal() => Shown::Bar(bar(phase, total)),
            _ => Shown::Not,
        };
        let shown = match mode {
            ProgressMode::Auto => auto(),
            ProgressMode::Bar => Shown::Bar(bar(phase, total)),
            ProgressMode::Plain => Shown::Lines,
            ProgressMode::Json => Shown::Json,
            ProgressMode::None => Shown::Not,
        };
        let now = Instant::now();
        let progress = Self {
            phase,
            total,
            done: 0,
            before: 0,
            moved: 0,
            started: now,
            last: now,
            shown,
        };
        progress.line();
        progress
    }

    /// `bytes` were done by an earlier command.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.before += bytes;
        self.advance(bytes, 0);
    }

    /// `bytes` more are done, of which `moved` had to be copied.
    pub(crate) fn advance(&mut self, bytes: u64, moved: u64) {
        self.done += bytes;
        self.moved += moved;
        match &self.shown {
            Shown::Not => {}
            Shown::Bar(bar) => {
                bar.set_position(self.done);
                bar.set_message(format!("{}/s", size::show(self.rate())));
            }
            Shown::Lines | Shown::Json => {
                if self.last.elapsed() >= LINE_EVERY {
                    self.last = Instant::now();
                    self.line();
                }
            }
        }
    }

    /// The phase is over, well or badly.
    pub(crate) fn finish(&mut self) {
        match &self.shown {
            Shown::Not => {}
            Shown::Bar(bar) => bar.finish_and_clear(),
            Shown::Lines | Shown::Json => self.line(),
        }
    }

    /// How long the phase has taken so far.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Bytes copied so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    fn rate(&self) -> u64 {
        per_second(self.moved, self.elapsed())
    }

    fn line(&self) {
        let known = self.total.checked_sub(self.before);
        let known = known.filter(|_| self.total > 0);
        let left =
            known.and_then(|total| seconds_left(self.done - self.before, total, self.elapsed()));
        match &self.shown {
            Shown::Lines => {
                let left = left.map_or_else(String::new, |s| format!(", {s} s left"));
                let of = match self.total {
                    0 => String::new(),
                    total => format!(" of {}", size::show(total)),
                };
                let _ = writeln!(
                    io::stderr().lock(),
                    "{}: {}{of}, {}/s{left}",
                    self.phase,
                    size::show(self.done),
                    size::show(self.rate()),
                );
            }
            Shown::Json => {
                let body = Body {
                    phase: self.phase,
                    done_bytes: self.done,
                    total_bytes: Some(self.total).filter(|total| *total > 0),
                    bytes_per_second: self.rate(),
                    seconds_remaining: left,
                };
                // What the job itself reports at its end fails loudly if stdout is gone.
                let _ = Report::line("progress", &body);
            }
            Shown::Not | Shown::Bar(_) => {}
        }
    }
}

fn bar(phase: &'static str, total: u64) -> ProgressBar {
    let known = Some(total).filter(|total| *total > 0);
    let bar = ProgressBar::with_draw_target(known, ProgressDrawTarget::stderr_with_hz(5));
    let style = if known.is_some() {
        "{prefix} [{wide_bar}] {percent}% {binary_bytes}/{binary_total_bytes} {msg} ETA {eta}"
    } else {
        "{prefix} {spinner} {binary_bytes} {msg}"
    };
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(phase);
    bar
}

/// `bytes` in `elapsed`, for each second.
pub(crate) fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let micros = elapsed.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

/// Seconds until the rest is done at the pace so far; `None` before anything is.
fn seconds_left(done: u64, total: u64, elapsed: Duration) -> Option<u64> {
    let left = u128::from(total.saturating_sub(done));
    let micros = left * elapsed.as_micros() / u128::from(core::num::NonZeroU64::new(done)?.get());
    u64::try_from(micros / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_the_pace_so_far() {
        assert_eq!(seconds_left(0, 100, Duration::from_secs(5)), None);
        assert_eq!(seconds_left(25, 100, Duration::from_secs(5)), Some(15));
        assert_eq!(seconds_left(100, 100, Duration::from_secs(5)), Some(0));
        assert_eq!(per_second(1 << 30, Duration::from_secs(4)), 1 << 28);
        assert_eq!(per_second(5, Duration::ZERO), 5_000_000);
    }
}
