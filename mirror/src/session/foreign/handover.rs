//! The switchover to a server that knows nothing of it: the rules are in [`crate::switchover`], with the server's part
//! played here. It is ready whenever it is in step, asks for the commit once it has everything durably, and runs always.
//!
//! Must never hand the disk over before F5 holds ([`super`]).

use vdisk::engine::Mark;

use super::{Error, ErrorKind, Foreign, ForeignAction, Micros, Phase};
use crate::session::Command;
use crate::switchover::{GivenUp, Parked, Recorded};

/// How long after an attempt was given up the next one begins by itself.
const RETRY_AFTER: Micros = Micros::from_secs(5);

impl Foreign {
    pub(super) fn on_command(&mut self, now: Micros, command: Command) {
        match command {
            Command::Cutover { max_pause, .. } => {
                self.local.cutover = Some(max_pause.unwrap_or(self.config.handover.max_pause));
                self.local.not_before = now;
            }
            Command::SetRates(rates, minute) => {
                self.config.rates = rates;
                self.pace.bucket.set_rate(self.config.rates.rate_at(minute));
            }
            Command::Cancel => {
                let what = "the migration was cancelled; the disk stays here";
                if !self.switch.committed() {
                    self.fail(now, Error::new(ErrorKind::Cancelled, what));
                }
            }
            // Nothing moves with it, what is there is not compared, and nobody is slowed down for it.
            Command::SetTerms(_) | Command::Verify | Command::Decide | Command::Undo => {}
        }
    }

    /// The session is over, and the disk stays here.
    pub(super) fn fail(&mut self, now: Micros, error: Error) {
        if self.end.outcome.is_some() || self.switch.decided() {
            return;
        }
        self.end.trouble = Some(error.to_string());
        self.end.outcome = Some(Err(error));
        self.give_up(now);
        self.link.1 = super::Link::Down(now);
        self.pieces = super::Pieces::default();
        self.actions.push_back(ForeignAction::Close);
        if self.local.attach_asked {
            self.actions.push_back(ForeignAction::DetachTap);
        }
    }

    /// Held requests are not held for ever.
    pub(super) fn watch_the_clock(&mut self, now: Micros) {
        let most = self.config.handover.give_up_after;
        let waited = self
            .local
            .held_since
            .is_some_and(|since| now.since(since) > most);
        if waited && !self.switch.committed() {
            self.end.trouble = Some("the switchover took too long and was given up".into());
            self.give_up(now);
        }
    }

    pub(super) fn give_up(&mut self, now: Micros) {
        if self.switch.give_up() == GivenUp::Resume {
            self.resume(now);
        }
    }

    /// Held requests go on here.
    fn resume(&mut self, now: Micros) {
        self.local.held_since = None;
        self.local.cutover = None;
        // What kept it from ending may keep the next one.
        let doubled = RETRY_AFTER.0 << self.local.given_up.min(6);
        self.local.not_before = now + Micros(doubled);
        self.local.given_up += 1;
        self.actions.push_back(ForeignAction::Release);
    }

    /// Begin an attempt when one is wanted and would be short; go on with one that has everything there.
    pub(super) fn pump_switch(&mut self, now: Micros) {
        match self.switch.phase() {
            Phase::Owner => self.maybe_hold(now),
            Phase::Draining => self.maybe_mark(),
            _ => {}
        }
    }

    fn maybe_hold(&mut self, now: Micros) {
        let handover = &self.config.handover;
        let wanted = self
            .local
            .cutover
            .or(handover.automatic.then_some(handover.max_pause));
        let Some(max_pause) = wanted else { return };
        let known = self.scan.is_complete() && !self.pieces.is_zeroing();
        let flushes = self.pieces.is_flushing() && now.since(self.pace.flushed_at) > max_pause;
        if now < self.local.not_before || !known || flushes {
            return;
        }
        let left = self.tracker.figures().dirty + self.pieces.bytes();
        let pause = self.pace.sent.time_for(left);
        let short = pause.is_some_and(|pause| pause <= max_pause);
        if short
            && let Some(attempt) = self.switch.prepare(None)
            && self.switch.ready(attempt)
        {
            self.local.held_since = Some(now);
            self.actions.push_back(ForeignAction::Hold(attempt));
        }
    }

    /// Clients are held, and none of their requests is under way.
    fn maybe_mark(&mut self) {
        let durable = !self.can().flush || self.pieces.is_durable();
        #[cfg(test)]
        let durable = durable || self.is_broken(super::sim::Broken::CommitUnflushed);
        if self.is_in_step() && durable && self.switch.commit_requested(self.switch.attempt()) {
            let mark = Some(Mark::HandedOver);
            self.actions.push_back(ForeignAction::Park(mark));
        }
    }

    pub(super) fn on_parked(&mut self, now: Micros, result: &std::io::Result<()>) {
        if let Err(e) = result {
            self.end.trouble = Some(format!("cannot mark the image: {e}"));
        }
        match self.switch.parked(result.is_ok()) {
            Some(Parked::Decide(record)) => {
                self.actions.push_back(ForeignAction::Persist(record));
                #[cfg(test)]
                if self.is_broken(super::sim::Broken::ForwardBeforeRecord) {
                    self.actions.push_back(ForeignAction::Forward);
                }
            }
            Some(Parked::Unmark) => self.actions.push_back(ForeignAction::Park(None)),
            Some(Parked::Resume) => self.resume(now),
            // Words of disks that move with others, or are offered.
            Some(Parked::Bind(_) | Parked::Offer(_) | Parked::Wait) | None => {}
        }
    }

    pub(super) fn on_persisted(&mut self, now: Micros, result: &std::io::Result<()>) {
        if let Err(e) = result {
            self.end.trouble = Some(format!("cannot write the deciding record: {e}"));
            if self.switch.decided() {
                // It may be durable or not: only writing it again leads anywhere.
                let record = self.switch.deciding_record();
                self.actions.push_back(ForeignAction::Persist(record));
                return;
            }
        }
        if self.switch.recorded(result.is_ok()) != Recorded::Grant {
            return;
        }
        let epoch = self.switch.next_epoch();
        if self.switch.running(epoch) {
            let since = self.local.held_since.take();
            self.local.pause = since.map(|since| now.since(since).0);
            self.end.outcome = Some(Ok(()));
            self.actions.push_back(ForeignAction::Close);
            self.actions.push_back(ForeignAction::DetachTap);
            self.actions.push_back(ForeignAction::Forward);
        }
    }
}
