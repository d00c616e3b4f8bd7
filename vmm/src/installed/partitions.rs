//! The partitions of a disk that may hold what it starts, the likeliest first.
//!
//! Driver: a GUID partition table by the library gpt (the copy at the end of the disk if the first one, or
//! its entries, is damaged), or a master boot record, or the disk as it is. Types are those of the Discoverable Partitions
//! Specification.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use gpt::disk::LogicalBlockSize;
use gpt::header::{Header, HeaderError, read_header_from_arbitrary_device};
use gpt::partition::{self, file_read_partitions};

use super::disk::{Reader, refusal};
use super::{damaged, mbr, unreadable};
use crate::{ErrorKind, Result};

/// Partitions that are looked at, entries of a table, and extended records in a row, at most.
const MOST: usize = 64;
const MOST_ENTRIES: u32 = 1024;
const MOST_RECORDS: usize = 64;
const ENTRY_BYTES: u32 = 128;
/// Types, in the order in which they are looked at: for boot loaders, a root file system of this architecture,
/// any file system of Linux, and a system partition of the firmware.
const TYPES: [&str; 4] = [
    "bc13c2ff-59e6-4262-a352-b275fd6f7172",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "0fc63daf-8483-4772-8e79-3d69d8477de4",
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
];
/// Types that hold no file system: the BIOS's part of a boot loader, swap.
const NOTHING: [&str; 2] = [
    "21686148-6449-6e6f-744e-656564454649",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f",
];

/// A part of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// As a person calls it.
    pub(super) name: String,
    /// First byte.
    pub(super) start: u64,
    /// Bytes; all of them lie in the disk.
    pub(super) bytes: u64,
}

/// Those of a disk, in the order in which they are looked at.
pub(super) fn list(reader: &Reader) -> Result<Vec<Partition>> {
    let mut found = match guid_table(reader)? {
        Some(found) => found,
        None => records(reader)?,
    };
    if found.is_empty() {
        let whole = Partition {
            name: "no partition".to_owned(),
            start: 0,
            bytes: reader.size(),
        };
        return Ok(vec![whole]);
    }
    found.sort_by_key(|(rank, partition)| (*rank, partition.start));
    found.truncate(MOST);
    Ok(found.into_iter().map(|(_, partition)| partition).collect())
}

/// The entries of a GUID partition table, by their numbers.
type Entries = BTreeMap<u32, partition::Partition>;
/// How early a partition is looked at, and it.
type Ranked = (usize, Partition);

fn ranked(
    reader: &Reader,
    (rank, number): (usize, u32),
    place: Option<(u64, u64)>,
) -> Option<Ranked> {
    let (start, bytes) = place?;
    let end = start.checked_add(bytes)?;
    let name = format!("partition {number}");
    (end <= reader.size()).then_some((rank, Partition { name, start, bytes }))
}

fn guid_table(reader: &Reader) -> Result<Option<Vec<Ranked>>> {
    let sector = match reader.sector() {
        4096 => LogicalBlockSize::Lb4096,
        _ => LogicalBlockSize::Lb512,
    };
    let Some(entries) = entries(reader, sector)? else {
        return foreign_table(reader, sector);
    };
    let entries = entries.into_iter().filter(|(_, entry)| entry.is_used());
    let found = entries.filter_map(|(number, entry)| {
        let kind = entry.part_type_guid.guid.to_string().to_ascii_lowercase();
        let rank = TYPES.iter().position(|known| *known == kind);
        if NOTHING.contains(&kind.as_str()) {
            return None;
        }
        let place = entry
            .bytes_start(sector)
            .ok()
            .zip(entry.bytes_len(sector).ok());
        ranked(reader, (rank.unwrap_or(TYPES.len()), number), place)
    });
    Ok(Some(found.collect()))
}

/// The entries of the first table, or of the copy whose header is in the last sector; `None` if there is no header.
fn entries(reader: &Reader, sector: LogicalBlockSize) -> Result<Option<Entries>> {
    let mut wrong = None;
    for shift in shifts(reader, sector) {
        let Some(header) = header(reader, sector, shift)? else {
            continue;
        };
        match entries_of(reader, sector, &header) {
            Err(error) if error.kind() == ErrorKind::BadKernel => {
                wrong.get_or_insert(error);
            }
            found => return found.map(Some),
        }
    }
    wrong.map_or(Ok(None), Err)
}

/// From where the disk is looked at, so that its second sector is that of a header.
fn shifts(reader: &Reader, sector: LogicalBlockSize) -> impl Iterator<Item = u64> {
    let last = reader.size().checked_sub(2 * sector.as_u64());
    [Some(0), last].into_iter().flatten()
}

fn entries_of(reader: &Reader, sector: LogicalBlockSize, header: &Header) -> Result<Entries> {
    if header.part_size != ENTRY_BYTES || header.num_parts > MOST_ENTRIES {
        return Err(damaged(
            "the disk's partition table is of a kind that is not known",
        ));
    }
    let mut window = Window::new(reader, 0);
    let entries = file_read_partitions(&mut window, header, sector);
    entries.map_err(|error| {
        if window.failed {
            unreadable(TABLE, error)
        } else {
            damaged("the disk's partition table is damaged").because(error)
        }
    })
}

/// The header that stands in the second sector from `shift` on.
fn header(reader: &Reader, sector: LogicalBlockSize, shift: u64) -> Result<Option<Header>> {
    let mut window = Window::new(reader, shift);
    match read_header_from_arbitrary_device(&mut window, sector) {
        Ok(header) => Ok(Some(header)),
        Err(HeaderError::Io(error)) if window.failed => Err(unreadable(TABLE, error)),
        Err(_) => Ok(None),
    }
}

/// A table for sectors of the other size is one that its guest does not find.
fn foreign_table(reader: &Reader, sector: LogicalBlockSize) -> Result<Option<Vec<Ranked>>> {
    let other = match sector {
        LogicalBlockSize::Lb512 => LogicalBlockSize::Lb4096,
        LogicalBlockSize::Lb4096 => LogicalBlockSize::Lb512,
    };
    for shift in shifts(reader, other) {
        if header(reader, other, shift)?.is_some() {
            return Err(damaged(format!(
                "the disk has sectors of {sector} bytes and a partition table for sectors of {other} bytes, which \
                 its guest does not see; make a disk with sectors of {other} bytes of it"
            )));
        }
    }
    Ok(None)
}

fn records(reader: &Reader) -> Result<Vec<Ranked>> {
    let sector = u64::from(reader.sector());
    let bytes = |sectors: u32| u64::from(sectors) * sector;
    let Some(first) = record(reader, 0)? else {
        return Ok(Vec::new());
    };
    let (mut found, mut number) = (Vec::new(), 5);
    for entry in mbr::entries(&first) {
        if entry.is_protective() {
            continue;
        }
        if !entry.is_extended() {
            let place = Some((bytes(entry.first), bytes(entry.sectors)));
            let at = (usize::from(!entry.active), u32::from(entry.slot) + 1);
            found.extend(ranked(reader, at, place));
            continue;
        }
        let start = bytes(entry.first);
        let mut next = Some(start);
        for _ in 0..MOST_RECORDS {
            let Some(at) = next.take() else { break };
            let Some(extended) = record(reader, at)? else {
                break;
            };
            for inner in mbr::entries(&extended) {
                if inner.is_extended() {
                    next = start.checked_add(bytes(inner.first));
                } else {
                    let place = at.checked_add(bytes(inner.first));
                    let place = place.map(|first| (first, bytes(inner.sectors)));
                    found.extend(ranked(reader, (1, number), place));
                    number += 1;
                }
            }
        }
    }
    Ok(found)
}

/// The record at `at`; `None` if the disk ends before.
fn record(reader: &Reader, at: u64) -> Result<Option<[u8; mbr::BYTES]>> {
    let mut record = [0; mbr::BYTES];
    match reader.read_at(at, &mut record) {
        Ok(()) => Ok(Some(record)),
        Err(error) if refusal(&error).is_some() => Ok(None),
        Err(error) => Err(unreadable(TABLE, error)),
    }
}

/// What cannot be read.
const TABLE: &str = "the disk's partition table cannot be read";

/// The disk from `shift` on, as the library reads it.
struct Window<'a> {
    reader: &'a Reader,
    shift: u64,
    at: u64,
    /// Whether the disk could not be read, which the library does not tell from its own complaints.
    failed: bool,
}

impl<'a> Window<'a> {
    fn new(reader: &'a Reader, shift: u64) -> Self {
        Self {
            reader,
            shift,
            at: 0,
            failed: false,
        }
    }
}

impl Read for Window<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let at = self.shift.checked_add(self.at);
        let at = at.ok_or(io::ErrorKind::UnexpectedEof)?;
        let read = self.reader.read_at(at, into);
        self.failed |= read.as_ref().is_err_and(|error| refusal(error).is_none());
        read?;
        self.at += into.len() as u64;
        Ok(into.len())
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.reader.size().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
