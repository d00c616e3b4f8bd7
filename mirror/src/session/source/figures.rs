//! What a source tells people of itself.

use super::Source;
use crate::picture::{Picture, Slots};
use crate::session::{Progress, Stage};
use crate::switchover::Phase;

impl Source {
    /// What of the disk is where, in at most so many cells.
    #[must_use]
    pub fn picture(&self, cells: usize) -> Picture {
        let size = self.config.description.size;
        let mut sight = self.tracker.sight();
        if self.end.outcome.is_some() {
            // Nobody looks any more whether it is still so.
            sight.hot.clear();
        }
        if let Some(Ok(())) = self.end.outcome {
            // The target runs: it had all of that, and says so by that alone.
            sight.waiting = Slots::default();
        }
        self.copy.picture(size, cells, &sight)
    }

    /// Where it stands.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage_with(self.tracker.figures().dirty + self.copy.flying())
    }

    /// The same, with so many bytes dirty or on the way.
    fn stage_with(&self, remaining: u64) -> Stage {
        match self.switch.phase() {
            Phase::Forwarding => Stage::Forwarding,
            Phase::Bound if self.end.outcome.is_none() => Stage::Bound,
            Phase::Released => Stage::Released,
            Phase::Offered | Phase::Reclaiming | Phase::Settling => Stage::Switching,
            _ if self.end.outcome.is_some() => Stage::Ended,
            Phase::Owner | Phase::Preparing if !self.end.begun => Stage::Connecting,
            Phase::Owner | Phase::Preparing if remaining == 0 && self.copy.scan_complete() => {
                Stage::Synced
            }
            Phase::Owner | Phase::Preparing => Stage::Copying,
            _ => Stage::Switching,
        }
    }

    /// Figures for people.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let figures = self.tracker.figures();
        let remaining = figures.dirty + self.copy.flying();
        let stage = self.stage_with(remaining);
        let rate = self.pace.sent.rate();
        let sums = self.copy.sums();
        let estimate = self.pace.contract.estimate().filter(|_| remaining > 0);
        Progress {
            stage,
            connected: self.link.is_up(),
            size: self.config.description.size,
            scanned: self.copy.scanned(),
            found: self.copy.found(),
            holes: self.copy.holes(),
            copied: self
                .pace
                .sent
                .total()
                .saturating_sub(self.stream.streamed()),
            same: sums.same,
            streamed: self.stream.streamed(),
            read: sums.read,
            zero: sums.zero,
            written: figures.written,
            remaining,
            unacknowledged: self.stream.outstanding(),
            fallen_back: figures.fallen_back,
            left_out: figures.left_out,
            rate,
            limit: self.pace.bucket.rate(),
            seconds_remaining: estimate.map(|estimate| estimate.seconds),
            estimate,
            brake: self.pace.contract.brake(),
            unmet: self.pace.contract.unmet().map(|unmet| unmet.to_string()),
            reconnects: self.local.reconnects,
            given_up: self.local.given_up,
            pause: self.local.pause,
            verify: self.local.verify.figures(),
            trouble: self.end.trouble.clone(),
            numbers: (figures.seq, self.stream.acked()),
        }
    }
}
