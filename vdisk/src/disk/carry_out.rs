//! One operation of an engine on its file, with blocking calls.
//!
//! Decides nothing; what takes the disk beneath is in `parent`.

use super::Buffer;
use crate::engine::{Extent, FileOp, FileOpKind, Outcome};
use crate::storage::Storage;
use crate::zeros::data_runs;

/// Carry out one operation with blocking calls.
pub(super) fn execute(
    storage: &mut dyn Storage,
    op: &FileOp,
    buffer: &mut Buffer<'_>,
) -> std::io::Result<Outcome> {
    let range = |start: u64, len: u64| start as usize..(start + len) as usize;
    match (&op.kind, buffer) {
        (FileOpKind::Read { at, len }, _) => {
            let mut data = vec![0; *len as usize];
            storage.read_at(at.0, &mut data)?;
            return Ok(Outcome::Data(data.into()));
        }
        (FileOpKind::Holes { at, len }, _) => {
            return Ok(Outcome::Holes(holes(storage, at.0, *len)?));
        }
        (FileOpKind::Write { at, data }, _) => storage.write_at(at.0, data)?,
        (FileOpKind::ReadRequest { start, at, len, .. }, Buffer::In(buffer)) => {
            storage.read_at(at.0, &mut buffer[range(*start, *len)])?;
        }
        (FileOpKind::ZeroRequest { start, len, .. }, Buffer::In(buffer)) => {
            buffer[range(*start, *len)].fill(0);
        }
        (
            FileOpKind::WriteRequest { start, at, len, .. }
            | FileOpKind::MergeRequest { start, at, len, .. },
            Buffer::Out(data),
        ) => storage.write_at(at.0, &data[range(*start, *len)])?,
        (FileOpKind::Flush, _) => storage.flush()?,
        (FileOpKind::SetLen { len }, _) => storage.set_len(*len)?,
        (FileOpKind::Zero { at, len, keep }, _) => storage.zero(at.0, *len, *keep)?,
        (FileOpKind::Reserve { at, len }, _) => storage.reserve(at.0, *len)?,
        (FileOpKind::Copy { from, to, len }, _) => return copy(storage, from.0, to.0, *len),
        (kind, _) => panic!("{kind:?} names a buffer that its request does not have"),
    }
    Ok(Outcome::Done)
}

/// Make `len` bytes at `to` of a file read as those at `from`; zeros become holes.
fn copy(storage: &mut dyn Storage, from: u64, to: u64, len: u64) -> std::io::Result<Outcome> {
    /// Bytes read at once, and the least run of zeros that is left out.
    const PIECE: usize = 1 << 20;
    const RUN: usize = 64 << 10;
    storage.zero(to, len, false)?;
    let mut piece = vec![0; PIECE];
    let (mut at, end, mut written) = (from, from + len, false);
    while let Some(data) = storage.next_data(at)?.filter(|data| *data < end) {
        at = data / RUN as u64 * RUN as u64;
        let stop = storage.next_hole(data)?.clamp(data + 1, end);
        while at < stop {
            let now = PIECE.min((end - at) as usize);
            let piece = &mut piece[..now];
            storage.read_at(at, piece)?;
            for run in data_runs(piece, RUN) {
                storage.write_at(to + (at - from) + run.start as u64, &piece[run])?;
                written = true;
            }
            at += now as u64;
        }
    }
    let extent = Extent {
        len,
        allocated: false,
        zero: true,
    };
    Ok(if written {
        Outcome::Done
    } else {
        Outcome::Holes(vec![extent])
    })
}

/// Data and holes of `len` bytes of a file from `at`, in runs.
fn holes(storage: &mut dyn Storage, at: u64, len: u64) -> std::io::Result<Vec<Extent>> {
    /// A range in more pieces than this is described up to there.
    const MOST: usize = 4096;
    let (mut extents, mut from, end) = (Vec::new(), at, at + len);
    while from < end && extents.len() < MOST {
        let data = storage.next_data(from)?.map_or(end, |data| data.min(end));
        if data > from {
            extents.push(Extent {
                len: data - from,
                allocated: false,
                zero: true,
            });
        } else {
            let hole = storage.next_hole(from)?.clamp(from + 1, end);
            extents.push(Extent {
                len: hole - from,
                allocated: true,
                zero: false,
            });
            from = hole;
            continue;
        }
        from = data;
    }
    Ok(extents)
}
