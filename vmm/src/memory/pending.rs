//! What of a machine's memory is read next while the machine runs already.
//!
//! A machine without I/O: it is told which pages are touched and which extents came in, and says what to do.
//! What somebody waits for goes first, in the order in which it was asked for; the rest follows in the order of
//! addresses. Must never call a page zero that the file has.
//!
//! ```text
//!   waiting ──touched──► asked ──next──► under way ──arrived──► there
//!      └───────────────next────────────────┘
//! ```

use std::collections::VecDeque;

use super::image::Pages;

/// What becomes of a touch of a page that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    /// The file does not have it: it is zero, at once.
    Zero,
    /// It comes: whoever touched it is woken by that.
    Later,
    /// It came meanwhile: whoever touched it is to be woken.
    There,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Asked,
    UnderWay,
    There,
}

/// An extent that the file has pages of.
#[derive(Clone, Copy, Debug)]
struct Extent {
    number: u32,
    pages: Pages,
    state: State,
}

/// Extents that are still to come.
#[derive(Debug)]
pub(super) struct Pending {
    /// By number.
    extents: Vec<Extent>,
    /// Whether an extent comes as one piece, its zero pages included.
    whole: bool,
    /// Places in `extents` that somebody waits for.
    asked: VecDeque<usize>,
    /// Nothing before this place is waiting.
    next: usize,
    /// How many are not there.
    left: usize,
    lost: Option<String>,
}

impl Pending {
    /// These extents are to come, lowest first. With `whole`, as with huge pages, each comes with its zero pages.
    pub(super) fn new(extents: impl Iterator<Item = (u32, Pages)>, whole: bool) -> Self {
        let extents: Vec<_> = extents
            .map(|(number, pages)| Extent {
                number,
                pages,
                state: State::Waiting,
            })
            .collect();
        Self {
            left: extents.len(),
            extents,
            whole,
            asked: VecDeque::new(),
            next: 0,
            lost: None,
        }
    }

    /// A page of an extent was touched and is not there.
    pub(super) fn touched(&mut self, number: u32, page: usize) -> Touch {
        let found = self.extents.binary_search_by_key(&number, |one| one.number);
        let Some((place, extent)) = found
            .ok()
            .and_then(|place| Some((place, self.extents.get_mut(place)?)))
        else {
            return Touch::Zero;
        };
        if !self.whole && !extent.pages.contains(page) {
            return Touch::Zero;
        }
        match extent.state {
            State::There => Touch::There,
            State::Asked | State::UnderWay => Touch::Later,
            State::Waiting => {
                extent.state = State::Asked;
                self.asked.push_back(place);
                Touch::Later
            }
        }
    }

    /// The place of the extent that is to be read now; `None` when there is nothing to do, for the time being or
    /// for good. With `only_asked` it is one that somebody waits for.
    pub(super) fn next(&mut self, only_asked: bool) -> Option<usize> {
        if self.lost.is_some() {
            return None;
        }
        let asked = self.asked.pop_front();
        let place = match asked {
            Some(place) => place,
            None if only_asked => return None,
            None => {
                let rest = self.extents.get(self.next..)?;
                let skipped = rest.iter().position(|one| one.state == State::Waiting);
                self.next += skipped.unwrap_or(rest.len());
                self.next
            }
        };
        let extent = self.extents.get_mut(place)?;
        extent.state = State::UnderWay;
        Some(place)
    }

    /// The extent at `place` is there.
    pub(super) fn arrived(&mut self, place: usize) {
        if let Some(extent) = self.extents.get_mut(place)
            && extent.state != State::There
        {
            extent.state = State::There;
            self.left = self.left.saturating_sub(1);
        }
    }

    /// Memory cannot be had. The first reason counts; true for that one.
    pub(super) fn lose(&mut self, why: &str) -> bool {
        let first = self.lost.is_none() && !self.is_whole();
        if first {
            self.lost = Some(why.to_owned());
        }
        first
    }

    /// Why memory cannot be had, if so.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Whether all is there.
    pub(super) fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// How many extents are not there.
    pub(super) fn left(&self) -> usize {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages(pages: &[usize]) -> Pages {
        let mut set = Pages::default();
        for page in pages {
            set.insert(*page);
        }
        set
    }

    fn pending(numbers: &[u32], whole: bool) -> Pending {
        let extents = numbers.iter().map(|number| (*number, pages(&[0, 1])));
        Pending::new(extents, whole)
    }

    #[test]
    fn what_somebody_waits_for_goes_before_the_rest() {
        let mut pending = pending(&[1, 4, 5, 9], false);
        assert_eq!(pending.next(true), None);
        assert_eq!(pending.next(false), Some(0));
        assert_eq!(pending.touched(9, 0), Touch::Later);
        assert_eq!(pending.touched(5, 1), Touch::Later);
        assert_eq!(pending.touched(9, 1), Touch::Later);
        assert_eq!(pending.next(true), Some(3));
        assert_eq!(pending.next(false), Some(2));
        assert_eq!(pending.next(true), None);
        assert_eq!(pending.next(false), Some(1));
        assert_eq!(pending.next(false), None);
        for place in 0..4 {
            assert!(!pending.is_whole());
            pending.arrived(place);
            pending.arrived(place);
        }
        assert!(pending.is_whole());
        assert_eq!(pending.touched(9, 0), Touch::There);
        assert!(!pending.lose("too late"));
    }

    #[test]
    fn pages_that_the_file_has_not_are_zero_unless_extents_come_whole() {
        let mut small = pending(&[1], false);
        assert_eq!(small.touched(1, 2), Touch::Zero);
        assert_eq!(small.touched(0, 0), Touch::Zero);
        assert_eq!(small.touched(2, 0), Touch::Zero);
        assert_eq!(small.next(true), None);
        let mut huge = pending(&[1], true);
        assert_eq!(huge.touched(1, 2), Touch::Later);
        assert_eq!(huge.touched(0, 2), Touch::Zero);
    }

    #[test]
    fn memory_that_is_lost_is_asked_for_no_more() {
        let mut pending = pending(&[1, 2], false);
        assert_eq!(pending.next(false), Some(0));
        assert!(pending.lose("the disk"));
        assert!(!pending.lose("and so on"));
        assert_eq!(pending.next(false), None);
        assert_eq!(pending.touched(2, 0), Touch::Later);
        assert_eq!(pending.next(true), None);
        assert_eq!(pending.lost(), Some("the disk"));
        assert!(!pending.is_whole());
    }

    #[test]
    fn memory_without_content_is_whole_at_once() {
        assert!(pending(&[], false).is_whole());
    }

    proptest! {
        #[test]
        fn every_extent_is_read_once_in_any_order_of_touches(
            count in 1..40_u32,
            steps in proptest::collection::vec((0..3_u8, 0..60_u32), 0..200),
        ) {
            let numbers: Vec<u32> = (0..count).map(|n| n * 3 / 2).collect();
            let mut pending = pending(&numbers, false);
            let mut read = vec![0; count as usize];
            let mut under_way = Vec::new();
            for (step, number) in steps {
                match step {
                    0 => {
                        let known = numbers.binary_search(&number);
                        let touch = pending.touched(number, 0);
                        prop_assert_eq!(touch == Touch::Zero, known.is_err());
                    }
                    1 => if let Some(place) = pending.next(number % 2 == 0) {
                        read[place] += 1;
                        under_way.push(place);
                    },
                    _ => if let Some(place) = under_way.pop() {
                        pending.arrived(place);
                    },
                }
            }
            while let Some(place) = pending.next(false) {
                read[place] += 1;
                under_way.push(place);
            }
            prop_assert!(read.iter().all(|times| *times == 1));
            for place in under_way {
                prop_assert!(!pending.is_whole());
                pending.arrived(place);
            }
            prop_assert!(pending.is_whole());
        }
    }
}
