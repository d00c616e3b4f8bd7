//! The target of a migration: receives a disk, and owns it once the source has granted it.
//!
//! Must never serve before its `Owner` record is durable, never call durable what is not flushed,
//! and never empty a disk that it owns. Phases and invariants: [`super`].
//!
//! # What it remembers
//!
//! On disk: the ownership record and, of a disk that follows, its journal. In memory: the version of every byte that something
//! older may still want to write. A version `v` matters while a chunk with a base below `v` (the
//! source announces the lowest) or a record up to `v` (they come in order) may still come. After a
//! crash or on a fresh connection all of that is forgotten: the source then sends every record and
//! every chunk again that it does not know to be durable, the chunks read anew.

mod apply;
mod claim;
mod compare;
mod cuts;
mod elsewhere;
mod markers;
mod setup;
mod takeover;
#[cfg(test)]
mod tests;
mod versions;
mod words;

use std::collections::{BTreeMap, VecDeque};

use self::apply::{Answer, Applier, DiskOp, Work};
use self::compare::Journaled;
use self::markers::Markers;
use self::setup::Setup;
use self::takeover::Takeover;
pub use self::words::{Admission, TargetAction, TargetConfig, TargetEvent, Upto};
use super::link::BEAT_EVERY;
use super::{ConnId, OpId};
use crate::clock::Micros;
use crate::error::{Error, ErrorKind, Result};
use crate::record::{Ownership, State};
use crate::switchover::TargetSwitch;
use crate::wire::{
    Content, Final, Group, Hello, Join, MAX_CHUNKS_DONE, Marker, Message, Refusal, Standing,
};

const TICK: Micros = Micros::from_millis(50);
/// Silence of the source's ordered lane after which its connections are closed; it opens others when it can. A long record may
/// be on its way that long.
const FORGET_AFTER: Micros = Micros::from_secs(30);
/// How long after a failed write of its record the target tries again.
const WRITE_AGAIN: Micros = Micros::from_millis(500);

/// The lanes of the session at hand.
#[derive(Debug, Default)]
struct Lanes {
    control: Option<(ConnId, Hello)>,
    bulk: BTreeMap<ConnId, u16>,
    heard: Micros,
    spoke: Micros,
}

/// The machine. See [`super`] for its contract.
#[derive(Debug)]
pub struct Target {
    config: TargetConfig,
    switch: TargetSwitch,
    lanes: Lanes,
    setup: Setup,
    takeover: Takeover,
    apply: Applier,
    markers: Markers,
    journaled: Journaled,
    /// Chunks acknowledged in this incarnation.
    done_count: u64,
    /// Whether the stream may bring data now; not after the final marker.
    streaming: bool,
    actions: VecDeque<TargetAction>,
    timers: Timers,
}

#[derive(Debug, Default)]
struct Timers {
    wake_at: Micros,
    write_again: Option<Micros>,
}

impl Target {
    /// The target of one disk: what a start finds. Call with [`TargetEvent::Tick`] at once: a disk
    /// that it owns is served without anybody asking.
    #[must_use]
    pub fn new(config: TargetConfig, record: Option<Ownership>, image_exists: bool) -> Self {
        let switch = TargetSwitch::new(record, image_exists);
        let takeover = Takeover::at_start(&switch);
        Self {
            apply: Applier::new(config.window),
            config,
            switch,
            lanes: Lanes::default(),
            setup: Setup::default(),
            takeover,
            markers: Markers::default(),
            journaled: Journaled::default(),
            done_count: 0,
            streaming: false,
            actions: VecDeque::new(),
            timers: Timers::default(),
        }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Micros, event: TargetEvent) {
        match event {
            TargetEvent::Tick => {}
            TargetEvent::Message(conn, message) => self.on_message(now, conn, message),
            TargetEvent::Malformed(conn, e) => self.on_malformed(conn, &e),
            TargetEvent::Closed(conn) => self.on_closed(conn),
            TargetEvent::Opened(result) => self.on_opened(now, result),
            TargetEvent::Disk(op, result) => self.on_disk(now, op, result),
            TargetEvent::Read(op, result) => self.on_read(op, result),
            TargetEvent::OfTemplate(op, result) => self.on_template(op, result),
            TargetEvent::Zeroes(op, result) => self.on_zeroes(op, &result),
            TargetEvent::Persisted(result) => self.on_persisted(now, result.is_ok()),
            TargetEvent::Parked(result) => self.on_parked(now, result.is_ok()),
            TargetEvent::Reached(attempt, result) => self.on_reached(now, attempt, result),
            TargetEvent::Decided(ballot, result) => self.on_decided(now, ballot, &result),
            TargetEvent::Serving(result) => self.on_serving(now, result),
            TargetEvent::Cut(session, cut) => self.on_cut(session, cut),
            TargetEvent::Left(cut) => self.on_left(cut),
        }
        self.pump(now);
        self.timers.wake_at = now + TICK;
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<TargetAction> {
        self.actions.pop_front()
    }

    /// When to call with [`TargetEvent::Tick`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Micros> {
        let idle = self.lanes.control.is_none()
            && self.lanes.bulk.is_empty()
            && self.setup.is_idle()
            && self.timers.write_again.is_none()
            && self.takeover.is_idle()
            && !self.claims();
        (!idle).then_some(self.timers.wake_at)
    }

    /// The durable ownership record.
    #[must_use]
    pub fn record(&self) -> Option<&Ownership> {
        self.switch.record()
    }

    /// The session that greets over the ordered lane now, and its incarnation.
    #[must_use]
    pub fn session(&self) -> Option<(uuid::Uuid, u64)> {
        self.lanes
            .control
            .as_ref()
            .map(|(_, hello)| (hello.session, hello.incarnation))
    }

    #[cfg(test)]
    fn broken(&self, rule: super::Sabotage) -> bool {
        self.config.sabotage == Some(rule)
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        reason = "the form of the function that tests have"
    )]
    fn overwrites(&self) -> (bool, bool) {
        (false, false)
    }

    /// Whether records win over later chunks, and chunks over later records.
    #[cfg(test)]
    fn overwrites(&self) -> (bool, bool) {
        let records = self.broken(super::Sabotage::RecordsOverChunks);
        (records, self.broken(super::Sabotage::ChunksOverRecords))
    }

    fn send(&mut self, now: Micros, message: Message) {
        if let Some((conn, _)) = &self.lanes.control {
            self.lanes.spoke = now;
            self.actions.push_back(TargetAction::Send(*conn, message));
        }
    }

    fn refuse(&mut self, conn: ConnId, refusal: Refusal, text: String) {
        self.actions
            .push_back(TargetAction::Send(conn, Message::Refused { refusal, text }));
        self.actions.push_back(TargetAction::Close(conn));
    }

    /// Close every lane; the stream is over until somebody greets again.
    fn drop_lanes(&mut self) {
        let control = self.lanes.control.take().map(|(conn, _)| conn);
        let bulk = std::mem::take(&mut self.lanes.bulk);
        for conn in control.into_iter().chain(bulk.into_keys()) {
            self.actions.push_back(TargetAction::Close(conn));
        }
        self.streaming = false;
        self.markers.clear();
        self.apply.drop_waiting();
    }

    /// The session cannot go on; the source has to know why.
    fn fail(&mut self, now: Micros, e: &Error) {
        self.send(
            now,
            Message::Failed {
                text: e.to_string(),
            },
        );
        self.drop_lanes();
    }

    fn on_closed(&mut self, conn: ConnId) {
        self.setup.forget(conn);
        if self.lanes.control.as_ref().is_some_and(|(c, _)| *c == conn) {
            self.lanes.control = None;
            self.drop_lanes();
        } else {
            self.lanes.bulk.remove(&conn);
        }
    }

    fn on_malformed(&mut self, conn: ConnId, e: &crate::wire::DecodeError) {
        if e.fault == crate::wire::Fault::Version {
            self.refuse(conn, Refusal::Version, e.to_string());
        } else {
            self.actions.push_back(TargetAction::Close(conn));
        }
        self.on_closed(conn);
    }

    fn on_message(&mut self, now: Micros, conn: ConnId, message: Message) {
        match message {
            Message::Hello(hello) => self.on_hello(now, conn, hello),
            Message::Join(join) => self.on_join(conn, join),
            message if self.lanes.bulk.contains_key(&conn) => {
                // Says nothing of the ordered lane, which may be silent for ever in this direction alone.
                let result = self.on_bulk(message);
                self.settle(now, result);
            }
            message if self.lanes.control.as_ref().is_some_and(|(c, _)| *c == conn) => {
                self.lanes.heard = now;
                let result = self.on_control(now, message);
                self.settle(now, result);
            }
            // From a connection that was closed here while this was under way.
            _ => {}
        }
    }

    fn settle(&mut self, now: Micros, result: Result<()>) {
        if let Err(e) = result {
            self.fail(now, &e);
        }
    }

    fn on_join(&mut self, conn: ConnId, join: Join) {
        let belongs = self.lanes.control.as_ref().is_some_and(|(_, hello)| {
            hello.session == join.session && hello.incarnation == join.incarnation
        });
        if belongs && self.lanes.bulk.len() < 64 {
            self.lanes.bulk.insert(conn, join.lane);
        } else {
            let text = "that session is not connected here".to_owned();
            self.refuse(conn, Refusal::Unknown, text);
        }
    }

    fn on_bulk(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Chunk(chunk) if self.streaming => {
                let (_, over) = self.overwrites();
                self.apply.chunk(&chunk, over)
            }
            Message::Probe(probe) if self.streaming => self.apply.probe(probe),
            Message::Look(look) if self.streaming => self.apply.look(look),
            // Left over on a lane that the source gave up before it sent its final marker.
            Message::Chunk(_) | Message::Probe(_) | Message::Look(_) | Message::Beat => Ok(()),
            other => Err(Error::misbehaved(format!("{other:?} came on a bulk lane"))),
        }
    }

    fn on_control(&mut self, now: Micros, message: Message) -> Result<()> {
        match message {
            Message::Beat => {}
            Message::Begin(begin) => self.on_begin(begin)?,
            Message::Record(record) => {
                self.must_stream()?;
                let (over, _) = self.overwrites();
                self.apply.record(&record, over)?;
            }
            Message::Marker(marker) => {
                self.must_stream()?;
                self.reach(&marker, None)?;
            }
            Message::Final(last) => self.on_final(&last)?,
            Message::Prepare { attempt, arbiter } => self.on_prepare(now, attempt, arbiter),
            Message::Grant { attempt, epoch } => self.on_grant(now, attempt, epoch),
            Message::WayBack(way) => self.actions.push_back(TargetAction::WayBack(way)),
            Message::Abandon { .. } => self.drop_lanes(),
            other => {
                let what = format!("the source sent {other:?}, which only a target sends");
                return Err(Error::misbehaved(what));
            }
        }
        Ok(())
    }

    fn must_stream(&self) -> Result<()> {
        if self.streaming {
            return Ok(());
        }
        Err(Error::misbehaved("data came outside of the stream"))
    }

    fn on_disk(&mut self, now: Micros, op: OpId, result: std::io::Result<()>) {
        if let Err(e) = result {
            self.markers.failed(op);
            self.journaled.doubt();
            self.apply.complete(op);
            let what = "the target's disk failed";
            let error = Error::io(ErrorKind::Disk, what, e);
            self.setup_failed(op);
            self.fail(now, &error);
            return;
        }
        if !self.on_marker_op(now, op) && !self.setup_went_on(op) {
            self.apply.complete(op);
        }
    }

    fn persist(&mut self, disk: uuid::Uuid, state: State) {
        if let Some(record) = self.switch.write(disk, state) {
            self.actions.push_back(TargetAction::Persist(record));
        }
    }

    fn on_persisted(&mut self, now: Micros, ok: bool) {
        if !ok {
            // Durable or not: only writing it again leads anywhere.
            self.timers.write_again = Some(now + WRITE_AGAIN);
            return;
        }
        let Some(record) = self.switch.written() else {
            return;
        };
        match record.state {
            State::Prepared {
                session,
                attempt,
                claim: None,
                ..
            } => self.on_prepared(now, session, attempt),
            State::Owner { .. } => self.takeover.recorded(),
            State::Following { .. } => self.on_following(),
            State::Emptying { .. }
            | State::Receiving { .. }
            | State::Released { .. }
            | State::Offered { .. }
            | State::Prepared { .. }
            | State::Bound { .. } => {}
        }
    }

    fn on_prepared(&mut self, now: Micros, session: uuid::Uuid, attempt: u64) {
        let Some((_, hello)) = &self.lanes.control else {
            return;
        };
        if hello.session != session || self.streaming {
            return;
        }
        self.send(now, Message::CommitRequest { attempt });
        #[cfg(test)]
        if self.broken(super::Sabotage::ServeUngranted) {
            self.actions.push_back(TargetAction::Serve);
        }
    }

    /// What is written goes into the disk or, when it follows, into its journal.
    fn act(&mut self, op: DiskOp) -> TargetAction {
        let content = match op.work {
            Work::Put(content) => content,
            Work::Compare(compare) => {
                self.begin_comparing(op.id);
                if compare.with_zeroes() {
                    return TargetAction::Zeroes(op.id, op.offset, compare.len());
                }
                return TargetAction::Read(op.id, op.offset, compare.len() as u32);
            }
        };
        if self.writes_to_journal() {
            self.journaled.append(op.offset, &content);
            return TargetAction::Journal(op.id, op.offset, content);
        }
        match content {
            Content::Data(data) => TargetAction::Write(op.id, op.offset, data),
            Content::Zeroes(len) => TargetAction::Zero(op.id, op.offset, len),
        }
    }

    /// Do whatever can be done now.
    fn pump(&mut self, now: Micros) {
        if self.timers.write_again.is_some_and(|t| now >= t) {
            self.timers.write_again = None;
            self.actions
                .extend(self.switch.again().map(TargetAction::Persist));
        }
        while let Some(op) = self.next_write() {
            let action = self.act(op);
            self.actions.push_back(action);
        }
        let done = self.apply.take_done();
        self.done_count += done.len() as u64;
        self.say_done(now, &done);
        self.say_seen(now);
        self.pump_flush(
            #[cfg(test)]
            now,
        );
        self.pump_release();
        self.pump_leaving(now);
        self.pump_setup(now);
        self.pump_claim(now);
        self.pump_takeover(now);
        self.watch_the_clock(now);
    }

    /// In the order in which they were dealt with: what is durable is counted by it.
    fn say_done(&mut self, now: Micros, done: &[Answer]) {
        for some in done.chunk_by(|a, b| (a.differs == 0) == (b.differs == 0)) {
            if some.iter().all(|answer| answer.differs == 0) {
                for part in some.chunks(MAX_CHUNKS_DONE) {
                    let ids = part.iter().map(|answer| answer.id).collect();
                    self.send(now, Message::ChunksDone(ids));
                }
                continue;
            }
            for Answer { id, differs } in some.iter().copied() {
                self.send(
                    now,
                    Message::Differs {
                        id,
                        blocks: differs,
                    },
                );
            }
        }
    }

    fn watch_the_clock(&mut self, now: Micros) {
        if self.lanes.control.is_none() {
            return;
        }
        if now.since(self.lanes.heard) > FORGET_AFTER {
            self.drop_lanes();
        } else if now.since(self.lanes.spoke) >= BEAT_EVERY {
            self.send(now, Message::Beat);
        }
    }
}
