//! What a disk may hold, as a flat list of cells.
//!
//! A block is seen as [`EDGE`] units of [`UNIT`] bytes at its beginning, one cell for its middle, and as
//! many units at its end: requests begin and end at the borders of cells. A cell holds one of the
//! stamps in `now`; a power cut may bring back one of those in `older`.

use std::collections::BTreeMap;

use vdisk::engine::{Done, Request};

/// Bytes of a unit; a quarter of the smallest sector, so that sectors are written in part.
pub(super) const UNIT: u64 = 128;
/// Units at each end of a block.
pub(super) const EDGE: u64 = 64;

const EDGE_BYTES: u64 = EDGE * UNIT;
/// Pieces of which a middle may be made after a power cut.
const SECTOR: usize = 512;
/// Bytes of the disk that a child is built on.
const PARENT_LEN: u64 = (5 << 20) + 4096;

/// What the parent holds in the unit that begins at `offset`.
fn parent_stamp(offset: u64) -> u64 {
    let (block, within) = (offset >> 20, offset & 0xF_FFFF);
    let middle = (EDGE_BYTES..(1 << 20) - EDGE_BYTES).contains(&within);
    if offset >= PARENT_LEN || middle || block % 3 == 2 {
        return 0;
    }
    (1 << 63) | (offset / UNIT)
}

/// Fills `buffer` with what the parent holds from `offset` on, which is a unit's border.
pub(super) fn parent_read(offset: u64, buffer: &mut [u8]) {
    for (number, unit) in buffer.chunks_mut(UNIT as usize).enumerate() {
        let stamp = parent_stamp(offset + number as u64 * UNIT).to_le_bytes();
        unit.as_chunks_mut::<8>().0.fill(stamp);
    }
}

/// A run of bytes that are changed together.
#[derive(Clone, Debug)]
struct Cell {
    now: Vec<u64>,
    older: Vec<u64>,
}

impl Cell {
    fn becomes(&mut self, now: Vec<u64>) {
        for stamp in self.now.drain(..) {
            if !self.older.contains(&stamp) {
                self.older.push(stamp);
            }
        }
        self.now = now;
    }
}

/// All that may be seen of one disk. Cells are named by their first byte.
pub(super) struct Model {
    child: bool,
    block: u64,
    size: u64,
    cells: BTreeMap<u64, Cell>,
    last: u64,
}

impl Model {
    pub(super) fn new(child: bool, block: u64, size: u64) -> Self {
        Self {
            child,
            block,
            size,
            cells: BTreeMap::new(),
            last: 0,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// A stamp that nothing has.
    pub(super) fn stamp(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn base(&self, at: u64) -> u64 {
        if self.child { parent_stamp(at) } else { 0 }
    }

    /// Bytes of the cell at `at`, whether the disk ends in it or not.
    fn len(&self, at: u64) -> u64 {
        let within = at % self.block;
        let middle = within == EDGE_BYTES && self.block > 2 * EDGE_BYTES;
        if middle && self.halves().is_none() {
            self.block - 2 * EDGE_BYTES
        } else {
            UNIT
        }
    }

    /// A child's blocks of 2 MiB lie on two of the parent's pieces of 1 MiB; nothing depends on it.
    fn halves(&self) -> Option<()> {
        (self.child && self.block > 1 << 20).then_some(())
    }

    fn cells_of(&self, start: u64, len: u64) -> Vec<u64> {
        let (mut at, mut found) = (start, Vec::new());
        while at < start + len {
            found.push(at);
            at += self.len(at);
        }
        found
    }

    fn cell(&mut self, at: u64) -> &mut Cell {
        let base = self.base(at);
        self.cells.entry(at).or_insert_with(|| Cell {
            now: vec![base],
            older: Vec::new(),
        })
    }

    /// What a change puts there, and whether it surely does.
    fn effect(request: &Request, stamp: u64) -> Option<(u64, bool)> {
        match request {
            Request::Write { .. } => Some((stamp, true)),
            Request::WriteZeroes { .. } => Some((0, true)),
            Request::Discard { .. } => Some((0, false)),
            _ => None,
        }
    }

    /// Requests that changed the disk, nothing else being under way.
    pub(super) fn changed(&mut self, request: &Request, stamp: u64) {
        self.changed_together(&[(*request, stamp)]);
        let durable = matches!(
            request,
            Request::Write { fua: true, .. } | Request::WriteZeroes { fua: true, .. }
        );
        if let (true, Some((offset, len))) = (durable, request.range()) {
            for at in self.cells_of(offset, len) {
                self.cell(at).older.clear();
            }
        }
    }

    /// Requests that ended, having been under way together.
    pub(super) fn changed_together(&mut self, requests: &[(Request, u64)]) {
        let touched = self.touched(requests);
        if requests
            .iter()
            .any(|(request, _)| *request == Request::Flush)
        {
            self.flush_but(&touched);
        }
        for (at, (mut stamps, surely)) in touched {
            let cell = self.cell(at);
            if !surely {
                stamps.extend(cell.now.iter().copied());
            }
            stamps.sort_unstable();
            stamps.dedup();
            cell.becomes(stamps);
        }
    }

    fn touched(&self, requests: &[(Request, u64)]) -> BTreeMap<u64, (Vec<u64>, bool)> {
        let mut touched: BTreeMap<u64, (Vec<u64>, bool)> = BTreeMap::new();
        for (request, stamp) in requests {
            let Some((stamp, surely)) = Self::effect(request, *stamp) else {
                continue;
            };
            let (offset, len) = request.range().unwrap_or((0, 0));
            for at in self.cells_of(offset, len) {
                let all = touched.entry(at).or_default();
                all.0.push(stamp);
                all.1 |= surely;
            }
        }
        touched
    }

    fn flush_but(&mut self, touched: &BTreeMap<u64, (Vec<u64>, bool)>) {
        for (at, cell) in &mut self.cells {
            if !touched.contains_key(at) {
                cell.older.clear();
            }
        }
    }

    /// Everything is durable.
    pub(super) fn flushed(&mut self) {
        self.flush_but(&BTreeMap::new());
    }

    /// Requests that a power cut met; `flushed`: a flush among them had ended.
    pub(super) fn under_way(&mut self, requests: &[(Request, u64)], flushed: bool) {
        let touched = self.touched(requests);
        if flushed {
            self.flush_but(&touched);
        }
        for (at, (stamps, _)) in touched {
            self.cell(at).older.extend(stamps);
        }
    }

    /// The disk has another size: what was cut off is gone.
    pub(super) fn resized(&mut self, size: u64) {
        self.size = size;
        self.cells.split_off(&size);
    }

    /// A power cut met a resize, or none; the disk came back with `size` bytes.
    pub(super) fn may_be_resized(&mut self, resize: Option<Request>, size: u64) {
        let Some(Request::Resize {
            size: wanted,
            discard_data,
        }) = resize
        else {
            assert_eq!(size, self.size, "the disk changed its size");
            return;
        };
        assert!(
            size == self.size || size == wanted,
            "{size} bytes came back"
        );
        if discard_data {
            for cell in self.cells.range_mut(wanted..).map(|(_, cell)| cell) {
                cell.older.push(0);
            }
        }
        if size != self.size {
            self.resized(size);
        }
    }

    /// What was read of a disk where nothing was under way.
    pub(super) fn read(&mut self, offset: u64, buffer: &[u8]) {
        for at in self.cells_of(offset, buffer.len() as u64) {
            let from = (at - offset) as usize;
            let len = (self.len(at) as usize).min(buffer.len() - from);
            self.seen(at, &buffer[from..from + len], false);
        }
    }

    /// What was read while changes were under way, which have been told to the model.
    pub(super) fn read_any(&mut self, offset: u64, buffer: &[u8]) {
        for at in self.cells_of(offset, buffer.len() as u64) {
            let from = (at - offset) as usize;
            let len = (self.len(at) as usize).min(buffer.len() - from);
            let mut cell = self.cell(at).clone();
            cell.now.append(&mut cell.older);
            assert!(
                holds(&buffer[from..from + len], &cell.now).is_some(),
                "{at:#x}"
            );
        }
    }

    /// `bytes` are in the cell at `at`; after a cut they may be `older` ones, and then are what is there.
    fn seen(&mut self, at: u64, bytes: &[u8], cut: bool) {
        let base = self.base(at);
        let known = self.cells.get(&at);
        if known.is_none() && is_all(bytes, base) {
            return;
        }
        let cell = self.cell(at);
        let mut allowed = cell.now.clone();
        if cut {
            allowed.extend(cell.older.iter().copied());
        }
        let Some(found) = holds(bytes, &allowed) else {
            let first = u64::from_le_bytes(*bytes.first_chunk().expect("a cell"));
            panic!("{at:#x} holds {first:#x} and may hold {allowed:x?}");
        };
        cell.now = found;
        if cut {
            cell.older.clear();
        }
    }

    /// After a power cut: every cell holds what it may hold, and that is what there is.
    pub(super) fn settle(&mut self, read: &mut dyn FnMut(u64, u64) -> Vec<u8>) {
        let mut blocks: Vec<u64> = self.cells.keys().map(|at| at / self.block).collect();
        blocks.dedup();
        for block in blocks {
            let start = block * self.block;
            let len = self.block.min(self.size - start);
            let bytes = read(start, len);
            for at in self.cells_of(start, len) {
                let from = (at - start) as usize;
                let len = (self.len(at) as usize).min(bytes.len() - from);
                self.seen(at, &bytes[from..from + len], true);
            }
        }
    }

    /// The answer to a question about `len` bytes from `offset`.
    pub(super) fn told(&mut self, offset: u64, len: u64, answer: &Done) {
        let Done::Extents(extents) = answer else {
            panic!("{answer:?} to a question");
        };
        let told: u64 = extents.iter().map(|extent| extent.len).sum();
        assert!((1..=len).contains(&told), "{told} of {len} bytes");
        let mut from = offset;
        for extent in extents {
            let end = from + extent.len;
            if extent.zero {
                for at in self.cells_of(from.next_multiple_of(UNIT), end.saturating_sub(from)) {
                    let whole = at + self.len(at) <= end;
                    assert!(
                        !whole || self.cell(at).now.contains(&0),
                        "{at:#x} is not zero"
                    );
                }
            }
            from = end;
        }
    }
}

fn is_all(bytes: &[u8], stamp: u64) -> bool {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().all(|word| *word == stamp.to_le_bytes())
}

/// Which of the stamps make up a cell; `None` if another does.
fn holds(bytes: &[u8], allowed: &[u64]) -> Option<Vec<u64>> {
    let mut found = Vec::new();
    for sector in bytes.chunks(SECTOR) {
        let stamp = allowed.iter().find(|stamp| is_all(sector, **stamp))?;
        if !found.contains(stamp) {
            found.push(*stamp);
        }
    }
    Some(found)
}
