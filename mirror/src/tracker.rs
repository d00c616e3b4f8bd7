//! The write tap: numbers every change of the served disk and keeps it until the target has it.
//!
//! A change is kept as a record while the queue has room, and as dirty granules of a bitmap when it
//! has not: the guest never waits for the network and memory stays bounded. Must never block, and
//! never drop a change without leaving its granules dirty.
//!
//! # The rules that make lanes independent
//!
//! 1. Every change takes a number, also one that only leaves dirty bits.
//! 2. It takes it after it succeeded in the local disk, or failed there and leaves dirty bits. So a
//!    read submitted when the last number was `base` sees every change up to `base`.
//! 3. A change whose granules are all dirty needs no record: they have yet to be read. The same is
//!    true beyond the cursor, where the bulk copy has not yet asked what is allocated.

mod queue;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use vdisk::tap::{Change, WriteTap};
use vdisk::units::GuestOffset;

use self::queue::Queue;
use crate::dirty::DirtyMap;
use crate::heat::{Heat, REGION};
use crate::picture::{Sight, Slots};
use crate::sequence::Sequence;
use crate::wire::{Content, Record};

/// The longest record in bytes. On a line of a third of a Mbit/s, which it may share with two others, it is not on its way for longer
/// than an ordered lane may be silent.
pub(crate) const LONGEST: usize = 256 << 10;

/// Of so many bytes of changes those are left out that later ones of them cover.
const WINDOW: u64 = 4 << 20;

/// What a record costs beside its bytes.
pub const RECORD_COST: u64 = 96;

/// Memory that a record is counted for.
#[must_use]
pub fn cost(record: &Record) -> u64 {
    RECORD_COST + record.content.held()
}

/// A part of the disk that is to be read and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// First byte.
    pub offset: u64,
    /// How many bytes; ends within the disk.
    pub len: u64,
    /// The last number given out: the read sees every change up to it.
    pub base: u64,
    /// The target may have the same bytes: worth asking before they are sent.
    pub unsure: bool,
}

/// Figures of a tracker, taken at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The last number given out, to this disk or another one of its group.
    pub seq: u64,
    /// Bytes that records hold, those included that were sent and not yet acknowledged.
    pub held: u64,
    /// Bytes that are dirty.
    pub dirty: u64,
    /// Whether records wait to be taken.
    pub queued: bool,
    /// Changes that went to the bitmap because the queue was full.
    pub fallen_back: u64,
    /// Bytes that clients wrote.
    pub written: u64,
    /// Bytes that have to be sent because of that: not those that were to be sent anyway.
    pub added: u64,
    /// Bytes of those that were not sent after all: they were written over before.
    pub left_out: u64,
}

type Waker = Box<dyn Fn() + Send + Sync>;

/// The tap on one disk for one session; shared by those who serve the disk and the session.
pub struct Tracker {
    inner: Mutex<Inner>,
    waker: Mutex<Option<Waker>>,
}

struct Inner {
    size: u64,
    limit: u64,
    /// Asked while this is locked: so every change here with a number up to the last one has been seen to.
    sequence: Arc<Sequence>,
    cursor: u64,
    queue: Queue,
    held: u64,
    dirty: DirtyMap,
    /// Of what is dirty, that which the target may have all the same. Nothing depends on its being right.
    unsure: DirtyMap,
    heat: Heat,
    /// What was written since somebody wanted to know, if one does.
    watched: Option<DirtyMap>,
    traffic: Traffic,
    places: Places,
}

/// Where it was that something happened, for a picture of the disk.
#[derive(Debug)]
struct Places {
    /// Bytes that were made dirty by clients and not claimed since, at most.
    changed: Slots,
    /// Bytes in records that are not settled.
    waiting: Slots,
    /// Bytes that clients wrote.
    written: Slots,
}

/// What clients' writes came to: see [`Figures`].
#[derive(Clone, Copy, Debug, Default)]
struct Traffic {
    fallen_back: u64,
    written: u64,
    added: u64,
    left_out: u64,
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker")
            .field("figures", &self.figures())
            .finish_non_exhaustive()
    }
}

impl Tracker {
    /// A tap for a disk of `size` bytes that keeps at most about `limit` bytes of records.
    #[must_use]
    pub fn new(size: u64, limit: u64) -> Self {
        Self::with_regions(size, limit, REGION)
    }

    /// The same, for a disk whose changes take their numbers from `sequence`.
    #[must_use]
    pub fn in_sequence(size: u64, limit: u64, sequence: Arc<Sequence>) -> Self {
        let tracker = Self::new(size, limit);
        tracker.lock().sequence = sequence;
        tracker
    }

    /// The same as [`Tracker::new`]; what is written often is told apart by regions of so many bytes.
    pub(crate) fn with_regions(size: u64, limit: u64, region: u64) -> Self {
        let inner = Inner {
            size,
            limit,
            sequence: Arc::default(),
            cursor: 0,
            queue: Queue::new(WINDOW.min(limit / 8)),
            held: 0,
            dirty: DirtyMap::pictured(size),
            unsure: DirtyMap::default(),
            heat: Heat::new(region),
            watched: None,
            traffic: Traffic::default(),
            places: Places {
                changed: Slots::new(size),
                waiting: Slots::new(size),
                written: Slots::new(size),
            },
        };
        Self {
            inner: Mutex::new(inner),
            waker: Mutex::new(None),
        }
    }

    /// `waker` is called, from any thread, when something to send appears.
    pub fn set_waker(&self, waker: Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way through a change of the state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Figures of this moment.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let inner = self.lock();
        Figures {
            seq: inner.sequence.last(),
            held: inner.held,
            dirty: inner.dirty.bytes(),
            queued: !inner.queue.is_empty(),
            fallen_back: inner.traffic.fallen_back,
            written: inner.traffic.written,
            added: inner.traffic.added,
            left_out: inner.traffic.left_out,
        }
    }

    /// What is where at this moment. Costs the same however large the disk is and however much of it is dirty.
    pub(crate) fn sight(&self) -> Sight {
        let inner = self.lock();
        Sight {
            dirty: inner.dirty.slots().clone(),
            changed: inner.places.changed.clone(),
            waiting: inner.places.waiting.clone(),
            written: inner.places.written.clone(),
            hot: inner.heat.hot(),
        }
    }

    /// From now on changes below `cursor` count: the bulk copy asks what is allocated there.
    ///
    /// To be called before the question is submitted.
    pub fn advance_cursor(&self, cursor: u64) {
        let mut inner = self.lock();
        inner.cursor = inner.cursor.max(cursor);
    }

    /// These bytes have to be read and sent.
    pub fn mark(&self, offset: u64, len: u64) {
        self.lock().dirty.mark(offset, len);
    }

    /// The same, and the target may have them already.
    pub fn mark_unsure(&self, offset: u64, len: u64) {
        let mut inner = self.lock();
        inner.dirty.mark(offset, len);
        inner.unsure.mark(offset, len);
    }

    /// Take the next dirty run at or after `from`, at most `max` bytes. What is written often comes last, and only when
    /// it is `all_known` what there is to copy.
    pub fn claim(&self, from: u64, max: u64, all_known: bool) -> Option<Claim> {
        let mut inner = self.lock();
        let (offset, len) = inner.claim(from, max, all_known)?;
        let (len, unsure) = inner.of_one_kind(offset, len);
        inner.places.changed.take(offset, len);
        let len = len.min(inner.size.saturating_sub(offset));
        Some(Claim {
            offset,
            len,
            base: inner.sequence.last(),
            unsure,
        })
    }

    /// Parts that hold all that is dirty or in a record that was not taken: offset and length, in no order, no end of
    /// them. Longer the more there are.
    #[must_use]
    pub fn outline(&self, most: usize) -> Vec<(u64, u64)> {
        let inner = self.lock();
        let queued = inner.queue.iter();
        let mut parts = inner.dirty.outline(most / 8);
        parts.extend(queued.map(|record| (record.offset, record.content.covers())));
        parts
    }

    /// Numbers go on from there. To be said before the target is told of a change.
    pub fn count_from(&self, seq: u64) {
        self.lock().sequence.count_from(seq);
    }

    /// Time passed, some seconds: what was written often may be so no more.
    pub fn fade(&self) {
        self.lock().heat.fade();
    }

    /// Remember what is written from now on; what was written since the last call. Nothing falls between.
    pub fn watch(&self) -> DirtyMap {
        let watched = self.lock().watched.replace(DirtyMap::default());
        watched.unwrap_or_default()
    }

    /// Nobody wants to know any more.
    pub fn watch_no_more(&self) {
        self.lock().watched = None;
    }

    /// Whether something there may have been written since [`Tracker::watch`].
    #[must_use]
    pub fn was_written(&self, offset: u64, len: u64) -> bool {
        let inner = self.lock();
        let watched = inner.watched.as_ref();
        watched.is_none_or(|watched| watched.meets(offset, len))
    }

    /// Take the oldest record. It stays counted until [`Tracker::settle`].
    pub fn take(&self) -> Option<Record> {
        self.lock().queue.take()
    }

    /// The number up to which no record waits to be taken.
    #[must_use]
    pub fn taken_through(&self) -> u64 {
        let inner = self.lock();
        inner.queue.front().map_or_else(
            || inner.sequence.last(),
            |record| record.seq.saturating_sub(1),
        )
    }

    /// A record that was taken is durable at the target: its memory is free again.
    pub fn settle(&self, record: &Record) {
        let mut inner = self.lock();
        inner.held = inner.held.saturating_sub(cost(record));
        inner.queue.settle(record.seq);
        let covers = record.content.covers();
        inner.places.waiting.take_at(record.offset, covers);
    }

    /// With every change up to `seq` and none beyond the target would be as this disk never was, because changes were left
    /// out that later ones cover: the number from which on it would not.
    #[must_use]
    pub fn whole_again(&self, seq: u64) -> Option<u64> {
        self.lock().queue.gap_at(seq).map(|gap| gap.last)
    }
}

impl Inner {
    fn claim(&mut self, from: u64, max: u64, all_known: bool) -> Option<(u64, u64)> {
        if let Some(claimed) = self.claim_hot(max) {
            return Some(claimed);
        }
        if let Some(claimed) = self
            .claim_cold(from, max)
            .or_else(|| self.claim_cold(0, max))
        {
            return Some(claimed);
        }
        if !all_known {
            return None;
        }
        self.heat.give_turns();
        // What became cold just now has no turn.
        self.claim_hot(max).or_else(|| self.dirty.claim(from, max))
    }

    /// How much from the start of what was claimed the target may have all of, or none of, and which; the rest is given
    /// back.
    fn of_one_kind(&mut self, offset: u64, len: u64) -> (u64, bool) {
        let end = offset + len;
        let first = self.unsure.next(offset).filter(|first| *first < end);
        let (taken, unsure) = match first {
            None => return (len, false),
            Some(first) if first > offset => (first - offset, false),
            Some(_) => match self.unsure.claim_within(offset, end, len) {
                Some((_, taken)) => (taken, true),
                None => (len, false),
            },
        };
        self.dirty.mark(offset + taken, len - taken);
        (taken, unsure)
    }

    /// Of the hot region whose turn it is.
    fn claim_hot(&mut self, max: u64) -> Option<(u64, u64)> {
        while let Some(region) = self.heat.turn() {
            let (start, end) = self.heat.bytes_of(region);
            let claimed = self.dirty.claim_within(start, end, max);
            if claimed.is_some() {
                return claimed;
            }
            self.heat.turn_over();
        }
        None
    }

    /// The first dirty run from there to the end that is in no hot region.
    fn claim_cold(&mut self, from: u64, max: u64) -> Option<(u64, u64)> {
        let mut at = from;
        loop {
            at = self.dirty.next(at)?;
            let region = self.heat.region_of(at);
            let (_, end) = self.heat.bytes_of(region);
            if !self.heat.is_hot(region) {
                let next_is_hot = self.heat.is_hot(region + 1);
                let end = if next_is_hot { end } else { u64::MAX };
                return self.dirty.claim_within(at, end, max);
            }
            at = end;
        }
    }

    /// Somebody changed that; how much of it lies before the cursor.
    fn touched(&mut self, offset: u64, len: u64) -> u64 {
        if let Some(watched) = &mut self.watched {
            watched.mark(offset, len);
        }
        self.cursor.saturating_sub(offset).min(len)
    }

    /// A client's change there has to be read and sent.
    fn mark_changed(&mut self, offset: u64, len: u64) {
        let before = self.dirty.bytes();
        self.dirty.mark(offset, len);
        let fresh = self.dirty.bytes() - before;
        self.traffic.added += fresh;
        self.places.changed.add_at(offset, fresh);
    }

    /// Number one change of which nobody knows what came of it: what is there now is read.
    fn doubt(&mut self, offset: u64, len: u64) {
        // A cut that falls on it needs no place in the queue: the target is not whole before that was read.
        let _ = self.sequence.next();
        let below = self.touched(offset, len);
        if below > 0 {
            self.mark_changed(offset, below);
        }
    }

    /// Number and keep one change that fits one message.
    fn add(&mut self, offset: u64, content: Content) {
        let (seq, cut) = self.sequence.next();
        self.heat.touch(offset);
        self.traffic.written += content.held();
        self.places.written.add_at(offset, content.held());
        let len = content.covers();
        let below = self.touched(offset, len);
        if below == 0 || self.dirty.covers(offset, below) {
            return;
        }
        let record = Record {
            seq,
            offset,
            content,
        };
        let cost = cost(&record);
        let empty = self.queue.empty() as u64 * RECORD_COST;
        if self.held.saturating_add(cost).saturating_add(empty) > self.limit {
            self.traffic.fallen_back += 1;
            self.mark_changed(offset, below);
            return;
        }
        self.held += cost;
        self.places.waiting.add_at(offset, len);
        self.traffic.added += record.content.held();
        if let Some(left_out) = self.queue.push(record, cut) {
            self.held = self.held.saturating_sub(self::cost(&left_out));
            let covered = left_out.content.covers();
            self.places.waiting.take_at(left_out.offset, covered);
            self.traffic.left_out += left_out.content.held();
        }
    }
}

impl WriteTap for Tracker {
    fn changed(&self, offset: GuestOffset, change: Change) {
        let was_idle = {
            let mut inner = self.lock();
            let was_idle = inner.queue.is_empty() && inner.dirty.is_empty();
            match change {
                Change::Zeroes(0) | Change::Unknown(0) => {}
                Change::Unknown(len) => inner.doubt(offset.0, len),
                Change::Zeroes(len) => inner.add(offset.0, Content::Zeroes(len)),
                Change::Data(mut data) => {
                    let mut at = offset.0;
                    while !data.is_empty() {
                        let piece: Bytes = data.split_to(data.len().min(LONGEST));
                        let next = at + piece.len() as u64;
                        inner.add(at, Content::Data(piece));
                        at = next;
                    }
                }
            }
            was_idle && !(inner.queue.is_empty() && inner.dirty.is_empty())
        };
        if was_idle
            && let Some(waker) = self
                .waker
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .as_ref()
        {
            waker();
        }
    }
}

#[cfg(test)]
mod tests;
