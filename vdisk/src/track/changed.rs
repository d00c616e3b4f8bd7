//! Listing what changed between a checkpoint and another moment.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::format::PAGE;
use crate::format::track::{Checkpoint, PAGE_GRANULES, Validity};
use crate::open::{Tracking, examine, set_parts};
use crate::storage::Storage;

use super::{find, not_tracked};

/// Bytes of a bitmap that are read at once.
const PIECE: u64 = 256 << 10;

/// Between which two moments.
#[derive(Clone, Copy, Debug)]
pub struct Since<'a> {
    /// The name of the checkpoint at which it begins.
    pub checkpoint: &'a str,
    /// The name of the checkpoint at which it ends; `None` for now.
    pub until: Option<&'a str>,
}

/// What was listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// Whether it is known what changed. If not, all of the disk was listed.
    pub known: bool,
    /// Whether more than what changed may have been listed, since the disk's last user was cut off.
    pub rough: bool,
    /// Bytes of the disk that one bit tells about.
    pub granularity: u32,
    /// How many extents were listed, and how many bytes they have.
    pub extents: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Size of the disk at the end of the time asked about.
    pub virtual_size: u64,
}

/// Puts runs together and passes them on.
struct Runs<'a> {
    run: Option<(u64, u64)>,
    listed: Changed,
    each: &'a mut dyn FnMut(u64, u64) -> Result<()>,
}

impl Runs<'_> {
    fn add(&mut self, start: u64, end: u64) -> Result<()> {
        let end = end.min(self.listed.virtual_size);
        if start >= end {
            return Ok(());
        }
        match &mut self.run {
            Some((_, last)) if *last >= start => *last = end.max(*last),
            _ => {
                self.pass()?;
                self.run = Some((start, end));
            }
        }
        Ok(())
    }

    fn pass(&mut self) -> Result<()> {
        let Some((start, end)) = self.run.take() else {
            return Ok(());
        };
        self.listed.extents += 1;
        self.listed.bytes += end - start;
        (self.each)(start, end - start)
    }
}

/// Lists what changed: calls `each` with offset and length of every extent, in ascending order, none
/// adjoining another. Never leaves out a change; where it is not known what changed, that is all.
///
/// `InvalidArgument` for a checkpoint that is not there, `Unsupported` where nothing is tracked.
pub fn changed(
    storage: &mut dyn Storage,
    since: Since<'_>,
    each: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Changed> {
    let image = examine(storage)?;
    let read = Tracking::read(storage, &image.regions, image.header.data_write)?;
    let tracking = read.ok_or_else(not_tracked)?;
    let header = &tracking.header;
    let first = find(header, since.checkpoint)?;
    let last = since.until.map(|name| find(header, name)).transpose()?;
    let end = last.unwrap_or(header.checkpoints.len());
    let Some(span) = header.checkpoints.get(first..end) else {
        return Err(Error::invalid(
            "the second checkpoint is older than the first",
        ));
    };
    let now = image.geometry.virtual_size();
    let until = last.and_then(|last| header.checkpoints.get(last));
    let mut runs = Runs {
        run: None,
        listed: Changed {
            known: tracking.validity != Validity::Foreign && span.iter().all(|one| !one.lost),
            rough: tracking.validity == Validity::Interrupted && until.is_none(),
            granularity: header.shape.granularity,
            extents: 0,
            bytes: 0,
            virtual_size: until.map_or(now, |one| one.size),
        },
        each,
    };
    if runs.listed.known {
        let active = match until {
            None => tracking.active(storage)?,
            Some(_) => BTreeMap::new(),
        };
        list(storage, &tracking, (span, &active), &mut runs)?;
    } else {
        runs.add(0, u64::MAX)?;
    }
    runs.pass()?;
    Ok(runs.listed)
}

fn list(
    storage: &mut dyn Storage,
    tracking: &Tracking,
    (span, active): (&[Checkpoint], &BTreeMap<u64, u64>),
    runs: &mut Runs<'_>,
) -> Result<()> {
    let shape = tracking.header.shape;
    let granularity = u64::from(shape.granularity);
    // What the disk lost once, and what it gained, is not what it was.
    let low = span.iter().map(|one| one.low).min().unwrap_or(0);
    let end = low.min(shape.capacity).min(runs.listed.virtual_size);
    let bytes = end.div_ceil(granularity).div_ceil(8);
    let mut piece = 0;
    while piece < bytes {
        let len = PIECE.min(shape.bitmap_len - piece);
        if let Some(bits) = sum(storage, tracking, (span, active), (piece, len))? {
            for (number, word) in bits.as_chunks::<8>().0.iter().enumerate() {
                let word = u64::from_le_bytes(*word);
                let base = (piece * 8 + number as u64 * 64) * granularity;
                add_word(runs, word, (base, granularity, end))?;
            }
        }
        piece += len;
    }
    runs.add(end, u64::MAX)
}

fn add_word(
    runs: &mut Runs<'_>,
    mut word: u64,
    (base, granularity, end): (u64, u64, u64),
) -> Result<()> {
    let mut skipped = 0;
    while word != 0 {
        let zeros = word.trailing_zeros();
        let ones = (word >> zeros).trailing_ones();
        let start = base + u64::from(skipped + zeros) * granularity;
        let stop = start + u64::from(ones) * granularity;
        runs.add(start, stop.min(end))?;
        skipped += zeros + ones;
        word = word.checked_shr(zeros + ones).unwrap_or(0);
    }
    Ok(())
}

/// `len` bytes of all bitmaps together, from byte `from` on; `None` if no bit is set.
fn sum(
    storage: &mut dyn Storage,
    tracking: &Tracking,
    (span, active): (&[Checkpoint], &BTreeMap<u64, u64>),
    (from, len): (u64, u64),
) -> Result<Option<Vec<u8>>> {
    let failed = |source| Error::io("cannot read what changed", source);
    let mut sum: Option<Vec<u8>> = None;
    for checkpoint in span {
        let bitmap = tracking.header.shape.page_at(checkpoint.bitmap, 0);
        let at = tracking.region.at.0 + bitmap + from;
        let data = storage.next_data(at).map_err(failed)?;
        if data.is_none_or(|data| data >= at + len) {
            continue;
        }
        let mut bits = vec![0; len as usize];
        storage.read_at(at, &mut bits).map_err(failed)?;
        match &mut sum {
            None => sum = Some(bits),
            Some(sum) => sum
                .iter_mut()
                .zip(bits)
                .for_each(|(sum, bits)| *sum |= bits),
        }
    }
    let pages = PAGE_GRANULES / 8;
    for (page, mask) in active.range(from / pages..(from + len) / pages) {
        let sum = sum.get_or_insert_with(|| vec![0; len as usize]);
        let start = (page * pages - from) as usize;
        if let Some(page) = sum.get_mut(start..start + PAGE) {
            set_parts(page, *mask);
        }
    }
    Ok(sum)
}
