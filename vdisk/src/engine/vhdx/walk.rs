//! The way through a long table of blocks, as the file holds it: holes are asked about and passed over,
//! what is between them is read in pieces.
//!
//! Hands out what to do next and is told what came of it; what the entries mean is its user's business.
//! Memory may hold newer entries than the file.

use std::collections::VecDeque;
use std::ops::Range;

use super::PAGE;
use crate::engine::{Extent, FileOpKind, PAGE_ENTRIES};
use crate::units::FileOffset;

/// Pages read at once: so many entries are looked at while the engine is held.
const PIECE: u64 = 64;

/// What a walk does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stride {
    /// Ask which of these pages are holes.
    Ask { page: u64, count: u64 },
    /// Read these pages.
    Read { page: u64, count: u64 },
    /// Nothing: it has come to the end.
    End,
}

impl Stride {
    /// The operation that does it, for a table that begins at `table`.
    pub(super) fn op(self, table: FileOffset) -> Option<FileOpKind> {
        let at = |page| FileOffset(table.0 + page * PAGE);
        match self {
            Self::Ask { page, count } => Some(FileOpKind::Holes {
                at: at(page),
                len: count * PAGE,
            }),
            Self::Read { page, count } => Some(FileOpKind::Read {
                at: at(page),
                len: (count * PAGE) as u32,
            }),
            Self::End => None,
        }
    }
}

/// A walk through the pages of one table.
#[derive(Debug)]
pub(super) struct Walk {
    pages: u64,
    /// It is done with the pages before this one.
    at: u64,
    /// The file system has told of the pages before this one.
    known: u64,
    /// Those of them that hold anything.
    data: VecDeque<Range<u64>>,
}

impl Walk {
    /// A walk through a table of so many entries.
    pub(super) fn new(entries: u64) -> Self {
        Self {
            pages: entries.div_ceil(PAGE_ENTRIES as u64),
            at: 0,
            known: 0,
            data: VecDeque::new(),
        }
    }

    /// What to do next.
    pub(super) fn stride(&mut self) -> Stride {
        while self.data.front().is_some_and(|data| data.end <= self.at) {
            self.data.pop_front();
        }
        if let Some(data) = self.data.front() {
            let page = data.start.max(self.at);
            let count = (data.end.min(self.pages) - page).min(PIECE);
            return Stride::Read { page, count };
        }
        if self.known < self.pages {
            let (page, count) = (self.known, self.pages - self.known);
            return Stride::Ask { page, count };
        }
        Stride::End
    }

    /// The file system has told of `extents` from the page on that it was asked about.
    pub(super) fn told(&mut self, extents: &[Extent]) {
        let asked = self.known;
        let mut at = asked * PAGE;
        for extent in extents {
            let end = at + extent.len;
            // A page that is a hole in part holds something.
            if !extent.zero {
                self.add(at / PAGE..end.div_ceil(PAGE));
            }
            at = end;
        }
        let told = at / PAGE;
        // Told of less than a page, it may hold anything.
        if told <= asked {
            self.add(asked..asked + 1);
        }
        self.known = if at.div_ceil(PAGE) >= self.pages {
            self.pages
        } else {
            told.max(asked + 1)
        };
    }

    fn add(&mut self, pages: Range<u64>) {
        let from = self.data.back().map_or(0, |last| last.end).max(self.known);
        match self.data.back_mut() {
            Some(last) if last.end == pages.start.max(from) => last.end = pages.end.max(last.end),
            _ if pages.end > from => self.data.push_back(pages.start.max(from)..pages.end),
            _ => {}
        }
    }

    /// The pages up to `page` have been dealt with.
    pub(super) fn passed(&mut self, page: u64) {
        self.at = self.at.max(page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Extents of a table whose `data` pages hold something, cut off after `most` of them.
    fn extents(data: &[bool], page: u64, most: usize, cut: u64) -> Vec<Extent> {
        let runs = data[page as usize..].chunk_by(|a, b| a == b);
        let extent = |run: &[bool]| Extent {
            len: run.len() as u64 * PAGE,
            allocated: run[0],
            zero: !run[0],
        };
        let mut extents: Vec<Extent> = runs.take(most).map(extent).collect();
        if let Some(last) = extents.last_mut() {
            last.len = last.len.saturating_sub(cut).max(1);
        }
        extents
    }

    proptest! {
        #[test]
        fn a_walk_reads_every_page_that_holds_something_and_ends(
            data in prop::collection::vec(any::<bool>(), 1..300),
            most in 1..5_usize, cut in prop::sample::select(vec![0, 1, 4095, 4096, 5000]),
        ) {
            let mut walk = Walk::new((data.len() * PAGE_ENTRIES) as u64);
            let mut read = vec![0; data.len()];
            for turn in 0.. {
                prop_assert!(turn < 2000, "it goes round and round");
                match walk.stride() {
                    Stride::Ask { page, .. } => walk.told(&extents(&data, page, most, cut)),
                    Stride::Read { page, count } => {
                        for page in page..page + count {
                            read[page as usize] += 1;
                        }
                        walk.passed(page + count);
                    }
                    Stride::End => break,
                }
            }
            for (page, holds) in data.iter().enumerate() {
                prop_assert!(read[page] <= 1, "page {page} was read {} times", read[page]);
                prop_assert!(!holds || read[page] == 1, "page {page} was passed over");
            }
        }
    }
}
