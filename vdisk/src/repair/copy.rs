//! A copy of an image file in which holes stay holes and zeros become some, to be repaired in place of the original.

use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::zeros::data_runs;

/// Bytes moved at once.
const PIECE: u64 = 1 << 20;
/// Shorter runs of zeros are written with their neighbours.
const GRAIN: usize = 4096;

/// Copies the file `from` to `to`, which is empty, and makes it durable; how many bytes were written.
///
/// `progress` hears how far it has come and how many bytes were moved so far, and may end it.
pub fn copy_sparse(
    from: &mut dyn Storage,
    to: &mut dyn Storage,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<u64> {
    let reading = |source| Error::io("cannot read the image", source);
    let writing = |source| Error::io("cannot write the copy", source);
    let len = from.len().map_err(reading)?;
    to.set_len(len).map_err(writing)?;
    let mut buffer = vec![0; PIECE as usize];
    let (mut at, mut moved) = (0, 0);
    while let Some(data) = from.next_data(at).map_err(reading)? {
        if data >= len {
            break;
        }
        let end = from.next_hole(data).map_err(reading)?.clamp(data + 1, len);
        at = data;
        while at < end {
            let piece = (end - at).min(PIECE);
            let buffer = buffer.get_mut(..piece as usize).unwrap_or_default();
            from.read_at(at, buffer).map_err(reading)?;
            for run in data_runs(buffer, GRAIN) {
                let data = buffer.get(run.clone()).unwrap_or_default();
                to.write_at(at + run.start as u64, data).map_err(writing)?;
                moved += data.len() as u64;
            }
            at += piece;
            progress(at, moved)?;
        }
    }
    to.flush().map_err(writing)?;
    progress(len, moved)?;
    Ok(moved)
}
