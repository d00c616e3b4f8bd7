//! One operation on a file: short counts, bounces around alignment, what a file system cannot do.
//!
//! A transfer moves one span of one buffer at a time and then goes on to its next step. Reads whose
//! place or memory is not aligned go through a buffer that covers their surroundings. Writes whose place
//! is not go to the engine first, which shuts others out and asks for a merge; those whose memory alone
//! is not (a guest's may lie anywhere) are merged too, with nothing around them.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use vdisk::engine::{FileOp, FileOpKind, OpId, Outcome, RequestId};

use crate::uring::{Allocation, IoBuffer, Op};

use super::copy::Copying;
use super::layers::Wanted;
use super::merge::Merge;
use super::task::Task;
use super::{Token, Worker};

/// Whom a transfer is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// A task that went by the map.
    Part(u32),
    /// An engine.
    Op(OpId),
}

/// Bytes between a buffer and the file; what is left of them.
pub(super) struct Span {
    write: bool,
    pub(super) buffer: IoBuffer,
    pub(super) range: Range<usize>,
    pub(super) at: u64,
}

/// What follows when a span has been moved.
pub(super) enum Then {
    /// Nothing: it is done.
    Done,
    /// The engine gets the first so many bytes of the buffer.
    Deliver(usize),
    /// Part of what was read goes to the buffer it was read for.
    CopyOut {
        target: IoBuffer,
        start: usize,
        from: Range<usize>,
    },
    /// An edge of a merge was read.
    Merge(Box<Merge>),
    /// Part of a run of zeros was written; it goes on from the first byte to the second.
    Zeroes(u64, u64),
    /// This range was read to be copied.
    CopyRead(Box<Copying>, Range<u64>),
    /// A part of what is copied was written.
    Copied(Box<Copying>),
}

/// What a transfer does now.
pub(super) enum Step {
    /// Move bytes.
    Move(Span, Then),
    /// Reserve space.
    Reserve(Allocation),
    /// Make a range read as zero.
    Zero(Allocation),
    /// Make the target of a copy a hole.
    Clear(Box<Copying>),
    /// Set the length of the file.
    SetLength(u64),
    /// Make everything written before durable.
    Sync,
}

/// The most bytes that are copied sooner than handed to another thread. Clients' longer ones cost the processor the same
/// either way, and are done side by side by others (measured with 4, 256 and 1024 KiB).
const SHORT: usize = 64 << 10;
/// The same where this process asks, which has enough to do besides.
const SHORT_FOR_US: usize = 1 << 20;

/// A transfer in flight.
pub(super) struct Transfer {
    purpose: Purpose,
    pub(super) disk: u32,
    step: Step,
}

impl Worker {
    /// Do what an engine wants done.
    pub(super) fn carry_out(&mut self, disk: u32, ops: Vec<FileOp>) {
        for FileOp { id, kind } in ops {
            if let Some(outcome) = self.carry_out_one(disk, id, kind) {
                self.tell_outcome(disk, id, outcome);
            }
        }
    }

    /// Begin one operation; the outcome of one that needs no waiting.
    #[rustfmt::skip]
    fn carry_out_one(&mut self, disk: u32, id: OpId, kind: FileOpKind) -> Option<Outcome> {
        let purpose = Purpose::Op(id);
        match kind {
            FileOpKind::Read { at, len } => {
                let buffer = self.pool.take(len as usize);
                let span = Span::new(false, buffer, 0..len as usize, at.0);
                self.begin(purpose, disk, Step::Move(span, Then::Deliver(len as usize)));
            }
            FileOpKind::Write { at, data } => {
                let buffer = self.pool.take(data.len());
                buffer.copy_in(0, &data);
                self.transfer(purpose, disk, Span::new(true, buffer, 0..data.len(), at.0));
            }
            FileOpKind::ReadRequest { request, start, at, len } => {
                let (buffer, range) = self.buffer_of(request, start, len)?;
                self.transfer(purpose, disk, Span::new(false, buffer, range, at.0));
            }
            FileOpKind::WriteRequest { request, start, at, len }
            | FileOpKind::MergeRequest { request, start, at, len } => {
                let (buffer, range) = self.buffer_of(request, start, len)?;
                self.transfer(purpose, disk, Span::new(true, buffer, range, at.0));
            }
            FileOpKind::ZeroRequest { request, start, len } => {
                let (buffer, range) = self.buffer_of(request, start, len)?;
                buffer.zero(range);
                return Some(Outcome::Done);
            }
            FileOpKind::Flush => self.begin(purpose, disk, Step::Sync),
            FileOpKind::SetLen { len } => self.begin(purpose, disk, Step::SetLength(len)),
            FileOpKind::Zero { at, len, keep } => {
                let how = if keep { libc::FALLOC_FL_ZERO_RANGE } else { libc::FALLOC_FL_PUNCH_HOLE };
                let mode = how | libc::FALLOC_FL_KEEP_SIZE;
                self.begin(purpose, disk, Step::Zero(Allocation { mode, at: at.0, len }));
            }
            FileOpKind::Reserve { at, len } => {
                let mode = libc::FALLOC_FL_KEEP_SIZE;
                self.begin(purpose, disk, Step::Reserve(Allocation { mode, at: at.0, len }));
            }
            FileOpKind::Copy { from, to, len } => {
                self.begin(purpose, disk, Step::Clear(Box::new(Copying::new(from.0, to.0, len))));
            }
            FileOpKind::ReadParent { request, start, offset, len } => {
                let (target, range) = self.buffer_of(request, start, len)?;
                let wanted = Wanted::Bytes { target, start: range.start };
                self.ask_parent(disk, id, (offset.0, len), wanted);
            }
            FileOpKind::CopyUp { offset, at, len } => {
                self.ask_parent(disk, id, (offset.0, len), Wanted::CopyUp { at: at.0 });
            }
            FileOpKind::StatusParent { offset, len } => {
                self.ask_parent(disk, id, (offset.0, len), Wanted::Extents);
            }
            FileOpKind::Holes { at, len } => {
                return Some(Outcome::Holes(self.holes(disk, at.0, len)));
            }
        }
        None
    }

    /// A request's buffer and the part of it that an operation names.
    fn buffer_of(&self, id: RequestId, start: u64, len: u64) -> Option<(IoBuffer, Range<usize>)> {
        let (_, task) = super::disks::owner_of(id);
        let task = self.tasks.get(task);
        let buffer = task.and_then(|task| task.asked.buffer.clone());
        debug_assert!(
            buffer.is_some(),
            "an operation names request {id:?}, which has no buffer"
        );
        Some((buffer?, start as usize..(start + len) as usize))
    }

    /// What places and memory of direct transfers of a disk must be multiples of.
    pub(super) fn alignment(&self, disk: u32) -> u64 {
        let here = self.disks.get(disk);
        here.map_or(1, |here| u64::from(here.disk.alignment()))
    }

    fn begin(&mut self, purpose: Purpose, disk: u32, step: Step) {
        #[rustfmt::skip]
        let id = self.transfers.insert(Transfer { purpose, disk, step });
        self.issue(id);
    }

    /// Move a span, whatever its place and memory.
    pub(super) fn transfer(&mut self, purpose: Purpose, disk: u32, span: Span) {
        let mask = self.alignment(disk) - 1;
        let aligned = (span.at | span.range.len() as u64) & mask == 0
            && span.buffer.is_aligned(span.range.clone(), mask as usize);
        let step = match (aligned, span.write) {
            (true, _) => Step::Move(span, Then::Done),
            (false, true) => self.merge(disk, span),
            (false, false) => {
                let base = span.at & !mask;
                let skip = (span.at - base) as usize;
                let from = skip..skip + span.range.len();
                let total = from.end.next_multiple_of(mask as usize + 1);
                let (target, start) = (span.buffer, span.range.start);
                let around = Span::new(false, self.pool.take(total), 0..total, base);
                #[rustfmt::skip]
                let then = Then::CopyOut { target, start, from };
                Step::Move(around, then)
            }
        };
        self.begin(purpose, disk, step);
    }

    /// Hand the present step of a transfer to the ring.
    #[rustfmt::skip]
    fn issue(&mut self, id: u32) {
        let Some(transfer) = self.transfers.get(id) else {
            return;
        };
        let Some(here) = self.disks.get(transfer.disk) else {
            return;
        };
        let file = here.file;
        let at_once = here.disk.is_in_memory() && self.is_short(transfer);
        let op = match &transfer.step {
            Step::Move(Span { write, buffer, range, at }, _) => {
                let (buffer, range, at) = (buffer.clone(), range.clone(), *at);
                if *write {
                    Op::Write { file, buffer, range, at }
                } else {
                    Op::Read { file, buffer, range, at }
                }
            }
            Step::Sync => Op::Sync { file },
            Step::SetLength(len) => Op::SetLength { file, len: *len },
            Step::Zero(call) | Step::Reserve(call) => Op::Allocate { file, call: *call },
            Step::Clear(copying) => Op::Allocate { file, call: copying.hole() },
        };
        if at_once {
            self.ring.do_at_once(op, Token::Transfer(id));
        } else {
            self.ring.submit(op, Token::Transfer(id));
        }
    }

    /// Whether a transfer moves so few bytes now that nothing is won by handing them over.
    fn is_short(&self, transfer: &Transfer) -> bool {
        let Step::Move(span, _) = &transfer.step else {
            return false;
        };
        let ours = match transfer.purpose {
            Purpose::Part(task) => self.tasks.get(task).is_some_and(Task::is_ours),
            Purpose::Op(_) => false,
        };
        span.range.len() <= if ours { SHORT_FOR_US } else { SHORT }
    }

    /// The ring did something for a transfer.
    pub(super) fn transfer_went_on(&mut self, id: u32, result: io::Result<usize>) {
        let Some(transfer) = self.transfers.get_mut(id) else {
            return;
        };
        let disk = transfer.disk;
        let here = self.disks.get(disk);
        let sector = here.map_or(1, |here| here.disk.alignment() as usize);
        let again = match (&mut transfer.step, result) {
            (_, Err(error)) if is_transient(&error) => true,
            (Step::Move(span, _), Ok(moved)) => match span.advance(moved, sector) {
                Ok(left) => left,
                Err(error) => return self.transfer_ended(id, Err(error)),
            },
            (Step::Reserve(_), Err(error)) if is_unsupported(&error) => false,
            (Step::Clear(copying), Err(error)) if is_unsupported(&error) => {
                copying.write_zeros();
                false
            }
            // Kernels before 6.9 have no such operation in their rings, which then are not allowed it either.
            (Step::SetLength(len), Err(error)) if is_not_there(&error) => {
                let len = *len;
                let result = self.set_length(disk, len);
                return self.transfer_ended(id, result.map(|()| Outcome::Done));
            }
            (Step::Zero(call), Err(error)) if is_unsupported(&error) => {
                let (at, end) = (call.at, call.at + call.len);
                let step = self.zeroes_step(disk, at, end);
                return self.go_on(id, step);
            }
            (_, Err(error)) => return self.transfer_ended(id, Err(error)),
            (_, Ok(_)) => false,
        };
        if again {
            self.issue(id);
        } else {
            self.step_done(id);
        }
    }

    /// The present step of a transfer succeeded.
    fn step_done(&mut self, id: u32) {
        let Some(transfer) = self.transfers.get_mut(id) else {
            return;
        };
        let disk = transfer.disk;
        let step = std::mem::replace(&mut transfer.step, Step::Sync);
        let (Span { buffer, .. }, then) = match step {
            Step::Move(span, then) => (span, then),
            Step::Clear(copying) => return self.copy_on(id, disk, copying),
            _ => return self.transfer_ended(id, Ok(Outcome::Done)),
        };
        let outcome = match then {
            Then::Merge(merge) => {
                drop(buffer);
                let step = merge.step();
                return self.go_on(id, step);
            }
            Then::Zeroes(next, end) if next < end => {
                self.pool.give(buffer);
                let step = self.zeroes_step(disk, next, end);
                return self.go_on(id, step);
            }
            Then::CopyRead(mut copying, range) => {
                copying.was_read(buffer, range);
                return self.copy_on(id, disk, copying);
            }
            Then::Copied(copying) => {
                drop(buffer);
                return self.copy_on(id, disk, copying);
            }
            Then::Done | Then::Zeroes(..) => Outcome::Done,
            Then::Deliver(len) => {
                let mut bytes = Vec::with_capacity(len);
                buffer.copy_out(0..len, &mut bytes);
                Outcome::Data(Bytes::from(bytes))
            }
            #[rustfmt::skip]
            Then::CopyOut { target, start, from } => {
                target.copy_from(start, &buffer, from);
                Outcome::Done
            }
        };
        // A buffer of a request is held by its task too, and stays with it.
        self.pool.give(buffer);
        self.transfer_ended(id, Ok(outcome));
    }

    fn copy_on(&mut self, id: u32, disk: u32, copying: Box<Copying>) {
        match self.copy_step(disk, copying) {
            Ok(step) => self.go_on(id, step),
            Err(outcome) => self.transfer_ended(id, Ok(outcome)),
        }
    }

    fn go_on(&mut self, id: u32, step: Step) {
        if let Some(transfer) = self.transfers.get_mut(id) {
            transfer.step = step;
            self.issue(id);
        }
    }

    fn transfer_ended(&mut self, id: u32, result: io::Result<Outcome>) {
        let Some(transfer) = self.transfers.remove(id) else {
            return;
        };
        match transfer.purpose {
            Purpose::Part(task) => self.part_ended(task, result.map(drop)),
            Purpose::Op(op) => {
                let outcome = result.unwrap_or_else(Outcome::Failed);
                self.tell_outcome(transfer.disk, op, outcome);
            }
        }
    }
}

impl Span {
    /// The bytes of `range` of a buffer, to be written at (or read from) byte `at` of the file.
    pub(super) fn new(write: bool, buffer: IoBuffer, range: Range<usize>, at: u64) -> Self {
        #[rustfmt::skip]
        let span = Self { write, buffer, range, at };
        span
    }

    /// The kernel moved so many bytes; whether some are left. What a file does not have any more
    /// reads as zero.
    fn advance(&mut self, moved: usize, sector: usize) -> io::Result<bool> {
        let moved = moved.min(self.range.len());
        self.range.start += moved;
        self.at += moved as u64;
        if self.range.is_empty() {
            return Ok(false);
        }
        // A direct read is cut inside a sector only by the end of the file.
        let at_end = moved == 0 || !moved.is_multiple_of(sector);
        match (self.write, at_end) {
            (_, false) => Ok(true),
            (false, true) => {
                self.buffer.zero(self.range.clone());
                Ok(false)
            }
            (true, true) => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

fn is_not_there(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(write: bool) -> Span {
        let buffer = IoBuffer::zeroed(4096);
        buffer.copy_in(0, &[7; 4096]);
        Span::new(write, buffer, 0..4096, 8192)
    }

    #[test]
    fn what_a_short_read_leaves_is_asked_for_again_and_zero_beyond_the_end() {
        let mut read = span(false);
        assert!(read.advance(1024, 512).expect("short is no error"));
        assert_eq!((read.range.clone(), read.at), (1024..4096, 9216));
        assert!(
            !read
                .advance(0, 512)
                .expect("the end of the file is no error")
        );
        let mut bytes = Vec::new();
        read.buffer.copy_out(0..4096, &mut bytes);
        assert_eq!((bytes[1023], bytes[1024], bytes[4095]), (7, 0, 0));
    }

    #[test]
    fn a_write_that_moves_nothing_is_an_error() {
        let mut write = span(true);
        assert!(write.advance(512, 512).expect("short is no error"));
        assert!(write.advance(0, 512).is_err());
    }
}
