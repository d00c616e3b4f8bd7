//! One log entry (MS-VHDX 2.3.1): descriptor sectors, then one data sector for each data descriptor.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::format::field::{array, guid_at, put, u32_at, u64_at};
use crate::format::{Guid, MAX_FILE_OFFSET, PAGE, PAGE_BYTES};
use crate::units::FileOffset;

/// The first bytes of every entry, and of no other sector of one.
pub const SIGNATURE: [u8; 4] = *b"loge";
/// Where in its first sector an entry says whose it is.
pub const GUID_AT: std::ops::Range<usize> = 32..48;
const CHECKSUM_AT: usize = 4;
const LENGTH_AT: usize = 8;
const TAIL_AT: usize = 12;
const SEQUENCE_AT: usize = 16;
const COUNT_AT: usize = 24;
const FLUSHED_AT: usize = 48;
const LAST_AT: usize = 56;

const DATA: [u8; 4] = *b"desc";
const ZERO: [u8; 4] = *b"zero";
const SECTOR: [u8; 4] = *b"data";
const DESCRIPTOR_BYTES: usize = 32;
/// The entry header takes the room of two descriptors.
const HEADER_DESCRIPTORS: u64 = 2;
const DESCRIPTORS_PER_SECTOR: u64 = 128;
/// Bytes of a page that the data sector itself holds: all but the first 8 and the last 4.
const MIDDLE: std::ops::Range<usize> = 8..PAGE - 4;

/// Nothing below the region tables goes through the log: neither identifier nor headers.
const FIRST_LOGGED: u64 = 192 << 10;

/// What an entry is to say.
#[derive(Clone, Copy, Debug)]
pub struct EntryPlan<'a> {
    /// The log GUID of the current header.
    pub log_guid: Guid,
    /// One more than that of the entry before it; at least 1.
    pub sequence: u64,
    /// Byte offset in the log of the oldest entry still needed; may be this one's own.
    pub tail: u32,
    /// The greatest length of the file known to be durable.
    pub flushed_file_offset: u64,
    /// The smallest length of the file that holds everything allocated.
    pub last_file_offset: u64,
    /// Pages of 4096 bytes and where they belong.
    pub pages: &'a [(FileOffset, Bytes)],
}

/// How many bytes of the log an entry with so many pages takes; a multiple of 4096.
#[must_use]
pub fn entry_len(pages: usize) -> usize {
    let descriptor_sectors = (pages as u64 + HEADER_DESCRIPTORS).div_ceil(DESCRIPTORS_PER_SECTOR);
    (descriptor_sectors as usize)
        .saturating_add(pages)
        .saturating_mul(PAGE)
}

/// The sectors of an entry.
#[must_use]
pub fn encode_entry(plan: &EntryPlan<'_>) -> Vec<u8> {
    encode_with_zeroes(plan, &[])
}

/// The sectors of an entry that also zeroes ranges: where, how many bytes.
pub(super) fn encode_with_zeroes(plan: &EntryPlan<'_>, zeroes: &[(FileOffset, u64)]) -> Vec<u8> {
    let count = plan.pages.len() + zeroes.len();
    let first_data = entry_len(count) - count * PAGE;
    let mut entry = vec![0; first_data + plan.pages.len() * PAGE];
    let len = entry.len() as u32;
    put(&mut entry, 0, &SIGNATURE);
    put(&mut entry, LENGTH_AT, &len.to_le_bytes());
    put(&mut entry, TAIL_AT, &plan.tail.to_le_bytes());
    put(&mut entry, SEQUENCE_AT, &plan.sequence.to_le_bytes());
    put(&mut entry, COUNT_AT, &(count as u32).to_le_bytes());
    put(&mut entry, GUID_AT.start, &plan.log_guid.0);
    put(
        &mut entry,
        FLUSHED_AT,
        &plan.flushed_file_offset.to_le_bytes(),
    );
    put(&mut entry, LAST_AT, &plan.last_file_offset.to_le_bytes());
    let sequence = plan.sequence.to_le_bytes();
    let descriptor_at = |number: usize| (number + HEADER_DESCRIPTORS as usize) * DESCRIPTOR_BYTES;
    for (number, (at, page)) in plan.pages.iter().enumerate() {
        debug_assert_eq!(page.len(), PAGE, "a page for {at}");
        let page = whole_page(page);
        let descriptor = descriptor_at(number);
        put(&mut entry, descriptor, &DATA);
        put(&mut entry, descriptor + 4, &page[MIDDLE.end..]);
        put(&mut entry, descriptor + 8, &page[..MIDDLE.start]);
        put(&mut entry, descriptor + 16, &at.0.to_le_bytes());
        put(&mut entry, descriptor + 24, &sequence);
        let sector = first_data + number * PAGE;
        put(&mut entry, sector, &SECTOR);
        put(&mut entry, sector + 4, &sequence[4..]);
        put(&mut entry, sector + MIDDLE.start, &page[MIDDLE]);
        put(&mut entry, sector + MIDDLE.end, &sequence[..4]);
    }
    for (number, (at, len)) in (plan.pages.len()..).zip(zeroes) {
        let descriptor = descriptor_at(number);
        put(&mut entry, descriptor, &ZERO);
        put(&mut entry, descriptor + 8, &len.to_le_bytes());
        put(&mut entry, descriptor + 16, &at.0.to_le_bytes());
        put(&mut entry, descriptor + 24, &sequence);
    }
    let crc = crate::format::checksum(&entry, CHECKSUM_AT);
    put(&mut entry, CHECKSUM_AT, &crc.to_le_bytes());
    entry
}

fn whole_page(bytes: &[u8]) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let len = bytes.len().min(PAGE);
    page[..len].copy_from_slice(&bytes[..len]);
    page
}

/// Where the log lies and whose entries count.
#[derive(Clone, Copy, Debug)]
pub struct LogPlace {
    /// The log GUID of the current header.
    pub guid: Guid,
    /// Where the log begins in the file.
    pub at: FileOffset,
}

/// A valid entry: whole, unharmed and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Byte offset in the log.
    pub at: u32,
    /// How many bytes of the log.
    pub len: u32,
    /// Byte offset in the log of the oldest entry still needed when this one was written.
    pub tail: u32,
    /// Its number.
    pub sequence: u64,
    /// Its descriptors.
    pub count: u32,
    /// A length of the file that was durable when it was written.
    pub flushed_file_offset: u64,
    /// A length of the file that holds everything allocated when it was written.
    pub last_file_offset: u64,
}

/// One change that an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// This page ([`page`] puts it together) goes to `to`.
    Data {
        /// Where in the file, a multiple of 4096.
        to: FileOffset,
        /// The first bytes of the page.
        leading: [u8; 8],
        /// The last bytes of the page.
        trailing: [u8; 4],
        /// Byte offset in the log of the sector with the rest.
        sector: u32,
    },
    /// These bytes of the file become zero.
    Zero {
        /// Where in the file, a multiple of 4096.
        at: FileOffset,
        /// How many, a multiple of 4096.
        len: u64,
    },
}

/// Sector `number` of what begins at `at`, round the end of the log.
fn sector(log: &[u8], at: u32, number: u64) -> Result<&[u8; PAGE]> {
    let offset = u64::from(at)
        .checked_add(number.saturating_mul(PAGE_BYTES))
        .and_then(|offset| offset.checked_rem(log.len() as u64))
        .ok_or_else(|| Error::corrupt("the log is empty"))?;
    log.get(offset as usize..)
        .and_then(|rest| rest.first_chunk())
        .ok_or_else(|| Error::corrupt("LogLength is not a multiple of 4096"))
}

/// Reads the entry at byte `at` of the whole log and checks all of it (MS-VHDX 2.3.1, 2.3.2), also
/// that it changes neither headers nor log.
pub fn decode_entry(log: &[u8], at: u32, place: &LogPlace) -> Result<Entry> {
    let wrong = |what: String| Error::corrupt(what).at(place.at.0.saturating_add(u64::from(at)));
    let head = sector(log, at, 0)?;
    let signature: [u8; 4] = array(head, 0)?;
    if signature != SIGNATURE {
        return Err(wrong(format!(
            "log entry signature is {signature:02x?}, not \"loge\""
        )));
    }
    let guid = guid_at(head, GUID_AT.start)?;
    if guid != place.guid {
        return Err(wrong(format!("log entry is of another log: {guid}")));
    }
    let entry = Entry {
        at,
        len: u32_at(head, LENGTH_AT)?,
        tail: u32_at(head, TAIL_AT)?,
        sequence: u64_at(head, SEQUENCE_AT)?,
        count: u32_at(head, COUNT_AT)?,
        flushed_file_offset: u64_at(head, FLUSHED_AT)?,
        last_file_offset: u64_at(head, LAST_AT)?,
    };
    let aligned = |value: u32| u64::from(value).is_multiple_of(PAGE_BYTES);
    if !aligned(entry.len) || entry.len == 0 || entry.len as usize > log.len() {
        return Err(wrong(format!("log entry EntryLength is {}", entry.len)));
    }
    if !aligned(entry.tail) || entry.tail as usize >= log.len() {
        return Err(wrong(format!("log entry Tail is {}", entry.tail)));
    }
    if entry.sequence == 0 {
        return Err(wrong("log entry SequenceNumber is 0".into()));
    }
    let data = check_descriptors(log, &entry, place).map_err(|error| wrong(error.to_string()))?;
    let sectors = descriptor_sectors(&entry) + data;
    if u64::from(entry.len) != sectors * PAGE_BYTES {
        return Err(wrong(format!(
            "log entry EntryLength is {}, its descriptors make {}",
            entry.len,
            sectors * PAGE_BYTES
        )));
    }
    check_data(log, &entry, data).map_err(|error| wrong(error.to_string()))?;
    let (stored, actual) = (u32_at(head, CHECKSUM_AT)?, checksum(log, &entry)?);
    if stored != actual {
        return Err(wrong(format!(
            "log entry checksum is {stored:#010x}, its bytes give {actual:#010x}"
        )));
    }
    Ok(entry)
}

fn descriptor_sectors(entry: &Entry) -> u64 {
    (u64::from(entry.count) + HEADER_DESCRIPTORS).div_ceil(DESCRIPTORS_PER_SECTOR)
}

/// Checks every descriptor and says how many data sectors follow.
fn check_descriptors(log: &[u8], entry: &Entry, place: &LogPlace) -> Result<u64> {
    if descriptor_sectors(entry) * PAGE_BYTES > u64::from(entry.len) {
        return Err(Error::corrupt(format!(
            "log entry DescriptorCount {} does not fit its EntryLength {}",
            entry.count, entry.len
        )));
    }
    let log_end = place.at.0.saturating_add(log.len() as u64);
    let mut data = 0;
    for number in 0..u64::from(entry.count) {
        let (at, len) = match descriptor(log, entry, number, data)? {
            Descriptor::Data { to, .. } => {
                data += 1;
                (to.0, PAGE_BYTES)
            }
            Descriptor::Zero { at, len } => (at.0, len),
        };
        let end = at.checked_add(len).filter(|end| *end <= MAX_FILE_OFFSET);
        let Some(end) = end else {
            return Err(Error::corrupt(format!(
                "log descriptor {number} ends beyond 128 TiB: FileOffset {at:#x}, length {len:#x}"
            )));
        };
        if !at.is_multiple_of(PAGE_BYTES) || !len.is_multiple_of(PAGE_BYTES) {
            return Err(Error::corrupt(format!(
                "log descriptor {number} is not of whole pages: FileOffset {at:#x}, length {len:#x}"
            )));
        }
        if at < FIRST_LOGGED || (at < log_end && place.at.0 < end) {
            return Err(Error::corrupt(format!(
                "log descriptor {number} would change the headers or the log: FileOffset {at:#x}"
            )));
        }
    }
    Ok(data)
}

/// Descriptor `number`, of which `data` data descriptors come before.
fn descriptor(log: &[u8], entry: &Entry, number: u64, data: u64) -> Result<Descriptor> {
    let room = number + HEADER_DESCRIPTORS;
    let bytes = sector(log, entry.at, room / DESCRIPTORS_PER_SECTOR)?;
    let start = (room % DESCRIPTORS_PER_SECTOR) as usize * DESCRIPTOR_BYTES;
    let sequence = u64_at(bytes, start + 24)?;
    if sequence != entry.sequence {
        return Err(Error::corrupt(format!(
            "log descriptor {number} has SequenceNumber {sequence}, its entry {}",
            entry.sequence
        )));
    }
    let at = FileOffset(u64_at(bytes, start + 16)?);
    match array(bytes, start)? {
        DATA => {
            let offset = u64::from(entry.at) + (descriptor_sectors(entry) + data) * PAGE_BYTES;
            Ok(Descriptor::Data {
                to: at,
                leading: array(bytes, start + 8)?,
                trailing: array(bytes, start + 4)?,
                sector: (offset % (log.len() as u64).max(1)) as u32,
            })
        }
        ZERO => Ok(Descriptor::Zero {
            at,
            len: u64_at(bytes, start + 8)?,
        }),
        signature => Err(Error::corrupt(format!(
            "log descriptor {number} has the unknown signature {signature:02x?}"
        ))),
    }
}

fn check_data(log: &[u8], entry: &Entry, data: u64) -> Result<()> {
    for number in 0..data {
        let bytes = sector(log, entry.at, descriptor_sectors(entry) + number)?;
        let signature: [u8; 4] = array(bytes, 0)?;
        let high = u64::from(u32_at(bytes, 4)?);
        let low = u64::from(u32_at(bytes, MIDDLE.end)?);
        if signature != SECTOR || high << 32 | low != entry.sequence {
            return Err(Error::corrupt(format!(
                "data sector {number} of the log entry does not belong to it"
            )));
        }
    }
    Ok(())
}

fn checksum(log: &[u8], entry: &Entry) -> Result<u32> {
    let head = sector(log, entry.at, 0)?;
    let mut crc = crc32c::crc32c(&head[..CHECKSUM_AT]);
    crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc = crc32c::crc32c_append(crc, &head[CHECKSUM_AT + 4..]);
    for number in 1..u64::from(entry.len) / PAGE_BYTES {
        crc = crc32c::crc32c_append(crc, sector(log, entry.at, number)?);
    }
    Ok(crc)
}

/// The changes of a valid entry, in order.
pub fn descriptors(log: &[u8], entry: &Entry) -> impl Iterator<Item = Result<Descriptor>> {
    let mut data = 0;
    (0..u64::from(entry.count)).map(move |number| {
        let found = descriptor(log, entry, number, data)?;
        data += u64::from(matches!(found, Descriptor::Data { .. }));
        Ok(found)
    })
}

/// The page that a data descriptor writes; `None` for one that zeroes.
pub fn page(log: &[u8], change: &Descriptor) -> Result<Option<[u8; PAGE]>> {
    let Descriptor::Data {
        leading,
        trailing,
        sector: at,
        ..
    } = change
    else {
        return Ok(None);
    };
    let mut page = *sector(log, *at, 0)?;
    put(&mut page, 0, leading);
    put(&mut page, MIDDLE.end, trailing);
    Ok(Some(page))
}
