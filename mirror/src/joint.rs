//! Several disks and a machine that move together: one commit for all of them.
//!
//! Pure. Each disk is moved by a session of its own, and so is the machine's state, which is one more volume and the
//! **lead**: its `Released` is the one deciding record. A disk goes as far as a session can without deciding: complete
//! and durable at the target, the image parked, and its record [`State::Bound`] to the lead's. Then:
//!
//! * **J1** The lead is told to decide only when every member is bound.
//! * **J2** A disk that is bound neither goes back nor forth but by a word, and nothing is taken back once the lead
//!   was told to decide.
//! * **J3** A disk that is found bound after a crash belongs to whom the lead's record gives it: [`resolve`].
//! * **J4** The machine goes on here only when every session has ended with its disk here.
//!
//! ```text
//!  Copying ─all near─► Stopping ─stands still─► Binding ─all bound─► Deciding ─lead released─► Granting ─► Moved
//!     │                    │                       │                    (no way back from here)
//!     └────────────────────┴───────────────────────┴── Undoing ─all ended─► Stays
//! ```

use crate::record::{Ownership, State};
use crate::switchover::Phase;

/// What a session is seen to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What is left would be there in a moment.
    pub near: bool,
    /// Where its switchover stands.
    pub phase: Phase,
    /// It has failed, or it has given an attempt up.
    pub failed: bool,
    /// It does nothing more.
    pub over: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// How the sessions are: the lead first, then the members, always all of them.
    Seen(&'a [Seen]),
    /// The machine stands still and its state is there to be read, or that could not be.
    Stopped(bool),
    /// Somebody wants it to stay, or has waited long enough.
    GiveUp,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Have the machine stand still and its state read.
    Stop,
    /// Have every session switch over as far as it may.
    SwitchOver,
    /// Tell the lead to decide.
    DecideLead,
    /// Tell every member that it is handed over.
    DecideMembers,
    /// Tell every session, the lead first, to take back what it did and end.
    Undo,
    /// The machine goes on here, if it ran.
    GoOn,
}

/// Where the move stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Disks are copied while the machine runs.
    Copying,
    /// The machine is brought to a stand.
    Stopping,
    /// The rest is sent; each session goes as far as it may.
    Binding,
    /// The deciding record is written: no way back.
    Deciding,
    /// It is decided: the target is told until it runs.
    Granting,
    /// The target runs.
    Moved,
    /// All is taken back.
    Undoing,
    /// All is here as before.
    Stays,
}

/// The machine that decides for all.
#[derive(Debug)]
pub struct Joint {
    step: Step,
}

impl Default for Joint {
    fn default() -> Self {
        Self {
            step: Step::Copying,
        }
    }
}

impl Joint {
    /// Where it stands.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// Whether it may be decided already: there is no way back.
    #[must_use]
    pub fn committed(&self) -> bool {
        matches!(self.step, Step::Deciding | Step::Granting | Step::Moved)
    }

    /// Something happened: what to do now. One order at a time; what follows from it is seen later.
    pub fn handle(&mut self, event: Event<'_>) -> Option<Order> {
        match (self.step, event) {
            (Step::Copying | Step::Stopping | Step::Binding, Event::GiveUp)
            | (Step::Stopping, Event::Stopped(false)) => Some(self.go(Step::Undoing, Order::Undo)),
            (Step::Stopping, Event::Stopped(true)) => {
                Some(self.go(Step::Binding, Order::SwitchOver))
            }
            (_, Event::Seen(seen)) => self.look(seen),
            _ => None,
        }
    }

    fn go(&mut self, step: Step, order: Order) -> Order {
        self.step = step;
        order
    }

    fn look(&mut self, seen: &[Seen]) -> Option<Order> {
        let (lead, members) = seen.split_first()?;
        let failed = seen.iter().any(|one| one.failed || one.over);
        match self.step {
            Step::Copying | Step::Stopping | Step::Binding if failed => {
                Some(self.go(Step::Undoing, Order::Undo))
            }
            Step::Copying if members.iter().all(|one| one.near) => {
                Some(self.go(Step::Stopping, Order::Stop))
            }
            Step::Binding if seen.iter().all(|one| one.phase == Phase::Bound) => {
                Some(self.go(Step::Deciding, Order::DecideLead))
            }
            Step::Deciding if matches!(lead.phase, Phase::Released | Phase::Forwarding) => {
                Some(self.go(Step::Granting, Order::DecideMembers))
            }
            Step::Granting if seen.iter().all(|one| one.phase == Phase::Forwarding) => {
                self.step = Step::Moved;
                None
            }
            Step::Undoing if seen.iter().all(|one| one.over) => {
                Some(self.go(Step::Stays, Order::GoOn))
            }
            _ => None,
        }
    }
}

/// What a record that may be bound to another comes to. `lead` is the record that it names, as it is now.
///
/// The text says why it cannot be told.
pub fn resolve(record: &Ownership, lead: Option<&Ownership>) -> Result<Ownership, String> {
    let State::Bound {
        epoch,
        session,
        attempt,
        to,
        lead: bond,
    } = &record.state
    else {
        return Ok(record.clone());
    };
    let Some(found) = lead else {
        return Err(format!(
            "the disk was about to move with a machine, and the record that says whether it has is missing: {}",
            bond.record
        ));
    };
    let state = match &found.state {
        State::Released { session: moved, .. } if *moved == bond.session => State::Released {
            epoch: *epoch,
            session: *session,
            attempt: *attempt,
            to: to.clone(),
        },
        // It is an epoch older than it would be after the move: that never was.
        State::Owner { epoch: owned, .. } if *owned < bond.epoch => State::Owner {
            epoch: epoch.saturating_sub(1),
            session: None,
        },
        _ => {
            return Err(format!(
                "the disk was about to move with a machine, and {} is of a later move",
                bond.record
            ));
        }
    };
    Ok(Ownership {
        disk: record.disk,
        state,
    })
}

#[cfg(test)]
mod tests;
