//! Resizing a VHDX disk: entries of the table, the table itself, the item that says the size.
//!
//! ```text
//!   shrink   no data beyond? | session | disk smaller for workers | entries dropped
//!   grow     session | zeros behind the old end | entries made zero  (the table fits)
//!                                               | larger table copied (it does not)
//!   both     one entry of the log: the size, and both region tables if the table moved
//! ```
//!
//! Entries beyond the end of a disk may be anything: whoever made the image may have left them. So
//! they are made zero before the disk grows over them. A table that moves is copied while nothing
//! refers to the copy, and its old space is used again only in the next session: programs that replay
//! more of the log than its tail says would write old pages there.
//!
//! What differs where there is a parent is in [`super::resize_child`].

use std::ops::Range;

use bytes::Bytes;

use super::resize_child::{Below, first_beyond};
use super::{PAGE, Vhdx};
use crate::engine::resize::{Next, Stage};
use crate::engine::{Engine, Extent, FileOpKind, Outcome, PAGE_ENTRIES, RequestId};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::Slot;
use crate::format::{BatEntry, Geometry, Region, region};
use crate::units::{BatIndex, BlockIndex, FileOffset, MAX_VIRTUAL_SIZE, MIB};

/// Pages of the table copied at once.
const COPIED: u64 = MIB / PAGE;

const FULLY_PRESENT: u64 = 6;
const OFFSET_MASK: u64 = !0xF_FFFF;

/// What a resize knows of the table, and where the table goes.
#[derive(Debug, Default)]
pub(in crate::engine) struct Table {
    /// So many pages are gone through.
    pages: u64,
    /// Of so many the file system has told whether they hold anything.
    known: u64,
    /// Those that do.
    data: Vec<Range<u64>>,
    /// It is being asked, from this page on.
    asked: Option<u64>,
    /// The walk ends before this index.
    end: u64,
    /// Whether the table has to move before the disk can grow.
    moves: bool,
    /// Where it moves.
    region: Option<Region>,
    /// What is known of the parent.
    pub(super) below: Below,
    /// Entries of sector bitmaps that no block needs once the disk is smaller.
    pub(super) bitmaps: Vec<u64>,
}

impl Table {
    /// What follows goes through `pages` pages of which nothing is known.
    fn begin(&mut self, pages: u64) {
        (self.pages, self.known) = (pages, 0);
        self.data.clear();
    }

    /// Whether the table has to move before entries beyond it can be made.
    pub(super) fn is_to_move(&self) -> bool {
        self.moves
    }

    /// The walk ends before this index.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The pages that hold anything, from `page` on, as far as known.
    fn data_from(&self, page: u64) -> Option<Range<u64>> {
        let next = self.data.partition_point(|range| range.end <= page);
        let range = self.data.get(next)?;
        Some(range.start.max(page)..range.end)
    }

    /// The file system or the parent has told of `extents`; false if neither was asked about what is
    /// remembered here.
    pub(in crate::engine) fn learn(&mut self, extents: &[Extent]) -> bool {
        if self.below.learn(extents) {
            return true;
        }
        let Some(first) = self.asked.take() else {
            return false;
        };
        let mut at = first * PAGE;
        for extent in extents {
            let end = at + extent.len;
            let from = (at / PAGE).max(self.data.last().map_or(0, |range| range.end));
            if !extent.zero && from < end.div_ceil(PAGE) {
                self.data.push(from..end.div_ceil(PAGE));
            }
            at = end;
        }
        self.known = if at >= self.pages * PAGE {
            self.pages
        } else {
            at / PAGE
        };
        if self.known <= first {
            // Told of less than a page: it may hold anything.
            self.known = first + 1;
            if self
                .data_from(first)
                .is_none_or(|range| range.start > first)
            {
                self.data.push(first..first + 1);
            }
        }
        true
    }
}

fn pages_of(entries: u64) -> u64 {
    entries.div_ceil(PAGE_ENTRIES as u64)
}

/// Length of a new region for a table of `geometry`: twice what it needs, since room is only a hole.
fn region_len(geometry: &Geometry) -> u64 {
    let most = geometry.largest().bat_len().next_multiple_of(MIB);
    (2 * geometry.bat_len()).next_multiple_of(MIB).min(most)
}

impl Vhdx {
    /// The geometry before, and that of the new size.
    pub(super) fn geometries(&self, size: u64) -> Result<(Geometry, Geometry)> {
        let before = self.layout.geometry;
        Ok((before, before.with_size(size)?))
    }

    /// Both region tables with the BAT at `bat`.
    fn region_pages(&self, bat: Region) -> Vec<(FileOffset, Bytes)> {
        let table = Bytes::from(self.layout.regions.with_bat(bat).encode());
        let page = PAGE as usize;
        [region::COPY_ONE, region::COPY_TWO]
            .into_iter()
            .flat_map(|copy| (0..table.len() / page).map(move |number| (copy, number)))
            .map(|(copy, number)| {
                let at = FileOffset(copy.0 + (number * page) as u64);
                (at, table.slice(number * page..(number + 1) * page))
            })
            .collect()
    }
}

impl Engine {
    /// Whether the disk can have `size` bytes at all.
    pub(in crate::engine) fn check_vhdx_size(&self, size: u64) -> Result<()> {
        let Some(vhdx) = &self.vhdx else {
            return Ok(());
        };
        let sector = u64::from(vhdx.layout.geometry.sector());
        if size > MAX_VIRTUAL_SIZE {
            return Err(Error::invalid(format!(
                "a VHDX disk has at most 64 TiB ({MAX_VIRTUAL_SIZE} bytes), not {size} bytes"
            )));
        }
        if !size.is_multiple_of(sector) {
            return Err(Error::invalid(format!(
                "a disk consists of whole sectors of {sector} bytes: {size} bytes are not, {} would be",
                size.next_multiple_of(sector)
            )));
        }
        if vhdx.layout.mark.is_some() {
            return Err(Error::new(
                ErrorKind::NotOwned,
                "the disk is being moved or has been handed over; resize it where it is owned",
            ));
        }
        Ok(())
    }

    /// One step of a resize.
    pub(in crate::engine) fn resize_vhdx(&mut self, id: RequestId) -> Next {
        let Some(resizing) = &self.resizing else {
            return Next::Done;
        };
        let (stage, round) = (resizing.stage, resizing.round);
        match stage {
            Stage::Settle => self.resize_settle(),
            Stage::Examine(at) => self.resize_examine(id, at).unwrap_or_else(|next| next),
            Stage::Open => match self.session_open(id) {
                Ok(()) if !self.track_shrunk(self.resize_size()) => Next::Wait,
                Ok(()) => self.resize_opened(),
                Err(run) => run.into(),
            },
            Stage::Tail => self.resize_tail(id).unwrap_or_else(|next| next),
            Stage::Marks(at) => self.resize_marks(id, at).unwrap_or_else(|next| next),
            Stage::Walk(index) => self.resize_walk(id, index).unwrap_or_else(|next| next),
            Stage::Publish if self.table_in_file() => self.resize_stage(Stage::Place),
            Stage::Place | Stage::Length => self.resize_place(),
            Stage::Copy(page) => self.resize_copy(page).unwrap_or_else(|next| next),
            Stage::Commit => self.resize_commit(),
            Stage::Committed if self.flusher.ended < round => Next::Wait,
            Stage::Committed => self.resize_committed(),
            Stage::Dropped if self.entries_published() => self.resize_stage(Stage::Bitmaps),
            Stage::Publish | Stage::Dropped => Next::Wait,
            Stage::Bitmaps => self.resize_bitmaps(id).unwrap_or_else(|next| next),
            Stage::Sweep(index) => self.resize_sweep(id, index).unwrap_or_else(|next| next),
            Stage::Quiesce(_) => Next::Done,
        }
    }

    /// Whether the file holds every page of the table as it is in memory; sees to it, if not.
    ///
    /// Only then does what the file system says of the table say what is in it.
    fn table_in_file(&mut self) -> bool {
        if !self.entries_published() {
            return false;
        }
        let Some(vhdx) = &mut self.vhdx else {
            return true;
        };
        if !vhdx.log.all_applied() {
            vhdx.log.forget_written();
            self.checkpoint_begin();
            return false;
        }
        true
    }

    /// Whether the log or the file holds every entry; sees to it, if not.
    fn entries_published(&mut self) -> bool {
        let published = |vhdx: &Vhdx| vhdx.pages.all_published();
        if self.vhdx.as_deref().is_none_or(published) {
            return true;
        }
        self.flusher.wanted = true;
        self.flush_kick();
        false
    }

    fn resize_settle(&mut self) -> Next {
        if !self.table_in_file() {
            return Next::Wait;
        }
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &mut self.resizing) else {
            return Next::Done;
        };
        let (before, after) = match vhdx.geometries(resizing.size) {
            Ok(both) => both,
            Err(error) => return Next::Failed(error),
        };
        let table = &mut resizing.table;
        table.moves = after.bat_len() > vhdx.layout.regions.bat().len;
        let entries = if table.moves {
            before.bat_entries()
        } else {
            before.bat_entries().max(after.bat_entries())
        };
        table.begin(pages_of(entries));
        let (size, examine) = (resizing.size, resizing.shrinks() && !resizing.discard);
        self.resize_stage(if examine {
            Stage::Examine(size)
        } else {
            Stage::Open
        })
    }

    /// Entry `index`; `None` where the whole page is known to hold nothing.
    pub(super) fn visit(&mut self, id: RequestId, index: u64) -> Result<Option<u64>, Next> {
        if let Some(entry) = self.map.entry(index) {
            return Ok(Some(entry));
        }
        let page = index / PAGE_ENTRIES as u64;
        if self
            .table_data_from(page)?
            .is_some_and(|data| data.start == page)
        {
            return Ok(Some(self.entry_or_load(id, index)?));
        }
        Ok(None)
    }

    /// The next pages of the table that hold anything, `page` or later ones, as far as known.
    fn table_data_from(&mut self, page: u64) -> Result<Option<Range<u64>>, Next> {
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &mut self.resizing) else {
            return Err(Next::Done);
        };
        let table = &mut resizing.table;
        if page < table.known || page >= table.pages {
            return Ok(table.data_from(page));
        }
        table.asked = Some(page);
        let (at, len) = (vhdx.page_at(page), (table.pages - page) * PAGE);
        Err(self.resize_op(FileOpKind::Holes { at, len }))
    }

    /// Look for data from byte `at` of the disk on.
    fn resize_examine(&mut self, id: RequestId, at: u64) -> Result<Next, Next> {
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &mut self.resizing) else {
            return Err(Next::Done);
        };
        if let Some(Outcome::Holes(extents)) = resizing.answer.take() {
            let at = resizing.examined(at, &extents).map_err(Next::Failed)?;
            return Ok(self.resize_stage(Stage::Examine(at)));
        }
        let (block_size, before) = (vhdx.layout.block_size, resizing.before);
        if at >= before {
            return Ok(self.resize_stage(Stage::Open));
        }
        if vhdx.layout.geometry.differencing() {
            return self.resize_examine_child(id, at);
        }
        let group = vhdx.layout.geometry.chunk_ratio() + 1;
        let (block, within) = (at / block_size, at % block_size);
        let index = self.map.bat_index(block);
        let next = match self.visit(id, index)? {
            None => {
                // The first block that has its entry in the next page.
                let first = (index / PAGE_ENTRIES as u64 + 1) * PAGE_ENTRIES as u64;
                first - first / group
            }
            Some(entry) if entry & 7 == FULLY_PRESENT => {
                let len = (block_size - within).min(before - at);
                let at = FileOffset((entry & OFFSET_MASK) + within);
                return Ok(self.resize_op(FileOpKind::Holes { at, len }));
            }
            Some(_) => block + 1,
        };
        Ok(self.resize_stage(Stage::Examine(next * block_size)))
    }

    fn resize_size(&self) -> u64 {
        self.resizing.as_ref().map_or(u64::MAX, |one| one.size)
    }

    /// A session is open: from here on things change.
    fn resize_opened(&mut self) -> Next {
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &mut self.resizing) else {
            return Next::Done;
        };
        if !resizing.shrinks() {
            return self.resize_stage(Stage::Tail);
        }
        let size = resizing.size;
        let first = BlockIndex(size.div_ceil(vhdx.layout.block_size));
        resizing.table.end = vhdx.layout.geometry.bat_entries();
        let index = vhdx.layout.geometry.bat_index(first).0;
        self.map.set_size(size);
        self.map.advance();
        self.resize_stage(Stage::Walk(index))
    }

    /// Whatever its maker left behind the old end in the last block becomes zero.
    fn resize_tail(&mut self, id: RequestId) -> Result<Next, Next> {
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &self.resizing) else {
            return Err(Next::Done);
        };
        if vhdx.layout.geometry.differencing() {
            return self.resize_tail_of_child(id);
        }
        let (block_size, before) = (vhdx.layout.block_size, resizing.before);
        let within = before % block_size;
        let keep = vhdx.layout.leave_allocated;
        let entry = if within == 0 {
            None
        } else {
            self.visit(id, self.map.bat_index(before / block_size))?
        };
        self.resize_fit();
        Ok(match entry {
            Some(entry) if entry & 7 == FULLY_PRESENT => self.resize_op(FileOpKind::Zero {
                at: FileOffset((entry & OFFSET_MASK) + within),
                len: block_size - within,
                keep,
            }),
            _ => Next::On,
        })
    }

    /// Which entries are to be made: all up to the new end. Where the table moves, those behind the
    /// pages that are copied matter only if they are in memory; the new place holds nothing there.
    pub(super) fn resize_fit(&mut self) {
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &mut self.resizing) else {
            return;
        };
        let Ok((before, after)) = vhdx.geometries(resizing.size) else {
            return;
        };
        resizing.table.end = after.bat_entries();
        resizing.stage = Stage::Walk(first_beyond(&before));
    }

    /// Make entry `index` what it has to be, and go on behind it.
    fn resize_walk(&mut self, id: RequestId, index: u64) -> Result<Next, Next> {
        let (Some(vhdx), Some(resizing)) = (&self.vhdx, &self.resizing) else {
            return Err(Next::Done);
        };
        let (moves, shrinks) = (resizing.table.moves, resizing.shrinks());
        if index >= resizing.table.end {
            let next = match moves {
                true => Stage::Publish,
                false if resizing.table.bitmaps.is_empty() => Stage::Commit,
                false => Stage::Dropped,
            };
            return Ok(self.resize_stage(next));
        }
        if vhdx.layout.geometry.differencing() {
            return self.resize_walk_of_child(id, index);
        }
        let (_, after) = vhdx.geometries(resizing.size).map_err(Next::Failed)?;
        let payload = matches!(after.classify(BatIndex(index)), Slot::Payload(_));
        let allocates = vhdx.layout.leave_allocated && !shrinks && !moves;
        if allocates && payload {
            return self.resize_allocate(id, index);
        }
        let next = match self.visit(id, index)? {
            None if allocates => index + 1,
            None => (index / PAGE_ENTRIES as u64 + 1) * PAGE_ENTRIES as u64,
            Some(0) => index + 1,
            Some(entry) => {
                self.ready_to_change(id, index)?;
                self.change_entry(index, 0);
                let space = BatEntry::decode(entry).ok().and_then(BatEntry::space);
                if let (Some(at), true) = (space, shrinks && self.is_payload(index)) {
                    self.free_space(at.0);
                }
                index + 1
            }
        };
        Ok(self.resize_stage(Stage::Walk(next)))
    }

    /// Whether entry `index` is that of a block of the disk as it was.
    pub(super) fn is_payload(&self, index: u64) -> bool {
        let slot = |vhdx: &Vhdx| vhdx.layout.geometry.classify(BatIndex(index));
        let slot = self.vhdx.as_deref().map(slot);
        matches!(slot, Some(Slot::Payload(_)))
    }

    /// A new block of a fixed disk has its space from the beginning.
    fn resize_allocate(&mut self, id: RequestId, index: u64) -> Result<Next, Next> {
        let _ = self.entry_or_load(id, index)?;
        let entry = self.allocate(id, index)?;
        let len = self.vhdx.as_ref().map_or(0, |vhdx| vhdx.layout.block_size);
        self.resize_stage(Stage::Walk(index + 1));
        let at = FileOffset(entry & OFFSET_MASK);
        Ok(self.resize_op(FileOpKind::Reserve { at, len }))
    }

    /// Space for a larger table at the end of the file.
    fn resize_place(&mut self) -> Next {
        let (Some(vhdx), Some(resizing)) = (&mut self.vhdx, &mut self.resizing) else {
            return Next::Done;
        };
        let len = match vhdx.geometries(resizing.size) {
            Ok((_, after)) => region_len(&after),
            Err(error) => return Next::Failed(error),
        };
        let end = vhdx.space.end_of_used() + len;
        if resizing.stage == Stage::Length {
            vhdx.space.set_file_len(end);
        }
        if vhdx.space.growing() {
            return Next::Wait;
        }
        if vhdx.space.file_len() < end {
            resizing.stage = Stage::Length;
            return self.resize_op(FileOpKind::SetLen { len: end });
        }
        let at = FileOffset(vhdx.space.append(len));
        resizing.table.region = Some(Region { at, len });
        let pages = resizing.table.pages;
        resizing.table.begin(pages);
        self.resize_stage(Stage::Copy(0))
    }

    /// Copy the table from `page` on, but for its holes.
    fn resize_copy(&mut self, page: u64) -> Result<Next, Next> {
        let Some(resizing) = &mut self.resizing else {
            return Err(Next::Done);
        };
        let table = &mut resizing.table;
        if let (Some(Outcome::Data(data)), Some(region)) = (resizing.answer.take(), table.region) {
            let at = FileOffset(region.at.0 + page * PAGE);
            resizing.stage = Stage::Copy(page + data.len() as u64 / PAGE);
            return Ok(self.resize_op(FileOpKind::Write { at, data }));
        }
        let pages = table.pages;
        if page >= pages {
            return Ok(self.resize_stage(Stage::Commit));
        }
        let Some(data) = self.table_data_from(page)? else {
            let known = self.resizing.as_ref().map_or(pages, |r| r.table.known);
            return Ok(self.resize_stage(Stage::Copy(known)));
        };
        let count = (data.end.min(pages) - data.start).min(COPIED);
        self.resize_stage(Stage::Copy(data.start));
        let at = self
            .vhdx
            .as_ref()
            .map_or(FileOffset(0), |vhdx| vhdx.page_at(data.start));
        let len = (count * PAGE) as u32;
        Ok(self.resize_op(FileOpKind::Read { at, len }))
    }

    /// Log what makes the new size, or the new table, the one that counts.
    fn resize_commit(&mut self) -> Next {
        let (Some(vhdx), Some(resizing)) = (&mut self.vhdx, &self.resizing) else {
            return Next::Done;
        };
        if vhdx.pages.reserving() {
            // What is being reserved belongs to the table as it lies now.
            return Next::Wait;
        }
        let mut pages = Vec::new();
        if let Some(region) = resizing.table.region {
            pages = vhdx.region_pages(region);
        }
        if !vhdx.resizes_later(&resizing.table) {
            pages.extend(vhdx.layout.size_item.with_size(resizing.size).pages());
        }
        vhdx.resize_pages = pages;
        self.resize_round()
    }

    /// It is durable.
    fn resize_committed(&mut self) -> Next {
        let (Some(vhdx), Some(resizing)) = (&mut self.vhdx, &mut self.resizing) else {
            return Next::Done;
        };
        let (before, after) = match vhdx.geometries(resizing.size) {
            Ok(both) => both,
            Err(error) => return Next::Failed(error),
        };
        let later = vhdx.resizes_later(&resizing.table);
        if let Some(region) = resizing.table.region.take() {
            vhdx.space.retire(vhdx.layout.regions.bat());
            vhdx.layout.regions = vhdx.layout.regions.with_bat(region);
            vhdx.pages.moved(region.len);
            resizing.table.moves = false;
        }
        if later {
            let table = &mut resizing.table;
            table.begin(pages_of(after.bat_entries()));
            table.end = after.bat_entries();
            return self.resize_stage(Stage::Walk(first_beyond(&before)));
        }
        vhdx.layout.geometry = after;
        vhdx.layout.size_item = vhdx.layout.size_item.with_size(resizing.size);
        self.map.set_size(resizing.size);
        if after.differencing() && resizing.shrinks() {
            return self.resize_stage(Stage::Sweep(first_beyond(&after)));
        }
        Next::Done
    }

    /// The pages of a resize that the round beginning now must carry.
    pub(super) fn take_resize_pages(&mut self) -> Vec<(FileOffset, Bytes)> {
        self.vhdx
            .as_mut()
            .map_or_else(Vec::new, |vhdx| std::mem::take(&mut vhdx.resize_pages))
    }

    pub(in crate::engine) fn forget_resize_pages(&mut self) {
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.resize_pages.clear();
        }
    }
}

impl Vhdx {
    /// A fixed disk gets its new blocks when the larger table is in place, and its size after that; so
    /// does one with a parent get the entries that hide it.
    fn resizes_later(&self, table: &Table) -> bool {
        let made = self.layout.leave_allocated || self.layout.geometry.differencing();
        made && table.region.is_some()
    }
}
