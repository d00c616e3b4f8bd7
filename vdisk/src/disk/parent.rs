//! What an engine asks of its disk's parent, answered with blocking calls; and what tells the two apart.

use super::Disk;
use crate::engine::Extent;
use crate::error::Result;
use crate::format::Guid;

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

impl Disk {
    /// The version of its data when its file was opened.
    pub(crate) fn version(&self) -> Guid {
        self.version
    }

    /// [`Disk::status`] of what it holds of its own; what its parent holds is neither allocated nor zero.
    pub(crate) fn own_status(&mut self, offset: u64, len: u64) -> Result<Vec<Extent>> {
        let before = std::mem::replace(&mut self.alone, true);
        let extents = self.status(offset, len);
        self.alone = before;
        extents
    }

    /// [`Disk::read_at`]; what lies beyond the end is zero.
    pub(crate) fn read_or_zero(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let there = self.size().saturating_sub(offset).min(buffer.len() as u64);
        let (inside, beyond) = buffer.split_at_mut(there as usize);
        beyond.fill(0);
        if inside.is_empty() {
            return Ok(());
        }
        self.read_at(offset, inside)
    }
}
