//! Flush rounds: guest flushes that wait together, and what makes them durable.
//!
//! ```text
//!              one host flush                  the next host flush
//!   round n    data ──► its pages are logged ──► log ──► ended
//!   round n+1                                    data ──► its pages are logged ──► log ──► ended
//!   round n+2                       its pages are logged at once ──► data and log ──► ended
//! ```
//!
//! A round copies the pending pages when its data flush begins; exactly those copies are logged, once
//! that flush has ended; the host flush after that makes the log durable, and the round ends. That
//! same host flush is the data flush of the next round, if one is wanted. So a flush alone costs two
//! host flushes, and many in a row cost little more than one each. A round with nothing pending ends
//! with its data flush. Rounds end in the order in which they began.
//!
//! Where all that is pending is entries of new blocks whose space reads as zero, durably, no data flush is
//! needed: a crash that keeps such an entry and loses what was written to its block leaves zeros, as if the
//! entry had been lost. Such a round is logged when it begins, and one host flush ends it.
//!
//! One host flush runs at a time, and none while log entries are being written.

use bytes::Bytes;

use super::ops::Purpose;
use super::requests::failed;
use super::{Engine, FileOpKind, RequestId};
use crate::units::FileOffset;

/// The rounds of one engine.
#[derive(Debug, Default)]
pub(super) struct Flusher {
    /// Requests for the next round.
    waiting: Vec<RequestId>,
    /// A round is wanted even if no request waits.
    pub(super) wanted: bool,
    /// Rounds begun so far.
    pub(super) begun: u64,
    /// The last round that ended.
    pub(super) ended: u64,
    /// A host flush runs.
    flushing: bool,
    /// The round whose data that flush makes durable.
    data: Option<Round>,
    /// The round whose pages are being logged.
    pub(super) log: Option<Logging>,
}

/// Guest flushes that wait together.
#[derive(Debug)]
pub(super) struct Round {
    number: u64,
    requests: Vec<RequestId>,
    pub(super) copied: Copied,
}

/// What a round found when it began.
#[derive(Debug, Default)]
pub(super) struct Copied {
    /// Copies of the pending pages, with their places.
    pub(super) pages: Vec<(FileOffset, Bytes)>,
}

/// A round whose data is durable, or need not be before its pages are, on its way through the log.
#[derive(Debug)]
pub(super) struct Logging {
    pub(super) round: Round,
    pub(super) stage: Stage,
    /// Sequence number of its first entry.
    pub(super) sequence: u64,
}

/// How far the logging of a round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The log has no room: logged pages must reach their places first.
    NoRoom,
    /// So many writes of its entries run.
    Writing(usize),
    /// Its entries are written.
    Written,
    /// The host flush that makes them durable runs.
    Flushing,
}

impl Engine {
    /// `request` completes when all that completed before is durable.
    pub(super) fn flush_wait(&mut self, request: RequestId) {
        if self.map.read_only() {
            self.requests.finish(request);
            return;
        }
        if let Some(why) = &self.failed {
            self.requests.fail(request, failed(why));
            return;
        }
        self.flusher.waiting.push(request);
        self.flush_kick();
    }

    /// Begin a host flush if one is of use and none runs.
    pub(super) fn flush_kick(&mut self) {
        if self.failed.is_some() || self.flusher.flushing {
            return;
        }
        let at_once = self.may_log_at_once();
        let flusher = &mut self.flusher;
        let round_wanted = flusher.wanted || !flusher.waiting.is_empty();
        let (of_use, round_may_begin) = match flusher.log.as_mut().map(|log| &mut log.stage) {
            None if round_wanted && at_once => {
                let round = self.round_begin();
                return self.log_begin(round);
            }
            None => (round_wanted, true),
            Some(stage @ Stage::Written) => {
                *stage = Stage::Flushing;
                // One that can be logged at once ends no later if it begins when this flush has ended.
                (true, !at_once)
            }
            Some(Stage::NoRoom) => (self.flush_makes_room(), false),
            Some(Stage::Writing(_) | Stage::Flushing) => (false, false),
        };
        if !of_use {
            return;
        }
        if round_wanted && round_may_begin {
            self.flusher.data = Some(self.round_begin());
        }
        self.flusher.flushing = true;
        self.log_flush_begins();
        self.ops.push(Purpose::HostFlush, FileOpKind::Flush);
    }

    fn round_begin(&mut self) -> Round {
        let copied = self.copy_pending();
        let flusher = &mut self.flusher;
        flusher.wanted = false;
        flusher.begun += 1;
        Round {
            number: flusher.begun,
            requests: std::mem::take(&mut flusher.waiting),
            copied,
        }
    }

    /// The pages of `round` may be logged.
    fn log_begin(&mut self, round: Round) {
        self.data_durable();
        self.flusher.log = Some(Logging {
            round,
            stage: Stage::NoRoom,
            sequence: 0,
        });
        self.log_round();
    }

    /// The host flush ended well.
    pub(super) fn host_flush_done(&mut self) {
        self.flusher.flushing = false;
        self.log_flush_ended();
        if self.flusher.log.as_ref().map(|log| log.stage) == Some(Stage::Flushing)
            && let Some(Logging {
                mut round,
                sequence,
                ..
            }) = self.flusher.log.take()
        {
            self.logged(std::mem::take(&mut round.copied.pages), sequence);
            self.round_done(round);
        }
        if let Some(round) = self.flusher.data.take() {
            if round.copied.pages.is_empty() {
                self.round_done(round);
            } else {
                self.log_begin(round);
            }
        }
        self.log_round();
        self.session_go_on();
        self.wake = true;
    }

    /// Everything of `round` is durable.
    fn round_done(&mut self, round: Round) {
        self.flusher.ended = round.number;
        for request in round.requests {
            self.requests.finish(request);
        }
        self.wake = true;
    }

    /// A flush or a write of metadata failed: what is on the medium is unknown from now on.
    ///
    /// The page cache may have dropped what it failed to write, so no retry can be believed.
    pub(super) fn fail_disk(&mut self, why: &str) {
        self.failed.get_or_insert_with(|| why.to_owned());
        self.map.set_failed();
        self.map.set_armed(false);
        self.map.set_unpublished(true);
        let flusher = &mut self.flusher;
        let rounds = [flusher.log.take().map(|log| log.round), flusher.data.take()];
        let mut lost: Vec<_> = rounds
            .into_iter()
            .flatten()
            .flat_map(|round| round.requests)
            .collect();
        lost.append(&mut flusher.waiting);
        for request in lost {
            self.requests.fail(request, failed(why));
        }
        self.session_failed(failed(why));
        self.resize_lost();
        self.wake = true;
    }
}
