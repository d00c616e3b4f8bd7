//! Markers: what is made durable when one is reached, and how the disk follows the source as a whole.
//!
//! ```text
//!  Direct ──consistent marker: flush──► Starting ──journal is there──► Recording ──record durable──► Following
//! ```
//!
//! While much is missing, what comes is written into the disk at once (*direct*). From the first consistent marker
//! on the disk is *following*: what comes goes into a journal, each marker makes that durable, and a consistent one
//! seals it. Only what is sealed is carried over into the disk, so that disk and journal hold a state of the source's
//! disk at every moment. Must never let anything into the disk or the sealed part of the journal that came after the
//! marker which sealed it.

use std::collections::VecDeque;

use crate::arbiter::ArbiterName;

use super::cuts::Cuts;
use super::{
    ConnId, DiskOp, Error, Final, Group, Hello, Marker, Message, Micros, OpId, Result, State,
    Target, TargetAction, Upto,
};

/// A marker that was reached in the stream and awaits its flush.
#[derive(Clone, Debug)]
struct Reached {
    id: u64,
    seq: u64,
    consistent: bool,
    /// Through how many disks of its group it goes; 0 when it is no cut.
    disks: u16,
    /// Everything before this operation has to be written first.
    before: OpId,
    /// The attempt, when it is the final one.
    last: Option<Last>,
}

/// The attempt of a final marker, and who may be asked for the disk then.
#[derive(Clone, Debug)]
pub(super) struct Last {
    attempt: u64,
    claim: Option<ArbiterName>,
}

/// The flush under way.
#[derive(Clone, Debug)]
struct Flushing {
    op: OpId,
    marker: Reached,
    /// Chunks acknowledged when it began: it makes those durable.
    chunks: u64,
    /// Who asked.
    conn: ConnId,
    /// It seals the journal.
    seals: bool,
}

/// What is sealed is being carried over into the disk.
#[derive(Debug)]
struct Applying {
    op: OpId,
    upto: Upto,
    /// For that attempt and source, if it was the final marker.
    last: Option<(Last, Hello)>,
}

/// Where what comes is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// Into the disk.
    #[default]
    Direct,
    /// Nowhere: a journal is being made by that operation.
    Starting(OpId),
    /// Nowhere: the record that says so is being written.
    Recording,
    /// Into the journal.
    Following,
}

#[derive(Debug, Default)]
pub(super) struct Markers {
    reached: VecDeque<Reached>,
    flushing: Option<Flushing>,
    mode: Mode,
    /// From this operation on all waits until the disk was called consistent.
    held: Option<OpId>,
    applying: Option<Applying>,
    /// How far the journal may be carried over, when that can be done.
    pub(super) release: Option<Upto>,
    /// What concerns the disk's group.
    pub(super) cuts: Cuts,
    /// The attempt that the source asked for, until it is answered.
    preparing: Option<u64>,
}

impl Markers {
    pub(super) fn clear(&mut self) {
        self.reached.clear();
        self.preparing = None;
    }

    /// The attempt for which to say that all is ready: not while a part of the journal, which may be large, is carried
    /// over, since the source's clients wait from then on.
    pub(super) fn take_ready(&mut self) -> Option<u64> {
        if self.applying.is_some() || !self.is_settled() {
            return None;
        }
        self.preparing.take()
    }

    pub(super) fn is_preparing(&self) -> bool {
        self.preparing.is_some()
    }

    /// The source asked whether that attempt may begin.
    pub(super) fn prepare(&mut self, attempt: u64) {
        self.preparing = Some(attempt);
    }

    /// Whether it is known where what comes is written: no record of that is about to be.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.mode, Mode::Direct | Mode::Following)
    }

    /// Whether nothing of an earlier stream is being flushed, made or carried over.
    pub(super) fn is_still(&self) -> bool {
        self.flushing.is_none() && self.applying.is_none() && self.is_settled()
    }

    /// From which operation on all has to wait, since a marker before it is still to be dealt with by itself.
    fn limit(&self) -> Option<OpId> {
        let mut waiting = self.reached.iter().filter(|marker| marker.consistent);
        self.held
            .or_else(|| waiting.next().map(|marker| marker.before))
    }

    /// Where what comes from now on is written.
    pub(super) fn begin(&mut self, following: bool, group: Option<Group>) {
        self.held = None;
        self.cuts.begin(group);
        self.release.take_if(|_| !following);
        self.mode = if following {
            Mode::Following
        } else {
            Mode::Direct
        };
    }

    /// An operation failed; the session will.
    pub(super) fn failed(&mut self, op: OpId) {
        if self.flushing.as_ref().is_some_and(|f| f.op == op) {
            self.flushing = None;
        }
        self.applying.take_if(|applying| applying.op == op);
        if self.mode == Mode::Starting(op) {
            self.mode = Mode::Direct;
        }
        self.held = None;
    }

    /// The newest marker before which everything is written, as `written` says, and that can be dealt with now.
    fn next(&mut self, written: impl Fn(OpId) -> bool) -> Option<Reached> {
        if self.flushing.is_some() || !self.is_settled() {
            return None;
        }
        let mut newest = None;
        while let Some(marker) = self.reached.front() {
            // The final one has to be in the disk, and one part of the journal is carried over at a time.
            let waits = marker.last.is_some() && self.applying.is_some();
            if waits || !written(marker.before) {
                break;
            }
            newest = self.reached.pop_front();
            // What comes after it is being kept back for it.
            if newest.as_ref().is_some_and(|marker| marker.consistent) {
                break;
            }
        }
        newest
    }
}

impl Target {
    /// The next write that may be begun.
    pub(super) fn next_write(&mut self) -> Option<DiskOp> {
        let limit = self.markers.limit();
        #[cfg(test)]
        let limit = limit.filter(|_| !self.broken(crate::session::Sabotage::SealTooLate));
        self.apply.next(limit)
    }

    pub(super) fn writes_to_journal(&self) -> bool {
        #[cfg(test)]
        if self.broken(crate::session::Sabotage::PastTheJournal) {
            return false;
        }
        self.markers.mode == Mode::Following
    }

    pub(super) fn reach(&mut self, marker: &Marker, last: Option<Last>) -> Result<()> {
        let of_group = self.markers.cuts.group().is_some();
        let alone = marker.consistent && marker.disks == 0 && last.is_none();
        if (of_group && alone) || (!of_group && marker.disks > 0) {
            let what = "a disk of a group is consistent at cuts, and no other disk is at any";
            return Err(Error::misbehaved(what));
        }
        self.apply.marker(marker)?;
        self.markers.cuts.arrived(marker.disks);
        let before = self.apply.next_op();
        self.markers.reached.push_back(Reached {
            id: marker.id,
            seq: marker.seq,
            consistent: marker.consistent,
            disks: marker.disks,
            before,
            last,
        });
        Ok(())
    }

    pub(super) fn on_final(&mut self, last: &Final) -> Result<()> {
        self.must_stream()?;
        if last.chunks != self.done_count {
            let what = format!(
                "the source counts {} chunks, {} are here",
                last.chunks, self.done_count
            );
            return Err(Error::misbehaved(what));
        }
        if !last.marker.consistent {
            let what = "the final marker is not a consistent one";
            return Err(Error::misbehaved(what));
        }
        if self.must_leave() {
            let what = "a disk that is handed over leaves its group first";
            return Err(Error::misbehaved(what));
        }
        let claim = last.arbiter.map(|id| self.arbiter(id)).transpose()?;
        let attempt = last.attempt;
        self.reach(&last.marker, Some(Last { attempt, claim }))?;
        self.streaming = false;
        Ok(())
    }

    /// Flush for the newest marker that was reached, if everything before it is written.
    pub(super) fn pump_flush(&mut self, #[cfg(test)] now: Micros) {
        let Some(conn) = self.lanes.control.as_ref().map(|(conn, _)| *conn) else {
            return;
        };
        let Some(marker) = self.markers.next(|op| self.apply.reached(op)) else {
            return;
        };
        let op = self.apply.take_op();
        #[cfg(test)]
        if self.broken(crate::session::Sabotage::DurableBeforeFlush) && marker.last.is_none() {
            let (id, chunks) = (marker.id, self.done_count);
            self.send(now, Message::Durable { marker: id, chunks });
            return;
        }
        let following = self.markers.mode == Mode::Following;
        let sealed = following && marker.consistent;
        self.actions.push_back(if following {
            let seq = marker.seq;
            if sealed {
                self.journaled.seal(seq);
            }
            TargetAction::Mark { op, seq, sealed }
        } else {
            TargetAction::Flush(op)
        });
        // In the journal what comes after it may follow it at once; a disk must first have been called consistent.
        if marker.consistent && !following {
            self.markers.held = Some(marker.before);
        }
        self.markers.flushing = Some(Flushing {
            op,
            chunks: self.done_count,
            marker,
            conn,
            seals: sealed,
        });
    }

    /// An operation ended well; whether it was one of a marker.
    pub(super) fn on_marker_op(&mut self, now: Micros, op: OpId) -> bool {
        if self.markers.flushing.as_ref().is_some_and(|f| f.op == op) {
            self.on_flushed(now);
        } else if self.markers.mode == Mode::Starting(op) {
            self.markers.mode = Mode::Recording;
            self.journaled.begin();
            self.record_following();
        } else if let Some(applying) = self.markers.applying.take_if(|a| a.op == op) {
            self.journaled.carried_over(applying.upto);
            if let Some((last, hello)) = applying.last {
                self.prepare_for(last, &hello);
            }
        } else {
            return false;
        }
        true
    }

    fn on_flushed(&mut self, now: Micros) {
        let Some(flushing) = self.markers.flushing.take() else {
            return;
        };
        let (marker, chunks) = (flushing.marker, flushing.chunks);
        // What was sealed is carried over, whoever is there to hear of it.
        let hello = match &self.lanes.control {
            Some((conn, hello)) if *conn == flushing.conn => Some(hello.clone()),
            _ => None,
        };
        if flushing.seals && marker.disks > 0 {
            self.reached_cut(marker.seq, marker.disks);
        } else if flushing.seals {
            self.markers.release = Some(Upto::Sealed);
            if let Some(last) = marker.last.clone() {
                self.carry_over(hello.clone().map(|hello| (last, hello)));
            }
        }
        let Some(hello) = hello else {
            self.markers.held = None;
            return;
        };
        let ends = marker.last.is_some();
        match marker.last {
            None => self.send(
                now,
                Message::Durable {
                    marker: marker.id,
                    chunks,
                },
            ),
            Some(last) if !flushing.seals => self.prepare_for(last, &hello),
            Some(_) => {}
        }
        if marker.consistent && !ends && self.markers.mode == Mode::Direct {
            let op = self.apply.take_op();
            self.markers.mode = Mode::Starting(op);
            self.markers.cuts.turn(marker.seq, marker.disks);
            self.actions.push_back(TargetAction::StartJournal {
                op,
                session: hello.session,
                seq: marker.seq,
            });
        }
    }

    /// The journal is there: say in the record that the disk follows.
    fn record_following(&mut self) {
        let Some(record) = self.switch.record() else {
            return;
        };
        let (disk, State::Receiving { session, epoch }) = (record.disk, record.state.clone())
        else {
            return;
        };
        let group = self.markers.cuts.membership(false);
        #[rustfmt::skip]
        let state = State::Following { session, epoch, group };
        self.persist(disk, state);
    }

    /// The record says so durably.
    pub(super) fn on_following(&mut self) {
        if self.markers.mode == Mode::Recording {
            self.markers.mode = Mode::Following;
            self.markers.held = None;
            // The disk itself is there.
            if let Some((seq, disks)) = self.markers.cuts.turned() {
                self.reached_cut(seq, disks);
            }
        }
    }

    /// Carry over what may be, if nothing else is being carried over.
    pub(super) fn pump_release(&mut self) {
        let last = |f: &Flushing| f.marker.last.is_some();
        let busy =
            self.markers.applying.is_some() || self.markers.flushing.as_ref().is_some_and(last);
        let idle = !busy && !self.setup.has_begun();
        if self.markers.mode == Mode::Following && idle && self.may_carry_over() {
            self.carry_over(None);
        }
    }

    fn carry_over(&mut self, last: Option<(Last, Hello)>) {
        if let Some(upto) = self.markers.release.take() {
            let op = self.apply.take_op();
            #[rustfmt::skip]
            let applying = Applying { op, upto, last };
            self.markers.applying = Some(applying);
            self.actions.push_back(TargetAction::Apply(op, upto));
        }
    }

    fn prepare_for(&mut self, last: Last, hello: &Hello) {
        // Given up in the meantime: the stream goes on.
        let same = self.lanes.control.as_ref().is_some_and(|(_, now)| {
            now.session == hello.session && now.incarnation == hello.incarnation
        });
        if self.streaming || !same {
            return;
        }
        let epoch = hello.epoch.saturating_add(1);
        self.persist(
            hello.disk,
            State::Prepared {
                session: hello.session,
                attempt: last.attempt,
                epoch,
                claim: last.claim,
            },
        );
    }
}
