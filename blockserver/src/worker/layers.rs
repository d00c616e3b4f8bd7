//! Disks built on others: what an engine asks of its disk's parent.
//!
//! A question becomes a task on the parent, on the worker that was asked, by the parent's own map or
//! engine; a parent that is itself built on a disk asks on. Nothing is changed in a parent.

use std::io;

use vdisk::engine::{Extent, OpId, Outcome};

use crate::uring::IoBuffer;

use super::Worker;
use super::action::Action;
use super::answer::Answer;
use super::task::{Asked, From};
use super::transfer::{Purpose, Span};

/// An engine's question to the parent of its disk.
pub(super) struct Question {
    /// The child's disk here, and the operation that the answer ends.
    child: u32,
    op: OpId,
    len: u64,
    wanted: Wanted,
}

/// What becomes of the answer.
pub(super) enum Wanted {
    /// The bytes go into this buffer, from this byte on.
    Bytes { target: IoBuffer, start: usize },
    /// The bytes go to this place in the child's file.
    CopyUp { at: u64 },
    /// The extents go to the engine.
    Extents,
}

fn zero(len: u64) -> Extent {
    Extent {
        len,
        allocated: false,
        zero: true,
    }
}

impl Worker {
    /// Ask the parent of `child` about `len` bytes at `offset` for operation `op`.
    pub(super) fn ask_parent(
        &mut self,
        child: u32,
        op: OpId,
        (offset, len): (u64, u64),
        wanted: Wanted,
    ) {
        // Until it is answered the child stays here.
        self.count_user(child);
        #[rustfmt::skip]
        let question = Question { child, op, len, wanted };
        let here = self.disks.get(child);
        let Some(parent) = here.and_then(|here| here.disk.parent().cloned()) else {
            let error = io::Error::other("the disk was opened without the one it is built on");
            return self.parent_answered(question, Err(error));
        };
        let there = parent.size().saturating_sub(offset).min(len);
        if there == 0 {
            return self.parent_answered(question, Ok(Answer::Hole));
        }
        let action = match question.wanted {
            Wanted::Extents => Action::Status,
            _ => Action::Read,
        };
        let parent = self.use_disk(&parent);
        let asked = Asked {
            from: From::Child(Box::new(question)),
            action,
            offset,
            len: there,
            buffer: None,
        };
        let task = self.begin_below(asked, parent);
        self.run_task(task);
    }

    /// The parent answered.
    pub(super) fn parent_answered(&mut self, question: Question, answer: io::Result<Answer>) {
        let Question {
            child,
            op,
            len,
            wanted,
        } = question;
        let outcome = match (wanted, answer) {
            (_, Err(error)) => Some(Outcome::Failed(error)),
            (Wanted::Extents, Ok(Answer::Extents(extents))) if !extents.is_empty() => {
                Some(Outcome::Holes(extents))
            }
            (Wanted::Extents, Ok(_)) => Some(Outcome::Holes(vec![zero(len)])),
            (Wanted::Bytes { target, start }, Ok(answer)) => {
                self.put(&target, start..start + len as usize, answer);
                Some(Outcome::Done)
            }
            (Wanted::CopyUp { at }, Ok(answer)) => {
                let buffer = self.pool.take(len as usize);
                self.put(&buffer, 0..len as usize, answer);
                let span = Span::new(true, buffer, 0..len as usize, at);
                self.transfer(Purpose::Op(op), child, span);
                None
            }
        };
        if let Some(outcome) = outcome {
            self.tell_outcome(child, op, outcome);
        }
        self.unuse_disk(child);
    }

    /// Put what was read into a buffer; what lies beyond the end of the parent is zero.
    fn put(&mut self, target: &IoBuffer, range: std::ops::Range<usize>, answer: Answer) {
        let Answer::Data(data, there) = answer else {
            return target.zero(range);
        };
        let end = range.start + there;
        target.copy_from(range.start, &data, 0..there);
        target.zero(end..range.end);
        self.pool.give(data);
    }
}
