//! A disk read by many threads into what a package holds of it.

use package::{Content, Hash, pack};

use super::changes::Part;
use crate::copy::in_order::in_order;
use crate::copy::pieces::Piece;
use crate::failure::Result;
use crate::source::Source;

/// A part of a disk, ready to be put into a volume.
pub(crate) enum Parcel {
    /// So many bytes that are zero.
    Zeros { offset: u64, len: u64 },
    /// Bytes, perhaps packed.
    Data {
        offset: u64,
        len: u64,
        content: Content,
        stored: Vec<u8>,
        hash: Hash,
    },
}

/// Reads `part` of a disk from `from` on, with all `handles` of it but one, which says what is to be read, and gives
/// it to `take` in the order of the disk.
pub(crate) fn each(
    part: &Part,
    handles: Vec<Box<dyn Source>>,
    from: u64,
    take: impl FnMut(Parcel) -> Result<()>,
) -> Result<()> {
    let mut handles = handles.into_iter();
    let Some(mut planner) = handles.next() else {
        return Ok(());
    };
    let reader = |mut source: Box<dyn Source>| {
        move |piece| match piece {
            Piece::Zeros { offset, len } => Ok(Parcel::Zeros { offset, len }),
            Piece::Data { offset, len } => {
                let mut bytes = vec![0; len as usize];
                source.read_at(offset, &mut bytes)?;
                Ok(parcel(offset, bytes))
            }
        }
    };
    let plan = |give: &mut dyn FnMut(Piece) -> bool| part.each(&mut *planner, from, give);
    in_order(plan, handles.map(reader).collect(), take)
}

fn parcel(offset: u64, bytes: Vec<u8>) -> Parcel {
    let len = bytes.len() as u64;
    if bytes.iter().all(|byte| *byte == 0) {
        return Parcel::Zeros { offset, len };
    }
    let hash = Hash::of(&bytes);
    let (content, stored) = match pack(&bytes) {
        Some(packed) => (Content::Packed(packed.len() as u32), packed),
        None => (Content::Plain, bytes),
    };
    Parcel::Data {
        offset,
        len,
        content,
        stored,
        hash,
    }
}
