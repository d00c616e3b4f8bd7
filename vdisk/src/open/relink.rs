//! Giving a differencing disk another parent locator, while it is not in use.

use crate::error::Result;
use crate::format::ParentLocator;
use crate::format::metadata::place_locator;
use crate::storage::Storage;

use super::mend::{change_pages, pages_over};
use super::prepare;

/// Makes `locator` what the image says of its parent, in one step: a crash leaves the old one or the
/// new one. What the disk holds does not change, nor its `DataWriteGuid`.
///
/// A dirty image is replayed first. Fails with `InvalidArgument` for a disk without a parent,
/// `Unsupported` for a locator that could not be read again, and as [`load`](crate::open::load) does.
pub fn set_locator(
    storage: &mut dyn Storage,
    locator: &ParentLocator,
    random: &mut dyn FnMut() -> u128,
) -> Result<()> {
    locator.check()?;
    let image = prepare(storage, false, random)?;
    let content = locator.encode();
    let region = image.metadata_region();
    let (entry_at, entry) = place_locator(&image.metadata.items, region.len, content.len())?;
    let offset = entry
        .get(16..20)
        .and_then(|field| field.first_chunk::<4>())
        .map_or(0, |field| u64::from(u32::from_le_bytes(*field)));
    let mut pages = pages_over(storage, region.at.0 + offset, &content)?;
    pages.extend(pages_over(storage, region.at.0 + entry_at as u64, &entry)?);
    change_pages(storage, (image.header, image.slot), &pages, random).map(drop)
}
