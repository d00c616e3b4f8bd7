//! Giving the disk another size while it is in use.
//!
//! A resize waits until it is alone on the disk, as an unaligned write does: no change is under way,
//! and none begins before it has ended. Reads go on. A disk becomes larger for its workers when the
//! new size is durable. It becomes smaller for them before anything is taken away; what lies beyond
//! is refused from then on.
//!
//! A raw disk is as long as its file. What a VHDX disk takes is in `vhdx/resize.rs`; the order of all
//! steps is in `docs/crash-consistency.md`.

use super::map::Generation;
use super::ops::Purpose;
use super::step::Run;
use super::vhdx::Table;
use super::{Engine, Extent, FileOpKind, Outcome, RequestId};
use crate::error::{Error, Result};
use crate::units::FileOffset;

/// How far a resize is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// What is in the file becomes what is in memory.
    Settle,
    /// What would be cut off is searched for data; it has none before this byte of the disk.
    Examine(u64),
    /// A session is opened.
    Open,
    /// Raw: nobody shall read beyond the new end any more.
    Quiesce(Generation),
    /// The file gets its length: of a raw disk, or to hold a larger table.
    Length,
    /// What follows the old end in the last block becomes zero.
    Tail,
    /// With a parent: the sectors there become the disk's own, from this byte of it on.
    Marks(u64),
    /// Entries are dropped or made, from this index on.
    Walk(u64),
    /// As `Settle`, before the table is copied.
    Publish,
    /// A larger table gets its place.
    Place,
    /// The table is copied, from this page on.
    Copy(u64),
    /// With a parent: entries of blocks that are cut off are published.
    Dropped,
    /// With a parent: bitmaps that no block needs any more are given up.
    Bitmaps,
    /// What must change at once goes to the log.
    Commit,
    /// It is waited for.
    Committed,
    /// With a parent: the disk is smaller; entries beyond it become zero, from this index on.
    Sweep(u64),
}

/// A resize that is alone on the disk.
#[derive(Debug)]
pub(super) struct Resizing {
    pub(super) size: u64,
    pub(super) before: u64,
    pub(super) discard: bool,
    pub(super) stage: Stage,
    /// An operation runs.
    running: bool,
    /// What the one that ran brought.
    pub(super) answer: Option<Outcome>,
    /// The flush round that carries it.
    pub(super) round: u64,
    pub(super) table: Table,
}

/// How a resize goes on.
pub(super) enum Next {
    /// At once, in the stage that was set.
    On,
    /// When anything has happened.
    Wait,
    /// The same; the request is already in the list of those that wait.
    Blocked,
    /// Not at all.
    Failed(Error),
    /// It is done.
    Done,
}

impl From<Run> for Next {
    fn from(run: Run) -> Self {
        match run {
            Run::Failed(error) => Self::Failed(error),
            _ => Self::Blocked,
        }
    }
}

impl Resizing {
    pub(super) fn shrinks(&self) -> bool {
        self.size < self.before
    }

    /// How far what begins at byte `at` of the disk, and of which the file holds `extents`, reads as
    /// zero; refused at its first data.
    pub(super) fn examined(&self, mut at: u64, extents: &[Extent]) -> Result<u64> {
        for extent in extents {
            if !extent.zero {
                return Err(Error::invalid(format!(
                    "the disk holds data at byte {at}, which a size of {} bytes cuts off; choose a \
                     size beyond it, or agree that it is discarded",
                    self.size
                )));
            }
            at += extent.len;
        }
        Ok(at)
    }
}

impl Engine {
    /// Take a resize as far as it goes now.
    pub(super) fn resize(&mut self, id: RequestId, size: u64, discard: bool) {
        if !self.fence.holds(id) {
            return self.fence_want(id);
        }
        if self.moving() {
            return self.requests.block(id);
        }
        if self.resizing.is_none() {
            match self.check_size(size) {
                Err(error) => return self.finish_with(id, error),
                Ok(()) if size == self.map.size() => return self.resize_done(id),
                Ok(()) => {}
            }
            self.resizing = Some(Resizing {
                size,
                before: self.map.size(),
                discard,
                stage: Stage::Settle,
                running: false,
                answer: None,
                round: 0,
                table: Table::default(),
            });
        }
        self.resize_go(id);
    }

    fn resize_go(&mut self, id: RequestId) {
        while let Some(resizing) = &mut self.resizing {
            if resizing.running {
                return self.requests.block(id);
            }
            if let Some(Outcome::Failed(_)) = resizing.answer
                && let Some(Outcome::Failed(error)) = resizing.answer.take()
            {
                return self.resize_failed(id, Error::io("the disk cannot be resized", error));
            }
            let next = if self.vhdx.is_some() {
                self.resize_vhdx(id)
            } else {
                self.resize_raw()
            };
            match next {
                Next::On => {}
                Next::Wait => return self.requests.block(id),
                Next::Blocked => return,
                Next::Failed(error) => return self.resize_failed(id, error),
                Next::Done => return self.resize_done(id),
            }
        }
    }

    fn check_size(&self, size: u64) -> Result<()> {
        if size == 0 {
            return Err(Error::invalid("a disk cannot be empty"));
        }
        if self.vhdx.is_some() {
            return self.check_vhdx_size(size);
        }
        let alignment = self.map.shape().alignment;
        if size.is_multiple_of(alignment) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the file is accessed in units of {alignment} bytes: {size} bytes are not, {} would be",
            size.next_multiple_of(alignment)
        )))
    }

    fn resize_done(&mut self, id: RequestId) {
        self.resizing = None;
        self.requests.finish(id);
        self.fence_release(id);
        self.wake = true;
    }

    /// It can not be; the disk keeps the size that is on the medium.
    fn resize_failed(&mut self, id: RequestId, error: Error) {
        if let Some(resizing) = self.resizing.take() {
            if matches!(resizing.stage, Stage::Sweep(_)) {
                // Its size is durable; entries beyond the end that stay mean nothing.
                return self.resize_done(id);
            }
            self.map.set_size(resizing.before);
        }
        self.finish_with(id, error);
    }

    /// The disk has failed: whether the size on the medium is the old or the new one is unknown.
    pub(super) fn resize_lost(&mut self) {
        // The request hears of it when it is tried again. The lesser size stays: what lies beyond it
        // may be gone.
        self.resizing = None;
        self.forget_resize_pages();
    }

    /// Hand out an operation of the resize.
    pub(super) fn resize_op(&mut self, kind: FileOpKind) -> Next {
        if let Some(resizing) = &mut self.resizing {
            resizing.running = true;
            self.ops.push(Purpose::Resize, kind);
        }
        Next::Wait
    }

    pub(super) fn resize_op_ended(&mut self, outcome: Outcome) {
        if let Some(resizing) = &mut self.resizing {
            resizing.running = false;
            resizing.answer = match outcome {
                // That something is done needs no answer.
                Outcome::Done => None,
                Outcome::Holes(extents) if resizing.table.learn(&extents) => None,
                answer => Some(answer),
            };
        }
        self.wake = true;
    }

    /// Go on with `stage`.
    pub(super) fn resize_stage(&mut self, stage: Stage) -> Next {
        if let Some(resizing) = &mut self.resizing {
            resizing.stage = stage;
        }
        Next::On
    }

    /// Wait for the flush round that begins next.
    pub(super) fn resize_round(&mut self) -> Next {
        let round = self.flusher.begun + 1;
        if let Some(resizing) = &mut self.resizing {
            resizing.round = round;
            resizing.stage = Stage::Committed;
        }
        self.flusher.wanted = true;
        self.flush_kick();
        Next::Wait
    }

    fn resize_raw(&mut self) -> Next {
        let Some(resizing) = &mut self.resizing else {
            return Next::Done;
        };
        let (size, before) = (resizing.size, resizing.before);
        match resizing.stage {
            Stage::Settle if resizing.shrinks() && !resizing.discard => {
                self.resize_stage(Stage::Examine(size))
            }
            Stage::Examine(at) => match resizing.answer.take() {
                Some(Outcome::Holes(extents)) => match resizing.examined(at, &extents) {
                    Ok(at) => self.resize_stage(Stage::Examine(at)),
                    Err(error) => Next::Failed(error),
                },
                _ if at < before => {
                    let len = before - at;
                    let at = FileOffset(at);
                    self.resize_op(FileOpKind::Holes { at, len })
                }
                _ => self.resize_stage(Stage::Open),
            },
            Stage::Quiesce(generation) if !self.map.quiesced(generation) => Next::Wait,
            Stage::Settle | Stage::Open if resizing.shrinks() => {
                self.map.set_size(size);
                let generation = self.map.advance();
                self.resize_stage(Stage::Quiesce(generation))
            }
            Stage::Settle | Stage::Open | Stage::Quiesce(_) => {
                resizing.stage = Stage::Length;
                self.resize_op(FileOpKind::SetLen { len: size })
            }
            Stage::Length => self.resize_round(),
            Stage::Committed if self.flusher.ended < resizing.round => Next::Wait,
            _ => {
                self.map.set_size(size);
                Next::Done
            }
        }
    }
}
