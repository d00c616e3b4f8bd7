//! The file that holds the memory of a machine that was saved: its first page and its table, as bytes.
//!
//! Codec: total, bounded, without I/O. What the file says is checked against itself before it is believed, so
//! that a page can only come from where pages are, and a table never needs more room than the memory that it
//! is about could have. Specified in `docs/vm-snapshot-memory.md`.

#![deny(clippy::indexing_slicing)]

use std::fmt;

use crate::layout::{HOLE, PAGE};

/// Bytes of memory that are read and checked together.
pub(crate) const EXTENT: u64 = 0x20_0000;
/// Pages of an extent.
pub(crate) const EXTENT_PAGES: usize = 512;
/// Bytes of the first page of the file.
pub(crate) const HEADER_BYTES: usize = 4096;
/// Bytes of an entry of the table.
pub(crate) const ENTRY_BYTES: usize = 80;

const MAGIC: [u8; 8] = *b"DFMEMORY";
const VERSION: u32 = 1;
/// Where the checksum of the first page is; it counts as zero there.
const SUM_AT: usize = 12;
/// More memory than that no machine has.
const MOST_MEMORY: u64 = 1 << 40;

/// Why a file is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong(pub(crate) String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn wrong<T>(why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong(why.into()))
}

/// What the first page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The snapshot that the file belongs to.
    pub(crate) id: [u8; 16],
    /// Bytes of the machine's memory.
    pub(crate) memory: u64,
    /// Where the table begins; the pages are before it.
    pub(crate) table: u64,
    /// Its entries.
    pub(crate) entries: u32,
    /// CRC-32C of its bytes.
    pub(crate) sum: u32,
}

impl Header {
    /// The first page.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.id);
        bytes.extend(self.memory.to_le_bytes());
        bytes.extend(HOLE.start.to_le_bytes());
        bytes.extend(HOLE.end.to_le_bytes());
        bytes.extend((EXTENT as u32).to_le_bytes());
        bytes.extend((PAGE as u32).to_le_bytes());
        bytes.extend(self.table.to_le_bytes());
        bytes.extend(self.entries.to_le_bytes());
        bytes.extend(self.sum.to_le_bytes());
        bytes.resize(HEADER_BYTES, 0);
        let sum = crc32c::crc32c(&bytes).to_le_bytes();
        for (at, byte) in bytes.iter_mut().skip(SUM_AT).zip(sum) {
            *at = byte;
        }
        bytes
    }

    /// What the first page of a file of `file_len` bytes says, if it can be.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES], file_len: u64) -> Result<Self, Wrong> {
        let mut fields = Fields(bytes);
        if fields.take()? != MAGIC {
            return wrong("is not the memory of a machine");
        }
        let version = fields.number()?;
        if version != VERSION {
            return wrong(format!(
                "is of version {version}; this program reads version {VERSION}"
            ));
        }
        let sum = fields.number()?;
        let mut summed = bytes.to_vec();
        summed
            .iter_mut()
            .skip(SUM_AT)
            .take(4)
            .for_each(|byte| *byte = 0);
        if crc32c::crc32c(&summed) != sum {
            return wrong("its first page is damaged");
        }
        let id = fields.take()?;
        let memory = fields.long()?;
        let hole = fields.long()?..fields.long()?;
        let units = (fields.number()?, fields.number()?);
        if hole != HOLE || units != (EXTENT as u32, PAGE as u32) {
            return wrong("is of a machine whose memory is laid out otherwise");
        }
        if memory == 0 || memory > MOST_MEMORY || !memory.is_multiple_of(PAGE) {
            return wrong(format!("{memory} bytes is no size of a machine's memory"));
        }
        let header = Self {
            id,
            memory,
            table: fields.long()?,
            entries: fields.number()?,
            sum: fields.number()?,
        };
        if fields.0.iter().any(|byte| *byte != 0) {
            return wrong("its first page says what this version does not know");
        }
        let end = header.table.checked_add(header.table_bytes());
        let first = HEADER_BYTES as u64;
        if u64::from(header.entries) > extents(memory)
            || header.table < first
            || !header.table.is_multiple_of(PAGE)
            || end != Some(file_len)
        {
            return wrong("is not whole");
        }
        Ok(header)
    }

    /// Bytes of the table.
    pub(crate) fn table_bytes(&self) -> u64 {
        u64::from(self.entries) * ENTRY_BYTES as u64
    }
}

/// How many extents `memory` bytes have. The last may be shorter than the others.
pub(crate) fn extents(memory: u64) -> u64 {
    memory.div_ceil(EXTENT)
}

/// Pages of an extent of `memory` bytes.
pub(crate) fn pages_of(memory: u64, extent: u32) -> usize {
    let start = u64::from(extent).saturating_mul(EXTENT);
    let bytes = memory.saturating_sub(start).min(EXTENT);
    (bytes / PAGE) as usize
}

/// Which pages of an extent are in the file; the others are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pages([u64; EXTENT_PAGES / 64]);

impl Pages {
    /// A page is in the file.
    pub(crate) fn insert(&mut self, page: usize) {
        if let Some(word) = self.0.get_mut(page / 64) {
            *word |= 1 << (page % 64);
        }
    }

    /// Whether a page is in the file.
    pub(crate) fn contains(&self, page: usize) -> bool {
        let word = self.0.get(page / 64).copied().unwrap_or(0);
        word & 1 << (page % 64) != 0
    }

    /// How many are.
    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Runs of pages that are in the file: the first, and how many.
    pub(crate) fn runs(&self) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for page in (0..EXTENT_PAGES).filter(|page| self.contains(*page)) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == page => *count += 1,
                _ => runs.push((page, 1)),
            }
        }
        runs
    }
}

/// An extent of which at least a page is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Which extent of memory.
    pub(crate) extent: u32,
    /// CRC-32C of its pages as they are in the file.
    pub(crate) sum: u32,
    /// Where its pages begin in the file, one after another.
    pub(crate) at: u64,
    /// Which ones.
    pub(crate) pages: Pages,
}

/// The table as bytes, in the order of addresses.
pub(crate) fn encode_table(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    for entry in entries {
        bytes.extend(entry.extent.to_le_bytes());
        bytes.extend(entry.sum.to_le_bytes());
        bytes.extend(entry.at.to_le_bytes());
        for word in entry.pages.0 {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}

/// The table that `header` tells of.
pub(crate) fn decode_table(header: &Header, bytes: &[u8]) -> Result<Vec<Entry>, Wrong> {
    if bytes.len() as u64 != header.table_bytes() || crc32c::crc32c(bytes) != header.sum {
        return wrong("its table is damaged");
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(header.entries as usize);
    for bytes in bytes.chunks_exact(ENTRY_BYTES) {
        let entry = decode_entry(header, bytes)?;
        if entries
            .last()
            .is_some_and(|last| last.extent >= entry.extent)
        {
            return wrong("its table is out of order");
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn decode_entry(header: &Header, bytes: &[u8]) -> Result<Entry, Wrong> {
    let mut fields = Fields(bytes);
    let (extent, sum) = (fields.number()?, fields.number()?);
    let at = fields.long()?;
    let mut pages = Pages::default();
    for word in &mut pages.0 {
        *word = fields.long()?;
    }
    let there = pages_of(header.memory, extent);
    if u64::from(extent) >= extents(header.memory)
        || pages.count() == 0
        || (there..EXTENT_PAGES).any(|page| pages.contains(page))
    {
        return wrong("its table names memory that is not there");
    }
    let bytes = pages.count() as u64 * PAGE;
    let end = at.checked_add(bytes);
    if at < HEADER_BYTES as u64
        || !at.is_multiple_of(PAGE)
        || end.is_none_or(|end| end > header.table)
    {
        return wrong("its table names pages that are not in it");
    }
    Ok(Entry {
        extent,
        sum,
        at,
        pages,
    })
}

/// Where byte `offset` of the memory's file is in the guest's addresses.
pub(crate) fn address_of(offset: u64) -> u64 {
    if offset < HOLE.start {
        return offset;
    }
    offset.saturating_add(HOLE.end - HOLE.start)
}

/// Bytes that are taken apart from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Wrong> {
        let Some((bytes, rest)) = self.0.split_first_chunk() else {
            return wrong("is cut off");
        };
        self.0 = rest;
        Ok(*bytes)
    }

    fn number(&mut self) -> Result<u32, Wrong> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn long(&mut self) -> Result<u64, Wrong> {
        Ok(u64::from_le_bytes(self.take()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(entries: &[Entry]) -> (Header, Vec<u8>) {
        let table = encode_table(entries);
        let header = Header {
            id: [7; 16],
            memory: 3 * EXTENT + 4 * PAGE,
            table: 64 * PAGE,
            entries: entries.len() as u32,
            sum: crc32c::crc32c(&table),
        };
        (header, table)
    }

    fn entry(extent: u32, at: u64, pages: &[usize]) -> Entry {
        let mut set = Pages::default();
        for page in pages {
            set.insert(*page);
        }
        Entry {
            extent,
            sum: 5,
            at,
            pages: set,
        }
    }

    fn first_page(header: &Header) -> [u8; HEADER_BYTES] {
        header.encode().try_into().unwrap()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let entries = [
            entry(0, 4096, &[0, 1, 2, 511]),
            entry(2, 8 * 4096, &[63, 64, 200]),
            entry(3, 40960, &[3]),
        ];
        let (header, table) = header(&entries);
        let len = header.table + header.table_bytes();
        assert_eq!(Header::decode(&first_page(&header), len), Ok(header));
        assert_eq!(decode_table(&header, &table), Ok(entries.to_vec()));
        assert_eq!(entries[0].pages.runs(), [(0, 3), (511, 1)]);
        assert_eq!(entries[1].pages.runs(), [(63, 2), (200, 1)]);
    }

    #[test]
    fn a_file_that_is_not_whole_is_refused_at_any_length() {
        let (header, _) = header(&[entry(0, 4096, &[0])]);
        let whole = header.table + header.table_bytes();
        for len in [0, 4096, whole - 1, whole + 1] {
            assert!(Header::decode(&first_page(&header), len).is_err(), "{len}");
        }
    }

    #[test]
    fn tables_that_lie_are_refused() {
        let behind = 63 * PAGE;
        for (entries, named) in [
            (vec![entry(4, 4096, &[0])], "not there"),
            (vec![entry(3, 4096, &[4])], "not there"),
            (vec![entry(0, 4096, &[])], "not there"),
            (vec![entry(0, 0, &[0])], "not in it"),
            (vec![entry(0, 4097, &[0])], "not in it"),
            (vec![entry(0, behind, &[0, 1])], "not in it"),
            (vec![entry(0, u64::MAX - 4095, &[0, 1])], "not in it"),
            (vec![entry(1, 4096, &[0]), entry(1, 4096, &[0])], "order"),
            (vec![entry(1, 4096, &[0]), entry(0, 4096, &[0])], "order"),
        ] {
            let (header, table) = header(&entries);
            let why = decode_table(&header, &table).unwrap_err();
            assert!(why.0.contains(named), "{named}: {why}");
        }
        let (header, mut table) = header(&[entry(0, 4096, &[0])]);
        table[20] ^= 1;
        assert!(decode_table(&header, &table).is_err());
        let more = Header {
            entries: 5,
            ..header
        };
        let len = more.table + more.table_bytes();
        assert!(Header::decode(&first_page(&more), len).is_err());
    }

    #[test]
    fn addresses_leave_the_hole_out() {
        assert_eq!(address_of(0), 0);
        assert_eq!(address_of(HOLE.start - 1), HOLE.start - 1);
        assert_eq!(address_of(HOLE.start), HOLE.end);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_bounded(
            bytes in proptest::collection::vec(any::<u8>(), HEADER_BYTES),
            len in any::<u64>(),
            changes in proptest::collection::vec((0..96_usize, any::<u8>()), 0..4),
        ) {
            let random: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
            prop_assert!(Header::decode(&random, len).is_err());
            let (header, _) = header(&[entry(0, 4096, &[0])]);
            let mut page = first_page(&header);
            for (at, byte) in changes {
                page[at] = byte;
            }
            // A checksum that fits again: what is said is looked at.
            page[SUM_AT..SUM_AT + 4].fill(0);
            let sum = crc32c::crc32c(&page).to_le_bytes();
            page[SUM_AT..SUM_AT + 4].copy_from_slice(&sum);
            if let Ok(header) = Header::decode(&page, len) {
                prop_assert!(u64::from(header.entries) <= extents(MOST_MEMORY));
            }
        }
    }
}
