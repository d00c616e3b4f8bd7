//! Making a differencing disk that reads nothing from its parent any more a disk of its own, while it
//! is not in use.
//!
//! ```text
//!   1  partially present blocks, all of whose sectors are their own, become fully present   (its log)
//!   2  the disk has no parent: the flag and the locator go in one entry                      (its log)
//!   3  entries of sector bitmaps, which mean nothing now, become zero                        (its log)
//! ```
//!
//! Each entry of the log leaves an image that reads as before. What the disk holds does not change, nor
//! its `DataWriteGuid`.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{ENTRY_BYTES, Slot as Entry};
use crate::format::header::{Header, Slot};
use crate::format::metadata::{self, FILE_PARAMETERS, Item, PARENT_LOCATOR};
use crate::format::{
    BatEntry, BlockState, ENTRIES_PER_PAGE, Geometry, Guid, PAGE, PAGE_BYTES, Region,
};
use crate::storage::Storage;
use crate::units::{BatIndex, BlockIndex, FileOffset, MIB};

use super::mend::{change_pages, pages_over};
use super::{Image, prepare};

/// Pages of the table in one entry of the log; the shortest log, of 1 MiB, holds it.
const BATCH: usize = 200;
/// The table is read in pieces of this size.
const PIECE: u64 = MIB;

/// Which blocks of a differencing disk are partially present.
pub(crate) struct PartialBlocks {
    /// A bit for each block.
    words: Vec<u64>,
}

impl PartialBlocks {
    /// Goes over the table. A dirty image is replayed first.
    pub(crate) fn read(
        storage: &mut dyn Storage,
        random: &mut dyn FnMut() -> u128,
    ) -> Result<Self> {
        let image = prepare(storage, false, random)?;
        let geometry = image.geometry;
        let count = geometry.payload_blocks().div_ceil(64);
        let mut words = vec![0_u64; count as usize];
        Table::of(&image).each_page(storage, &mut |_, first, page| {
            for (index, entry) in (first..).zip(entries(page)) {
                if let Entry::Payload(BlockIndex(block)) = geometry.classify(BatIndex(index))
                    && is_partial(entry)
                    && let Some(word) = words.get_mut((block / 64) as usize)
                {
                    *word |= 1 << (block % 64);
                }
            }
            Ok(())
        })?;
        Ok(Self { words })
    }

    /// Whether block number `block` is.
    pub(crate) fn contains(&self, block: u64) -> bool {
        let word = self.words.get((block / 64) as usize);
        word.is_some_and(|word| word >> (block % 64) & 1 == 1)
    }
}

/// Makes the disk one of its own; it must read nothing from its parent any more that is not zero, and
/// no sector of a partially present block at all. Clears what an earlier call left that was cut short.
/// Whether the image had a parent until now.
///
/// Refused with `Locked` when a block reads from the parent or the version of the disk's data is not
/// `expected`: somebody changed it meanwhile.
pub(crate) fn detach(
    storage: &mut dyn Storage,
    expected: Guid,
    random: &mut dyn FnMut() -> u128,
) -> Result<bool> {
    let image = prepare(storage, false, random)?;
    if image.header.data_write != expected {
        let what = "was changed by another program just now; flatten it again";
        return Err(Error::new(ErrorKind::Locked, what));
    }
    let mut current = (image.header.clone(), image.slot);
    let had_parent = image.metadata.parent.is_some();
    if had_parent {
        current = make_whole(storage, &image, current, random)?;
        let pages = without_parent(storage, &image)?;
        current = change_pages(storage, current, &pages, random)?;
    }
    drop_bitmaps(storage, &image, current, random)?;
    Ok(had_parent)
}

/// Is given the file, the index of a page's first entry, and the page.
type Visit<'a> = dyn FnMut(&mut dyn Storage, u64, &[u8]) -> Result<()> + 'a;

/// The table of an image as it lies in the file.
#[derive(Clone, Copy)]
struct Table {
    bat: Region,
    /// Bytes of it that may mean something with a parent, whether there is one or not.
    len: u64,
}

impl Table {
    fn of(image: &Image) -> Self {
        let bat = image.bat();
        let with_parent = as_child(&image.geometry).map_or(0, |child| child.bat_len());
        Self {
            bat,
            len: with_parent.next_multiple_of(PAGE_BYTES).min(bat.len),
        }
    }

    /// Goes over the pages that hold anything.
    fn each_page(&self, storage: &mut dyn Storage, visit: &mut Visit<'_>) -> Result<()> {
        let failed = |source| Error::io("cannot read the BAT", source);
        let (start, end) = (self.bat.at.0, self.bat.at.0 + self.len);
        let mut at = start;
        while let Some(data) = storage.next_data(at).map_err(failed)?
            && data < end
        {
            at = data / PAGE_BYTES * PAGE_BYTES;
            let mut piece = vec![0; (end - at).min(PIECE) as usize];
            storage.read_at(at, &mut piece).map_err(failed)?;
            for page in piece.chunks(PAGE) {
                visit(storage, (at - start) / ENTRY_BYTES, page)?;
                at += PAGE_BYTES;
            }
        }
        Ok(())
    }

    fn page_at(&self, first: u64) -> FileOffset {
        FileOffset(self.bat.at.0 + first * ENTRY_BYTES)
    }

    fn entry(&self, storage: &mut dyn Storage, index: BatIndex) -> Result<u64> {
        let at = self.bat.at.0 + index.0 * ENTRY_BYTES;
        let mut entry = [0; 8];
        storage
            .read_at(at, &mut entry)
            .map_err(|source| Error::io("cannot read the BAT", source).at(at))?;
        Ok(u64::from_le_bytes(entry))
    }

    /// Gives pages what `next` makes of their entries, each entry of the log with as many as fit.
    fn rewrite(
        &self,
        storage: &mut dyn Storage,
        (mut current, random): ((Header, Slot), &mut dyn FnMut() -> u128),
        next: &mut dyn FnMut(&mut dyn Storage, BatIndex, u64) -> Result<u64>,
    ) -> Result<(Header, Slot)> {
        let mut changed = Vec::new();
        self.each_page(storage, &mut |storage, first, page| {
            let mut new = Vec::with_capacity(PAGE);
            for (index, entry) in (first..first + ENTRIES_PER_PAGE).zip(entries(page)) {
                let entry = next(storage, BatIndex(index), entry)?;
                new.extend_from_slice(&entry.to_le_bytes());
            }
            if new != page {
                changed.push((self.page_at(first), Bytes::from(new)));
            }
            if changed.len() == BATCH {
                current = change_pages(storage, current.clone(), &changed, random)?;
                changed.clear();
            }
            Ok(())
        })?;
        if !changed.is_empty() {
            current = change_pages(storage, current, &changed, random)?;
        }
        Ok(current)
    }
}

fn entries(page: &[u8]) -> impl Iterator<Item = u64> {
    let (entries, _) = page.as_chunks::<8>();
    entries.iter().map(|entry| u64::from_le_bytes(*entry))
}

fn is_partial(entry: u64) -> bool {
    BatEntry::decode(entry).is_ok_and(|entry| entry.state == BlockState::PartiallyPresent)
}

/// The same disk with a parent: its table has a place for every bitmap.
fn as_child(geometry: &Geometry) -> Result<Geometry> {
    let (block, sector) = (geometry.block_size(), geometry.sector());
    Geometry::new(block, sector, geometry.virtual_size(), true)
}

/// Step 1.
fn make_whole(
    storage: &mut dyn Storage,
    image: &Image,
    current: (Header, Slot),
    random: &mut dyn FnMut() -> u128,
) -> Result<(Header, Slot)> {
    let (table, geometry) = (Table::of(image), image.geometry);
    table.rewrite(storage, (current, random), &mut |storage, index, entry| {
        let Entry::Payload(block) = geometry.classify(index) else {
            return Ok(entry);
        };
        if !is_partial(entry) {
            return Ok(entry);
        }
        let chunk = block.0 / geometry.chunk_ratio();
        let bitmap = table.entry(storage, geometry.bitmap_index(chunk))?;
        all_its_own(storage, &geometry, (block.0, BatEntry::decode(bitmap)?))?;
        let whole = BatEntry::fully_present(BatEntry::decode(entry)?.offset);
        Ok(whole.encode())
    })
}

/// Refuses a partially present block that has sectors inside the disk which are its parent's.
fn all_its_own(
    storage: &mut dyn Storage,
    geometry: &Geometry,
    (block, bitmap): (u64, BatEntry),
) -> Result<()> {
    let (size, sector) = (
        u64::from(geometry.block_size()),
        u64::from(geometry.sector()),
    );
    let start = block * size;
    let sectors = (geometry.virtual_size() - start).min(size) / sector;
    let per_block = size / sector / 8;
    let mut bits = vec![0; sectors.div_ceil(8) as usize];
    if bitmap.state == BlockState::FullyPresent {
        let at = bitmap.offset.0 + block % geometry.chunk_ratio() * per_block;
        storage
            .read_at(at, &mut bits)
            .map_err(|source| Error::io("cannot read a sector bitmap", source).at(at))?;
    }
    let set: u64 = bits.iter().map(|byte| u64::from(byte.count_ones())).sum();
    let last = bits.last().copied().unwrap_or_default();
    let behind = match sectors % 8 {
        0 => 0,
        used => u64::from((last >> used).count_ones()),
    };
    if set - behind == sectors {
        return Ok(());
    }
    let what = format!(
        "block {block} reads from the parent: another program changed the disk meanwhile; flatten it \
         again"
    );
    Err(Error::new(ErrorKind::Locked, what))
}

/// Step 2: the pages of the metadata without the parent locator, and with the file parameters of a
/// dynamic disk without a parent.
fn without_parent(storage: &mut dyn Storage, image: &Image) -> Result<Vec<(FileOffset, Bytes)>> {
    let place = image.metadata_region();
    let mut table = vec![0; metadata::TABLE_BYTES];
    storage
        .read_at(place.at.0, &mut table)
        .map_err(|source| Error::io("cannot read the metadata", source).at(place.at.0))?;
    let items = &image.metadata.items;
    let locator = |item: &Item| item.id == PARENT_LOCATOR && !item.is_user();
    let edited = metadata::edit((&table, items), place.len, &locator, &[])?;
    let edited = edited.map_or_else(|| table.clone(), |edited| edited.table);
    let parameters = items
        .iter()
        .find(|item| item.id == FILE_PARAMETERS && !item.is_user())
        .ok_or_else(|| Error::corrupt("the metadata has no file parameters"))?;
    let flags_at = place.at.0 + u64::from(parameters.offset) + 4;
    let mut pages: Vec<(FileOffset, Bytes)> = (place.at.0..)
        .step_by(PAGE)
        .zip(edited.chunks(PAGE).zip(table.chunks(PAGE)))
        .filter(|(_, (new, old))| new != old)
        .map(|(at, (new, _))| (FileOffset(at), Bytes::copy_from_slice(new)))
        .collect();
    // Whether blocks keep their space had no meaning with a parent.
    pages.extend(pages_over(storage, flags_at, &0_u32.to_le_bytes())?);
    Ok(pages)
}

/// Step 3.
fn drop_bitmaps(
    storage: &mut dyn Storage,
    image: &Image,
    current: (Header, Slot),
    random: &mut dyn FnMut() -> u128,
) -> Result<()> {
    let child = as_child(&image.geometry)?;
    let next = &mut |_: &mut dyn Storage, index: BatIndex, entry| {
        let bitmap = matches!(child.classify(index), Entry::Bitmap(_));
        Ok(if bitmap { 0 } else { entry })
    };
    let table = Table::of(image);
    table.rewrite(storage, (current, random), next).map(drop)
}
