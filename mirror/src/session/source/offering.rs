//! A fast switchover as the source carries it out: the disk is offered, and an arbiter says who has it.
//!
//! Must never let a client write after the offer may be known, unless the arbiter has said that the disk is this host's.

use super::{Error, Micros, Phase, Result, Source, SourceAction, SourceConfig, Standing};
use crate::arbiter::{ArbiterName, Ballot, Side, Switchover};
use crate::error::ErrorKind;
use crate::switchover::{GivenUp, Part};

/// How long after a question that was not answered it is asked again.
const AGAIN: Micros = Micros::from_millis(500);

/// What concerns the arbiter.
#[derive(Debug, Default)]
pub(super) struct Offering {
    /// How the user wants the next switchover, if not as usual.
    pub(super) how: Option<Switchover>,
    /// The attempt for which the target is ready, and the one for which the arbiter was found.
    ready: u64,
    reached: u64,
    /// Where the target will serve the disk, as it says.
    pub(super) address: Option<String>,
    /// It is being asked.
    asked: bool,
    /// The attempt under way ends for the link, not because it took too long: what the user wants still holds.
    pub(super) cut_short: bool,
    not_before: Micros,
}

impl Source {
    /// The arbiter of the next attempt, if that is to be a fast one.
    pub(super) fn next_arbiter(&self) -> Option<ArbiterName> {
        let how = self.local.offering.how.unwrap_or(self.config.handover.how);
        let arbiter = self.config.handover.arbiter.clone();
        arbiter.filter(|_| how == Switchover::Fast)
    }

    /// Whether it is there: without it the disk could end up with nobody.
    pub(super) fn reach(&mut self, attempt: u64) {
        self.local.offering.cut_short = false;
        if let Some(arbiter) = self.switch.arbiter().cloned() {
            self.actions
                .push_back(SourceAction::Reach { attempt, arbiter });
        }
    }

    pub(super) fn on_reached(&mut self, now: Micros, attempt: u64, result: std::io::Result<()>) {
        if attempt != self.switch.attempt() || self.switch.phase() != Phase::Preparing {
            return;
        }
        match result {
            Ok(()) => {
                self.local.offering.reached = attempt;
                self.hold_if_ready(now);
            }
            Err(e) => {
                let what =
                    format!("the arbiter cannot be asked: {e}; try later, or --switchover safe");
                self.not_now(now, what);
            }
        }
    }

    pub(super) fn on_ready(&mut self, now: Micros, attempt: u64) {
        if attempt == self.switch.attempt() {
            self.local.offering.ready = attempt;
            self.hold_if_ready(now);
        }
    }

    /// The target says that it cannot.
    pub(super) fn on_not_ready(&mut self, now: Micros, attempt: u64, text: &str) {
        if attempt == self.switch.attempt() && self.switch.phase() == Phase::Preparing {
            self.not_now(now, format!("the target cannot take over now: {text}"));
        }
    }

    /// An attempt in which nothing was held yet does not begin.
    fn not_now(&mut self, now: Micros, why: String) {
        self.end.trouble = Some(why);
        if self.switch.give_up() == GivenUp::Resume {
            self.count_given_up(now);
        }
    }

    fn hold_if_ready(&mut self, now: Micros) {
        let (attempt, offering) = (self.switch.attempt(), &self.local.offering);
        let reached = self.switch.arbiter().is_none() || offering.reached == attempt;
        if reached && offering.ready == attempt && self.switch.ready(attempt) {
            self.local.held_since = Some(now);
            self.actions.push_back(SourceAction::Hold(attempt));
        }
    }

    /// Requests will go there if the attempt goes well: by the time they do the connection is there.
    pub(super) fn expect(&mut self) {
        if let Some(address) = self.local.offering.address.clone() {
            self.actions.push_back(SourceAction::Expect(address));
        }
    }

    /// The disk is handed over for good: requests need not wait here for the target to say that it runs.
    pub(super) fn forward_ahead(&mut self) {
        let alone = self.config.part == Part::Alone;
        if let Some(address) = self.local.offering.address.clone().filter(|_| alone) {
            self.actions.push_back(SourceAction::ForwardAhead(address));
        }
    }

    /// Give up what was offered, if the arbiter lets us.
    pub(super) fn pump_reclaim(&mut self, now: Micros) {
        let offering = &mut self.local.offering;
        if self.switch.phase() != Phase::Reclaiming || offering.asked || now < offering.not_before {
            return;
        }
        #[cfg(test)]
        if self.config.sabotage == Some(crate::session::Sabotage::ReclaimUnasked) {
            let ballot = self.switch.ballot();
            self.on_decided(now, ballot, Ok(Side::Source));
            return;
        }
        if let Some(arbiter) = self.switch.arbiter().cloned() {
            self.local.offering.asked = true;
            let ballot = self.switch.ballot();
            self.actions
                .push_back(SourceAction::Reclaim { arbiter, ballot });
        }
    }

    /// The arbiter's word.
    pub(super) fn on_decided(
        &mut self,
        now: Micros,
        ballot: Ballot,
        result: std::io::Result<Side>,
    ) {
        self.local.offering.asked = false;
        match result {
            Ok(side) => {
                self.end.trouble = None;
                if let Some(record) = self.switch.told(ballot, side) {
                    self.actions.push_back(SourceAction::Persist(record));
                }
            }
            Err(e) => {
                self.local.offering.not_before = now + AGAIN;
                let what = format!(
                    "the disk was offered to the target, which does not answer, and the arbiter cannot be asked \
                     whether it has taken it: {e}; clients wait until one of them answers"
                );
                self.end.trouble = Some(what);
            }
        }
    }

    /// What a greeted target has of a disk that was offered to it. Nothing is begun on that connection.
    pub(super) fn on_welcome_to_offer(&mut self, now: Micros, standing: &Standing) {
        match standing {
            // It has everything and asks for itself, and says when it runs.
            Standing::Prepared { attempt } if *attempt == self.switch.attempt() => {}
            // It can only have it from the arbiter, and says so once more when it is granted what it has.
            Standing::Owner { epoch } if *epoch == self.switch.next_epoch() => self.send_grant(now),
            // It has not, and what it lacks is in an image that is closed; or the disk was taken by force, and the
            // arbiter has to say whether it is this host's.
            _ => {
                self.local.offering.cut_short = true;
                self.give_up(now);
            }
        }
    }

    /// An offer that nobody may have heard of ends with the link; the attempt is given up when its record allows it.
    pub(super) fn offer_lost(&mut self) {
        // Whoever is reached next has not said yet that it can.
        self.local.offering.ready = 0;
        if self.switch.link_lost() {
            self.local.offering.cut_short = true;
            self.end.trouble = Some("the link was lost in a switchover, which was given up".into());
        }
    }
}

impl SourceConfig {
    /// Whether it can be done.
    pub(super) fn check(&self) -> Result<()> {
        if self.handover.how == Switchover::Fast && self.handover.arbiter.is_none() {
            let what = "a fast switchover needs an arbiter";
            return Err(Error::new(ErrorKind::InvalidArgument, what));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Source {
    /// Break a rule: tell the target of an offer that is not durable.
    pub(super) fn offer_too_early(&mut self, now: Micros) {
        if self.config.sabotage == Some(crate::session::Sabotage::OfferBeforeRecord) {
            self.send_final(now);
        }
    }
}

#[cfg(test)]
mod tests;
