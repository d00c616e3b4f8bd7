//! Where a new block goes, and when the space of a freed one may be used again.
//!
//! Space is *fresh* once: when it was added beyond the old end of the file in this session. Freed
//! space becomes *clean* again after (1) the BAT entry that named it no longer is durable, (2) every
//! worker is past the generation in which it did, (3) it was made to read as zero. That this zeroing
//! is durable before another entry names the space follows from the flush round: its data flush
//! comes after the pages were copied and before they are logged. Fresh space needs no such flush: a
//! replay makes the file as long as the entry says (`LastFileOffset`).
//!
//! One bit for each mebibyte says what is taken. Until the whole BAT has been read (`survey.rs`) that
//! knows nothing of blocks, so new ones go to the end of the file, and nothing freed is used again.

use std::collections::{BTreeSet, VecDeque};

use crate::engine::map::Generation;
use crate::engine::ops::Purpose;
use crate::engine::step::Run;
use crate::engine::{BlockMap, Engine, FileOpKind, Outcome, RequestId};
use crate::error::Error;
use crate::format::Region;
use crate::space::SpaceMap;
use crate::units::{FileOffset, MIB};

/// The file grows by at least this many bytes at a time, and by at least so many blocks.
const LEAST_GROWTH: u64 = 64 * MIB;
const LEAST_GROWTH_BLOCKS: u64 = 8;

/// The file grows by at most this many blocks at a time: lengthening it holds up the writes to it, so few
/// blocks may need that, however large they are. What is not used is a hole, and cut off at the end.
const MOST_GROWTH_BLOCKS: u64 = 1024;

/// So many pieces of unused space are zeroed at a time.
const CLEANED_AHEAD: usize = 8;

/// Freed space on its way to being clean.
#[derive(Clone, Copy, Debug)]
struct Freed {
    at: u64,
    /// The flush round that makes its freeing durable.
    round: u64,
    generation: Generation,
}

/// Whether all blocks of a file are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocks {
    /// Those that were there when the image was opened are not.
    Unknown,
    /// They are being found.
    Surveyed,
    /// They could not be found, and will not be in this session.
    Lost,
    /// They are.
    Known,
}

/// Space that was taken; it reads as zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) at: u64,
    /// On the medium too: what a crash leaves there is zeros and what was written since.
    pub(super) fresh: bool,
}

/// What is known of the space of a file.
#[derive(Debug)]
pub(super) struct Taken {
    /// Every mebibyte that is not free: in use, fresh and taken, clean, or on its way to that.
    map: SpaceMap,
    /// Whether that includes every block.
    pub(super) blocks: Blocks,
    /// No free space for a block begins below this mebibyte.
    lowest: u64,
}

impl Taken {
    pub(super) fn new(map: SpaceMap, complete: bool) -> Self {
        Self {
            map,
            blocks: if complete {
                Blocks::Known
            } else {
                Blocks::Unknown
            },
            lowest: 0,
        }
    }

    /// `len` bytes at `at` are taken; where one was already, that is the error.
    pub(super) fn claim(&mut self, at: u64, len: u64) -> Result<(), u64> {
        let taken = self.map.claim(at / MIB, len / MIB);
        taken.map_err(|taken| taken * MIB)
    }

    /// `len` bytes at `at` are taken, whatever they were.
    fn fill(&mut self, at: u64, len: u64) {
        self.map.fill(at / MIB, len / MIB);
    }

    fn release(&mut self, at: u64, len: u64) {
        self.map.release(at / MIB, len / MIB);
        // A hole may begin before it and end in it.
        self.lowest = self.lowest.min((at / MIB).saturating_sub(len / MIB));
    }

    /// The lowest `len` free bytes that end at or below `limit`.
    fn free(&mut self, len: u64, limit: u64) -> Option<u64> {
        let (len, limit) = (len / MIB, limit / MIB);
        let found = self.map.find_free(self.lowest, len, limit);
        // Without this the whole map would be gone through for each new block of a file without holes.
        let searched = (limit + 1).saturating_sub(len);
        self.lowest = found.unwrap_or_else(|| self.lowest.max(searched));
        found.map(|at| at * MIB)
    }
}

/// The space of one file.
#[derive(Debug)]
pub(in crate::engine) struct Space {
    block_size: u64,
    file_len: u64,
    /// The length that a completed flush covered, and the one that the flush under way covers.
    durable_len: u64,
    flushed_len: u64,
    /// End of what is in use, as far as known; beyond it lies fresh space up to `file_len`.
    next: u64,
    growing: bool,
    /// Why the file could not grow just now.
    full: Option<String>,
    pub(super) taken: Taken,
    clean: BTreeSet<u64>,
    /// So many pieces of unused space are being made to read as zero.
    cleaning: usize,
    /// In the order in which it was freed, and so of rounds and generations.
    freed: VecDeque<Freed>,
    /// Regions given up in this session, to be used from the next one on.
    retired: Vec<Region>,
}

impl Space {
    pub(super) fn new(block_size: u64, file_len: u64, end_of_used: u64, taken: Taken) -> Self {
        Self {
            block_size,
            file_len,
            durable_len: 0,
            flushed_len: 0,
            next: end_of_used.next_multiple_of(MIB),
            growing: false,
            full: None,
            taken,
            clean: BTreeSet::new(),
            cleaning: 0,
            freed: VecDeque::new(),
            retired: Vec::new(),
        }
    }

    pub(super) fn file_len(&self) -> u64 {
        self.file_len
    }

    pub(super) fn set_file_len(&mut self, len: u64) {
        self.file_len = len;
    }

    /// Smallest length that holds everything in use.
    pub(super) fn end_of_used(&self) -> u64 {
        self.next
    }

    /// The same when clean space at the end has been given back.
    pub(super) fn end_of_needed(&self) -> u64 {
        let mut end = self.next;
        for at in self.clean.iter().rev() {
            if at + self.block_size == end {
                end = *at;
            }
        }
        end
    }

    /// What was appended last, from `end` on, is not needed.
    pub(super) fn take_back(&mut self, end: u64) {
        self.taken.release(end, self.next - end);
        self.next = end;
    }

    /// Take `len` bytes at the end for something other than a block.
    pub(super) fn append(&mut self, len: u64) -> u64 {
        let at = self.next;
        self.next += len;
        self.taken.fill(at, len);
        at
    }

    /// The lowest place for `len` bytes of something other than a block that ends at or below `limit`.
    pub(super) fn place_below(&self, len: u64, limit: u64) -> Option<u64> {
        let known = self.taken.blocks == Blocks::Known;
        let found = self.taken.map.find_free(0, len / MIB, limit / MIB)?;
        known.then_some(found * MIB)
    }

    /// `len` bytes at `at` are taken.
    pub(super) fn fill(&mut self, at: u64, len: u64) {
        self.taken.fill(at, len);
    }

    /// Take the lowest space for a block that lies wholly before `limit`; what it holds is anybody's.
    pub(super) fn take_below(&mut self, limit: u64) -> Option<u64> {
        let len = self.block_size;
        let clean = self.clean.first().copied();
        let clean = clean.filter(|at| at + len <= limit);
        let free = self.taken.free(len, limit);
        let at = [clean, free].into_iter().flatten().min()?;
        if clean == Some(at) {
            self.clean.remove(&at);
        }
        self.taken.fill(at, len);
        Some(at)
    }

    /// Whether what was freed up to flush round `round` is still on its way to being clean.
    pub(super) fn reclaims(&self, round: u64) -> bool {
        let freed = self.freed.front();
        freed.is_some_and(|freed| freed.round <= round) || self.cleaning > 0
    }

    /// Nothing names these bytes any more.
    pub(super) fn release(&mut self, at: u64, len: u64) {
        self.taken.release(at, len);
    }

    pub(super) fn durable_len(&self) -> u64 {
        self.durable_len
    }

    pub(super) fn set_durable_len(&mut self, len: u64) {
        (self.durable_len, self.flushed_len) = (len, len);
    }

    pub(super) fn flush_begins(&mut self) {
        self.flushed_len = self.file_len;
    }

    pub(super) fn flush_ended(&mut self) {
        self.durable_len = self.flushed_len;
    }

    /// Space of `len` bytes: for a block, or fresh space for something else.
    fn take(&mut self, len: u64, fresh: bool) -> Option<Place> {
        if len == self.block_size
            && !fresh
            && let Some(at) = self.clean.pop_first()
        {
            // The flush that makes the zeroing durable may be still to come.
            return Some(Place { at, fresh: false });
        }
        let end = self.next.checked_add(len)?;
        (end <= self.file_len).then(|| Place {
            at: self.append(len),
            fresh: true,
        })
    }

    /// Free space for a block, to be zeroed before it is used; it is taken from now on.
    fn take_unclean(&mut self) -> Option<u64> {
        if self.taken.blocks != Blocks::Known
            || !self.clean.is_empty()
            || self.cleaning >= CLEANED_AHEAD
        {
            return None;
        }
        let at = self.taken.free(self.block_size, self.next)?;
        self.taken.fill(at, self.block_size);
        self.cleaning += 1;
        Some(at)
    }

    /// The host has no more; whoever waits is told, later requests try again.
    pub(super) fn set_full(&mut self, why: &std::io::Error) {
        self.full = Some(why.to_string());
    }

    pub(super) fn full(&self) -> Option<Error> {
        let why = self.full.as_ref()?;
        Some(Engine::no_space(&format!(
            "the host file can not grow: {why}"
        )))
    }

    /// Those that waited have been told.
    pub(in crate::engine) fn forget_full(&mut self) {
        self.full = None;
    }

    /// Whether the file is being lengthened.
    pub(super) fn growing(&self) -> bool {
        self.growing
    }

    fn least_len(&self) -> u64 {
        self.next.saturating_add(self.block_size)
    }

    fn least_growth(&self) -> u64 {
        LEAST_GROWTH.max(self.block_size * LEAST_GROWTH_BLOCKS)
    }

    fn wanted_len(&self) -> u64 {
        let most = self.block_size * MOST_GROWTH_BLOCKS;
        let step = (self.file_len / 8).clamp(self.least_growth(), most);
        self.least_len().saturating_add(step).next_multiple_of(MIB)
    }

    /// Whether fresh space runs low enough that more should be on its way.
    fn low(&self) -> bool {
        let fresh = self.file_len.saturating_sub(self.next);
        self.clean.is_empty() && fresh < self.least_growth() / 4
    }

    /// Whether freed space waits to be reclaimed.
    pub(in crate::engine) fn has_freed(&self) -> bool {
        !self.freed.is_empty()
    }

    /// Freed space whose freeing is durable since `round` ended and which nobody uses any more.
    fn take_reclaimable(&mut self, round: u64, map: &BlockMap) -> Vec<u64> {
        let mut ready = Vec::new();
        while self.taken.blocks != Blocks::Surveyed
            && let Some(freed) = self.freed.front()
            && freed.round <= round
            && map.quiesced(freed.generation)
        {
            ready.push(freed.at);
            self.freed.pop_front();
        }
        ready
    }

    /// Every block has been found. Those that were freed meanwhile were found, or were not.
    pub(super) fn surveyed(&mut self) {
        for freed in &self.freed {
            self.taken.fill(freed.at, self.block_size);
        }
        self.taken.blocks = Blocks::Known;
    }

    /// A region is given up. Entries of this session's log may still name it, and programs that
    /// replay more of a log than its tail says would write there: nothing else may lie there before
    /// the next session.
    pub(super) fn retire(&mut self, region: Region) {
        self.retired.push(region);
    }

    /// A new session has begun, with a log that knows nothing of regions given up before.
    pub(super) fn release_retired(&mut self) {
        for region in self.retired.drain(..) {
            self.taken.release(region.at.0, region.len);
        }
    }

    /// Unused space at the end of what is in use becomes space beyond it, to be cut off.
    pub(super) fn give_back_end(&mut self) {
        if self.taken.blocks != Blocks::Known {
            return;
        }
        loop {
            self.next = self.taken.map.end() * MIB;
            let last = self.next.saturating_sub(self.block_size);
            if !self.clean.remove(&last) {
                return;
            }
            self.taken.release(last, self.block_size);
        }
    }
}

impl Engine {
    /// Space for a block; else `id` is blocked while the file grows, or refused since it can not.
    pub(super) fn take_block(&mut self, id: RequestId) -> Result<Place, Run> {
        let len = self.vhdx.as_ref().map_or(0, |vhdx| vhdx.space.block_size);
        self.take_any(id, len, false)
    }

    /// The same for a block at the end of the file, whatever is free before it.
    pub(super) fn take_block_at_end(&mut self, id: RequestId) -> Result<Place, Run> {
        let len = self.vhdx.as_ref().map_or(0, |vhdx| vhdx.space.block_size);
        self.take_any(id, len, true)
    }

    /// The same for `len` bytes, at most a block: a block's, or those of a sector bitmap.
    pub(super) fn take_space(&mut self, id: RequestId, len: u64) -> Result<Place, Run> {
        self.take_any(id, len, false)
    }

    fn take_any(&mut self, id: RequestId, len: u64, fresh: bool) -> Result<Place, Run> {
        let Some(vhdx) = &mut self.vhdx else {
            return Err(Run::Blocked);
        };
        let space = &mut vhdx.space;
        while !fresh && let Some(at) = space.take_unclean() {
            let (len, keep, at) = (space.block_size, false, FileOffset(at));
            self.ops
                .push(Purpose::Clean(at.0), FileOpKind::Zero { at, len, keep });
        }
        let taken = space.take(len, fresh);
        if let (None, Some(error)) = (taken, space.full()) {
            return Err(Run::Failed(error));
        }
        if (taken.is_none() || space.low()) && !space.growing {
            space.growing = true;
            let len = space.wanted_len();
            self.ops
                .push(Purpose::Grow(len), FileOpKind::SetLen { len });
        }
        taken.ok_or_else(|| {
            self.requests.block(id);
            Run::Blocked
        })
    }

    pub(in crate::engine) fn grown(&mut self, len: u64, outcome: &Outcome) {
        let Some(vhdx) = &mut self.vhdx else { return };
        let space = &mut vhdx.space;
        match outcome {
            // Less may still be possible; but never shorter than the file is.
            Outcome::Failed(_) if (space.file_len + 1..len).contains(&space.least_len()) => {
                let len = space.least_len();
                self.ops
                    .push(Purpose::Grow(len), FileOpKind::SetLen { len });
                return;
            }
            Outcome::Failed(error) => space.set_full(error),
            _ => space.file_len = len,
        }
        space.growing = false;
        self.wake = true;
    }

    /// The block at `at` was dropped from the map by a pending change.
    pub(super) fn free_space(&mut self, at: u64) {
        let generation = self.map.advance();
        let round = self.flusher.begun + 1;
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.space.freed.push_back(Freed {
                at,
                round,
                generation,
            });
        }
    }

    /// Space at `at` that was to become a block's and did not, and reads as zero or not.
    pub(super) fn give_back(&mut self, at: u64, zero: bool) {
        if let Some(vhdx) = &mut self.vhdx {
            if zero {
                vhdx.space.clean.insert(at);
            } else {
                vhdx.space.release(at, vhdx.space.block_size);
            }
        }
    }

    /// Zero what has become reclaimable.
    pub(in crate::engine) fn reclaim(&mut self) {
        let Some(vhdx) = &mut self.vhdx else { return };
        if vhdx.space.freed.is_empty() {
            return;
        }
        let len = vhdx.space.block_size;
        let ready = vhdx.space.take_reclaimable(self.flusher.ended, &self.map);
        vhdx.space.cleaning += ready.len();
        for at in ready {
            let kind = FileOpKind::Zero {
                at: FileOffset(at),
                len,
                keep: false,
            };
            self.ops.push(Purpose::Clean(at), kind);
        }
    }

    pub(in crate::engine) fn cleaned(&mut self, at: u64, outcome: &Outcome) {
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.space.cleaning -= 1;
            // Space that could not be zeroed is left alone; the next session may try again.
            if !matches!(outcome, Outcome::Failed(_)) {
                vhdx.space.clean.insert(at);
            }
        }
        self.wake = true;
    }
}
