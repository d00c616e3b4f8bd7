//! Unaligned writes: alone on the disk, since what surrounds them is read and written back.
//!
//! A write whose file range is not a multiple of the file's alignment (`O_DIRECT`) becomes a
//! read-merge-write. A neighbour written meanwhile would be undone by it. So all writes are diverted
//! to the engine, those in flight are waited for, and the unaligned ones run one after another.

use std::collections::VecDeque;

use super::map::Generation;
use super::{Engine, RequestId};

/// Who is alone on the disk, and who wants to be.
#[derive(Debug, Default)]
pub(super) struct Fence {
    waiting: VecDeque<RequestId>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Writes are diverted; those that began before this generation are waited for.
    Closing(Generation),
    /// This request is alone.
    Held(RequestId),
    /// Whoever was alone has ended; the next one may be.
    Free,
}

impl Fence {
    /// Whether `request` must wait because another is, or is about to be, alone.
    pub(super) fn shuts_out(&self, request: RequestId) -> bool {
        match self.state {
            State::Open => false,
            State::Closing(_) | State::Free => true,
            State::Held(holder) => holder != request,
        }
    }

    /// Whether nobody is alone or about to be.
    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether `request` is alone.
    pub(super) fn holds(&self, request: RequestId) -> bool {
        self.state == State::Held(request)
    }
}

impl Engine {
    /// `request` wants to be alone; it is stepped again when it is.
    pub(super) fn fence_want(&mut self, request: RequestId) {
        self.fence.waiting.push_back(request);
        if self.fence.state == State::Open {
            self.map.set_diverted(true);
            let generation = self.map.advance();
            self.map.set_attention(true);
            self.fence.state = State::Closing(generation);
        }
        self.wake = true;
    }

    /// Go on if those that were waited for have ended: the next one is alone, or the fence opens.
    ///
    /// A loop, since each one may end at once, and any number may wait.
    pub(super) fn fence_poll(&mut self) {
        if let State::Closing(generation) = self.fence.state
            && self.map.quiesced(generation)
        {
            self.fence.state = State::Free;
        }
        while self.fence.state == State::Free {
            if let Some(next) = self.fence.waiting.pop_front() {
                self.fence.state = State::Held(next);
                self.step(next);
            } else {
                self.fence.state = State::Open;
                self.map.set_diverted(false);
                self.wake = true;
            }
        }
    }

    /// `request` has ended; [`Engine::fence_poll`] goes on.
    pub(super) fn fence_release(&mut self, request: RequestId) {
        if self.fence.holds(request) {
            self.fence.state = State::Free;
            self.wake = true;
        }
    }
}
