//! Reading a disk: what its readers make of each piece.

use std::ops::Range;

use vdisk::zeros::data_runs;

use super::digest::{self, PieceHash};
use super::in_order::in_order;
use super::pieces::{self, Piece};
use crate::failure::Result;
use crate::source::Source;

/// A shorter run of zeros is written with its neighbours, bytes.
const GRAIN: usize = 4096;

/// What was read, in the order of the disk.
pub(crate) enum Part {
    /// So many bytes that are zero.
    Zeros {
        len: u64,
    },
    Data(Data),
}

/// A piece that was read.
pub(crate) struct Data {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    /// The parts of it that are not zero, in order.
    pub(crate) runs: Vec<Range<usize>>,
    /// Its digest, if it is not all zero and digests are wanted.
    pub(crate) hash: Option<PieceHash>,
}

impl Data {
    pub(crate) fn new(offset: u64, bytes: Vec<u8>, hashes: bool) -> Self {
        let runs = data_runs(&bytes, GRAIN);
        let hash = (hashes && !runs.is_empty()).then(|| digest::of_piece(&bytes));
        Self {
            offset,
            bytes,
            runs,
            hash,
        }
    }
}

/// Reads a disk from `from` on, with all `handles` of it but one, which says what is to be read.
///
/// With `hashes` each piece gets its digest.
pub(crate) fn each_part(
    handles: Vec<Box<dyn Source>>,
    from: u64,
    hashes: bool,
    take: impl FnMut(Part) -> Result<()>,
) -> Result<()> {
    let mut handles = handles.into_iter();
    let Some(mut planner) = handles.next() else {
        return Ok(());
    };
    let reader = |mut source: Box<dyn Source>| {
        move |piece| match piece {
            Piece::Zeros { len, .. } => Ok(Part::Zeros { len }),
            Piece::Data { offset, len } => {
                let mut bytes = vec![0; len as usize];
                source.read_at(offset, &mut bytes)?;
                Ok(Part::Data(Data::new(offset, bytes, hashes)))
            }
        }
    };
    let plan = |give: &mut dyn FnMut(Piece) -> bool| pieces::each(&mut [&mut *planner], from, give);
    in_order(plan, handles.map(reader).collect(), take)
}
