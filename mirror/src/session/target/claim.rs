//! A disk that was offered: the arbiter is asked for it.
//!
//! Must never own the disk before the arbiter has said so; asking again does no harm.

use uuid::Uuid;

use super::{ConnId, Error, Message, Micros, Result, State, Target, TargetAction};
use crate::arbiter::{ArbiterName, Ballot, Side};

/// How long after a question that was not answered it is asked again.
const AGAIN: Micros = Micros::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct Claim {
    /// The attempt for which it is being looked for, and the connection that wants to know.
    reaching: Option<(u64, ConnId)>,
    /// It is being asked about that.
    asked: Option<Ballot>,
    /// That one the source has taken back.
    lost: Option<Ballot>,
    not_before: Micros,
}

impl Target {
    /// The source is about to switch over; if fast, both have to find the same arbiter.
    pub(super) fn on_prepare(&mut self, now: Micros, attempt: u64, arbiter: Option<Uuid>) {
        let Some(id) = arbiter else {
            self.prepare(attempt);
            return;
        };
        match self.arbiter(id) {
            Ok(arbiter) => {
                self.takeover.claim.reaching = self.control().map(|conn| (attempt, conn));
                self.actions
                    .push_back(TargetAction::Reach { attempt, arbiter });
            }
            Err(e) => self.not_ready(now, attempt, e.to_string()),
        }
    }

    fn control(&self) -> Option<ConnId> {
        self.lanes.control.as_ref().map(|(conn, _)| *conn)
    }

    fn not_ready(&mut self, now: Micros, attempt: u64, text: String) {
        self.send(now, Message::NotReady { attempt, text });
    }

    /// The arbiter that the source means, as this host is to find it.
    pub(super) fn arbiter(&self, id: Uuid) -> Result<ArbiterName> {
        let Some(at) = self.config.arbiter.clone() else {
            let what = "this site was not told of an arbiter: receive with --arbiter, or switch over with \
                        --switchover safe";
            return Err(Error::misbehaved(what));
        };
        Ok(ArbiterName { id, at })
    }

    pub(super) fn on_reached(&mut self, now: Micros, attempt: u64, result: std::io::Result<()>) {
        let wanted = self.control().map(|conn| (attempt, conn));
        let reaching = &mut self.takeover.claim.reaching;
        if reaching.is_none() || *reaching != wanted {
            return;
        }
        *reaching = None;
        match result {
            Ok(()) => self.prepare(attempt),
            Err(e) => self.not_ready(now, attempt, format!("the arbiter cannot be asked: {e}")),
        }
    }

    /// What is left to the arbiter, and not yet answered.
    fn open_ballot(&self) -> Option<(ArbiterName, Ballot)> {
        let record = self.switch.record().filter(|_| !self.switch.busy())?;
        let (arbiter, ballot) = record.ballot()?;
        // A record of this host's own offer is none of this machine's.
        let prepared = matches!(record.state, State::Prepared { .. });
        // Whoever begins a session has the arbiter's word, or was forced: nothing is taken from it then.
        let open = prepared && !self.setup.has_begun() && self.takeover.claim.lost != Some(ballot);
        open.then(|| (arbiter.clone(), ballot))
    }

    /// Whether there is something to ask, or to hear.
    pub(super) fn claims(&self) -> bool {
        self.open_ballot().is_some()
    }

    /// Ask, if there is something to ask.
    pub(super) fn pump_claim(&mut self, now: Micros) {
        if self.takeover.claim.asked.is_some() || now < self.takeover.claim.not_before {
            return;
        }
        if let Some((arbiter, ballot)) = self.open_ballot() {
            #[cfg(test)]
            if self.broken(crate::session::Sabotage::ClaimUnasked) {
                return self.take_over(ballot.session);
            }
            self.takeover.claim.asked = Some(ballot);
            self.actions
                .push_back(TargetAction::Claim { arbiter, ballot });
        }
    }

    /// The arbiter's word.
    pub(super) fn on_decided(
        &mut self,
        now: Micros,
        ballot: Ballot,
        result: &std::io::Result<Side>,
    ) {
        self.takeover.claim.asked = None;
        match result {
            Err(_) => self.takeover.claim.not_before = now + AGAIN,
            Ok(Side::Source) => self.takeover.claim.lost = Some(ballot),
            Ok(Side::Target) => {
                // Else the source has gone on, which it does only with another answer; or it is asked again.
                let open = self.open_ballot().is_some_and(|(_, open)| open == ballot);
                if open {
                    self.take_over(ballot.session);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
