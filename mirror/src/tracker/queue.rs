//! Records that wait to be taken: of two changes of the same bytes only the later one is kept.
//!
//! The target is as this disk was at some moment when it has every change up to some number and none beyond. A change that
//! was left out because a later one covers it leaves a *gap*: with all up to a number within it, from the first one's own up to the one before
//! the later one's, the target is as this disk never was. So that a moment without a gap is never far, changes are
//! only left out within a window of so many bytes, which ends as well when nothing waits and at every cut of the disk's
//! group.

use std::collections::{HashMap, VecDeque};

use crate::wire::Record;

/// Numbers from `first` on and below `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// What came last, since a later change may cover it.
#[derive(Debug, Default)]
struct Window {
    /// The last change that begins there, by its place.
    newest: HashMap<u64, u64>,
    bytes: u64,
    /// The last cut that was asked for when it began.
    cut: u64,
    /// The last gap is one of it.
    has_gap: bool,
}

/// The queue. The first of its places is never an empty one.
#[derive(Debug)]
pub(super) struct Queue {
    places: VecDeque<Option<Record>>,
    /// How many places there were before the first.
    gone: u64,
    /// Bytes of a window.
    span: u64,
    window: Window,
    gaps: VecDeque<Gap>,
    /// How many empty places there are.
    empty: usize,
}

impl Queue {
    /// One that leaves out changes within `span` bytes of them.
    pub(super) fn new(span: u64) -> Self {
        Self {
            places: VecDeque::new(),
            gone: 0,
            span,
            window: Window::default(),
            gaps: VecDeque::new(),
            empty: 0,
        }
    }

    /// How many places are there for nothing: they take memory until they are the first.
    pub(super) fn empty(&self) -> usize {
        self.empty
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn front(&self) -> Option<&Record> {
        self.places.front()?.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.places.iter().flatten()
    }

    /// Keep one, with `cut` being the last cut that was asked for; the one that is left out for it.
    pub(super) fn push(&mut self, record: Record, cut: u64) -> Option<Record> {
        if self.window.bytes >= self.span || self.window.cut != cut || self.is_empty() {
            self.window = Window {
                cut,
                ..Window::default()
            };
        }
        self.window.bytes += record.content.covers();
        let place = self.gone + self.places.len() as u64;
        let before = self.window.newest.insert(record.offset, place);
        let covered = before.and_then(|before| self.leave_out(before, &record));
        self.places.push_back(Some(record));
        self.skip();
        covered
    }

    /// Take the change out of that place, if it still waits there and `later` covers it.
    fn leave_out(&mut self, place: u64, later: &Record) -> Option<Record> {
        let index = usize::try_from(place.checked_sub(self.gone)?).ok()?;
        let covers = later.content.covers();
        let covered = self.places.get_mut(index)?;
        let covered = covered.take_if(|record| record.content.covers() <= covers)?;
        let last = later.seq;
        match self.gaps.back_mut() {
            Some(gap) if self.window.has_gap => {
                gap.first = gap.first.min(covered.seq);
                gap.last = last;
            }
            _ => self.gaps.push_back(Gap {
                first: covered.seq,
                last,
            }),
        }
        self.window.has_gap = true;
        self.empty += 1;
        Some(covered)
    }

    pub(super) fn take(&mut self) -> Option<Record> {
        let record = self.places.pop_front()?;
        self.gone += 1;
        self.skip();
        record
    }

    fn skip(&mut self) {
        while let Some(None) = self.places.front() {
            self.places.pop_front();
            self.gone += 1;
            self.empty -= 1;
        }
    }

    /// The target has everything up to that number.
    pub(super) fn settle(&mut self, seq: u64) {
        while self.gaps.front().is_some_and(|gap| gap.last <= seq) {
            self.gaps.pop_front();
            self.window.has_gap &= !self.gaps.is_empty();
        }
    }

    /// The gap that everything up to that number and nothing beyond lies in.
    pub(super) fn gap_at(&self, seq: u64) -> Option<Gap> {
        let mut gaps = self.gaps.iter();
        gaps.find(|gap| gap.first <= seq && seq < gap.last).copied()
    }
}

#[cfg(test)]
mod tests;
