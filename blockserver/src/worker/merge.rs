//! Bytes put into the sectors around them, for files that take only whole sectors.
//!
//! The engine has shut out other writers of these sectors: the edges are read, the new bytes put
//! in, and the whole is written.

use std::ops::Range;

use crate::uring::IoBuffer;

use super::Worker;
use super::transfer::{Span, Step, Then};

/// Bytes of zeros written at once where a file system cannot make them.
const ZEROES: u64 = 1 << 20;

/// Bytes to be put into their surroundings.
pub(super) struct Merge {
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

impl Worker {
    /// Write a span whose place or memory is not aligned.
    pub(super) fn merge(&mut self, disk: u32, span: Span) -> Step {
        let len = span.range.len();
        let source = Some((span.buffer, span.range.start));
        let merge = self.surround(disk, span.at, len, source);
        merge.step()
    }

    /// Write the next piece of a run of zeros.
    pub(super) fn zeroes_step(&mut self, disk: u32, at: u64, end: u64) -> Step {
        let next = end.min((at + ZEROES) & !(ZEROES - 1));
        let mut merge = self.surround(disk, at, (next - at) as usize, None);
        merge.run = Some((next, end));
        merge.step()
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
        let around = self.pool.take(total);
        #[rustfmt::skip]
        let merge = Merge { around, base, total, edges, source, inside, run: None };
        merge
    }
}

impl Merge {
    /// The next thing to do for a self.
    pub(super) fn step(mut self) -> Step {
        let buffer = self.around.clone();
        if let Some(range) = self.edges.pop() {
            let at = self.base + range.start as u64;
            let span = Span::new(false, buffer, range, at);
            return Step::Move(span, Then::Merge(Box::new(self)));
        }
        match &self.source {
            Some((source, start)) => {
                let range = *start..*start + self.inside.len();
                buffer.copy_from(self.inside.start, source, range);
            }
            None => buffer.zero(self.inside.clone()),
        }
        let span = Span::new(true, buffer, 0..self.total, self.base);
        let run = self
            .run
            .map_or(Then::Done, |(next, end)| Then::Zeroes(next, end));
        Step::Move(span, run)
    }
}
