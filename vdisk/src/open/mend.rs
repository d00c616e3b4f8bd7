//! Changes of an image that is not in use, through the log like every change of its structures:
//! a damaged copy of the region table, another parent locator.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::format::header::{Header, Slot};
use crate::format::log::{EntryPlan, encode_entry, entry_len};
use crate::format::{Guid, PAGE, PAGE_BYTES, region};
use crate::storage::Storage;
use crate::units::{FileOffset, MIB};

use super::replay::header_update;

/// Makes both copies of the region table `table`, the bytes of an intact one. The log is empty.
pub(crate) fn mend_region_tables(
    storage: &mut dyn Storage,
    current: (Header, Slot),
    table: &[u8],
    random: &mut dyn FnMut() -> u128,
) -> Result<(Header, Slot)> {
    let pages: Vec<(FileOffset, Bytes)> = [region::COPY_ONE, region::COPY_TWO]
        .into_iter()
        .flat_map(|copy| (copy.0..).step_by(PAGE).zip(table.chunks(PAGE)))
        .map(|(at, page)| (FileOffset(at), Bytes::copy_from_slice(page)))
        .collect();
    change_pages(storage, current, &pages, random)
}

/// Makes these pages the content of their places. The log is empty and long enough for one entry
/// with them.
///
/// A crash anywhere leaves the old pages or a log that brings the new ones: the entry is durable
/// before the header names its log, and named before the pages change.
pub(crate) fn change_pages(
    storage: &mut dyn Storage,
    current: (Header, Slot),
    pages: &[(FileOffset, Bytes)],
    random: &mut dyn FnMut() -> u128,
) -> Result<(Header, Slot)> {
    let change = Change {
        pages,
        ..Change::default()
    };
    change.make(storage, current, random)
}

/// The whole pages of the file in which `bytes` lie at `at`, with them in their place.
pub(super) fn pages_over(
    storage: &mut dyn Storage,
    at: u64,
    bytes: &[u8],
) -> Result<Vec<(FileOffset, Bytes)>> {
    let first = at / PAGE_BYTES * PAGE_BYTES;
    let within = (at - first) as usize;
    let mut whole = vec![0; (within + bytes.len()).next_multiple_of(PAGE)];
    storage
        .read_at(first, &mut whole)
        .map_err(|source| Error::io("cannot read the metadata", source).at(first))?;
    if let Some(place) = whole.get_mut(within..within + bytes.len()) {
        place.copy_from_slice(bytes);
    }
    let each = (first..).step_by(PAGE).zip(whole.chunks(PAGE));
    Ok(each
        .map(|(at, page)| (FileOffset(at), Bytes::copy_from_slice(page)))
        .collect())
}

/// A change of an image whose log is empty, in one step.
#[derive(Clone, Copy, Default)]
pub(crate) struct Change<'a> {
    /// Pages of structures that get this content through the log, all or none.
    pub(crate) pages: &'a [(FileOffset, Bytes)],
    /// What the pages name then and nothing names yet: written before them, and durable.
    pub(crate) beside: &'a [(FileOffset, Bytes)],
    /// The length of the file for it, at least what it is; 0 leaves it.
    pub(crate) file_len: u64,
    /// The version that the disk's data has with the new pages, if they change what a guest can see.
    pub(crate) data_write: Option<Guid>,
}

impl Change<'_> {
    /// Makes it. A crash anywhere leaves the image as it was, perhaps with content that nothing
    /// names, or as it shall be.
    ///
    /// The new version comes with the header that names the log, so it is there if and only if the
    /// pages are.
    pub(crate) fn make(
        &self,
        storage: &mut dyn Storage,
        (header, slot): (Header, Slot),
        random: &mut dyn FnMut() -> u128,
    ) -> Result<(Header, Slot)> {
        let failed = |source| Error::io("cannot change the image's structures", source);
        if entry_len(self.pages.len()) as u64 + PAGE_BYTES > u64::from(header.log_len) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the log of {} bytes is too short for that", header.log_len),
            ));
        }
        let renewed = Header {
            file_write: Guid::from_random(random()),
            ..header
        };
        let (header, slot) = header_update(storage, slot, renewed)?;
        self.write_beside(storage).map_err(failed)?;
        let whole_mib = storage.len().map_err(failed)? / MIB * MIB;
        let log_guid = Guid::from_random(random());
        let entry = encode_entry(&EntryPlan {
            log_guid,
            sequence: 1,
            tail: 0,
            flushed_file_offset: whole_mib,
            last_file_offset: whole_mib,
            pages: self.pages,
        });
        storage
            .write_at(header.log_at.0, &entry)
            .and_then(|()| storage.flush())
            .map_err(failed)?;
        let named = Header {
            log_guid,
            data_write: self.data_write.unwrap_or(header.data_write),
            ..header
        };
        let (header, slot) = header_update(storage, slot, named)?;
        for (at, page) in self.pages {
            storage.write_at(at.0, page).map_err(failed)?;
        }
        storage.flush().map_err(failed)?;
        let emptied = Header {
            log_guid: Guid::ZERO,
            ..header
        };
        header_update(storage, slot, emptied)
    }

    fn write_beside(&self, storage: &mut dyn Storage) -> std::io::Result<()> {
        let longer = storage.len()? < self.file_len;
        if longer {
            storage.set_len(self.file_len)?;
        }
        for (at, bytes) in self.beside {
            storage.write_at(at.0, bytes)?;
        }
        if longer || !self.beside.is_empty() {
            storage.flush()?;
        }
        Ok(())
    }
}
