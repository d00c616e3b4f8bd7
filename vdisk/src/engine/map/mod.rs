//! The block map: where each block of the disk lies in the file, shared and lock-free.
//!
//! Every worker reads it; only the engine changes it. A read, or a write to a block that is already
//! there, needs nothing but [`BlockMap::lookup`]. It holds the pages of the BAT that are in use, in
//! frames of atomics whose version is checked around each read, so that the engine may give a frame
//! to another page at any time.
//!
//! **Reclamation rule.** A worker publishes the oldest map generation among its operations in
//! flight ([`Participant`]). Space that an entry named is punched, reused or moved only when all
//! workers are past the generation in which the entry changed ([`BlockMap::quiesced`]).
//!
//! It must never block, allocate on a lookup, or answer from a frame that changed meanwhile.
//! Specified in MS-VHDX 2.5; the interleaving of payload and bitmap entries is 2.5.1.

mod frame;
mod participant;
mod sync;
mod track;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod tests;

pub use frame::PAGE_ENTRIES;
pub use participant::{Generation, Participant};
pub(crate) use track::{PAGE_BITS, TrackMap, parts};

use std::sync::Arc;

use self::frame::Frame;
use self::sync::{AtomicU32, AtomicU64, OnceLock, Ordering, fence};
use crate::units::{FileOffset, GuestOffset};

/// How many workers may take part at once.
pub const MAX_WORKERS: usize = if cfg!(loom) { 2 } else { 64 };

/// Value of a worker's slot when it has nothing in flight.
const IDLE: u64 = u64::MAX;

/// State bits of a BAT entry that say "in the file" (MS-VHDX 2.5.1.1).
const FULLY_PRESENT: u64 = 6;

/// The bits of a BAT entry that are the block's byte offset in the file.
const OFFSET_MASK: u64 = !0xF_FFFF;

/// Set in an entry in memory, one of the bits that are reserved in the file, while its block is being
/// moved: it may be read where it is, writes go to the engine.
const MOVING: u64 = 8;

/// What a lookup is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The bytes will be read.
    Read,
    /// The bytes will be written.
    Write,
}

/// Where a run of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// In the file, `len` bytes from `at`.
    File {
        /// First byte in the file.
        at: FileOffset,
        /// How many of the bytes asked for lie there.
        len: u64,
    },
    /// Nowhere: they read as zero.
    Zero {
        /// How many of the bytes asked for.
        len: u64,
    },
    /// Only the engine can say.
    Engine,
}

/// The shape of a disk, as far as finding a block needs it; its size alone may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// log2 of the block size, or `None` for a raw image: byte n of the disk is byte n of the file.
    pub block_shift: Option<u32>,
    /// log2 of the number of payload entries between two bitmap entries of the BAT.
    pub chunk_shift: u32,
    /// Writes must start and end on multiples of this in the file; a power of two.
    pub alignment: u64,
    /// Whether nothing may be written.
    pub read_only: bool,
    /// Whether a block that is not present is read from a parent disk.
    pub parent: bool,
}

/// Bits of [`BlockMap::flags`].
mod flag {
    /// Writes may be done without the engine: the session's GUIDs are durable.
    pub(super) const ARMED: u32 = 1;
    /// Some change of the map is not durable yet: a flush must go to the engine.
    pub(super) const UNPUBLISHED: u32 = 2;
    /// All writes go to the engine: it needs them out of the way.
    pub(super) const DIVERTED: u32 = 4;
    /// The engine waits for workers to pass a generation.
    pub(super) const ATTENTION: u32 = 8;
    /// A flush failed: nothing more becomes durable.
    pub(super) const FAILED: u32 = 16;
}

/// The shared map of one disk.
#[derive(Debug)]
pub struct BlockMap {
    shape: MapShape,
    /// Size of the disk in bytes.
    size: AtomicU64,
    /// For each page that the BAT can come to have: number of its frame plus one, or zero.
    directory: Box<[AtomicU32]>,
    frames: Box<[OnceLock<Box<Frame>>]>,
    generation: AtomicU64,
    slots: Box<[AtomicU64]>,
    taken: AtomicU64,
    flags: AtomicU32,
    /// What is written, noted by whoever writes; nothing where changes are not tracked.
    track: OnceLock<TrackMap>,
}

impl BlockMap {
    /// A map for a disk of `shape` and `size` bytes whose BAT can come to have `entries` entries,
    /// holding at most `frames` pages.
    #[must_use]
    pub fn new(shape: MapShape, size: u64, entries: u64, frames: usize) -> Self {
        let pages = entries.div_ceil(PAGE_ENTRIES as u64) as usize;
        let frames = frames.clamp(1, pages.max(1));
        Self {
            shape,
            size: AtomicU64::new(size),
            directory: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            frames: (0..frames).map(|_| OnceLock::new()).collect(),
            generation: AtomicU64::new(1),
            slots: (0..MAX_WORKERS).map(|_| AtomicU64::new(IDLE)).collect(),
            taken: AtomicU64::new(0),
            flags: AtomicU32::new(0),
            track: OnceLock::new(),
        }
    }

    /// Size of the disk in bytes, now; it changes when the disk is resized.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Whether nothing may be written.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.shape.read_only
    }

    /// The shape given at the beginning.
    #[must_use]
    pub fn shape(&self) -> &MapShape {
        &self.shape
    }

    /// Where the longest run from `offset`, at most `len` bytes and inside one block, lies.
    ///
    /// The caller has entered (see [`Participant::enter`]), so that what is found stays where it is
    /// until the caller leaves. Whatever goes beyond the end of the disk as it is now is the engine's
    /// business, which refuses it: a disk may have become smaller since its client learnt its size.
    #[must_use]
    pub fn lookup(&self, offset: GuestOffset, len: u64, access: Access) -> Lookup {
        let write = access == Access::Write;
        if write
            && self.flags.load(Ordering::Acquire) & (flag::ARMED | flag::DIVERTED) != flag::ARMED
        {
            return Lookup::Engine;
        }
        if offset
            .0
            .checked_add(len)
            .is_none_or(|end| end > self.size())
        {
            return Lookup::Engine;
        }
        let found = match self.shape.block_shift {
            None => Lookup::File {
                at: FileOffset(offset.0),
                len,
            },
            Some(shift) => self.lookup_block(offset.0, len, (shift, write)),
        };
        match found {
            Lookup::Zero { .. } if write => Lookup::Engine,
            Lookup::File { at, len } if write && (at.0 | len) & (self.shape.alignment - 1) != 0 => {
                Lookup::Engine
            }
            // Last: what is noted here is about to be written.
            Lookup::File { len, .. } if write && !self.note_change(offset.0, len) => Lookup::Engine,
            found => found,
        }
    }

    /// Note that a range is about to change; false where that needs the engine first.
    pub(crate) fn note_change(&self, offset: u64, len: u64) -> bool {
        self.track.get().is_none_or(|track| track.mark(offset, len))
    }

    /// What is tracked, if changes are.
    pub(crate) fn track(&self) -> Option<&TrackMap> {
        self.track.get()
    }

    fn lookup_block(&self, offset: u64, len: u64, (shift, write): (u32, bool)) -> Lookup {
        let within = offset & ((1 << shift) - 1);
        let len = len.min((1 << shift) - within);
        let Some(entry) = self.raw_entry(self.bat_index(offset >> shift)) else {
            return Lookup::Engine;
        };
        match entry & 7 {
            _ if write && entry & MOVING != 0 => Lookup::Engine,
            FULLY_PRESENT => Lookup::File {
                at: FileOffset((entry & OFFSET_MASK) + within),
                len,
            },
            0 if self.shape.parent => Lookup::Engine,
            0..=3 => Lookup::Zero { len },
            _ => Lookup::Engine,
        }
    }

    /// The BAT index of payload block `block` (MS-VHDX 2.5: bitmap entries lie between chunks).
    #[must_use]
    pub fn bat_index(&self, block: u64) -> u64 {
        block + (block >> self.shape.chunk_shift)
    }

    /// The entry with BAT index `index` as it is now; `None` when its page is not here.
    #[must_use]
    pub fn entry(&self, index: u64) -> Option<u64> {
        Some(self.raw_entry(index)? & !MOVING)
    }

    fn raw_entry(&self, index: u64) -> Option<u64> {
        let page = index / PAGE_ENTRIES as u64;
        let frame = self.directory.get(page as usize)?.load(Ordering::Acquire);
        let frame = self.frames.get((frame as usize).checked_sub(1)?)?.get()?;
        frame.read(page, (index % PAGE_ENTRIES as u64) as usize)
    }

    /// Whether a flush must go to the engine; else a plain data sync makes everything durable.
    #[must_use]
    pub fn flush_needs_engine(&self) -> bool {
        self.flags.load(Ordering::Acquire) & flag::UNPUBLISHED != 0
    }

    /// Whether a flush of this disk failed. The kernel tells of such a failure once, and perhaps not
    /// the one who asks next: a worker's own flush that ended well counts only if this is false then.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.flags.load(Ordering::Acquire) & flag::FAILED != 0
    }

    /// Take part as one worker; at most [`MAX_WORKERS`] at a time.
    ///
    /// # Panics
    /// When all places are taken.
    #[must_use]
    pub fn register(self: &Arc<Self>) -> Participant {
        Participant::new(Arc::clone(self))
    }
}

/// What only the engine may do. It calls these from one thread at a time.
impl BlockMap {
    /// How many pages it can hold at once.
    pub(crate) fn frame_count(&self) -> usize {
        self.frames.len()
    }

    /// Track changes from now on; nobody else has the map yet.
    pub(crate) fn set_track(&self, track: TrackMap) {
        // There is one place from which this is called, once.
        let _ = self.track.set(track);
    }

    /// Give the disk another size. Lookups that begin in a later generation go by it.
    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::SeqCst);
    }

    /// Put `page` with `entries` into frame `number`, in place of what was there.
    pub(crate) fn install(&self, number: usize, page: u64, entries: &[u64]) {
        let frame = self.frames[number].get_or_init(|| Box::new(Frame::new()));
        if let Some(old) = frame.page() {
            self.directory[old as usize].store(0, Ordering::Release);
        }
        frame.replace(page, entries);
        self.directory[page as usize].store(number as u32 + 1, Ordering::Release);
    }

    /// Whether writes to the block of entry `index`, whose page is here, go to the engine.
    pub(crate) fn set_moving(&self, index: u64, on: bool) {
        if let Some(entry) = self.entry(index) {
            self.set_entry(index, if on { entry | MOVING } else { entry });
        }
    }

    /// Change one entry of a page that is here; its block is not being moved any more.
    pub(crate) fn set_entry(&self, index: u64, value: u64) {
        let page = index / PAGE_ENTRIES as u64;
        let number = self.directory[page as usize].load(Ordering::Relaxed) as usize;
        let frame = self.frames[number - 1]
            .get()
            .expect("a page in the directory has its frame");
        frame.set((index % PAGE_ENTRIES as u64) as usize, value);
    }

    /// All entries of a page that is here, as the engine last set them.
    pub(crate) fn page_entries(&self, page: u64) -> Option<[u64; PAGE_ENTRIES]> {
        let number = self.directory.get(page as usize)?.load(Ordering::Relaxed) as usize;
        let entries = self.frames.get(number.checked_sub(1)?)?.get()?.entries();
        Some(entries.map(|entry| entry & !MOVING))
    }

    /// Whether `page` was looked up since this was last asked.
    pub(crate) fn take_referenced(&self, page: u64) -> bool {
        let number = self.directory[page as usize].load(Ordering::Relaxed) as usize;
        number != 0
            && self.frames[number - 1]
                .get()
                .is_some_and(|frame| frame.take_referenced())
    }

    /// Begin a new generation: what an earlier one saw of the map may be out of date.
    pub(crate) fn advance(&self) -> Generation {
        let new = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        fence(Ordering::SeqCst);
        Generation(new)
    }

    /// Whether no worker has an operation in flight that began before `generation`.
    pub(crate) fn quiesced(&self, generation: Generation) -> bool {
        fence(Ordering::SeqCst);
        self.slots
            .iter()
            .all(|slot| slot.load(Ordering::SeqCst) >= generation.0)
    }

    fn set_flag(&self, bit: u32, on: bool) {
        if on {
            self.flags.fetch_or(bit, Ordering::SeqCst);
        } else {
            self.flags.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Whether writes may be done without the engine.
    pub(crate) fn set_armed(&self, on: bool) {
        self.set_flag(flag::ARMED, on);
    }

    /// Whether some change of the map is not durable yet.
    pub(crate) fn set_unpublished(&self, on: bool) {
        self.set_flag(flag::UNPUBLISHED, on);
    }

    /// Whether all writes go to the engine.
    pub(crate) fn set_diverted(&self, on: bool) {
        self.set_flag(flag::DIVERTED, on);
    }

    /// A flush failed; there is no way back.
    pub(crate) fn set_failed(&self) {
        self.set_flag(flag::FAILED, true);
    }

    /// Whether workers that leave must call [`Engine::poll`](crate::engine::Engine::poll).
    pub(crate) fn set_attention(&self, on: bool) {
        self.set_flag(flag::ATTENTION, on);
    }

    fn attention(&self) -> bool {
        self.flags.load(Ordering::SeqCst) & flag::ATTENTION != 0
    }
}
