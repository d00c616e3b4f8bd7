//! One page of the BAT in memory, readable while it is replaced.

use super::sync::{AtomicBool, AtomicU64, Ordering, fence};

/// Entries in a page: 4096 bytes of 8-byte entries.
pub const PAGE_ENTRIES: usize = if cfg!(loom) { 2 } else { 512 };

/// `page` of a frame that holds none.
const NONE: u64 = u64::MAX;

/// A page's entries with the version that tells a reader whether they belong together.
///
/// The version is odd while the frame is being given to another page. A single entry that the
/// engine changes is one atomic store and needs no new version.
#[derive(Debug)]
pub(super) struct Frame {
    version: AtomicU64,
    page: AtomicU64,
    referenced: AtomicBool,
    entries: [AtomicU64; PAGE_ENTRIES],
}

impl Frame {
    pub(super) fn new() -> Self {
        Self {
            version: AtomicU64::new(0),
            page: AtomicU64::new(NONE),
            referenced: AtomicBool::new(false),
            entries: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Entry `slot` if the frame holds `page` and held it throughout.
    pub(super) fn read(&self, page: u64, slot: usize) -> Option<u64> {
        let before = self.version.load(Ordering::Acquire);
        if before & 1 != 0 || self.page.load(Ordering::Relaxed) != page {
            return None;
        }
        let value = self.entries.get(slot)?.load(Ordering::Acquire);
        fence(Ordering::Acquire);
        if self.version.load(Ordering::Relaxed) != before {
            return None;
        }
        if !self.referenced.load(Ordering::Relaxed) {
            self.referenced.store(true, Ordering::Relaxed);
        }
        Some(value)
    }

    /// Which page it holds.
    pub(super) fn page(&self) -> Option<u64> {
        Some(self.page.load(Ordering::Relaxed)).filter(|page| *page != NONE)
    }

    /// Hold `page` with `entries` from now on; missing entries are zero.
    pub(super) fn replace(&self, page: u64, entries: &[u64]) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        // Readers that see any store below also see the odd version.
        fence(Ordering::Release);
        self.page.store(page, Ordering::Relaxed);
        for (slot, entry) in self.entries.iter().enumerate() {
            entry.store(entries.get(slot).copied().unwrap_or(0), Ordering::Relaxed);
        }
        self.version.store(version + 2, Ordering::Release);
        self.referenced.store(true, Ordering::Relaxed);
    }

    /// Change one entry.
    pub(super) fn set(&self, slot: usize, value: u64) {
        self.entries[slot].store(value, Ordering::Release);
    }

    /// All entries; only the engine, which alone changes them, may ask.
    pub(super) fn entries(&self) -> [u64; PAGE_ENTRIES] {
        std::array::from_fn(|slot| self.entries[slot].load(Ordering::Relaxed))
    }

    /// Whether it was read since this was last asked.
    pub(super) fn take_referenced(&self) -> bool {
        self.referenced.swap(false, Ordering::Relaxed)
    }
}
