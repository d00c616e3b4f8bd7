//! Who may write now: ownership and the two-phase commit that moves it.
//!
//! Pure rules, without messages or I/O; the sessions carry them out. Must never let two sides write:
//!
//! * **I1** A write acknowledged to a client is on the owner's disk.
//! * **I2** At most one side accepts writes. The source accepts none from the moment it holds its
//!   requests until it has given the attempt up, and never again once `Released` may be durable.
//!   The target accepts none before its `Owner` record is durable.
//! * **I3** The target becomes owner only with everything that was acknowledged, durably: it writes
//!   `Prepared` after its flush, and `Owner` only on a grant for the very attempt it is prepared for.
//!
//! **The deciding record** is the source's `Released`. Before it is submitted the source may always
//! go back; from that moment on it never does, and repeats the grant until the target runs.
//!
//! A *fast* switchover decides elsewhere: the source's `Offered` is durable before it says that the target may claim,
//! and from then on each side goes on with the disk only once the arbiter says that it may ([`crate::arbiter`]). The
//! source asks when it has heard nothing for too long, the target as soon as it is `Prepared`.
//!
//! ```text
//!  source  Owner ─prepare─► Preparing ─ready─► Holding ─held─► Draining ─commit request─► Marking
//!            ▲                  │                 │               │                          │ parked
//!            │◄─────────────────┴─────────────────┴───────────────┘       give up            ▼
//!            │◄──────────────── Unmarking ◄────────────────────────────────────────────── (given up?)
//!                                                                                            │ no
//!                              Forwarding ◄─running─ Released ◄─record durable─ Deciding ◄───┘
//!
//!  a disk that moves with others        Marking ─parked─► Binding ─record durable─► Bound ─word─► Released
//!  the record that decides for them     Marking ─parked─► Bound ─word─► Deciding ─► …
//!                                       from Bound only a word leads on or back: [`crate::joint`]
//!
//!  a disk that is offered   Draining ─all sent─► Marking ─parked─► Offering ─record durable─► Offered ─running─► Settling
//!                           Offered ─give up─► Reclaiming ─arbiter: source─► Unbinding ─► Unmarking ─► Owner
//!                                              Reclaiming ─arbiter: target─► Deciding ─► …
//!
//!  target  (none) ─► Emptying ─► Receiving ─► Following ◄─► Prepared ─grant─► Owner ─► served
//!                                    └───────────────────────────▲        └─arbiter: target─► Owner
//! ```

mod target;
mod verdict;

use uuid::Uuid;

pub use self::target::TargetSwitch;
pub use self::verdict::{Verdict, verdict};
use crate::arbiter::{ArbiterName, Ballot, Side};
use crate::record::{Lead, Ownership, State};

/// Where the source of a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Serves; no attempt under way.
    Owner,
    /// Serves; asked the target whether it can take over.
    Preparing,
    /// Lets what is in flight finish and holds the rest.
    Holding,
    /// Nothing is in flight; sends what is left and waits for the target's commit request.
    Draining,
    /// Puts the handed-over mark into the image.
    Marking,
    /// Writes that another record decides from now on.
    Binding,
    /// All is done but the decision, which is not its own: no way forth or back without a word.
    Bound,
    /// Writes that an arbiter decides from now on; nobody may ask it yet.
    Offering,
    /// That is durable, and said: only the target's word that it runs or the arbiter's leads on.
    Offered,
    /// Asks the arbiter for the disk.
    Reclaiming,
    /// The target runs what it was offered: forwards, and writes so.
    Settling,
    /// Writes that the disk is this host's own again.
    Unbinding,
    /// Takes the mark out again after giving up.
    Unmarking,
    /// The deciding record is on its way to the disk: no way back.
    Deciding,
    /// The deciding record is durable: repeats the grant.
    Released,
    /// The target runs: forwards.
    Forwarding,
}

/// What to do once the image is parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parked {
    /// Write this record: it decides.
    Decide(Ownership),
    /// Write this record: another one decides.
    Bind(Ownership),
    /// Write this record: an arbiter decides.
    Offer(Ownership),
    /// Wait for the word.
    Wait,
    /// Take the mark out again.
    Unmark,
    /// Let the held requests go on here.
    Resume,
}

/// Who decides about a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// It does, by itself.
    #[default]
    Alone,
    /// Another record, with which it moves.
    Member(Lead),
    /// It does, for others too, once it is told that all of them are bound.
    Lead,
}

/// What is to be done when a record is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Grant, now.
    Grant,
    /// Say that the target may claim the disk, now.
    Offer,
    /// Take the mark out.
    Unmark,
    /// Write this one: it was given up meanwhile.
    Unbind,
    /// Nothing.
    Nothing,
}

/// What giving up came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenUp {
    /// There was no attempt.
    Nothing,
    /// Let the held requests go on here.
    Resume,
    /// The mark has to be taken out first; [`SourceSwitch::parked`] will say so.
    Later,
    /// Ask the arbiter for it.
    Reclaim,
    /// The deciding record may be durable, or is another one: only forward.
    TooLate,
}

/// The source's side of the switchover.
#[derive(Debug)]
pub struct SourceSwitch {
    disk: Uuid,
    session: Uuid,
    epoch: u64,
    to: String,
    phase: Phase,
    attempt: u64,
    given_up: bool,
    part: Part,
    /// The session that had brought the disk here.
    came: Option<Uuid>,
    /// Who decides about the attempt, if the disk is to be offered.
    arbiter: Option<ArbiterName>,
    /// The disk is this host's own again, and its record may not say so.
    owes_record: bool,
}

impl SourceSwitch {
    /// The owner under `epoch`, about to move the disk to the host at `to`.
    #[must_use]
    pub fn new(disk: Uuid, epoch: u64, session: Uuid, to: String) -> Self {
        Self {
            disk,
            session,
            epoch,
            to,
            phase: Phase::Owner,
            attempt: 0,
            given_up: false,
            part: Part::Alone,
            came: None,
            arbiter: None,
            owes_record: false,
        }
    }

    /// The same, not alone; `came` is the session of the record that it has now.
    #[must_use]
    pub fn with_part(self, part: Part, came: Option<Uuid>) -> Self {
        Self { part, came, ..self }
    }

    /// Attempts up to that one are over: this host owns the disk, so it granted none of them.
    pub fn attempts_are_over(&mut self, attempt: u64) {
        self.attempt = attempt;
    }

    /// Go on as another session, of which the target knows nothing yet.
    pub fn rename(&mut self, session: Uuid) {
        self.session = session;
    }

    /// The disk that moves.
    #[must_use]
    pub fn disk(&self) -> Uuid {
        self.disk
    }

    /// A source that finds after a restart that it has handed the disk over.
    #[must_use]
    pub fn released(record: &Ownership) -> Option<Self> {
        let State::Released {
            epoch,
            session,
            attempt,
            to,
        } = &record.state
        else {
            return None;
        };
        Some(Self {
            disk: record.disk,
            session: *session,
            epoch: epoch.saturating_sub(1),
            to: to.clone(),
            phase: Phase::Released,
            attempt: *attempt,
            given_up: false,
            part: Part::Alone,
            came: None,
            arbiter: None,
            owes_record: false,
        })
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The attempt under way, or the last one; 0 before the first.
    #[must_use]
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// The last attempt that is over and will never be granted.
    #[must_use]
    pub fn aborted(&self) -> u64 {
        match self.phase {
            Phase::Owner => self.attempt,
            _ if self.given_up => self.attempt,
            _ => self.attempt.saturating_sub(1),
        }
    }

    /// The epoch that the target owns after this session.
    #[must_use]
    pub fn next_epoch(&self) -> u64 {
        self.epoch.saturating_add(1)
    }

    /// Whether the deciding record may be durable.
    #[must_use]
    pub fn decided(&self) -> bool {
        matches!(
            self.phase,
            Phase::Deciding | Phase::Released | Phase::Settling | Phase::Forwarding
        )
    }

    /// Whether the target may have the disk by the arbiter's word.
    #[must_use]
    pub fn is_offered(&self) -> bool {
        matches!(self.phase, Phase::Offered | Phase::Reclaiming)
    }

    /// Whether the image may be closed, so that nothing can be read from it, without a decision.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        matches!(
            self.phase,
            Phase::Marking
                | Phase::Binding
                | Phase::Bound
                | Phase::Offering
                | Phase::Offered
                | Phase::Reclaiming
                | Phase::Unbinding
                | Phase::Unmarking
        )
    }

    /// Whether it is not this session that could give up now.
    #[must_use]
    pub fn committed(&self) -> bool {
        self.decided() || self.phase == Phase::Bound
    }

    /// Who decides about the attempt under way, if that is to be a fast one.
    #[must_use]
    pub fn arbiter(&self) -> Option<&ArbiterName> {
        self.arbiter.as_ref()
    }

    /// What is decided about the attempt under way.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        Ballot {
            disk: self.disk,
            session: self.session,
            attempt: self.attempt,
        }
    }

    /// Begin an attempt; its number, or `None` when one is under way. With an arbiter it is a fast one, unless the disk
    /// moves with others.
    pub fn prepare(&mut self, arbiter: Option<&ArbiterName>) -> Option<u64> {
        if self.phase != Phase::Owner || self.owes_record {
            return None;
        }
        self.arbiter = arbiter.filter(|_| self.part == Part::Alone).cloned();
        self.phase = Phase::Preparing;
        self.attempt += 1;
        self.given_up = false;
        Some(self.attempt)
    }

    /// The target is ready for `attempt`: whether to hold the clients' requests now.
    pub fn ready(&mut self, attempt: u64) -> bool {
        self.step(attempt, Phase::Preparing, Phase::Holding)
    }

    /// Nothing is in flight any more: whether to drain now.
    pub fn held(&mut self, attempt: u64) -> bool {
        self.step(attempt, Phase::Holding, Phase::Draining)
    }

    /// The target has everything durably: whether to park the image with its mark now.
    pub fn commit_requested(&mut self, attempt: u64) -> bool {
        self.arbiter.is_none() && self.step(attempt, Phase::Draining, Phase::Marking)
    }

    /// Everything was sent: whether to park the image with its mark now, to offer the disk.
    pub fn drained(&mut self) -> bool {
        self.arbiter.is_some() && self.step(self.attempt, Phase::Draining, Phase::Marking)
    }

    /// The link is lost: the target can no longer have what an offer would speak of. Whether that ends the attempt.
    pub fn link_lost(&mut self) -> bool {
        let ends = self.arbiter.is_some() && matches!(self.phase, Phase::Marking | Phase::Offering);
        self.given_up |= ends;
        ends
    }

    fn step(&mut self, attempt: u64, from: Phase, to: Phase) -> bool {
        let steps = attempt == self.attempt && self.phase == from && !self.given_up;
        if steps {
            self.phase = to;
        }
        steps
    }

    /// The image is parked (`ok`) or could not be; `None` when that was not asked for.
    pub fn parked(&mut self, ok: bool) -> Option<Parked> {
        match self.phase {
            Phase::Marking if ok && !self.given_up => {
                Some(match (&self.part, self.arbiter.clone()) {
                    (Part::Alone, Some(arbiter)) => {
                        self.phase = Phase::Offering;
                        Parked::Offer(self.offering_record(arbiter))
                    }
                    (Part::Alone, None) => {
                        self.phase = Phase::Deciding;
                        Parked::Decide(self.deciding_record())
                    }
                    (Part::Member(lead), _) => {
                        let record = self.bound_record(lead.clone());
                        self.phase = Phase::Binding;
                        Parked::Bind(record)
                    }
                    (Part::Lead, _) => {
                        self.phase = Phase::Bound;
                        Parked::Wait
                    }
                })
            }
            // A park that failed may have left the mark: it is taken out in any case.
            Phase::Marking => {
                self.given_up = true;
                self.phase = Phase::Unmarking;
                Some(Parked::Unmark)
            }
            // When even that fails the disk still belongs here: a start finds the owner's record
            // and removes the mark then.
            Phase::Unmarking => {
                self.phase = Phase::Owner;
                Some(Parked::Resume)
            }
            _ => None,
        }
    }

    /// The record that decides.
    #[must_use]
    pub fn deciding_record(&self) -> Ownership {
        Ownership {
            disk: self.disk,
            state: State::Released {
                epoch: self.next_epoch(),
                session: self.session,
                attempt: self.attempt,
                to: self.to.clone(),
            },
        }
    }

    fn bound_record(&self, lead: Lead) -> Ownership {
        Ownership {
            disk: self.disk,
            state: State::Bound {
                epoch: self.next_epoch(),
                session: self.session,
                attempt: self.attempt,
                to: self.to.clone(),
                lead,
            },
        }
    }

    fn offering_record(&self, arbiter: ArbiterName) -> Ownership {
        Ownership {
            disk: self.disk,
            state: State::Offered {
                epoch: self.next_epoch(),
                session: self.session,
                attempt: self.attempt,
                to: self.to.clone(),
                came: self.came,
                arbiter,
            },
        }
    }

    /// Whether the record of a disk that is this host's own again is still to be written.
    #[must_use]
    pub fn owes_record(&self) -> bool {
        self.owes_record
    }

    /// The record of a disk that is this host's own again.
    #[must_use]
    pub fn owner_record(&self) -> Ownership {
        Ownership {
            disk: self.disk,
            state: State::Owner {
                epoch: self.epoch,
                session: self.came,
            },
        }
    }

    /// The record that was asked for last is durable (`ok`), or may be.
    pub fn recorded(&mut self, ok: bool) -> Recorded {
        match self.phase {
            Phase::Deciding if ok => {
                self.phase = Phase::Released;
                Recorded::Grant
            }
            Phase::Binding if ok && !self.given_up => {
                self.phase = Phase::Bound;
                Recorded::Nothing
            }
            Phase::Offering if ok && !self.given_up => {
                self.phase = Phase::Offered;
                Recorded::Offer
            }
            Phase::Settling if ok => {
                self.phase = Phase::Forwarding;
                Recorded::Nothing
            }
            // What was written may be durable all the same. An offer that nobody heard of is one that nobody claims.
            Phase::Binding | Phase::Offering => {
                self.given_up = true;
                self.phase = Phase::Unbinding;
                Recorded::Unbind
            }
            // If it is not durable the disk stays bound to a record that never hands it over, or offered, which the
            // arbiter will say was taken back: this host's own. Clients need not wait until it is.
            Phase::Unbinding => {
                self.owes_record = !ok;
                self.phase = Phase::Unmarking;
                Recorded::Unmark
            }
            Phase::Owner if self.owes_record && ok => {
                self.owes_record = false;
                Recorded::Nothing
            }
            Phase::Owner if self.owes_record => Recorded::Unbind,
            _ => Recorded::Nothing,
        }
    }

    /// The word: a lead decides now, a disk that is bound to one that has decided is handed over. The record to
    /// write; the grant of a disk that is bound need not wait for it.
    pub fn decide(&mut self) -> Option<Ownership> {
        if self.phase != Phase::Bound {
            return None;
        }
        self.phase = match self.part {
            Part::Member(_) => Phase::Released,
            Part::Alone | Part::Lead => Phase::Deciding,
        };
        Some(self.deciding_record())
    }

    /// The other word: all stays here. Only for a lead that was not told to decide, and what is bound to it.
    /// What to do; nothing if it is not bound.
    pub fn undo(&mut self) -> Recorded {
        if self.phase != Phase::Bound {
            return Recorded::Nothing;
        }
        self.given_up = true;
        match self.part {
            Part::Member(_) => {
                self.phase = Phase::Unbinding;
                Recorded::Unbind
            }
            Part::Alone | Part::Lead => {
                self.phase = Phase::Unmarking;
                Recorded::Unmark
            }
        }
    }

    /// The target runs under `epoch`: whether to forward now. In [`Phase::Settling`] the record is to be written then.
    pub fn running(&mut self, epoch: u64) -> bool {
        self.phase = match self.phase {
            _ if epoch < self.next_epoch() => return false,
            Phase::Released => Phase::Forwarding,
            // It runs only because the arbiter gave it the disk; under a later epoch it was forced.
            Phase::Offered | Phase::Reclaiming if epoch == self.next_epoch() => Phase::Settling,
            _ => return false,
        };
        true
    }

    /// The arbiter's word on the attempt under way: the record to write now, if that was asked for.
    pub fn told(&mut self, ballot: Ballot, side: Side) -> Option<Ownership> {
        if self.phase != Phase::Reclaiming || ballot != self.ballot() {
            return None;
        }
        Some(match side {
            Side::Source => {
                self.given_up = true;
                self.phase = Phase::Unbinding;
                self.owner_record()
            }
            Side::Target => {
                self.phase = Phase::Deciding;
                self.deciding_record()
            }
        })
    }

    /// Give up the attempt under way, if there is still a way back.
    pub fn give_up(&mut self) -> GivenUp {
        match self.phase {
            Phase::Owner | Phase::Reclaiming => GivenUp::Nothing,
            Phase::Preparing | Phase::Holding | Phase::Draining => {
                self.phase = Phase::Owner;
                GivenUp::Resume
            }
            Phase::Marking
            | Phase::Binding
            | Phase::Offering
            | Phase::Unbinding
            | Phase::Unmarking => {
                self.given_up = true;
                GivenUp::Later
            }
            Phase::Offered => {
                self.phase = Phase::Reclaiming;
                GivenUp::Reclaim
            }
            Phase::Bound
            | Phase::Deciding
            | Phase::Settling
            | Phase::Released
            | Phase::Forwarding => GivenUp::TooLate,
        }
    }
}

#[cfg(test)]
mod tests;
