//! The log: pending pages become entries, entries become durable, pages reach their places later.
//!
//! An entry's space may be written over only when its pages are durable in their places. That costs
//! no flush of its own: pages written before a flush begins are durable when it ends, so the flush
//! of the next round moves the tail (MS-VHDX 2.3.3 says what the tail means).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::PAGE;
use crate::create::default_log_len;
use crate::engine::flush::{Copied, Stage};
use crate::engine::ops::Purpose;
use crate::engine::{Engine, FileOpKind};
use crate::format::log::{EntryPlan, encode_entry, entry_len};
use crate::format::{Geometry, Guid};
use crate::units::{FileOffset, MIB};

/// Applied pages in flight at once, in writes.
const APPLY_WRITES: usize = 32;

/// Bytes of adjoining pages written at once.
const APPLY_RUN: usize = 256 << 10;

/// An entry whose space is in use.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    len: u64,
    sequence: u64,
}

/// How far logged pages have come to their places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Checkpoint {
    #[default]
    Idle,
    /// Being written; those logged up to this sequence number.
    Writing(u64),
    /// Written; durable with the next flush that begins.
    Written(u64),
    /// The flush that makes them durable has begun.
    Flushing(u64),
}

/// The log of one image during one session.
#[derive(Debug)]
pub(in crate::engine) struct Log {
    pub(super) at: u64,
    pub(super) len: u64,
    /// Pages in one entry at most; more make several.
    entry_pages: usize,
    guid: Guid,
    next_sequence: u64,
    head: u64,
    entries: VecDeque<Entry>,
    /// Pages that the log holds and their places do not: newest image and its entry.
    unapplied: BTreeMap<u64, (u64, Bytes)>,
    /// Writes of a checkpoint that have not been handed out.
    to_apply: Vec<(u64, Bytes)>,
    applying: usize,
    checkpoint: Checkpoint,
}

/// Length a log shall have: what was asked, else what a new image of that geometry would get; never
/// shorter than it is.
pub(super) fn wanted_len(geometry: &Geometry, asked: Option<u32>, now: u32) -> u64 {
    let asked = asked.map_or_else(|| default_log_len(geometry), u64::from);
    asked
        .clamp(MIB, 64 * MIB)
        .next_multiple_of(MIB)
        .max(u64::from(now))
}

impl Log {
    pub(super) fn new(len: u64, entry_pages: usize) -> Self {
        Self {
            at: 0,
            len,
            entry_pages,
            guid: Guid::ZERO,
            next_sequence: 1,
            head: 0,
            entries: VecDeque::new(),
            unapplied: BTreeMap::new(),
            to_apply: Vec::new(),
            applying: 0,
            checkpoint: Checkpoint::Idle,
        }
    }

    /// Begin a session: an empty log at `at`, whose entries carry `guid`.
    pub(super) fn begin(&mut self, at: u64, guid: Guid) {
        *self = Self {
            at,
            guid,
            ..Self::new(self.len, self.entry_pages)
        };
    }

    /// Whether the log holds something for the page at `at` that its place does not.
    pub(super) fn holds_page(&self, at: u64) -> bool {
        self.unapplied.contains_key(&at)
    }

    /// How many pages it holds that are not in their places.
    pub(super) fn held_pages(&self) -> usize {
        self.unapplied.len()
    }

    /// Whether every page is in its place.
    pub(super) fn all_applied(&self) -> bool {
        self.unapplied.is_empty()
    }

    /// Sequence number of the newest entry.
    pub(super) fn newest(&self) -> u64 {
        self.next_sequence - 1
    }

    /// Whether everything that entries up to `sequence` hold is in its place.
    pub(super) fn applied(&self, sequence: u64) -> bool {
        self.unapplied.values().all(|(of, _)| *of > sequence)
    }

    fn used(&self) -> u64 {
        self.entries.iter().map(|entry| entry.len).sum()
    }

    /// Encode an entry with `pages`, and take its space.
    pub(super) fn append(
        &mut self,
        pages: &[(FileOffset, Bytes)],
        flushed_file_offset: u64,
        last_file_offset: u64,
    ) -> Vec<(FileOffset, Bytes)> {
        let sequence = self.next_sequence;
        let bytes = encode_entry(&EntryPlan {
            log_guid: self.guid,
            sequence,
            tail: self.entries.front().map_or(self.head, |entry| entry.at) as u32,
            flushed_file_offset,
            last_file_offset,
            pages,
        });
        let len = bytes.len() as u64;
        assert!(
            self.used() + len + PAGE <= self.len,
            "a log entry over entries still needed"
        );
        self.entries.push_back(Entry {
            at: self.head,
            len,
            sequence,
        });
        let mut bytes = Bytes::from(bytes);
        let first = bytes.split_to(len.min(self.len - self.head) as usize);
        let mut writes = vec![(FileOffset(self.at + self.head), first)];
        if !bytes.is_empty() {
            writes.push((FileOffset(self.at), bytes));
        }
        self.head = (self.head + len) % self.len;
        self.next_sequence += 1;
        writes
    }

    /// A flush begins: what a checkpoint has written is durable when it ends.
    fn flush_begins(&mut self) {
        if let Checkpoint::Written(sequence) = self.checkpoint {
            self.checkpoint = Checkpoint::Flushing(sequence);
        }
    }

    /// The flush ended: entries whose pages are durable in their places give their space back.
    fn flush_ended(&mut self) {
        if let Checkpoint::Flushing(sequence) = self.checkpoint {
            self.checkpoint = Checkpoint::Idle;
            while self
                .entries
                .front()
                .is_some_and(|entry| entry.sequence <= sequence)
            {
                self.entries.pop_front();
            }
        }
    }

    /// Another checkpoint, if there is anything left, follows at once and covers what the last one has
    /// written.
    pub(super) fn forget_written(&mut self) {
        if let (Checkpoint::Written(_), false) = (self.checkpoint, self.all_applied()) {
            self.checkpoint = Checkpoint::Idle;
        }
    }

    fn has_room_for(&self, pages: &[(FileOffset, Bytes)]) -> bool {
        let need: u64 = pages
            .chunks(self.entry_pages)
            .map(|pages| entry_len(pages.len()) as u64)
            .sum();
        self.used() + need + PAGE <= self.len
    }

    /// What the next checkpoint writes: runs of adjoining pages, the last one first.
    fn runs(&self) -> Vec<(u64, Bytes)> {
        let mut runs = Vec::new();
        let mut pages = self.unapplied.iter().rev().peekable();
        while let Some((last, (_, page))) = pages.next() {
            let (mut at, mut run) = (*last, vec![page]);
            while let Some((before, (_, page))) = pages.peek()
                && **before + PAGE == at
                && run.len() < APPLY_RUN / PAGE as usize
            {
                at = **before;
                run.push(page);
                pages.next();
            }
            // A page alone, as most are where writes are random, is not copied.
            let data = if let [page] = run[..] {
                page.clone()
            } else {
                let mut bytes = Vec::with_capacity(run.len() * PAGE as usize);
                run.iter()
                    .rev()
                    .for_each(|page| bytes.extend_from_slice(page));
                bytes.into()
            };
            runs.push((at, data));
        }
        runs
    }
}

impl Engine {
    /// What a flush round that begins now has to carry.
    pub(in crate::engine) fn copy_pending(&mut self) -> Copied {
        // Bits before the entries that give them a meaning: an entry never outruns its bits.
        let mut pages = self
            .vhdx
            .as_mut()
            .map_or_else(Vec::new, |vhdx| vhdx.bitmaps.take_pending());
        pages.extend(self.take_pending());
        pages.extend(self.take_metadata_page());
        // Last: in a round of several entries the size comes after the entries it stands for.
        pages.extend(self.take_resize_pages());
        Copied { pages }
    }

    /// A host flush begins.
    pub(in crate::engine) fn log_flush_begins(&mut self) {
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.log.flush_begins();
            vhdx.space.flush_begins();
        }
    }

    /// It ended well.
    pub(in crate::engine) fn log_flush_ended(&mut self) {
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.log.flush_ended();
            vhdx.space.flush_ended();
        }
    }

    /// Whether a host flush now would give log space back.
    pub(in crate::engine) fn flush_makes_room(&self) -> bool {
        let checkpoint = self.vhdx.as_ref().map(|vhdx| vhdx.log.checkpoint);
        matches!(checkpoint, Some(Checkpoint::Written(_)))
    }

    /// Whether a round that begins now may be logged before what was written is durable.
    pub(in crate::engine) fn may_log_at_once(&self) -> bool {
        self.vhdx
            .as_ref()
            .is_some_and(|vhdx| vhdx.may_log_at_once())
    }

    /// What the copies of a round name is durable, or need not be.
    pub(in crate::engine) fn data_durable(&mut self) {
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.pages.data_durable();
            vhdx.bitmaps.data_durable();
        }
    }

    /// Write the entries of the round that waits for that, or make room for them first.
    pub(in crate::engine) fn log_round(&mut self) {
        let (Some(vhdx), Some(logging)) = (&mut self.vhdx, &mut self.flusher.log) else {
            return;
        };
        if logging.stage != Stage::NoRoom {
            return;
        }
        let pages = &logging.round.copied.pages;
        if !vhdx.log.has_room_for(pages) {
            // A checkpoint that has been written ends with the next flush.
            self.checkpoint_begin();
            return;
        }
        logging.sequence = vhdx.log.next_sequence;
        let (flushed, last) = (vhdx.space.durable_len(), vhdx.space.end_of_used());
        let mut writes = 0;
        for chunk in pages.chunks(vhdx.log.entry_pages) {
            for (at, data) in vhdx.log.append(chunk, flushed, last) {
                writes += 1;
                self.ops
                    .push(Purpose::LogWrite, FileOpKind::Write { at, data });
            }
        }
        logging.stage = Stage::Writing(writes);
    }

    pub(in crate::engine) fn log_written(&mut self) {
        if let Some(logging) = &mut self.flusher.log
            && let Stage::Writing(writes) = &mut logging.stage
        {
            *writes -= 1;
            if *writes == 0 {
                logging.stage = Stage::Written;
            }
        }
    }

    /// Entries with `pages`, from `sequence` on, are durable.
    pub(in crate::engine) fn logged(&mut self, pages: Vec<(FileOffset, Bytes)>, sequence: u64) {
        let Some(vhdx) = &mut self.vhdx else { return };
        for (number, (at, page)) in pages.into_iter().enumerate() {
            let sequence = sequence + (number / vhdx.log.entry_pages) as u64;
            vhdx.log.unapplied.insert(at.0, (sequence, page));
        }
        let (entries, bits) = (vhdx.pages.logged(), vhdx.bitmaps.logged());
        if entries && bits {
            self.map.set_unpublished(false);
        }
        if vhdx.log.used() * 2 > vhdx.log.len {
            self.checkpoint_begin();
        }
    }

    /// Begin to write logged pages to their places, unless that is under way.
    pub(super) fn checkpoint_begin(&mut self) {
        let Some(vhdx) = &mut self.vhdx else { return };
        if vhdx.log.checkpoint != Checkpoint::Idle || vhdx.log.unapplied.is_empty() {
            return;
        }
        let newest = vhdx
            .log
            .unapplied
            .values()
            .map(|(sequence, _)| *sequence)
            .max();
        vhdx.log.checkpoint = Checkpoint::Writing(newest.unwrap_or(0));
        vhdx.log.to_apply = vhdx.log.runs();
        self.apply_more();
    }

    fn apply_more(&mut self) {
        let Some(vhdx) = &mut self.vhdx else { return };
        while vhdx.log.applying < APPLY_WRITES
            && let Some((at, data)) = vhdx.log.to_apply.pop()
        {
            vhdx.log.applying += 1;
            self.ops.push(
                Purpose::Apply,
                FileOpKind::Write {
                    at: FileOffset(at),
                    data,
                },
            );
        }
    }

    pub(in crate::engine) fn applied(&mut self) {
        self.apply_more_after_one();
        let Some(vhdx) = &mut self.vhdx else { return };
        let Checkpoint::Writing(sequence) = vhdx.log.checkpoint else {
            return;
        };
        if vhdx.log.applying != 0 {
            return;
        }
        vhdx.log.unapplied.retain(|_, (of, _)| *of > sequence);
        vhdx.log.checkpoint = Checkpoint::Written(sequence);
        self.wake = true;
        self.session_go_on();
    }

    fn apply_more_after_one(&mut self) {
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.log.applying -= 1;
        }
        self.apply_more();
    }
}
