//! What each kind of request does to a block of a differencing disk (MS-VHDX 2.5.1.1).
//!
//! | state | reads as | a write |
//! |---|---|---|
//! | 0 not present | the parent | takes space; partially present, no sector its own yet |
//! | 1, 2, 3 | zeros | takes space that reads as zero; fully present |
//! | 6 fully present | its own | in place, also without the engine |
//! | 7 partially present | its own where the bitmap says so, else the parent | in place, then the bits |
//!
//! What a guest discards never returns to the parent: that would bring back what it had overwritten.
//! A sector that is written in part is first copied up whole, with everyone else shut out.

use crate::engine::ops::Purpose;
use crate::engine::step::Run;
use crate::engine::{Engine, FileOpKind, Outcome, Request, RequestId};
use crate::error::Error;
use crate::units::{FileOffset, GuestOffset, MIB};

use super::bitmaps::{PAGE_BITS, Sectors};
use super::blocks::{FULLY_PRESENT, OFFSET_MASK, UNMAPPED, ZERO};
use super::{PAGE, Vhdx};

pub(super) const NOT_PRESENT: u64 = 0;
pub(super) const PARTIALLY_PRESENT: u64 = 7;

impl Vhdx {
    /// The sectors that `len` bytes at `offset` touch, as far as one page tells about them.
    ///
    /// `bitmap` is where the chunk's bitmap lies; the bytes are inside one block.
    pub(super) fn sectors(
        &self,
        bitmap: u64,
        (offset, len): (u64, u64),
        block: (u64, u64),
    ) -> Sectors {
        let sector = u64::from(self.layout.geometry.sector());
        let in_chunk = offset / sector % (MIB * 8);
        let first = in_chunk % PAGE_BITS;
        let last = (offset + len - 1) / sector - offset / sector + first;
        Sectors {
            index: block.0,
            entry: block.1,
            page: bitmap + in_chunk / PAGE_BITS * PAGE,
            first: first as u32,
            count: (last.min(PAGE_BITS - 1) - first + 1) as u32,
        }
    }
}

impl Engine {
    /// The longest run of `len` bytes at `offset` inside one block, made ready for `request`.
    pub(super) fn run_in_child(
        &mut self,
        id: RequestId,
        request: &Request,
        (offset, len): (u64, u64),
        (index, entry): (u64, u64),
    ) -> Run {
        let Some(vhdx) = &self.vhdx else {
            return Run::Blocked;
        };
        let state = entry & 7;
        let within = offset % vhdx.layout.block_size;
        let whole = vhdx.is_whole_block(offset, len);
        let in_file = |entry: u64| Run::File {
            at: FileOffset((entry & OFFSET_MASK) + within),
            len,
            sets: None,
        };
        let (unmap, discard) = match request {
            Request::WriteZeroes { unmap, .. } => (*unmap, false),
            Request::Discard { .. } => (true, true),
            _ => (false, false),
        };
        let writes = matches!(request, Request::Write { .. } | Request::WriteZeroes { .. });
        match state {
            ZERO | UNMAPPED | 1 if writes && !unmap => match self.allocate(id, index) {
                Ok(entry) => in_file(entry),
                Err(run) => run,
            },
            ZERO | UNMAPPED | 1 => Run::Zero { len },
            _ if unmap && whole => self.drop_block(id, (index, entry), discard, len),
            FULLY_PRESENT => in_file(entry),
            NOT_PRESENT if writes => match self.begin_partial(id, offset, index) {
                Ok(entry) => self.write_partial(id, (offset, len), (index, entry)),
                Err(run) => run,
            },
            NOT_PRESENT => Run::Parent { len },
            PARTIALLY_PRESENT if writes => self.write_partial(id, (offset, len), (index, entry)),
            PARTIALLY_PRESENT => self.read_partial(id, (offset, len), (index, entry)),
            // Refused when the page was read.
            _ => Run::Failed(Error::corrupt(format!("BAT entry {index} is {entry:#x}"))),
        }
    }

    /// Make a whole block read as zero by its entry alone.
    fn drop_block(
        &mut self,
        id: RequestId,
        (index, entry): (u64, u64),
        discard: bool,
        len: u64,
    ) -> Run {
        if let Err(run) = self.ready_to_change(id, index) {
            return run;
        }
        self.change_entry(index, if discard { UNMAPPED } else { ZERO });
        if entry & OFFSET_MASK != 0 && entry & 7 != NOT_PRESENT {
            self.free_space(entry & OFFSET_MASK);
        }
        Run::Zero { len }
    }

    /// Where the bitmap of the chunk at `offset` lies, if it has one.
    fn bitmap_of(&mut self, id: RequestId, offset: u64) -> Result<(u64, Option<u64>), Run> {
        let Some(vhdx) = &self.vhdx else {
            return Err(Run::Blocked);
        };
        let geometry = &vhdx.layout.geometry;
        let chunk = offset / (u64::from(geometry.sector()) * MIB * 8);
        let index = geometry.bitmap_index(chunk).0;
        let entry = self.entry_or_load(id, index)?;
        let present = entry & 7 == FULLY_PRESENT;
        Ok((index, present.then_some(entry & OFFSET_MASK)))
    }

    /// The bitmap of the chunk at `offset`, which has a partially present block.
    pub(super) fn bitmap_there(&mut self, id: RequestId, offset: u64) -> Result<u64, Run> {
        let (index, bitmap) = self.bitmap_of(id, offset)?;
        bitmap.ok_or_else(|| {
            Run::Failed(Error::corrupt(format!(
                "a block at {offset:#x} is partially present and BAT entry {index} has no bitmap"
            )))
        })
    }

    /// Give the absent block of entry `index` space of which no sector is its own; its new entry.
    pub(super) fn begin_partial(
        &mut self,
        id: RequestId,
        offset: u64,
        index: u64,
    ) -> Result<u64, Run> {
        let bitmap = match self.bitmap_of(id, offset)? {
            (_, Some(bitmap)) => bitmap,
            (index, None) => {
                self.ready_to_change(id, index)?;
                let at = self.take_space(id, MIB)?.at;
                self.change_entry(index, at | FULLY_PRESENT);
                at
            }
        };
        // A crash may have left bits of a block whose entry did not become durable.
        let Some(vhdx) = &self.vhdx else {
            return Err(Run::Blocked);
        };
        let (block, geometry) = (vhdx.layout.block_size, vhdx.layout.geometry);
        let start = offset / block * block;
        let step = block.min(PAGE_BITS * u64::from(geometry.sector()));
        for at in (start..start + block).step_by(step as usize) {
            let Some(vhdx) = &self.vhdx else {
                return Err(Run::Blocked);
            };
            let sectors = vhdx.sectors(bitmap, (at, step), (index, 0));
            self.bits_or_load(id, sectors.page)?;
            self.ready_to_mark(id, bitmap, sectors.page)?;
            self.change_bits(sectors, false);
        }
        self.ready_to_change(id, index)?;
        let entry = self.take_block(id)?.at | PARTIALLY_PRESENT;
        self.change_entry(index, entry);
        Ok(entry)
    }

    /// The run of sectors at `offset` that are alike.
    pub(super) fn read_partial(
        &mut self,
        id: RequestId,
        (offset, len): (u64, u64),
        (index, entry): (u64, u64),
    ) -> Run {
        let (sectors, sector) = match self.sectors_ready(id, (offset, len), (index, entry)) {
            Ok(ready) => ready,
            Err(run) => return run,
        };
        let Some(vhdx) = &mut self.vhdx else {
            return Run::Blocked;
        };
        let (run, own) = vhdx.bitmaps.run(sectors.page, sectors.first, sectors.count);
        let len = (u64::from(run) * sector - offset % sector).min(len);
        if own {
            let at = FileOffset((entry & OFFSET_MASK) + offset % vhdx.layout.block_size);
            let sets = None;
            Run::File { at, len, sets }
        } else {
            Run::Parent { len }
        }
    }

    /// The sectors of a run whose bits are in memory, and the size of one.
    fn sectors_ready(
        &mut self,
        id: RequestId,
        range: (u64, u64),
        block: (u64, u64),
    ) -> Result<(Sectors, u64), Run> {
        let bitmap = self.bitmap_there(id, range.0)?;
        let Some(vhdx) = &self.vhdx else {
            return Err(Run::Blocked);
        };
        let sector = u64::from(vhdx.layout.geometry.sector());
        let sectors = vhdx.sectors(bitmap, range, block);
        self.bits_or_load(id, sectors.page)?;
        Ok((sectors, sector))
    }

    /// A run of sectors to be written, which are the block's own afterwards.
    fn write_partial(
        &mut self,
        id: RequestId,
        (offset, len): (u64, u64),
        block: (u64, u64),
    ) -> Run {
        match self.ready_to_write(id, (offset, len), block) {
            Ok((sectors, len)) => {
                let Some(vhdx) = &self.vhdx else {
                    return Run::Blocked;
                };
                let at = (block.1 & OFFSET_MASK) + offset % vhdx.layout.block_size;
                Run::File {
                    at: FileOffset(at),
                    len,
                    sets: Some(sectors),
                }
            }
            Err(run) => run,
        }
    }

    fn ready_to_write(
        &mut self,
        id: RequestId,
        (offset, len): (u64, u64),
        block: (u64, u64),
    ) -> Result<(Sectors, u64), Run> {
        let bitmap = self.bitmap_there(id, offset)?;
        let (sectors, sector) = self.sectors_ready(id, (offset, len), block)?;
        self.ready_to_mark(id, bitmap, sectors.page)?;
        let len = (u64::from(sectors.count) * sector - offset % sector).min(len);
        for edge in [offset, offset + len] {
            if !edge.is_multiple_of(sector) {
                self.copied_up_already(id, edge / sector * sector, block, bitmap)?;
            }
        }
        Ok((sectors, len))
    }

    /// Whether the sector at `offset` is the block's own; else it is copied up first.
    fn copied_up_already(
        &mut self,
        id: RequestId,
        offset: u64,
        block: (u64, u64),
        bitmap: u64,
    ) -> Result<(), Run> {
        let Some(vhdx) = &mut self.vhdx else {
            return Err(Run::Blocked);
        };
        let sector = u64::from(vhdx.layout.geometry.sector());
        let sectors = vhdx.sectors(bitmap, (offset, sector), block);
        if vhdx.bitmaps.run(sectors.page, sectors.first, 1).1 {
            return Ok(());
        }
        if !self.fence.holds(id) {
            self.fence_want(id);
            return Err(Run::Blocked);
        }
        let at = (block.1 & OFFSET_MASK) + offset % vhdx.layout.block_size;
        self.count_op(id);
        self.pin_bits(sectors);
        let kind = FileOpKind::CopyUp {
            offset: GuestOffset(offset),
            at: FileOffset(at),
            len: sector,
        };
        let purpose = Purpose::CopyUp {
            request: id,
            sets: sectors,
        };
        self.ops.push(purpose, kind);
        Err(Run::Blocked)
    }

    /// A sector is there, or could not be brought: the request that waits for it goes on, or fails.
    pub(in crate::engine) fn copied_up(
        &mut self,
        id: RequestId,
        sectors: Sectors,
        outcome: Outcome,
    ) {
        self.sectors_written(sectors, &outcome);
        if let Outcome::Failed(error) = outcome {
            self.copy_up_failed(id, error);
            return;
        }
        if let Some(active) = self.requests.get_mut(id) {
            active.outstanding -= 1;
        }
        self.step(id);
    }
}
