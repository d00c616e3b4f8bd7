//! Making the file as short as it can be, while the disk is in use.
//!
//! ```text
//!   zeros     blocks that the host holds no data for are dropped
//!   append    (defragmenting) from the first block on that does not lie at the first place after the one
//!             that precedes it on the disk, each is moved to the end of the file
//!   slide     (defragmenting) in the order of the disk, each is moved to the lowest place
//!   down      the last blocks of the file are moved to the lowest places, the last one first
//!   close     alone on the disk: parked, so that the file is cut; the log moved down if it is in the way
//! ```
//!
//! Each pass goes through the table of blocks once (again, if it moved more than it could remember), in
//! steps of a budget that its caller sets. A pass begins when pages that were changed before are in the
//! file, where the walk finds them; what a guest changes meanwhile may be missed, which costs space and
//! nothing else. What one block's move takes is in `moves.rs`. Between two requests nothing is under way.
//!
//! Sector bitmaps, the table itself and the metadata stay where they are.

use std::collections::{BTreeSet, VecDeque};

use super::blocks::{FULLY_PRESENT, OFFSET_MASK};
use super::child::PARTIALLY_PRESENT;
use super::order::Order;
use super::space::Blocks;
use super::walk::{Stride, Walk};
use super::{PAGE, Vhdx};
use crate::engine::ops::Purpose;
use crate::engine::step::Run;
use crate::engine::{Compacted, Done, Engine, Outcome, PAGE_ENTRIES, RequestId};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Region;
use crate::format::bat::Slot;
use crate::units::{BatIndex, MIB};

/// So many blocks are remembered by a pass that moves the last ones first.
const MOST_FOUND: usize = 1 << 16;

/// Bytes that are being copied at once, but at least one block.
const MOST_UNDER_WAY: u64 = 32 * MIB;

/// A look whether a block holds anything costs as much of the budget as moving so many bytes.
const LOOK: u64 = 64 << 10;

/// So often the last blocks are moved down: guests go on writing.
const MOST_PASSES: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Zeros,
    Append,
    Slide,
    Down,
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// What has changed goes to the file: first this flush round, then entries of the log up to this one.
    Settle(u64),
    Apply(u64),
    /// The table is gone through, and what is found is dealt with.
    Work,
    /// What was freed up to this flush round becomes free.
    Reclaim(u64),
}

/// A compaction, from its first request to its last.
#[derive(Debug)]
pub(super) struct Compaction {
    defragment: bool,
    pass: Pass,
    stage: Stage,
    walk: Walk,
    running: Option<Stride>,
    /// Blocks of this pass, in the order in which they are dealt with: BAT index and entry.
    found: VecDeque<(u64, u64)>,
    /// The last blocks of the file so far, by their place.
    last: BTreeSet<(u64, u64)>,
    /// Whether there were more of them.
    more: bool,
    order: Order,
    passes: u32,
    /// Blocks moved when the pass began, and bytes of the budget spent when the request did.
    counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    moved_before: u64,
    /// What the present request may still spend.
    budget: u64,
    /// Whether a session was open during the present request.
    opened: bool,
}

impl Compaction {
    fn new(defragment: bool, entries: u64) -> Self {
        Self {
            defragment,
            pass: Pass::Zeros,
            stage: Stage::Settle(0),
            walk: Walk::new(entries),
            running: None,
            found: VecDeque::new(),
            last: BTreeSet::new(),
            more: false,
            order: Order::new(Vec::new(), MIB),
            passes: 0,
            counts: Counts::default(),
        }
    }

    fn spend(&mut self, bytes: u64) {
        self.counts.budget = self.counts.budget.saturating_sub(bytes);
    }

    fn spent(&self) -> bool {
        self.counts.budget == 0
    }

    /// A present block was found.
    fn find(&mut self, index: u64, entry: u64) {
        let at = entry & OFFSET_MASK;
        match self.pass {
            Pass::Zeros if entry & 7 == FULLY_PRESENT => self.found.push_back((index, entry)),
            Pass::Append => {
                if !self.order.meets(at) {
                    self.found.push_back((index, entry));
                }
            }
            Pass::Slide => self.found.push_back((index, entry)),
            Pass::Down => {
                self.last.insert((at, index | (entry & 1) << 63));
                if self.last.len() > MOST_FOUND {
                    self.last.pop_first();
                    self.more = true;
                }
            }
            Pass::Zeros | Pass::Close => {}
        }
    }
}

/// How a compaction goes on.
enum Next {
    /// At once.
    On,
    /// When anything has happened.
    Wait,
    /// The same; the request is already in the list of those that wait.
    Blocked,
}

impl Vhdx {
    fn compacted(&self, done: bool) -> Compacted {
        let block = self.layout.block_size;
        Compacted {
            moved: self.moves.moved * block,
            dropped: self.moves.dropped * block,
            end: self.space.end_of_needed(),
            done,
        }
    }

    /// What of the file is not moved: regions and the log.
    fn fixed_places(&self) -> Vec<Region> {
        let regions = self.layout.regions.entries.iter();
        let regions = regions.map(|entry| entry.place);
        regions.chain([self.log_place()]).collect()
    }
}

impl Engine {
    fn compaction(&mut self) -> Option<&mut Compaction> {
        self.vhdx.as_mut()?.compaction.as_deref_mut()
    }

    /// Take a compaction as far as it goes now.
    pub(in crate::engine) fn compact(&mut self, id: RequestId, defragment: bool, budget: u64) {
        if let Err(error) = self.compaction_begin(id, defragment, budget) {
            return match self.vhdx.as_ref().and_then(|vhdx| vhdx.compacting) {
                Some(mine) if mine == id => self.compaction_ends(id, Err(error)),
                _ => self.finish_with(id, error),
            };
        }
        if !self.compaction_session(id) {
            return;
        }
        loop {
            if !self.moves_go(id) {
                return;
            }
            let error = self.vhdx.as_mut().and_then(|vhdx| vhdx.moves.error.take());
            if let Some(error) = error {
                return self.compaction_ends(id, Err(error));
            }
            match self.compaction_goes(id) {
                Ok(Next::On) => {}
                Ok(Next::Wait) => return self.requests.block(id),
                Err(Run::Failed(error)) => return self.compaction_ends(id, Err(error)),
                Ok(Next::Blocked) | Err(_) => return,
            }
            if self.requests.get(id).is_none() {
                return;
            }
        }
    }

    /// Take the request on: a compaction that is not under way begins, one that is goes on.
    fn compaction_begin(&mut self, id: RequestId, defragment: bool, budget: u64) -> Result<()> {
        let read_only = self.map.read_only();
        let Some(vhdx) = &mut self.vhdx else {
            return Err(Error::invalid("a raw image has nothing to compact"));
        };
        if read_only {
            return Err(Error::invalid("the disk is open read-only"));
        }
        if vhdx.layout.mark.is_some() {
            let what =
                "the disk is being moved or has been handed over; compact it where it is owned";
            return Err(Error::new(ErrorKind::NotOwned, what));
        }
        match vhdx.compacting {
            Some(mine) if mine == id => return Ok(()),
            Some(_) => return Err(Error::invalid("the disk is being compacted already")),
            None => vhdx.compacting = Some(id),
        }
        let entries = vhdx.layout.geometry.bat_entries();
        let fits = |compaction: &Compaction| compaction.defragment == defragment;
        if !vhdx.compaction.as_deref().is_some_and(fits) {
            vhdx.moves.moved = 0;
            vhdx.moves.dropped = 0;
            vhdx.compaction = Some(Box::new(Compaction::new(defragment, entries)));
            self.pass_begins(Pass::Zeros);
        }
        if let Some(compaction) = self.compaction() {
            compaction.counts.budget = budget.max(1);
            compaction.counts.opened = false;
        }
        Ok(())
    }

    /// Whether a session is open. One that somebody else has closed meanwhile is not opened again.
    fn compaction_session(&mut self, id: RequestId) -> bool {
        let closing = self.fence.holds(id);
        let Some(vhdx) = &mut self.vhdx else {
            return false;
        };
        let open = vhdx.in_session();
        let Some(compaction) = vhdx.compaction.as_deref_mut() else {
            return false;
        };
        if !open && !closing && compaction.counts.opened {
            self.compaction_ends(id, Ok(false));
            return false;
        }
        match self.session_open(id) {
            Ok(()) => {
                if let Some(compaction) = self.compaction() {
                    compaction.counts.opened = true;
                }
                true
            }
            Err(Run::Failed(error)) => {
                self.compaction_ends(id, Err(error));
                false
            }
            Err(_) => false,
        }
    }

    /// The request ends, and with an error or when all is done so does the compaction.
    fn compaction_ends(&mut self, id: RequestId, result: Result<bool>) {
        if self.moving() {
            // What is under way must end first; then the error comes again.
            if let (Some(vhdx), Err(error)) = (&mut self.vhdx, result) {
                vhdx.moves.error = Some(error);
            }
            return self.requests.block(id);
        }
        let Some(vhdx) = &mut self.vhdx else { return };
        vhdx.compacting = None;
        let done = *result.as_ref().unwrap_or(&true);
        let answer = vhdx.compacted(done);
        if done {
            vhdx.compaction = None;
        }
        if let Err(error) = result {
            self.finish_with(id, error);
        } else {
            if let Some(active) = self.requests.get_mut(id) {
                active.answer = Some(Done::Compacted(answer));
            }
            self.requests.finish(id);
            self.fence_release(id);
        }
        self.wake = true;
    }

    fn pass_begins(&mut self, pass: Pass) {
        let round = self.flusher.begun + 1;
        let Some(vhdx) = &mut self.vhdx else { return };
        let entries = vhdx.layout.geometry.bat_entries();
        let moved = vhdx.moves.moved;
        let order = Order::new(vhdx.fixed_places(), vhdx.layout.block_size);
        let Some(compaction) = &mut vhdx.compaction else {
            return;
        };
        compaction.pass = pass;
        compaction.stage = Stage::Settle(round);
        compaction.walk = Walk::new(entries);
        compaction.order = order;
        compaction.more = false;
        compaction.passes += u32::from(pass == Pass::Down);
        compaction.counts.moved_before = moved;
        self.flusher.wanted = true;
        self.wake = true;
    }

    fn compaction_goes(&mut self, id: RequestId) -> Result<Next, Run> {
        let ended = self.flusher.ended;
        let busy = self.moving() || self.gathering();
        let Some(vhdx) = &mut self.vhdx else {
            return Ok(Next::Wait);
        };
        let Some(compaction) = vhdx.compaction.as_deref_mut() else {
            return Ok(Next::Wait);
        };
        match vhdx.space.taken.blocks {
            Blocks::Known => {}
            Blocks::Unknown | Blocks::Surveyed => return Ok(Next::Wait),
            Blocks::Lost => {
                let what = "the table of blocks could not be read; check the image";
                return Err(Run::Failed(Error::new(ErrorKind::Failed, what)));
            }
        }
        if compaction.spent() && !busy {
            self.compaction_ends(id, Ok(false));
            return Ok(Next::Blocked);
        }
        match compaction.stage {
            Stage::Settle(round) if ended < round => {
                self.flusher.wanted = true;
                self.flush_kick();
                Ok(Next::Wait)
            }
            Stage::Settle(_) => {
                compaction.stage = Stage::Apply(vhdx.log.newest());
                Ok(Next::On)
            }
            Stage::Apply(sequence) if !vhdx.log.applied(sequence) => {
                vhdx.log.forget_written();
                self.checkpoint_begin();
                Ok(Next::Wait)
            }
            Stage::Apply(_) if compaction.pass == Pass::Close => Ok(self.compaction_closes(id)),
            Stage::Apply(_) => {
                compaction.stage = Stage::Work;
                Ok(Next::On)
            }
            Stage::Work => self.compaction_works(id),
            Stage::Reclaim(round) if vhdx.space.reclaims(round) => {
                self.hurry_reclaim();
                Ok(Next::Wait)
            }
            Stage::Reclaim(_) => {
                let next = self.pass_after();
                self.pass_begins(next);
                Ok(Next::On)
            }
        }
    }

    fn pass_after(&self) -> Pass {
        let Some(vhdx) = &self.vhdx else {
            return Pass::Close;
        };
        let Some(compaction) = &vhdx.compaction else {
            return Pass::Close;
        };
        let moved = vhdx.moves.moved > compaction.counts.moved_before;
        match compaction.pass {
            Pass::Zeros if compaction.defragment => Pass::Append,
            Pass::Append => Pass::Slide,
            Pass::Zeros | Pass::Slide => Pass::Down,
            Pass::Down if moved && (compaction.more || compaction.passes < MOST_PASSES) => {
                Pass::Down
            }
            Pass::Down | Pass::Close => Pass::Close,
        }
    }

    fn gathering(&self) -> bool {
        let compaction = self.vhdx.as_ref().and_then(|vhdx| vhdx.compaction.as_ref());
        compaction.is_some_and(|compaction| compaction.running.is_some())
    }

    /// Go on with the walk, or with what it has found.
    fn compaction_works(&mut self, id: RequestId) -> Result<Next, Run> {
        if !self.fence.is_open() || self.requests.any_park() {
            return Ok(Next::Wait);
        }
        let room = self.moves_under_way() < self.most_under_way();
        let Some(vhdx) = &mut self.vhdx else {
            return Ok(Next::Wait);
        };
        let Some(compaction) = vhdx.compaction.as_deref_mut() else {
            return Ok(Next::Wait);
        };
        if compaction.running.is_some() || compaction.spent() {
            return Ok(Next::Wait);
        }
        if let Some((index, entry)) = compaction.found.front().copied() {
            return if room {
                self.compaction_takes(id, index, entry)
            } else {
                Ok(Next::Wait)
            };
        }
        let stride = compaction.walk.stride();
        if let Some(kind) = stride.op(vhdx.layout.regions.bat().at) {
            compaction.running = Some(stride);
            self.ops.push(Purpose::Gather, kind);
            return Ok(Next::Wait);
        }
        if !compaction.last.is_empty() {
            let last = std::mem::take(&mut compaction.last);
            let block = |(at, index): (u64, u64)| {
                let state = FULLY_PRESENT | index >> 63;
                (index & !(1 << 63), at | state)
            };
            compaction.found = last.into_iter().rev().map(block).collect();
            return Ok(Next::On);
        }
        if self.moving() {
            return Ok(Next::Wait);
        }
        let round = self.flusher.begun + 1;
        if let Some(compaction) = self.compaction() {
            compaction.stage = Stage::Reclaim(round);
        }
        Ok(Next::On)
    }

    /// So many blocks are moved, or looked at, at once.
    fn most_under_way(&self) -> usize {
        let block = self
            .vhdx
            .as_ref()
            .map_or(MIB, |vhdx| vhdx.layout.block_size);
        (MOST_UNDER_WAY / block).max(1) as usize
    }

    /// Part of the table has been read, or was found to be a hole.
    pub(in crate::engine) fn gathered(&mut self, outcome: Outcome) {
        self.wake = true;
        let Some(vhdx) = &mut self.vhdx else { return };
        let geometry = vhdx.layout.geometry;
        let Some(compaction) = vhdx.compaction.as_deref_mut() else {
            return;
        };
        let (page, data) = match (compaction.running.take(), outcome) {
            (Some(Stride::Ask { .. }), Outcome::Holes(extents)) => {
                return compaction.walk.told(&extents);
            }
            (Some(Stride::Read { page, count }), Outcome::Data(data)) => {
                compaction.walk.passed(page + count);
                (page, data)
            }
            (_, outcome) => {
                let error = match outcome {
                    Outcome::Failed(error) => error,
                    _ => std::io::ErrorKind::UnexpectedEof.into(),
                };
                let error = Error::io("the table of blocks can not be read", error);
                vhdx.moves.error = Some(error);
                return;
            }
        };
        for (page, data) in (page..).zip(data.chunks_exact(PAGE as usize)) {
            let (entries, _) = data.as_chunks::<8>();
            let in_memory = self.map.page_entries(page);
            let first = page * PAGE_ENTRIES as u64;
            for (slot, (index, raw)) in (first..).zip(entries).enumerate() {
                let entry = in_memory.map_or(u64::from_le_bytes(*raw), |entries| entries[slot]);
                let present = matches!(entry & 7, FULLY_PRESENT | PARTIALLY_PRESENT);
                if present && matches!(geometry.classify(BatIndex(index)), Slot::Payload(_)) {
                    compaction.find(index, entry);
                }
            }
        }
    }

    /// Deal with the next block that was found, if it is still where it was.
    fn compaction_takes(&mut self, id: RequestId, index: u64, found: u64) -> Result<Next, Run> {
        let entry = self.entry_or_load(id, index)?;
        let Some(compaction) = self.compaction() else {
            return Ok(Next::Wait);
        };
        let pass = compaction.pass;
        let there = entry & OFFSET_MASK == found & OFFSET_MASK
            && matches!(entry & 7, FULLY_PRESENT | PARTIALLY_PRESENT);
        let at = entry & OFFSET_MASK;
        let to = match pass {
            _ if !there => None,
            Pass::Append => Some(self.take_block_at_end(id)?.at),
            Pass::Slide | Pass::Down => {
                let space = self.vhdx.as_mut().map(|vhdx| &mut vhdx.space);
                space.and_then(|space| space.take_below(at))
            }
            Pass::Zeros | Pass::Close => None,
        };
        let block = self.vhdx.as_ref().map_or(0, |vhdx| vhdx.layout.block_size);
        let Some(compaction) = self.compaction() else {
            return Ok(Next::Wait);
        };
        compaction.found.pop_front();
        match to {
            Some(to) => {
                compaction.spend(block);
                self.move_block(index, entry, to);
            }
            None if pass == Pass::Zeros && there && entry & 7 == FULLY_PRESENT => {
                compaction.spend(LOOK);
                self.look_at_block(index, entry);
            }
            // No place lies before the last block: nor before any other.
            None if pass == Pass::Down && there => compaction.found.clear(),
            None => {}
        }
        Ok(Next::On)
    }

    /// Have what was freed become free soon.
    fn hurry_reclaim(&mut self) {
        let freed = self
            .vhdx
            .as_ref()
            .is_some_and(|vhdx| vhdx.space.has_freed());
        self.flusher.wanted |= freed;
        self.flush_kick();
        self.reclaim();
    }

    /// Alone on the disk: park it, so that the file is cut.
    fn compaction_closes(&mut self, id: RequestId) -> Next {
        if !self.fence.holds(id) {
            self.fence_want(id);
            return Next::Blocked;
        }
        let Some(vhdx) = &self.vhdx else {
            return Next::Wait;
        };
        if vhdx.space.reclaims(u64::MAX) {
            self.hurry_reclaim();
            return Next::Wait;
        }
        let mark = vhdx.layout.mark;
        self.park(id, mark);
        Next::Blocked
    }

    /// The image has been parked for `request`; whether that is a compaction, which goes on.
    pub(in crate::engine) fn compaction_parked(&mut self, request: RequestId) -> bool {
        let Some(vhdx) = &mut self.vhdx else {
            return false;
        };
        if vhdx.compacting != Some(request) {
            return false;
        }
        if vhdx.log_may_move() {
            // It lies lower when the next session opens, and what it leaves is cut off after that.
            vhdx.lower_log();
            self.requests.block(request);
            self.wake = true;
        } else {
            self.compaction_ends(request, Ok(true));
        }
        true
    }
}
