//! Puts records and chunks into the target's disk in an order that ends with the right content.
//!
//! Operations that overlap are run one after the other in the order they came; all others at once.
//! Must never hold more than the window it announced, and never call a chunk done before it is in
//! the disk.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::compare::{Compare, Compared, Seen};
use super::versions::Versions;
use crate::error::{Error, ErrorKind, Result};
use crate::session::OpId;
use crate::wire::{
    Chunk, Content, Look, MAX_PAYLOAD, Marker, Probe, Record, StreamDigest, check_of,
};

/// Operations on the disk at once.
const MOST_RUNNING: usize = 32;
/// Bytes of them, beyond which no other is begun: the medium may be shared with disks that are in
/// use, and their writes wait behind ours. What came too early waits here, not in its queue.
const MOST_RUNNING_BYTES: u64 = 2 << 20;
/// Waiting operations looked at for one that may run.
const LOOK_AHEAD: usize = 128;
/// Ranges remembered with their numbers. A source that keeps the rules needs far fewer.
const MOST_VERSIONS: usize = 1 << 20;
/// What an operation is counted for beside its bytes.
const OP_COST: u64 = 128;

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Put(Content),
    Compare(Compare),
}

impl Work {
    fn covers(&self) -> u64 {
        match self {
            Self::Put(content) => content.covers(),
            Self::Compare(compare) => compare.len(),
        }
    }

    /// Bytes of memory it needs while it runs.
    fn held(&self) -> u64 {
        match self {
            Self::Put(content) => content.held(),
            // A piece at a time, and few run at once.
            Self::Compare(compare) if compare.with_zeroes() => 0,
            Self::Compare(compare) => compare.len(),
        }
    }

    /// Bytes it counts for among those that run: a disk that cannot punch holes writes zeroes.
    fn weight(&self) -> u64 {
        match self {
            Self::Put(Content::Zeroes(len)) => len / 64,
            Self::Compare(compare) => compare.len().min(MAX_PAYLOAD as u64),
            work @ Self::Put(_) => work.held(),
        }
    }
}

/// An operation on the target's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskOp {
    pub(super) id: OpId,
    pub(super) offset: u64,
    pub(super) work: Work,
    chunk: Option<u64>,
}

/// A chunk, or a probe in its place, that was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) id: u64,
    /// Blocks of the probe that are different here.
    pub(super) differs: u128,
}

/// What is to be done until a chunk can be answered, and with which blocks.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    operations: usize,
    differs: u128,
}

impl DiskOp {
    fn end(&self) -> u64 {
        self.offset + self.work.covers()
    }

    fn meets(&self, other: &Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    fn cost(&self) -> u64 {
        OP_COST + self.work.held()
    }
}

#[derive(Debug)]
pub(super) struct Applier {
    size: u64,
    window: u64,
    versions: Versions,
    waiting: VecDeque<DiskOp>,
    running: BTreeMap<OpId, DiskOp>,
    next_op: u64,
    /// Cost of everything waiting and running.
    held: u64,
    /// What is left of each chunk, and chunks that are done and not yet reported.
    parts: BTreeMap<u64, Left>,
    done: Vec<Answer>,
    seen: Vec<Seen>,
    heard: Heard,
    /// The first operation of this incarnation.
    since: OpId,
}

/// What the stream of this incarnation has said so far.
#[derive(Debug, Default)]
struct Heard {
    /// No record up to this number, and no chunk with a base below the second, is to come.
    seen: u64,
    floor: u64,
    /// The last marker.
    marker: Option<u64>,
    /// Of the records since then.
    digest: StreamDigest,
}

impl Applier {
    pub(super) fn new(window: u64) -> Self {
        Self {
            size: 0,
            window,
            versions: Versions::default(),
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            next_op: 0,
            held: 0,
            parts: BTreeMap::new(),
            done: Vec::new(),
            seen: Vec::new(),
            heard: Heard::default(),
            since: OpId(0),
        }
    }

    /// The disk is open and has `size` bytes.
    pub(super) fn set_size(&mut self, size: u64) {
        self.size = size;
    }

    /// A number for an operation of the caller's own.
    pub(super) fn take_op(&mut self) -> OpId {
        self.next_op += 1;
        OpId(self.next_op - 1)
    }

    /// A fresh incarnation, in which every record after `acked` comes again. What is running has
    /// ended before.
    pub(super) fn restart(&mut self, acked: u64) {
        self.drop_waiting();
        self.heard.seen = acked;
        self.heard.floor = 0;
        self.heard.marker = None;
    }

    /// Forget what has not been begun.
    pub(super) fn drop_waiting(&mut self) {
        self.versions.clear();
        self.waiting.clear();
        self.parts.clear();
        self.done.clear();
        self.seen.clear();
        self.held = self.running.values().map(DiskOp::cost).sum();
        self.since = OpId(self.next_op);
        self.heard.digest = StreamDigest::default();
    }

    /// Whether no operation is running.
    pub(super) fn is_still(&self) -> bool {
        self.running.is_empty()
    }

    /// The number the next operation will have: all before it were asked for by now.
    pub(super) fn next_op(&self) -> OpId {
        OpId(self.next_op)
    }

    /// Whether every operation before `op` is in the disk.
    pub(super) fn reached(&self, op: OpId) -> bool {
        let oldest_running = self.running.keys().next().copied();
        let oldest_waiting = self.waiting.front().map(|op| op.id);
        [oldest_running, oldest_waiting]
            .into_iter()
            .flatten()
            .all(|id| id >= op)
    }

    fn check_place(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => {
                let what = format!(
                    "{len} bytes at {offset} lie beyond the disk of {}",
                    self.size
                );
                Err(Error::misbehaved(what))
            }
        }
    }

    /// A record came. `over` breaks the rule that a later chunk wins.
    pub(super) fn record(&mut self, record: &Record, over: bool) -> Result<()> {
        self.check_place(record.offset, record.content.covers())?;
        if record.seq <= self.heard.seen {
            let what = format!(
                "record {} came after number {}",
                record.seq, self.heard.seen
            );
            return Err(Error::misbehaved(what));
        }
        self.heard.seen = record.seq;
        self.heard.digest.add(record);
        let seq = record.seq;
        let end = record.offset + record.content.covers();
        let parts = self
            .versions
            .claim(record.offset, end, seq, |n| over || n < seq);
        self.submit(record.offset, &record.content, &parts, None)
    }

    /// A chunk came. `over` breaks the rule that a later record wins.
    pub(super) fn chunk(&mut self, chunk: &Chunk, over: bool) -> Result<()> {
        self.check_place(chunk.offset, chunk.content.covers())?;
        if let Content::Data(data) = &chunk.content
            && check_of(data) != chunk.check
        {
            let what = format!("the chunk at {} arrived damaged", chunk.offset);
            return Err(Error::new(ErrorKind::Damaged, what));
        }
        // It was on a lane that broke; the source has sent it again since.
        if chunk.base < self.heard.floor {
            return Ok(());
        }
        let base = chunk.base;
        let end = chunk.offset + chunk.content.covers();
        let parts = self
            .versions
            .claim(chunk.offset, end, base, |n| over || n <= base);
        if parts.is_empty() {
            self.answer(chunk.id, 0);
        } else {
            let left = Left {
                operations: parts.len(),
                differs: 0,
            };
            self.parts.insert(chunk.id, left);
        }
        self.submit(chunk.offset, &chunk.content, &parts, Some(chunk.id))
    }

    /// A probe came in a chunk's place. What it brings is compared only when all before it is in the disk; its number
    /// counts from now on, as a chunk's: where the disk differs a chunk with a higher one follows.
    pub(super) fn probe(&mut self, probe: Probe) -> Result<()> {
        self.check_place(probe.offset, probe.len)?;
        if probe.base < self.heard.floor {
            return Ok(());
        }
        let (offset, end, base) = (probe.offset, probe.offset + probe.len, probe.base);
        let parts = self.versions.claim(offset, end, base, |n| n <= base);
        if parts.is_empty() {
            self.answer(probe.id, 0);
            return Ok(());
        }
        let (id, chunk) = (self.take_op(), Some(probe.id));
        let work = Work::Compare(Compare::new(probe));
        #[rustfmt::skip]
        self.wait(DiskOp { id, offset, work, chunk });
        self.check_room()
    }

    /// The source asks to look at a part of the disk: once all before it that meets it is there. It has no number, and
    /// changes nothing of what may be written.
    pub(super) fn look(&mut self, look: Look) -> Result<()> {
        self.check_place(look.offset, look.len)?;
        let (id, chunk, offset) = (self.take_op(), None, look.offset);
        let work = Work::Compare(Compare::look(look));
        #[rustfmt::skip]
        self.wait(DiskOp { id, offset, work, chunk });
        self.check_room()
    }

    fn answer(&mut self, id: u64, differs: u128) {
        self.done.push(Answer { id, differs });
    }

    fn wait(&mut self, op: DiskOp) {
        self.held += op.cost();
        self.waiting.push_back(op);
    }

    fn submit(
        &mut self,
        offset: u64,
        content: &Content,
        parts: &[(u64, u64)],
        chunk: Option<u64>,
    ) -> Result<()> {
        for (a, b) in parts {
            let content = match content {
                Content::Zeroes(_) => Content::Zeroes(b - a),
                Content::Data(data) => Content::Data(part_of(data, a - offset, b - offset)),
            };
            let op = DiskOp {
                id: self.take_op(),
                offset: *a,
                work: Work::Put(content),
                chunk,
            };
            self.wait(op);
        }
        self.check_room()
    }

    fn check_room(&self) -> Result<()> {
        // Records and chunks have a window each, and what a record costs may be mostly overhead.
        let room = self.window.saturating_mul(4).saturating_add(64 << 20);
        if self.held > room || self.versions.len() > MOST_VERSIONS {
            return Err(Error::misbehaved(
                "the source sent more than its window allows",
            ));
        }
        Ok(())
    }

    /// A marker came: checks the records since the last one.
    pub(super) fn marker(&mut self, marker: &Marker) -> Result<()> {
        let (digest, count) = self.heard.digest.finish();
        if count != marker.count || digest != marker.digest {
            let what = format!("the records before marker {} arrived damaged", marker.id);
            return Err(Error::new(ErrorKind::Damaged, what));
        }
        let follows = self
            .heard
            .marker
            .is_none_or(|last| last.checked_add(1) == Some(marker.id));
        if !follows || marker.seq < self.heard.seen || marker.floor < self.heard.floor {
            return Err(Error::misbehaved("a marker is missing or went back"));
        }
        self.heard.marker = Some(marker.id);
        self.heard.seen = marker.seq;
        self.heard.floor = marker.floor;
        // Numbers up to both bounds can meet nothing older any more.
        self.versions.forget(self.heard.seen.min(self.heard.floor));
        Ok(())
    }

    /// The next operation that may run now, of those before `limit`.
    pub(super) fn next(&mut self, limit: Option<OpId>) -> Option<DiskOp> {
        let bytes: u64 = self.running.values().map(|op| op.work.weight()).sum();
        if self.running.len() >= MOST_RUNNING || bytes >= MOST_RUNNING_BYTES {
            return None;
        }
        let at = (0..self.waiting.len().min(LOOK_AHEAD)).find(|at| {
            self.waiting.get(*at).is_some_and(|op| {
                if limit.is_some_and(|limit| op.id >= limit) {
                    return false;
                }
                let earlier = self.waiting.iter().take(*at);
                !self
                    .running
                    .values()
                    .chain(earlier)
                    .any(|other| op.meets(other))
            })
        })?;
        let op = self.waiting.remove(at)?;
        self.running.insert(op.id, op.clone());
        Some(op)
    }

    /// An operation ended.
    pub(super) fn complete(&mut self, id: OpId) {
        let Some(op) = self.running.remove(&id) else {
            return;
        };
        self.held = self.held.saturating_sub(op.cost());
        let Some(chunk) = op.chunk else { return };
        if let Some(left) = self.parts.get_mut(&chunk) {
            left.operations = left.operations.saturating_sub(1);
            if left.operations == 0 {
                let differs = left.differs;
                self.parts.remove(&chunk);
                self.answer(chunk, differs);
            }
        }
    }

    /// Whether it was begun for an incarnation that is over.
    pub(super) fn is_of_the_past(&self, id: OpId) -> bool {
        id < self.since
    }

    /// What an operation that compares has to compare with.
    pub(super) fn comparing(&mut self, id: OpId) -> Option<&mut Compare> {
        match &mut self.running.get_mut(&id)?.work {
            Work::Compare(compare) => Some(compare),
            Work::Put(_) => None,
        }
    }

    /// That came of an operation that compares.
    pub(super) fn compared(&mut self, id: OpId, compared: Compared) {
        let Some(op) = self.running.remove(&id) else {
            return;
        };
        self.held = self.held.saturating_sub(op.cost());
        if self.is_of_the_past(id) {
            return;
        }
        match (compared, op.chunk) {
            (Compared::Differs(blocks), Some(chunk)) => self.answer(chunk, blocks),
            (Compared::Seen(seen), _) => self.seen.push(seen),
            (Compared::Differs(_), None) => {}
        }
    }

    /// Blocks that a running probe missed were found elsewhere. They are written once it has ended, as what came in a
    /// chunk's place is: over nothing newer, which `over` breaks.
    pub(super) fn bring(&mut self, id: OpId, found: &[(u64, Bytes)], over: bool) {
        let Some(DiskOp {
            work: Work::Compare(compare),
            chunk: Some(chunk),
            ..
        }) = self.running.get(&id)
        else {
            return;
        };
        let (base, chunk) = (compare.base, *chunk);
        // The source has given it up since, and what may be newer is not remembered any more.
        if self.is_of_the_past(id) || base < self.heard.floor {
            return;
        }
        for (offset, data) in found {
            let end = offset + data.len() as u64;
            let parts = self
                .versions
                .claim(*offset, end, base, |n| over || n <= base);
            for (from, to) in parts {
                self.parts.entry(chunk).or_default().operations += 1;
                let id = self.take_op();
                let content = Content::Data(part_of(data, from - offset, to - offset));
                let work = Work::Put(content);
                let (offset, chunk) = (from, Some(chunk));
                #[rustfmt::skip]
                self.wait(DiskOp { id, offset, work, chunk });
            }
        }
    }

    /// A probe was looked for everywhere.
    pub(super) fn searched(&mut self, id: OpId) {
        let Some(compare) = self.comparing(id) else {
            return;
        };
        let (missing, base) = (compare.search.missing, compare.base);
        let Some(op) = self.running.remove(&id) else {
            return;
        };
        self.held = self.held.saturating_sub(op.cost());
        let Some(chunk) = op.chunk.filter(|_| !self.is_of_the_past(id)) else {
            return;
        };
        match self.parts.get_mut(&chunk) {
            // What was found waited for this.
            Some(left) => left.differs = missing,
            None if base < self.heard.floor => {}
            None => self.answer(chunk, missing),
        }
    }

    /// What was looked at since the last call.
    pub(super) fn take_seen(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.seen)
    }

    /// Chunks that are in the disk since the last call.
    pub(super) fn take_done(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.done)
    }
}

/// Bytes `from..to` of `data`, which holds them.
fn part_of(data: &Bytes, from: u64, to: u64) -> Bytes {
    data.slice(from as usize..to as usize)
}
