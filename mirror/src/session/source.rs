//! The source of a migration: copies its disk, streams its writes, hands it over.
//!
//! Must never make a client wait for the network, except while it switches over, and never let a
//! client write once the deciding record may be durable. Phases and invariants: [`super`].

mod clock;
mod contract;
mod cuts;
mod figures;
mod greeting;
mod handover;
mod keeping;
mod local;
mod offering;
mod streaming;
#[cfg(test)]
mod tests;
mod verifying;
mod words;

use std::collections::VecDeque;
use std::sync::Arc;

use self::keeping::Keeping;
use self::offering::Offering;
pub use self::words::{
    Command, Handover, Keep, Left, Replica, SourceAction, SourceConfig, SourceEvent, Terms,
};
use super::copy::BulkCopy;
use super::link::{Control, Link, LinkAction};
use super::stream::RecordStream;
use super::verify::Verify;
use super::{ConnId, OpId};
use crate::clock::Micros;
use crate::contract::Contract;
use crate::error::{Error, ErrorKind, Result};
use crate::pacing::{Bucket, Meter};
use crate::record::{Ownership, State};
use crate::saved::Saved;
use crate::switchover::{Phase, SourceSwitch};
use crate::tracker::Tracker;
use crate::wire::{Hello, Join, Message, Refusal, Standing};

/// How often the machine wants to be woken when nothing happens.
const TICK: Micros = Micros::from_millis(20);

/// What concerns this host's disk and its clients.
#[derive(Debug, Default)]
struct Local {
    attach_asked: bool,
    attached: bool,
    /// Since when requests are held.
    held_since: Option<Micros>,
    /// The final marker of the attempt was sent in this incarnation.
    final_sent: bool,
    granted_at: Option<Micros>,
    pause: Option<u64>,
    /// The user wants a switchover, with at most this estimated pause.
    cutover: Option<Micros>,
    not_before: Micros,
    given_up: u64,
    reconnects: u64,
    offering: Offering,
    verify: Verify,
}

/// How a session ended, and the last trouble on the way.
#[derive(Debug, Default)]
struct End {
    outcome: Option<Result<()>>,
    trouble: Option<String>,
    /// The target has had data of this session: it may not claim to have none.
    begun: bool,
}

/// How fast it goes, and may.
#[derive(Debug)]
struct Pace {
    /// What was sent and is durable at the target.
    sent: Meter,
    /// The same, and what the target was found to have.
    covered: Meter,
    bucket: Bucket,
    contract: Contract,
    /// Whether the contract knows when the session began.
    agreed: bool,
    /// When the tracker was last told that time passed.
    faded_at: Micros,
}

/// The machine. See [`super`] for its contract.
#[derive(Debug)]
pub struct Source {
    config: SourceConfig,
    tracker: Arc<Tracker>,
    link: Link,
    stream: RecordStream,
    copy: BulkCopy,
    switch: SourceSwitch,
    keeping: Keeping,
    pace: Pace,
    local: Local,
    end: End,
    actions: VecDeque<SourceAction>,
    wake_at: Micros,
}

impl Source {
    /// A session that moves the disk which `record` says this host owns.
    ///
    /// Fails with [`ErrorKind::NotOwned`] when it does not.
    pub fn new(config: SourceConfig, record: &Ownership, tracker: Arc<Tracker>) -> Result<Self> {
        let source = Self::of_owner(config, record, tracker)?;
        if let Some(group) = &source.config.replica.group {
            group.arrive(None);
        }
        Ok(source)
    }

    fn of_owner(config: SourceConfig, record: &Ownership, tracker: Arc<Tracker>) -> Result<Self> {
        let State::Owner { epoch, session } = record.state else {
            return Err(Error::new(
                ErrorKind::NotOwned,
                "this host does not own the disk",
            ));
        };
        config.check()?;
        let to = config.recorded.as_ref().unwrap_or(&config.to).clone();
        let switch = SourceSwitch::new(record.disk, epoch, config.session, to)
            .with_part(config.part.clone(), session);
        let mut source = Self::with(config, tracker, switch);
        if source.config.replica.left.is_some() {
            source.copy.only(&[], &source.tracker);
        }
        Ok(source)
    }

    /// A session that was kept and comes back after a crash of the source, with `saved` being its new life, which is kept
    /// durably; of one that is of a group it is what was kept, and the life begins when all of them are there. The target may not have `parts` of the disk, offset and length, as this host has them now. What changes
    /// from now on is shown to `tracker`: the caller lets nobody change the disk before the tap is on.
    ///
    /// Fails with [`ErrorKind::NotOwned`] when it is not of the disk as `record` has it.
    pub fn resumed(
        config: SourceConfig,
        record: &Ownership,
        tracker: Arc<Tracker>,
        (saved, parts): (&Saved, &[(u64, u64)]),
    ) -> Result<Self> {
        let mut source = Self::of_owner(config, record, tracker)?;
        let same = saved.disk == record.disk
            && saved.epoch == record.epoch()
            && saved.size == source.config.description.size
            && saved.session == source.config.session;
        if !same {
            let what = "the session that was kept is of another disk";
            return Err(Error::new(ErrorKind::NotOwned, what));
        }
        source.copy.only(parts, &source.tracker);
        source.keeping = Keeping::back(saved, &source.config.keep);
        match &source.config.replica.group {
            // Last, and once: when all have arrived their life is known.
            Some(group) => group.arrive(Some(saved.life)),
            None => source.begin_life(saved.life),
        }
        Ok(source)
    }

    /// A source that finds, after a restart, that it has handed its disk over: it repeats the
    /// grant until the new owner runs, and forwards to it.
    ///
    /// Fails with [`ErrorKind::InvalidArgument`] when `record` does not say so.
    pub fn released(mut config: SourceConfig, record: &Ownership) -> Result<Self> {
        let (Some(switch), State::Released { session, .. }) =
            (SourceSwitch::released(record), &record.state)
        else {
            let what = "the disk was not handed over";
            return Err(Error::new(ErrorKind::InvalidArgument, what));
        };
        config.session = *session;
        Ok(Self::with(config, Arc::new(Tracker::new(0, 0)), switch))
    }

    fn with(config: SourceConfig, tracker: Arc<Tracker>, switch: SourceSwitch) -> Self {
        Self {
            link: Link::new(config.limits.lanes),
            keeping: Keeping::default(),
            stream: RecordStream::new(),
            copy: BulkCopy::new(config.description.size),
            pace: Pace {
                sent: Meter::default(),
                covered: Meter::default(),
                bucket: Bucket::new(config.rates.least()),
                contract: Contract::default(),
                agreed: false,
                faded_at: Micros(0),
            },
            local: Local::default(),
            end: End::default(),
            actions: VecDeque::new(),
            wake_at: Micros(0),
            config,
            tracker,
            switch,
        }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Micros, event: SourceEvent) {
        match event {
            SourceEvent::Tick => {}
            SourceEvent::Minute(at) => self.pace.bucket.set_rate(self.config.rates.rate_at(at)),
            SourceEvent::Connected(conn) => self.on_connected(now, conn),
            SourceEvent::Closed(conn, why) => self.on_closed(now, conn, why),
            SourceEvent::Message(conn, message) => self.on_message(now, conn, message),
            SourceEvent::Malformed(conn, e) => self.on_malformed(now, conn, &e),
            SourceEvent::Attached(result) => self.on_attached(now, result),
            SourceEvent::Read(op, result) => self.on_read(now, op, result),
            SourceEvent::Status(op, result) => self.on_status(now, op, result),
            SourceEvent::Held(attempt) => {
                self.switch.held(attempt);
            }
            SourceEvent::Parked(result) => self.on_parked(now, &result),
            SourceEvent::Persisted(result) => self.on_persisted(now, &result),
            SourceEvent::Reached(attempt, result) => self.on_reached(now, attempt, result),
            SourceEvent::Decided(ballot, result) => self.on_decided(now, ballot, result),
            SourceEvent::Checkpointed(name) => self.on_checkpointed(name),
            SourceEvent::Saved(result) => self.on_saved(result),
            SourceEvent::Command(command) => self.on_command(now, command),
        }
        self.pump(now);
        self.wake_at = now + TICK;
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<SourceAction> {
        self.actions.pop_front()
    }

    /// When to call with [`SourceEvent::Tick`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Micros> {
        (!self.is_over()).then_some(self.wake_at)
    }

    /// Whether nothing more will be done: the target runs, or the session ended and the disk is
    /// served here as before.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.end.outcome.is_some()
            && matches!(self.switch.phase(), Phase::Owner | Phase::Forwarding)
            && self.keeping.is_settled()
            && !self.switch.owes_record()
    }

    /// How it ended; `Ok` when the target runs. `None` while it has not.
    #[must_use]
    pub fn outcome(&self) -> Option<&Result<()>> {
        self.end.outcome.as_ref()
    }

    /// Whether the disk was offered, and it is not known yet who has it.
    #[must_use]
    pub fn is_offered(&self) -> bool {
        self.switch.is_offered()
    }

    /// Where the switchover stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.switch.phase()
    }

    #[cfg(test)]
    fn broken(&self, rule: super::Sabotage) -> bool {
        self.config.sabotage == Some(rule)
    }

    fn send(&mut self, now: Micros, conn: ConnId, message: Message) {
        if self.link.control_conn() == Some(conn) {
            self.link.spoke(now);
        }
        self.actions.push_back(SourceAction::Send(conn, message));
    }

    /// Over the ordered lane, if it was greeted.
    fn send_control(&mut self, now: Micros, message: Message) {
        if let Control::Beginning(conn) | Control::Up(conn) = self.link.control() {
            self.send(now, conn, message);
        }
    }

    fn push_link(&mut self, actions: Vec<LinkAction>) {
        self.actions
            .extend(actions.into_iter().map(|action| match action {
                LinkAction::Connect(conn, lane) => SourceAction::Connect(conn, lane),
                LinkAction::Close(conn) => SourceAction::Close(conn),
            }));
    }

    fn on_connected(&mut self, now: Micros, conn: ConnId) {
        let incarnation = self.link.incarnation();
        let first = match self.link.connected(conn, now) {
            Some(0) => Message::Hello(Hello {
                session: self.config.session,
                disk: self.switch.disk(),
                epoch: self.switch.next_epoch().saturating_sub(1),
                incarnation,
                description: self.config.description.clone(),
            }),
            Some(lane) => Message::Join(Join {
                session: self.config.session,
                incarnation,
                lane,
            }),
            None => {
                self.actions.push_back(SourceAction::Close(conn));
                return;
            }
        };
        self.send(now, conn, first);
    }

    fn on_closed(&mut self, now: Micros, conn: ConnId, why: String) {
        if self.link.control_conn() == Some(conn) {
            self.end.trouble = Some(why);
            self.lose_link(now);
        } else if self.link.lane_down(conn, now) {
            self.lane_lost(conn);
        }
    }

    fn on_malformed(&mut self, now: Micros, conn: ConnId, e: &crate::wire::DecodeError) {
        if self.link.control_conn() == Some(conn) {
            self.end.trouble = Some(format!("from the target: {e}"));
            self.lose_link(now);
        } else if self.link.lane_down(conn, now) {
            self.actions.push_back(SourceAction::Close(conn));
            self.lane_lost(conn);
        }
    }

    /// Whatever the reason, the link starts anew; nothing that is not durable counts as sent.
    fn lose_link(&mut self, now: Micros) {
        let actions = self.link.reset(now);
        self.push_link(actions);
        self.local.final_sent = false;
        self.local.reconnects += 1;
        self.cuts_begin_anew();
        self.offer_lost();
        #[cfg(test)]
        if self.broken(super::Sabotage::ForgetChunksOnTheWay) {
            self.copy.forget_on_the_way();
        }
        self.copy.restart(&self.tracker);
        self.local.verify.link_lost(&self.tracker);
        self.pace.contract.abort_landing();
    }

    fn on_message(&mut self, now: Micros, conn: ConnId, message: Message) {
        if self.link.control_conn() != Some(conn) {
            return;
        }
        self.link.heard(now);
        let result = match message {
            Message::Beat => Ok(()),
            Message::Welcome(standing) => self.on_welcome(now, conn, &standing),
            Message::Begun {
                window,
                address,
                templates,
            } => {
                self.copy.ask_first(templates);
                self.on_begun(now, window, address)
            }
            Message::ChunksDone(ids) => self.on_chunks_done(now, &ids),
            Message::Differs { id, blocks } => self.on_differs(now, id, blocks),
            Message::Seen {
                id,
                unlike,
                unknown,
            } => {
                self.on_seen(now, id, (unlike, unknown));
                Ok(())
            }
            Message::Durable { marker, chunks } => self.on_durable(now, marker, chunks),
            Message::Ready { attempt } => {
                self.on_ready(now, attempt);
                Ok(())
            }
            Message::NotReady { attempt, text } => {
                self.on_not_ready(now, attempt, &text);
                Ok(())
            }
            Message::CommitRequest { attempt } => {
                self.on_commit_request(attempt);
                Ok(())
            }
            Message::Running { epoch, address } => {
                self.on_running(now, epoch, address);
                Ok(())
            }
            Message::Refused {
                refusal: Refusal::Unusable,
                text,
            } if self.config.replica.compare && !self.end.begun => {
                self.begin_anew_after(now, text);
                Ok(())
            }
            Message::Refused { text, .. } => Err(Error::new(
                ErrorKind::Refused,
                format!("the target refused: {text}"),
            )),
            Message::Failed { text } => Err(Error::new(
                ErrorKind::Refused,
                format!("the target failed: {text}"),
            )),
            other => {
                let what = format!("the target sent {other:?}, which only a source sends");
                Err(Error::misbehaved(what))
            }
        };
        if let Err(e) = result {
            self.fail(now, e);
        }
    }

    fn on_chunks_done(&mut self, now: Micros, ids: &[u64]) -> Result<()> {
        for id in ids {
            if let Some((conn, len)) = self.copy.chunk_done(*id)? {
                self.link.unload(conn, len, now);
            }
        }
        Ok(())
    }

    fn on_differs(&mut self, now: Micros, id: u64, blocks: u128) -> Result<()> {
        let blocks = (blocks, self.config.limits.block);
        if let Some((conn, len)) = self.copy.differs(id, blocks, &self.tracker)? {
            self.link.unload(conn, len, now);
        }
        Ok(())
    }

    fn on_durable(&mut self, now: Micros, marker: u64, chunks: u64) -> Result<()> {
        let Some(streamed) = self.stream.durable(marker, &self.tracker) else {
            return Err(Error::misbehaved(
                "the target acknowledged a marker that was never sent",
            ));
        };
        #[cfg(test)]
        let early = self.broken(super::Sabotage::ForgetChunksEarly);
        #[cfg(not(test))]
        let early = false;
        let (copied, same) = self.copy.durable(chunks, self.stream.acked(), early);
        self.cut_is_durable();
        self.pace.sent.add(now, streamed + copied);
        self.pace.covered.add(now, streamed + copied + same);
        Ok(())
    }

    /// Send a chunk, or what stands for one, that counts for so many bytes.
    fn send_chunk(&mut self, now: Micros, conn: ConnId, (message, weight): (Message, u64)) {
        self.link.load(conn, weight, now);
        self.pace.bucket.spend(match &message {
            Message::Chunk(chunk) => chunk.content.held(),
            Message::Probe(probe) => probe.hashes.len() as u64 * 32,
            Message::Look(look) => look.here.blocks() * 32,
            _ => 0,
        });
        self.actions.push_back(SourceAction::Send(conn, message));
    }

    fn attach(&mut self) {
        if !self.local.attach_asked && self.end.outcome.is_none() {
            self.local.attach_asked = true;
            self.actions.push_back(SourceAction::AttachTap);
        }
    }

    fn tick(&mut self, now: Micros) {
        self.pace.sent.tick(now);
        self.pace.covered.tick(now);
    }

    /// Do whatever can be done now.
    fn pump(&mut self, now: Micros) {
        self.tick(now);
        if self.is_watched_from_the_start() {
            self.attach();
        }
        self.watch_the_clock(now);
        let wants = self.end.outcome.is_none() || self.switch.decided();
        if (wants || self.switch.is_offered()) && self.may_go_on() {
            let actions = self.link.connect(now);
            self.push_link(actions);
        }
        if self.link.should_beat(now) {
            self.send_control(now, Message::Beat);
        }
        if self.link.is_up() && self.local.attached && !self.switch.decided() {
            self.pump_copy(now);
            self.pump_verify(now);
            self.pump_stream(now);
            self.pump_switch(now);
        }
        self.pump_grant(now);
        self.pump_reclaim(now);
        self.pump_group(now);
        self.pump_contract(now);
        self.pump_keeping(now);
    }

    fn pump_copy(&mut self, now: Micros) {
        if self.switch.is_parked() {
            return;
        }
        if let Some((op, offset, len)) = self.copy.ask(&self.tracker) {
            self.actions
                .push_back(SourceAction::Status(op, offset, len));
        }
        // A chunk that is begun now could hold what is later than the cut.
        let sealing = self.stream.is_sealing() || self.pending_cut().is_some();
        #[cfg(test)]
        let sealing = sealing && !self.broken(super::Sabotage::ChunksOvertakeMarkers);
        if sealing {
            return;
        }
        while let Some(conn) = self.link.lightest() {
            let last = self.tracker.figures().seq;
            let Some(chunk) = self.copy.next_zeroes(&self.config.limits, conn, last) else {
                break;
            };
            #[cfg(test)]
            if self.broken(super::Sabotage::LeaveZeroesOut) {
                self.copy.forget(&chunk.0);
                continue;
            }
            self.send_chunk(now, conn, chunk);
        }
        while self.link.lightest().is_some() && self.may_copy(now) {
            let Some((op, claim)) = self.copy.read(&self.config.limits, &self.tracker) else {
                break;
            };
            self.actions
                .push_back(SourceAction::Read(op, claim.offset, claim.len as u32));
        }
    }

    /// Whether the copy may go on at the rate that was asked for. While clients are held for it, it goes as fast as it can.
    fn may_copy(&mut self, now: Micros) -> bool {
        let held = matches!(self.switch.phase(), Phase::Holding | Phase::Draining);
        held || self.pace.bucket.open(now)
    }
}
