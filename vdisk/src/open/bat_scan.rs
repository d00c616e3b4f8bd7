//! One pass over the block allocation table: every entry judged, every block's space claimed.

use crate::error::Result;
use crate::format::bat::{ENTRY_BYTES, Slot};
use crate::format::{BatEntry, BlockState, Finding, Geometry, PAGE_BYTES, Region, Severity};
use crate::space::SpaceMap;
use crate::units::{BatIndex, BlockIndex, MIB};

use super::view::View;
use super::{BlockCounts, Judge};

const PIECE: u64 = MIB;
const LOST: &str = "the data of that block is lost or belongs to another block";

/// What a pass needs and what it brings.
pub(super) struct BatScan<'a> {
    pub(super) geometry: Geometry,
    pub(super) bat: Region,
    pub(super) file_len: u64,
    pub(super) used: &'a mut SpaceMap,
    pub(super) judge: &'a mut dyn Judge,
    pub(super) counts: BlockCounts,
    /// A partially present block whose chunk's bitmap has not come yet: chunk, file offset.
    partial: Option<(u64, u64)>,
    stray_bitmaps: u64,
}

impl<'a> BatScan<'a> {
    pub(super) fn new(
        geometry: Geometry,
        (bat, file_len): (Region, u64),
        used: &'a mut SpaceMap,
        judge: &'a mut dyn Judge,
    ) -> Self {
        Self {
            geometry,
            bat,
            file_len,
            used,
            judge,
            counts: BlockCounts::default(),
            partial: None,
            stray_bitmaps: 0,
        }
    }

    /// Goes over the whole table, skipping holes: entries there are zero, "not present".
    pub(super) fn run(mut self, view: &mut View<'_>) -> Result<BlockCounts> {
        let start = self.bat.at.0;
        let end = start + self.geometry.bat_len();
        let mut buffer = vec![0; PIECE as usize];
        let mut at = start;
        while let Some(data) = view.next_data(at, "BAT")?.filter(|data| *data < end) {
            at = data / PAGE_BYTES * PAGE_BYTES;
            let len = (end - at).min(PIECE);
            let Some(piece) = buffer.get_mut(..len as usize) else {
                break;
            };
            view.read_into(at, piece, "BAT")?;
            let (entries, _) = piece.as_chunks::<{ ENTRY_BYTES as usize }>();
            let first = (at - start) / ENTRY_BYTES;
            for (index, entry) in (first..).zip(entries) {
                let entry = u64::from_le_bytes(*entry);
                if entry != 0 {
                    self.entry(BatIndex(index), entry)?;
                }
            }
            at += len;
        }
        self.bitmap_is_missing(u64::MAX)?;
        if self.stray_bitmaps != 0 {
            let message = format!(
                "{} bitmap entries are set although the disk has no parent",
                self.stray_bitmaps
            );
            self.judge.found(
                Finding::warning("BAT", message, "they are ignored; old programs leave them")
                    .at(start),
            )?;
        }
        let present = self.counts.without_not_present();
        self.counts.not_present = self.geometry.payload_blocks().saturating_sub(present);
        Ok(self.counts)
    }

    fn fault(&mut self, index: BatIndex, message: String) -> Result<()> {
        let at = self.bat.at.0 + index.0 * ENTRY_BYTES;
        self.counts.faulty += 1;
        self.judge
            .found(Finding::new(Severity::Error, "BAT", message, LOST).at(at))
    }

    fn entry(&mut self, index: BatIndex, entry: u64) -> Result<()> {
        match self.geometry.classify(index) {
            Slot::Unused => Ok(()),
            Slot::Bitmap(_) if !self.geometry.differencing() => {
                self.stray_bitmaps += 1;
                Ok(())
            }
            Slot::Bitmap(chunk) => self.bitmap(index, chunk, entry),
            Slot::Payload(block) => {
                let what = Slot::Payload(block);
                match BatEntry::decode(entry) {
                    Ok(entry) => self.payload(index, block, entry),
                    Err(error) => self.fault(index, format!("{}: {error}", name(what))),
                }
            }
        }
    }

    fn payload(&mut self, index: BatIndex, block: BlockIndex, entry: BatEntry) -> Result<()> {
        let count = match entry.state {
            BlockState::NotPresent => return Ok(()),
            BlockState::Undefined => &mut self.counts.undefined,
            BlockState::Zero => &mut self.counts.zero,
            BlockState::Unmapped => &mut self.counts.unmapped,
            BlockState::FullyPresent => &mut self.counts.fully_present,
            BlockState::PartiallyPresent => &mut self.counts.partially_present,
        };
        *count += 1;
        if entry.state == BlockState::PartiallyPresent {
            if !self.geometry.differencing() {
                let message = format!(
                    "block {} is partially present and the disk has no parent",
                    block.0
                );
                return self.fault(index, message);
            }
            let chunk = index.0 / (self.geometry.chunk_ratio() + 1);
            self.bitmap_is_missing(chunk)?;
            self.partial = Some((chunk, self.bat.at.0 + index.0 * ENTRY_BYTES));
        }
        let may_be_cut = block.0 + 1 == self.geometry.payload_blocks();
        match entry.space() {
            Some(at) => {
                let size = u64::from(self.geometry.block_size());
                let needed = if may_be_cut { 1 } else { size };
                self.claim(index, Slot::Payload(block), (at.0, size, needed))
            }
            None => Ok(()),
        }
    }

    fn bitmap(&mut self, index: BatIndex, chunk: u64, entry: u64) -> Result<()> {
        let what = Slot::Bitmap(chunk);
        match BatEntry::decode(entry) {
            Ok(entry) if entry.state == BlockState::FullyPresent => {
                if self.partial.is_some_and(|(waiting, _)| waiting == chunk) {
                    self.partial = None;
                }
                self.claim(index, what, (entry.offset.0, MIB, MIB))
            }
            Ok(entry) if entry.state == BlockState::NotPresent => Ok(()),
            Ok(entry) => self.fault(
                index,
                format!("{} has the state {:?}", name(what), entry.state),
            ),
            Err(error) => self.fault(index, format!("{}: {error}", name(what))),
        }
    }

    /// The pass has come to `chunk`: an earlier one with a partially present block is over.
    fn bitmap_is_missing(&mut self, chunk: u64) -> Result<()> {
        let over = self.partial.take_if(|(waiting, _)| *waiting < chunk);
        let Some((waiting, at)) = over else {
            return Ok(());
        };
        let message = format!("chunk {waiting} has a partially present block and no bitmap");
        self.counts.faulty += 1;
        self.judge
            .found(Finding::new(Severity::Error, "BAT", message, LOST).at(at))
    }

    /// Takes the space at byte `at`: `size` bytes, of which the file must hold `needed`.
    fn claim(&mut self, index: BatIndex, what: Slot, place: (u64, u64, u64)) -> Result<()> {
        let (at, size, needed) = place;
        if at.checked_add(needed).is_none_or(|end| end > self.file_len) {
            let message = format!(
                "{} lies at {at:#x}, beyond the end of the file ({:#x} bytes)",
                name(what),
                self.file_len
            );
            return self.fault(index, message);
        }
        match self.used.claim(at / MIB, size / MIB) {
            Ok(()) => Ok(()),
            Err(taken) => {
                let message = format!(
                    "{} at {at:#x} overlaps what is already at {:#x}",
                    name(what),
                    taken * MIB
                );
                self.fault(index, message)
            }
        }
    }
}

/// What an entry is for, in words.
fn name(slot: Slot) -> String {
    match slot {
        Slot::Payload(block) => format!("block {}", block.0),
        Slot::Bitmap(chunk) => format!("the bitmap of chunk {chunk}"),
        Slot::Unused => "a spare entry".to_owned(),
    }
}
