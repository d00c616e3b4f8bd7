//! The scan of the source's disk for what there is to copy.
//!
//! Before a part is asked for, the tracker's cursor moves past it: a change that the answer does not show is kept. Must
//! never leave a part out: what was not answered is asked again.

use std::collections::VecDeque;

use vdisk::engine::Extent;

use super::OpId;
use crate::picture::Slots;
use crate::tracker::{Claim, Tracker};

/// How much of the disk one question about allocation covers.
const QUESTION: u64 = 4 << 30;
/// The longest part that the target is told to make zero at once: some have to write that.
const MOST_ZEROES: u64 = 64 << 20;
/// With more than this waiting to be copied the scan for more of it waits.
const ENOUGH_DIRTY: u64 = 64 << 30;

/// A question that awaits its answer.
#[derive(Clone, Copy, Debug)]
struct Question {
    op: OpId,
    offset: u64,
    len: u64,
    /// The last number given out when it was asked: the answer shows every change up to it.
    base: u64,
}

#[derive(Debug)]
pub(super) struct Scan {
    size: u64,
    /// Up to here the disk was asked, or is being asked, or is to be asked again.
    cursor: u64,
    question: Option<Question>,
    /// Parts before the cursor to be asked again: offset, length.
    again: VecDeque<(u64, u64)>,
    found: u64,
    /// Bytes that the disk said are not allocated, or zero.
    empty: u64,
    /// Where the allocated ones are, for a picture.
    found_in: Slots,
    /// The target may have anything: what is there is compared, and what is not is made zero.
    compares: bool,
    /// The target has images in which what is there may be: it is asked by hashes first.
    asks_first: bool,
    /// What the disk says is zero and the target is to be told of.
    zeroes: VecDeque<Claim>,
}

impl Scan {
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            cursor: 0,
            question: None,
            again: VecDeque::new(),
            found: 0,
            empty: 0,
            found_in: Slots::new(size),
            compares: false,
            asks_first: false,
            zeroes: VecDeque::new(),
        }
    }

    /// Whether the target begins from something else than an empty disk. To be said before the first question.
    pub(super) fn compare(&mut self, compares: bool) {
        self.compares = compares;
    }

    /// Whether what is there is to be asked about before it is sent, though the target begins from an empty disk.
    pub(super) fn ask_first(&mut self, asks: bool) {
        self.asks_first = asks;
    }

    /// Only these parts have to be asked about; the target has the others.
    pub(super) fn only(&mut self, parts: &[(u64, u64)], tracker: &Tracker) {
        self.compares = true;
        // There may be something anywhere else, which the target has.
        self.found_in.add(0, self.size);
        self.cursor = self.size;
        tracker.advance_cursor(self.size);
        self.again = parts.iter().copied().collect();
    }

    /// All has to be asked about after all.
    pub(super) fn all(&mut self) {
        self.found_in = Slots::new(self.size);
        self.again = [(0, self.size)].into();
    }

    /// The target may have lost anything: what was asked about is asked about again.
    pub(super) fn begin_anew(&mut self) {
        self.zeroes.clear();
        self.question = None;
        self.again.clear();
        if self.cursor > 0 {
            self.again.push_back((0, self.cursor));
        }
    }

    /// Whether the disk is being asked, or parts wait that are to be made zero: what is written there meanwhile has to come
    /// after that.
    pub(super) fn is_unsettled(&self) -> bool {
        self.question.is_some() || !self.zeroes.is_empty()
    }

    /// The next part that the target is to make zero, which stays.
    pub(super) fn first_zeroes(&self) -> Option<Claim> {
        self.zeroes.front().copied()
    }

    /// Parts that are still to be dealt with here.
    pub(super) fn rest(&self) -> impl Iterator<Item = (u64, u64)> {
        let asked = self
            .question
            .map(|question| (question.offset, question.len));
        let zeroes = self.zeroes.iter().map(|claim| (claim.offset, claim.len));
        let beyond = (self.cursor, self.size.saturating_sub(self.cursor));
        let again = self.again.iter().copied();
        again.chain(zeroes).chain(asked).chain([beyond])
    }

    /// How far the disk was asked.
    pub(super) fn scanned(&self) -> u64 {
        let asked = self.question.map(|question| question.offset);
        let again = self.again.front().map(|(offset, _)| *offset);
        asked.into_iter().chain(again).fold(self.cursor, u64::min)
    }

    /// Allocated bytes found so far.
    pub(super) fn found(&self) -> u64 {
        self.found
    }

    /// Bytes that are not allocated, or zero, as far as it was asked. Some of it may be asked twice.
    pub(super) fn holes(&self) -> u64 {
        self.empty.min(self.size.saturating_sub(self.found))
    }

    /// Allocated bytes by slot of a picture.
    pub(super) fn found_in(&self) -> &Slots {
        &self.found_in
    }

    /// Whether the whole disk was asked, and what it said is dirty or on the way.
    pub(super) fn is_complete(&self) -> bool {
        self.cursor >= self.size
            && self.question.is_none()
            && self.again.is_empty()
            && self.zeroes.is_empty()
    }

    /// The smallest base that something found here may have.
    pub(super) fn floor(&self) -> u64 {
        if !self.compares {
            return u64::MAX;
        }
        let asked = self.question.map(|question| question.base);
        let found = self.zeroes.front().map(|claim| claim.base);
        asked.into_iter().chain(found).fold(u64::MAX, u64::min)
    }

    /// The next question about allocation, by that name: its offset and length.
    pub(super) fn ask(&mut self, op: OpId, tracker: &Tracker) -> Option<(u64, u64)> {
        let figures = tracker.figures();
        if self.question.is_some() || !self.zeroes.is_empty() || figures.dirty > ENOUGH_DIRTY {
            return None;
        }
        let (offset, len) = match self.again.pop_front() {
            Some((offset, len)) if len > QUESTION => {
                self.again.push_front((offset + QUESTION, len - QUESTION));
                (offset, QUESTION)
            }
            Some(part) => part,
            None if self.cursor >= self.size => return None,
            None => {
                let offset = self.cursor;
                let len = (self.size - offset).min(QUESTION);
                self.cursor = offset + len;
                tracker.advance_cursor(self.cursor);
                (offset, len)
            }
        };
        let base = tracker.figures().seq;
        self.question = Some(Question {
            op,
            offset,
            len,
            base,
        });
        Some((offset, len))
    }

    /// The answer to a question. `false` when it is not one that can be.
    pub(super) fn answer(&mut self, op: OpId, extents: &[Extent], tracker: &Tracker) -> bool {
        let Some(question) = self.question.take_if(|question| question.op == op) else {
            return true;
        };
        let mut at = question.offset;
        let end = at + question.len;
        for extent in extents {
            let len = extent.len.min(end - at);
            let data = extent.allocated && !extent.zero;
            self.empty += if data { 0 } else { len };
            self.take_in((at, len), data, question.base, tracker);
            at += len;
        }
        if at < end {
            self.again.push_front((at, end - at));
        }
        at > question.offset
    }

    /// The answer shows every change up to `base`.
    fn take_in(&mut self, (offset, len): (u64, u64), data: bool, base: u64, tracker: &Tracker) {
        if data {
            self.found += len;
            self.found_in.add(offset, len);
            if self.compares || self.asks_first {
                tracker.mark_unsure(offset, len);
            } else {
                tracker.mark(offset, len);
            }
        } else if self.compares && len > MOST_ZEROES {
            self.take_in((offset, MOST_ZEROES), data, base, tracker);
            let rest = (offset + MOST_ZEROES, len - MOST_ZEROES);
            self.take_in(rest, data, base, tracker);
        } else if self.compares && len > 0 {
            match self.zeroes.back_mut() {
                Some(last) if last.offset + last.len == offset && last.len + len <= MOST_ZEROES => {
                    last.len += len;
                }
                _ => self.zeroes.push_back(Claim {
                    offset,
                    len,
                    base,
                    unsure: false,
                }),
            }
        }
    }

    /// The next part that the target is to make zero.
    pub(super) fn next_zeroes(&mut self) -> Option<Claim> {
        self.zeroes.pop_front()
    }

    /// What was said of that part may be lost, or not be so any more when it is said again.
    pub(super) fn ask_again(&mut self, offset: u64, len: u64) {
        self.again.push_back((offset, len));
    }

    /// A fresh incarnation: what waits was found before what the target will have by then.
    pub(super) fn restart(&mut self) {
        for claim in std::mem::take(&mut self.zeroes) {
            self.again.push_back((claim.offset, claim.len));
        }
        if let Some(question) = self.question.take() {
            self.again.push_front((question.offset, question.len));
        }
    }
}
