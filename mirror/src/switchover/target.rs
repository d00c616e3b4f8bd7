//! The target's side: what a host has of a disk that comes to it.
//!
//! Pure. Must never let a session go on with what is not its own.

use uuid::Uuid;

use crate::record::{Ownership, State};
use crate::wire::{Hello, Refusal, Standing};

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
            State::Owner { .. } | State::Offered { .. } | State::Bound { .. } => {
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
            // The owner that it was granted to may know what it has changed since.
            State::Released { session, epoch, .. } if self.image && *epoch == hello.epoch => {
                Ok(Standing::Left {
                    session: *session,
                    epoch: *epoch,
                })
            }
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
                ..
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
