//! What each kind of request does to a block (MS-VHDX 2.5.1.1 has the states).

use crate::engine::step::Run;
use crate::engine::{Engine, Request, RequestId};
use crate::units::FileOffset;

use super::Vhdx;

pub(super) const ZERO: u64 = 2;
pub(super) const UNMAPPED: u64 = 3;
pub(super) const FULLY_PRESENT: u64 = 6;
pub(super) const OFFSET_MASK: u64 = !0xF_FFFF;

impl Vhdx {
    /// Whether `len` bytes at `offset` are all of a block, or all of the last one up to the end.
    pub(super) fn is_whole_block(&self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(self.layout.block_size)
            && (len == self.layout.block_size
                || offset + len == self.layout.geometry.virtual_size())
    }
}

impl Engine {
    /// The longest run of `len` bytes at `offset` inside one block, made ready for `request`.
    pub(in crate::engine) fn run_in_block(
        &mut self,
        id: RequestId,
        request: &Request,
        offset: u64,
        len: u64,
    ) -> Run {
        let Some(vhdx) = &self.vhdx else {
            return Run::File {
                at: FileOffset(offset),
                len,
                sets: None,
            };
        };
        let within = offset % vhdx.layout.block_size;
        let len = len.min(vhdx.layout.block_size - within);
        let index = self.map.bat_index(offset / vhdx.layout.block_size);
        if request.changes()
            && let Err(run) = self.session_open(id)
        {
            return run;
        }
        let entry = match self.entry_or_load(id, index) {
            Ok(entry) => entry,
            Err(run) => return run,
        };
        if request.changes() && self.is_moving(index) {
            self.requests.block(id);
            return Run::Blocked;
        }
        // To drop what is not there changes nothing that anyone could see.
        let changes = matches!(request, Request::Write { .. })
            || request.changes() && (self.map.shape().parent || entry & 7 == FULLY_PRESENT);
        if changes && let Err(run) = self.note_or_wait(id, request, (offset, len)) {
            return run;
        }
        if self.map.shape().parent {
            return self.run_in_child(id, request, (offset, len), (index, entry));
        }
        let present = entry & 7 == FULLY_PRESENT;
        let in_file = |entry: u64| Run::File {
            at: FileOffset((entry & OFFSET_MASK) + within),
            len,
            sets: None,
        };
        match request {
            Request::Write { .. } | Request::WriteZeroes { unmap: false, .. } if !present => {
                match self.allocate(id, index) {
                    Ok(entry) => in_file(entry),
                    Err(run) => run,
                }
            }
            Request::WriteZeroes { .. } | Request::Discard { .. } if present => {
                self.zero_block(id, request, (offset, len), (index, entry))
            }
            _ if present => in_file(entry),
            _ => Run::Zero { len },
        }
    }

    /// Give the absent block of entry `index` space; its new entry.
    pub(super) fn allocate(&mut self, id: RequestId, index: u64) -> Result<u64, Run> {
        self.ready_to_change(id, index)?;
        let place = self.take_block(id)?;
        let entry = place.at | FULLY_PRESENT;
        // Where there is a parent it shows until the data is there, and not zeros.
        if place.fresh && !self.map.shape().parent {
            self.change_entry_at_once(index, entry);
        } else {
            self.change_entry(index, entry);
        }
        Ok(entry)
    }

    /// Zero or discard part or all of a present block.
    fn zero_block(
        &mut self,
        id: RequestId,
        request: &Request,
        (offset, len): (u64, u64),
        (index, entry): (u64, u64),
    ) -> Run {
        let Some(vhdx) = &self.vhdx else {
            return Run::Blocked;
        };
        let at = FileOffset((entry & OFFSET_MASK) + offset % vhdx.layout.block_size);
        let discard = matches!(request, Request::Discard { .. });
        let unmap = discard || matches!(request, Request::WriteZeroes { unmap: true, .. });
        if vhdx.layout.leave_allocated {
            return if discard {
                Run::Zero { len }
            } else {
                Run::File {
                    at,
                    len,
                    sets: None,
                }
            };
        }
        if !unmap || !vhdx.is_whole_block(offset, len) {
            return Run::File {
                at,
                len,
                sets: None,
            };
        }
        if let Err(run) = self.ready_to_change(id, index) {
            return run;
        }
        self.change_entry(index, if discard { UNMAPPED } else { ZERO });
        self.free_space(entry & OFFSET_MASK);
        Run::Zero { len }
    }
}
