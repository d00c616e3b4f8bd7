//! Moving one block to another place of the file while the disk is in use.
//!
//! ```text
//!   writes to the block go to the engine, and wait there
//!   │ whoever looked the block up before has ended
//!   copied (a hole stays a hole)
//!   │ room in the next flush round
//!   the entry names the new place; the old one is freed; the writes go on
//! ```
//!
//! Nothing waits for a flush: the entry becomes durable in a flush round, whose data flush covers the
//! copy. Until then a crash shows the block at its old place, which is freed only after that round. Reads
//! go on throughout. A block that turns out to hold nothing but zeros is dropped instead.
//!
//! Writes to a block that is present in part wait longer: until its entry is durable. Bits of its sectors may
//! become durable before an entry of the same round, and would then speak of sectors at the old place that
//! were never written there.

use std::collections::BTreeMap;

use super::Vhdx;
use super::blocks::{FULLY_PRESENT, OFFSET_MASK, ZERO};
use super::child::PARTIALLY_PRESENT;
use crate::engine::map::Generation;
use crate::engine::ops::Purpose;
use crate::engine::step::Run;
use crate::engine::{Engine, FileOpKind, Outcome, PAGE_ENTRIES, RequestId};
use crate::error::Error;
use crate::units::FileOffset;

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is looked whether the block holds anything; writes go on.
    Looking,
    /// Writes are diverted; those from before this generation are waited for.
    Quiescing(Generation),
    /// It is copied, or looked at once more.
    Copying,
    /// It is at its new place, or found to hold nothing but zeros.
    Copied { zero: bool },
    /// It is present in part, and its entry names the new place; it is not written before this flush
    /// round has ended.
    Published(u64),
}

/// A block on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    entry: u64,
    /// Where it goes; nowhere if it is only to be dropped.
    to: Option<u64>,
    stage: Stage,
}

/// What moves of one disk have done.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// By BAT index.
    under_way: BTreeMap<u64, Move>,
    /// Blocks moved and dropped so far.
    pub(super) moved: u64,
    pub(super) dropped: u64,
    /// Why one could not be done.
    pub(super) error: Option<Error>,
}

impl Vhdx {
    /// Whether the block of entry `index` is being moved, so that it must not be changed.
    pub(super) fn is_moving(&self, index: u64) -> bool {
        let of = self.moves.under_way.get(&index);
        of.is_some_and(|of| of.stage != Stage::Looking)
    }

    /// Whether entries of `page` are in use by moves.
    pub(super) fn moves_on(&self, page: u64) -> bool {
        let first = page * PAGE_ENTRIES as u64;
        let end = first + PAGE_ENTRIES as u64;
        self.moves.under_way.range(first..end).next().is_some()
    }
}

impl Engine {
    /// How many blocks are on their way.
    pub(super) fn moves_under_way(&self) -> usize {
        let moves = |vhdx: &Vhdx| vhdx.moves.under_way.len();
        self.vhdx.as_deref().map_or(0, moves)
    }

    /// Whether any is.
    pub(in crate::engine) fn moving(&self) -> bool {
        self.moves_under_way() > 0
    }

    /// Whether the block of entry `index` is being moved.
    pub(super) fn is_moving(&self, index: u64) -> bool {
        self.vhdx
            .as_deref()
            .is_some_and(|vhdx| vhdx.is_moving(index))
    }

    /// Whether a move waits for workers.
    pub(in crate::engine) fn moves_wait(&self) -> bool {
        let waits = |of: &Move| matches!(of.stage, Stage::Quiescing(_));
        let moves = self.vhdx.as_deref().map(|vhdx| &vhdx.moves.under_way);
        moves.is_some_and(|moves| moves.values().any(waits))
    }

    /// Move the present block of entry `index`, whose page is in memory, to `to`, which is taken for it.
    pub(super) fn move_block(&mut self, index: u64, entry: u64, to: u64) {
        self.divert(index, entry, Some(to));
    }

    /// Drop the block of entry `index`, whose page is in memory, if it holds nothing but zeros.
    pub(super) fn look_at_block(&mut self, index: u64, entry: u64) {
        let (to, stage) = (None, Stage::Looking);
        self.set_move(index, Move { entry, to, stage });
        self.ask_holes(index, entry);
    }

    fn set_move(&mut self, index: u64, of: Move) {
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.moves.under_way.insert(index, of);
        }
    }

    fn ask_holes(&mut self, index: u64, entry: u64) {
        let len = self.block_size();
        let at = FileOffset(entry & OFFSET_MASK);
        let kind = FileOpKind::Holes { at, len };
        self.ops.push(Purpose::Move(index), kind);
    }

    fn block_size(&self) -> u64 {
        self.vhdx.as_ref().map_or(0, |vhdx| vhdx.layout.block_size)
    }

    fn divert(&mut self, index: u64, entry: u64, to: Option<u64>) {
        self.map.set_moving(index, true);
        let stage = Stage::Quiescing(self.map.advance());
        self.set_move(index, Move { entry, to, stage });
        // Nobody may have anything in flight.
        self.wake = true;
    }

    /// Take every move as far as it goes now; false if `id` is blocked until one can end.
    pub(super) fn moves_go(&mut self, id: RequestId) -> bool {
        let all: Vec<(u64, Move)> = self.vhdx.as_ref().map_or_else(Vec::new, |vhdx| {
            let moves = vhdx.moves.under_way.iter();
            moves.map(|(index, of)| (*index, *of)).collect()
        });
        for (index, of) in all {
            match of.stage {
                Stage::Quiescing(generation) if self.map.quiesced(generation) => {
                    self.copy_block(index, of);
                }
                Stage::Copied { zero } => match self.ready_to_change(id, index) {
                    Ok(()) => self.arrived(index, of, zero),
                    Err(Run::Failed(error)) => self.not_moved(index, of, zero, Some(error)),
                    Err(_) => return false,
                },
                Stage::Published(round) => self.published(index, round),
                _ => {}
            }
        }
        true
    }

    fn copy_block(&mut self, index: u64, of: Move) {
        let stage = Stage::Copying;
        self.set_move(index, Move { stage, ..of });
        let Some(to) = of.to else {
            return self.ask_holes(index, of.entry);
        };
        let kind = FileOpKind::Copy {
            from: FileOffset(of.entry & OFFSET_MASK),
            to: FileOffset(to),
            len: self.block_size(),
        };
        self.ops.push(Purpose::Move(index), kind);
    }

    /// It was copied, or looked at.
    pub(in crate::engine) fn block_moved(&mut self, index: u64, outcome: Outcome) {
        self.wake = true;
        let len = self.block_size();
        let Some(vhdx) = &mut self.vhdx else { return };
        let Some(of) = vhdx.moves.under_way.get(&index).copied() else {
            return;
        };
        let zero = match &outcome {
            Outcome::Holes(extents) => {
                let zeros = extents.iter().take_while(|extent| extent.zero);
                zeros.map(|extent| extent.len).sum::<u64>() >= len
            }
            _ => false,
        };
        match (of.stage, outcome) {
            (_, Outcome::Failed(error)) => {
                let error = Error::io("a block can not be moved", error);
                self.not_moved(index, of, false, Some(error));
            }
            (Stage::Looking, _) if zero && self.map.entry(index) == Some(of.entry) => {
                self.divert(index, of.entry, None);
            }
            (Stage::Copying, _) if zero || of.to.is_some() => {
                let stage = Stage::Copied { zero };
                self.set_move(index, Move { stage, ..of });
            }
            _ => self.not_moved(index, of, false, None),
        }
    }

    /// The block stays where it is.
    fn not_moved(&mut self, index: u64, of: Move, zero: bool, error: Option<Error>) {
        if of.stage != Stage::Looking {
            self.map.set_moving(index, false);
        }
        if let Some(to) = of.to {
            self.give_back(to, zero);
        }
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.moves.under_way.remove(&index);
            if vhdx.moves.error.is_none() {
                vhdx.moves.error = error;
            }
        }
        self.wake = true;
    }

    /// The block has a new place, and `round` makes that durable.
    fn published(&mut self, index: u64, round: u64) {
        if self.flusher.ended < round {
            self.flusher.wanted |= self.flusher.begun < round;
            return;
        }
        if let Some(vhdx) = &mut self.vhdx {
            vhdx.moves.under_way.remove(&index);
        }
        self.wake = true;
    }

    /// The block's entry becomes what it has to be.
    fn arrived(&mut self, index: u64, of: Move, zero: bool) {
        let Some(vhdx) = &mut self.vhdx else { return };
        let may_drop = !vhdx.layout.leave_allocated && of.entry & 7 == FULLY_PRESENT;
        vhdx.moves.under_way.remove(&index);
        let value = match of.to {
            _ if zero && may_drop => {
                vhdx.moves.dropped += 1;
                ZERO
            }
            Some(to) => {
                vhdx.moves.moved += 1;
                to | of.entry & 7
            }
            None => return self.map.set_moving(index, false),
        };
        self.change_entry(index, value);
        self.free_space(of.entry & OFFSET_MASK);
        if value & 7 == PARTIALLY_PRESENT {
            let stage = Stage::Published(self.flusher.begun + 1);
            self.set_move(index, Move { stage, ..of });
        }
        if let (ZERO, Some(to)) = (value, of.to) {
            self.give_back(to, true);
        }
        self.wake = true;
    }
}
