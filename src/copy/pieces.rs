//! Which pieces of disks hold data.

use std::collections::VecDeque;
use std::ops::Range;

use crate::failure::Result;
use crate::interrupt;
use crate::source::{Run, Source};

/// Bytes of a piece; pieces begin at multiples of it.
pub(crate) const PIECE: u64 = 1 << 20;
/// How much of a disk is asked about at once.
const WINDOW: u64 = 1 << 40;

/// A part of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// So many bytes that read as zero, of however many pieces.
    Zeros { offset: u64, len: u64 },
    /// A piece that may hold data.
    Data { offset: u64, len: u64 },
}

/// Goes through the data of a disk from its beginning to its end.
struct Cursor<'a> {
    source: &'a mut dyn Source,
    /// What was asked and is not gone through yet, from `at` on.
    runs: VecDeque<Run>,
    at: u64,
}

impl Cursor<'_> {
    /// The next data at or after `from`, which never goes back.
    fn next_data(&mut self, from: u64) -> Result<Option<Range<u64>>> {
        loop {
            let Some(run) = self.runs.front() else {
                let size = self.source.size();
                if self.at >= size || interrupt::requested() {
                    return Ok(None);
                }
                self.runs = self
                    .source
                    .runs(self.at, WINDOW.min(size - self.at))?
                    .into();
                continue;
            };
            let end = self.at + run.len;
            if !run.zero && end > from {
                return Ok(Some(self.at.max(from)..end));
            }
            self.at = end;
            self.runs.pop_front();
        }
    }
}

/// Gives the pieces from `from` to the end of the longest of `sources`, in order, until nobody wants
/// more; a piece holds data if it may do so in one of them.
pub(crate) fn each(
    sources: &mut [&mut dyn Source],
    from: u64,
    give: &mut dyn FnMut(Piece) -> bool,
) -> Result<()> {
    let size = sources
        .iter()
        .map(|source| source.size())
        .max()
        .unwrap_or(0);
    let mut at = from;
    let mut cursors: Vec<Cursor<'_>> = sources
        .iter_mut()
        .map(|source| Cursor {
            source: &mut **source,
            runs: VecDeque::new(),
            at: from,
        })
        .collect();
    loop {
        let mut next: Option<Range<u64>> = None;
        for cursor in &mut cursors {
            let found = cursor.next_data(at)?;
            next = [next, found]
                .into_iter()
                .flatten()
                .min_by_key(|range| range.start);
        }
        let data = next.unwrap_or(size..size);
        let start = if data.is_empty() {
            size
        } else {
            (data.start - data.start % PIECE).max(at)
        };
        if start > at {
            let len = start - at;
            if !give(Piece::Zeros { offset: at, len }) {
                return Ok(());
            }
            at = start;
        }
        if at >= size {
            return Ok(());
        }
        while at < data.end {
            let len = (PIECE - at % PIECE).min(size - at);
            if !give(Piece::Data { offset: at, len }) {
                return Ok(());
            }
            at += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that has data in these ranges.
    struct Spots(u64, Vec<Range<u64>>);

    impl Source for Spots {
        fn size(&self) -> u64 {
            self.0
        }

        fn runs(&mut self, offset: u64, _: u64) -> Result<Vec<Run>> {
            let here = self.1.iter().find(|spot| spot.contains(&offset));
            let next = self.1.iter().find(|spot| spot.start > offset);
            let end = here.map_or(next.map_or(self.0, |spot| spot.start), |spot| spot.end);
            Ok(vec![Run {
                len: end - offset,
                zero: here.is_none(),
            }])
        }

        fn read_at(&mut self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
    }

    fn pieces(sources: &mut [&mut dyn Source], from: u64) -> Vec<Piece> {
        let mut found = Vec::new();
        each(sources, from, &mut |piece| {
            found.push(piece);
            true
        })
        .unwrap();
        found
    }

    #[test]
    fn pieces_cover_the_disk_and_hold_all_of_its_data() {
        let zeros = |offset, len| Piece::Zeros { offset, len };
        let data = |offset, len| Piece::Data { offset, len };
        let size = 10 * PIECE + 5;
        let mut one = Spots(
            size,
            vec![
                PIECE + 1..PIECE + 2,
                PIECE + 9..2 * PIECE + 1,
                10 * PIECE..size,
            ],
        );
        let whole = [
            zeros(0, PIECE),
            data(PIECE, PIECE),
            data(2 * PIECE, PIECE),
            zeros(3 * PIECE, 7 * PIECE),
            data(10 * PIECE, 5),
        ];
        assert_eq!(pieces(&mut [&mut one], 0), whole);
        assert_eq!(pieces(&mut [&mut one], 2 * PIECE), whole[2..]);
        let mut other = Spots(
            12 * PIECE,
            vec![5 * PIECE..5 * PIECE + 7, 5 * PIECE + 8..5 * PIECE + 9],
        );
        let both = [
            zeros(0, PIECE),
            data(PIECE, PIECE),
            data(2 * PIECE, PIECE),
            zeros(3 * PIECE, 2 * PIECE),
            data(5 * PIECE, PIECE),
            zeros(6 * PIECE, 4 * PIECE),
            data(10 * PIECE, PIECE),
            zeros(11 * PIECE, PIECE),
        ];
        assert_eq!(pieces(&mut [&mut one, &mut other], 0), both);
        assert_eq!(pieces(&mut [&mut Spots(7, vec![])], 0), [zeros(0, 7)]);
        assert_eq!(pieces(&mut [&mut Spots(0, vec![])], 0), []);
    }
}
