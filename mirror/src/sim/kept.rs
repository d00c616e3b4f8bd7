//! What a source finds of its session after a crash: the file that was kept, and what the disk's change tracking noted.
//!
//! Must never leave out a change that may have reached the disk since the checkpoint.

use std::collections::BTreeSet;

use crate::saved::Saved;

/// Bytes that one bit tells about.
const PART: u64 = 8192;

#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) session: Option<Saved>,
    /// How many checkpoints there were; the last one is called by that number.
    checkpoints: u64,
    changed: BTreeSet<u64>,
}

impl Kept {
    /// The name of the last checkpoint.
    pub(super) fn name(&self) -> String {
        format!("c{}", self.checkpoints)
    }

    /// A change begins.
    pub(super) fn change(&mut self, offset: u64, len: u64) {
        let parts = offset / PART..(offset + len).div_ceil(PART);
        self.changed.extend(parts);
    }

    /// A checkpoint is taken while those changes are under way.
    pub(super) fn checkpoint(&mut self, under_way: impl Iterator<Item = (u64, u64)>) {
        self.checkpoints += 1;
        self.changed.clear();
        for (offset, len) in under_way {
            self.change(offset, len);
        }
    }

    /// The session in its next life, and what its target may not have of a disk of `size` bytes.
    pub(super) fn next_life(
        &self,
        size: u64,
        no_changes: bool,
    ) -> Option<(Saved, Vec<(u64, u64)>)> {
        let (saved, parts) = self.found(size, no_changes)?;
        Some((saved.next_life()?, parts))
    }

    /// The same, as it was kept.
    pub(super) fn found(&self, size: u64, no_changes: bool) -> Option<(Saved, Vec<(u64, u64)>)> {
        let saved = self.session.clone()?;
        if saved.checkpoint != Some(self.name()) {
            return Some((saved, vec![(0, size)]));
        }
        let mut parts = saved.rest.clone();
        let changed = self.changed.iter().filter(|_| !no_changes);
        parts.extend(changed.map(|part| {
            let offset = part * PART;
            (offset, PART.min(size - offset))
        }));
        Some((saved, parts))
    }
}
