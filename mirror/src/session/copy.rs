//! The bulk copy of the source: what is allocated, the chunks on the way, the dirty granules.
//!
//! Must never lose a granule: each is clean at the target, dirty in the tracker, or in a chunk here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use vdisk::engine::Extent;

use super::{ConnId, OpId};
use crate::GRANULE;
use crate::error::{Error, Result};
use crate::pacing::Limits;
use crate::tracker::{Claim, Tracker};
use crate::wire::{Chunk, Content};

/// How much of the disk one question about allocation covers.
const QUESTION: u64 = 4 << 30;
/// With more than this waiting to be copied the scan for more of it waits.
const ENOUGH_DIRTY: u64 = 64 << 30;
/// Chunks on the way or awaiting durability; more are not begun.
const MOST_CHUNKS: usize = 8192;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Being read.
    Reading,
    /// Being read, but the link it was meant for is gone.
    Stale,
    /// Sent over that connection.
    Sent(ConnId),
    /// In the target's disk, not yet known to be durable.
    Done,
    /// Durable; records up to its base may not be.
    Durable,
}

#[derive(Clone, Copy, Debug)]
struct OnTheWay {
    claim: Claim,
    place: Place,
}

/// The scan for what is allocated.
#[derive(Debug)]
struct Scan {
    size: u64,
    /// Up to here the disk was asked, or is being asked.
    cursor: u64,
    question: Option<(OpId, u64, u64)>,
    found: u64,
}

#[derive(Debug)]
pub(super) struct BulkCopy {
    scan: Scan,
    /// Where the next claim is looked for.
    from: u64,
    /// Their bases never fall from one number to the next.
    chunks: BTreeMap<u64, OnTheWay>,
    /// Those in places Reading and Sent.
    aloft: BTreeSet<u64>,
    next_id: u64,
    /// Bytes in places Reading, Stale and Sent; how many are being read.
    flying: u64,
    reading: usize,
    /// Chunks sent in this incarnation.
    sent_count: u64,
    /// Acknowledged chunks that are not durable, oldest first, and how many are durable.
    done: VecDeque<u64>,
    durable_count: u64,
    /// Durable chunks that wait for records up to their base.
    waiting: usize,
    /// The last number given out when the last read of a chunk that was sent ended.
    saw: u64,
}

impl BulkCopy {
    pub(super) fn new(size: u64) -> Self {
        Self {
            scan: Scan {
                size,
                cursor: 0,
                question: None,
                found: 0,
            },
            from: 0,
            chunks: BTreeMap::new(),
            aloft: BTreeSet::new(),
            next_id: 1,
            flying: 0,
            reading: 0,
            sent_count: 0,
            done: VecDeque::new(),
            durable_count: 0,
            waiting: 0,
            saw: 0,
        }
    }

    /// No chunk that was sent holds a change beyond this number, but for those that had none yet.
    pub(super) fn saw(&self) -> u64 {
        self.saw
    }

    pub(super) fn scanned(&self) -> u64 {
        self.scan
            .question
            .map_or(self.scan.cursor, |(_, offset, _)| offset)
    }

    pub(super) fn found(&self) -> u64 {
        self.scan.found
    }

    /// Bytes being read or on the way.
    pub(super) fn flying(&self) -> u64 {
        self.flying
    }

    /// How many chunks the target acknowledged in this incarnation.
    pub(super) fn done_count(&self) -> u64 {
        self.durable_count + self.done.len() as u64
    }

    /// Whether the whole disk was asked for what is allocated.
    pub(super) fn scan_complete(&self) -> bool {
        self.scan.cursor >= self.scan.size && self.scan.question.is_none()
    }

    /// Whether no chunk is being read or on the way.
    pub(super) fn landed(&self) -> bool {
        self.flying == 0
    }

    /// Whether chunks wait for a marker.
    pub(super) fn awaits_marker(&self) -> bool {
        !self.done.is_empty() || self.waiting > 0
    }

    /// The smallest base among the chunks that may still arrive.
    pub(super) fn floor(&self) -> u64 {
        let oldest = self.aloft.first().and_then(|id| self.chunks.get(id));
        oldest.map_or(u64::MAX, |chunk| chunk.claim.base)
    }

    fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The next question about allocation: its name, offset and length.
    pub(super) fn ask(&mut self, tracker: &Tracker) -> Option<(OpId, u64, u64)> {
        if self.scan.question.is_some()
            || self.scan.cursor >= self.scan.size
            || tracker.figures().dirty > ENOUGH_DIRTY
        {
            return None;
        }
        let offset = self.scan.cursor;
        let len = (self.scan.size - offset).min(QUESTION);
        self.scan.cursor = offset + len;
        // Before the question: a change that the answer does not show must be kept.
        tracker.advance_cursor(self.scan.cursor);
        self.scan.question = Some((OpId(self.fresh()), offset, len));
        self.scan.question
    }

    /// The answer to a question. `false` when it is not one that can be.
    pub(super) fn answer(&mut self, op: OpId, extents: &[Extent], tracker: &Tracker) -> bool {
        let Some((_, mut offset, len)) = self.scan.question.filter(|(id, ..)| *id == op) else {
            return true;
        };
        let end = offset + len;
        for extent in extents {
            let len = extent.len.min(end - offset);
            if extent.allocated && !extent.zero {
                tracker.mark(offset, len);
                self.scan.found += len;
            }
            offset += len;
        }
        if offset < end {
            if offset == end - len {
                return false;
            }
            // The rest is asked again. The cursor stays: changes there are being kept already.
            self.scan.question = None;
            self.scan.cursor = offset;
        } else {
            self.scan.question = None;
        }
        true
    }

    /// The next part of the disk to read, within the limits.
    pub(super) fn read(&mut self, limits: &Limits, tracker: &Tracker) -> Option<(OpId, Claim)> {
        if self.reading >= limits.reads
            || self.chunks.len() >= MOST_CHUNKS
            || (self.flying > 0 && self.flying.saturating_add(limits.chunk) > limits.window)
        {
            return None;
        }
        let all_known = self.scan_complete();
        let claim = tracker.claim(self.from, limits.chunk.max(GRANULE), all_known)?;
        self.from = claim.offset + claim.len;
        let id = self.fresh();
        self.chunks.insert(
            id,
            OnTheWay {
                claim,
                place: Place::Reading,
            },
        );
        self.aloft.insert(id);
        self.flying += claim.len;
        self.reading += 1;
        Some((OpId(id), claim))
    }

    /// A read is done, `last` being the last number given out: the chunk to send over `conn`; `None` when it is not
    /// wanted any more.
    pub(super) fn read_done(
        &mut self,
        op: OpId,
        data: Bytes,
        conn: Option<ConnId>,
        last: u64,
    ) -> Option<Chunk> {
        let entry = self.chunks.get_mut(&op.0)?;
        let (claim, place) = (entry.claim, entry.place);
        self.reading = self.reading.saturating_sub(1);
        match (place, conn) {
            (Place::Reading, Some(conn)) => {
                entry.place = Place::Sent(conn);
                self.sent_count += 1;
                self.saw = self.saw.max(last);
            }
            // Without a lane it stays for the caller to give back.
            _ => return None,
        }
        let zero = data.iter().all(|b| *b == 0);
        let hash = if zero {
            [0; 32]
        } else {
            *blake3::hash(&data).as_bytes()
        };
        let content = if zero {
            Content::Zeroes(claim.len)
        } else {
            Content::Data(data)
        };
        Some(Chunk {
            id: op.0,
            base: claim.base,
            offset: claim.offset,
            content,
            hash,
        })
    }

    /// Give a chunk back: its granules are dirty again.
    pub(super) fn give_back(&mut self, op: OpId, tracker: &Tracker) {
        if let Some(entry) = self.chunks.remove(&op.0) {
            self.aloft.remove(&op.0);
            self.flying = self.flying.saturating_sub(entry.claim.len);
            if entry.place != Place::Stale {
                tracker.mark(entry.claim.offset, entry.claim.len);
            }
        }
    }

    /// What was sent over that connection may be lost.
    pub(super) fn lane_lost(&mut self, conn: ConnId, tracker: &Tracker) {
        let lost: Vec<u64> = self
            .chunks
            .iter()
            .filter(|(_, c)| c.place == Place::Sent(conn))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.give_back(OpId(id), tracker);
        }
    }

    /// A fresh incarnation: whatever is not durable, with all records up to it, is copied again.
    pub(super) fn restart(&mut self, tracker: &Tracker) {
        let mut kept = BTreeMap::new();
        for (id, mut entry) in std::mem::take(&mut self.chunks) {
            if entry.place != Place::Stale {
                tracker.mark(entry.claim.offset, entry.claim.len);
            }
            if matches!(entry.place, Place::Reading | Place::Stale) {
                // Its base is older than what the target will have by then: it must not be sent.
                entry.place = Place::Stale;
                kept.insert(id, entry);
            }
        }
        self.flying = kept.values().map(|c| c.claim.len).sum();
        self.chunks = kept;
        self.aloft.clear();
        self.sent_count = 0;
        self.done.clear();
        self.durable_count = 0;
        self.waiting = 0;
    }

    /// The target wrote that chunk: the connection it went over and its length, if it is still
    /// waited for. Fails when more are acknowledged than were sent.
    pub(super) fn chunk_done(&mut self, id: u64) -> Result<Option<(ConnId, u64)>> {
        if self.done_count() >= self.sent_count {
            return Err(Error::misbehaved(
                "the target acknowledged a chunk that was never sent",
            ));
        }
        self.done.push_back(id);
        let Some(entry) = self.chunks.get_mut(&id) else {
            return Ok(None);
        };
        let Place::Sent(conn) = entry.place else {
            return Ok(None);
        };
        entry.place = Place::Done;
        self.aloft.remove(&id);
        self.flying = self.flying.saturating_sub(entry.claim.len);
        Ok(Some((conn, entry.claim.len)))
    }

    /// The first `count` chunks acknowledged are durable. Bytes of those that are done with now.
    pub(super) fn durable(&mut self, count: u64, acked: u64, early: bool) -> u64 {
        while self.durable_count < count {
            let Some(id) = self.done.pop_front() else {
                break;
            };
            self.durable_count += 1;
            if let Some(entry) = self.chunks.get_mut(&id)
                && entry.place == Place::Done
            {
                entry.place = Place::Durable;
            }
        }
        let mut bytes = 0;
        self.chunks.retain(|_, c| {
            let over = c.place == Place::Durable && (early || c.claim.base <= acked);
            bytes += if over { c.claim.len } else { 0 };
            !over
        });
        self.waiting = self
            .chunks
            .values()
            .filter(|c| c.place == Place::Durable)
            .count();
        bytes
    }

    /// A rule broken on purpose: what was on the way is taken for sent.
    #[cfg(test)]
    pub(super) fn forget_on_the_way(&mut self) {
        self.chunks
            .retain(|_, c| matches!(c.place, Place::Reading | Place::Stale));
        self.aloft.clear();
    }
}
