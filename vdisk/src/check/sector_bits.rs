//! Sector bitmaps held against the states of their blocks (MS-VHDX 2.5.1.2).
//!
//! Only bitmaps of chunks with partially present blocks are read: elsewhere bits mean nothing, and a
//! crash may leave any.

use std::ops::Range;

use crate::error::Result;
use crate::format::bat::{ENTRY_BYTES, Slot};
use crate::format::{BatEntry, BlockState, Code, Finding};
use crate::open::{Judge, Structures, View, each_entry};
use crate::units::{BatIndex, BlockIndex, MIB};

/// What bits and states say together; each with where the first entry of its kind lies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SectorBits {
    whole: (u64, u64),
    empty: (u64, u64),
    without_block: (u64, u64),
}

fn count((count, first): &mut (u64, u64), at: u64) {
    if *count == 0 {
        *first = at;
    }
    *count += 1;
}

impl SectorBits {
    pub(super) fn tell(&self, judge: &mut dyn Judge) -> Result<()> {
        let tell = |judge: &mut dyn Judge, code, (count, at): (u64, u64), words, follows: &str| {
            if count == 0 {
                return Ok(());
            }
            let what = format!("{count} {words}");
            judge.found(Finding::info(code, "sector bitmap", what, follows).at(at))
        };
        let words = "partially present blocks have all of their bits set";
        let follows = "they could be fully present, which is read and written with less work";
        tell(judge, Code::PartialWhole, self.whole, words, follows)?;
        let words = "partially present blocks have none of their bits set";
        let follows = "they read as the parent and take space; a write that was never flushed \
                       leaves one";
        tell(judge, Code::PartialEmpty, self.empty, words, follows)?;
        let words = "blocks that are not present have bits set";
        let follows = "none; they mean nothing, and a crash may leave them";
        let found = self.without_block;
        tell(judge, Code::BitsWithoutBlock, found, words, follows)
    }
}

/// Holds the bits of each of these chunks with partially present blocks against its entries; gives `whole`
/// each partially present block all of whose bits are set.
pub(crate) fn sector_bits(
    view: &mut View<'_>,
    structures: &Structures,
    chunks: Range<u64>,
    whole: &mut dyn FnMut(BatIndex, BatEntry) -> Result<()>,
) -> Result<SectorBits> {
    let (geometry, bat) = (structures.geometry, structures.regions.bat());
    let ratio = geometry.chunk_ratio();
    let per_block = (MIB / ratio) as usize;
    let mut found = SectorBits::default();
    let mut bits = Vec::new();
    for chunk in chunks {
        let first = chunk * (ratio + 1);
        let (mut partial, mut bitmap) = (Vec::new(), None);
        let mut present = vec![false; ratio as usize];
        each_entry(view, bat, first..first + ratio + 1, |index, entry| {
            let Ok(entry) = BatEntry::decode(entry) else {
                return Ok(());
            };
            match (geometry.classify(index), entry.state) {
                (Slot::Payload(_), BlockState::PartiallyPresent) => partial.push((index, entry)),
                (Slot::Payload(block), BlockState::FullyPresent) => {
                    mark(&mut present, block.0 % ratio);
                }
                (Slot::Bitmap(_), BlockState::FullyPresent) => bitmap = Some(entry.offset.0),
                _ => {}
            }
            Ok(())
        })?;
        let inside = |at: &u64| at.checked_add(MIB).is_some_and(|end| end <= view.len);
        let Some(at) = bitmap.filter(inside).filter(|_| !partial.is_empty()) else {
            continue;
        };
        read_bits(view, at, &mut bits)?;
        let of = |block: u64| {
            let start = (block % ratio) as usize * per_block;
            bits.get(start..start + per_block).unwrap_or_default()
        };
        let place = |index: BatIndex| bat.at.0 + index.0 * ENTRY_BYTES;
        for (index, entry) in &partial {
            let block = index.0 - chunk;
            mark(&mut present, block % ratio);
            if of(block).iter().all(|byte| *byte == u8::MAX) {
                count(&mut found.whole, place(*index));
                whole(*index, *entry)?;
            } else if of(block).iter().all(|byte| *byte == 0) {
                count(&mut found.empty, place(*index));
            }
        }
        for block in chunk * ratio..((chunk + 1) * ratio).min(geometry.payload_blocks()) {
            let is_present = present.get((block % ratio) as usize) == Some(&true);
            if !is_present && of(block).iter().any(|byte| *byte != 0) {
                let at = place(geometry.bat_index(BlockIndex(block)));
                count(&mut found.without_block, at);
            }
        }
    }
    Ok(found)
}

fn mark(present: &mut [bool], number: u64) {
    if let Some(present) = present.get_mut(number as usize) {
        *present = true;
    }
}

/// The bitmap at `at`; one that is a hole costs no reading.
fn read_bits(view: &mut View<'_>, at: u64, bits: &mut Vec<u8>) -> Result<()> {
    bits.clear();
    bits.resize(MIB as usize, 0);
    match view.next_data(at, "sector bitmap")? {
        Some(data) if data < at + MIB => view.read_into(at, bits, "sector bitmap"),
        _ => Ok(()),
    }
}
