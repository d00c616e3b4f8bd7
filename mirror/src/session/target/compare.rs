//! Comparing by hashes: what the target has of a part of the disk, and what of that counts.
//!
//! Must never call a block the same that is not, nor one of which something later waits in the journal.

use bytes::Bytes;

use super::elsewhere::Search;
use super::{Message, Micros, OpId, Target, Upto};
use crate::dirty::DirtyMap;
use crate::wire::{Content, Here, Look, Probe};

/// What a part of the disk is compared with, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compare {
    offset: u64,
    len: u64,
    here: Here,
    /// The look that it is for; else it is a probe.
    look: Option<u64>,
    /// Of a probe, no number up to it is later than what it tells of.
    pub(super) base: u64,
    /// Of a probe, what is looked for elsewhere.
    pub(super) search: Search,
    /// Blocks of which the disk does not say what is there: bytes of them are in the journal.
    left_out: u128,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// A probe: these blocks are different, or not known to be the same.
    Differs(u128),
    /// A look.
    Seen(Seen),
}

/// The answer to a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: u64,
    pub(super) unlike: u128,
    pub(super) unknown: u128,
}

impl Compare {
    pub(super) fn new(probe: Probe) -> Self {
        Self {
            offset: probe.offset,
            len: probe.len,
            here: Here::Blocks(probe.block, probe.hashes),
            look: None,
            base: probe.base,
            search: Search::default(),
            left_out: 0,
        }
    }

    pub(super) fn look(look: Look) -> Self {
        Self {
            offset: look.offset,
            len: look.len,
            here: look.here,
            look: Some(look.id),
            base: 0,
            search: Search::default(),
            left_out: 0,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Where it is on the disk: offset and length, which a probe keeps short.
    pub(super) fn place(&self) -> (u64, u32) {
        (self.offset, self.len as u32)
    }

    /// What is missing and is in `data`, which a template has from this place on: by its offset. With `unlike` a rule is
    /// broken on purpose.
    pub(super) fn find_in(&mut self, data: &Bytes, unlike: bool) -> Vec<(u64, Bytes)> {
        let Here::Blocks(block, hashes) = &self.here else {
            return Vec::new();
        };
        let block = *block as usize;
        let len = self.len as usize;
        let mut found: Vec<(usize, usize)> = Vec::new();
        for (number, hash) in hashes.iter().enumerate() {
            let (from, to) = (number * block, len.min((number + 1) * block));
            let there = data.get(from..to);
            let same = |there| unlike || blake3::hash(there).as_bytes() == hash;
            if self.search.missing >> number & 1 == 0 || !there.is_some_and(same) {
                continue;
            }
            self.search.missing &= !(1 << number);
            match found.last_mut() {
                Some((_, end)) if *end == from => *end = to,
                _ => found.push((from, to)),
            }
        }
        let part = |(from, to): (usize, usize)| (self.offset + from as u64, data.slice(from..to));
        found.into_iter().map(part).collect()
    }

    /// Whether it is compared with zeroes, which may be many.
    pub(super) fn with_zeroes(&self) -> bool {
        self.here == Here::Zeroes
    }

    fn leave_out(&mut self, journal: &Journaled) {
        let (block, blocks) = match &self.here {
            Here::Zeroes => (self.len, 1),
            Here::Blocks(block, hashes) => (u64::from(*block), hashes.len() as u64),
        };
        for number in 0..blocks {
            if journal.holds(self.offset + number * block, block) {
                self.left_out |= 1 << number;
            }
        }
    }

    /// What comes of it with the blocks that are different from what is in the disk.
    fn outcome(&self, unlike: u128) -> Compared {
        match self.look {
            None => Compared::Differs(unlike | self.left_out),
            Some(id) => Compared::Seen(Seen {
                id,
                unlike: unlike & !self.left_out,
                unknown: self.left_out,
            }),
        }
    }

    /// What comes of it with what was read.
    pub(super) fn with(&self, data: &[u8]) -> Compared {
        let Here::Blocks(block, hashes) = &self.here else {
            return self.outcome(u128::from(data.iter().any(|byte| *byte != 0)));
        };
        let mut blocks = data.chunks(*block as usize);
        let mut unlike = 0;
        for (number, hash) in hashes.iter().enumerate() {
            let same = |block: &[u8]| blake3::hash(block).as_bytes() == hash;
            if !blocks.next().is_some_and(same) {
                unlike |= 1 << number;
            }
        }
        self.outcome(unlike)
    }

    /// What comes of it if the disk is, or is not, zero there.
    pub(super) fn with_answer(&self, zero: bool) -> Compared {
        self.outcome(u128::from(!zero))
    }
}

/// Parts of the disk; all of it where it is not known which.
#[derive(Debug)]
enum Parts {
    All,
    These(DirtyMap),
}

impl Parts {
    fn none() -> Self {
        Self::These(DirtyMap::default())
    }

    fn meets(&self, offset: u64, end: u64) -> bool {
        match self {
            Self::All => true,
            Self::These(map) => map.meets(offset, end.saturating_sub(offset)),
        }
    }
}

/// What is in the journal and may not be in the disk.
#[derive(Debug)]
pub(super) struct Journaled {
    /// What was appended since the last seal, and what is sealed.
    open: Parts,
    sealed: Parts,
    /// The number at which that was sealed.
    sealed_at: Option<u64>,
}

impl Default for Journaled {
    /// A process that has just started does not know.
    fn default() -> Self {
        Self {
            open: Parts::All,
            sealed: Parts::none(),
            sealed_at: None,
        }
    }
}

impl Journaled {
    /// The journal is empty.
    pub(super) fn begin(&mut self) {
        self.open = Parts::none();
        self.sealed = Parts::none();
        self.sealed_at = None;
    }

    /// A change goes into the journal.
    pub(super) fn append(&mut self, offset: u64, content: &Content) {
        if let Parts::These(map) = &mut self.open {
            map.mark(offset, content.covers());
        }
    }

    /// What was appended is sealed with that number. While what was sealed before is not carried over, it counts as not
    /// sealed: more than there is does no harm.
    pub(super) fn seal(&mut self, seq: u64) {
        if self.sealed_at.is_none() {
            self.sealed = std::mem::replace(&mut self.open, Parts::none());
            self.sealed_at = Some(seq);
        }
    }

    /// What was sealed up to that place is in the disk.
    pub(super) fn carried_over(&mut self, upto: Upto) {
        let all = match upto {
            Upto::Nothing => false,
            Upto::Sealed => true,
            Upto::Cut(seq) => self.sealed_at.is_some_and(|at| at <= seq),
        };
        if all {
            self.sealed = Parts::none();
            self.sealed_at = None;
        }
    }

    /// Something went wrong with the journal or the disk.
    pub(super) fn doubt(&mut self) {
        self.open = Parts::All;
    }

    fn holds(&self, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len);
        self.open.meets(offset, end) || self.sealed.meets(offset, end)
    }
}

impl Target {
    /// An operation that compares begins.
    pub(super) fn begin_comparing(&mut self, op: OpId) {
        if self.writes_to_journal()
            && let Some(compare) = self.apply.comparing(op)
        {
            compare.leave_out(&self.journaled);
        }
    }

    /// What cannot be read is not the same; whether the disk is of any use shows when it is written.
    pub(super) fn on_read(&mut self, op: OpId, result: std::io::Result<Bytes>) {
        let data = result.unwrap_or_default();
        if let Some(compare) = self.apply.comparing(op) {
            let compared = compare.with(&data);
            self.conclude(op, compared);
        }
    }

    /// The same of a part that may be zero.
    pub(super) fn on_zeroes(&mut self, op: OpId, result: &std::io::Result<bool>) {
        let zero = result.as_ref().is_ok_and(|zero| *zero);
        if let Some(compare) = self.apply.comparing(op) {
            let compared = compare.with_answer(zero);
            self.conclude(op, compared);
        }
    }

    /// Looks have no place in what is acknowledged: each is answered by itself.
    pub(super) fn say_seen(&mut self, now: Micros) {
        for Seen {
            id,
            unlike,
            unknown,
        } in self.apply.take_seen()
        {
            self.send(
                now,
                Message::Seen {
                    id,
                    unlike,
                    unknown,
                },
            );
        }
    }
}
