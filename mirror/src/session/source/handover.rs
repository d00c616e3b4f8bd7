//! The switchover as the source carries it out: the rules are in [`crate::switchover`].

use super::{Command, Control, Error, ErrorKind, Micros, Phase, Source, SourceAction};
use vdisk::engine::Mark;

use crate::switchover::{GivenUp, Parked, Recorded};
use crate::wire::{Final, Message};

/// How often the grant is repeated.
const GRANT_EVERY: Micros = Micros::from_millis(500);
/// How long after an attempt was given up the next one begins by itself.
const RETRY_AFTER: Micros = Micros::from_secs(5);

impl Source {
    pub(super) fn on_command(&mut self, now: Micros, command: Command) {
        match command {
            Command::Cutover { max_pause, how } => {
                self.local.offering.how = how;
                self.local.cutover = Some(max_pause.unwrap_or(self.config.handover.max_pause));
                self.local.not_before = now;
            }
            Command::SetRates(rates, minute) => {
                self.config.rates = rates;
                self.pace.bucket.set_rate(self.config.rates.rate_at(minute));
            }
            Command::SetTerms(terms) => {
                self.config.terms = terms;
                self.pace.agreed = false;
            }
            Command::Verify => self.verify(now),
            Command::Cancel => {
                let what = "the migration was cancelled; the disk stays here";
                if !self.switch.committed() {
                    self.fail(now, Error::new(ErrorKind::Cancelled, what));
                }
            }
            Command::Decide => {
                if let Some(record) = self.switch.decide() {
                    self.actions.push_back(SourceAction::Persist(record));
                    self.local.granted_at = None;
                    self.pump_grant(now);
                }
            }
            Command::Undo => {
                let next = self.switch.undo();
                self.after_record(next);
                let what = "the move was given up; the disk stays here";
                if !self.switch.decided() {
                    self.fail(now, Error::new(ErrorKind::Cancelled, what));
                }
            }
        }
    }

    /// Begin an attempt when one is wanted and would be short; send the final marker in one.
    pub(super) fn pump_switch(&mut self, now: Micros) {
        match self.switch.phase() {
            Phase::Owner => self.maybe_prepare(now),
            Phase::Draining => self.maybe_final(now),
            _ => {}
        }
    }

    fn maybe_prepare(&mut self, now: Micros) {
        let wanted = match self.local.cutover {
            Some(max_pause) => Some(max_pause),
            None => self
                .config
                .handover
                .automatic
                .then_some(self.config.handover.max_pause),
        };
        let may = now >= self.local.not_before && self.copy.scan_complete();
        let Some(max_pause) = wanted.filter(|_| may && self.end.outcome.is_none()) else {
            self.pace.contract.abort_landing();
            return;
        };
        let figures = self.tracker.figures();
        let left = figures.dirty + self.copy.flying() + figures.held;
        // Whatever it takes: what is held is not this session's to care for.
        let any = max_pause == Micros(u64::MAX);
        // A link that never was what is waited for is known by its best only.
        let pause = self.pace.contract.time_for(now, left);
        let pause = pause.or_else(|| self.pace.sent.time_for(left));
        let short = any || pause.is_some_and(|pause| pause <= max_pause);
        let short = self.land(now, left, short);
        let arbiter = self.next_arbiter();
        // What the target looks at for a verification would hold up its last flush, and clients with it.
        if !self.local.verify.pause(short) {
            return;
        }
        if short && let Some(attempt) = self.switch.prepare(arbiter.as_ref()) {
            self.local.final_sent = false;
            self.send_prepare(now);
            self.reach(attempt);
            self.expect();
            // From here on it counts as held: a target that does not answer is given up on too.
            self.local.held_since = Some(now);
        }
    }

    /// Whether to begin now, if what is left is `short` enough: clients are slowed down for a moment, so that it gets less.
    fn land(&mut self, now: Micros, left: u64, short: bool) -> bool {
        if !short {
            self.pace.contract.abort_landing();
            return false;
        }
        let before = self.pace.contract.brake();
        let down = self.pace.contract.land(now, left);
        let brake = self.pace.contract.brake();
        if brake != before {
            self.actions.push_back(SourceAction::Brake(brake));
        }
        down
    }

    pub(super) fn send_prepare(&mut self, now: Micros) {
        let attempt = self.switch.attempt();
        let arbiter = self.switch.arbiter().map(|arbiter| arbiter.id);
        self.send_control(now, Message::Prepare { attempt, arbiter });
    }

    /// Requests are held and none is in flight: once nothing is dirty or on the way, say so, or offer the disk first.
    fn maybe_final(&mut self, now: Micros) {
        let complete = self.copy.scan_complete()
            && self.tracker.figures().dirty == 0
            && self.copy.landed()
            && self.stream.drained(&self.tracker);
        if !complete || self.local.final_sent {
            return;
        }
        if self.switch.arbiter().is_none() {
            self.send_final(now);
        } else if self.switch.drained() {
            let mark = Some(Mark::HandedOver);
            self.actions.push_back(SourceAction::Park(mark));
            #[cfg(test)]
            self.offer_too_early(now);
        }
    }

    /// Say that this is all.
    pub(super) fn send_final(&mut self, now: Micros) {
        let Control::Up(conn) = self.link.control() else {
            return;
        };
        let floor = self.copy.floor();
        let through = self.stream.through(&self.tracker);
        let marker = self.marker(now, (through, floor));
        let chunks = self.copy.done_count();
        let attempt = self.switch.attempt();
        self.local.final_sent = true;
        self.send(
            now,
            conn,
            Message::Final(Final {
                attempt,
                chunks,
                arbiter: self.switch.arbiter().map(|arbiter| arbiter.id),
                marker,
            }),
        );
    }

    pub(super) fn on_commit_request(&mut self, attempt: u64) {
        if self.switch.commit_requested(attempt) {
            self.actions
                .push_back(SourceAction::Park(Some(Mark::HandedOver)));
        }
    }

    pub(super) fn on_parked(&mut self, now: Micros, result: &std::io::Result<()>) {
        if let Err(e) = result {
            self.end.trouble = Some(format!("cannot mark the image: {e}"));
        }
        match self.switch.parked(result.is_ok()) {
            Some(Parked::Decide(record)) => {
                self.actions.push_back(SourceAction::Persist(record));
                #[cfg(test)]
                if self.broken(crate::session::Sabotage::GrantBeforeRecord) {
                    self.send_grant(now);
                }
            }
            Some(Parked::Bind(record) | Parked::Offer(record)) => {
                self.actions.push_back(SourceAction::Persist(record));
            }
            Some(Parked::Unmark) => {
                self.actions.push_back(SourceAction::Park(None));
            }
            Some(Parked::Resume) => self.resume(now),
            Some(Parked::Wait) | None => {}
        }
    }

    pub(super) fn on_persisted(&mut self, now: Micros, result: &std::io::Result<()>) {
        if let Err(e) = result {
            self.end.trouble = Some(format!("cannot write the deciding record: {e}"));
            if self.switch.decided() {
                // It may be durable or not: only writing it again leads anywhere.
                let record = self.switch.deciding_record();
                self.actions.push_back(SourceAction::Persist(record));
                return;
            }
        }
        let next = self.switch.recorded(result.is_ok());
        if next == Recorded::Offer {
            self.send_final(now);
        }
        self.after_record(next);
        self.pump_grant(now);
    }

    fn after_record(&mut self, next: Recorded) {
        let action = match next {
            Recorded::Grant => {
                self.local.granted_at = None;
                self.forward_ahead();
                return;
            }
            Recorded::Unbind => SourceAction::Persist(self.switch.owner_record()),
            Recorded::Unmark => SourceAction::Park(None),
            Recorded::Offer | Recorded::Nothing => return,
        };
        self.actions.push_back(action);
    }

    /// Repeat the grant for as long as the target does not run.
    pub(super) fn pump_grant(&mut self, now: Micros) {
        let due = self
            .local
            .granted_at
            .is_none_or(|t| now.since(t) >= GRANT_EVERY);
        if self.switch.phase() == Phase::Released && due {
            self.send_grant(now);
        }
    }

    pub(super) fn send_grant(&mut self, now: Micros) {
        if let Control::Beginning(_) | Control::Up(_) = self.link.control() {
            let (attempt, epoch) = (self.switch.attempt(), self.switch.next_epoch());
            self.local.granted_at = Some(now);
            self.send_control(now, Message::Grant { attempt, epoch });
        }
    }

    pub(super) fn on_running(&mut self, now: Micros, epoch: u64, address: String) {
        if self.switch.running(epoch) {
            self.local.pause = self.local.held_since.map(|t| now.since(t).0);
            self.local.held_since = None;
            self.actions.push_back(SourceAction::Forward(address));
            if self.switch.phase() == Phase::Settling {
                let record = self.switch.deciding_record();
                self.actions.push_back(SourceAction::Persist(record));
            }
            if self.local.attached {
                self.actions.push_back(SourceAction::DetachTap);
            }
            let actions = self.link.reset(now);
            self.push_link(actions);
            self.end.outcome = Some(Ok(()));
        }
    }

    /// Give the attempt under way up, if there is a way back.
    pub(super) fn give_up(&mut self, now: Micros) {
        match self.switch.give_up() {
            GivenUp::Resume => self.resume(now),
            GivenUp::Reclaim => self.pump_reclaim(now),
            GivenUp::Nothing | GivenUp::Later | GivenUp::TooLate => {}
        }
    }

    /// An attempt is over; the next one waits for a while.
    pub(super) fn count_given_up(&mut self, now: Micros) {
        self.local.held_since = None;
        self.pace.contract.abort_landing();
        if !self.local.offering.cut_short {
            self.local.cutover = None;
            self.local.offering.how = None;
        }
        self.local.not_before = now + RETRY_AFTER;
        self.local.given_up += 1;
    }

    fn resume(&mut self, now: Micros) {
        self.local.final_sent = false;
        self.count_given_up(now);
        self.actions.push_back(SourceAction::Release);
        if self.switch.owes_record() {
            let record = self.switch.owner_record();
            self.actions.push_back(SourceAction::Persist(record));
        }
        // A fresh greeting tells the target that the attempt is over, in whatever state it is.
        self.lose_link(now);
    }
}
