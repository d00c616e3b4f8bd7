//! The requests that the engine works on, and what becomes of them.

use std::collections::{BTreeMap, VecDeque};

use super::{Completion, Done, Extent, Request, RequestId};
use crate::error::{Error, ErrorKind};

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its bytes are being mapped; those up to the cursor have operations.
    Mapping,
    /// Everything is mapped; its operations are running.
    Running,
    /// Its operations ended; it waits to be durable.
    Flushing,
}

/// A request in the engine.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) request: Request,
    pub(super) stage: Stage,
    /// How many bytes from its beginning have been mapped.
    pub(super) cursor: u64,
    /// Operations handed out for it and not ended.
    pub(super) outstanding: u32,
    pub(super) error: Option<Error>,
    /// The answer to a status request so far.
    pub(super) extents: Vec<Extent>,
    /// The answer to another one that brings more than its end.
    pub(super) answer: Option<Done>,
    /// Up to this granule the tracker knows of its changes, in this epoch of the tracker.
    pub(super) noted: (u64, u64),
}

/// All of them, those that wait for some event, and those that ended.
#[derive(Debug, Default)]
pub(super) struct Requests {
    active: BTreeMap<RequestId, Active>,
    /// Waiting for any event; tried again, in order, after each.
    blocked: VecDeque<RequestId>,
    completions: VecDeque<Completion>,
}

impl Requests {
    pub(super) fn insert(&mut self, id: RequestId, request: Request) {
        let active = Active {
            request,
            stage: Stage::Mapping,
            cursor: 0,
            outstanding: 0,
            error: None,
            extents: Vec::new(),
            answer: None,
            noted: (0, 0),
        };
        let before = self.active.insert(id, active);
        assert!(
            before.is_none(),
            "request {id:?} was submitted while one of that name is active"
        );
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&Active> {
        self.active.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Active> {
        self.active.get_mut(&id)
    }

    pub(super) fn block(&mut self, id: RequestId) {
        self.blocked.push_back(id);
    }

    /// Those that wait, to be tried again; whoever still cannot go on blocks again.
    pub(super) fn take_blocked(&mut self) -> VecDeque<RequestId> {
        std::mem::take(&mut self.blocked)
    }

    /// Whether a request that changes the disk is active.
    pub(super) fn any_change(&self) -> bool {
        self.active.values().any(|active| active.request.changes())
    }

    /// Whether somebody waits for the image to be parked.
    pub(super) fn any_park(&self) -> bool {
        let park = |active: &Active| matches!(active.request, Request::Park { .. });
        self.active.values().any(park)
    }

    /// End a request.
    pub(super) fn finish(&mut self, id: RequestId) {
        let Some(active) = self.active.remove(&id) else {
            return;
        };
        let result = match active.error {
            Some(error) => Err(error),
            None if active.extents.is_empty() => Ok(active.answer.unwrap_or(Done::Done)),
            None => Ok(Done::Extents(active.extents)),
        };
        self.completions.push_back(Completion {
            request: id,
            result,
        });
    }

    /// End a request with an error.
    pub(super) fn fail(&mut self, id: RequestId, error: Error) {
        if let Some(active) = self.active.get_mut(&id) {
            active.error.get_or_insert(error);
        }
        self.finish(id);
    }

    pub(super) fn pop_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }
}

impl Request {
    /// First byte and length of the range it concerns; `None` for those that concern the disk.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Self::Read { offset, len }
            | Self::Write { offset, len, .. }
            | Self::WriteZeroes { offset, len, .. }
            | Self::Discard { offset, len }
            | Self::Status { offset, len } => Some((offset.0, *len)),
            Self::Flush
            | Self::Park { .. }
            | Self::Resize { .. }
            | Self::Compact { .. }
            | Self::Checkpoint { .. } => None,
        }
    }

    /// Whether it changes what the disk holds, or what is known of that.
    #[must_use]
    pub fn changes(&self) -> bool {
        matches!(
            self,
            Self::Write { .. }
                | Self::WriteZeroes { .. }
                | Self::Discard { .. }
                | Self::Resize { .. }
                | Self::Checkpoint { .. }
        )
    }

    /// Whether it must be durable before it completes.
    #[must_use]
    pub fn durable(&self) -> bool {
        matches!(
            self,
            Self::Flush | Self::Write { fua: true, .. } | Self::WriteZeroes { fua: true, .. }
        )
    }
}

/// The error of everything that is asked of a disk whose flush has failed.
pub(super) fn failed(why: &str) -> Error {
    Error::new(
        ErrorKind::Failed,
        format!("the disk failed before and takes no more changes ({why}); reopen and check it"),
    )
}
