//! What was answered elsewhere and would be lost there in a crash.

use std::collections::VecDeque;

use super::{ForwardRequest, Job, State};
use crate::worker::Action;

/// Changes, and bytes of them, that are kept before a flush of our own makes an end of it.
pub(super) const KEEP_CHANGES: usize = 4096;
const KEEP_BYTES: usize = 32 << 20;
/// How many times as much may be kept, while no flush succeeds.
const FULL: usize = 4;

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

    fn is_much(&self) -> bool {
        self.bytes >= KEEP_BYTES || self.changes.len() >= KEEP_CHANGES
    }

    fn is_full(&self) -> bool {
        self.bytes >= FULL * KEEP_BYTES || self.changes.len() >= FULL * KEEP_CHANGES
    }
}

/// Whether what a request changes can be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// It can, or need not be.
    There,
    /// A flush is on its way that may make room.
    Later,
    /// The last flush failed: the request does as well. The next one is sent.
    None,
}

impl State {
    /// Have the server flush when much is kept.
    pub(super) fn flush_if_due(&mut self) {
        if !self.kept.is_much() || self.kept.flushing {
            return;
        }
        self.kept.flushing = true;
        // Before all others also on a new connection: changes may wait for it.
        let (number, covers) = (0, 0);
        let request = ForwardRequest::flush();
        let done = Box::new(|_| {});
        #[rustfmt::skip]
        self.waiting.push_front(Job { number, request, covers, done });
    }

    /// Whether there is room for what a request changes.
    pub(super) fn room_for(&mut self, action: Action) -> Room {
        if !action.changes() || self.kept.none || self.through || !self.kept.is_full() {
            return Room::There;
        }
        if self.kept.flushing {
            return Room::Later;
        }
        self.flush_if_due();
        Room::None
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn job(action: Action) -> Job {
        let data = match action {
            Action::Write { .. } => Bytes::from(vec![1; 64 << 10]),
            _ => Bytes::new(),
        };
        Job {
            number: 7,
            request: ForwardRequest {
                action,
                offset: 0,
                len: data.len() as u64,
                data,
            },
            covers: 0,
            done: Box::new(|_| {}),
        }
    }

    const WRITE: Action = Action::Write { fua: false };

    /// As many changes as may be, none of which a flush has covered: each that is sent fails.
    fn full() -> State {
        let mut state = State::default();
        while state.room_for(WRITE) == Room::There {
            assert!(state.kept.bytes <= FULL * KEEP_BYTES, "it is never full");
            state.answered(&job(WRITE), true);
            while let Some(own) = state.waiting.pop_front() {
                state.answered(&own, false);
            }
        }
        state.waiting.clear();
        state.kept.flushing = false;
        state
    }

    #[test]
    fn what_no_flush_covers_is_kept_up_to_a_bound_and_more_of_it_fails_until_one_does() {
        let mut state = full();
        assert_eq!(state.room_for(WRITE), Room::None);
        let mut own = state.waiting.pop_front().expect("a flush is sent");
        // While that is on its way nothing fails that it may make room for.
        assert_eq!(state.room_for(WRITE), Room::Later);
        assert_eq!(state.room_for(Action::Read), Room::There);
        own.covers = state.kept.next();
        state.answered(&own, true);
        assert_eq!(state.room_for(WRITE), Room::There);
        assert!(state.kept.changes.is_empty());
    }

    #[test]
    fn a_flush_for_which_changes_wait_is_before_them_also_on_a_new_connection() {
        let mut state = full();
        assert_eq!(state.room_for(WRITE), Room::None);
        let own = state.waiting.pop_front().expect("a flush is sent");
        state.waiting.push_back(job(WRITE));
        state.sent.insert(3, own);
        state.take_back();
        let first = state.waiting.front().expect("it is sent again");
        assert_eq!(first.request.action, Action::Flush);
    }
}
