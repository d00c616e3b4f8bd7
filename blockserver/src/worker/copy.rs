//! One part of a file copied to another, as an engine asks that moves a block.
//!
//! The target is made a hole first, so that only what is other than zero has to be written; where the
//! file system cannot make holes everything is. Both places and the length are multiples of 1 MiB, so
//! every transfer is aligned. The engine has shut out whoever could write to either place.

use std::ops::Range;

use vdisk::engine::{Extent, Outcome};
use vdisk::zeros::data_runs;

use crate::uring::{Allocation, IoBuffer};

use super::Worker;
use super::transfer::{Span, Step, Then};

/// Bytes read at once.
const PIECE: u64 = 1 << 20;

/// The least run of zeros that is left out, in bytes; pieces begin at its multiples.
const RUN: u64 = 64 << 10;

/// A copy under way.
pub(super) struct Copying {
    /// What is still to be read.
    source: Range<u64>,
    /// The first byte of the source and of the target, and how many there are.
    from: u64,
    to: u64,
    len: u64,
    /// Whether the target reads as zero where nothing is written.
    sparse: bool,
    /// What was read, its place in the source, and what of it is still to be written.
    piece: Option<(IoBuffer, u64)>,
    runs: Vec<Range<usize>>,
    /// Whether anything but zeros was found.
    found: bool,
}

impl Copying {
    pub(super) fn new(from: u64, to: u64, len: u64) -> Self {
        Self {
            source: from..from + len,
            from,
            to,
            len,
            sparse: true,
            piece: None,
            runs: Vec::new(),
            found: false,
        }
    }

    /// The hole that the target is made first.
    pub(super) fn hole(&self) -> Allocation {
        Allocation {
            mode: libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            at: self.to,
            len: self.len,
        }
    }

    /// The target could not be made a hole: zeros are written.
    pub(super) fn write_zeros(&mut self) {
        self.sparse = false;
    }

    /// `range` of the source was read into a buffer that nobody else holds.
    pub(super) fn was_read(&mut self, mut buffer: IoBuffer, range: Range<u64>) {
        let len = (range.end - range.start) as usize;
        let bytes = buffer.unique().map_or(&[][..], |bytes| &bytes[..len]);
        debug_assert_eq!(bytes.len(), len, "a piece is held by somebody else");
        self.runs = data_runs(bytes, RUN as usize);
        self.found |= !self.runs.is_empty();
        if !self.sparse {
            self.runs.clear();
            self.runs.push(0..len);
        }
        self.piece = Some((buffer, range.start));
        self.source.start = range.end;
    }

    /// The next write of the piece that was read.
    fn write(&mut self) -> Option<Span> {
        let (buffer, at) = self.piece.as_ref()?;
        let run = self.runs.pop()?;
        let to = at + run.start as u64 - self.from + self.to;
        Some(Span::new(true, buffer.clone(), run, to))
    }

    /// How it ends.
    fn outcome(&self) -> Outcome {
        if self.found {
            return Outcome::Done;
        }
        Outcome::Holes(vec![Extent {
            len: self.len,
            allocated: false,
            zero: true,
        }])
    }
}

impl Worker {
    /// The next thing to do for a copy, or how it ended.
    pub(super) fn copy_step(
        &mut self,
        disk: u32,
        mut copying: Box<Copying>,
    ) -> Result<Step, Outcome> {
        if let Some(span) = copying.write() {
            return Ok(Step::Move(span, Then::Copied(copying)));
        }
        if let Some((buffer, _)) = copying.piece.take() {
            self.pool.give(buffer);
        }
        let Some(range) = self.next_piece(disk, &copying) else {
            return Err(copying.outcome());
        };
        let len = (range.end - range.start) as usize;
        let span = Span::new(false, self.pool.take(len), 0..len, range.start);
        Ok(Step::Move(span, Then::CopyRead(copying, range)))
    }

    /// What is to be read next: from the next byte that the file system holds data for.
    fn next_piece(&mut self, disk: u32, copying: &Copying) -> Option<Range<u64>> {
        let Range { start, end } = copying.source;
        let mut at = start;
        if copying.sparse && start < end {
            let extents = self.holes(disk, start, end - start);
            let before = extents.iter().take_while(|extent| !extent.allocated);
            at += before.map(|extent| extent.len).sum::<u64>();
            at = at / RUN * RUN;
        }
        let stop = end.min((at / PIECE + 1) * PIECE);
        (at < stop).then_some(at..stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn read(copying: &mut Copying, data_at: usize) {
        let buffer = IoBuffer::zeroed(PIECE as usize);
        buffer.copy_in(data_at, &[7; 3]);
        copying.was_read(buffer, 5 * MIB..6 * MIB);
    }

    #[test]
    fn only_what_is_other_than_zero_is_written_where_holes_can_be_made() {
        let mut copying = Copying::new(5 * MIB, 2 * MIB, MIB);
        // The end of one run and the beginning of the next.
        read(&mut copying, (2 * RUN - 1) as usize);
        let span = copying.write().expect("something is to be written");
        assert_eq!(span.range, RUN as usize..3 * RUN as usize);
        assert_eq!(span.at, 2 * MIB + RUN);
        assert!(copying.write().is_none());
        assert!(matches!(copying.outcome(), Outcome::Done));
    }

    #[test]
    fn everything_is_written_where_holes_cannot_be_made() {
        let mut copying = Copying::new(5 * MIB, 2 * MIB, MIB);
        copying.write_zeros();
        read(&mut copying, 0);
        let span = copying.write().expect("all of it is to be written");
        assert_eq!((span.range, span.at), (0..PIECE as usize, 2 * MIB));
    }
}
