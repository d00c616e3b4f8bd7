//! Reading what an image says of changes since its checkpoints, and completing it after a crash.
//!
//! ```text
//!   image's DataWriteGuid    header            what is known
//!   made_for                                   the bitmaps hold every change
//!   next                     not clean         the bitmaps and the activity log together do
//!   any other                                  nothing: another program wrote to the disk
//! ```
//!
//! It must never take a change back, nor say that nothing changed where that is not known. The layout
//! is `format/track.rs`, the order of writes `docs/tracking.md`.

use std::collections::BTreeMap;

use crate::engine::TrackState;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::Header;
use crate::format::track::{
    HEADERS_AT, LOG_SECTORS, PAGE_GRANULES, PART_BYTES, TRACK_REGION, TrackHeader, Validity,
    activity_at, newest,
};
use crate::format::{Code, Finding, Guid, PAGE, Region, RegionTable};
use crate::storage::Storage;

use super::Image;
use super::replay::header_update;

/// The tracking region of an image, and what it is worth.
#[derive(Clone, Debug)]
pub(crate) struct Tracking {
    pub(crate) region: Region,
    pub(crate) header: TrackHeader,
    /// Which of the two headers counts.
    pub(crate) copy: usize,
    pub(crate) validity: Validity,
}

/// Where the tracking region lies, if there is one.
pub(crate) fn track_region(regions: &RegionTable) -> Option<Region> {
    let mut entries = regions.entries.iter();
    let entry = entries.find(|entry| entry.id == TRACK_REGION)?;
    Some(entry.place)
}

fn failed(source: std::io::Error) -> Error {
    Error::io("cannot read what is tracked of changes", source)
}

impl Tracking {
    /// Reads the header of the region; `None` for an image that has none, `Corrupt` for one in which
    /// both headers are damaged.
    pub(crate) fn read(
        storage: &mut dyn Storage,
        regions: &RegionTable,
        data_write: Guid,
    ) -> Result<Option<Self>> {
        let Some(region) = track_region(regions) else {
            return Ok(None);
        };
        let mut pages = [vec![0; PAGE], vec![0; PAGE]];
        for (at, page) in HEADERS_AT.into_iter().zip(&mut pages) {
            storage.read_at(region.at.0 + at, page).map_err(failed)?;
        }
        let (header, copy) =
            TrackHeader::choose(&pages, region.len).map_err(|error| error.at(region.at.0))?;
        let validity = header.validity(data_write);
        Ok(Some(Self {
            region,
            header,
            copy,
            validity,
        }))
    }

    /// The parts of the bitmap that collects in which anything may have changed without a bit: by the
    /// number of their page, one bit for each of its 64 parts.
    pub(crate) fn active(&self, storage: &mut dyn Storage) -> Result<BTreeMap<u64, u64>> {
        let mut active = BTreeMap::new();
        if self.validity != Validity::Interrupted || self.header.collecting().is_none() {
            return Ok(active);
        }
        let pages = self.header.shape.granules().div_ceil(PAGE_GRANULES);
        for sector in 0..LOG_SECTORS {
            let mut copies = [vec![0; PAGE], vec![0; PAGE]];
            for (copy, page) in copies.iter_mut().enumerate() {
                let at = self.region.at.0 + activity_at(sector, copy);
                storage.read_at(at, page).map_err(failed)?;
            }
            let [one, two] = &copies;
            let Some(sector) = newest([one, two], self.header.session) else {
                continue;
            };
            for entry in sector.entries {
                if u64::from(entry.page) < pages {
                    *active.entry(u64::from(entry.page)).or_default() |= entry.mask;
                }
            }
        }
        Ok(active)
    }
}

/// Sets all bits of the parts `mask` of a page.
pub(crate) fn set_parts(page: &mut [u8], mask: u64) {
    for (number, part) in page.chunks_mut(PART_BYTES).take(64).enumerate() {
        if mask >> number & 1 == 1 {
            part.fill(0xFF);
        }
    }
}

/// What the engine shall go on with, of an image that is opened for writing: what a crash left in the
/// activity log goes to the bitmap first. `None` where changes are not tracked.
///
/// It can be cut off at any point and done again: bits are only added, and the log counts until the
/// header says that they are there.
pub(crate) fn recover_tracking(
    storage: &mut dyn Storage,
    image: &mut Image,
    random: &mut dyn FnMut() -> u128,
) -> Result<Option<TrackState>> {
    let data_write = image.header.data_write;
    let mut tracking = match Tracking::read(storage, &image.regions, data_write) {
        Ok(Some(tracking)) => tracking,
        Ok(None) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            image.warnings.push(damaged(&error));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if tracking.validity == Validity::Foreign {
        tracking.header.lose_all();
    }
    let active = tracking.active(storage)?;
    if !active.is_empty() {
        renew(storage, image, random)?;
        let bitmap = tracking.header.collecting().map_or(0, |last| last.bitmap);
        for (page, mask) in active {
            let at = tracking.region.at.0 + tracking.header.shape.page_at(bitmap, page);
            let mut bits = vec![0; PAGE];
            storage.read_at(at, &mut bits).map_err(failed)?;
            set_parts(&mut bits, mask);
            storage.write_at(at, &bits).map_err(failed)?;
        }
        storage.flush().map_err(failed)?;
        write_header(storage, &mut tracking, data_write)?;
    }
    // Also if nothing was to be added: a session that was cut off before the image had its version must
    // not be what the next one goes on from.
    (tracking.header.made_for, tracking.header.clean) = (data_write, true);
    Ok(Some(TrackState {
        region: tracking.region,
        header: tracking.header,
        copy: tracking.copy,
    }))
}

/// That both headers of the region are damaged, as a finding.
pub(crate) fn damaged(error: &Error) -> Finding {
    let follows = "changes are not tracked any more; turn tracking off and on again";
    let finding = Finding::warning(
        Code::TrackingDamaged,
        "tracking region",
        error.to_string(),
        follows,
    );
    match error.offset() {
        Some(at) => finding.at(at),
        None => finding,
    }
}

/// Another `FileWriteGuid`, before anything of the file changes (MS-VHDX 2.2.2).
pub(crate) fn renew(
    storage: &mut dyn Storage,
    image: &mut Image,
    random: &mut dyn FnMut() -> u128,
) -> Result<()> {
    let renewed = Header {
        file_write: Guid::from_random(random()),
        ..image.header.clone()
    };
    (image.header, image.slot) = header_update(storage, image.slot, renewed)?;
    Ok(())
}

/// Writes the header over the older one: the bitmaps are complete for the image's version. Durable.
pub(crate) fn write_header(
    storage: &mut dyn Storage,
    tracking: &mut Tracking,
    data_write: Guid,
) -> Result<()> {
    let header = &mut tracking.header;
    (header.made_for, header.clean) = (data_write, true);
    header.sequence = header.sequence.saturating_add(1);
    tracking.copy = 1 - tracking.copy.min(1);
    let at = HEADERS_AT.get(tracking.copy).copied().unwrap_or_default();
    storage
        .write_at(tracking.region.at.0 + at, &header.encode())
        .and_then(|()| storage.flush())
        .map_err(|source| Error::io("cannot write the tracking header", source))
}
