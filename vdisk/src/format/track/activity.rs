//! The activity log of the tracking region: where writes may be whose bits are not in the file.
//!
//! Each sector of it stands twice. Whoever changes one writes the copy that does not count, so that
//! a torn write leaves what the other one says. What a sector says before a change and after it are
//! both right until the change is durable; one sector does not depend on another.

use crate::error::{Error, Result};

use super::super::field::{array, put, u32_at, u64_at};
use super::super::{PAGE, PAGE_BYTES, checksum};

/// Where the log begins in the region.
pub const LOG_AT: u64 = 64 << 10;

/// How many sectors it has.
pub const LOG_SECTORS: usize = 32;

/// Entries in one sector.
pub const SECTOR_ENTRIES: usize = (PAGE - ENTRIES_AT) / ENTRY_BYTES;

const SIGNATURE: [u8; 4] = *b"dfta";
const CHECKSUM_AT: usize = 4;
const SEQUENCE_AT: usize = 8;
const SESSION_AT: usize = 16;
const ENTRIES_AT: usize = 64;
const ENTRY_BYTES: usize = 16;
const MASK_IN: usize = 8;

/// Parts of one page of the bitmap that are active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEntry {
    /// Number of the page in its bitmap.
    pub page: u32,
    /// Of its 64 parts of 64 bytes, those in which any bit may have to be set; none: no entry.
    pub mask: u64,
}

/// One sector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActivitySector {
    /// The session that wrote it.
    pub session: u64,
    /// The copy with the greater number counts.
    pub sequence: u64,
    /// At most [`SECTOR_ENTRIES`].
    pub entries: Vec<LogEntry>,
}

/// Where copy `copy` (0 or 1) of sector `sector` lies in the region.
#[must_use]
pub fn activity_at(sector: usize, copy: usize) -> u64 {
    LOG_AT.saturating_add((2 * sector + copy) as u64 * PAGE_BYTES)
}

impl ActivitySector {
    /// The sector as it is written.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        put(&mut page, 0, &SIGNATURE);
        put(&mut page, SEQUENCE_AT, &self.sequence.to_le_bytes());
        put(&mut page, SESSION_AT, &self.session.to_le_bytes());
        let places = (ENTRIES_AT..).step_by(ENTRY_BYTES);
        for (at, entry) in places.zip(self.entries.iter().take(SECTOR_ENTRIES)) {
            put(&mut page, at, &entry.page.to_le_bytes());
            put(&mut page, at + MASK_IN, &entry.mask.to_le_bytes());
        }
        let crc = checksum(&page, CHECKSUM_AT);
        put(&mut page, CHECKSUM_AT, &crc.to_le_bytes());
        page
    }

    /// Reads one copy; entries that say nothing are left out.
    pub fn decode(page: &[u8]) -> Result<Self> {
        let page: &[u8; PAGE] = page
            .first_chunk()
            .ok_or_else(|| Error::corrupt("a sector of the activity log is cut short"))?;
        let signature: [u8; 4] = array(page, 0)?;
        if signature != SIGNATURE || u32_at(page, CHECKSUM_AT)? != checksum(page, CHECKSUM_AT) {
            return Err(Error::corrupt(
                "a sector of the activity log has a wrong signature or checksum",
            ));
        }
        let mut entries = Vec::new();
        for at in (ENTRIES_AT..).step_by(ENTRY_BYTES).take(SECTOR_ENTRIES) {
            let entry = LogEntry {
                page: u32_at(page, at)?,
                mask: u64_at(page, at + MASK_IN)?,
            };
            if entry.mask != 0 {
                entries.push(entry);
            }
        }
        Ok(Self {
            session: u64_at(page, SESSION_AT)?,
            sequence: u64_at(page, SEQUENCE_AT)?,
            entries,
        })
    }
}

/// What a sector says in session `session`, by its two copies; `None` if that session never wrote it.
#[must_use]
pub fn newest(copies: [&[u8]; 2], session: u64) -> Option<ActivitySector> {
    copies
        .into_iter()
        .filter_map(|copy| ActivitySector::decode(copy).ok())
        .filter(|sector| sector.session == session)
        .max_by_key(|sector| sector.sequence)
}
