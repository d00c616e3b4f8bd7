//! The metadata region (MS-VHDX 2.6): a table of 64 KiB, items behind it. No checksum protects it,
//! so every change goes through the log.

use bytes::{Bytes, BytesMut};

use crate::engine::Mark;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{FileOffset, MIB};

use super::bat::Geometry;
use super::field::{array, guid_at, put, u16_at, u32_at, u64_at};
use super::{Code, Guid, PAGE, PAGE_BYTES, ParentLocator};

mod edit;

pub use edit::{Edited, LONGEST_REGION, MOST_USER_BYTES, NewItem, edit};

/// Bytes of the table at the start of the region.
pub const TABLE_BYTES: usize = 64 << 10;

/// Block size and flags.
pub const FILE_PARAMETERS: Guid = Guid::known(0xCAA1_6737_FA36_4D43_B3B6_33F0_AA44_E76B);
/// Bytes of the disk.
pub const VIRTUAL_DISK_SIZE: Guid = Guid::known(0x2FA5_4224_CD1B_4876_B211_5DBE_D83B_F4B8);
/// The disk's identity in SCSI page 0x83.
pub const VIRTUAL_DISK_ID: Guid = Guid::known(0xBECA_12AB_B2E6_4523_93EF_C309_E000_C746);
/// Bytes of a logical sector.
pub const LOGICAL_SECTOR: Guid = Guid::known(0x8141_BF1D_A96F_4709_BA47_F233_A8FA_AB5F);
/// Bytes of a physical sector.
pub const PHYSICAL_SECTOR: Guid = Guid::known(0xCDA3_48C7_445D_4471_9CC9_E988_5251_C556);
/// Where the parent is.
pub const PARENT_LOCATOR: Guid = Guid::known(0xA8D3_5F2D_B30B_454D_ABF7_D3D8_4834_AB0C);
/// `OpenVMM`'s sign of an image whose creation did not end; not in the specification.
pub const OPENVMM_INCOMPLETE: Guid = Guid::known(0x71CC_85F0_1B69_4E28_9558_C3BF_83AE_75D3);
/// Ours: the target of a migration that is not complete ([`Mark::Incomplete`]).
pub const MARK_INCOMPLETE: Guid = Guid::known(0xF771_9DF8_5000_4A28_9F9A_2121_D3A7_6A01);
/// Ours: the source of a migration that was handed over ([`Mark::HandedOver`]).
pub const MARK_HANDED_OVER: Guid = Guid::known(0x03E8_4736_D101_440E_A1E9_1001_0AE6_7E7B);

const SIGNATURE: [u8; 8] = *b"metadata";
const COUNT_AT: usize = 10;
const ENTRIES_AT: usize = 32;
const ENTRY_BYTES: usize = 32;
const ENTRIES_IN_FIRST_PAGE: usize = (PAGE - ENTRIES_AT) / ENTRY_BYTES;
const MAX_ENTRIES: u16 = 2047;
const MAX_USER_ENTRIES: usize = 1024;
const MAX_REGION: u64 = 128 << 20;

const IS_USER: u32 = 1;
const IS_VIRTUAL_DISK: u32 = 2;
const IS_REQUIRED: u32 = 4;

const LEAVE_ALLOCATED: u32 = 1;
const HAS_PARENT: u32 = 2;

/// An entry of the metadata table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub id: Guid,
    /// Byte offset from the start of the region; 0 when there are no bytes.
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
    /// The flag bits: 1 user, 2 of the virtual disk, 4 required.
    pub flags: u32,
}

impl Item {
    /// Whether it belongs to a program and not to the format.
    #[must_use]
    pub fn is_user(&self) -> bool {
        self.flags & IS_USER != 0
    }

    /// Whether it describes the disk and not the file, and so goes with the disk into a child.
    #[must_use]
    pub fn is_virtual_disk(&self) -> bool {
        self.flags & IS_VIRTUAL_DISK != 0
    }

    /// Whether a reader that does not know it must refuse the file.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.flags & IS_REQUIRED != 0
    }

    fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }
}

/// What the metadata says of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Bytes of a payload block.
    pub block_size: u32,
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// Bytes of a logical sector, 512 or 4096.
    pub logical_sector: u32,
    /// Bytes of a physical sector, 512 or 4096.
    pub physical_sector: u32,
    /// The disk's identity in SCSI page 0x83.
    pub disk_id: Guid,
    /// A fixed disk: blocks stay allocated.
    pub leave_allocated: bool,
    /// Of a differencing disk: which disk it is built on.
    pub parent: Option<ParentLocator>,
    /// Why other programs must not open it now.
    pub mark: Option<Mark>,
    /// Every entry of the table, known or not, to be preserved.
    pub items: Vec<Item>,
}

impl Metadata {
    /// Geometry of the disk.
    pub fn geometry(&self) -> Result<Geometry> {
        Geometry::new(
            self.block_size,
            self.logical_sector,
            self.virtual_size,
            self.parent.is_some(),
        )
    }

    /// Whether a parent locator stands in an image without a parent.
    #[must_use]
    pub fn has_stray_locator(&self) -> bool {
        self.parent.is_none() && find(&self.items, PARENT_LOCATOR).is_some()
    }

    /// Reads what the items say; `read(offset, len)` brings bytes of the region.
    pub fn decode(
        items: Vec<Item>,
        read: &mut dyn FnMut(u32, u32) -> Result<Vec<u8>>,
    ) -> Result<Self> {
        let parameters = fetch(&items, FILE_PARAMETERS, 8, read)?;
        let flags = u32_at(&parameters, 4)?;
        if flags & !(LEAVE_ALLOCATED | HAS_PARENT) != 0 {
            return Err(Error::corrupt(format!(
                "the file parameters have reserved bits set: {flags:#x}"
            )));
        }
        let physical_sector = u32_at(&fetch(&items, PHYSICAL_SECTOR, 4, read)?, 0)?;
        if physical_sector != 512 && physical_sector != 4096 {
            return Err(Error::corrupt(format!(
                "PhysicalSectorSize is {physical_sector}: neither 512 nor 4096"
            )));
        }
        let has_parent = flags & HAS_PARENT != 0;
        let parent = has_parent
            .then(|| fetch_locator(&items, read))
            .transpose()?;
        let metadata = Self {
            block_size: u32_at(&parameters, 0)?,
            virtual_size: u64_at(&fetch(&items, VIRTUAL_DISK_SIZE, 8, read)?, 0)?,
            logical_sector: u32_at(&fetch(&items, LOGICAL_SECTOR, 4, read)?, 0)?,
            physical_sector,
            disk_id: guid_at(&fetch(&items, VIRTUAL_DISK_ID, 16, read)?, 0)?,
            leave_allocated: flags & LEAVE_ALLOCATED != 0,
            parent,
            mark: mark_of(&items),
            items,
        };
        metadata.geometry()?;
        Ok(metadata)
    }

    /// The item that says the size of the disk; its offset counts from the region.
    pub fn size_item(&self) -> Result<Item> {
        find(&self.items, VIRTUAL_DISK_SIZE)
            .copied()
            .ok_or_else(|| Error::corrupt("the metadata has no item \"virtual disk size\""))
    }

    /// The region of a new image as far as it is not zero, table and items; `extra` are items beyond
    /// those that this says.
    #[must_use]
    pub fn encode_new(&self, extra: &[NewItem]) -> Vec<u8> {
        let mut flags = 0;
        if self.leave_allocated {
            flags |= LEAVE_ALLOCATED;
        }
        if self.parent.is_some() {
            flags |= HAS_PARENT;
        }
        let locator = self.parent.as_ref().map(ParentLocator::encode);
        let parameters = [self.block_size.to_le_bytes(), flags.to_le_bytes()].concat();
        let of_disk = IS_VIRTUAL_DISK | IS_REQUIRED;
        let size = self.virtual_size.to_le_bytes();
        let logical = self.logical_sector.to_le_bytes();
        let physical = self.physical_sector.to_le_bytes();
        let mut items: Vec<(Guid, u32, &[u8])> = vec![
            (FILE_PARAMETERS, IS_REQUIRED, &parameters),
            (VIRTUAL_DISK_SIZE, of_disk, &size),
            (VIRTUAL_DISK_ID, of_disk, &self.disk_id.0),
            (LOGICAL_SECTOR, of_disk, &logical),
            (PHYSICAL_SECTOR, of_disk, &physical),
        ];
        if let Some(locator) = &locator {
            items.push((PARENT_LOCATOR, IS_REQUIRED, locator));
        }
        let more: usize = extra.iter().map(|item| item.content.len()).sum();
        let mut region = vec![0; 2 * TABLE_BYTES + more];
        put(&mut region, 0, &SIGNATURE);
        let mut start = TABLE_BYTES;
        let mut entry_at = ENTRIES_AT;
        for &(id, flags, content) in &items {
            let item = Item {
                id,
                offset: start as u32,
                len: content.len() as u32,
                flags,
            };
            put(&mut region, entry_at, &encode_entry(&item));
            put(&mut region, start, content);
            entry_at += ENTRY_BYTES;
            start += content.len();
        }
        for item in extra {
            put(
                &mut region,
                entry_at,
                &encode_entry(&item.entry(start as u64)),
            );
            put(&mut region, start, &item.content);
            entry_at += ENTRY_BYTES;
            start += item.content.len();
        }
        let mut count = (items.len() + extra.len()) as u16;
        if let Some(mark) = self.mark {
            put(&mut region, entry_at, &encode_entry(&mark_item(mark)));
            count += 1;
        }
        put(&mut region, COUNT_AT, &count.to_le_bytes());
        region
    }
}

fn mark_of(items: &[Item]) -> Option<Mark> {
    [Mark::Incomplete, Mark::HandedOver]
        .into_iter()
        .find(|mark| find(items, mark_id(*mark)).is_some())
}

fn mark_id(mark: Mark) -> Guid {
    match mark {
        Mark::Incomplete => MARK_INCOMPLETE,
        Mark::HandedOver => MARK_HANDED_OVER,
    }
}

fn mark_item(mark: Mark) -> Item {
    Item {
        id: mark_id(mark),
        offset: 0,
        len: 0,
        flags: IS_REQUIRED,
    }
}

fn encode_entry(item: &Item) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    put(&mut entry, 0, &item.id.0);
    put(&mut entry, 16, &item.offset.to_le_bytes());
    put(&mut entry, 20, &item.len.to_le_bytes());
    put(&mut entry, 24, &item.flags.to_le_bytes());
    entry
}

/// The known item `id`; a user's item with the same GUID is another one.
fn find(items: &[Item], id: Guid) -> Option<&Item> {
    items.iter().find(|item| item.id == id && !item.is_user())
}

fn fetch(
    items: &[Item],
    id: Guid,
    len: u32,
    read: &mut dyn FnMut(u32, u32) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let name = name(id);
    let missing = || Error::corrupt(format!("the metadata has no item \"{name}\""));
    let item = find(items, id).ok_or_else(|| missing().coded(Code::MetadataMissing))?;
    if item.len != len {
        return Err(Error::corrupt(format!(
            "the metadata item \"{name}\" has {} bytes, not {len}",
            item.len
        )));
    }
    read(item.offset, item.len)
}

fn fetch_locator(
    items: &[Item],
    read: &mut dyn FnMut(u32, u32) -> Result<Vec<u8>>,
) -> Result<ParentLocator> {
    let what = "the image has a parent and no parent locator says where";
    let item = find(items, PARENT_LOCATOR)
        .ok_or_else(|| Error::corrupt(what).coded(Code::MetadataMissing))?;
    let at = u64::from(item.offset);
    ParentLocator::decode(&read(item.offset, item.len)?).map_err(|error| {
        let within = error.offset().unwrap_or(0);
        error.coded(Code::LocatorInvalid).at(at + within)
    })
}

/// What an item of the format is called; empty for one that is not known.
#[must_use]
pub fn name(id: Guid) -> &'static str {
    match id {
        FILE_PARAMETERS => "file parameters",
        VIRTUAL_DISK_SIZE => "virtual disk size",
        VIRTUAL_DISK_ID => "virtual disk id",
        LOGICAL_SECTOR => "logical sector size",
        PHYSICAL_SECTOR => "physical sector size",
        PARENT_LOCATOR => "parent locator",
        MARK_INCOMPLETE => "incomplete target",
        MARK_HANDED_OVER => "handed over",
        _ => "",
    }
}

/// Reads the table of a region of `region_len` bytes. Offsets in errors count from the region.
pub fn decode_table(table: &[u8], region_len: u64) -> Result<Vec<Item>> {
    let (items, faults) = survey_table(table, region_len)?;
    match faults.into_iter().next() {
        Some(fault) => Err(fault),
        None => Ok(items),
    }
}

/// As [`decode_table`], but goes on after an item that breaks a rule: the others, and every fault.
pub fn survey_table(table: &[u8], region_len: u64) -> Result<(Vec<Item>, Vec<Error>)> {
    let table = table
        .get(..TABLE_BYTES)
        .ok_or_else(|| Error::corrupt("the metadata table is cut short"))?;
    let count = entry_count(table)?;
    if region_len > MAX_REGION {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the metadata region has {region_len} bytes; more than 128 MiB is not read"),
        )
        .coded(Code::MetadataTable));
    }
    let (mut items, mut faults) = (Vec::new(), Vec::new());
    for at in (ENTRIES_AT..).step_by(ENTRY_BYTES).take(count.into()) {
        match decode_entry(table, at, region_len) {
            Ok(item) => items.push(item),
            Err(error) => faults.push(error.coded(Code::MetadataItem).at(at as u64)),
        }
    }
    let users = items.iter().filter(|item| item.is_user()).count();
    if users > MAX_USER_ENTRIES {
        let what = format!(
            "the metadata table has {users} user items, at most {MAX_USER_ENTRIES} are allowed"
        );
        faults.push(Error::corrupt(what).coded(Code::MetadataTable));
    }
    clashes(&items, &mut faults);
    Ok((items, faults))
}

/// Whether reserved bytes of the table are set; readers ignore them.
#[must_use]
pub fn reserved_set(table: &[u8]) -> bool {
    let count = usize::from(u16_at(table, COUNT_AT).unwrap_or(0));
    let set = |range| {
        let bytes: &[u8] = table
            .get::<std::ops::Range<usize>>(range)
            .unwrap_or_default();
        bytes.iter().any(|byte| *byte != 0)
    };
    let mut entries = (ENTRIES_AT..).step_by(ENTRY_BYTES).take(count);
    set(8..COUNT_AT) || set(COUNT_AT + 2..ENTRIES_AT) || entries.any(|at| set(at + 28..at + 32))
}

fn entry_count(table: &[u8]) -> Result<u16> {
    let signature: [u8; 8] = array(table, 0)?;
    if signature != SIGNATURE {
        return Err(Error::corrupt(format!(
            "metadata table signature is {signature:02x?}, not \"metadata\""
        ))
        .coded(Code::MetadataTable));
    }
    let count = u16_at(table, COUNT_AT)?;
    if count > MAX_ENTRIES {
        return Err(Error::corrupt(format!(
            "metadata table EntryCount is {count}, at most {MAX_ENTRIES} are allowed"
        ))
        .coded(Code::MetadataTable));
    }
    Ok(count)
}

fn decode_entry(table: &[u8], at: usize, region_len: u64) -> Result<Item> {
    let item = Item {
        id: guid_at(table, at)?,
        offset: u32_at(table, at + 16)?,
        len: u32_at(table, at + 20)?,
        flags: u32_at(table, at + 24)?,
    };
    let id = item.id;
    if item.flags & !(IS_USER | IS_VIRTUAL_DISK | IS_REQUIRED) != 0 {
        return Err(Error::corrupt(format!(
            "metadata item {id} has reserved flags set: {:#x}",
            item.flags
        )));
    }
    if item.len == 0 && item.offset != 0 {
        return Err(Error::corrupt(format!(
            "metadata item {id} is empty and has Offset {}, not 0",
            item.offset
        )));
    }
    let before_items = (item.offset as usize) < TABLE_BYTES;
    if item.len != 0 && (before_items || item.end() > region_len) {
        return Err(Error::corrupt(format!(
            "metadata item {id} has Offset {} and Length {}: not inside the region of {region_len} bytes",
            item.offset, item.len
        )));
    }
    if u64::from(item.len) > MIB {
        return Err(Error::corrupt(format!(
            "metadata item {id} has Length {}, at most 1 MiB is allowed",
            item.len
        )));
    }
    if item.is_required() && (item.is_user() || name(id).is_empty()) {
        return Err(refusal(&item));
    }
    Ok(item)
}

fn refusal(item: &Item) -> Error {
    let id = item.id;
    if item.is_user() {
        return Error::corrupt(format!("metadata item {id} is a user's and required"));
    }
    let why = if id == OPENVMM_INCOMPLETE {
        "the program that created this image did not finish"
    } else {
        "a newer program made this image, or marks it as not to be opened"
    };
    Error::new(
        ErrorKind::Unsupported,
        format!("metadata item {id} is required and unknown: {why}"),
    )
    .coded(Code::MetadataUnknown)
}

/// Items that are named twice, and items that overlap; offsets are those in the region.
fn clashes(items: &[Item], faults: &mut Vec<Error>) {
    let mut by_id: Vec<&Item> = items.iter().collect();
    by_id.sort_by_key(|item| (item.id, item.is_user()));
    for pair in by_id.windows(2) {
        if let [a, b] = pair
            && (a.id, a.is_user()) == (b.id, b.is_user())
        {
            let what = format!("the metadata table names item {} twice", a.id);
            faults.push(Error::corrupt(what).coded(Code::MetadataTwice));
        }
    }
    let mut by_place: Vec<&Item> = items.iter().filter(|item| item.len != 0).collect();
    by_place.sort_by_key(|item| item.offset);
    for pair in by_place.windows(2) {
        if let [a, b] = pair
            && a.end() > u64::from(b.offset)
        {
            let what = format!(
                "metadata items {} at {} and {} at {} overlap",
                a.id, a.offset, b.id, b.offset
            );
            let fault = Error::corrupt(what).coded(Code::MetadataOverlap);
            faults.push(fault.at(b.offset.into()));
        }
    }
}

/// The first 4 KiB of the region with exactly the mark asked for.
///
/// `page` is what is there now. The item is empty, so nothing else of the region changes, and one
/// log entry of one page sets or removes it. Refused when the table goes beyond its first page
/// (127 items; programs write 5 or 6).
pub fn set_mark(page: &[u8], mark: Option<Mark>) -> Result<Bytes> {
    let page: &[u8; PAGE] = page
        .first_chunk()
        .ok_or_else(|| Error::corrupt("the metadata table is cut short"))?;
    let count = usize::from(entry_count(page)?);
    let (old, _) = page.split_at(ENTRIES_AT);
    let (entries, _) = page.split_at(PAGE).0.as_chunks::<ENTRY_BYTES>();
    let is_mark = |entry: &&[u8; ENTRY_BYTES]| {
        let user = u32_at(&entry[..], 24).is_ok_and(|flags| flags & IS_USER != 0);
        guid_at(&entry[..], 0)
            .is_ok_and(|id| !user && (id == MARK_INCOMPLETE || id == MARK_HANDED_OVER))
    };
    let mut kept: Vec<[u8; ENTRY_BYTES]> = entries
        .iter()
        .skip(1)
        .take(count)
        .filter(|entry| !is_mark(entry))
        .copied()
        .collect();
    kept.extend(mark.map(|mark| encode_entry(&mark_item(mark))));
    if count > ENTRIES_IN_FIRST_PAGE || kept.len() > ENTRIES_IN_FIRST_PAGE {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the metadata table has {count} items; a mark needs fewer than 127"),
        ));
    }
    let mut next = BytesMut::with_capacity(PAGE);
    next.extend_from_slice(old);
    next.extend_from_slice(&kept.concat());
    next.resize(PAGE, 0);
    put(&mut next, COUNT_AT, &(kept.len() as u16).to_le_bytes());
    Ok(next.freeze())
}

/// Where a parent locator of `len` bytes goes that takes the place of the one there is: the byte of its
/// entry in the table, and the entry. What the old one takes stays as it is.
pub fn place_locator(
    items: &[Item],
    region_len: u64,
    len: usize,
) -> Result<(usize, [u8; ENTRY_BYTES])> {
    let known = |item: &Item| item.id == PARENT_LOCATOR && !item.is_user();
    let number = items
        .iter()
        .position(known)
        .ok_or_else(|| Error::invalid("the disk is not built on another one"))?;
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let free = (TABLE_BYTES as u32..)
        .step_by(PAGE)
        .take_while(|at| u64::from(*at) + u64::from(len) <= region_len)
        .find(|at| {
            let end = u64::from(*at) + u64::from(len);
            let apart = |item: &Item| end <= u64::from(item.offset) || item.end() <= u64::from(*at);
            items.iter().all(|item| item.len == 0 || apart(item))
        });
    let offset = free.filter(|_| u64::from(len) <= MIB).ok_or_else(|| {
        let what = "the metadata region has no room for another parent locator";
        Error::new(ErrorKind::Unsupported, what)
    })?;
    let item = Item {
        id: PARENT_LOCATOR,
        offset,
        len,
        flags: IS_REQUIRED,
    };
    Ok((ENTRIES_AT + number * ENTRY_BYTES, encode_entry(&item)))
}

/// Whole pages of the file with the item that says the size of the disk, so that it can be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeItem {
    /// Where the pages lie: a multiple of 4096.
    pub at: FileOffset,
    /// One page, or two if the item goes over their border.
    pub pages: Bytes,
    /// First byte of the item in them.
    pub within: usize,
}

impl SizeItem {
    /// Byte `at` of the file is the item's first; `read(at, len)` brings whole pages of the file.
    pub fn read(at: FileOffset, read: &mut dyn FnMut(u64, usize) -> Result<Bytes>) -> Result<Self> {
        let within = (at.0 % PAGE_BYTES) as usize;
        let start = FileOffset(at.0 - within as u64);
        let pages = read(start.0, (within + 8).next_multiple_of(PAGE))?;
        Ok(Self {
            at: start,
            pages,
            within,
        })
    }

    /// The same pages with another size, in bytes.
    #[must_use]
    pub fn with_size(&self, size: u64) -> Self {
        let mut pages = BytesMut::from(&self.pages[..]);
        put(&mut pages, self.within, &size.to_le_bytes());
        Self {
            pages: pages.freeze(),
            ..*self
        }
    }

    /// Its pages, each with its place.
    pub fn pages(&self) -> impl Iterator<Item = (FileOffset, Bytes)> {
        let count = self.pages.len() / PAGE;
        (0..count).map(|page| {
            let at = FileOffset(self.at.0 + (page * PAGE) as u64);
            (at, self.pages.slice(page * PAGE..(page + 1) * PAGE))
        })
    }
}

#[cfg(test)]
mod tests;
