//! Change tracking: a bit for everything that is written, durable before a crash could lose it.
//!
//! ```text
//!   a session opens    header: made for the version the image has, next the session's | flush
//!                      (only then the image's own header)
//!   a first write      the part of the bitmap it lies in is named in the activity log | flush
//!   a write            its bits are set in memory, then it is written
//!   a page leaves      nobody finds it | its writes have ended | its bits are written | flush
//!   the image parks    all bits are written | flush | header: complete for this version | flush
//! ```
//!
//! What waits together shares one *batch*: any number of writes to the region, then one flush. There
//! is one batch at a time, so no sector of the log and no header is written while its other copy may
//! not be durable. The layout is `format/track.rs`; the order is reasoned out in `docs/tracking.md`.

mod checkpoint;
mod frames;

use std::collections::BTreeSet;

use bytes::Bytes;

use self::checkpoint::Taking;
use self::frames::{Found, Frames};
use super::{PAGE, Vhdx};
use crate::engine::map::{PAGE_BITS, TrackMap, parts};
use crate::engine::ops::Purpose;
use crate::engine::step::Run;
use crate::engine::{Engine, FileOpKind, Outcome, Request, RequestId};
use crate::error::{Error, ErrorKind};
use crate::format::track::{
    ActivitySector, HEADERS_AT, LOG_SECTORS, SECTOR_ENTRIES, TrackHeader, activity_at,
};
use crate::format::{Guid, Region};
use crate::units::FileOffset;

/// Pages of the bitmap in memory at least, and at most: each has its entry in the log.
const LEAST_FRAMES: usize = 2;
const MOST_FRAMES: usize = LOG_SECTORS * SECTOR_ENTRIES;

/// The tracking region of an image, as far as the engine needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrackState {
    /// Where it lies.
    pub region: Region,
    /// What its header says. Nothing waits in the activity log; if the image is of another version,
    /// every checkpoint is lost.
    pub header: TrackHeader,
    /// Which of the two headers it is.
    pub copy: usize,
}

/// What an operation of the tracker was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum TrackOp {
    /// Reads the page of a frame.
    Load(usize),
    /// Reserves the host space of the page of a frame.
    Reserve(usize),
    /// Writes something of a batch.
    Write,
    /// The flush of a batch.
    Flush,
    /// Makes the bitmap of a new checkpoint zero.
    Zero,
}

/// Writes to the region that share a flush.
#[derive(Debug, Default)]
struct Batch {
    /// Writes that have not ended.
    left: usize,
    /// Frames whose bits are being written.
    saves: Vec<(usize, u64)>,
    /// Frames and the parts of them that the log will name.
    activates: Vec<(usize, u64)>,
}

/// The tracker of one disk.
#[derive(Debug)]
pub(in crate::engine) struct Track {
    region: Region,
    header: TrackHeader,
    /// Which of the two headers was written last.
    copy: usize,
    frames: Frames,
    batch: Option<Batch>,
    /// The header is to be written; so are all bits.
    header_wanted: bool,
    save_wanted: bool,
    /// Sequence numbers of the log's sectors in this session.
    sequences: Vec<u64>,
    /// Grows with every checkpoint: what was noted before counts for the one before.
    epoch: u64,
    taking: Option<Taking>,
}

impl Track {
    fn idle(&self) -> bool {
        self.batch.is_none() && !self.header_wanted && !self.save_wanted
    }

    /// Where page `page` of the bitmap that collects lies in the file.
    fn page_at(&self, page: u64) -> FileOffset {
        let bitmap = self.header.collecting().map_or(0, |last| last.bitmap);
        FileOffset(self.region.at.0 + self.header.shape.page_at(bitmap, page))
    }

    /// The header for a session whose changes give the image the version `data_write`; whether it is
    /// another one than before.
    fn enter(&mut self, data_write: Guid) -> bool {
        let header = &mut self.header;
        if !header.clean && header.next == data_write {
            return false;
        }
        if !header.clean {
            // There was no room for the session's log: the image has its version already.
            header.made_for = header.next;
        }
        header.next = data_write;
        header.clean = false;
        header.session += 1;
        self.sequences.fill(0);
        self.header_wanted = true;
        true
    }

    /// The writes of a batch that begins now, and what will have happened when it ends.
    fn begin(
        &mut self,
        map: &TrackMap,
        left: Vec<(usize, u64)>,
    ) -> (Batch, Vec<(FileOffset, Bytes)>) {
        let mut batch = Batch {
            saves: left,
            ..Batch::default()
        };
        if std::mem::take(&mut self.save_wanted) {
            batch.saves.extend(self.frames.dirty(map));
        }
        let mut writes = Vec::new();
        for (number, page) in &batch.saves {
            writes.push((self.page_at(*page), Bytes::from(map.take_bits(*number))));
        }
        batch.activates = self.frames.wanting();
        let sector = |(number, _): &(usize, u64)| number / SECTOR_ENTRIES;
        let sectors: BTreeSet<usize> = batch.activates.iter().map(sector).collect();
        for sector in sectors {
            self.sequences[sector] += 1;
            let sequence = self.sequences[sector];
            let range = sector * SECTOR_ENTRIES..(sector + 1) * SECTOR_ENTRIES;
            let content = ActivitySector {
                session: self.header.session,
                sequence,
                entries: self.frames.entries(range),
            };
            let at = self.region.at.0 + activity_at(sector, (sequence % 2) as usize);
            let data = Bytes::copy_from_slice(&content.encode());
            writes.push((FileOffset(at), data));
        }
        if std::mem::take(&mut self.header_wanted) {
            self.header.sequence += 1;
            self.copy = 1 - self.copy;
            let at = self.region.at.0 + HEADERS_AT[self.copy];
            let data = Bytes::copy_from_slice(&self.header.encode());
            writes.push((FileOffset(at), data));
        }
        batch.left = writes.len();
        (batch, writes)
    }
}

impl Vhdx {
    /// Whether workers are waited for, so that pages of the bitmap can leave.
    pub(in crate::engine) fn track_waits(&self) -> bool {
        let track = self.track.as_deref();
        track.is_some_and(|track| track.frames.has_leaving())
    }
}

impl Engine {
    /// Track changes in the region that `state` describes, with `memory` bytes for pages of its bitmap.
    /// Nobody else has this engine's map yet.
    #[must_use]
    pub fn with_tracking(mut self, state: TrackState, memory: usize) -> Self {
        let Some(vhdx) = &mut self.vhdx else {
            return self;
        };
        let shape = state.header.shape;
        let pages = shape.granules().div_ceil(PAGE_BITS) as usize;
        let frames = (memory / PAGE as usize)
            .clamp(LEAST_FRAMES, MOST_FRAMES)
            .min(pages.max(LEAST_FRAMES));
        let map = TrackMap::new(shape.granularity.trailing_zeros(), shape.granules(), frames);
        map.set_collecting(state.header.collecting().is_some());
        let sectors = map.frame_count().div_ceil(SECTOR_ENTRIES);
        self.map.set_track(map);
        vhdx.track = Some(Box::new(Track {
            region: state.region,
            header: state.header,
            copy: state.copy,
            frames: Frames::new(frames),
            batch: None,
            header_wanted: false,
            save_wanted: false,
            sequences: vec![0; sectors],
            epoch: 0,
            taking: None,
        }));
        self
    }

    /// Note none of the changes before the next checkpoint: they do not change what the disk reads as.
    pub fn note_nothing(&self) {
        if let Some(map) = self.map.track() {
            map.set_collecting(false);
        }
    }

    /// Note that a request changes `len` bytes at `offset`; else `id` is blocked until that can be
    /// noted, or refused since it can not.
    pub(super) fn note_or_wait(
        &mut self,
        id: RequestId,
        request: &Request,
        (offset, len): (u64, u64),
    ) -> Result<(), Run> {
        if self.map.note_change(offset, len) {
            return Ok(());
        }
        let (Some(track), Some(map), Some(active)) = (
            self.vhdx.as_ref().and_then(|vhdx| vhdx.track.as_deref()),
            self.map.track(),
            self.requests.get(id),
        ) else {
            return Ok(());
        };
        let granules = map.granules(offset, len);
        let (from, all) = request.range().unwrap_or((offset, len));
        let whole = map.granules(from, all);
        let epoch = track.epoch;
        // With few pages in memory all that a request needs may never be here at once. What was noted
        // stays noted, until there is a new checkpoint.
        let (noted_in, noted) = active.noted;
        let mut granule = granules.start;
        if noted_in == epoch {
            granule = granule.max(noted);
        }
        while granule < granules.end {
            let base = granule / PAGE_BITS * PAGE_BITS;
            let end = granules.end.min(base + PAGE_BITS);
            let need = parts(granule - base, end - base);
            let rest = parts(granule - base, whole.end.min(base + PAGE_BITS) - base);
            self.have_active(id, base / PAGE_BITS, need, rest)?;
            if let Some(map) = self.map.track() {
                let at = map.offset_of(granule);
                let noted = map.mark(at, map.offset_of(end) - at);
                debug_assert!(noted, "what is active can be marked");
            }
            granule = end;
            if let Some(active) = self.requests.get_mut(id) {
                active.noted = (epoch, granule);
            }
        }
        Ok(())
    }

    /// Have the parts `need` of a page active, and `rest` if anything has to be done for them; else
    /// `id` is blocked until they are.
    fn have_active(&mut self, id: RequestId, page: u64, need: u64, rest: u64) -> Result<(), Run> {
        let (Some(vhdx), Some(map)) = (&mut self.vhdx, self.map.track()) else {
            return Ok(());
        };
        let full = vhdx.space.full();
        let Some(track) = &mut vhdx.track else {
            return Ok(());
        };
        if let Some(why) = track.frames.unread(page) {
            return Err(Run::Failed(Error::new(ErrorKind::Io, why)));
        }
        match track.frames.find(page, need, rest) {
            Found::Active => return Ok(()),
            Found::Coming => {}
            Found::Load(number) => {
                let at = track.page_at(page);
                let len = PAGE;
                let load = FileOpKind::Read {
                    at,
                    len: len as u32,
                };
                let reserve = FileOpKind::Reserve { at, len };
                self.ops.push(Purpose::Track(TrackOp::Load(number)), load);
                self.ops
                    .push(Purpose::Track(TrackOp::Reserve(number)), reserve);
            }
            Found::NoFrame => {
                if let Some(error) = full {
                    return Err(Run::Failed(error));
                }
                let chosen = track.frames.make_room(map);
                if !chosen.is_empty() {
                    let generation = self.map.advance();
                    track.frames.leave(chosen, generation);
                    // Before it is asked who has left: else the last one to leave would tell nobody.
                    self.map.set_attention(true);
                }
            }
        }
        self.requests.block(id);
        Err(Run::Blocked)
    }

    /// Begin a batch if there is something for one and none runs.
    pub(in crate::engine) fn track_kick(&mut self) {
        let (Some(vhdx), Some(map), None) = (&mut self.vhdx, self.map.track(), &self.failed) else {
            return;
        };
        let Some(track) = &mut vhdx.track else { return };
        track.frames.forget_unread();
        if track.batch.is_some() {
            return;
        }
        let quiesced = |generation| self.map.quiesced(generation);
        let left = track.frames.take_left(quiesced);
        let (batch, writes) = track.begin(map, left);
        if writes.is_empty() {
            return;
        }
        track.batch = Some(batch);
        for (at, data) in writes {
            self.ops.push(
                Purpose::Track(TrackOp::Write),
                FileOpKind::Write { at, data },
            );
        }
    }

    pub(in crate::engine) fn track_op_ended(&mut self, op: TrackOp, outcome: Outcome) {
        self.wake = true;
        match (op, outcome) {
            (TrackOp::Load(number), outcome) => self.track_loaded(number, outcome),
            (TrackOp::Reserve(number), outcome) => self.track_reserved(number, &outcome),
            (TrackOp::Zero, outcome) => self.bitmap_zeroed(outcome),
            (_, Outcome::Failed(error)) => {
                self.fail_disk(&format!("what changed could not be noted: {error}"));
            }
            (TrackOp::Write, _) => {
                let track = self
                    .vhdx
                    .as_mut()
                    .and_then(|vhdx| vhdx.track.as_deref_mut());
                if let Some(batch) = track.and_then(|track| track.batch.as_mut()) {
                    batch.left -= 1;
                    if batch.left == 0 {
                        self.ops
                            .push(Purpose::Track(TrackOp::Flush), FileOpKind::Flush);
                    }
                }
            }
            (TrackOp::Flush, _) => self.batch_ended(),
        }
    }

    fn track_loaded(&mut self, number: usize, outcome: Outcome) {
        let (Some(vhdx), Some(map)) = (&mut self.vhdx, self.map.track()) else {
            return;
        };
        let Some(track) = &mut vhdx.track else { return };
        let data = match outcome {
            Outcome::Data(data) if data.len() == PAGE as usize => Some(data),
            Outcome::Failed(error) => {
                let why = format!("a page of the tracking bitmap can not be read: {error}");
                track.frames.cannot_read(number, why);
                None
            }
            _ => {
                let why = "a page of the tracking bitmap was read in part".to_owned();
                track.frames.cannot_read(number, why);
                None
            }
        };
        track.frames.loaded(number, data, map);
    }

    fn track_reserved(&mut self, number: usize, outcome: &Outcome) {
        let (Some(vhdx), Some(map)) = (&mut self.vhdx, self.map.track()) else {
            return;
        };
        let Some(track) = &mut vhdx.track else { return };
        if let Outcome::Failed(error) = outcome {
            let why = format!("there is no room to note what changes: {error}");
            track.frames.cannot_read(number, why);
        }
        track.frames.loaded(number, None, map);
    }

    /// A batch is durable.
    fn batch_ended(&mut self) {
        let (Some(vhdx), Some(map)) = (&mut self.vhdx, self.map.track()) else {
            return;
        };
        let Some(track) = &mut vhdx.track else { return };
        let Some(batch) = track.batch.take() else {
            return;
        };
        for (number, parts) in batch.activates {
            track.frames.logged(number, parts, map);
        }
        for (number, _) in batch.saves {
            track.frames.saved(number);
        }
        self.session_go_on();
    }

    /// Whether all bits are in the file, durably, and nothing else is under way; sees to it, if not.
    /// Nobody writes meanwhile.
    fn track_saved(&mut self) -> bool {
        let (Some(vhdx), Some(map)) = (&mut self.vhdx, self.map.track()) else {
            return true;
        };
        let Some(track) = &mut vhdx.track else {
            return true;
        };
        let all_saved = track.frames.dirty(map).is_empty();
        track.save_wanted |= !all_saved && track.batch.is_none();
        all_saved && track.frames.settled() && track.idle()
    }

    /// Whether the header stands for the session that opens, durably; sees to it, if not.
    pub(super) fn track_opened(&mut self, data_write: Guid) -> bool {
        let track = self
            .vhdx
            .as_mut()
            .and_then(|vhdx| vhdx.track.as_deref_mut());
        track.is_none_or(|track| {
            track.header.collecting().is_none() || !track.enter(data_write) && track.idle()
        })
    }

    /// Whether everything that changed is in the bitmap and the header says so, durably; sees to it, if
    /// not. Every change has ended, and none begins before another session opens.
    pub(super) fn track_closed(&mut self) -> bool {
        let track = self.vhdx.as_ref().and_then(|vhdx| vhdx.track.as_ref());
        if track.is_none_or(|track| track.header.collecting().is_none()) {
            return true;
        }
        if !self.track_saved() {
            return false;
        }
        let (Some(vhdx), Some(map)) = (&mut self.vhdx, self.map.track()) else {
            return true;
        };
        let Some(track) = &mut vhdx.track else {
            return true;
        };
        if !track.header.clean {
            track.header.clean = true;
            track.header.made_for = track.header.next;
            track.header_wanted = true;
            return false;
        }
        track.frames.forget_all(map);
        true
    }

    /// Whether it is known, durably, that the disk had no more than `size` bytes for a time; sees to it,
    /// if not.
    pub(super) fn track_shrunk(&mut self, size: u64) -> bool {
        let track = self
            .vhdx
            .as_mut()
            .and_then(|vhdx| vhdx.track.as_deref_mut());
        let Some(track) = track else { return true };
        if track.header.collecting().is_none() {
            return true;
        }
        if let Some(last) = track.header.checkpoints.last_mut()
            && last.low > size
        {
            last.low = size;
            track.header_wanted = true;
        }
        !track.header_wanted && track.batch.is_none()
    }
}
