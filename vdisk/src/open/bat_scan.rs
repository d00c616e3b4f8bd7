//! One pass over the block allocation table: every entry judged, every block's space claimed.

use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{ENTRY_BYTES, Slot};
use crate::format::{BatEntry, BlockState, Code, Finding, Geometry, PAGE_BYTES, Region, Severity};
use crate::space::SpaceMap;
use crate::units::{BatIndex, BlockIndex, MIB};

use super::view::View;
use super::{BlockCounts, Judge};

const PIECE: u64 = MIB;
const LOST: &str = "the data of that block is lost or belongs to another block";
const SHARED: &str =
    "both would change what the other holds; which one is right only their data can tell";

/// Gives `each` every entry with an index in `entries` that is not zero, in order. Holes are skipped:
/// entries there are zero, "not present".
pub(crate) fn each_entry(
    view: &mut View<'_>,
    bat: Region,
    entries: std::ops::Range<u64>,
    mut each: impl FnMut(BatIndex, u64) -> Result<()>,
) -> Result<()> {
    let end = bat.at.0 + entries.end * ENTRY_BYTES;
    let mut buffer = Vec::new();
    let mut at = bat.at.0 + entries.start * ENTRY_BYTES;
    while let Some(data) = view.next_data(at, "BAT")?.filter(|data| *data < end) {
        at = at.max(data / PAGE_BYTES * PAGE_BYTES);
        let len = (end - at).min(PIECE);
        buffer.resize(len as usize, 0);
        view.read_into(at, &mut buffer, "BAT")?;
        let (values, _) = buffer.as_chunks::<{ ENTRY_BYTES as usize }>();
        let first = (at - bat.at.0) / ENTRY_BYTES;
        for (index, value) in (first..).zip(values) {
            let value = u64::from_le_bytes(*value);
            if value != 0 {
                each(BatIndex(index), value)?;
            }
        }
        at += len;
    }
    Ok(())
}

/// What a pass needs and what it brings.
pub(super) struct BatScan<'a> {
    geometry: Geometry,
    bat: Region,
    file_len: u64,
    used: &'a mut SpaceMap,
    judge: &'a mut dyn Judge,
    counts: BlockCounts,
    /// A partially present block whose chunk's bitmap has not come yet: chunk, file offset.
    partial: Option<(u64, u64)>,
    /// Entries of bitmaps in a disk without a parent.
    stray_bitmaps: Several,
    /// Blocks that own no space and whose entries name a place all the same.
    idle_places: Several,
    /// Of those, whether one is in the state "zero", which must not.
    zero_with_place: bool,
}

/// How many there are of something that is told about once, and where the first one is.
#[derive(Clone, Copy, Debug, Default)]
struct Several {
    count: u64,
    first: Option<u64>,
}

impl Several {
    fn add(&mut self, at: u64) {
        self.count += 1;
        self.first.get_or_insert(at);
    }
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
            stray_bitmaps: Several::default(),
            idle_places: Several::default(),
            zero_with_place: false,
        }
    }

    /// Goes over the whole table.
    pub(super) fn run(mut self, view: &mut View<'_>) -> Result<BlockCounts> {
        let entries = 0..self.geometry.bat_entries();
        each_entry(view, self.bat, entries, |index, entry| {
            self.entry(index, entry)
        })?;
        self.bitmap_is_missing(u64::MAX)?;
        self.tell_of_several()?;
        let present = self.counts.without_not_present();
        self.counts.not_present = self.geometry.payload_blocks().saturating_sub(present);
        Ok(self.counts)
    }

    /// What is told about once, however often it is there.
    fn tell_of_several(&mut self) -> Result<()> {
        if let Several {
            count,
            first: Some(at),
        } = self.stray_bitmaps
        {
            let finding = Finding::warning(
                Code::BitmapWithoutParent,
                "BAT",
                format!("{count} bitmap entries are set although the disk has no parent"),
                "they are ignored; old programs leave them",
            );
            self.judge.found(finding.at(at))?;
        }
        if let Several {
            count,
            first: Some(at),
        } = self.idle_places
        {
            let severity = if self.zero_with_place {
                Severity::Warning
            } else {
                Severity::Info
            };
            let finding = Finding::new(
                Code::EntryIdlePlace,
                severity,
                "BAT",
                format!("{count} entries of blocks that own no space name a place"),
                "it is ignored here; other programs may refuse the image",
            );
            self.judge.found(finding.at(at))?;
        }
        Ok(())
    }

    fn place_of(&self, index: BatIndex) -> u64 {
        self.bat.at.0 + index.0 * ENTRY_BYTES
    }

    fn fault(&mut self, code: Code, index: BatIndex, message: String) -> Result<()> {
        let at = self.place_of(index);
        self.counts.faulty += 1;
        let finding = Finding::new(code, Severity::Error, "BAT", message, consequence(code));
        self.judge.found(finding.at(at))
    }

    /// An entry that alone breaks a rule.
    fn broken(&mut self, index: BatIndex, slot: Slot, error: &Error) -> Result<()> {
        let code = error.code().unwrap_or(Code::EntryState);
        debug_assert_eq!(error.kind(), ErrorKind::Corrupt);
        self.fault(code, index, format!("{}: {error}", name(slot)))
    }

    fn entry(&mut self, index: BatIndex, entry: u64) -> Result<()> {
        let slot = self.geometry.classify(index);
        match slot {
            Slot::Unused => Ok(()),
            Slot::Bitmap(_) if !self.geometry.differencing() => {
                self.stray_bitmaps
                    .add(self.bat.at.0 + index.0 * ENTRY_BYTES);
                Ok(())
            }
            Slot::Bitmap(chunk) => self.bitmap(index, chunk, entry),
            Slot::Payload(block) => match BatEntry::decode(entry) {
                Ok(entry) => self.payload(index, block, entry),
                Err(error) => self.broken(index, slot, &error),
            },
        }
    }

    fn payload(&mut self, index: BatIndex, block: BlockIndex, entry: BatEntry) -> Result<()> {
        if entry.space().is_none() && entry.offset.0 != 0 && entry.state != BlockState::Undefined {
            self.idle_places.add(self.place_of(index));
            self.zero_with_place |= entry.state == BlockState::Zero;
        }
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
                return self.fault(Code::PartialWithoutParent, index, message);
            }
            let chunk = index.0 / (self.geometry.chunk_ratio() + 1);
            self.bitmap_is_missing(chunk)?;
            self.partial = Some((chunk, self.place_of(index)));
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
        let slot = Slot::Bitmap(chunk);
        match BatEntry::decode(entry) {
            Ok(entry) if entry.state == BlockState::FullyPresent => {
                if self.partial.is_some_and(|(waiting, _)| waiting == chunk) {
                    self.partial = None;
                }
                self.claim(index, slot, (entry.offset.0, MIB, MIB))
            }
            Ok(entry) if entry.state == BlockState::NotPresent => {
                self.idle_places.add(self.place_of(index));
                Ok(())
            }
            Ok(entry) => {
                let message = format!("{} has the state {:?}", name(slot), entry.state);
                self.fault(Code::EntryState, index, message)
            }
            Err(error) => self.broken(index, slot, &error),
        }
    }

    /// The pass has come to `chunk`: an earlier one with a partially present block is over.
    fn bitmap_is_missing(&mut self, chunk: u64) -> Result<()> {
        let over = self.partial.take_if(|(waiting, _)| *waiting < chunk);
        let Some((waiting, at)) = over else {
            return Ok(());
        };
        self.counts.faulty += 1;
        let code = Code::PartialWithoutBitmap;
        let finding = Finding::new(
            code,
            Severity::Error,
            "BAT",
            format!("chunk {waiting} has a partially present block and no bitmap"),
            consequence(code),
        );
        self.judge.found(finding.at(at))
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
            return self.fault(Code::BlockBeyondEnd, index, message);
        }
        if let Err(taken) = self.used.claim(at / MIB, size / MIB) {
            self.counts.faulty += 1;
            let taken = taken * MIB;
            let finding = Finding {
                other_offset: Some(taken),
                ..Finding::new(
                    Code::BlockOverlap,
                    Severity::Error,
                    "BAT",
                    format!("{} at {at:#x} overlaps what is at {taken:#x}", name(what)),
                    SHARED,
                )
            };
            return self.judge.found(finding.at(self.place_of(index)));
        }
        if at + size > self.file_len {
            let finding = Finding::warning(
                Code::LastBlockCut,
                "BAT",
                format!(
                    "the file ends inside {}, the last one, at {at:#x}: {} bytes are missing",
                    name(what),
                    at + size - self.file_len
                ),
                "they read as zero; programs that want the whole block may refuse the image",
            );
            return self.judge.found(finding.at(self.place_of(index)));
        }
        Ok(())
    }
}

fn consequence(code: Code) -> &'static str {
    match code {
        Code::EntryIdleReserved => {
            "the image is refused; the block has no data in the file, so nothing is lost"
        }
        Code::BlockBeyondEnd => {
            "the data of that block is lost, unless what was cut off the file is found"
        }
        Code::PartialWithoutBitmap => {
            "which sectors of its blocks are the disk's own and which the parent's is lost"
        }
        Code::PartialWithoutParent => {
            "either the block is whole, or the disk has lost its parent; nothing tells which"
        }
        _ => LOST,
    }
}

/// What an entry is for, in words.
pub(crate) fn name(slot: Slot) -> String {
    match slot {
        Slot::Payload(block) => format!("block {}", block.0),
        Slot::Bitmap(chunk) => format!("the bitmap of chunk {chunk}"),
        Slot::Unused => "a spare entry".to_owned(),
    }
}
