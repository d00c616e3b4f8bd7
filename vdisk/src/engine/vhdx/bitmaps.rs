//! Sector bitmaps of a differencing disk: which sectors of a block are its own (MS-VHDX 2.5.1.2).
//!
//! A bitmap block of 1 MiB has one bit for each sector of a chunk. Its pages come and go like those
//! of the BAT, and their changes are published by the same flush rounds.
//!
//! **Order.** A bit is set once the write of its sector has ended, so that no failed or unfinished
//! write hides the parent. In a round the pages of bitmaps are logged before those of the BAT: a
//! block never becomes partially present durably before its bits are right.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lru::LruCache;

use super::blocks::{FULLY_PRESENT, OFFSET_MASK};
use super::child::PARTIALLY_PRESENT;
use super::{PAGE, Vhdx};
use crate::engine::ops::Purpose;
use crate::engine::step::Run;
use crate::engine::{Engine, FileOpKind, Outcome, RequestId};
use crate::error::{Error, ErrorKind};
use crate::units::{FileOffset, MIB};

/// Sectors that one page of a bitmap tells about.
pub(super) const PAGE_BITS: u64 = PAGE * 8;

/// Blocks whose bits are kept at least.
const LEAST_BLOCKS: u64 = 4;

type Page = Box<[u8; PAGE as usize]>;

/// A run of sectors whose bits are on one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Sectors {
    /// BAT index of the block they belong to, and its entry when they were looked up.
    pub(super) index: u64,
    pub(super) entry: u64,
    /// Where the page lies in the file.
    pub(super) page: u64,
    /// The first one's bit on the page, and how many there are.
    pub(super) first: u32,
    pub(super) count: u32,
}

/// The pages of all bitmaps of one disk.
#[derive(Debug)]
pub(in crate::engine) struct Bitmaps {
    /// Pages in memory by their place in the file, least recently used first.
    lru: LruCache<u64, Page>,
    most: usize,
    loading: BTreeSet<u64>,
    /// Pages that could not be read just now; whoever waits for one is told.
    unread: BTreeMap<u64, String>,
    /// How many operations under way will set bits on each page.
    users: BTreeMap<u64, u32>,
    /// Pages with changes that no flush round has taken; of the round whose data flush runs; of the
    /// round that is being logged.
    pending: BTreeSet<u64>,
    copied: BTreeSet<u64>,
    logging: BTreeSet<u64>,
    /// Bitmap blocks whose host space is reserved, and those whose is being.
    reserved: BTreeSet<u64>,
    reserving: BTreeSet<u64>,
}

impl Bitmaps {
    pub(super) fn new(most: usize, sectors_per_block: u64) -> Self {
        let least = LEAST_BLOCKS * sectors_per_block.div_ceil(PAGE_BITS);
        Self {
            lru: LruCache::unbounded(),
            most: most.max(least as usize),
            loading: BTreeSet::new(),
            unread: BTreeMap::new(),
            users: BTreeMap::new(),
            pending: BTreeSet::new(),
            copied: BTreeSet::new(),
            logging: BTreeSet::new(),
            reserved: BTreeSet::new(),
            reserving: BTreeSet::new(),
        }
    }

    /// How many pages are kept, unless more are pinned.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Pages that the next round carries, those included that writes under way will change.
    pub(super) fn pending(&self) -> usize {
        let coming = self.users.keys().filter(|at| !self.pending.contains(at));
        self.pending.len() + coming.count()
    }

    fn is_pending(&self, page: u64) -> bool {
        self.pending.contains(&page) || self.users.contains_key(&page)
    }

    /// The data flush of the round that copied pages ended; they are being logged now.
    pub(super) fn data_durable(&mut self) {
        self.logging = std::mem::take(&mut self.copied);
    }

    /// The pages that were being logged are durable. Whether no others have changes.
    pub(super) fn logged(&mut self) -> bool {
        self.logging.clear();
        self.pending.is_empty() && self.copied.is_empty()
    }

    /// The bitmap at `at` is no chunk's any more: its host space may go.
    pub(super) fn given_up(&mut self, at: FileOffset) {
        self.reserved.remove(&at.0);
    }

    /// Those that waited have been told; later requests try again.
    pub(in crate::engine) fn forget_unread(&mut self) {
        self.unread.clear();
    }

    /// Copies of all pages with changes; they belong to the round that begins.
    pub(super) fn take_pending(&mut self) -> Vec<(FileOffset, Bytes)> {
        self.copied = std::mem::take(&mut self.pending);
        let copy = |at: &u64| {
            let page = self.lru.peek(at).expect("a pending page is pinned");
            (FileOffset(*at), Bytes::copy_from_slice(&page[..]))
        };
        self.copied.iter().map(copy).collect()
    }

    /// How many sectors from `first`, at most `most`, are alike, and whether they are the child's.
    ///
    /// The page is in memory.
    pub(super) fn run(&mut self, page: u64, first: u32, most: u32) -> (u32, bool) {
        let Some(bits) = self.lru.get(&page) else {
            return (most, false);
        };
        let own = bit(bits, first);
        let run = (first..first + most).take_while(|number| bit(bits, *number) == own);
        (run.count() as u32, own)
    }

    /// Whether a round that begins now would carry pages.
    pub(super) fn has_changes(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether every one of the sectors is the child's; their page is in memory, or it is unknown.
    fn all_set(&self, page: u64, first: u32, count: u32) -> bool {
        let bits = self.lru.peek(&page);
        bits.is_some_and(|bits| (first..first + count).all(|number| bit(bits, number)))
    }

    /// Set the bits of sectors to `on`; whether one of them was not.
    fn set(&mut self, page: u64, first: u32, count: u32, on: bool) -> bool {
        let Some(bits) = self.lru.get_mut(&page) else {
            return false;
        };
        let mut changed = false;
        for number in first..first + count {
            changed |= bit(bits, number) != on;
            let mask = 1 << (number % 8);
            if on {
                bits[number as usize / 8] |= mask;
            } else {
                bits[number as usize / 8] &= !mask;
            }
        }
        changed
    }
}

fn bit(bits: &Page, number: u32) -> bool {
    bits[number as usize / 8] & (1 << (number % 8)) != 0
}

impl Vhdx {
    fn bits_pinned(&self, at: u64) -> bool {
        let bitmaps = &self.bitmaps;
        bitmaps.is_pending(at)
            || bitmaps.copied.contains(&at)
            || bitmaps.logging.contains(&at)
            || self.log.holds_page(at)
    }

    /// Keep a page that was read, in place of the least recently used that can be spared.
    fn keep_bits(&mut self, at: u64, page: Page) {
        let mut tries = self.bitmaps.lru.len();
        while self.bitmaps.lru.len() >= self.bitmaps.most && tries > 0 {
            tries -= 1;
            let Some((old, bits)) = self.bitmaps.lru.pop_lru() else {
                break;
            };
            if self.bits_pinned(old) {
                self.bitmaps.lru.push(old, bits);
            }
        }
        // When all are pinned there is one more for a while: pinned ones are bounded by the rounds.
        self.bitmaps.lru.push(at, page);
    }
}

impl Engine {
    /// Have the page at `at` in memory; else `id` is blocked until it is.
    pub(super) fn bits_or_load(&mut self, id: RequestId, at: u64) -> Result<(), Run> {
        let Some(vhdx) = &mut self.vhdx else {
            return Err(Run::Blocked);
        };
        if vhdx.bitmaps.lru.contains(&at) {
            return Ok(());
        }
        if let Some(why) = vhdx.bitmaps.unread.get(&at) {
            return Err(Run::Failed(Error::new(ErrorKind::Io, why.clone())));
        }
        self.requests.block(id);
        if vhdx.bitmaps.loading.insert(at) {
            let (at, len) = (FileOffset(at), PAGE as u32);
            self.ops
                .push(Purpose::LoadBits(at.0), FileOpKind::Read { at, len });
        }
        Err(Run::Blocked)
    }

    pub(in crate::engine) fn bits_loaded(&mut self, at: u64, outcome: Outcome) {
        let Some(vhdx) = &mut self.vhdx else { return };
        vhdx.bitmaps.loading.remove(&at);
        self.wake = true;
        let read = match outcome {
            Outcome::Data(data) => vhdx.layout.overlay.get(&at).cloned().unwrap_or(data),
            Outcome::Failed(error) => {
                let why = format!("a page of a sector bitmap can not be read: {error}");
                vhdx.bitmaps.unread.insert(at, why);
                return;
            }
            _ => Bytes::new(),
        };
        if let Ok(page) = <[u8; PAGE as usize]>::try_from(&read[..]) {
            vhdx.keep_bits(at, Box::new(page));
            self.make_room();
        } else {
            let why = "a page of a sector bitmap was read in part".to_owned();
            vhdx.bitmaps.unread.insert(at, why);
        }
    }

    /// Get ready to change bits on the page at `at` of the bitmap at `bitmap`: room in the next flush
    /// round, and host space. Else `id` is blocked until there is, or refused since there is none.
    pub(super) fn ready_to_mark(&mut self, id: RequestId, bitmap: u64, at: u64) -> Result<(), Run> {
        let Some(vhdx) = &mut self.vhdx else {
            return Err(Run::Blocked);
        };
        if !vhdx.bitmaps.is_pending(at) && vhdx.round_is_full() {
            return Err(self.wait_for_room(id));
        }
        if vhdx.bitmaps.reserved.contains(&bitmap) {
            return Ok(());
        }
        if let Some(error) = vhdx.space.full() {
            return Err(Run::Failed(error));
        }
        self.requests.block(id);
        if vhdx.bitmaps.reserving.insert(bitmap) {
            let kind = FileOpKind::Reserve {
                at: FileOffset(bitmap),
                len: MIB,
            };
            self.ops.push(Purpose::ReserveBitmap(bitmap), kind);
        }
        Err(Run::Blocked)
    }

    pub(in crate::engine) fn bitmap_reserved(&mut self, bitmap: u64, outcome: &Outcome) {
        let Some(vhdx) = &mut self.vhdx else { return };
        vhdx.bitmaps.reserving.remove(&bitmap);
        match outcome {
            Outcome::Failed(error) => vhdx.space.set_full(error),
            _ => {
                vhdx.bitmaps.reserved.insert(bitmap);
            }
        }
        self.wake = true;
    }

    /// An operation that will make `sectors` the child's own is on its way.
    pub(in crate::engine) fn pin_bits(&mut self, sectors: Sectors) {
        if let Some(vhdx) = &mut self.vhdx {
            *vhdx.bitmaps.users.entry(sectors.page).or_default() += 1;
        }
    }

    /// That operation has ended.
    pub(in crate::engine) fn sectors_written(&mut self, sectors: Sectors, outcome: &Outcome) {
        let Some(vhdx) = &mut self.vhdx else { return };
        if let Some(users) = vhdx.bitmaps.users.get_mut(&sectors.page) {
            *users -= 1;
            if *users == 0 {
                vhdx.bitmaps.users.remove(&sectors.page);
            }
        }
        self.wake = true;
        let failed = matches!(outcome, Outcome::Failed(_));
        // Discarded or made whole meanwhile: the bits mean nothing any more. Where that is not known,
        // its page having been evicted, they are set: a block is partially present only once, so they
        // are its own or nobody's.
        let entry = self.map.entry(sectors.index);
        if failed || entry.is_some_and(|entry| entry != sectors.entry) {
            return;
        }
        self.change_bits(sectors, true);
        if entry.is_some() {
            self.promote(sectors);
        }
    }

    /// Change bits of a page in memory; the change is pending from now on.
    pub(super) fn change_bits(&mut self, sectors: Sectors, on: bool) {
        let Sectors {
            page, first, count, ..
        } = sectors;
        let Some(vhdx) = &mut self.vhdx else { return };
        if vhdx.bitmaps.set(page, first, count, on) {
            // Before anyone hears of it: whoever flushes then must come to the engine.
            self.map.set_unpublished(true);
            vhdx.bitmaps.pending.insert(page);
            if vhdx.round_is_half_full() {
                self.flusher.wanted = true;
            }
        }
    }

    /// A block whose sectors are all its own needs its bitmap no more, and workers write it without
    /// the engine. Only done where it costs no waiting: the bits are right in any case.
    fn promote(&mut self, sectors: Sectors) {
        let Some(vhdx) = &self.vhdx else { return };
        let per_block = vhdx.layout.block_size / u64::from(vhdx.layout.geometry.sector());
        let on_page = per_block.min(PAGE_BITS) as u32;
        let pages = per_block.div_ceil(PAGE_BITS);
        // A block's bits begin at a multiple of their count: on a page, or with a page.
        let first = sectors.first / on_page * on_page;
        let first_page = sectors.page / (pages * PAGE) * (pages * PAGE);
        let base = if pages > 1 { first_page } else { sectors.page };
        let whole = (0..pages).all(|page| vhdx.bitmaps.all_set(base + page * PAGE, first, on_page));
        // The entry of a block that is being moved is not touched until it has arrived.
        let stays = !vhdx.is_moving(sectors.index);
        if !whole || !stays || !vhdx.may_change_now(sectors.index) {
            return;
        }
        debug_assert_eq!(sectors.entry & 7, PARTIALLY_PRESENT);
        self.change_entry(sectors.index, (sectors.entry & OFFSET_MASK) | FULLY_PRESENT);
    }
}
