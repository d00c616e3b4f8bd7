//! The source of a move to a server that knows nothing of moves: an export of any NBD server.
//!
//! Machine, with the contract of the sessions of [`super`]. What such a server can be asked is to write, to make zero, to
//! say what is zero, and to make durable what it has answered; there is no order among requests that are under way. So
//! there are no records, no journal and no moments: what changes here is dirty and sent again. The target is this disk
//! only when nothing is dirty or under way, all of it is flushed, and clients are held.
//!
//! What has to hold:
//!
//! * **F1** No two changes of one byte are under way at once.
//! * **F2** What was not answered, and what was answered and not covered by a flush that succeeded, is sent again after a
//!   lost connection: the server may have crashed.
//! * **F3** A flush covers what was answered before it was asked for, nothing else.
//! * **F4** A part that the disk calls zero is made zero before anything is copied that was written there since it was asked.
//! * **F5** The record that hands the disk over is written only while clients are held, nothing is dirty or under way,
//!   and the server has everything durably, by its own word. That record alone says who owns the disk.
//! * **F6** Nothing is sent for a while after a lost connection: the server may still be at work on what came over it.
//!   That is an assumption about it ([`SETTLE`]), as it is that nobody else writes there.
//!
//! A session is not kept: after a restart of the source all is copied again.

mod figures;
mod handover;
mod pieces;
#[cfg(test)]
mod sim;
mod words;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use self::pieces::{Kind, Piece, Pieces, Step};
pub use self::words::{
    ForeignAbilities, ForeignAction, ForeignAnswer, ForeignEvent, ForeignExport, ForeignOrder,
};
use super::scan::Scan;
use super::{OpId, SourceConfig};
use crate::clock::Micros;
use crate::error::{Error, ErrorKind, Result};
use crate::pacing::{Bucket, Meter};
use crate::record::{Ownership, State};
use crate::switchover::{Phase, SourceSwitch};
use crate::tracker::Tracker;

/// How often the machine wants to be woken when nothing happens.
const TICK: Micros = Micros::from_millis(20);
/// How long a server is given to be done with what it was sent over a connection that was lost.
pub const SETTLE: Micros = Micros::from_secs(2);
/// How long after the server refused something it is asked again.
const AGAIN: Micros = Micros::from_secs(1);
/// How often what was answered is made durable.
const FLUSH_EVERY: Micros = Micros::from_secs(1);
/// Bytes that are being made zero at once, at most, and one part more.
const MOST_ZEROING: u64 = 64 << 20;
/// How many pieces are under way at most.
const PIECES: usize = 64;
/// In so much time what was written often counts half.
const FADE_EVERY: Micros = Micros::from_secs(4);

/// Where the connections stand.
#[derive(Clone, Debug)]
enum Link {
    /// There are none, and none are made before that.
    Down(Micros),
    Opening,
    Up(ForeignExport),
}

/// How fast it goes, and may.
#[derive(Debug)]
struct Pace {
    sent: Meter,
    bucket: Bucket,
    /// Bytes that became durable at the server.
    durable: u64,
    /// Bytes that were read here, and those of them that were zero.
    read: (u64, u64),
    faded_at: Micros,
    flushed_at: Micros,
    /// Nothing is asked of the server before that: it refused again and again.
    not_before: Micros,
    /// It refused something and has done nothing since.
    refused: bool,
}

/// What concerns this host's disk and its clients.
#[derive(Debug, Default)]
struct Local {
    attach_asked: bool,
    attached: bool,
    /// Since when requests are held.
    held_since: Option<Micros>,
    /// The user wants a switchover, with at most this estimated pause.
    cutover: Option<Micros>,
    not_before: Micros,
    pause: Option<u64>,
    given_up: u64,
    reconnects: u64,
}

/// How a session ended, and the last trouble on the way.
#[derive(Debug, Default)]
struct End {
    outcome: Option<Result<()>>,
    trouble: Option<String>,
    #[cfg(test)]
    broken: Option<sim::Broken>,
}

/// The machine.
#[derive(Debug)]
pub struct Foreign {
    config: SourceConfig,
    without_flush: bool,
    tracker: Arc<Tracker>,
    switch: SourceSwitch,
    /// Number of the connections, and where they stand.
    link: (u64, Link),
    scan: Scan,
    pieces: Pieces,
    pace: Pace,
    local: Local,
    end: End,
    actions: VecDeque<ForeignAction>,
    /// The last name given to an operation, and when to wake.
    ops: (u64, Micros),
}

impl Foreign {
    /// A session that moves the disk which `record` says this host owns. `tracker` keeps no records: its limit is 0.
    /// Where the server has no flush it is refused, except `without_flush`.
    ///
    /// # Errors
    /// [`ErrorKind::NotOwned`] when the record says something else.
    pub fn new(
        config: SourceConfig,
        record: &Ownership,
        tracker: Arc<Tracker>,
        without_flush: bool,
    ) -> Result<Self> {
        let State::Owner { epoch, session } = record.state else {
            let what = "this host does not own the disk";
            return Err(Error::new(ErrorKind::NotOwned, what));
        };
        let to = config.recorded.as_ref().unwrap_or(&config.to).clone();
        let switch = SourceSwitch::new(record.disk, epoch, config.session, to)
            .with_part(config.part.clone(), session);
        let mut scan = Scan::new(config.description.size);
        scan.compare(true);
        Ok(Self {
            without_flush,
            tracker,
            switch,
            link: (0, Link::Down(Micros(0))),
            scan,
            pieces: Pieces::default(),
            pace: Pace {
                sent: Meter::default(),
                bucket: Bucket::new(config.rates.least()),
                durable: 0,
                read: (0, 0),
                faded_at: Micros(0),
                flushed_at: Micros(0),
                not_before: Micros(0),
                refused: false,
            },
            local: Local::default(),
            end: End::default(),
            actions: VecDeque::new(),
            ops: (0, Micros(0)),
            config,
        })
    }

    /// What is left of a session that has handed its disk over by `record`, after a restart: nothing but its clients.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] when the record says something else.
    pub fn moved(config: SourceConfig, record: &Ownership) -> Result<Self> {
        let Some(mut switch) = SourceSwitch::released(record) else {
            let what = "the disk was not handed over";
            return Err(Error::new(ErrorKind::InvalidArgument, what));
        };
        let epoch = switch.next_epoch();
        switch.running(epoch);
        let owned = Ownership::first(record.disk);
        let mut moved = Self::new(config, &owned, Arc::new(Tracker::new(0, 0)), true)?;
        moved.switch = switch;
        moved.end.outcome = Some(Ok(()));
        Ok(moved)
    }

    /// Something happened.
    pub fn handle(&mut self, now: Micros, event: ForeignEvent) {
        if matches!(self.link.1, Link::Down(Micros(0))) {
            // A session before this one, of this process or another, may have left requests.
            self.link.1 = Link::Down(now + SETTLE);
        }
        match event {
            ForeignEvent::Tick => {}
            ForeignEvent::Minute(at) => self.pace.bucket.set_rate(self.config.rates.rate_at(at)),
            ForeignEvent::Opened(link, result) => self.on_opened(now, link, result),
            ForeignEvent::Lost(link, why) => {
                // One of several may be lost before all are there.
                if link == self.link.0 && !matches!(self.link.1, Link::Down(_)) {
                    self.end.trouble = Some(why);
                    self.lose_link(now);
                }
            }
            ForeignEvent::Answered(link, op, result) => {
                if link == self.link.0 {
                    self.on_answered(now, op, result);
                }
            }
            ForeignEvent::Attached => self.local.attached = true,
            ForeignEvent::Read(op, result) => self.on_read(now, op, result),
            ForeignEvent::Status(op, result) => match result {
                Ok(extents) if self.scan.answer(op, &extents, &self.tracker) => {}
                Ok(_) => self.disk_failed(now, "it says nothing of what is allocated"),
                Err(e) => self.disk_failed(now, &e.to_string()),
            },
            ForeignEvent::Held(attempt) => {
                self.switch.held(attempt);
            }
            ForeignEvent::Parked(result) => self.on_parked(now, &result),
            ForeignEvent::Persisted(result) => self.on_persisted(now, &result),
            ForeignEvent::Command(command) => self.on_command(now, command),
        }
        self.pump(now);
        self.ops.1 = now + TICK;
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<ForeignAction> {
        self.actions.pop_front()
    }

    /// When to call with [`ForeignEvent::Tick`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Micros> {
        (!self.is_over()).then_some(self.ops.1)
    }

    /// Whether nothing more will be done: clients are sent to the server, or the disk is served here as before.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.end.outcome.is_some()
            && matches!(self.switch.phase(), Phase::Owner | Phase::Forwarding)
    }

    /// How it ended; `Ok` when the disk has moved. `None` while it has not.
    #[must_use]
    pub fn outcome(&self) -> Option<&Result<()>> {
        self.end.outcome.as_ref()
    }

    /// Where the switchover stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.switch.phase()
    }

    /// Whether the server was told all there is.
    fn is_in_step(&self) -> bool {
        self.scan.is_complete()
            && self.tracker.figures().dirty == 0
            && self.pieces.count() == 0
            && matches!(self.link.1, Link::Up(_))
    }

    fn next_op(&mut self) -> OpId {
        self.ops.0 += 1;
        OpId(self.ops.0)
    }

    fn ask(&mut self, op: OpId, order: ForeignOrder) {
        self.actions.push_back(ForeignAction::Ask(op, order));
    }

    fn can(&self) -> ForeignAbilities {
        match &self.link.1 {
            Link::Up(export) => export.can,
            _ => ForeignAbilities::default(),
        }
    }

    fn on_opened(&mut self, now: Micros, link: u64, result: Result<ForeignExport, String>) {
        if link != self.link.0 || !matches!(self.link.1, Link::Opening) {
            return;
        }
        match result {
            Ok(export) => {
                if let Err(why) = export.takes(self.config.description.size, self.without_flush) {
                    let what = format!("{}: {why}", self.config.to);
                    self.fail(now, Error::new(ErrorKind::Refused, what));
                    return;
                }
                self.link.1 = Link::Up(export);
                self.end.trouble = None;
                if !self.local.attach_asked {
                    self.local.attach_asked = true;
                    self.actions.push_back(ForeignAction::AttachTap);
                }
            }
            Err(why) => {
                self.end.trouble = Some(why);
                self.link.1 = Link::Down(now + AGAIN);
            }
        }
    }

    /// Nothing that is not durable counts as sent.
    fn lose_link(&mut self, now: Micros) {
        let tells = self.can().flush;
        self.link.1 = Link::Down(now + SETTLE);
        self.local.reconnects += 1;
        self.actions.push_back(ForeignAction::Close);
        let lost = (self.pieces.lose_volatile(), self.pieces.lose_flying());
        #[cfg(test)]
        let lost = self.forget(lost, now);
        for (kind, offset, len) in lost.0.into_iter().chain(lost.1) {
            self.again(kind, offset, len);
        }
        if !tells {
            // Nothing was ever said to be durable.
            self.scan.begin_anew();
        }
        // Clients would be sent to a server that has just gone.
        if self.switch.phase() == Phase::Marking {
            self.give_up(now);
        }
    }

    /// What the server has there may not be what is here.
    fn again(&mut self, kind: Kind, offset: u64, len: u64) {
        match kind {
            Kind::Data => self.tracker.mark(offset, len),
            Kind::Zeroes => self.scan.ask_again(offset, len),
        }
    }

    fn disk_failed(&mut self, now: Micros, why: &str) {
        let what = format!("the disk of this host cannot be read: {why}");
        self.fail(now, Error::new(ErrorKind::Disk, what));
    }

    fn on_read(&mut self, now: Micros, op: OpId, result: std::io::Result<Bytes>) {
        let Some(piece) = self.pieces.get(op) else {
            return;
        };
        let data = match result {
            Ok(data) => data,
            Err(e) => {
                self.pieces.end(op);
                self.again(Kind::Data, piece.offset, piece.len);
                self.disk_failed(now, &e.to_string());
                return;
            }
        };
        self.pieces.goes_on(op, Step::Changing);
        let is_zero = data.iter().all(|byte| *byte == 0);
        self.pace.read.0 += piece.len;
        self.pace.read.1 += if is_zero { piece.len } else { 0 };
        let order = if self.can().zero && is_zero {
            ForeignOrder::Zero(piece.offset, piece.len)
        } else {
            self.pace.bucket.spend(piece.len);
            ForeignOrder::Write(piece.offset, data)
        };
        self.ask(op, order);
    }

    fn on_answered(&mut self, now: Micros, op: OpId, result: Result<ForeignAnswer, String>) {
        if self.pieces.is_flush(op) {
            self.on_flushed(now, &result);
            return;
        }
        let Some(piece) = self.pieces.get(op) else {
            return;
        };
        match (piece.step, result) {
            (_, Err(why)) => {
                self.pieces.end(op);
                self.refused(now, &why);
                // What a failed request left there is not looked at: it is done again.
                self.again(Kind::Data, piece.offset, piece.len);
            }
            (Step::Looking, Ok(ForeignAnswer::Done)) => self.make_zero(op, &piece),
            (_, Ok(_)) => {
                self.pieces.end(op);
                self.pace.refused = false;
                if self.can().flush {
                    self.pieces.is_there(&piece);
                }
                if piece.kind == Kind::Data {
                    self.pace.sent.add(now, piece.len);
                }
            }
        }
    }

    fn make_zero(&mut self, op: OpId, piece: &Piece) {
        if self.can().zero {
            self.pieces.goes_on(op, Step::Changing);
            self.ask(op, ForeignOrder::Zero(piece.offset, piece.len));
        } else {
            // Zeroes are read and written as anything else is.
            self.pieces.end(op);
            self.again(Kind::Data, piece.offset, piece.len);
        }
    }

    fn on_flushed(&mut self, now: Micros, result: &Result<ForeignAnswer, String>) {
        match result {
            Ok(_) => {
                self.pace.durable += self.pieces.flushed();
                #[cfg(test)]
                self.flush_too_much();
            }
            Err(why) => {
                self.refused(now, why);
                // A server may show what it will never make durable.
                for (_, offset, len) in self.pieces.not_flushed() {
                    self.again(Kind::Data, offset, len);
                }
            }
        }
    }

    fn refused(&mut self, now: Micros, why: &str) {
        self.end.trouble = Some(format!("the server refused: {why}"));
        if std::mem::replace(&mut self.pace.refused, true) {
            self.pace.not_before = now + AGAIN;
        }
    }

    /// Do whatever can be done now.
    fn pump(&mut self, now: Micros) {
        self.pace.sent.tick(now);
        if now.since(self.pace.faded_at) >= FADE_EVERY {
            self.pace.faded_at = now;
            self.tracker.fade();
        }
        self.watch_the_clock(now);
        let works = self.end.outcome.is_none() && !self.switch.decided();
        if works
            && let Link::Down(not_before) = self.link.1
            && now >= not_before
        {
            self.link = (self.link.0 + 1, Link::Opening);
            self.actions.push_back(ForeignAction::Open(self.link.0));
        }
        let up = matches!(self.link.1, Link::Up(_)) && self.local.attached;
        if works && up && !self.switch.is_parked() {
            if now >= self.pace.not_before {
                self.pump_scan();
                self.pump_zeroes();
                self.pump_data(now);
                self.pump_flush(now);
            }
            self.pump_switch(now);
        }
    }

    fn pump_scan(&mut self) {
        let op = OpId(self.ops.0 + 1);
        if let Some((offset, len)) = self.scan.ask(op, &self.tracker) {
            self.ops.0 += 1;
            self.actions
                .push_back(ForeignAction::Status(op, offset, len));
        }
    }

    fn pump_zeroes(&mut self) {
        // A server may take its time for each, and goes on with them when the connection is lost.
        while self.pieces.zeroing() < MOST_ZEROING
            && self.pieces.count() < PIECES
            && let Some(claim) = self.scan.first_zeroes()
            && self.is_free(claim.offset, claim.len)
        {
            self.scan.next_zeroes();
            let (offset, len) = (claim.offset, claim.len);
            let op = self.next_op();
            let piece = Piece {
                offset,
                len,
                kind: Kind::Zeroes,
                step: Step::Looking,
            };
            self.pieces.begin(op, piece);
            if self.can().tell {
                self.ask(op, ForeignOrder::Look(offset, len));
            } else {
                self.make_zero(op, &piece);
            }
        }
    }

    /// F1.
    fn is_free(&self, offset: u64, len: u64) -> bool {
        #[cfg(test)]
        if self.is_broken(sim::Broken::TwoAtOnce) {
            return true;
        }
        !self.pieces.meet(offset, len)
    }

    fn pump_data(&mut self, now: Micros) {
        let limits = self.config.limits;
        let unsettled = self.scan.is_unsettled();
        #[cfg(test)]
        let unsettled = unsettled && !self.is_broken(sim::Broken::DataBeforeZeroes);
        if unsettled {
            return;
        }
        // The rate is for clients' sake, who wait for this now.
        let held = matches!(self.switch.phase(), Phase::Holding | Phase::Draining);
        while self.pieces.count() < PIECES
            && self.pieces.bytes() < limits.window
            && self.pieces.reading() < limits.reads
            && (held || self.pace.bucket.open(now))
        {
            let known = self.scan.is_complete();
            let Some(claim) = self.tracker.claim(0, limits.chunk, known) else {
                return;
            };
            if !self.is_free(claim.offset, claim.len) {
                // What is under way ends, and then it is its turn.
                self.tracker.mark(claim.offset, claim.len);
                return;
            }
            let op = self.next_op();
            let piece = Piece {
                offset: claim.offset,
                len: claim.len,
                kind: Kind::Data,
                step: Step::Reading,
            };
            self.pieces.begin(op, piece);
            let read = ForeignAction::Read(op, claim.offset, claim.len as u32);
            self.actions.push_back(read);
        }
    }

    fn pump_flush(&mut self, now: Micros) {
        let due = now.since(self.pace.flushed_at) >= FLUSH_EVERY;
        // Clients wait for it.
        let last = self.switch.phase() == Phase::Draining && self.is_in_step();
        if (due || last) && self.can().flush && self.pieces.may_flush() {
            self.pace.flushed_at = now;
            let op = self.next_op();
            self.pieces.begin_flush(op);
            self.ask(op, ForeignOrder::Flush);
        }
    }
}
