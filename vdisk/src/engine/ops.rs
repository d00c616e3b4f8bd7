//! File operations handed out and not yet ended, each with what it is for.

use std::collections::{BTreeMap, VecDeque};

use super::map::Generation;
use super::vhdx::{Sectors, TrackOp};
use super::{FileOp, FileOpKind, OpId, RequestId};
use crate::units::FileOffset;

/// Why an operation was handed out; decides what its end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Moves part of a request's bytes; the generation it was looked up in, and the sectors that
    /// are the child's own when it has ended.
    Part {
        request: RequestId,
        generation: Generation,
        sets: Option<Sectors>,
    },
    /// Brings the rest of a sector that a request writes in part from the parent.
    CopyUp { request: RequestId, sets: Sectors },
    /// Brings in a page of a sector bitmap.
    LoadBits(u64),
    /// Reserves the host space of the sector bitmap at this offset.
    ReserveBitmap(u64),
    /// Answers part of a status request.
    Holes { request: RequestId },
    /// Brings in a page of the BAT from where it lay then.
    LoadPage(u64, FileOffset),
    /// Lengthens the file to this many bytes.
    Grow(u64),
    /// Reserves the host space of a granule of the BAT.
    ReserveBat(u64),
    /// Makes freed space at this offset read as zero.
    Clean(u64),
    /// The host flush of the flush rounds.
    HostFlush,
    /// Writes part of a log entry.
    LogWrite,
    /// Writes a logged page to its place.
    Apply,
    /// A step of opening or parking a session.
    Session,
    /// A step of a resize.
    Resize,
    /// A step of finding out which space is taken.
    Survey,
    /// Goes through the BAT for a compaction.
    Gather,
    /// Moves the block of this entry, or looks whether it holds anything.
    Move(u64),
    /// Something of what is noted of changes.
    Track(TrackOp),
}

/// The operations of one engine.
#[derive(Debug, Default)]
pub(super) struct Ops {
    next: u64,
    queue: VecDeque<FileOp>,
    outstanding: BTreeMap<OpId, Purpose>,
}

impl Ops {
    /// Hand out an operation.
    pub(super) fn push(&mut self, purpose: Purpose, kind: FileOpKind) {
        let id = OpId(self.next);
        self.next += 1;
        self.outstanding.insert(id, purpose);
        self.queue.push_back(FileOp { id, kind });
    }

    /// The next one for the driver.
    pub(super) fn pop(&mut self) -> Option<FileOp> {
        self.queue.pop_front()
    }

    /// One ended: what it was for.
    pub(super) fn end(&mut self, id: OpId) -> Option<Purpose> {
        self.outstanding.remove(&id)
    }

    /// Whether nothing is queued and nothing outstanding.
    pub(super) fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }
}
