//! Which pages of the bitmap are in memory, and how far each is on its way in or out.
//!
//! ```text
//!   unused ─► loading ─► here ─► leaving ─► saving ─► unused
//!             read,      parts   nobody     its bits
//!             reserved   become  finds it   become
//!                        active  any more   durable
//! ```
//!
//! Frame n has entry n of the activity log for itself. It must never give a frame away whose entry on
//! the medium still stands for bits that are only here.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lru::LruCache;

use crate::engine::map::{Generation, TrackMap};
use crate::format::track::LogEntry;

/// One frame in so many is given away at a time, at least one: what leaves together shares a flush.
const LEAVE_SHARE: usize = 32;

/// Where a frame stands.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Unused,
    /// So many operations have not ended; the page as it was read.
    Loading(u8, Option<Bytes>),
    Here,
    /// Those that began before this generation may still set bits.
    Leaving(Generation),
    Saving,
}

/// One frame.
#[derive(Debug, Default)]
struct Frame {
    stage: Stage,
    page: u64,
    /// Parts that shall be active, and those that are.
    want: u64,
    logged: u64,
}

/// How a page is when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// All parts asked for are active.
    Active,
    /// It is on its way.
    Coming,
    /// It is not in memory, and this frame is for it now.
    Load(usize),
    /// It is not in memory, and no frame is free.
    NoFrame,
}

/// The frames of one disk.
#[derive(Debug)]
pub(super) struct Frames {
    all: Vec<Frame>,
    pages: BTreeMap<u64, usize>,
    /// Pages that are here, the least recently used first.
    lru: LruCache<u64, usize>,
    unused: Vec<usize>,
    leaving: BTreeSet<usize>,
    /// Those that are here and want more parts active than are.
    wanting: BTreeSet<usize>,
    /// Those loading or saving.
    moving: usize,
    /// Pages that could not be read just now; whoever waits for one is told.
    unread: BTreeMap<u64, String>,
}

/// Parts to make active for the sake of `need`, of a page of which `held` are: their neighbours too, the
/// more the more there are already. So a page that is written all over costs some ten flushes and not
/// one for each part, and one that is written in one place stays small in the log.
fn widened(held: u64, need: u64) -> u64 {
    let width = (held.count_ones() + 1).next_power_of_two().min(64);
    let group = u64::MAX >> (64 - width);
    (0..64)
        .step_by(width as usize)
        .map(|start| group << start)
        .filter(|group| group & need != 0)
        .fold(0, |all, group| all | group)
}

impl Frames {
    pub(super) fn new(count: usize) -> Self {
        Self {
            all: (0..count).map(|_| Frame::default()).collect(),
            pages: BTreeMap::new(),
            lru: LruCache::unbounded(),
            unused: (0..count).rev().collect(),
            leaving: BTreeSet::new(),
            wanting: BTreeSet::new(),
            moving: 0,
            unread: BTreeMap::new(),
        }
    }

    /// Look for `page` with the parts `need` active, and `rest` if something has to be done anyway.
    pub(super) fn find(&mut self, page: u64, need: u64, rest: u64) -> Found {
        if let Some(number) = self.pages.get(&page).copied() {
            let frame = &mut self.all[number];
            match frame.stage {
                Stage::Here if frame.logged & need == need => {
                    self.lru.promote(&page);
                    return Found::Active;
                }
                Stage::Here => {
                    if frame.want & need != need {
                        frame.want |= widened(frame.want, need | rest);
                    }
                    self.wanting.insert(number);
                }
                Stage::Loading(..) => frame.want |= widened(frame.want, need | rest),
                Stage::Unused | Stage::Leaving(_) | Stage::Saving => {}
            }
            return Found::Coming;
        }
        let Some(number) = self.unused.pop() else {
            return Found::NoFrame;
        };
        self.pages.insert(page, number);
        self.moving += 1;
        self.all[number] = Frame {
            stage: Stage::Loading(2, None),
            page,
            want: widened(0, need | rest),
            logged: 0,
        };
        Found::Load(number)
    }

    /// Why `page` could not be read just now.
    pub(super) fn unread(&self, page: u64) -> Option<&str> {
        self.unread.get(&page).map(String::as_str)
    }

    /// Those that waited have been told; later requests try again.
    pub(super) fn forget_unread(&mut self) {
        self.unread.clear();
    }

    /// One of the two operations that bring a page in has ended: read it, or reserved its space.
    pub(super) fn loaded(&mut self, number: usize, data: Option<Bytes>, map: &TrackMap) {
        let frame = &mut self.all[number];
        let Stage::Loading(left, bits) = &mut frame.stage else {
            return;
        };
        *left -= 1;
        if data.is_some() {
            *bits = data;
        }
        if *left != 0 {
            return;
        }
        self.moving -= 1;
        let page = frame.page;
        if let Some(bits) = bits.take() {
            map.install(number, page, &bits);
            frame.stage = Stage::Here;
            self.lru.push(page, number);
            self.wanting.insert(number);
        } else {
            self.drop_frame(number);
        }
    }

    /// The page of frame `number`, which is loading, can not be had.
    pub(super) fn cannot_read(&mut self, number: usize, why: String) {
        let page = self.all[number].page;
        self.unread.insert(page, why);
        self.spoil(number);
    }

    /// What was read for frame `number`, which is loading, must not be used.
    pub(super) fn spoil(&mut self, number: usize) {
        if let Stage::Loading(_, bits) = &mut self.all[number].stage {
            *bits = None;
        }
    }

    fn drop_frame(&mut self, number: usize) {
        let frame = std::mem::take(&mut self.all[number]);
        self.pages.remove(&frame.page);
        self.unused.push(number);
    }

    /// Let some pages go, unless some are going; whether workers must be waited for.
    pub(super) fn make_room(&mut self, map: &TrackMap) -> Vec<usize> {
        let mut chosen = Vec::new();
        if !self.leaving.is_empty() || self.moving != 0 {
            return chosen;
        }
        let most = (self.all.len() / LEAVE_SHARE).max(1);
        for _ in 0..2 * self.lru.len() {
            if chosen.len() == most {
                break;
            }
            let Some((page, number)) = self.lru.pop_lru() else {
                break;
            };
            if self.wanting.contains(&number) || map.take_referenced(number) {
                self.lru.push(page, number);
            } else {
                map.retire(page);
                chosen.push(number);
            }
        }
        chosen
    }

    /// Nobody finds the pages of `chosen` any more since `generation`.
    pub(super) fn leave(&mut self, chosen: Vec<usize>, generation: Generation) {
        for number in chosen {
            self.all[number].stage = Stage::Leaving(generation);
            self.leaving.insert(number);
        }
    }

    /// Whether workers are waited for.
    pub(super) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Those that nobody can set bits in any more are to be saved now: frame and page of each.
    pub(super) fn take_left(&mut self, quiesced: impl Fn(Generation) -> bool) -> Vec<(usize, u64)> {
        let mut taken = Vec::new();
        for number in &self.leaving {
            if let Stage::Leaving(generation) = self.all[*number].stage
                && quiesced(generation)
            {
                taken.push((*number, self.all[*number].page));
            }
        }
        for (number, _) in &taken {
            self.leaving.remove(number);
            self.all[*number].stage = Stage::Saving;
            self.moving += 1;
        }
        taken
    }

    /// Those that are here and hold bits which the file does not.
    pub(super) fn dirty(&self, map: &TrackMap) -> Vec<(usize, u64)> {
        let here = self.lru.iter().map(|(page, number)| (*number, *page));
        here.filter(|(number, _)| map.is_dirty(*number)).collect()
    }

    /// The bits of frame `number` are durable.
    pub(super) fn saved(&mut self, number: usize) {
        if let Stage::Saving = self.all[number].stage {
            self.moving -= 1;
            self.drop_frame(number);
        }
    }

    /// Those that want more parts active, and which parts.
    pub(super) fn wanting(&self) -> Vec<(usize, u64)> {
        let want = |number: &usize| (*number, self.all[*number].want);
        self.wanting.iter().map(want).collect()
    }

    /// What the log says of frames `range` from now on.
    pub(super) fn entries(&self, range: std::ops::Range<usize>) -> Vec<LogEntry> {
        let entry = |frame: &Frame| LogEntry {
            page: frame.page as u32,
            mask: match frame.stage {
                Stage::Here => frame.want | frame.logged,
                Stage::Leaving(_) | Stage::Saving => frame.logged,
                Stage::Unused | Stage::Loading(..) => 0,
            },
        };
        let end = range.end.min(self.all.len());
        self.all[range.start.min(end)..end]
            .iter()
            .map(entry)
            .collect()
    }

    /// The log on the medium names `parts` of frame `number`.
    pub(super) fn logged(&mut self, number: usize, parts: u64, map: &TrackMap) {
        let frame = &mut self.all[number];
        frame.logged |= parts;
        map.activate(number, parts);
        if frame.want & !frame.logged == 0 {
            self.wanting.remove(&number);
        }
    }

    /// Whether no page is on its way in or out, and none waits for a part.
    pub(super) fn settled(&self) -> bool {
        self.moving == 0 && self.leaving.is_empty() && self.wanting.is_empty()
    }

    /// The numbers of all frames that are here.
    pub(super) fn here(&self) -> Vec<usize> {
        self.lru.iter().map(|(_, number)| *number).collect()
    }

    /// Nothing is in memory any more; all was saved, and nobody writes.
    pub(super) fn forget_all(&mut self, map: &TrackMap) {
        for page in self.pages.keys() {
            map.retire(*page);
        }
        *self = Self::new(self.all.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_written_all_over_is_active_after_a_few_steps() {
        let (mut held, mut steps) = (0_u64, 0);
        let mut part = 0_u32;
        while held != u64::MAX {
            part = (part + 27) % 64;
            if held >> part & 1 == 0 {
                held |= widened(held, 1 << part);
                steps += 1;
            }
        }
        assert!(steps <= 12, "{steps} steps");
    }

    #[test]
    fn a_page_written_in_one_place_stays_small() {
        assert_eq!(widened(0, 1 << 17), 1 << 17);
        assert_eq!(widened(1 << 17, 1 << 16), 0b11 << 16);
        assert_eq!(widened(0, u64::MAX), u64::MAX);
    }
}
