//! What is on its way to the server, and what it has and may still lose.
//!
//! Must never have two changes of one byte under way, since the server may do them in any order, and never forget one
//! that was not answered before a flush which succeeded.

use std::collections::BTreeMap;

use crate::dirty::DirtyMap;
use crate::session::OpId;

/// What is to become of a range at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What this host has there.
    Data,
    /// Zero.
    Zeroes,
}

/// A range that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) kind: Kind,
    pub(super) step: Step,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is read here.
    Reading,
    /// The server says whether it is zero there.
    Looking,
    /// The server changes it.
    Changing,
}

/// What the server has and may still lose.
#[derive(Debug, Default)]
struct Volatile {
    data: DirtyMap,
    zeroes: Vec<(u64, u64)>,
}

impl Volatile {
    fn add(&mut self, piece: &Piece) {
        match piece.kind {
            Kind::Data => self.data.mark(piece.offset, piece.len),
            Kind::Zeroes => match self.zeroes.last_mut() {
                Some((offset, len)) if *offset + *len == piece.offset => *len += piece.len,
                _ => self.zeroes.push((piece.offset, piece.len)),
            },
        }
    }

    fn is_empty(&self) -> bool {
        self.data.is_empty() && self.zeroes.is_empty()
    }

    fn drain(&mut self, lost: &mut Vec<(Kind, u64, u64)>) {
        while let Some((offset, len)) = self.data.claim(0, u64::MAX) {
            lost.push((Kind::Data, offset, len));
        }
        let zeroes = self.zeroes.drain(..);
        lost.extend(zeroes.map(|(offset, len)| (Kind::Zeroes, offset, len)));
    }
}

/// All that the server may not have for good.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    flying: BTreeMap<OpId, Piece>,
    /// Bytes that have to be sent of what is flying.
    bytes: u64,
    /// Answered since the flush under way was asked for, or the last one.
    answered: Volatile,
    /// Answered before that.
    covered: Volatile,
    flush: Option<OpId>,
}

impl Pieces {
    /// Whether something is under way that meets the range.
    pub(super) fn meet(&self, offset: u64, len: u64) -> bool {
        let end = offset + len;
        let mut flying = self.flying.values();
        flying.any(|piece| piece.offset < end && offset < piece.offset + piece.len)
    }

    pub(super) fn begin(&mut self, op: OpId, piece: Piece) {
        if piece.kind == Kind::Data {
            self.bytes += piece.len;
        }
        self.flying.insert(op, piece);
    }

    pub(super) fn get(&self, op: OpId) -> Option<Piece> {
        self.flying.get(&op).copied()
    }

    /// A piece goes on to its next step.
    pub(super) fn goes_on(&mut self, op: OpId, step: Step) {
        if let Some(piece) = self.flying.get_mut(&op) {
            piece.step = step;
        }
    }

    /// It is under way no more.
    pub(super) fn end(&mut self, op: OpId) -> Option<Piece> {
        let piece = self.flying.remove(&op)?;
        if piece.kind == Kind::Data {
            self.bytes = self.bytes.saturating_sub(piece.len);
        }
        Some(piece)
    }

    /// The server has it, until it crashes.
    pub(super) fn is_there(&mut self, piece: &Piece) {
        self.answered.add(piece);
    }

    /// Parts of that kind that are under way: offset and length.
    pub(super) fn flying(&self, kind: Kind) -> impl Iterator<Item = (u64, u64)> {
        let flying = self.flying.values().filter(move |piece| piece.kind == kind);
        flying.map(|piece| (piece.offset, piece.len))
    }

    /// How many are under way.
    pub(super) fn count(&self) -> usize {
        self.flying.len()
    }

    /// How many are being read here.
    pub(super) fn reading(&self) -> usize {
        let reading = |piece: &&Piece| piece.step == Step::Reading;
        self.flying.values().filter(reading).count()
    }

    /// Whether parts are being made zero, which may take the server a while.
    pub(super) fn is_zeroing(&self) -> bool {
        let mut flying = self.flying.values();
        flying.any(|piece| piece.kind == Kind::Zeroes)
    }

    /// Bytes that are being made zero, or looked at for that.
    pub(super) fn zeroing(&self) -> u64 {
        self.flying(Kind::Zeroes).map(|(_, len)| len).sum()
    }

    /// Whether a flush is under way.
    pub(super) fn is_flushing(&self) -> bool {
        self.flush.is_some()
    }

    /// Bytes under way.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of data that the server has and may still lose.
    pub(super) fn volatile(&self) -> u64 {
        self.answered.data.bytes() + self.covered.data.bytes()
    }

    /// Whether the server can lose nothing.
    pub(super) fn is_durable(&self) -> bool {
        self.answered.is_empty() && self.covered.is_empty()
    }

    /// Whether a flush would be of use, and none is under way.
    pub(super) fn may_flush(&self) -> bool {
        self.flush.is_none() && !self.answered.is_empty()
    }

    /// A flush is asked for: it covers what was answered before.
    pub(super) fn begin_flush(&mut self, op: OpId) {
        self.flush = Some(op);
        // Nothing is covered any more once the last one has ended.
        self.covered = std::mem::take(&mut self.answered);
    }

    pub(super) fn is_flush(&self, op: OpId) -> bool {
        self.flush == Some(op)
    }

    /// It succeeded: bytes of data that are durable now.
    pub(super) fn flushed(&mut self) -> u64 {
        self.flush = None;
        std::mem::take(&mut self.covered).data.bytes()
    }

    /// It failed: the server may have lost what it covered.
    pub(super) fn not_flushed(&mut self) -> Vec<(Kind, u64, u64)> {
        self.flush = None;
        let mut lost = Vec::new();
        self.covered.drain(&mut lost);
        lost
    }

    /// The server may have crashed: what it had and may have lost.
    pub(super) fn lose_volatile(&mut self) -> Vec<(Kind, u64, u64)> {
        let mut lost = self.not_flushed();
        self.answered.drain(&mut lost);
        lost
    }

    /// What answered pieces may be lost no more, whether or not a flush covered them.
    #[cfg(test)]
    pub(super) fn forget_answered(&mut self) {
        self.answered = Volatile::default();
    }

    /// What was not answered will never be.
    pub(super) fn lose_flying(&mut self) -> Vec<(Kind, u64, u64)> {
        self.bytes = 0;
        let flying = std::mem::take(&mut self.flying).into_values();
        flying
            .map(|piece| (piece.kind, piece.offset, piece.len))
            .collect()
    }
}
