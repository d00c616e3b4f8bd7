//! What an engine asks of its disk's parent, answered with blocking calls.

use super::Disk;
use crate::engine::Extent;

/// What a chain without its parent is answered.
fn no_parent() -> std::io::Error {
    std::io::Error::other("the disk was opened without the one it is built on")
}

/// Fill `buffer` from a parent; what lies beyond its end is zero.
pub(super) fn read_parent(
    parent: Option<&mut Disk>,
    offset: u64,
    buffer: &mut [u8],
) -> std::io::Result<()> {
    let parent = parent.ok_or_else(no_parent)?;
    let read = parent.read_or_zero(offset, buffer);
    read.map_err(std::io::Error::other)
}

/// Extents of a parent; what lies beyond its end is zero.
pub(super) fn parent_extents(
    parent: Option<&mut Disk>,
    offset: u64,
    len: u64,
) -> std::io::Result<Vec<Extent>> {
    let parent = parent.ok_or_else(no_parent)?;
    let there = parent.size().saturating_sub(offset).min(len);
    if there == 0 {
        return Ok(vec![Extent {
            len,
            allocated: false,
            zero: true,
        }]);
    }
    parent.status(offset, there).map_err(std::io::Error::other)
}
