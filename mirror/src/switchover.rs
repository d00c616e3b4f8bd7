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
//!  target  (none) ─► Emptying ─► Receiving ─► Following ◄─► Prepared ─grant─► Owner ─► served
//!                                    └───────────────────────────▲
//! ```

mod verdict;

use uuid::Uuid;

pub use self::verdict::{Verdict, verdict};
use crate::record::{Lead, Ownership, State};
use crate::wire::{Hello, Refusal, Standing};

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
        }
    }

    /// The same, not alone; `came` is the session of the record that it has now.
    #[must_use]
    pub fn with_part(self, part: Part, came: Option<Uuid>) -> Self {
        Self { part, came, ..self }
    }

    /// The same, with attempts up to that one over: this host owns the disk, so it granted none of them.
    #[must_use]
    pub fn with_attempts_over(self, attempt: u64) -> Self {
        Self { attempt, ..self }
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
            Phase::Deciding | Phase::Released | Phase::Forwarding
        )
    }

    /// Whether it is not this session that could give up now.
    #[must_use]
    pub fn committed(&self) -> bool {
        self.decided() || self.phase == Phase::Bound
    }

    /// Begin an attempt; its number, or `None` when one is under way.
    pub fn prepare(&mut self) -> Option<u64> {
        if self.phase != Phase::Owner {
            return None;
        }
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
        self.step(attempt, Phase::Draining, Phase::Marking)
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
            Phase::Marking if ok && !self.given_up => Some(match &self.part {
                Part::Alone => {
                    self.phase = Phase::Deciding;
                    Parked::Decide(self.deciding_record())
                }
                Part::Member(lead) => {
                    let record = self.bound_record(lead.clone());
                    self.phase = Phase::Binding;
                    Parked::Bind(record)
                }
                Part::Lead => {
                    self.phase = Phase::Bound;
                    Parked::Wait
                }
            }),
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
            // What was written may be durable all the same.
            Phase::Binding => {
                self.given_up = true;
                self.phase = Phase::Unbinding;
                Recorded::Unbind
            }
            // If it is not durable the disk stays bound to a record that never hands it over: this host's own.
            Phase::Unbinding => {
                self.phase = Phase::Unmarking;
                Recorded::Unmark
            }
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

    /// The target runs under `epoch`: whether to forward now.
    pub fn running(&mut self, epoch: u64) -> bool {
        epoch >= self.next_epoch() && self.step(self.attempt, Phase::Released, Phase::Forwarding)
    }

    /// Give up the attempt under way, if there is still a way back.
    pub fn give_up(&mut self) -> GivenUp {
        match self.phase {
            Phase::Owner => GivenUp::Nothing,
            Phase::Preparing | Phase::Holding | Phase::Draining => {
                self.phase = Phase::Owner;
                GivenUp::Resume
            }
            Phase::Marking | Phase::Binding | Phase::Unbinding | Phase::Unmarking => {
                self.given_up = true;
                GivenUp::Later
            }
            Phase::Bound | Phase::Deciding | Phase::Released | Phase::Forwarding => {
                GivenUp::TooLate
            }
        }
    }
}

/// The target's side: the durable record and the one being written.
#[derive(Debug)]
pub struct TargetSwitch {
    record: Option<Ownership>,
    writing: Option<Ownership>,
    /// An image is there.
    image: bool,
}

impl TargetSwitch {
    /// What a start finds: the sidecar's record, and whether there is an image.
    #[must_use]
    pub fn new(record: Option<Ownership>, image_exists: bool) -> Self {
        Self {
            record,
            writing: None,
            image: image_exists,
        }
    }

    /// The durable record.
    #[must_use]
    pub fn record(&self) -> Option<&Ownership> {
        self.record.as_ref()
    }

    /// The durable state.
    #[must_use]
    pub fn state(&self) -> Option<&State> {
        self.record.as_ref().map(|record| &record.state)
    }

    /// Whether a record is being written: nothing that depends on it may be said meanwhile.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.writing.is_some()
    }

    /// What this host has of the session that greets it.
    pub fn standing(&self, hello: &Hello) -> Result<Standing, (Refusal, String)> {
        // What it could go on from by comparing, if it is there.
        let stale = if self.image {
            Standing::Stale
        } else {
            Standing::Empty
        };
        let Some(record) = &self.record else {
            if self.image {
                let text = "there is already an image of that name without an ownership record";
                return Err((Refusal::Occupied, text.into()));
            }
            return Ok(Standing::Empty);
        };
        if record.disk != hello.disk && !record.is_seed() {
            let text = "there is already another disk of that name";
            return Err((Refusal::Occupied, text.into()));
        }
        match &record.state {
            State::Receiving { session, .. } | State::Following { session, .. }
                if *session == hello.session =>
            {
                Ok(Standing::Receiving)
            }
            State::Prepared {
                session, attempt, ..
            } if *session == hello.session => Ok(Standing::Prepared { attempt: *attempt }),
            // A later owner (this disk may have been moved on, or back): what it was granted then
            // is settled.
            State::Owner { epoch, .. } | State::Released { epoch, .. } if *epoch > hello.epoch => {
                Ok(Standing::Owner { epoch: *epoch })
            }
            State::Owner { .. } | State::Bound { .. } => {
                Err((Refusal::Newer, "this host owns that disk itself".into()))
            }
            State::Emptying { epoch, .. } if *epoch <= hello.epoch => Ok(Standing::Empty),
            State::Receiving { epoch, .. } | State::Following { epoch, .. }
                if *epoch <= hello.epoch =>
            {
                Ok(stale)
            }
            // The owner of the epoch before: had it granted this, it would not begin again.
            State::Prepared { epoch, .. } if *epoch <= hello.epoch.saturating_add(1) => Ok(stale),
            State::Released { .. } => Ok(stale),
            _ => Err((
                Refusal::Newer,
                "this host knows a later owner of that disk".into(),
            )),
        }
    }

    /// Write `state` for the disk `disk`; the record to persist, `None` while one is being written.
    pub fn write(&mut self, disk: Uuid, state: State) -> Option<Ownership> {
        if self.writing.is_some() {
            return None;
        }
        self.writing = Some(Ownership { disk, state });
        self.writing.clone()
    }

    /// The record being written is durable; it, if there was one.
    pub fn written(&mut self) -> Option<Ownership> {
        let record = self.writing.take()?;
        self.record = Some(record.clone());
        // Each other state is written only of an image that is there.
        self.image |= !matches!(record.state, State::Emptying { .. });
        Some(record)
    }

    /// The record being written could not be: it may or may not be durable. Write it again.
    #[must_use]
    pub fn again(&self) -> Option<Ownership> {
        self.writing.clone()
    }

    /// The attempt of `session` that may be granted now.
    #[must_use]
    pub fn prepared_for(&self, session: Uuid) -> Option<(u64, u64)> {
        match self.state()? {
            State::Prepared {
                session: s,
                attempt,
                epoch,
            } if *s == session => Some((*attempt, *epoch)),
            _ => None,
        }
    }

    /// The epoch this host owns the disk under, or owned it under before moving it on.
    #[must_use]
    pub fn owned_epoch(&self) -> Option<u64> {
        match self.state()? {
            State::Owner { epoch, .. } | State::Released { epoch, .. } => Some(*epoch),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
