//! Replay of the log (MS-VHDX 2.3.3), into the file or into memory, and the header update round it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::format::header::{Header, Slot};
use crate::format::log::{
    Descriptor, Entry, GUID_AT, LogPlace, SIGNATURE, decode_entry, descriptors, find_active, page,
};
use crate::format::{Code, Finding, Guid, MAX_FILE_OFFSET, PAGE, PAGE_BYTES};
use crate::storage::Storage;

use super::Judge;
use super::view::ZERO_PAGE;

/// A log longer than this is not read into memory: programs make 1 MiB, we up to 64 MiB.
const MAX_LOG: u64 = 256 << 20;

/// The log is read in pieces of this size.
const PIECE: usize = 64 << 10;

/// Zero pages that a replay in memory may make: 1 GiB of them. Metadata is never that large a hole.
const MAX_ZERO_PAGES: u64 = 1 << 18;

/// A log that must be replayed before anything but the headers is believed.
pub(crate) struct LiveLog {
    bytes: Vec<u8>,
    /// From the tail to the head; none when the log was named and not written yet.
    entries: Vec<Entry>,
    /// Length of the file that holds everything the log names.
    last_file_offset: u64,
}

impl LiveLog {
    /// Reads the log of `header`; `None` when the header says that it is empty.
    pub(crate) fn read(
        storage: &mut dyn Storage,
        header: &Header,
        judge: &mut dyn Judge,
    ) -> Result<Option<Self>> {
        if header.log_guid.is_zero() {
            return Ok(None);
        }
        if u64::from(header.log_len) > MAX_LOG {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "LogLength is {} and the log must be replayed; more than 256 MiB is not read",
                    header.log_len
                ),
            )
            .coded(Code::LogTooLarge)
            .at(header.log_at.0));
        }
        let bytes = read_sparse(storage, header.log_at.0, header.log_len as usize)
            .map_err(|source| Error::io("cannot read the log", source).at(header.log_at.0))?;
        let place = LogPlace {
            guid: header.log_guid,
            at: header.log_at,
        };
        let mut log = Self {
            bytes,
            entries: Vec::new(),
            last_file_offset: 0,
        };
        match find_active(&log.bytes, &place) {
            Ok(active) => log.entries = active.entries,
            Err(error) => judge.found(never_written(error, &log.bytes, &place)?)?,
        }
        log.check_lengths(storage, header)?;
        Ok(Some(log))
    }

    /// Holds the two file lengths of the newest entry against the file (MS-VHDX 2.3.3).
    fn check_lengths(&mut self, storage: &mut dyn Storage, header: &Header) -> Result<()> {
        let Some(head) = self.entries.last() else {
            return Ok(());
        };
        let at = header.log_at.0 + u64::from(head.at);
        let len = storage
            .len()
            .map_err(|source| Error::io("cannot tell the length of the file", source))?;
        if len < head.flushed_file_offset {
            return Err(Error::corrupt(format!(
                "the file is cut short: it has {len} bytes, the log knows of {} (FlushedFileOffset)",
                head.flushed_file_offset
            ))
            .coded(Code::FileCutShort)
            .at(at));
        }
        if head.last_file_offset > MAX_FILE_OFFSET {
            return Err(Error::corrupt(format!(
                "log entry LastFileOffset is {:#x}, beyond 128 TiB",
                head.last_file_offset
            ))
            .coded(Code::LogDamaged)
            .at(at));
        }
        self.last_file_offset = head.last_file_offset;
        Ok(())
    }

    fn changes(&self) -> impl Iterator<Item = Result<Descriptor>> {
        self.entries
            .iter()
            .flat_map(|entry| descriptors(&self.bytes, entry))
    }

    /// The pages that a replay would write, and the length that the file would have after it.
    pub(crate) fn overlay(&self, file_len: u64) -> Result<(BTreeMap<u64, Bytes>, u64)> {
        let mut pages = BTreeMap::new();
        let mut len = file_len.max(self.last_file_offset);
        let mut zero_pages = 0;
        for change in self.changes() {
            let change = change?;
            let end = end_of(&change);
            len = len.max(end);
            match change {
                Descriptor::Data { to, .. } => {
                    if let Some(page) = page(&self.bytes, &change)? {
                        pages.insert(to.0, Bytes::copy_from_slice(&page));
                    }
                }
                Descriptor::Zero { at, len } => {
                    zero_pages += len / PAGE_BYTES;
                    if zero_pages > MAX_ZERO_PAGES {
                        return Err(Error::new(
                            ErrorKind::Unsupported,
                            "the log zeroes more than 1 GiB: it is not believed",
                        )
                        .coded(Code::LogTooLarge)
                        .at(at.0));
                    }
                    let zeroed = (at.0..end).step_by(PAGE);
                    pages.extend(zeroed.map(|at| (at, Bytes::from_static(&ZERO_PAGE))));
                }
            }
        }
        Ok((pages, len))
    }

    /// Replays into the file: a new file-write GUID first, then the changes and the growth, then a
    /// header that says that the log is empty. A crash anywhere in between starts it again.
    pub(crate) fn replay(
        &self,
        storage: &mut dyn Storage,
        current: (Header, Slot),
        random: &mut dyn FnMut() -> u128,
    ) -> Result<(Header, Slot)> {
        let (header, slot) = current;
        let renewed = Header {
            file_write: Guid::from_random(random()),
            ..header
        };
        let (header, slot) = header_update(storage, slot, renewed)?;
        let failed = |source| Error::io("cannot replay the log", source);
        let mut end = self.last_file_offset;
        for change in self.changes() {
            let change = change?;
            end = end.max(end_of(&change));
            match change {
                Descriptor::Data { to, .. } => {
                    if let Some(page) = page(&self.bytes, &change)? {
                        storage.write_at(to.0, &page).map_err(failed)?;
                    }
                }
                Descriptor::Zero { at, len } => {
                    let file_len = storage.len().map_err(failed)?;
                    let inside = len.min(file_len.saturating_sub(at.0));
                    storage.zero(at.0, inside, false).map_err(failed)?;
                }
            }
        }
        if storage.len().map_err(failed)? < end {
            storage.set_len(end).map_err(failed)?;
        }
        storage.flush().map_err(failed)?;
        let emptied = Header {
            log_guid: Guid::ZERO,
            ..header
        };
        header_update(storage, slot, emptied)
    }
}

/// `len` bytes from `at`, without touching the holes: most of a log was never used.
fn read_sparse(storage: &mut dyn Storage, at: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while let Some(data) = storage.next_data(at + done as u64)? {
        let from = (data - at) as usize;
        let to = from.saturating_add(PIECE).min(len);
        let Some(piece) = bytes.get_mut(from..to) else {
            break;
        };
        storage.read_at(data, piece)?;
        done = to;
        if done == len {
            break;
        }
    }
    Ok(bytes)
}

/// The byte after the last one a change touches; checked when the entry was read.
fn end_of(change: &Descriptor) -> u64 {
    match change {
        Descriptor::Data { to, .. } => to.0.saturating_add(PAGE_BYTES),
        Descriptor::Zero { at, len } => at.0.saturating_add(*len),
    }
}

/// What to make of a log that is named and has no valid sequence of entries.
///
/// No entry of its GUID anywhere: its writer stopped between naming the log and the first entry, as
/// a killed QEMU does. Nothing changed in place before an entry was durable, so nothing is lost and
/// the log counts as empty; the text would have even that refused. Entries that are there and not
/// valid are another matter: the log may be damaged.
fn never_written(error: Error, log: &[u8], place: &LogPlace) -> Result<Finding> {
    let ours = |sector: &[u8]| {
        sector.starts_with(&SIGNATURE) && sector.get(GUID_AT) == Some(&place.guid.0[..])
    };
    let harmed = (0..)
        .step_by(PAGE)
        .zip(log.chunks_exact(PAGE))
        .filter(|(_, sector)| ours(sector))
        .find_map(|(at, _)| decode_entry(log, at, place).err());
    if let Some(harm) = harmed {
        let error = Error::new(ErrorKind::NeedsRepair, format!("{error}; {harm}"));
        return Err(error.coded(Code::LogDamaged).at(place.at.0));
    }
    if log.chunks_exact(PAGE).any(ours) {
        return Err(error);
    }
    let finding = Finding::warning(
        Code::LogNeverWritten,
        "log",
        format!(
            "the header names log {} and the log has no entry of it",
            place.guid
        ),
        "its writer stopped before the first one; nothing is lost, the log counts as empty",
    );
    Ok(finding.at(place.at.0))
}

/// Makes `new` the content of both headers, one flushed after the other, so that one valid header
/// is on the medium at every moment. `slot` is where the current one lies, and `new` carries its
/// sequence number. What comes back is current.
pub(crate) fn header_update(
    storage: &mut dyn Storage,
    slot: Slot,
    new: Header,
) -> Result<(Header, Slot)> {
    let mut header = new;
    for place in [slot.other(), slot] {
        header = header.next()?;
        storage
            .write_at(place.at().0, &header.encode())
            .and_then(|()| storage.flush())
            .map_err(|source| Error::io("cannot write the header", source).at(place.at().0))?;
    }
    Ok((header, slot))
}
