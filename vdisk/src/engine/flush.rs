//! Flush rounds: guest flushes that wait together, and what makes them durable.
//!
//! ```text
//!   Idle ──► Data ──────────────────────────────► Idle      nothing pending: one host flush
//!              └──► Log (writes) ──► LogFlush ──► Idle      pending pages: two host flushes
//! ```
//!
//! Pending pages are copied when the round begins, before the data flush; exactly those copies are
//! logged. A flush that arrives during a round waits for the next one.

use super::ops::Purpose;
use super::requests::failed;
use super::{Engine, FileOpKind, RequestId};

/// The rounds of one engine.
#[derive(Debug, Default)]
pub(super) struct Flusher {
    /// Requests for the next round.
    waiting: Vec<RequestId>,
    /// Requests of the round that runs.
    current: Vec<RequestId>,
    pub(super) phase: Phase,
    /// Rounds begun so far.
    pub(super) begun: u64,
    /// The last round that ended.
    pub(super) ended: u64,
    /// A round is wanted even if no request waits.
    pub(super) wanted: bool,
}

/// Where the running round stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// None runs.
    #[default]
    Idle,
    /// The data flush runs.
    Data,
    /// Log space is being made by writing logged pages to their places.
    Space,
    /// Log entries are being written.
    Log,
    /// The log flush runs.
    LogFlush,
}

impl Engine {
    /// `request` completes when all that completed before is durable.
    pub(super) fn flush_wait(&mut self, request: RequestId) {
        if self.map.read_only() {
            self.requests.finish(request);
            return;
        }
        self.flusher.waiting.push(request);
        self.flush_kick();
    }

    /// Begin a round if one is wanted and none runs.
    pub(super) fn flush_kick(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let wanted = self.flusher.wanted || !self.flusher.waiting.is_empty();
        if !wanted || self.flusher.phase != Phase::Idle {
            return;
        }
        self.flusher.wanted = false;
        self.flusher.begun += 1;
        self.flusher.current = std::mem::take(&mut self.flusher.waiting);
        self.flusher.phase = Phase::Data;
        self.round_begin();
        self.ops.push(Purpose::RoundData, FileOpKind::Flush);
    }

    /// The data flush ended well.
    pub(super) fn flush_data_done(&mut self) {
        if self.round_data_durable() {
            self.flusher.phase = Phase::Space;
            self.round_log();
        } else {
            self.flush_round_done();
        }
    }

    /// Everything of the round is durable.
    pub(super) fn flush_round_done(&mut self) {
        self.flusher.phase = Phase::Idle;
        self.flusher.ended = self.flusher.begun;
        for request in std::mem::take(&mut self.flusher.current) {
            self.requests.finish(request);
        }
        self.wake = true;
        self.session_go_on();
    }

    /// A flush or a write of metadata failed: what is on the medium is unknown from now on.
    ///
    /// The page cache may have dropped what it failed to write, so no retry can be believed.
    pub(super) fn fail_disk(&mut self, why: &str) {
        self.failed.get_or_insert_with(|| why.to_owned());
        self.map.set_armed(false);
        self.map.set_unpublished(true);
        let mut lost = std::mem::take(&mut self.flusher.current);
        lost.append(&mut self.flusher.waiting);
        for request in lost {
            self.requests.fail(request, failed(why));
        }
        self.session_failed(failed(why));
        self.wake = true;
    }
}
