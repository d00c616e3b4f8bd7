//! One request of a virtqueue, taken and not answered yet: its steps, and what it stands for meanwhile.

use std::time::Instant;

use crate::uring::IoBuffer;
use crate::virtio::block::{Request, What};

use super::action::Action;

/// The most bytes that one task moves. Longer requests are several, one after the other, so that what
/// a request may take of our memory does not depend on what the guest asks for.
const STEP: u64 = 4 << 20;

/// A request that was taken and not answered.
pub(super) struct InFlight {
    pub(super) head: u16,
    pub(super) status_at: u64,
    pub(super) request: Request,
    /// The guest's memory that it moves.
    pub(super) data: Option<IoBuffer>,
    /// Bytes that were moved, or ranges that were dealt with.
    pub(super) done: u64,
    /// Bytes of the step that is under way.
    pub(super) step: u64,
    pub(super) failed: bool,
    pub(super) taken: Instant,
}

impl InFlight {
    /// What is to be done next, and with which bytes of the disk; `through` says that every change has
    /// to be durable when it is answered (5.2.6.2).
    pub(super) fn next_step(&mut self, through: bool) -> Option<(Action, u64, u64)> {
        let left = (self.request.len - self.done.min(self.request.len)).min(STEP);
        match &self.request.what {
            What::Read(offset) if left > 0 => Some((Action::Read, offset + self.done, left)),
            What::Write(offset) if left > 0 => {
                Some((Action::Write { fua: through }, offset + self.done, left))
            }
            What::Flush if self.done == 0 => Some((Action::Flush, 0, 0)),
            What::Discard(ranges) | What::WriteZeroes(ranges) => {
                let discard = matches!(self.request.what, What::Discard(_));
                let rest = ranges.get(self.done as usize..)?;
                let skipped = rest.iter().position(|range| range.len > 0)?;
                let range = rest.get(skipped)?;
                self.done += skipped as u64;
                let (unmap, fua) = (range.unmap, through);
                let zero = Action::Zero { unmap, fua };
                let action = if discard {
                    Action::Discard { fua }
                } else {
                    zero
                };
                Some((action, range.offset, range.len))
            }
            _ => None,
        }
    }

    /// What `done` is when nothing is left.
    pub(super) fn steps_end(&self) -> u64 {
        match &self.request.what {
            What::Read(_) | What::Write(_) => self.request.len,
            What::Discard(ranges) | What::WriteZeroes(ranges) => ranges.len() as u64,
            What::Flush | What::Identify => 1,
        }
    }
}

/// How many bytes of buffers a request may stand for at a time.
pub(super) fn carried(request: &Request) -> usize {
    request.len.min(STEP) as usize
}
