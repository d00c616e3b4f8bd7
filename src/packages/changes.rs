//! Which pieces of a disk go into a package: those that hold data, or those that changed.

use std::path::{Path, PathBuf};

use vdisk::track::{self, Since};

use crate::commands::image;
use crate::copy::pieces::{self, PIECE, Piece};
use crate::failure::Result;
use crate::interrupt;
use crate::source::Source;

/// What of a disk goes into a package.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// What changed since a checkpoint of the disk at that path.
    Since(PathBuf, String),
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Amount {
    /// Bytes that have to be gone through.
    pub(crate) total: u64,
    /// Of those, bytes that may hold data.
    pub(crate) data: u64,
}

impl Part {
    /// Gives its pieces from `from` on, in order, until nobody wants more.
    pub(crate) fn each(
        &self,
        source: &mut dyn Source,
        from: u64,
        give: &mut dyn FnMut(Piece) -> bool,
    ) -> Result<()> {
        match self {
            Self::Whole => pieces::each(&mut [source], from, give),
            Self::Since(disk, since) => each_change((disk, since), source, from, give),
        }
    }

    /// How much there is from `from` on.
    pub(crate) fn amount(&self, source: &mut dyn Source, from: u64) -> Result<Amount> {
        let mut amount = Amount::default();
        self.each(source, from, &mut |piece| {
            match piece {
                Piece::Zeros { len, .. } => amount.total += len,
                Piece::Data { len, .. } => {
                    amount.total += len;
                    amount.data += len;
                }
            }
            true
        })?;
        Ok(amount)
    }
}

fn each_change(
    (disk, since): (&Path, &str),
    source: &mut dyn Source,
    from: u64,
    give: &mut dyn FnMut(Piece) -> bool,
) -> Result<()> {
    let mut storage = image::open_storage(disk)?;
    let since = Since {
        checkpoint: since,
        until: None,
    };
    let mut ended: Option<Result<()>> = None;
    let listed = track::changed(&mut storage, since, &mut |offset, len| {
        let start = offset.max(from);
        let end = offset.saturating_add(len).min(source.size());
        match each_in(source, start, end, give) {
            Ok(true) => Ok(()),
            Ok(false) => {
                ended = Some(Ok(()));
                Err(vdisk::Error::invalid("nobody wants more"))
            }
            Err(failure) => {
                ended = Some(Err(failure));
                Err(vdisk::Error::invalid("it cannot be read"))
            }
        }
    });
    match ended {
        Some(ended) => ended,
        None => Ok(listed.map(drop).map_err(|error| error.in_file(disk))?),
    }
}

/// The pieces from `at` to `end`; whether more are wanted.
fn each_in(
    source: &mut dyn Source,
    mut at: u64,
    end: u64,
    give: &mut dyn FnMut(Piece) -> bool,
) -> Result<bool> {
    while at < end {
        if interrupt::requested() {
            return Ok(false);
        }
        for run in source.runs(at, end - at)? {
            let stop = at.saturating_add(run.len).min(end);
            while at < stop {
                let next = if run.zero {
                    stop
                } else {
                    stop.min(at - at % PIECE + PIECE)
                };
                let (offset, len) = (at, next - at);
                let piece = if run.zero {
                    Piece::Zeros { offset, len }
                } else {
                    Piece::Data { offset, len }
                };
                if !give(piece) {
                    return Ok(false);
                }
                at = next;
            }
        }
    }
    Ok(true)
}
