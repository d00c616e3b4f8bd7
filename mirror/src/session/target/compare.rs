//! Comparing by hashes: what the target has of a part of the disk, and what of that counts.
//!
//! Must never call a block the same that is not, nor one of which something later waits in the journal.

use super::{OpId, Target, Upto};
use crate::dirty::DirtyMap;
use crate::wire::{Content, Probe};

/// What a part of the disk is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compare {
    probe: Probe,
    /// Blocks that are different whatever is read.
    differs: u128,
}

impl Compare {
    pub(super) fn new(probe: Probe) -> Self {
        Self { probe, differs: 0 }
    }

    pub(super) fn len(&self) -> u64 {
        self.probe.len
    }

    /// Of these blocks the disk does not say what is there: bytes of them are in the journal.
    fn leave_out(&mut self, journal: &Journaled) {
        let block = u64::from(self.probe.block);
        for number in 0..self.probe.hashes.len() as u64 {
            let from = self.probe.offset + number * block;
            if journal.holds(from, block) {
                self.differs |= 1 << number;
            }
        }
    }

    /// The blocks that are different from what was read.
    pub(super) fn differs(&self, data: &[u8]) -> u128 {
        let mut blocks = data.chunks(self.probe.block as usize);
        let mut differs = self.differs;
        for (number, hash) in self.probe.hashes.iter().enumerate() {
            let same = |block: &[u8]| blake3::hash(block).as_bytes() == hash;
            if !blocks.next().is_some_and(same) {
                differs |= 1 << number;
            }
        }
        differs
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
            Self::These(map) => map.next(offset).is_some_and(|next| next < end),
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
    pub(super) fn on_read(&mut self, op: OpId, result: std::io::Result<bytes::Bytes>) {
        let data = result.unwrap_or_default();
        self.apply.compared(op, &data);
    }
}
