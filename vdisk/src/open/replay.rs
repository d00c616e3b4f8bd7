//! Replay of the log (MS-VHDX 2.3.3), into the file or into memory, and the header update round it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::format::header::{Header, Slot};
use crate::format::log::{
    ActiveSequence, Descriptor, LogPlace, decode_entry, descriptors, find_active, page,
};
use crate::format::{Guid, MAX_FILE_OFFSET, PAGE, PAGE_BYTES};
use crate::storage::Storage;

use super::view::ZERO_PAGE;

/// A log longer than this is not read into memory: programs make 1 MiB, we up to 64 MiB.
const MAX_LOG: u64 = 256 << 20;

/// Zero pages that a replay in memory may make: 1 GiB of them. Metadata is never that large a hole.
const MAX_ZERO_PAGES: u64 = 1 << 18;

/// A log that must be replayed before anything but the headers is believed.
pub(crate) struct LiveLog {
    bytes: Vec<u8>,
    active: ActiveSequence,
    /// Length of the file that holds everything the log names.
    last_file_offset: u64,
}

impl LiveLog {
    /// Reads the log of `header`; `None` when the header says that it is empty.
    pub(crate) fn read(storage: &mut dyn Storage, header: &Header) -> Result<Option<Self>> {
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
            ));
        }
        let mut bytes = vec![0; header.log_len as usize];
        storage
            .read_at(header.log_at.0, &mut bytes)
            .map_err(|source| Error::io("cannot read the log", source).at(header.log_at.0))?;
        let place = LogPlace {
            guid: header.log_guid,
            at: header.log_at,
        };
        let active = find_active(&bytes, &place).map_err(|error| explain(error, &bytes, &place))?;
        let head = active
            .head()
            .ok_or_else(|| Error::corrupt("the log has no newest entry"))?;
        let len = storage
            .len()
            .map_err(|source| Error::io("cannot tell the length of the file", source))?;
        if len < head.flushed_file_offset {
            return Err(Error::corrupt(format!(
                "the file is cut short: it has {len} bytes, the log knows of {} (FlushedFileOffset)",
                head.flushed_file_offset
            ))
            .at(header.log_at.0 + u64::from(head.at)));
        }
        if head.last_file_offset > MAX_FILE_OFFSET {
            return Err(Error::corrupt(format!(
                "log entry LastFileOffset is {:#x}, beyond 128 TiB",
                head.last_file_offset
            ))
            .at(header.log_at.0 + u64::from(head.at)));
        }
        let last_file_offset = head.last_file_offset;
        Ok(Some(Self {
            bytes,
            active,
            last_file_offset,
        }))
    }

    fn changes(&self) -> impl Iterator<Item = Result<Descriptor>> {
        let entries = self.active.entries.iter();
        entries.flat_map(|entry| descriptors(&self.bytes, entry))
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

/// The byte after the last one a change touches; checked when the entry was read.
fn end_of(change: &Descriptor) -> u64 {
    match change {
        Descriptor::Data { to, .. } => to.0.saturating_add(PAGE_BYTES),
        Descriptor::Zero { at, len } => at.0.saturating_add(*len),
    }
}

/// A log without any entry of its GUID is what a writer leaves that stopped between naming the log
/// and its first entry; nothing is lost, yet the text has it refused.
fn explain(error: Error, log: &[u8], place: &LogPlace) -> Error {
    let ours =
        |sector: &&[u8]| sector.starts_with(b"loge") && sector.get(32..48) == Some(&place.guid.0);
    if log.chunks_exact(PAGE).any(|sector| ours(&sector)) {
        let hint = (0..log.len()).step_by(PAGE).find_map(|at| {
            let sector = log.get(at..)?;
            ours(&sector).then(|| decode_entry(log, at as u32, place).err())?
        });
        return match hint {
            Some(hint) => Error::corrupt(format!("{error}; {hint}")).at(place.at.0),
            None => error,
        };
    }
    Error::new(
        ErrorKind::NeedsRepair,
        format!(
            "the header names log {} and the log holds no entry of it: its writer stopped before \
             the first one, or the log was lost",
            place.guid
        ),
    )
    .at(place.at.0)
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
