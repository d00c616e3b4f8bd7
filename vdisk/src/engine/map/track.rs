//! What is being written, kept by whoever writes it: bits of the pages in use of the tracking bitmap.
//!
//! A worker sets the bits of what it is about to write before it writes, in a frame that holds the
//! bitmap's page. It may do so only where the part of the page is *active*: the activity log on the
//! medium names it, so that a crash forgets no bit. All else is the engine's business.
//!
//! **Reclamation.** A page leaves memory in three steps: nobody finds it any more; every worker is past
//! the generation in which it could be found ([`BlockMap::quiesced`](super::BlockMap::quiesced)), so
//! that its bits are all set and their writes have ended; its bits are durable in the file. Only then
//! does the frame hold another page. So a bit is never set on the wrong page and never lost.
//!
//! It must never block, and never set a bit outside an active part.

use super::frame::PAGE_ENTRIES;
use super::sync::{AtomicBool, AtomicU32, AtomicU64, OnceLock, Ordering};

/// Parts of a page that become active by themselves, one for each bit of a word.
const PARTS: u64 = 64;

/// Words of a page: 4096 bytes of 64 bits.
const WORDS: usize = PAGE_ENTRIES;

/// Granules that one page tells about.
pub(crate) const PAGE_BITS: u64 = WORDS as u64 * 64;

/// Granules of one part.
const PART_BITS: u64 = PAGE_BITS / PARTS;

/// One page of the bitmap.
#[derive(Debug)]
struct TrackFrame {
    /// Parts in which bits may be set.
    active: AtomicU64,
    referenced: AtomicBool,
    /// A bit was set since the page was last made durable.
    dirty: AtomicBool,
    words: [AtomicU64; WORDS],
}

impl TrackFrame {
    fn new() -> Self {
        Self {
            active: AtomicU64::new(0),
            referenced: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Set bits `first..end`, at least one, if all their parts are active.
    fn mark(&self, first: u64, end: u64) -> bool {
        let need = parts(first, end);
        if self.active.load(Ordering::Acquire) & need != need {
            return false;
        }
        for word in first / 64..end.div_ceil(64) {
            let low = first.max(word * 64) - word * 64;
            let high = end.min(word * 64 + 64) - word * 64;
            let bits = (u64::MAX >> (64 - (high - low))) << low;
            let place = &self.words[word as usize];
            // Most writes go where others went before: look before taking the line for oneself.
            if place.load(Ordering::Relaxed) & bits != bits {
                place.fetch_or(bits, Ordering::Relaxed);
                self.dirty.store(true, Ordering::Relaxed);
            }
        }
        if !self.referenced.load(Ordering::Relaxed) {
            self.referenced.store(true, Ordering::Relaxed);
        }
        true
    }
}

/// The parts in which bits `first..end` of a page lie.
pub(crate) fn parts(first: u64, end: u64) -> u64 {
    let (low, high) = (first / PART_BITS, (end - 1) / PART_BITS);
    (u64::MAX >> (PARTS - 1 - (high - low))) << low
}

/// The bitmap's pages in memory, shared with all who write.
#[derive(Debug)]
pub(crate) struct TrackMap {
    /// log2 of the bytes that a bit tells about.
    shift: u32,
    /// Bits that there are; what lies beyond needs none.
    granules: u64,
    /// Whether changes are collected at all.
    collecting: AtomicBool,
    /// For each page: number of its frame plus one, or zero.
    directory: Box<[AtomicU32]>,
    frames: Box<[OnceLock<Box<TrackFrame>>]>,
}

impl TrackMap {
    /// A map of `granules` bits, each for `1 << shift` bytes, with at most `frames` pages in memory.
    pub(crate) fn new(shift: u32, granules: u64, frames: usize) -> Self {
        let pages = granules.div_ceil(PAGE_BITS) as usize;
        Self {
            shift,
            granules,
            collecting: AtomicBool::new(false),
            directory: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            frames: (0..frames).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The granules of `len` bytes at `offset`, as far as there are bits for them.
    pub(crate) fn granules(&self, offset: u64, len: u64) -> std::ops::Range<u64> {
        if len == 0 {
            return 0..0;
        }
        let end = (offset.saturating_add(len - 1) >> self.shift).saturating_add(1);
        offset >> self.shift..end.min(self.granules)
    }

    /// The byte of the disk at which granule `granule` begins.
    pub(crate) fn offset_of(&self, granule: u64) -> u64 {
        granule.saturating_mul(1 << self.shift)
    }

    /// Whether changes are collected.
    pub(crate) fn collecting(&self) -> bool {
        self.collecting.load(Ordering::Acquire)
    }

    /// Note that `len` bytes at `offset` are about to change; false, where the engine must first see
    /// to it that this can be noted. The caller has entered.
    pub(crate) fn mark(&self, offset: u64, len: u64) -> bool {
        if !self.collecting() {
            return true;
        }
        let granules = self.granules(offset, len);
        let mut granule = granules.start;
        while granule < granules.end {
            let page = granule / PAGE_BITS;
            let end = granules.end.min((page + 1) * PAGE_BITS);
            let base = page * PAGE_BITS;
            let frame = self.frame_of(page);
            if !frame.is_some_and(|frame| frame.mark(granule - base, end - base)) {
                return false;
            }
            granule = end;
        }
        true
    }

    fn frame_of(&self, page: u64) -> Option<&TrackFrame> {
        let number = self.directory.get(page as usize)?.load(Ordering::Acquire);
        Some(self.frames.get((number as usize).checked_sub(1)?)?.get()?)
    }
}

/// What only the engine may do.
impl TrackMap {
    /// Whether changes are collected from now on; everyone who writes is shut out meanwhile.
    pub(crate) fn set_collecting(&self, on: bool) {
        self.collecting.store(on, Ordering::SeqCst);
    }

    pub(crate) fn frame_count(&self) -> usize {
        self.frames.len()
    }

    fn frame(&self, number: usize) -> &TrackFrame {
        self.frames[number].get_or_init(|| Box::new(TrackFrame::new()))
    }

    /// Put `page` with `bits` into frame `number`, which nobody can find; no part of it is active.
    pub(crate) fn install(&self, number: usize, page: u64, bits: &[u8]) {
        let frame = self.frame(number);
        frame.active.store(0, Ordering::Relaxed);
        frame.dirty.store(false, Ordering::Relaxed);
        for (word, bytes) in frame.words.iter().zip(bits.chunks(8)) {
            let value = bytes.try_into().map_or(0, u64::from_le_bytes);
            word.store(value, Ordering::Relaxed);
        }
        self.directory[page as usize].store(number as u32 + 1, Ordering::Release);
    }

    /// More parts of a page are active: the log on the medium names them.
    pub(crate) fn activate(&self, number: usize, parts: u64) {
        self.frame(number).active.fetch_or(parts, Ordering::Release);
    }

    /// Nobody finds `page` from now on; those who have found it are in an earlier generation than the
    /// one that begins next.
    pub(crate) fn retire(&self, page: u64) {
        self.directory[page as usize].store(0, Ordering::SeqCst);
    }

    /// The bits of frame `number`, which nobody changes now; they count as durable.
    pub(crate) fn take_bits(&self, number: usize) -> Vec<u8> {
        let frame = self.frame(number);
        frame.dirty.store(false, Ordering::Relaxed);
        let words = frame.words.iter();
        words
            .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
            .collect()
    }

    /// A new bitmap begins: no bit is set in frame `number`. Everyone who writes is shut out.
    pub(crate) fn clear(&self, number: usize) {
        let frame = self.frame(number);
        frame.dirty.store(false, Ordering::Relaxed);
        for word in &frame.words {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Whether frame `number` has bits that the file does not.
    pub(crate) fn is_dirty(&self, number: usize) -> bool {
        self.frame(number).dirty.load(Ordering::Relaxed)
    }

    /// Whether frame `number` was marked since this was last asked.
    pub(crate) fn take_referenced(&self, number: usize) -> bool {
        self.frame(number).referenced.swap(false, Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn map() -> TrackMap {
        let map = TrackMap::new(12, 3 * PAGE_BITS - 5, 2);
        map.set_collecting(true);
        map
    }

    const EMPTY: [u8; 4096] = [0; 4096];

    fn marked(map: &TrackMap, frame: usize) -> Vec<u64> {
        let bits = map.take_bits(frame);
        let set = |bit: &u64| bits[*bit as usize / 8] >> (bit % 8) & 1 == 1;
        (0..PAGE_BITS).filter(set).collect()
    }

    #[test]
    fn only_active_parts_are_marked_and_exactly_what_is_written() {
        let map = map();
        assert!(!map.mark(0, 4096), "no page is here");
        map.install(1, 0, &EMPTY);
        assert!(!map.mark(0, 4096), "no part is active");
        map.activate(1, 0b10);
        assert!(!map.mark(511 * 4096, 8192), "half of it is not active");
        assert!(map.mark(512 * 4096 + 4095, 2));
        assert!(map.mark(700 * 4096, 100 * 4096));
        let expected: Vec<u64> = [512, 513].into_iter().chain(700..800).collect();
        assert!(map.is_dirty(1));
        assert_eq!(marked(&map, 1), expected);
        assert!(!map.is_dirty(1));
        assert!(map.mark(700 * 4096, 4096) && !map.is_dirty(1));
    }

    #[test]
    fn a_write_across_two_pages_needs_both() {
        let map = map();
        map.install(0, 0, &EMPTY);
        map.activate(0, u64::MAX);
        let border = PAGE_BITS * 4096;
        assert!(!map.mark(border - 4096, 8192));
        map.install(1, 1, &EMPTY);
        map.activate(1, 1);
        assert!(map.mark(border - 4096, 8192));
        assert_eq!(marked(&map, 0), [PAGE_BITS - 1]);
        assert_eq!(marked(&map, 1), [0]);
    }

    #[test]
    fn what_no_bit_is_there_for_needs_none() {
        let map = map();
        assert!(map.mark((3 * PAGE_BITS - 5) * 4096, 1 << 20));
        assert!(map.mark(0, 0));
        map.set_collecting(false);
        assert!(map.mark(0, 4096));
    }

    #[test]
    fn parts_of_ranges_are_counted_from_both_ends() {
        assert_eq!(parts(0, 1), 1);
        assert_eq!(parts(511, 513), 0b11);
        assert_eq!(parts(0, PAGE_BITS), u64::MAX);
        assert_eq!(parts(PAGE_BITS - 1, PAGE_BITS), 1 << 63);
    }
}
