//! Which parts of a disk changed since a checkpoint: turning that on and off, and asking.
//!
//! ```
//! use vdisk::create::{CreateOptions, create};
//! use vdisk::disk::{Disk, ImageFormat, OpenOptions, open_engine, random_bits};
//! use vdisk::format::track::CheckpointName;
//! use vdisk::storage::MemoryStorage;
//! use vdisk::track;
//!
//! let mut file = MemoryStorage::new();
//! create(&mut file, CreateOptions::new(1 << 30, &mut random_bits))?;
//! track::enable(&mut file, None, &mut random_bits)?;
//!
//! let engine = open_engine(&mut file, ImageFormat::Vhdx, &OpenOptions::default(), &mut random_bits)?;
//! let mut disk = Disk::new(Box::new(file.clone()), engine);
//! disk.checkpoint(CheckpointName::new("monday")?, 0)?;
//! # Ok::<(), vdisk::Error>(())
//! ```
//!
//! A *checkpoint* is a moment that has a name. Each has a bitmap of what changed from then until the
//! next one; what changed since a checkpoint is in its bitmap or a later one's. Where another program
//! wrote to the disk, that is noticed, and everything counts as changed.
//!
//! Drivers over a [`Storage`]: the image is not in use. While it is, the engine takes checkpoints
//! ([`Request::Checkpoint`](crate::engine::Request::Checkpoint)). It must never leave out a change.
//! What is written in which order is in `docs/tracking.md`.

mod changed;

use serde::Serialize;

pub use self::changed::{Changed, Since, changed};
use crate::error::{Error, ErrorKind, Result};
use crate::format::region::RegionEntry;
use crate::format::track::{
    BITMAPS_AT, HEADERS_AT, TRACK_REGION, TrackHeader, TrackShape, Validity,
};
use crate::format::{PAGE, Region, RegionTable};
use crate::open::{
    Image, Tracking, examine, mend_region_tables, prepare, recover_tracking, renew, track_region,
    write_header,
};
use crate::storage::Storage;
use crate::units::{FileOffset, MIB};

/// What is tracked of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrackStatus {
    /// Bytes of the disk that one bit tells about.
    pub granularity: u32,
    /// Bytes of the disk for which there are bits; what lies beyond counts as changed.
    pub capacity: u64,
    /// Where the tracking region lies in the file.
    pub region_offset: u64,
    /// How long it is; a hole for the most part.
    pub region_len: u64,
    /// How many checkpoints there can be.
    pub most_checkpoints: u32,
    /// "complete"; "interrupted" after a crash, until the disk is opened for writing; "foreign" if
    /// another program wrote to the disk.
    pub state: &'static str,
    /// The oldest first.
    pub checkpoints: Vec<CheckpointStatus>,
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointStatus {
    /// What it is called.
    pub name: String,
    /// Grows from one to the next; never used again.
    pub id: u64,
    /// When it was taken, in seconds since 1970, as whoever took it said.
    pub time: u64,
    /// Bytes of the disk then.
    pub size: u64,
    /// Whether it is known what changed since; else everything counts as changed.
    pub known: bool,
}

fn not_tracked() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "changes of this disk are not tracked; turn tracking on first",
    )
}

/// What is tracked of a disk; `None` if nothing is. `Corrupt` if what was tracked is damaged.
pub fn status(storage: &mut dyn Storage) -> Result<Option<TrackStatus>> {
    let image = examine(storage)?;
    let read = Tracking::read(storage, &image.regions, image.header.data_write)?;
    let Some(tracking) = read else {
        return Ok(None);
    };
    let foreign = tracking.validity == Validity::Foreign;
    let checkpoints = tracking.header.checkpoints.iter();
    let shape = tracking.header.shape;
    Ok(Some(TrackStatus {
        granularity: shape.granularity,
        capacity: shape.capacity,
        region_offset: tracking.region.at.0,
        region_len: tracking.region.len,
        most_checkpoints: shape.bitmaps,
        state: match tracking.validity {
            // Without a checkpoint nothing can have been missed.
            _ if tracking.header.checkpoints.is_empty() => "complete",
            Validity::Complete => "complete",
            Validity::Interrupted => "interrupted",
            Validity::Foreign => "foreign",
        },
        checkpoints: checkpoints
            .map(|one| CheckpointStatus {
                name: one.name.to_string(),
                id: one.id,
                time: one.time,
                size: one.size,
                known: !one.lost && !foreign,
            })
            .collect(),
    }))
}

/// Turns tracking on: a region at the end of the file, of which the image says nothing until it is
/// whole. Without a granularity, one by the size of the disk.
///
/// A crash leaves it on or off. `InvalidArgument` if it is on, or for a granularity that cannot be.
pub fn enable(
    storage: &mut dyn Storage,
    granularity: Option<u32>,
    random: &mut dyn FnMut() -> u128,
) -> Result<TrackShape> {
    let mut image = prepare(storage, true, random)?;
    if track_region(&image.regions).is_some() {
        return Err(Error::invalid("changes of this disk are tracked already"));
    }
    let shape = TrackShape::for_disk(image.geometry.virtual_size(), granularity)?;
    renew(storage, &mut image, random)?;
    let region = Region {
        at: FileOffset(image.end_of_used.next_multiple_of(MIB)),
        len: shape.region_len(),
    };
    let failed = |source| Error::io("there is no room to note what changes", source);
    // Cut first: what lies beyond the end reads as zero when the file becomes longer again.
    storage.set_len(region.at.0).map_err(failed)?;
    storage.set_len(region.end()).map_err(failed)?;
    storage.reserve(region.at.0, BITMAPS_AT).map_err(failed)?;
    let header = TrackHeader::new(shape, image.header.data_write);
    let at = region.at.0 + HEADERS_AT.first().copied().unwrap_or_default();
    storage
        .write_at(at, &header.encode())
        .and_then(|()| storage.flush())
        .map_err(failed)?;
    let mut table = image.regions.clone();
    table.entries.push(RegionEntry {
        id: TRACK_REGION,
        place: region,
        required: false,
    });
    put_table(storage, &image, &table, random)?;
    Ok(shape)
}

/// Turns tracking off, and gives its region back. A crash leaves it on or off.
///
/// `Unsupported` if it is off.
pub fn disable(storage: &mut dyn Storage, random: &mut dyn FnMut() -> u128) -> Result<()> {
    let image = prepare(storage, true, random)?;
    if track_region(&image.regions).is_none() {
        return Err(not_tracked());
    }
    let mut table = image.regions.clone();
    table.entries.retain(|entry| entry.id != TRACK_REGION);
    put_table(storage, &image, &table, random)?;
    let image = prepare(storage, true, random)?;
    storage
        .set_len(image.end_of_used)
        .and_then(|()| storage.flush())
        .map_err(|source| Error::io("the room for what changed cannot be given back", source))
}

fn put_table(
    storage: &mut dyn Storage,
    image: &Image,
    table: &RegionTable,
    random: &mut dyn FnMut() -> u128,
) -> Result<()> {
    let current = (image.header.clone(), image.slot);
    mend_region_tables(storage, current, &table.encode(), random).map(drop)
}

/// Forgets the checkpoint `name`. What changed since earlier ones is known as before.
///
/// `InvalidArgument` if there is none of that name, `Unsupported` where nothing is tracked.
pub fn remove_checkpoint(
    storage: &mut dyn Storage,
    name: &str,
    random: &mut dyn FnMut() -> u128,
) -> Result<()> {
    let mut image = prepare(storage, true, random)?;
    let state = recover_tracking(storage, &mut image, random)?.ok_or_else(not_tracked)?;
    let mut tracking = Tracking {
        region: state.region,
        header: state.header,
        copy: state.copy,
        validity: Validity::Complete,
    };
    let number = find(&tracking.header, name)?;
    renew(storage, &mut image, random)?;
    let earlier = number.checked_sub(1);
    let removed = tracking.header.checkpoints.get(number).copied();
    if let (Some(removed), Some(earlier)) = (removed, earlier)
        && let Some(into) = tracking.header.checkpoints.get_mut(earlier)
    {
        into.low = into.low.min(removed.low);
        let bitmaps = (removed.bitmap, into.bitmap);
        if !into.lost {
            merge_bitmaps(storage, &tracking, bitmaps)?;
        }
    }
    tracking.header.checkpoints.remove(number);
    write_header(storage, &mut tracking, image.header.data_write)
}

fn find(header: &TrackHeader, name: &str) -> Result<usize> {
    let mut checkpoints = header.checkpoints.iter();
    let found = checkpoints.position(|one| one.name.as_str() == name);
    found.ok_or_else(|| Error::invalid(format!("there is no checkpoint named `{name}`")))
}

/// Adds the bits of one bitmap to another, durably.
fn merge_bitmaps(
    storage: &mut dyn Storage,
    tracking: &Tracking,
    (from, into): (u32, u32),
) -> Result<()> {
    let failed = |source| Error::io("what changed cannot be noted", source);
    let shape = tracking.header.shape;
    let base = tracking.region.at.0;
    let end = base + shape.page_at(from, 0) + shape.bitmap_len;
    let mut next = base + shape.page_at(from, 0);
    while let Some(data) = storage.next_data(next).map_err(failed)?
        && data < end
    {
        let page = (data - base - shape.page_at(from, 0)) / PAGE as u64;
        let (source, target) = (shape.page_at(from, page), shape.page_at(into, page));
        let (mut bits, mut sum) = (vec![0; PAGE], vec![0; PAGE]);
        storage.read_at(base + source, &mut bits).map_err(failed)?;
        storage.read_at(base + target, &mut sum).map_err(failed)?;
        if bits.iter().any(|byte| *byte != 0) {
            for (sum, byte) in sum.iter_mut().zip(&bits) {
                *sum |= byte;
            }
            storage.write_at(base + target, &sum).map_err(failed)?;
        }
        next = base + source + PAGE as u64;
    }
    storage.flush().map_err(failed)
}
