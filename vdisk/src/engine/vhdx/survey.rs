//! Finding out, while the disk is in use, which space of the file its blocks take.
//!
//! An image with a long BAT is opened without reading it. When its first session opens, the table is
//! gone through once in the background, and every block's space is marked as taken. Until that is
//! done new blocks go to the end of the file, where no old one can be, and nothing freed is used
//! again: so no space changes its owner meanwhile, and two entries with the same space are a fault.
//! A table with a fault fails the disk, which takes no more changes: whatever is written next might
//! destroy another block.
//!
//! What was read may be older than memory. A page that changed since its read was asked for is taken
//! from memory, or read again.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::space::Blocks;
use super::walk::{Stride, Walk};
use super::{PAGE, Vhdx};
use crate::engine::ops::Purpose;
use crate::engine::{BlockMap, Engine, Outcome, PAGE_ENTRIES};
use crate::error::{Error, Result};
use crate::format::bat::Slot;
use crate::format::{BatEntry, BlockState};
use crate::units::{BatIndex, BlockIndex, MIB};

/// A pass over the BAT that is under way.
#[derive(Debug)]
pub(super) struct Survey {
    walk: Walk,
    /// Blocks that were there when it began lie before this byte.
    base: u64,
    /// Pages that changed since it began, and since the read that runs was asked for.
    changed: BTreeSet<u64>,
    changed_now: BTreeSet<u64>,
    /// Pages to be read once more.
    again: BTreeSet<u64>,
    running: Option<Stride>,
}

impl Survey {
    /// A page of the table has changed.
    pub(super) fn page_changed(&mut self, page: u64) {
        self.changed.insert(page);
        self.changed_now.insert(page);
    }

    fn stride(&mut self) -> Stride {
        let stride = match self.again.pop_first() {
            Some(page) => Stride::Read { page, count: 1 },
            None => self.walk.stride(),
        };
        self.changed_now.clear();
        self.running = (stride != Stride::End).then_some(stride);
        stride
    }
}

impl Vhdx {
    /// Mark the space of the entries of `page`, as the file holds it, or as memory does if it is there.
    fn survey_page(&mut self, map: &BlockMap, page: u64, data: &[u8]) -> Result<()> {
        let Some(survey) = &mut self.survey else {
            return Ok(());
        };
        let first = page * PAGE_ENTRIES as u64;
        if let Some(entries) = map.page_entries(page) {
            return (first..)
                .zip(entries)
                .try_for_each(|(index, raw)| self.survey_entry(index, raw));
        }
        if survey.changed_now.contains(&page) {
            survey.again.insert(page);
            return Ok(());
        }
        let (entries, _) = data.as_chunks::<8>();
        (first..)
            .zip(entries)
            .try_for_each(|(index, raw)| self.survey_entry(index, u64::from_le_bytes(*raw)))
    }

    fn survey_entry(&mut self, index: u64, raw: u64) -> Result<()> {
        let geometry = &self.layout.geometry;
        let slot = geometry.classify(BatIndex(index));
        let len = match slot {
            _ if raw == 0 => return Ok(()),
            Slot::Payload(_) => self.layout.block_size,
            Slot::Bitmap(_) if geometry.differencing() => MIB,
            Slot::Bitmap(_) | Slot::Unused => return Ok(()),
        };
        let wrong = |what: String| Error::corrupt(format!("BAT entry {index}: {what}"));
        self.check_entry(index, raw)?;
        let entry = BatEntry::decode(raw)?;
        let Some(at) = entry
            .space()
            .filter(|_| entry.state != BlockState::NotPresent)
        else {
            return Ok(());
        };
        let Some(survey) = &self.survey else {
            return Ok(());
        };
        let own = survey.changed.contains(&(index / PAGE_ENTRIES as u64));
        if own && at.0 >= survey.base {
            // Taken meanwhile, and marked then.
            return Ok(());
        }
        let last = slot == Slot::Payload(BlockIndex(geometry.payload_blocks() - 1));
        if at.0 < MIB || at.0 + len > survey.base.max(if last { at.0 + len } else { 0 }) {
            return Err(wrong(format!("the block at {at} goes beyond the file")));
        }
        let taken = self.space.taken.claim(at.0, len);
        taken.map_err(|taken| wrong(format!("the block at {at} overlaps what is at {taken:#x}")))
    }
}

impl Engine {
    /// A session is open: find out what is taken, if that is not known.
    pub(super) fn survey_begin(&mut self) {
        let Some(vhdx) = &mut self.vhdx else { return };
        let blocks = &mut vhdx.space.taken.blocks;
        if *blocks != Blocks::Unknown {
            return;
        }
        *blocks = Blocks::Surveyed;
        vhdx.survey = Some(Survey {
            walk: Walk::new(vhdx.layout.geometry.bat_entries()),
            base: vhdx.space.end_of_used(),
            changed: BTreeSet::new(),
            changed_now: BTreeSet::new(),
            again: BTreeSet::new(),
            running: None,
        });
        self.survey_go();
    }

    fn survey_go(&mut self) {
        let Some(vhdx) = &mut self.vhdx else { return };
        let Some(survey) = &mut vhdx.survey else {
            return;
        };
        if let Some(kind) = survey.stride().op(vhdx.layout.regions.bat().at) {
            self.ops.push(Purpose::Survey, kind);
        } else {
            vhdx.space.surveyed();
            vhdx.survey = None;
            self.wake = true;
        }
    }

    /// What is taken will not be known in this session; new blocks go to the end of the file.
    fn survey_lost(&mut self) {
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.survey = None;
            vhdx.space.taken.blocks = Blocks::Lost;
        }
        self.wake = true;
    }

    /// Part of the table has been read, or was found to be a hole.
    pub(in crate::engine) fn survey_op_ended(&mut self, outcome: Outcome) {
        let Some(vhdx) = &mut self.vhdx else { return };
        let Some(survey) = &mut vhdx.survey else {
            return;
        };
        match (survey.running.take(), outcome) {
            (Some(Stride::Ask { .. }), Outcome::Holes(extents)) => survey.walk.told(&extents),
            (Some(Stride::Read { page, count }), Outcome::Data(data)) => {
                survey.walk.passed(page + count);
                if let Err(error) = self.survey_pages(page, &data) {
                    let why = format!("{error}; check the image before it is used again");
                    self.survey_lost();
                    return self.fail_disk(&why);
                }
            }
            _ => return self.survey_lost(),
        }
        self.survey_go();
    }

    fn survey_pages(&mut self, first: u64, data: &Bytes) -> Result<()> {
        let Some(vhdx) = &mut self.vhdx else {
            return Ok(());
        };
        for (page, data) in (first..).zip(data.chunks(PAGE as usize)) {
            vhdx.survey_page(&self.map, page, data)?;
        }
        Ok(())
    }
}
