//! A picture of a disk that moves: what of it is where, region by region.
//!
//! What it is drawn from is counted as things happen, in at most [`MOST_CELLS`] slots of one disk, so that drawing 64 TB
//! costs what drawing 1 GB costs, and nobody waits for it. Machine. Must never be used to decide anything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// No picture has more cells.
pub const MOST_CELLS: usize = 4096;
/// Bytes of the smallest slot: a leaf of the map of what is dirty lies in one slot.
const LEAST: u64 = 2 << 20;

/// Bytes by slot of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slots {
    /// Bytes of a slot, a multiple of [`LEAST`]; 0 if nobody counts.
    slot: u64,
    bytes: Vec<u64>,
}

impl Slots {
    /// Those of a disk of `size` bytes, all zero.
    pub(crate) fn new(size: u64) -> Self {
        let slot = size.div_ceil(MOST_CELLS as u64).max(1);
        let slot = slot.div_ceil(LEAST) * LEAST;
        let count = usize::try_from(size.div_ceil(slot)).unwrap_or(MOST_CELLS);
        Self {
            slot,
            bytes: vec![0; count.min(MOST_CELLS)],
        }
    }

    /// So many bytes more, all of them where `offset` is.
    pub(crate) fn add_at(&mut self, offset: u64, bytes: u64) {
        if let Some(slot) = self.at(offset) {
            *slot = slot.saturating_add(bytes);
        }
    }

    /// So many bytes less there; never less than none.
    pub(crate) fn take_at(&mut self, offset: u64, bytes: u64) {
        if let Some(slot) = self.at(offset) {
            *slot = slot.saturating_sub(bytes);
        }
    }

    /// These bytes more.
    pub(crate) fn add(&mut self, offset: u64, len: u64) {
        self.each(offset, len, |slot, bytes| {
            *slot = slot.saturating_add(bytes);
        });
    }

    /// These bytes less; never less than none.
    pub(crate) fn take(&mut self, offset: u64, len: u64) {
        self.each(offset, len, |slot, bytes| {
            *slot = slot.saturating_sub(bytes);
        });
    }

    fn at(&mut self, offset: u64) -> Option<&mut u64> {
        let number = offset.checked_div(self.slot)?;
        self.bytes.get_mut(usize::try_from(number).ok()?)
    }

    fn each(&mut self, offset: u64, len: u64, mut change: impl FnMut(&mut u64, u64)) {
        let end = offset.saturating_add(len);
        let first = offset.checked_div(self.slot).unwrap_or(u64::MAX);
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        for (number, slot) in self.bytes.iter_mut().enumerate().skip(first) {
            let start = number as u64 * self.slot;
            if start >= end {
                break;
            }
            let from = start.max(offset);
            change(slot, end.min(start + self.slot) - from);
        }
    }

    fn get(&self, number: usize) -> u64 {
        self.bytes.get(number).copied().unwrap_or(0)
    }
}

/// What the tap knows of each slot at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sight {
    /// Bytes to be read and sent.
    pub(crate) dirty: Slots,
    /// Of those, what clients wrote after it was copied, at most.
    pub(crate) changed: Slots,
    /// Bytes in records that are not durable at the target.
    pub(crate) waiting: Slots,
    /// Bytes that clients wrote since the session began.
    pub(crate) written: Slots,
    /// First bytes of regions that are written again and again.
    pub(crate) hot: Vec<u64>,
}

/// What a session knows of its disk at one moment.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// Up to here it was asked what is allocated.
    pub(crate) scanned: u64,
    /// Bytes that were found to be allocated.
    pub(crate) found: &'a Slots,
    pub(crate) sight: &'a Sight,
    /// What is being read or is on the way, offset and length.
    pub(crate) sending: &'a [(u64, u64)],
}

/// What is the matter in a cell: the first of these, from the last to the first, that holds of some byte in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CellState {
    /// Nothing is allocated there.
    Unallocated,
    /// The target has all that is there.
    Copied,
    /// It was not asked yet what is allocated there.
    Unknown,
    /// It is to be copied.
    ToCopy,
    /// It was written since it was copied, and the target does not have that yet.
    Dirty,
    /// It is written again and again.
    Hot,
    /// It is being read for the target, or on its way there.
    Sending,
}

/// So many cells beside each other of which the same holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// What holds.
    pub state: CellState,
    /// How many they are.
    pub cells: u32,
}

/// A disk as a row of cells, each of which is as much of it as any other, but for a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// Bytes of the disk.
    pub size: u64,
    /// How many cells there are: as many as were asked for, or less.
    pub cells: u32,
    /// Bytes of most of them.
    pub cell_bytes: u64,
    /// The cells from the first to the last byte of the disk. Those beside each other differ.
    pub runs: Vec<Run>,
    /// Of each state, how many cells are in it.
    pub counts: BTreeMap<CellState, u32>,
}

impl Seen<'_> {
    /// The picture in at most `cells` cells.
    pub(crate) fn picture(&self, cells: usize) -> Picture {
        let slots = self.found.bytes.len();
        Picture::of(self.size, (slots, cells), self.states())
    }

    /// The state of each slot.
    fn states(&self) -> impl Iterator<Item = CellState> {
        let mut sending = Slots::new(self.size);
        for (offset, len) in self.sending {
            sending.add(*offset, *len);
        }
        let mut hot = Slots::new(self.size);
        for offset in &self.sight.hot {
            hot.add_at(*offset, 1);
        }
        (0..self.found.bytes.len()).map(move |slot| {
            let at = |slots: &Slots| slots.get(slot);
            let sight = self.sight;
            let changed = at(&sight.changed).min(at(&sight.dirty));
            let end = (slot as u64 + 1) * self.found.slot;
            if at(&sending) > 0 {
                CellState::Sending
            } else if at(&hot) > 0 {
                CellState::Hot
            } else if changed > 0 || at(&sight.waiting) > 0 {
                CellState::Dirty
            } else if at(&sight.dirty) > 0 {
                CellState::ToCopy
            } else if end.min(self.size) > self.scanned {
                CellState::Unknown
            } else if at(self.found) > 0 || at(&sight.written) > 0 {
                CellState::Copied
            } else {
                CellState::Unallocated
            }
        })
    }
}

impl Picture {
    /// The same in at most so many cells.
    #[must_use]
    pub fn in_cells(&self, cells: usize) -> Self {
        let runs = self.runs.iter();
        let states = runs.flat_map(|run| std::iter::repeat_n(run.state, run.cells as usize));
        Self::of(self.size, (self.cells as usize, cells), states)
    }

    /// Of so many slots, whose states come one after another, at most so many cells.
    fn of(
        size: u64,
        (slots, cells): (usize, usize),
        mut states: impl Iterator<Item = CellState>,
    ) -> Self {
        let cells = cells.clamp(1, MOST_CELLS).min(slots);
        let mut picture = Self {
            size,
            cells: cells as u32,
            cell_bytes: size.div_ceil(cells.max(1) as u64),
            ..Self::default()
        };
        for cell in 0..cells {
            let count = (cell + 1) * slots / cells - cell * slots / cells;
            let state = states.by_ref().take(count).max();
            picture.push(state.unwrap_or(CellState::Unallocated));
        }
        picture
    }

    fn push(&mut self, state: CellState) {
        *self.counts.entry(state).or_default() += 1;
        match self.runs.last_mut() {
            Some(run) if run.state == state => run.cells += 1,
            _ => self.runs.push(Run { state, cells: 1 }),
        }
    }
}

#[cfg(test)]
mod tests;
