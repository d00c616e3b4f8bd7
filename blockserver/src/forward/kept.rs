//! What was answered elsewhere and would be lost there in a crash.

use std::collections::VecDeque;

use super::ForwardRequest;

/// Changes, and bytes of them, that are kept before a flush of our own makes an end of it.
pub(super) const KEEP_CHANGES: usize = 4096;
const KEEP_BYTES: usize = 32 << 20;

/// Changes that the server has answered and may still lose.
#[derive(Default)]
pub(super) struct Kept {
    /// Oldest first; the number of the first is `first`.
    pub(super) changes: VecDeque<ForwardRequest>,
    pub(super) first: u64,
    pub(super) bytes: usize,
    /// A flush of our own is on its way.
    pub(super) flushing: bool,
    /// A change could not be done again: no flush succeeds any more.
    pub(super) lost: bool,
    /// Nothing more is kept.
    pub(super) none: bool,
}

impl Kept {
    /// The number that the next change gets.
    pub(super) fn next(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    pub(super) fn push(&mut self, change: ForwardRequest) {
        self.bytes += change.data.len();
        self.changes.push_back(change);
    }

    /// Everything before this number is durable.
    pub(super) fn forget_before(&mut self, number: u64) {
        while self.first < number
            && let Some(change) = self.changes.pop_front()
        {
            self.bytes -= change.data.len();
            self.first += 1;
        }
    }

    pub(super) fn is_much(&self) -> bool {
        self.bytes >= KEEP_BYTES || self.changes.len() >= KEEP_CHANGES
    }
}
