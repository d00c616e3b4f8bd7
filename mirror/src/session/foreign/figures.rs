//! What a source that moves its disk to an NBD server tells people of itself.

use super::pieces::Kind;
use super::{Foreign, Link};
use crate::picture::{Picture, Seen};
use crate::session::{Progress, Stage};
use crate::switchover::Phase;

impl Foreign {
    /// Figures for people.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let figures = self.tracker.figures();
        let remaining = figures.dirty + self.pieces.bytes();
        let connected = matches!(self.link.1, Link::Up(_));
        let seconds = self
            .pace
            .sent
            .time_for(remaining)
            .map(|time| time.0.div_ceil(1_000_000));
        Progress {
            stage: self.stage(),
            connected,
            size: self.config.description.size,
            scanned: self.scan.scanned(),
            found: self.scan.found(),
            holes: self.scan.holes(),
            copied: self.pace.durable,
            same: 0,
            streamed: 0,
            read: self.pace.read.0,
            zero: self.pace.read.1,
            written: figures.written,
            remaining,
            unacknowledged: self.pieces.volatile(),
            fallen_back: 0,
            left_out: 0,
            rate: self.pace.sent.rate(),
            limit: self.pace.bucket.rate(),
            seconds_remaining: seconds.filter(|_| remaining > 0),
            estimate: None,
            brake: None,
            unmet: None,
            reconnects: self.local.reconnects,
            given_up: self.local.given_up,
            pause: self.local.pause,
            verify: None,
            trouble: self.end.trouble.clone(),
            numbers: (0, 0),
        }
    }

    fn stage(&self) -> Stage {
        match self.switch.phase() {
            Phase::Forwarding => Stage::Forwarding,
            Phase::Released => Stage::Released,
            _ if self.end.outcome.is_some() => Stage::Ended,
            Phase::Owner if !matches!(self.link.1, Link::Up(_)) => Stage::Connecting,
            Phase::Owner if self.is_in_step() => Stage::Synced,
            Phase::Owner => Stage::Copying,
            _ => Stage::Switching,
        }
    }

    /// What of the disk is where, in at most so many cells.
    #[must_use]
    pub fn picture(&self, cells: usize) -> Picture {
        let mut sight = self.tracker.sight();
        if self.end.outcome.is_some() {
            // Nobody looks any more whether it is still so.
            sight.hot.clear();
        }
        let sending: Vec<_> = self.pieces.flying(Kind::Data).collect();
        Seen {
            size: self.config.description.size,
            scanned: self.scan.scanned(),
            found: self.scan.found_in(),
            sight: &sight,
            sending: &sending,
        }
        .picture(cells)
    }
}
