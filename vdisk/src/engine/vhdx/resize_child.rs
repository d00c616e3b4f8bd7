//! Resizing a VHDX disk that is built on another one: the parent must not shine through.
//!
//! ```text
//!   shrink   what the disk shows beyond, its own or the parent's, is looked for as data
//!            blocks of its own become zero (state 2), so that a cut never shows the parent again
//!            when the size is durable: entries beyond it become zero
//!   grow     the last block: sectors behind the old end become its own, and zero
//!            a block where the parent shows anything becomes zero, any other one not present
//! ```
//!
//! A sector bitmap of a chunk that is cut off goes in a round after that of its blocks: within a round
//! its entry is logged before theirs, so it could go while one still needs it. Its space is used again in the next session, since the log may hold
//! its pages. What a parent holds does not change, so what it says once is true until the end.

use super::Table;
use super::blocks::{FULLY_PRESENT, OFFSET_MASK, ZERO};
use super::child::{NOT_PRESENT, PARTIALLY_PRESENT};
use crate::engine::resize::{Next, Stage};
use crate::engine::step::Run;
use crate::engine::{Engine, Extent, FileOpKind, PAGE_ENTRIES, RequestId};
use crate::format::bat::Slot;
use crate::format::{BatEntry, Geometry, Region};
use crate::units::{BatIndex, BlockIndex, FileOffset, GuestOffset, MIB};

/// What the parent has said last.
#[derive(Debug, Default)]
pub(super) struct Below {
    stretch: Stretch,
    /// It is being asked, from this byte of the disk on.
    asked: Option<u64>,
}

/// Bytes of the disk that are alike in the parent.
#[derive(Clone, Copy, Debug, Default)]
struct Stretch {
    from: u64,
    to: u64,
    /// Whether they may be anything but zero.
    shows: bool,
}

impl Below {
    /// The parent has told of `extents`; false if it was not asked.
    pub(super) fn learn(&mut self, extents: &[Extent]) -> bool {
        let Some(from) = self.asked.take() else {
            return false;
        };
        let shows = extents.first().is_none_or(|extent| !extent.zero);
        let alike = extents.iter().take_while(|extent| extent.zero != shows);
        let len = alike.map(|extent| extent.len).sum::<u64>().max(1);
        self.stretch = Stretch {
            from,
            to: from + len,
            shows,
        };
        true
    }
}

/// The first entry that is of no block of the disk and of no bitmap it needs.
pub(super) fn first_beyond(geometry: &Geometry) -> u64 {
    if geometry.differencing() {
        let block = BlockIndex(geometry.payload_blocks());
        geometry.bat_index(block).0
    } else {
        geometry.bat_entries()
    }
}

impl Engine {
    /// What the parent shows at byte `at` of the disk and behind it; it is asked as far as `end`.
    fn below(&mut self, at: u64, end: u64) -> Result<Stretch, Next> {
        let Some(resizing) = &mut self.resizing else {
            return Err(Next::Done);
        };
        let below = &mut resizing.table.below;
        if (below.stretch.from..below.stretch.to).contains(&at) {
            return Ok(below.stretch);
        }
        below.asked = Some(at);
        let (offset, len) = (GuestOffset(at), end - at);
        Err(self.resize_op(FileOpKind::StatusParent { offset, len }))
    }

    /// Whether the parent shows nothing but zeros from `at` to `to`; it is asked as far as `end`.
    fn hidden(&mut self, at: u64, to: u64, end: u64) -> Result<bool, Next> {
        let run = self.below(at, end)?;
        Ok(!run.shows && run.to >= to)
    }

    /// Look for data from byte `at` of the disk on, which is before its end.
    pub(super) fn resize_examine_child(&mut self, id: RequestId, at: u64) -> Result<Next, Next> {
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &self.resizing) else {
            return Err(Next::Done);
        };
        let (geometry, before) = (vhdx.layout.geometry, resizing.before);
        let block_size = vhdx.layout.block_size;
        let (block, within) = (at / block_size, at % block_size);
        let end = ((block + 1) * block_size).min(before);
        let index = self.map.bat_index(block);
        let Some(entry) = self.visit(id, index)? else {
            // As far as the first block that has its entry in the next page.
            let first = (index / PAGE_ENTRIES as u64 + 1) * PAGE_ENTRIES as u64;
            let first = first - first / (geometry.chunk_ratio() + 1);
            return self.resize_examine_parent(at, (first * block_size).min(before));
        };
        match entry & 7 {
            NOT_PRESENT => self.resize_examine_parent(at, end),
            FULLY_PRESENT => {
                let (at, len) = (FileOffset((entry & OFFSET_MASK) + within), end - at);
                Ok(self.resize_op(FileOpKind::Holes { at, len }))
            }
            PARTIALLY_PRESENT => match self.read_partial(id, (at, end - at), (index, entry)) {
                Run::File { at, len, .. } => Ok(self.resize_op(FileOpKind::Holes { at, len })),
                Run::Parent { len } => self.resize_examine_parent(at, at + len),
                run => Err(run.into()),
            },
            _ => Ok(self.resize_stage(Stage::Examine(end))),
        }
    }

    /// The disk shows its parent from `at` to `to`.
    fn resize_examine_parent(&mut self, at: u64, to: u64) -> Result<Next, Next> {
        let before = self
            .resizing
            .as_ref()
            .map_or(to, |resizing| resizing.before);
        let run = self.below(at, before)?;
        let Some(resizing) = &self.resizing else {
            return Err(Next::Done);
        };
        let extent = Extent {
            len: to.min(run.to) - at,
            allocated: run.shows,
            zero: !run.shows,
        };
        let at = resizing.examined(at, &[extent]).map_err(Next::Failed)?;
        Ok(self.resize_stage(Stage::Examine(at)))
    }

    /// What follows the old end in the last block becomes zero, whoever it is from.
    pub(super) fn resize_tail_of_child(&mut self, id: RequestId) -> Result<Next, Next> {
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &self.resizing) else {
            return Err(Next::Done);
        };
        let (before, size) = (resizing.before, resizing.size);
        let block_size = vhdx.layout.block_size;
        let keep = vhdx.layout.leave_allocated;
        let within = before % block_size;
        if within == 0 {
            self.resize_fit();
            return Ok(Next::On);
        }
        let index = self.map.bat_index(before / block_size);
        let mut entry = self.entry_or_load(id, index)?;
        if entry & 7 == NOT_PRESENT {
            let end = (before - within + block_size).min(size);
            if self.hidden(before, end, size)? {
                self.resize_fit();
                return Ok(Next::On);
            }
            entry = self.begin_partial(id, before, index)?;
        }
        let zero = FileOpKind::Zero {
            at: FileOffset((entry & OFFSET_MASK) + within),
            len: block_size - within,
            keep,
        };
        match entry & 7 {
            PARTIALLY_PRESENT => self.resize_stage(Stage::Marks(before)),
            FULLY_PRESENT => {
                self.resize_fit();
                Next::On
            }
            _ => {
                self.resize_fit();
                return Ok(Next::On);
            }
        };
        Ok(self.resize_op(zero))
    }

    /// The last block's sectors from byte `at` of the disk on are zero in the file: they become its own.
    pub(super) fn resize_marks(&mut self, id: RequestId, at: u64) -> Result<Next, Next> {
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &self.resizing) else {
            return Err(Next::Done);
        };
        let (block_size, before) = (vhdx.layout.block_size, resizing.before);
        let block = before / block_size;
        let end = (block + 1) * block_size;
        if at >= end {
            self.resize_fit();
            return Ok(Next::On);
        }
        let index = self.map.bat_index(block);
        let entry = self.entry_or_load(id, index)?;
        let bitmap = self.bitmap_there(id, at)?;
        let Some(vhdx) = &self.vhdx else {
            return Err(Next::Done);
        };
        let sector = u64::from(vhdx.layout.geometry.sector());
        let sectors = vhdx.sectors(bitmap, (at, end - at), (index, entry));
        self.bits_or_load(id, sectors.page)?;
        self.ready_to_mark(id, bitmap, sectors.page)?;
        self.change_bits(sectors, true);
        let done = u64::from(sectors.count) * sector;
        Ok(self.resize_stage(Stage::Marks(at + done)))
    }

    /// Make entry `index`, which is before the end of the walk, what it has to be, and go on behind it.
    pub(super) fn resize_walk_of_child(&mut self, id: RequestId, index: u64) -> Result<Next, Next> {
        let Some(resizing) = &self.resizing else {
            return Err(Next::Done);
        };
        let next = if resizing.shrinks() {
            self.resize_drop(id, index)?
        } else {
            self.resize_hide(id, index)?
        };
        Ok(self.resize_stage(Stage::Walk(next)))
    }

    /// A block that is cut off gives its space back, a bitmap is noted; the index to go on with.
    fn resize_drop(&mut self, id: RequestId, index: u64) -> Result<u64, Next> {
        let Some(entry) = self.visit(id, index)? else {
            return Ok((index / PAGE_ENTRIES as u64 + 1) * PAGE_ENTRIES as u64);
        };
        if self.is_payload(index) {
            if entry & 7 == NOT_PRESENT || entry == ZERO {
                return Ok(index + 1);
            }
            self.ready_to_change(id, index)?;
            // Not absent: should the disk keep its size, it would show what had been overwritten.
            self.change_entry(index, ZERO);
            if let Some(at) = BatEntry::decode(entry).ok().and_then(BatEntry::space) {
                self.free_space(at.0);
            }
            return Ok(index + 1);
        }
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &mut self.resizing) else {
            return Err(Next::Done);
        };
        let (before, after) = vhdx.geometries(resizing.size).map_err(Next::Failed)?;
        if let Slot::Bitmap(chunk) = before.classify(BatIndex(index))
            && chunk >= after.bitmap_blocks()
            && entry & 7 == FULLY_PRESENT
        {
            resizing.table.bitmaps.push(index);
        }
        Ok(index + 1)
    }

    /// Give up bitmaps: the entries of all their blocks that were cut off are durable.
    pub(super) fn resize_bitmaps(&mut self, id: RequestId) -> Result<Next, Next> {
        let last = |table: &Table| table.bitmaps.last().copied();
        let Some(index) = self.resizing.as_ref().and_then(|r| last(&r.table)) else {
            return Ok(self.resize_stage(Stage::Commit));
        };
        let entry = self.entry_or_load(id, index)?;
        self.ready_to_change(id, index)?;
        self.change_entry(index, 0);
        let at = FileOffset(entry & OFFSET_MASK);
        if let (Some(vhdx), Some(resizing)) = (&mut self.vhdx, &mut self.resizing) {
            resizing.table.bitmaps.pop();
            vhdx.bitmaps.given_up(at);
            vhdx.space.retire(Region { at, len: MIB });
        }
        Ok(Next::On)
    }

    /// The smaller size is durable: make entry `index` zero, unless it is that of a block or bitmap.
    pub(super) fn resize_sweep(&mut self, id: RequestId, index: u64) -> Result<Next, Next> {
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &self.resizing) else {
            return Err(Next::Done);
        };
        if index >= resizing.table.end() {
            return Ok(Next::Done);
        }
        let needed = vhdx.layout.geometry.classify(BatIndex(index)) != Slot::Unused;
        let next = match self.visit(id, index)? {
            None => (index / PAGE_ENTRIES as u64 + 1) * PAGE_ENTRIES as u64,
            Some(entry) => {
                if entry != 0 && !needed {
                    self.ready_to_change(id, index)?;
                    self.change_entry(index, 0);
                }
                index + 1
            }
        };
        Ok(self.resize_stage(Stage::Sweep(next)))
    }

    /// A new block reads as zero, whatever the parent holds; the index to go on with.
    fn resize_hide(&mut self, id: RequestId, index: u64) -> Result<u64, Next> {
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &self.resizing) else {
            return Err(Next::Done);
        };
        let (size, block_size) = (resizing.size, vhdx.layout.block_size);
        let (before, after) = vhdx.geometries(size).map_err(Next::Failed)?;
        // Before the table moves, what is beyond it cannot be made.
        let made = !resizing.table.is_to_move();
        let slot = after.classify(BatIndex(index));
        let (mut value, mut until) = (0, index + 1);
        match slot {
            // It has blocks of the disk as it was.
            Slot::Bitmap(chunk) if chunk < before.bitmap_blocks() => return Ok(index + 1),
            Slot::Payload(block) if made => {
                let at = block.0 * block_size;
                let run = self.below(at, size)?;
                if run.shows || run.to < (at + block_size).min(size) {
                    value = ZERO;
                } else if run.to >= size {
                    until = u64::MAX;
                } else {
                    until = after.bat_index(BlockIndex(run.to / block_size)).0;
                }
            }
            Slot::Payload(_) => until = u64::MAX,
            Slot::Bitmap(_) | Slot::Unused => {}
        }
        let entry = if value == ZERO {
            Some(self.entry_or_load(id, index)?)
        } else {
            self.visit(id, index)?
        };
        let payload = matches!(slot, Slot::Payload(_));
        match entry {
            None => {
                let page = (index / PAGE_ENTRIES as u64 + 1) * PAGE_ENTRIES as u64;
                return Ok(page.min(until));
            }
            Some(entry) if entry == value || payload && entry == ZERO => {}
            Some(_) => {
                self.ready_to_change(id, index)?;
                self.change_entry(index, value);
            }
        }
        Ok(index + 1)
    }
}
