//! Which pages of the BAT are in memory, and which have changes that the log does not hold yet.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lru::LruCache;

use super::{PAGE, Vhdx};
use crate::engine::ops::Purpose;
use crate::engine::step::Run;
use crate::engine::{BlockMap, Engine, FileOpKind, Outcome, PAGE_ENTRIES, RequestId};
use crate::error::{Error, ErrorKind};
use crate::format::bat::Slot as BatSlot;
use crate::format::{BatEntry, BlockState};
use crate::units::{BatIndex, FileOffset};

/// Host space of the BAT is reserved in pieces of at least this many bytes before an entry in them is
/// set, and in at most so many pieces: file systems stop all other I/O on a file meanwhile.
const LEAST_GRANULE: u64 = 256 << 10;
const MOST_GRANULES: u64 = 16;

/// More pending pages than this are not let up, whatever the size of the log.
const MOST_PENDING: usize = 2048;

/// The pages of one BAT.
#[derive(Debug)]
pub(in crate::engine) struct Pages {
    /// Pages in memory, least recently used first, each with its frame.
    lru: LruCache<u64, usize>,
    /// Frames never used.
    unused: Vec<usize>,
    loading: BTreeSet<u64>,
    /// Pages that break the format, and how.
    bad: BTreeMap<u64, String>,
    /// Pages that could not be read just now; whoever waits for one is told.
    unread: BTreeMap<u64, String>,
    pending: Pending,
    /// Pages of the round whose data flush runs.
    copied: BTreeSet<u64>,
    /// Pages of the round that is being logged.
    logging: BTreeSet<u64>,
    /// How many pending pages a round can carry.
    limit: usize,
    /// Bytes of a piece of host space of the BAT.
    granule: u64,
    /// Pieces that are reserved, and those that are being.
    reserved: BTreeSet<u64>,
    reserving: BTreeSet<u64>,
}

/// Changes that no flush round has taken.
#[derive(Debug, Default)]
struct Pending {
    /// Of these pages.
    pages: BTreeSet<u64>,
    /// Whether one of them may be logged only when what was written before it is durable.
    after_data: bool,
}

/// How many pages may be pending so that a round fits a third of a log of `log_len` bytes, and so
/// that pages of a BAT of `bat_len` bytes can still be evicted.
pub(super) fn pending_limit(map: &BlockMap, bat_len: u64, log_len: u64) -> usize {
    let sectors = (log_len / PAGE) as usize;
    let by_log = (sectors / 3 * 120 / 128).saturating_sub(2);
    let by_frames = if map.frame_count() as u64 >= bat_len.div_ceil(PAGE) {
        usize::MAX
    } else {
        map.frame_count() / 4
    };
    by_log.min(by_frames).clamp(1, MOST_PENDING)
}

fn granule(bat_len: u64) -> u64 {
    let piece = (bat_len / MOST_GRANULES).next_power_of_two();
    piece.max(LEAST_GRANULE)
}

impl Pages {
    pub(super) fn new(frames: usize, limit: usize, bat_len: u64) -> Self {
        Self {
            granule: granule(bat_len),
            lru: LruCache::unbounded(),
            unused: (0..frames).rev().collect(),
            loading: BTreeSet::new(),
            bad: BTreeMap::new(),
            unread: BTreeMap::new(),
            pending: Pending::default(),
            copied: BTreeSet::new(),
            logging: BTreeSet::new(),
            limit,
            reserved: BTreeSet::new(),
            reserving: BTreeSet::new(),
        }
    }

    /// What was written before the round that copied pages is durable, or need not be; they are being
    /// logged now.
    pub(super) fn data_durable(&mut self) {
        debug_assert!(self.logging.is_empty(), "rounds are logged one at a time");
        self.logging = std::mem::take(&mut self.copied);
    }

    /// The pages that were being logged are durable. Whether no others have changes.
    pub(super) fn logged(&mut self) -> bool {
        self.logging.clear();
        self.pending.pages.is_empty() && self.copied.is_empty()
    }

    /// Whether the log holds every change.
    pub(super) fn all_published(&self) -> bool {
        self.pending.pages.is_empty() && self.copied.is_empty() && self.logging.is_empty()
    }

    /// Whether host space of the table is being reserved.
    pub(super) fn reserving(&self) -> bool {
        !self.reserving.is_empty()
    }

    /// The table lies elsewhere now, in a region of `bat_len` bytes of which nothing is reserved.
    pub(super) fn moved(&mut self, bat_len: u64) {
        self.granule = granule(bat_len);
        self.reserved.clear();
        self.unread.clear();
    }

    /// Those that waited have been told; later requests try again.
    pub(in crate::engine) fn forget_unread(&mut self) {
        self.unread.clear();
    }
}

impl Vhdx {
    /// Whether a round that begins now may be logged at once: all it carries is entries that are right
    /// whether or not data is durable. Sizes and marks come after everything else; bits of sectors come
    /// with a parent only, and then no entry is of that kind.
    pub(super) fn may_log_at_once(&self) -> bool {
        let last = self.session.has_page_for_round() || !self.resize_pages.is_empty();
        !self.pages.pending.pages.is_empty() && !self.pages.pending.after_data && !last
    }

    /// Whether memory holds something of `page` that its place in the file does not.
    fn pinned(&self, page: u64) -> bool {
        self.pages.pending.pages.contains(&page)
            || self.pages.copied.contains(&page)
            || self.pages.logging.contains(&page)
            || self.log.holds_page(self.page_at(page).0)
            || self.moves_on(page)
    }

    /// Whether the log pins so many pages that those which one change of a child needs at once, its
    /// block's, its bitmap's and the bits, might go on taking the few others' places.
    fn crowded(&self, frames: usize) -> bool {
        let kept = frames.min(self.bitmaps.most());
        self.layout.geometry.differencing() && self.log.held_pages() * 2 > kept
    }

    fn pending(&self) -> usize {
        self.pages.pending.pages.len() + self.bitmaps.pending()
    }

    /// Whether the next round can carry no other page.
    pub(super) fn round_is_full(&self) -> bool {
        self.pending() >= self.pages.limit
    }

    /// Whether a round should begin although nobody waits for one.
    pub(super) fn round_is_half_full(&self) -> bool {
        self.pending() * 2 > self.pages.limit
    }

    /// Whether entry `index` could be changed without waiting for anything.
    pub(super) fn may_change_now(&self, index: u64) -> bool {
        let page = index / PAGE_ENTRIES as u64;
        let room = self.pages.pending.pages.contains(&page) || !self.round_is_full();
        room && self
            .pages
            .reserved
            .contains(&(page * PAGE / self.pages.granule))
    }

    /// Where `page` lies in the file.
    pub(super) fn page_at(&self, page: u64) -> FileOffset {
        FileOffset(self.layout.regions.bat().at.0 + page * PAGE)
    }

    /// A frame for another page: one never used, or the least recently used that can be spared.
    fn spare_frame(&mut self, map: &BlockMap) -> Option<usize> {
        if let Some(frame) = self.pages.unused.pop() {
            return Some(frame);
        }
        for _ in 0..2 * self.pages.lru.len() {
            let (page, frame) = self.pages.lru.pop_lru()?;
            if !self.pinned(page) && !map.take_referenced(page) {
                return Some(frame);
            }
            self.pages.lru.push(page, frame);
        }
        None
    }

    /// Check a page that was read, and give its entries.
    fn decode_page(&self, page: u64, data: &[u8]) -> Result<Vec<u64>, Error> {
        let mut entries = Vec::with_capacity(PAGE_ENTRIES);
        for (slot, bytes) in data.chunks_exact(8).enumerate() {
            let raw = bytes.try_into().map_or(0, u64::from_le_bytes);
            if raw != 0 {
                let index = page * PAGE_ENTRIES as u64 + slot as u64;
                self.check_entry(index, raw)
                    .map_err(|error| error.at(self.page_at(page).0 + slot as u64 * 8))?;
            }
            entries.push(raw);
        }
        Ok(entries)
    }

    pub(super) fn check_entry(&self, index: u64, raw: u64) -> Result<(), Error> {
        let differencing = self.layout.geometry.differencing();
        let bitmap = match self.layout.geometry.classify(BatIndex(index)) {
            BatSlot::Payload(_) => false,
            BatSlot::Bitmap(_) if differencing => true,
            BatSlot::Bitmap(_) | BatSlot::Unused => return Ok(()),
        };
        let entry = BatEntry::decode(raw)?;
        match entry.state {
            BlockState::FullyPresent | BlockState::NotPresent | BlockState::PartiallyPresent => {}
            state if bitmap => {
                let what = format!("BAT entry {index} of a sector bitmap has the state {state:?}");
                return Err(Error::corrupt(what));
            }
            _ => {}
        }
        match entry.state {
            BlockState::PartiallyPresent if bitmap => Err(Error::corrupt(format!(
                "BAT entry {index} of a sector bitmap is partially present"
            ))),
            BlockState::PartiallyPresent if !differencing => Err(Error::corrupt(format!(
                "BAT entry {index} is partially present in a disk without a parent"
            ))),
            BlockState::FullyPresent | BlockState::PartiallyPresent
                if entry.offset.0 < crate::units::MIB
                    || entry.offset.0 >= self.space.file_len() =>
            {
                Err(Error::corrupt(format!(
                    "BAT entry {index} places its block at {}, outside the file of {} bytes",
                    entry.offset,
                    self.space.file_len()
                )))
            }
            _ => Ok(()),
        }
    }
}

impl Engine {
    /// The entry `index`, or what its reader must do instead.
    pub(super) fn entry_or_load(&mut self, id: RequestId, index: u64) -> Result<u64, Run> {
        if let Some(entry) = self.map.entry(index) {
            return Ok(entry);
        }
        let page = index / PAGE_ENTRIES as u64;
        let Some(vhdx) = &mut self.vhdx else {
            return Err(Run::Blocked);
        };
        if let Some(why) = vhdx.pages.bad.get(&page) {
            return Err(Run::Failed(Error::corrupt(why.clone())));
        }
        if let Some(why) = vhdx.pages.unread.get(&page) {
            return Err(Run::Failed(Error::new(ErrorKind::Io, why.clone())));
        }
        self.requests.block(id);
        if vhdx.pages.loading.insert(page) {
            let (at, len) = (vhdx.page_at(page), PAGE as u32);
            self.ops
                .push(Purpose::LoadPage(page, at), FileOpKind::Read { at, len });
        }
        Err(Run::Blocked)
    }

    pub(in crate::engine) fn page_loaded(
        &mut self,
        (page, at): (u64, FileOffset),
        outcome: Outcome,
    ) {
        let Some(vhdx) = &mut self.vhdx else { return };
        vhdx.pages.loading.remove(&page);
        self.wake = true;
        if at != vhdx.page_at(page) {
            // The table has moved meanwhile; whoever wants the page asks again.
            return;
        }
        let data = match outcome {
            Outcome::Data(data) if data.len() == PAGE as usize => data,
            Outcome::Failed(error) => {
                let why = format!("a page of the BAT can not be read: {error}");
                vhdx.pages.unread.insert(page, why);
                return;
            }
            _ => {
                let why = "a page of the BAT was read in part".into();
                vhdx.pages.unread.insert(page, why);
                return;
            }
        };
        let data = vhdx
            .layout
            .overlay
            .get(&vhdx.page_at(page).0)
            .cloned()
            .unwrap_or(data);
        match vhdx.decode_page(page, &data) {
            Ok(entries) => match vhdx.spare_frame(&self.map) {
                Some(frame) => {
                    self.map.install(frame, page, &entries);
                    vhdx.pages.lru.push(page, frame);
                    self.make_room();
                }
                // Every page is pinned, and on a failed disk none will be let go.
                None if self.failed.is_some() => {
                    let why = "the disk failed and there is no memory for a page of the BAT".into();
                    vhdx.pages.unread.insert(page, why);
                }
                // Every page is pinned: publish, and let whoever wants this one ask again.
                None => self.unpin(),
            },
            Err(error) => {
                vhdx.pages.bad.insert(page, error.to_string());
            }
        }
    }

    /// A page was brought in: see that the next ones find room too.
    pub(super) fn make_room(&mut self) {
        let frames = self.map.frame_count();
        if self.vhdx.as_ref().is_some_and(|vhdx| vhdx.crowded(frames)) {
            self.unpin();
        }
    }

    /// Have pages published and written to their places, so that they can be evicted.
    fn unpin(&mut self) {
        self.flusher.wanted = true;
        self.checkpoint_begin();
    }

    /// The next round can carry no other page: `id` waits for it to begin, or, where all it would carry
    /// is bits of writes under way, for those to end.
    pub(super) fn wait_for_room(&mut self, id: RequestId) -> Run {
        if let Some(vhdx) = &self.vhdx
            && (!vhdx.pages.pending.pages.is_empty() || vhdx.bitmaps.has_changes())
        {
            self.flusher.wanted = true;
        }
        self.requests.block(id);
        Run::Blocked
    }

    /// Get ready to change entry `index`, whose page is in memory: room in the next flush round and
    /// host space for the page. Else `id` is blocked until there is, or refused since there is none.
    pub(super) fn ready_to_change(&mut self, id: RequestId, index: u64) -> Result<(), Run> {
        let page = index / PAGE_ENTRIES as u64;
        let Some(vhdx) = &mut self.vhdx else {
            return Err(Run::Blocked);
        };
        if !vhdx.pages.pending.pages.contains(&page) && vhdx.round_is_full() {
            return Err(self.wait_for_room(id));
        }
        let pages = &mut vhdx.pages;
        let granule = page * PAGE / pages.granule;
        if !pages.reserved.contains(&granule) {
            if let Some(error) = vhdx.space.full() {
                return Err(Run::Failed(error));
            }
            self.requests.block(id);
            if pages.reserving.insert(granule) {
                let at = granule * pages.granule;
                let bat = vhdx.layout.regions.bat();
                let len = pages.granule.min(bat.len - at);
                let at = FileOffset(bat.at.0 + at);
                self.ops.push(
                    Purpose::ReserveBat(granule),
                    FileOpKind::Reserve { at, len },
                );
            }
            return Err(Run::Blocked);
        }
        Ok(())
    }

    pub(in crate::engine) fn bat_reserved(&mut self, granule: u64, outcome: &Outcome) {
        let Some(vhdx) = &mut self.vhdx else { return };
        vhdx.pages.reserving.remove(&granule);
        match outcome {
            Outcome::Failed(error) => vhdx.space.set_full(error),
            _ => {
                vhdx.pages.reserved.insert(granule);
            }
        }
        self.wake = true;
    }

    /// Change entry `index`; the change is pending from now on, and logged when what was written before
    /// it is durable.
    pub(super) fn change_entry(&mut self, index: u64, value: u64) {
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.pages.pending.after_data = true;
        }
        self.change_entry_at_once(index, value);
    }

    /// The same for a change that is right whether or not what was written before it is durable.
    pub(super) fn change_entry_at_once(&mut self, index: u64, value: u64) {
        let page = index / PAGE_ENTRIES as u64;
        let Some(vhdx) = &mut self.vhdx else { return };
        // Before the change can be seen: whoever sees it and flushes must come to the engine.
        self.map.set_unpublished(true);
        vhdx.pages.pending.pages.insert(page);
        vhdx.pages.lru.promote(&page);
        if let Some(survey) = &mut vhdx.survey {
            survey.page_changed(page);
        }
        self.map.set_entry(index, value);
        if vhdx.round_is_half_full() {
            self.flusher.wanted = true;
        }
    }

    /// Copies of all pending pages; they are pending no more, and belong to the round that begins.
    pub(super) fn take_pending(&mut self) -> Vec<(FileOffset, Bytes)> {
        let Some(vhdx) = &mut self.vhdx else {
            return Vec::new();
        };
        vhdx.pages.copied = std::mem::take(&mut vhdx.pages.pending).pages;
        let copy = |page: &u64| {
            let entries = self
                .map
                .page_entries(*page)
                .expect("a pending page is pinned");
            let mut bytes = [0; PAGE as usize];
            for (place, entry) in bytes.chunks_exact_mut(8).zip(entries) {
                place.copy_from_slice(&entry.to_le_bytes());
            }
            (vhdx.page_at(*page), Bytes::copy_from_slice(&bytes))
        };
        // The last first: a chunk's bitmap has its entry behind those of its blocks (MS-VHDX 2.5), and
        // where a round takes several entries of the log it must be there before they need it.
        vhdx.pages.copied.iter().rev().map(copy).collect()
    }
}
