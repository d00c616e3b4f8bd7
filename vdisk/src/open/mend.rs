//! Writing a damaged copy of the region table anew, through the log like every change of it.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::format::header::{Header, Slot};
use crate::format::log::{EntryPlan, encode_entry};
use crate::format::{Guid, PAGE, region};
use crate::storage::Storage;
use crate::units::{FileOffset, MIB};

use super::replay::header_update;

/// Makes both copies of the region table `table`, the bytes of an intact one. The log is empty.
///
/// A crash anywhere leaves the old copies or a log that brings the new ones: the entry is durable
/// before the header names its log, and named before the copies change.
pub(super) fn mend_region_tables(
    storage: &mut dyn Storage,
    (header, slot): (Header, Slot),
    table: &[u8],
    random: &mut dyn FnMut() -> u128,
) -> Result<(Header, Slot)> {
    let failed = |source| Error::io("cannot mend the region tables", source);
    let renewed = Header {
        file_write: Guid::from_random(random()),
        ..header
    };
    let (header, slot) = header_update(storage, slot, renewed)?;
    let pages: Vec<(FileOffset, Bytes)> = [region::COPY_ONE, region::COPY_TWO]
        .into_iter()
        .flat_map(|copy| (copy.0..).step_by(PAGE).zip(table.chunks(PAGE)))
        .map(|(at, page)| (FileOffset(at), Bytes::copy_from_slice(page)))
        .collect();
    let whole_mib = storage.len().map_err(failed)? / MIB * MIB;
    let log_guid = Guid::from_random(random());
    let entry = encode_entry(&EntryPlan {
        log_guid,
        sequence: 1,
        tail: 0,
        flushed_file_offset: whole_mib,
        last_file_offset: whole_mib,
        pages: &pages,
    });
    storage
        .write_at(header.log_at.0, &entry)
        .and_then(|()| storage.flush())
        .map_err(failed)?;
    let (header, slot) = header_update(storage, slot, Header { log_guid, ..header })?;
    for (at, page) in &pages {
        storage.write_at(at.0, page).map_err(failed)?;
    }
    storage.flush().map_err(failed)?;
    let emptied = Header {
        log_guid: Guid::ZERO,
        ..header
    };
    header_update(storage, slot, emptied)
}
