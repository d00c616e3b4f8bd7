//! The tracking region: which parts of the disk changed since its checkpoints. It is Diskferry's own,
//! optional to everybody else; `docs/tracking.md` specifies it.
//!
//! ```text
//!   0        4K       64K                        320K      1M
//!   +--------+--------+--------------------------+---------+----------+----------+--
//!   | header | header | activity log: 32 sectors | zero    | bitmap 0 | bitmap 1 | ...
//!   |   1    |   2    | of 4 KiB, each twice     |         |          |          |
//!   +--------+--------+--------------------------+---------+----------+----------+--
//! ```
//!
//! It must never panic on what a file says, nor let a file ask for memory without a bound.

mod activity;

pub use activity::{
    ActivitySector, LOG_AT, LOG_SECTORS, LogEntry, SECTOR_ENTRIES, activity_at, newest,
};

use std::fmt;

use crate::error::{Error, Result};
use crate::units::{MAX_VIRTUAL_SIZE, MIB};

use super::field::{array, guid_at, put, u32_at, u64_at};
use super::{Guid, PAGE, PAGE_BYTES, checksum};

/// The region's GUID in the region table; never required.
pub const TRACK_REGION: Guid = Guid::known(0x6B1F_0C5E_8D0A_4C1B_9E57_2A7D_94C3_E1F8);

/// Where the two headers lie in the region; the one with the greater number counts.
pub const HEADERS_AT: [u64; 2] = [0, PAGE_BYTES];

/// Where the bitmaps begin in the region.
pub const BITMAPS_AT: u64 = MIB;

/// Checkpoints, and bitmaps, of one disk at most.
pub const MAX_CHECKPOINTS: usize = 16;

/// The finest grain of what is tracked, in bytes.
pub const LEAST_GRANULARITY: u32 = 4 << 10;

/// The coarsest one.
pub const MOST_GRANULARITY: u32 = 1 << 20;

/// Granules that one page of a bitmap tells about.
pub const PAGE_GRANULES: u64 = PAGE_BYTES * 8;

/// Bytes of a part of such a page: what the activity log names at once.
pub const PART_BYTES: usize = PAGE / 64;

/// Longest name of a checkpoint in bytes.
pub const NAME_BYTES: usize = 64;

/// A disk gets the finest granularity from 64 KiB up with which a bitmap has at most so many bytes.
const CHOSEN_BITMAP: u64 = 16 << 20;

/// The length of a region is 32 bits of whole mebibytes.
const MOST_REGION: u64 = (4 << 30) - MIB;

const SIGNATURE: [u8; 8] = *b"dfertrak";
const CHECKSUM_AT: usize = 8;
const VERSION_AT: usize = 12;
const SEQUENCE_AT: usize = 16;
const SESSION_AT: usize = 24;
const MADE_FOR_AT: usize = 32;
const NEXT_AT: usize = 48;
const GRANULARITY_AT: usize = 64;
const FLAGS_AT: usize = 68;
const CAPACITY_AT: usize = 72;
const BITMAP_LEN_AT: usize = 80;
const BITMAPS_COUNT_AT: usize = 88;
const COUNT_AT: usize = 92;
const NEXT_ID_AT: usize = 96;
const CHECKPOINTS_AT: usize = 128;
const CHECKPOINT_BYTES: usize = 128;

const ID_IN: usize = 0;
const TIME_IN: usize = 8;
const SIZE_IN: usize = 16;
const LOW_IN: usize = 24;
const BITMAP_IN: usize = 32;
const LOST_IN: usize = 36;
const NAME_LEN_IN: usize = 40;
const NAME_IN: usize = 64;

const VERSION: u32 = 1;
const CLEAN: u32 = 1;

const _: () = assert!(CHECKPOINTS_AT + MAX_CHECKPOINTS * CHECKPOINT_BYTES <= PAGE);
const _: () = assert!(NAME_IN + NAME_BYTES <= CHECKPOINT_BYTES);
const _: () = assert!(LOG_AT + (2 * LOG_SECTORS * PAGE) as u64 <= BITMAPS_AT);

/// The name of a checkpoint: 1 to 64 bytes of text without control characters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CheckpointName {
    len: u8,
    bytes: [u8; NAME_BYTES],
}

impl CheckpointName {
    /// The name that `text` is; `InvalidArgument` if it can be none.
    pub fn new(text: &str) -> Result<Self> {
        let mut bytes = [0; NAME_BYTES];
        let room = bytes.get_mut(..text.len()).filter(|room| !room.is_empty());
        let Some(room) = room else {
            return Err(Error::invalid(format!(
                "a checkpoint's name has 1 to {NAME_BYTES} bytes, not {}",
                text.len()
            )));
        };
        if text.chars().any(char::is_control) {
            return Err(Error::invalid(
                "a checkpoint's name has no control characters",
            ));
        }
        room.copy_from_slice(text.as_bytes());
        Ok(Self {
            len: text.len() as u8,
            bytes,
        })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What is tracked of a disk, and how much room that takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackShape {
    /// Bytes of the disk that one bit tells about: a power of two from 4 KiB to 1 MiB.
    pub granularity: u32,
    /// Bytes of the disk that a bitmap covers; what lies beyond counts as changed.
    pub capacity: u64,
    /// Bytes of one bitmap, whole pages of 4 KiB.
    pub bitmap_len: u64,
    /// How many bitmaps there is room for.
    pub bitmaps: u32,
}

impl TrackShape {
    /// The shape for a disk of `size` bytes: that granularity, or one by the size. There is room for
    /// the disk to become twice as large at least, as a hole in the file.
    ///
    /// `InvalidArgument` for a granularity that cannot be, or is too fine for so large a disk.
    pub fn for_disk(size: u64, granularity: Option<u32>) -> Result<Self> {
        let most = size.saturating_mul(2).min(MAX_VIRTUAL_SIZE);
        let capacity = most.max(1).next_power_of_two();
        let chosen = size.div_ceil(CHOSEN_BITMAP * 8).next_power_of_two();
        let chosen = chosen.clamp(64 << 10, u64::from(MOST_GRANULARITY)) as u32;
        let granularity = granularity.unwrap_or(chosen);
        check_granularity(granularity)?;
        let capacity = capacity.max(u64::from(granularity));
        let bits = capacity.div_ceil(u64::from(granularity));
        let bitmap_len = bits.div_ceil(PAGE_GRANULES).saturating_mul(PAGE_BYTES);
        let bitmaps = ((MOST_REGION - BITMAPS_AT) / bitmap_len).min(MAX_CHECKPOINTS as u64) as u32;
        if bitmaps < 2 {
            let least =
                capacity.div_ceil((MOST_REGION - BITMAPS_AT) / 2 / PAGE_BYTES * PAGE_GRANULES);
            return Err(Error::invalid(format!(
                "a granularity of {granularity} bytes is too fine for a disk of {size} bytes; \
                 choose at least {}",
                least.next_power_of_two()
            )));
        }
        Ok(Self {
            granularity,
            capacity,
            bitmap_len,
            bitmaps,
        })
    }

    /// Bytes of the region: whole mebibytes.
    #[must_use]
    pub fn region_len(&self) -> u64 {
        let bitmaps = self.bitmap_len.saturating_mul(u64::from(self.bitmaps));
        BITMAPS_AT
            .saturating_add(bitmaps)
            .div_ceil(MIB)
            .saturating_mul(MIB)
    }

    /// Granules that a bitmap covers.
    #[must_use]
    pub fn granules(&self) -> u64 {
        self.capacity.div_ceil(u64::from(self.granularity))
    }

    /// Where page `page` of bitmap `bitmap` lies in the region.
    #[must_use]
    pub fn page_at(&self, bitmap: u32, page: u64) -> u64 {
        let bitmap = u64::from(bitmap).saturating_mul(self.bitmap_len);
        BITMAPS_AT
            .saturating_add(bitmap)
            .saturating_add(page.saturating_mul(PAGE_BYTES))
    }

    fn check(&self, region_len: u64) -> Result<()> {
        check_granularity(self.granularity)?;
        let bits = self.granules();
        let holds = self.bitmap_len.saturating_mul(8) >= bits;
        let whole = self.bitmap_len.is_multiple_of(PAGE_BYTES) && self.bitmap_len > 0;
        let some = self.capacity > 0 && self.capacity <= MAX_VIRTUAL_SIZE;
        let count = (1..=MAX_CHECKPOINTS as u32).contains(&self.bitmaps);
        if holds && whole && some && count && self.region_len() <= region_len {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "the tracking region of {region_len} bytes claims {} bitmaps of {} bytes for a disk of \
             {} bytes",
            self.bitmaps, self.bitmap_len, self.capacity
        )))
    }
}

fn check_granularity(granularity: u32) -> Result<()> {
    if granularity.is_power_of_two()
        && (LEAST_GRANULARITY..=MOST_GRANULARITY).contains(&granularity)
    {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a granularity of {granularity} bytes is not possible; choose a power of two from 4 KiB to 1 MiB"
    )))
}

/// A moment since which changes are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Grows from one to the next; never used again.
    pub id: u64,
    /// What it is called; no two of a disk are called alike.
    pub name: CheckpointName,
    /// When it was taken, in seconds since 1970, as whoever took it said.
    pub time: u64,
    /// Bytes of the disk then.
    pub size: u64,
    /// Least bytes of the disk since, until the next checkpoint was taken.
    pub low: u64,
    /// Which bitmap says what changed, until the next checkpoint was taken.
    pub bitmap: u32,
    /// Changes after it may have been missed.
    pub lost: bool,
}

/// The header of the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackHeader {
    /// The header with the greater number counts.
    pub sequence: u64,
    /// Number of the session that writes the activity log; sectors of others mean nothing.
    pub session: u64,
    /// The `DataWriteGuid` of the image with which the bitmaps are complete.
    pub made_for: Guid,
    /// The `DataWriteGuid` of the session that began then.
    pub next: Guid,
    /// Whether that session has ended and everything it changed is in the bitmaps.
    pub clean: bool,
    /// What is tracked.
    pub shape: TrackShape,
    /// The id of the next checkpoint.
    pub next_id: u64,
    /// The oldest first; the last one's bitmap collects what changes now.
    pub checkpoints: Vec<Checkpoint>,
}

/// What an image's `DataWriteGuid` says of its tracking region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// The bitmaps hold every change.
    Complete,
    /// The bitmaps and the regions of the activity log together do: a session was cut off.
    Interrupted,
    /// Somebody else wrote to the disk: anything may have changed.
    Foreign,
}

impl TrackHeader {
    /// The header of a region just made, for a disk whose `DataWriteGuid` is `made_for`.
    #[must_use]
    pub fn new(shape: TrackShape, made_for: Guid) -> Self {
        Self {
            sequence: 1,
            session: 0,
            made_for,
            next: Guid::ZERO,
            clean: true,
            shape,
            next_id: 1,
            checkpoints: Vec::new(),
        }
    }

    /// What is known if `data_write` is the image's `DataWriteGuid`.
    #[must_use]
    pub fn validity(&self, data_write: Guid) -> Validity {
        match (data_write == self.made_for, data_write == self.next) {
            (_, true) if !self.clean => Validity::Interrupted,
            (true, _) => Validity::Complete,
            _ => Validity::Foreign,
        }
    }

    /// The checkpoint whose bitmap collects changes, if one does.
    #[must_use]
    pub fn collecting(&self) -> Option<&Checkpoint> {
        self.checkpoints.last().filter(|last| !last.lost)
    }

    /// Changes of every checkpoint there is were missed.
    pub fn lose_all(&mut self) {
        for checkpoint in &mut self.checkpoints {
            checkpoint.lost = true;
        }
    }

    /// A bitmap that no checkpoint uses.
    #[must_use]
    pub fn unused_bitmap(&self) -> Option<u32> {
        let used = |number: &u32| self.checkpoints.iter().any(|one| one.bitmap == *number);
        (0..self.shape.bitmaps).find(|number| !used(number))
    }

    /// The header as it is written.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        put(&mut page, 0, &SIGNATURE);
        put(&mut page, VERSION_AT, &VERSION.to_le_bytes());
        put(&mut page, SEQUENCE_AT, &self.sequence.to_le_bytes());
        put(&mut page, SESSION_AT, &self.session.to_le_bytes());
        put(&mut page, MADE_FOR_AT, &self.made_for.0);
        put(&mut page, NEXT_AT, &self.next.0);
        let shape = &self.shape;
        put(&mut page, GRANULARITY_AT, &shape.granularity.to_le_bytes());
        let flags = if self.clean { CLEAN } else { 0 };
        put(&mut page, FLAGS_AT, &flags.to_le_bytes());
        put(&mut page, CAPACITY_AT, &shape.capacity.to_le_bytes());
        put(&mut page, BITMAP_LEN_AT, &shape.bitmap_len.to_le_bytes());
        put(&mut page, BITMAPS_COUNT_AT, &shape.bitmaps.to_le_bytes());
        let count = self.checkpoints.len().min(MAX_CHECKPOINTS) as u32;
        put(&mut page, COUNT_AT, &count.to_le_bytes());
        put(&mut page, NEXT_ID_AT, &self.next_id.to_le_bytes());
        let places = (CHECKPOINTS_AT..).step_by(CHECKPOINT_BYTES);
        for (at, checkpoint) in places.zip(self.checkpoints.iter().take(MAX_CHECKPOINTS)) {
            checkpoint.encode(&mut page, at);
        }
        let crc = checksum(&page, CHECKSUM_AT);
        put(&mut page, CHECKSUM_AT, &crc.to_le_bytes());
        page
    }

    /// Reads one header of a region of `region_len` bytes.
    pub fn decode(page: &[u8], region_len: u64) -> Result<Self> {
        let page: &[u8; PAGE] = page
            .first_chunk()
            .ok_or_else(|| Error::corrupt("the tracking header is cut short"))?;
        let signature: [u8; 8] = array(page, 0)?;
        if signature != SIGNATURE {
            return Err(Error::corrupt(format!(
                "the tracking header's signature is {signature:02x?}"
            )));
        }
        let (stored, actual) = (u32_at(page, CHECKSUM_AT)?, checksum(page, CHECKSUM_AT));
        if stored != actual {
            return Err(Error::corrupt(format!(
                "the tracking header's checksum is {stored:#010x}, its bytes give {actual:#010x}"
            )));
        }
        let version = u32_at(page, VERSION_AT)?;
        if version != VERSION {
            return Err(Error::corrupt(format!(
                "the tracking header's version is {version}, only {VERSION} is known"
            )));
        }
        let shape = TrackShape {
            granularity: u32_at(page, GRANULARITY_AT)?,
            capacity: u64_at(page, CAPACITY_AT)?,
            bitmap_len: u64_at(page, BITMAP_LEN_AT)?,
            bitmaps: u32_at(page, BITMAPS_COUNT_AT)?,
        };
        shape
            .check(region_len)
            .map_err(|error| Error::corrupt(error.to_string()))?;
        let count = u32_at(page, COUNT_AT)?;
        if count > shape.bitmaps {
            return Err(Error::corrupt(format!(
                "the tracking header has {count} checkpoints and {} bitmaps",
                shape.bitmaps
            )));
        }
        let header = Self {
            sequence: u64_at(page, SEQUENCE_AT)?,
            session: u64_at(page, SESSION_AT)?,
            made_for: guid_at(page, MADE_FOR_AT)?,
            next: guid_at(page, NEXT_AT)?,
            clean: u32_at(page, FLAGS_AT)? & CLEAN != 0,
            shape,
            next_id: u64_at(page, NEXT_ID_AT)?,
            checkpoints: (CHECKPOINTS_AT..)
                .step_by(CHECKPOINT_BYTES)
                .take(count as usize)
                .map(|at| Checkpoint::decode(page, at))
                .collect::<Result<_>>()?,
        };
        header.consistent()?;
        Ok(header)
    }

    /// Of the pages at [`HEADERS_AT`], the header that counts, and which of the two it is.
    pub fn choose(pages: &[Vec<u8>; 2], region_len: u64) -> Result<(Self, usize)> {
        let [one, two] = pages;
        let both = [Self::decode(one, region_len), Self::decode(two, region_len)];
        match both {
            [Ok(one), Ok(two)] if two.sequence > one.sequence => Ok((two, 1)),
            [Ok(one), _] => Ok((one, 0)),
            [Err(_), Ok(two)] => Ok((two, 1)),
            [Err(one), Err(two)] => Err(Error::corrupt(format!(
                "both tracking headers are damaged: {one}; {two}"
            ))),
        }
    }

    /// Whether the checkpoints can be those of one disk.
    fn consistent(&self) -> Result<()> {
        let mut before: Option<&Checkpoint> = None;
        for (number, checkpoint) in self.checkpoints.iter().enumerate() {
            let others = self.checkpoints.iter().take(number);
            let clash = |other: &Checkpoint| {
                other.bitmap == checkpoint.bitmap || other.name == checkpoint.name
            };
            let ordered = before.is_none_or(|one| one.id < checkpoint.id);
            // Whoever is missed after a later checkpoint is missed after all earlier ones.
            let lost_first = !checkpoint.lost || before.is_none_or(|one| one.lost);
            if checkpoint.bitmap >= self.shape.bitmaps
                || checkpoint.id >= self.next_id
                || checkpoint.low > checkpoint.size
                || !ordered
                || !lost_first
                || others.into_iter().any(clash)
            {
                return Err(Error::corrupt(format!(
                    "checkpoint {} of the tracking header contradicts the others",
                    checkpoint.id
                )));
            }
            before = Some(checkpoint);
        }
        Ok(())
    }
}

impl Checkpoint {
    fn encode(&self, page: &mut [u8], at: usize) {
        put(page, at + ID_IN, &self.id.to_le_bytes());
        put(page, at + TIME_IN, &self.time.to_le_bytes());
        put(page, at + SIZE_IN, &self.size.to_le_bytes());
        put(page, at + LOW_IN, &self.low.to_le_bytes());
        put(page, at + BITMAP_IN, &self.bitmap.to_le_bytes());
        put(page, at + LOST_IN, &u32::from(self.lost).to_le_bytes());
        let len = u32::from(self.name.len);
        put(page, at + NAME_LEN_IN, &len.to_le_bytes());
        put(page, at + NAME_IN, &self.name.bytes);
    }

    fn decode(page: &[u8], at: usize) -> Result<Self> {
        let name: [u8; NAME_BYTES] = array(page, at + NAME_IN)?;
        let len = u32_at(page, at + NAME_LEN_IN)? as usize;
        let text = name
            .get(..len)
            .and_then(|name| std::str::from_utf8(name).ok());
        let name = text
            .ok_or_else(|| Error::corrupt("a checkpoint's name is not text"))
            .and_then(CheckpointName::new)
            .map_err(|error| Error::corrupt(error.to_string()))?;
        Ok(Self {
            id: u64_at(page, at + ID_IN)?,
            name,
            time: u64_at(page, at + TIME_IN)?,
            size: u64_at(page, at + SIZE_IN)?,
            low: u64_at(page, at + LOW_IN)?,
            bitmap: u32_at(page, at + BITMAP_IN)?,
            lost: u32_at(page, at + LOST_IN)? != 0,
        })
    }
}

#[cfg(test)]
mod tests;
