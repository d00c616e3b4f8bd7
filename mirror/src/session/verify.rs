//! Finding out whether the target has what the source has, while both are in use.
//!
//! What is different because it is being written says nothing. So a pass watches what is written from its beginning on, waits
//! until all that was written before is durable at the target, and looks at the disk part by part: a block that is different
//! and was not written meanwhile is looked at again in the next pass, and is *wrong* when it was so three times and nobody wrote
//! there from the first to the last of them: what is in the disk before it is acknowledged has been acknowledged by then. Looks are no chunks: they have
//! no number, change nothing at the target, and whether a marker is consistent does not depend on them. Must never call a
//! block the same that was not compared, nor one wrong that is on its way.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::Serialize;
use vdisk::engine::Extent;

use super::{ConnId, OpId};
use crate::clock::Micros;
use crate::tracker::Tracker;
use crate::wire::{Here, Look, MAX_LOOK};

/// Names of operations from here on are of looks.
const FIRST_NAME: u64 = 1 << 63;
/// How much of the disk one question about allocation covers.
const QUESTION: u64 = 1 << 30;
/// Bytes looked at that are on the way.
const MOST_ALOFT: u64 = 8 << 20;
/// How often a block is found different before it is wrong.
const STRIKES: u8 = 3;
/// The time between two passes: whatever was being written when a block was read has ended by then.
const PASS_EVERY: Micros = Micros::from_secs(1);
/// What is still being written after so many passes is left.
const MOST_PASSES: u32 = 30;
/// Parts that are to be looked at again; with more the next pass begins.
const MOST_AGAIN: usize = 1 << 16;
/// How often that may be, a second or more each: what is left then is left.
const MOST_EARLY: u32 = 3600;

/// A part of the disk, and how often it was found different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    offset: u64,
    len: u64,
    strikes: u8,
}

/// Where a verification stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyStage {
    /// None was asked for.
    #[default]
    None,
    /// For the target to be in step.
    Waiting,
    /// Looking.
    Comparing,
    /// All of the disk was looked at.
    Done,
}

/// Figures of a verification, for people. Bytes of the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Where it stands.
    pub stage: VerifyStage,
    /// Found to be the same.
    pub compared: u64,
    /// Found to be different though nobody wrote there; copied again, and looked at again.
    pub wrong: u64,
    /// The first byte of the first block that was wrong.
    pub first_wrong: Option<u64>,
    /// Written again and again, so that nothing can be said of it.
    pub unsettled: u64,
    /// How often something was looked at again.
    pub passes: u32,
    /// How often a verification was begun in this session; these are the figures of the last one.
    pub begun: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Reading,
    Sent(ConnId),
}

#[derive(Clone, Copy, Debug)]
struct Aloft {
    part: Part,
    /// Bytes of a block; all of it for zeroes.
    block: u64,
    place: Place,
    weight: u64,
}

/// What is asked of the disk or the target next.
#[derive(Debug)]
pub(super) enum Step {
    Status(OpId, u64, u64),
    Read(OpId, u64, u32),
    Send(Look, u64),
}

#[derive(Debug, Default)]
pub(super) struct Verify {
    figures: Verified,
    /// While it waits: the time before which it does not go on, and the number up to which all has to be durable.
    waits: (Micros, u64),
    /// To be asked about in this pass, in the next one, and what the disk said is data or zero.
    todo: VecDeque<Part>,
    again: Vec<Part>,
    data: VecDeque<Part>,
    zeroes: VecDeque<Part>,
    question: Option<(OpId, Part)>,
    aloft: BTreeMap<u64, Aloft>,
    weight: u64,
    next: u64,
    /// Passes that began before all was looked at.
    early: u32,
    /// A switchover is about to begin: the target's last flush waits for what it looks at.
    paused: bool,
}

impl Verify {
    /// Whether that operation is one of its own.
    pub(super) fn owns(op: OpId) -> bool {
        op.0 >= FIRST_NAME
    }

    /// Figures of one that was asked for.
    pub(super) fn figures(&self) -> Option<Verified> {
        let mut figures = self.figures;
        figures.unsettled = match figures.stage {
            VerifyStage::Done => {
                let left = self.again.iter().chain(&self.todo);
                left.map(|part| part.len).sum()
            }
            _ => 0,
        };
        (figures.stage != VerifyStage::None).then_some(figures)
    }

    /// Look at all of a disk of `size` bytes. One that runs is that one.
    pub(super) fn begin(&mut self, size: u64, now: Micros, tracker: &Tracker) {
        let runs = [VerifyStage::Waiting, VerifyStage::Comparing];
        if runs.contains(&self.figures.stage) {
            return;
        }
        let (next, begun) = (self.next, self.figures.begun + 1);
        *self = Self::default();
        self.next = next;
        self.figures.begun = begun;
        self.again = vec![Part {
            offset: 0,
            len: size,
            strikes: 0,
        }];
        self.pass(now, tracker);
    }

    fn pass(&mut self, not_before: Micros, tracker: &Tracker) {
        self.figures.passes += 1;
        let written = tracker.watch();
        for mut part in std::mem::take(&mut self.again) {
            // Three times different counts only if nobody wrote there from the first to the last of them.
            if written.meets(part.offset, part.len) {
                part.strikes = 0;
            }
            self.todo.push_back(part);
        }
        self.waits.0 = not_before;
        self.wait(tracker);
    }

    fn wait(&mut self, tracker: &Tracker) {
        self.figures.stage = VerifyStage::Waiting;
        self.waits.1 = tracker.figures().seq;
    }

    /// While it waits: the number up to which all has to be durable before it goes on.
    pub(super) fn awaits(&self, now: Micros) -> Option<u64> {
        let (not_before, until) = self.waits;
        let waits = self.figures.stage == VerifyStage::Waiting && now >= not_before;
        waits.then_some(until)
    }

    /// What was awaited is so.
    pub(super) fn go_on(&mut self) {
        self.figures.stage = VerifyStage::Comparing;
    }

    /// Begin no look from now on, or do again; whether none is on the way.
    pub(super) fn pause(&mut self, paused: bool) -> bool {
        self.paused = paused;
        self.aloft.is_empty()
    }

    /// The link was lost: what is on the way comes to nothing, and all has to be durable again.
    pub(super) fn link_lost(&mut self, tracker: &Tracker) {
        for (_, aloft) in std::mem::take(&mut self.aloft) {
            self.todo.push_front(aloft.part);
        }
        self.weight = 0;
        if self.figures.stage == VerifyStage::Comparing {
            self.wait(tracker);
        }
    }

    /// One bulk lane was.
    pub(super) fn lane_lost(&mut self, conn: ConnId) {
        let on_it = |aloft: &Aloft| aloft.place == Place::Sent(conn);
        let lost: Vec<u64> = (self.aloft.iter())
            .filter(|(_, aloft)| on_it(aloft))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            if let Some(aloft) = self.take(id) {
                self.todo.push_front(aloft.part);
            }
        }
    }

    fn take(&mut self, id: u64) -> Option<Aloft> {
        let aloft = self.aloft.remove(&id)?;
        self.weight -= aloft.weight;
        Some(aloft)
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        FIRST_NAME + self.next
    }

    fn begin_look(&mut self, part: Part, block: u64, place: Place, weight: u64) -> u64 {
        let id = self.fresh();
        #[rustfmt::skip]
        self.aloft.insert(id, Aloft { part, block, place, weight });
        self.weight += weight;
        id
    }

    /// The next thing to do, with `conn` being the lane for it and `chunk` the most bytes to read at once.
    pub(super) fn next(&mut self, conn: ConnId, chunk: u64) -> Option<Step> {
        if self.figures.stage != VerifyStage::Comparing || self.paused || self.weight >= MOST_ALOFT
        {
            return None;
        }
        if let Some(part) = self.zeroes.pop_front() {
            // Where there is something it takes the target a while.
            let weight = (part.len / 64).max(4096);
            let id = self.begin_look(part, part.len, Place::Sent(conn), weight);
            let look = Look {
                id,
                offset: part.offset,
                len: part.len,
                here: Here::Zeroes,
            };
            return Some(Step::Send(look, weight));
        }
        if self
            .aloft
            .values()
            .any(|aloft| aloft.place == Place::Reading)
        {
            return None;
        }
        if let Some(part) = first_of(&mut self.data, chunk) {
            let id = self.begin_look(part, 0, Place::Reading, part.len);
            return Some(Step::Read(OpId(id), part.offset, part.len as u32));
        }
        if self.question.is_some() || self.again.len() >= MOST_AGAIN {
            return None;
        }
        let part = first_of(&mut self.todo, QUESTION)?;
        let op = OpId(self.fresh());
        self.question = Some((op, part));
        Some(Step::Status(op, part.offset, part.len))
    }

    /// What is allocated of the part that was asked about, if the disk said so.
    pub(super) fn answer(&mut self, op: OpId, extents: Option<&[Extent]>) {
        let Some((_, part)) = self.question.take_if(|(question, _)| *question == op) else {
            return;
        };
        let (mut at, end) = (part.offset, part.offset + part.len);
        for extent in extents.unwrap_or_default() {
            let len = extent.len.min(end - at);
            let data = extent.allocated && !extent.zero;
            #[rustfmt::skip]
            let mut piece = VecDeque::from([Part { offset: at, len, strikes: part.strikes }]);
            if data {
                self.data.extend(piece.pop_front().filter(|_| len > 0));
            } else {
                self.zeroes
                    .extend(std::iter::from_fn(|| first_of(&mut piece, MAX_LOOK)));
            }
            at += len;
        }
        if at > part.offset && at < end {
            #[rustfmt::skip]
            self.todo.push_front(Part { offset: at, len: end - at, strikes: part.strikes });
        } else if at == part.offset {
            self.again.push(part);
        }
    }

    /// That part of the disk was read, if it could be; what to send over `conn`, with hashes of blocks of `block` bytes.
    pub(super) fn read_done(
        &mut self,
        op: OpId,
        data: Option<&Bytes>,
        (conn, block): (Option<ConnId>, u32),
    ) -> Option<(Look, u64)> {
        let aloft = self.aloft.get_mut(&op.0)?;
        let (Some(data), Some(conn)) = (data, conn) else {
            let part = self.take(op.0)?.part;
            self.again.push(part);
            return None;
        };
        aloft.place = Place::Sent(conn);
        aloft.block = u64::from(block);
        let hashes = data.chunks(block as usize);
        let hashes = hashes
            .map(|bytes| *blake3::hash(bytes).as_bytes())
            .collect();
        let look = Look {
            id: op.0,
            offset: aloft.part.offset,
            len: aloft.part.len,
            here: Here::Blocks(block, hashes),
        };
        Some((look, aloft.weight))
    }

    /// The target looked: the lane it went over and what it counts for, if it is still waited for. What is wrong is marked
    /// to be copied again.
    pub(super) fn seen(
        &mut self,
        id: u64,
        (unlike, unknown): (u128, u128),
        tracker: &Tracker,
    ) -> Option<(ConnId, u64)> {
        let Some(Aloft {
            place: Place::Sent(conn),
            ..
        }) = self.aloft.get(&id)
        else {
            return None;
        };
        let conn = *conn;
        let Aloft {
            part,
            block,
            weight,
            ..
        } = self.take(id)?;
        let blocks = part.len.div_ceil(block.max(1)).min(u64::from(u128::BITS));
        for number in 0..blocks {
            let offset = part.offset + number * block;
            let len = block.min(part.offset + part.len - offset);
            let is = |set: u128| set >> number & 1 == 1;
            let strikes = match (is(unknown), is(unlike)) {
                (true, _) => Some(part.strikes),
                (false, false) => None,
                (false, true) if tracker.was_written(offset, len) => Some(0),
                (false, true) => Some(part.strikes + 1),
            };
            match strikes {
                None => self.figures.compared += len,
                Some(strikes) => self.look_again(
                    Part {
                        offset,
                        len,
                        strikes,
                    },
                    tracker,
                ),
            }
        }
        Some((conn, weight))
    }

    fn look_again(&mut self, mut part: Part, tracker: &Tracker) {
        if part.strikes >= STRIKES {
            self.figures.wrong += part.len;
            self.figures.first_wrong.get_or_insert(part.offset);
            tracker.mark(part.offset, part.len);
            part.strikes = 0;
        }
        match self.again.last_mut() {
            Some(last) if last.offset + last.len == part.offset && last.strikes == part.strikes => {
                last.len += part.len;
            }
            _ => self.again.push(part),
        }
    }

    /// Begin the next pass, or end, if this one is over.
    pub(super) fn settle(&mut self, now: Micros, tracker: &Tracker) {
        let looking = self.figures.stage == VerifyStage::Comparing;
        let waits = self.question.is_some() || !self.aloft.is_empty();
        let left = !(self.data.is_empty() && self.zeroes.is_empty() && self.todo.is_empty());
        let full = self.again.len() >= MOST_AGAIN;
        if !looking || waits || left && !full {
            return;
        }
        // What was found and not looked at is asked about again.
        for part in std::mem::take(&mut self.data)
            .into_iter()
            .chain(std::mem::take(&mut self.zeroes))
        {
            self.todo.push_back(part);
        }
        let over = !left && (self.again.is_empty() || self.figures.passes >= MOST_PASSES);
        let over = over || self.early >= MOST_EARLY;
        if over {
            self.figures.stage = VerifyStage::Done;
            tracker.watch_no_more();
            return;
        }
        if left {
            // It goes on where it was.
            self.figures.passes -= 1;
            self.early += 1;
        }
        self.pass(now + PASS_EVERY, tracker);
    }
}

/// The first part, at most so many bytes of it.
fn first_of(parts: &mut VecDeque<Part>, most: u64) -> Option<Part> {
    let first = parts.front_mut()?;
    if first.len <= most {
        return parts.pop_front();
    }
    let taken = Part {
        len: most,
        ..*first
    };
    first.offset += most;
    first.len -= most;
    Some(taken)
}

#[cfg(test)]
mod tests;
