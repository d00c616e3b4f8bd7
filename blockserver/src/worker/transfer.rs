//! One operation on a file: short counts, bounces around alignment, what a file system cannot do.
//!
//! A transfer moves one span of one buffer at a time and then goes on to its next step. Reads whose
//! place or memory is not aligned go through a buffer that covers their surroundings; writes that
//! are not go to the engine first, which shuts others out and asks for a merge: read the sectors at
//! the edges, put the new bytes in, write the whole.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use rustix::fs::{SeekFrom, ftruncate, seek};
use vdisk::engine::{Extent, FileOp, FileOpKind, OpId, Outcome, RequestId};
use vdisk::units::FileOffset;

use crate::uring::{IoBuffer, Op};

use super::{Token, Worker};

/// Bytes of zeros written at once where a file system cannot make them.
const ZEROES: u64 = 1 << 20;
/// The most extents that one look for holes answers.
const MAX_EXTENTS: usize = 4096;

/// Whom a transfer is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// A task that went by the map.
    Part(u32),
    /// An engine.
    Op(OpId),
}

/// Bytes between a buffer and the file; what is left of them.
struct Span {
    write: bool,
    buffer: IoBuffer,
    range: Range<usize>,
    at: u64,
}

/// What follows when a span has been moved.
enum Then {
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
}

/// Bytes to be put into their surroundings.
struct Merge {
    /// The surroundings: a buffer for them, their place in the file, their length.
    around: IoBuffer,
    base: u64,
    total: usize,
    /// Edges still to be read.
    edges: Vec<Range<usize>>,
    /// Where the new bytes come from; nowhere means zeros.
    source: Option<(IoBuffer, usize)>,
    /// Where in the surroundings they belong.
    inside: Range<usize>,
    /// When it is part of a longer run of zeros: where that goes on, and where it ends.
    run: Option<(u64, u64)>,
}

/// A call to `fallocate`.
#[derive(Clone, Copy)]
struct Allocation {
    mode: i32,
    at: u64,
    len: u64,
    /// Whether it makes the range read as zero; else it reserves space.
    zero: bool,
}

enum Step {
    Move(Span, Then),
    Allocate(Allocation),
    Sync,
}

/// A transfer in flight.
pub(super) struct Transfer {
    purpose: Purpose,
    pub(super) disk: u32,
    step: Step,
}

impl Worker {
    /// Read part of a task's buffer from the file.
    pub(super) fn read_part(
        &mut self,
        task: u32,
        disk: u32,
        buffer: IoBuffer,
        range: Range<usize>,
        at: FileOffset,
    ) {
        self.read_into(Purpose::Part(task), disk, buffer, range, at.0);
    }

    /// Write part of a task's buffer to the file.
    pub(super) fn write_part(
        &mut self,
        task: u32,
        disk: u32,
        buffer: IoBuffer,
        range: Range<usize>,
        at: FileOffset,
    ) {
        self.write_from(Purpose::Part(task), disk, buffer, range, at.0);
    }

    /// Do what an engine wants done.
    pub(super) fn carry_out(&mut self, disk: u32, ops: Vec<FileOp>) {
        for FileOp { id, kind } in ops {
            if let Some(outcome) = self.carry_out_one(disk, id, kind) {
                self.tell_outcome(disk, id, outcome);
            }
        }
    }

    /// Begin one operation; the outcome of one that needs no waiting.
    fn carry_out_one(&mut self, disk: u32, id: OpId, kind: FileOpKind) -> Option<Outcome> {
        let purpose = Purpose::Op(id);
        match kind {
            FileOpKind::Read { at, len } => {
                let buffer = self.pool.take(len as usize);
                let range = 0..len as usize;
                let span = Span {
                    write: false,
                    buffer,
                    range,
                    at: at.0,
                };
                self.begin(purpose, disk, Step::Move(span, Then::Deliver(len as usize)));
            }
            FileOpKind::Write { at, data } => {
                let buffer = self.pool.take(data.len());
                buffer.copy_in(0, &data);
                self.write_from(purpose, disk, buffer, 0..data.len(), at.0);
            }
            FileOpKind::ReadRequest {
                request,
                start,
                at,
                len,
            } => {
                let (buffer, range) = self.buffer_of(request, start, len)?;
                self.read_into(purpose, disk, buffer, range, at.0);
            }
            FileOpKind::WriteRequest {
                request,
                start,
                at,
                len,
            }
            | FileOpKind::MergeRequest {
                request,
                start,
                at,
                len,
            } => {
                let (buffer, range) = self.buffer_of(request, start, len)?;
                self.write_from(purpose, disk, buffer, range, at.0);
            }
            FileOpKind::ZeroRequest {
                request,
                start,
                len,
            } => {
                let (buffer, range) = self.buffer_of(request, start, len)?;
                buffer.zero(range);
                return Some(Outcome::Done);
            }
            FileOpKind::Flush => self.begin(purpose, disk, Step::Sync),
            FileOpKind::SetLen { len } => return Some(self.set_len(disk, len)),
            FileOpKind::Zero { at, len, keep } => self.zero(purpose, disk, at.0..at.0 + len, keep),
            FileOpKind::Reserve { at, len } => {
                let mode = libc::FALLOC_FL_KEEP_SIZE;
                let call = Allocation {
                    mode,
                    at: at.0,
                    len,
                    zero: false,
                };
                self.begin(purpose, disk, Step::Allocate(call));
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
        let buffer = self.tasks.get(task).and_then(|task| task.buffer.clone());
        debug_assert!(
            buffer.is_some(),
            "an operation names request {id:?}, which has no buffer"
        );
        Some((buffer?, start as usize..(start + len) as usize))
    }

    fn alignment(&self, disk: u32) -> u64 {
        self.disks
            .get(disk)
            .map_or(1, |here| u64::from(here.disk.alignment()))
    }

    fn begin(&mut self, purpose: Purpose, disk: u32, step: Step) {
        let id = self.transfers.insert(Transfer {
            purpose,
            disk,
            step,
        });
        self.issue(id);
    }

    fn read_into(
        &mut self,
        purpose: Purpose,
        disk: u32,
        buffer: IoBuffer,
        range: Range<usize>,
        at: u64,
    ) {
        let mask = self.alignment(disk) - 1;
        if (at | range.start as u64 | range.len() as u64) & mask == 0 {
            let span = Span {
                write: false,
                buffer,
                range,
                at,
            };
            return self.begin(purpose, disk, Step::Move(span, Then::Done));
        }
        let base = at & !mask;
        let skip = (at - base) as usize;
        let from = skip..skip + range.len();
        let total = from.end.next_multiple_of(mask as usize + 1);
        let span = Span {
            write: false,
            buffer: self.pool.take(total),
            range: 0..total,
            at: base,
        };
        let then = Then::CopyOut {
            target: buffer,
            start: range.start,
            from,
        };
        self.begin(purpose, disk, Step::Move(span, then));
    }

    fn write_from(
        &mut self,
        purpose: Purpose,
        disk: u32,
        buffer: IoBuffer,
        range: Range<usize>,
        at: u64,
    ) {
        let mask = self.alignment(disk) - 1;
        if (at | range.start as u64 | range.len() as u64) & mask == 0 {
            let span = Span {
                write: true,
                buffer,
                range,
                at,
            };
            return self.begin(purpose, disk, Step::Move(span, Then::Done));
        }
        let len = range.len();
        let merge = self.surround(disk, at, len, Some((buffer, range.start)));
        let step = self.merge_step(merge);
        self.begin(purpose, disk, step);
    }

    /// Prepare to put `len` new bytes at `at` into whole sectors.
    fn surround(
        &mut self,
        disk: u32,
        at: u64,
        len: usize,
        source: Option<(IoBuffer, usize)>,
    ) -> Merge {
        let sector = self.alignment(disk) as usize;
        let base = at & !(sector as u64 - 1);
        let skip = (at - base) as usize;
        let inside = skip..skip + len;
        let total = inside.end.next_multiple_of(sector);
        let mut edges = Vec::new();
        if inside.end < total {
            edges.push(total - sector..total);
        }
        if inside.start > 0 && edges.first().is_none_or(|edge| edge.start > 0) {
            edges.push(0..sector);
        }
        Merge {
            around: self.pool.take(total),
            base,
            total,
            edges,
            source,
            inside,
            run: None,
        }
    }

    /// The next thing to do for a merge.
    fn merge_step(&mut self, mut merge: Merge) -> Step {
        let buffer = merge.around.clone();
        if let Some(range) = merge.edges.pop() {
            let at = merge.base + range.start as u64;
            let span = Span {
                write: false,
                buffer,
                range,
                at,
            };
            return Step::Move(span, Then::Merge(Box::new(merge)));
        }
        match &merge.source {
            Some((source, start)) => {
                let range = *start..*start + merge.inside.len();
                buffer.copy_from(merge.inside.start, source, range);
            }
            None => buffer.zero(merge.inside.clone()),
        }
        let span = Span {
            write: true,
            buffer,
            range: 0..merge.total,
            at: merge.base,
        };
        Step::Move(
            span,
            merge
                .run
                .map_or(Then::Done, |(next, end)| Then::Zeroes(next, end)),
        )
    }

    fn zero(&mut self, purpose: Purpose, disk: u32, range: Range<u64>, keep: bool) {
        let how = if keep {
            libc::FALLOC_FL_ZERO_RANGE
        } else {
            libc::FALLOC_FL_PUNCH_HOLE
        };
        let (at, len) = (range.start, range.end - range.start);
        let mode = how | libc::FALLOC_FL_KEEP_SIZE;
        self.begin(
            purpose,
            disk,
            Step::Allocate(Allocation {
                mode,
                at,
                len,
                zero: true,
            }),
        );
    }

    /// Write the next piece of a run of zeros.
    fn zeroes_step(&mut self, disk: u32, at: u64, end: u64) -> Step {
        let next = end.min((at + ZEROES) & !(ZEROES - 1));
        let mut merge = self.surround(disk, at, (next - at) as usize, None);
        merge.run = Some((next, end));
        self.merge_step(merge)
    }

    /// Hand the present step of a transfer to the ring.
    fn issue(&mut self, id: u32) {
        let Some(transfer) = self.transfers.get(id) else {
            return;
        };
        let Some(file) = self.disks.get(transfer.disk).map(|here| here.file) else {
            return;
        };
        let op = match &transfer.step {
            Step::Move(
                Span {
                    write,
                    buffer,
                    range,
                    at,
                },
                _,
            ) => {
                let (buffer, range, at) = (buffer.clone(), range.clone(), *at);
                if *write {
                    Op::Write {
                        file,
                        buffer,
                        range,
                        at,
                    }
                } else {
                    Op::Read {
                        file,
                        buffer,
                        range,
                        at,
                    }
                }
            }
            Step::Sync => Op::Sync { file },
            Step::Allocate(Allocation { mode, at, len, .. }) => {
                let (mode, at, len) = (*mode, *at, *len);
                Op::Allocate {
                    file,
                    mode,
                    at,
                    len,
                }
            }
        };
        self.ring.submit(op, Token::Transfer(id));
    }

    /// The ring did something for a transfer.
    pub(super) fn transfer_went_on(&mut self, id: u32, result: io::Result<usize>) {
        let Some(transfer) = self.transfers.get_mut(id) else {
            return;
        };
        let disk = transfer.disk;
        let sector = self
            .disks
            .get(disk)
            .map_or(1, |here| here.disk.alignment() as usize);
        let unmoved = match (&mut transfer.step, result) {
            (_, Err(error)) if is_transient(&error) => true,
            (Step::Move(span, _), Ok(moved)) => match span.advance(moved, sector) {
                Ok(left) => left,
                Err(error) => return self.transfer_ended(id, Err(error)),
            },
            (Step::Allocate(call), Err(error)) if is_unsupported(&error) => {
                let Allocation { at, len, zero, .. } = *call;
                if zero {
                    let step = self.zeroes_step(disk, at, at + len);
                    return self.go_on(id, step);
                }
                false
            }
            (_, Err(error)) => return self.transfer_ended(id, Err(error)),
            (_, Ok(_)) => false,
        };
        if unmoved {
            return self.issue(id);
        }
        self.step_done(id);
    }

    /// The present step of a transfer succeeded.
    fn step_done(&mut self, id: u32) {
        let Some(transfer) = self.transfers.get_mut(id) else {
            return;
        };
        let disk = transfer.disk;
        let step = std::mem::replace(&mut transfer.step, Step::Sync);
        let (buffer, then) = match step {
            Step::Move(span, then) => (span.buffer, then),
            _ => return self.transfer_ended(id, Ok(Outcome::Done)),
        };
        match then {
            Then::Done => {
                // A buffer of a request is held by its task too, and stays with it.
                self.pool.give(buffer);
                self.transfer_ended(id, Ok(Outcome::Done));
            }
            Then::Deliver(len) => {
                let mut bytes = Vec::with_capacity(len);
                buffer.copy_out(0..len, &mut bytes);
                self.pool.give(buffer);
                self.transfer_ended(id, Ok(Outcome::Data(Bytes::from(bytes))));
            }
            Then::CopyOut {
                target,
                start,
                from,
            } => {
                target.copy_from(start, &buffer, from);
                self.pool.give(buffer);
                drop(target);
                self.transfer_ended(id, Ok(Outcome::Done));
            }
            Then::Merge(merge) => {
                drop(buffer);
                let step = self.merge_step(*merge);
                self.go_on(id, step);
            }
            Then::Zeroes(next, end) if next < end => {
                self.pool.give(buffer);
                let step = self.zeroes_step(disk, next, end);
                self.go_on(id, step);
            }
            Then::Zeroes(..) => {
                self.pool.give(buffer);
                self.transfer_ended(id, Ok(Outcome::Done));
            }
        }
    }

    fn go_on(&mut self, id: u32, step: Step) {
        if let Some(transfer) = self.transfers.get_mut(id) {
            transfer.step = step;
            self.issue(id);
        }
    }

    fn transfer_ended(&mut self, id: u32, result: io::Result<Outcome>) {
        let Some(Transfer { purpose, disk, .. }) = self.transfers.remove(id) else {
            return;
        };
        match purpose {
            Purpose::Part(task) => self.part_ended(task, result.map(drop)),
            Purpose::Op(op) => {
                let outcome = result.unwrap_or_else(Outcome::Failed);
                self.tell_outcome(disk, op, outcome);
            }
        }
    }

    fn set_len(&self, disk: u32, len: u64) -> Outcome {
        let Some(here) = self.disks.get(disk) else {
            return Outcome::Failed(io::ErrorKind::NotFound.into());
        };
        match ftruncate(here.disk.file(), len) {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed(error.into()),
        }
    }

    /// What the file system says of a range: data and holes, as far as it tells.
    fn holes(&self, disk: u32, at: u64, len: u64) -> Vec<Extent> {
        let data = |len| Extent {
            len,
            allocated: true,
            zero: false,
        };
        let hole = |len| Extent {
            len,
            allocated: false,
            zero: true,
        };
        let Some(here) = self.disks.get(disk) else {
            return vec![data(len)];
        };
        let (file, end) = (here.disk.file(), at + len);
        let mut extents = Vec::new();
        let mut next = at;
        while next < end && extents.len() < MAX_EXTENTS {
            let data_at = match seek(file, SeekFrom::Data(next)) {
                Ok(found) => found.min(end),
                Err(rustix::io::Errno::NXIO) => end,
                // A file system that does not tell: all of it may hold data.
                Err(_) => next,
            };
            if data_at > next {
                extents.push(hole(data_at - next));
            }
            if data_at < end {
                let hole_at = seek(file, SeekFrom::Hole(data_at)).unwrap_or(end).min(end);
                extents.push(data(hole_at.max(data_at + 1) - data_at));
                next = hole_at.max(data_at + 1);
            } else {
                next = end;
            }
        }
        extents
    }
}

impl Span {
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

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(write: bool) -> Span {
        let buffer = IoBuffer::zeroed(4096);
        buffer.copy_in(0, &[7; 4096]);
        Span {
            write,
            buffer,
            range: 0..4096,
            at: 8192,
        }
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
