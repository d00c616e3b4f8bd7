//! Which phase is under way, as a file says that somebody else writes, and what each one brought.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::latency::{Latency, Summary};

/// How often the file is looked at.
const EVERY: Duration = Duration::from_millis(20);
/// The phase before any is named, and the only one without a file.
const UNNAMED: &str = "all";

/// The phases of a load so far.
pub(crate) struct Phases {
    file: Option<PathBuf>,
    looked: Option<Instant>,
    last: Option<Instant>,
    known: Vec<Phase>,
}

struct Phase {
    name: String,
    writes: Latency,
    flushes: Latency,
    longest_gap: Duration,
}

/// What a phase brought. A gap is the time between two acknowledged writes.
#[derive(Serialize)]
pub(crate) struct PhaseSummary {
    pub(crate) phase: String,
    pub(crate) writes: Summary,
    pub(crate) flushes: Summary,
    pub(crate) longest_gap_us: u64,
}

impl Phases {
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        let mut phases = Self {
            file,
            looked: None,
            last: None,
            known: Vec::new(),
        };
        phases.enter(UNNAMED);
        phases
    }

    /// Looks whether another phase has begun.
    pub(crate) fn look(&mut self, now: Instant) {
        let recent = self.looked.is_some_and(|at| now - at < EVERY);
        if recent {
            return;
        }
        self.looked = Some(now);
        let text = self
            .file
            .as_ref()
            .and_then(|file| std::fs::read_to_string(file).ok());
        let name = text.as_deref().map_or("", str::trim);
        if !name.is_empty() && self.known.last().is_none_or(|phase| phase.name != name) {
            self.enter(name);
        }
    }

    /// A write was acknowledged that took so long.
    pub(crate) fn wrote(&mut self, took: Duration, now: Instant) {
        let gap = self
            .last
            .replace(now)
            .map_or(Duration::ZERO, |last| now - last);
        if let Some(phase) = self.known.last_mut() {
            phase.writes.note(took);
            phase.longest_gap = phase.longest_gap.max(gap);
        }
    }

    /// A flush was acknowledged that took so long.
    pub(crate) fn flushed(&mut self, took: Duration) {
        if let Some(phase) = self.known.last_mut() {
            phase.flushes.note(took);
        }
    }

    /// Every phase in which something was written, in order.
    pub(crate) fn summaries(&self) -> Vec<PhaseSummary> {
        let summary = |phase: &Phase| PhaseSummary {
            phase: phase.name.clone(),
            writes: phase.writes.summary(),
            flushes: phase.flushes.summary(),
            longest_gap_us: phase.longest_gap.as_micros() as u64,
        };
        let all = self.known.iter().map(summary);
        all.filter(|phase| phase.writes.count > 0).collect()
    }

    /// Begins a phase, or goes on with one that was there before.
    fn enter(&mut self, name: &str) {
        let known = self.known.iter().position(|phase| phase.name == name);
        let phase = match known {
            Some(index) => self.known.remove(index),
            None => Phase {
                name: name.to_owned(),
                writes: Latency::new(),
                flushes: Latency::new(),
                longest_gap: Duration::ZERO,
            },
        };
        self.known.push(phase);
    }
}
