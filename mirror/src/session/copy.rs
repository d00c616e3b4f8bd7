//! The bulk copy of the source: what is allocated, the chunks on the way, the dirty granules.
//!
//! Must never lose a granule: each is clean at the target, dirty in the tracker, or in a chunk here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use vdisk::engine::Extent;

use super::scan::Scan;
use super::{ConnId, OpId};
use crate::GRANULE;
use crate::error::{Error, Result};
use crate::pacing::Limits;
use crate::picture::{Picture, Seen, Sight};
use crate::tracker::{Claim, Tracker};
use crate::wire::{Chunk, Content, Message, Probe, check_of};

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

/// What goes to the target of a part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Its bytes.
    Data,
    /// Their hashes.
    Probe,
    /// That it is zero, as the scan found.
    Zeroes,
}

#[derive(Clone, Copy, Debug)]
struct OnTheWay {
    claim: Claim,
    kind: Kind,
    place: Place,
    /// Of a probe that was answered, bytes of blocks that the target has otherwise.
    unlike: u64,
}

impl OnTheWay {
    /// Bytes it is counted for while it is on the way.
    fn weight(&self) -> u64 {
        match self.kind {
            Kind::Data | Kind::Probe => self.claim.len,
            // Where there is something it takes the target a while.
            Kind::Zeroes => (self.claim.len / 256).max(GRANULE),
        }
    }

    /// Bytes of it that the target said it has.
    fn same(&self) -> u64 {
        match (self.kind, self.place) {
            (Kind::Probe, Place::Done | Place::Durable) => self.claim.len - self.unlike,
            _ => 0,
        }
    }

    /// Its part of the disk has to be dealt with again.
    fn give_back(&self, scan: &mut Scan, tracker: &Tracker) {
        let (offset, len) = (self.claim.offset, self.claim.len);
        match self.kind {
            Kind::Data => tracker.mark(offset, len),
            Kind::Probe => tracker.mark_unsure(offset, len),
            Kind::Zeroes => scan.ask_again(offset, len),
        }
    }
}

/// How much is on the way.
#[derive(Debug, Default)]
struct Flight {
    /// Bytes in places Reading, Stale and Sent.
    bytes: u64,
    /// How many are being read.
    reads: usize,
}

#[derive(Debug)]
pub(super) struct BulkCopy {
    scan: Scan,
    /// Where the next claim is looked for.
    from: u64,
    chunks: BTreeMap<u64, OnTheWay>,
    /// Those in places Reading and Sent, by base and name.
    aloft: BTreeSet<(u64, u64)>,
    next_id: u64,
    flight: Flight,
    /// Chunks sent in this incarnation.
    sent_count: u64,
    /// Acknowledged chunks that are not durable, oldest first, and how many are durable.
    done: VecDeque<u64>,
    durable_count: u64,
    /// Durable chunks that wait for records up to their base.
    waiting: usize,
    /// The last number given out when the last read of a chunk that was sent ended.
    saw: u64,
    sums: Sums,
}

/// What copying came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Bytes that the target was found to have.
    pub(super) same: u64,
    /// Bytes read of the source's disk, those counted twice that were read twice.
    pub(super) read: u64,
    /// Of those, bytes that were zero: only their number travels.
    pub(super) zero: u64,
}

impl BulkCopy {
    pub(super) fn new(size: u64) -> Self {
        Self {
            scan: Scan::new(size),
            from: 0,
            chunks: BTreeMap::new(),
            aloft: BTreeSet::new(),
            next_id: 1,
            flight: Flight::default(),
            sent_count: 0,
            done: VecDeque::new(),
            durable_count: 0,
            waiting: 0,
            saw: 0,
            sums: Sums::default(),
        }
    }

    /// What it came to so far.
    pub(super) fn sums(&self) -> Sums {
        self.sums
    }

    /// What is where now, as far as it is known here, with what the tap knows: a picture of at most so many cells.
    pub(super) fn picture(&self, size: u64, cells: usize, sight: &Sight) -> Picture {
        let chunks = self.chunks.values();
        let flying = chunks.filter(|c| matches!(c.place, Place::Reading | Place::Sent(_)));
        let sending: Vec<_> = flying.map(|c| (c.claim.offset, c.claim.len)).collect();
        Seen {
            size,
            scanned: self.scan.scanned(),
            found: self.scan.found_in(),
            sight,
            sending: &sending,
        }
        .picture(cells)
    }

    /// Whether the target begins from something else than an empty disk. To be said before anything is asked.
    pub(super) fn compare(&mut self, compares: bool) {
        self.scan.compare(compares);
    }

    /// Whether the target may have blocks of the disk in other images: what is found from now on is asked about before it
    /// is sent.
    pub(super) fn ask_first(&mut self, asks: bool) {
        self.scan.ask_first(asks);
    }

    /// Only these parts have to be compared; the target has the others. To be said before anything is asked.
    pub(super) fn only(&mut self, parts: &[(u64, u64)], tracker: &Tracker) {
        self.scan.only(parts, tracker);
    }

    /// All has to be compared or copied after all. To be said before anything is asked.
    pub(super) fn all(&mut self) {
        self.scan.all();
    }

    /// Parts that the target may not have durably, but for those that are dirty: offset and length.
    pub(super) fn rest(&self) -> impl Iterator<Item = (u64, u64)> {
        let chunks = self.chunks.values();
        let chunks = chunks.map(|entry| (entry.claim.offset, entry.claim.len));
        self.scan.rest().chain(chunks)
    }

    /// No chunk that was sent holds a change beyond this number, but for those that had none yet.
    pub(super) fn saw(&self) -> u64 {
        self.saw
    }

    pub(super) fn scanned(&self) -> u64 {
        self.scan.scanned()
    }

    pub(super) fn found(&self) -> u64 {
        self.scan.found()
    }

    /// Bytes that the disk said are not allocated, or zero.
    pub(super) fn holes(&self) -> u64 {
        self.scan.holes()
    }

    /// Bytes being read or on the way.
    pub(super) fn flying(&self) -> u64 {
        self.flight.bytes
    }

    /// How many chunks the target acknowledged in this incarnation.
    pub(super) fn done_count(&self) -> u64 {
        self.durable_count + self.done.len() as u64
    }

    /// Whether the whole disk was asked for what is allocated.
    pub(super) fn scan_complete(&self) -> bool {
        self.scan.is_complete()
    }

    /// Whether no chunk is being read or on the way.
    pub(super) fn landed(&self) -> bool {
        self.flight.bytes == 0
    }

    /// Whether chunks wait for a marker.
    pub(super) fn awaits_marker(&self) -> bool {
        !self.done.is_empty() || self.waiting > 0
    }

    /// The smallest base among the chunks that may still arrive.
    pub(super) fn floor(&self) -> u64 {
        let oldest = self.aloft.first().map_or(u64::MAX, |(base, _)| *base);
        oldest.min(self.scan.floor())
    }

    fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The next question about allocation: its name, offset and length.
    pub(super) fn ask(&mut self, tracker: &Tracker) -> Option<(OpId, u64, u64)> {
        let op = OpId(self.fresh());
        let (offset, len) = self.scan.ask(op, tracker)?;
        Some((op, offset, len))
    }

    /// The answer to a question. `false` when it is not one that can be.
    pub(super) fn answer(&mut self, op: OpId, extents: &[Extent], tracker: &Tracker) -> bool {
        self.scan.answer(op, extents, tracker)
    }

    fn has_room(&self, limits: &Limits, bytes: u64) -> bool {
        self.chunks.len() < MOST_CHUNKS
            && (self.flight.bytes == 0 || self.flight.bytes.saturating_add(bytes) <= limits.window)
    }

    fn begin(&mut self, claim: Claim, kind: Kind, place: Place) -> u64 {
        let id = self.fresh();
        let unlike = 0;
        #[rustfmt::skip]
        let entry = OnTheWay { claim, kind, place, unlike };
        self.flight.bytes += entry.weight();
        self.chunks.insert(id, entry);
        self.aloft.insert((claim.base, id));
        id
    }

    /// The next part of the disk to read, within the limits.
    pub(super) fn read(&mut self, limits: &Limits, tracker: &Tracker) -> Option<(OpId, Claim)> {
        if self.flight.reads >= limits.reads || !self.has_room(limits, limits.chunk) {
            return None;
        }
        let all_known = self.scan_complete();
        let claim = tracker.claim(self.from, limits.chunk.max(GRANULE), all_known)?;
        self.from = claim.offset + claim.len;
        let kind = if claim.unsure {
            Kind::Probe
        } else {
            Kind::Data
        };
        let id = self.begin(claim, kind, Place::Reading);
        self.flight.reads += 1;
        Some((OpId(id), claim))
    }

    /// The next part that the scan found to be zero, to be sent over `conn`; `last` is the last number given out.
    pub(super) fn next_zeroes(
        &mut self,
        limits: &Limits,
        conn: ConnId,
        last: u64,
    ) -> Option<(Message, u64)> {
        // Not by how many chunks there are: those may wait for records that wait for this.
        if self.flight.bytes >= limits.window {
            return None;
        }
        let claim = self.scan.next_zeroes()?;
        let id = self.begin(claim, Kind::Zeroes, Place::Sent(conn));
        self.sent_count += 1;
        self.saw = self.saw.max(last);
        let chunk = Chunk {
            id,
            base: claim.base,
            offset: claim.offset,
            content: Content::Zeroes(claim.len),
            check: [0; 16],
        };
        let weight = self.chunks.get(&id).map_or(0, OnTheWay::weight);
        Some((Message::Chunk(chunk), weight))
    }

    /// A read is done, `last` being the last number given out: what to send over `conn`, and the bytes it counts for;
    /// `None` when it is not wanted any more. Hashes to compare are of blocks of `block` bytes.
    pub(super) fn read_done(
        &mut self,
        op: OpId,
        data: Bytes,
        conn: Option<ConnId>,
        (last, block): (u64, u32),
    ) -> Option<(Message, u64)> {
        let entry = self.chunks.get_mut(&op.0)?;
        self.flight.reads = self.flight.reads.saturating_sub(1);
        let (Place::Reading, Some(conn)) = (entry.place, conn) else {
            // Without a lane it stays for the caller to give back.
            return None;
        };
        entry.place = Place::Sent(conn);
        let zero = data.iter().all(|b| *b == 0);
        self.sums.read += data.len() as u64;
        if zero {
            self.sums.zero += data.len() as u64;
        }
        if zero {
            // Shorter than to ask.
            entry.kind = Kind::Data;
        }
        let entry = *entry;
        self.sent_count += 1;
        self.saw = self.saw.max(last);
        let claim = entry.claim;
        let message = match entry.kind {
            Kind::Probe => Message::Probe(Probe {
                id: op.0,
                base: claim.base,
                offset: claim.offset,
                len: claim.len,
                block,
                hashes: data.chunks(block as usize).map(hash_of).collect(),
            }),
            Kind::Data | Kind::Zeroes => Message::Chunk(Chunk {
                id: op.0,
                base: claim.base,
                offset: claim.offset,
                check: if zero { [0; 16] } else { check_of(&data) },
                content: if zero {
                    Content::Zeroes(claim.len)
                } else {
                    Content::Data(data)
                },
            }),
        };
        Some((message, entry.weight()))
    }

    /// Give a chunk back: its granules are dirty again.
    pub(super) fn give_back(&mut self, op: OpId, tracker: &Tracker) {
        if let Some(entry) = self.chunks.remove(&op.0) {
            self.aloft.remove(&(entry.claim.base, op.0));
            self.flight.bytes = self.flight.bytes.saturating_sub(entry.weight());
            if entry.place != Place::Stale {
                entry.give_back(&mut self.scan, tracker);
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
            self.sums.same -= entry.same();
            if entry.place != Place::Stale {
                entry.give_back(&mut self.scan, tracker);
            }
            if matches!(entry.place, Place::Reading | Place::Stale) {
                // Its base is older than what the target will have by then: it must not be sent.
                entry.place = Place::Stale;
                kept.insert(id, entry);
            }
        }
        self.scan.restart();
        self.flight.bytes = kept.values().map(OnTheWay::weight).sum();
        self.chunks = kept;
        self.aloft.clear();
        self.sent_count = 0;
        self.done.clear();
        self.durable_count = 0;
        self.waiting = 0;
    }

    /// Of that probe the target has all but these blocks of so many bytes: as [`BulkCopy::chunk_done`].
    pub(super) fn differs(
        &mut self,
        id: u64,
        (blocks, block): (u128, u32),
        tracker: &Tracker,
    ) -> Result<Option<(ConnId, u64)>> {
        let done = self.chunk_done(id)?;
        let Some(entry) = self.chunks.get_mut(&id).filter(|_| done.is_some()) else {
            return Ok(done);
        };
        let block = u64::from(block);
        for number in (0..u128::BITS).filter(|number| blocks >> number & 1 == 1) {
            let from = u64::from(number) * block;
            if entry.kind != Kind::Probe || from >= entry.claim.len {
                let what = "the target compared what it was not asked about";
                return Err(Error::misbehaved(what));
            }
            let len = (entry.claim.len - from).min(block);
            tracker.mark(entry.claim.offset + from, len);
            entry.unlike += len;
            self.sums.same -= len;
        }
        Ok(done)
    }

    /// The target wrote that chunk: the connection it went over and what it counts for, if it is still
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
        self.sums.same += entry.same();
        self.aloft.remove(&(entry.claim.base, id));
        self.flight.bytes = self.flight.bytes.saturating_sub(entry.weight());
        Ok(Some((conn, entry.weight())))
    }

    /// The first `count` chunks acknowledged are durable. Of those that are done with now, the bytes that were sent, and
    /// those that did not have to be.
    pub(super) fn durable(&mut self, count: u64, acked: u64, early: bool) -> (u64, u64) {
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
        let (mut bytes, mut same) = (0, 0);
        self.chunks.retain(|_, c| {
            let over = c.place == Place::Durable && (early || c.claim.base <= acked);
            match c.kind {
                Kind::Data if over => bytes += c.claim.len,
                Kind::Probe if over => same += c.same(),
                _ => {}
            }
            !over
        });
        self.waiting = self
            .chunks
            .values()
            .filter(|c| c.place == Place::Durable)
            .count();
        (bytes, same)
    }

    /// A rule broken on purpose: that chunk is not sent and not missed.
    #[cfg(test)]
    pub(super) fn forget(&mut self, chunk: &Message) {
        let Message::Chunk(Chunk { id, .. }) = chunk else {
            return;
        };
        if let Some(entry) = self.chunks.remove(id) {
            self.aloft.remove(&(entry.claim.base, *id));
            self.flight.bytes -= entry.weight();
            self.sent_count -= 1;
        }
    }

    /// A rule broken on purpose: what was on the way is taken for sent.
    #[cfg(test)]
    pub(super) fn forget_on_the_way(&mut self) {
        self.chunks
            .retain(|_, c| matches!(c.place, Place::Reading | Place::Stale));
        self.aloft.clear();
    }
}

fn hash_of(data: impl AsRef<[u8]>) -> [u8; 32] {
    *blake3::hash(data.as_ref()).as_bytes()
}
