//! Whether two disks hold the same, and where they first do not.

use super::digest::{self, Digest, PieceHash};
use super::in_order::in_order;
use super::pieces::{self, Piece};
use super::read::{self, Part};
use crate::failure::{Exit, Failure, Result};
use crate::interrupt;
use crate::progress::Progress;
use crate::source::Source;

/// Readers of one disk.
type Handles = Vec<Box<dyn Source>>;

/// What a comparison found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The same, with this digest.
    Equal(String),
    /// Another byte here, and perhaps elsewhere after it.
    DifferAt(u64),
}

/// What two readers found in a piece.
enum Seen {
    Alike(u64, u64, Option<PieceHash>),
    DifferAt(u64),
}

/// Compares two disks, each with as many handles as the other; the rest of a longer one must be zero.
pub(crate) fn disks(one: Handles, other: Handles, progress: &mut Progress) -> Result<Found> {
    let mut pairs = one.into_iter().zip(other);
    let Some((mut first, mut second)) = pairs.next() else {
        return Err(Failure::new(Exit::Failed, "no disk was opened"));
    };
    let plan = |give: &mut dyn FnMut(Piece) -> bool| {
        pieces::each(&mut [&mut *first, &mut *second], 0, give)
    };
    let workers = pairs.map(|pair| {
        let (mut one, mut other) = pair;
        move |piece| look(&mut *one, &mut *other, &piece)
    });
    let mut digest = Digest::default();
    let mut difference = None;
    let compared = in_order(plan, workers.collect(), |seen| {
        interrupt::check("the disks were not compared to their end")?;
        match seen {
            Seen::Alike(offset, len, hash) => {
                progress.advance(len, len);
                if let Some(hash) = hash {
                    digest.add(offset, &hash);
                }
                Ok(())
            }
            Seen::DifferAt(at) => {
                difference = Some(at);
                Err(Failure::new(Exit::Mismatch, "they differ"))
            }
        }
    });
    if let Some(at) = difference {
        return Ok(Found::DifferAt(at));
    }
    compared?;
    interrupt::check("the disks were not compared to their end")?;
    Ok(Found::Equal(digest.finish()))
}

/// Compares a disk with the digest that it should have; where it first differs is not known then.
pub(crate) fn with_digest(disk: Handles, wanted: &str, progress: &mut Progress) -> Result<Found> {
    let mut digest = Digest::default();
    read::each_part(disk, 0, true, |part| {
        interrupt::check("the disk was not read to its end")?;
        match part {
            Part::Zeros { len } => progress.advance(len, len),
            Part::Data(data) => {
                let len = data.bytes.len() as u64;
                progress.advance(len, len);
                if let Some(hash) = &data.hash {
                    digest.add(data.offset, hash);
                }
            }
        }
        Ok(())
    })?;
    interrupt::check("the disk was not read to its end")?;
    let found = digest.finish();
    if found == wanted {
        return Ok(Found::Equal(found));
    }
    let what = format!("what was read has the digest {wanted}, what was written {found}");
    Err(Failure::new(Exit::Mismatch, what))
}

fn look(one: &mut dyn Source, other: &mut dyn Source, piece: &Piece) -> Result<Seen> {
    let (offset, len) = match *piece {
        Piece::Zeros { offset, len } => return Ok(Seen::Alike(offset, len, None)),
        Piece::Data { offset, len } => (offset, len),
    };
    let (here, there) = (padded(one, offset, len)?, padded(other, offset, len)?);
    if here != there {
        let same = here.iter().zip(&there).take_while(|(a, b)| a == b).count();
        return Ok(Seen::DifferAt(offset + same as u64));
    }
    let hash = (here.iter().any(|byte| *byte != 0)).then(|| digest::of_piece(&here));
    Ok(Seen::Alike(offset, len, hash))
}

/// Reads a piece; what lies beyond the disk is zero.
fn padded(source: &mut dyn Source, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    let there = source.size().saturating_sub(offset).min(len);
    if there > 0 {
        source.read_at(offset, &mut bytes[..there as usize])?;
    }
    Ok(bytes)
}
