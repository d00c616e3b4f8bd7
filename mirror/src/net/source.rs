//! Drives one source session: its machine, its lanes, its disk, on a thread of its own.
//!
//! Must never decide anything and never block on the disk; see [`super`].

mod ahead;
mod foreign;
mod handed_over;
mod handle;
mod parts;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use uuid::Uuid;
use vdisk::tap::WriteTap;

pub use self::foreign::{ForeignHeard, ForeignLines, ForeignServer, Hear};
pub use self::handle::{SourceHandle, SourceStatus};

use self::handed_over::HandedOver;
use self::handle::Shared;
use self::parts::Parts;
use super::lane::{Carried, Heard, Inbox, Lane};
use super::port::{ServedDisk, Signal};
use super::socket::{SiteAddress, Traffic, connect, lanes};
use super::tls;
use super::{Clock, arbiter, local_minute};
use crate::arbiter::Side;
use crate::clock::Micros;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{RecordStore, SessionStore};
use crate::history::{History, Wire};
use crate::picture::{MOST_CELLS, Picture};
use crate::record::{Ownership, State};
use crate::saved::Saved;
use crate::session::{ConnId, Source, SourceAction, SourceConfig, SourceEvent};
use crate::switchover::Phase;
use crate::timetable::WeekMinute;
use crate::tracker::Tracker;
use crate::wire::{Decoder, Message};

/// How often the figures are renewed while nothing decisive happens.
const FIGURES_EVERY: Duration = Duration::from_millis(100);
/// How long a failed write of the deciding record waits before the machine hears of it: it asks for
/// the next attempt at once.
const RECORD_AGAIN: Duration = Duration::from_millis(200);

/// Starts source sessions.
#[derive(Debug)]
pub struct SourceDriver;

impl SourceDriver {
    /// Move `disk` to `config.to` while it is served.
    ///
    /// The record in `store` has to say that this host owns the disk; when there is none the disk
    /// never moved, and a first one is written. The caller has looked at marks in the image before
    /// ([`crate::switchover::verdict`]). Blocks for the record only, and, if the target is to be taken at its word
    /// ([`crate::session::Replica::left`]), until every change is seen.
    ///
    /// Fails with [`ErrorKind::NotOwned`], [`ErrorKind::InvalidArgument`] (an address, a size),
    /// [`ErrorKind::Record`] or [`ErrorKind::Io`]; nothing has begun then.
    pub fn start(
        disk: Arc<dyn ServedDisk>,
        store: RecordStore,
        config: SourceConfig,
    ) -> Result<SourceHandle> {
        Self::begin(disk, store, (config, None))
    }

    /// The same, of which what is needed to go on after a crash is kept in `kept`, if `config` says so.
    pub fn start_kept(
        disk: Arc<dyn ServedDisk>,
        store: RecordStore,
        (config, kept): (SourceConfig, SessionStore),
    ) -> Result<SourceHandle> {
        Self::begin(disk, store, (config, Some(kept)))
    }

    /// The record of a disk; a first one is written if there is none. Blocks.
    ///
    /// Fails with [`ErrorKind::Record`].
    pub fn record(store: &RecordStore) -> Result<Ownership> {
        if let Some(record) = store.load()? {
            return Ok(record);
        }
        let record = Ownership::first(Uuid::new_v4());
        store.persist_and_wait(&record)?;
        Ok(record)
    }

    fn begin(
        disk: Arc<dyn ServedDisk>,
        store: RecordStore,
        (mut config, kept): (SourceConfig, Option<SessionStore>),
    ) -> Result<SourceHandle> {
        fits(disk.as_ref(), &mut config)?;
        let seen = config.replica.left.is_some();
        let record = Self::record(&store)?;
        let tracker = tracker_of(&config);
        let machine = Source::new(config.clone(), &record, Arc::clone(&tracker))?;
        let parts = Parts {
            machine,
            config,
            disk,
            store: Some(store),
            kept,
            tracker,
        };
        let session = parts.start()?;
        if seen {
            session.wait_for_tap();
        }
        Ok(session)
    }

    /// Go on with a session that was kept when this process or its host ended. `saved` is what is kept of it, in its new
    /// life, durably; of one of a group, which begins its new life when all its disks are there, it is what was found. The
    /// target may not have `parts` of the disk as they are here. Nobody may change the disk before this returns: it waits
    /// until every change is seen.
    ///
    /// Fails as [`SourceDriver::start`].
    pub fn resume(
        disk: Arc<dyn ServedDisk>,
        store: RecordStore,
        (mut config, kept): (SourceConfig, SessionStore),
        (saved, parts): (&Saved, &[(u64, u64)]),
    ) -> Result<SourceHandle> {
        fits(disk.as_ref(), &mut config)?;
        let Some(record) = store.load()? else {
            return Err(Error::new(ErrorKind::NotOwned, "the disk has no record"));
        };
        let tracker = tracker_of(&config);
        let machine = Source::resumed(
            config.clone(),
            &record,
            Arc::clone(&tracker),
            (saved, parts),
        )?;
        let parts = Parts {
            machine,
            config,
            disk,
            store: Some(store),
            kept: Some(kept),
            tracker,
        };
        let session = parts.start()?;
        session.wait_for_tap();
        Ok(session)
    }

    /// Go on with a disk that was handed over, of which this host does not know that the target
    /// runs: repeats the grant until it does, then calls `forward` with its NBD address.
    ///
    /// `record` is the disk's ([`State::Released`]); its session and address win over those in
    /// `config`, but the address does not if `config` says that it was recorded as something else.
    pub fn resume_released(
        record: &Ownership,
        mut config: SourceConfig,
        forward: impl FnOnce(&str) + Send + 'static,
    ) -> Result<SourceHandle> {
        if let State::Released { session, to, .. } = &record.state {
            config.session = *session;
            if config.recorded.is_none() {
                config.to.clone_from(to);
            }
        }
        SiteAddress::parse(&config.to)?;
        let machine = Source::released(config.clone(), record)?;
        let disk = Arc::new(HandedOver {
            forward: Mutex::new(Some(Box::new(forward))),
        });
        let tracker = Arc::new(Tracker::new(0, 0));
        Parts {
            machine,
            config,
            disk,
            store: None,
            kept: None,
            tracker,
        }
        .start()
    }
}

/// What sees the disk's changes: by itself, or in one sequence with those of its group.
fn tracker_of(config: &SourceConfig) -> Arc<Tracker> {
    let (size, queue) = (config.description.size, config.limits.queue);
    Arc::new(match &config.replica.group {
        Some(place) => Tracker::in_sequence(size, queue, Arc::clone(&place.sequence)),
        None => Tracker::new(size, queue),
    })
}

/// Whether the disk is as it is described, and the address one; it decides how many connections are made.
fn fits(disk: &dyn ServedDisk, config: &mut SourceConfig) -> Result<()> {
    let target = SiteAddress::parse(&config.to)?;
    config.limits.lanes = lanes(&target, config.limits.lanes);
    if disk.size() == config.description.size {
        return Ok(());
    }
    let what = format!(
        "the disk has {} bytes, its description says {}",
        disk.size(),
        config.description.size
    );
    Err(Error::new(ErrorKind::InvalidArgument, what))
}

/// What comes to the session's thread beside what its lanes hear.
#[derive(Debug)]
enum Order {
    Event(SourceEvent),
    /// The same, and it has waited enough.
    Late(SourceEvent),
    /// What a lane heard, and there is a way for clients' requests.
    Ready(ConnId, Message),
    /// Somebody wants to see the disk, in so many cells at most.
    Draw(usize, Sender<Picture>),
    Stop,
}

/// The session as its thread has it.
struct Session {
    parts: Parts,
    clock: Clock,
    started: Micros,
    lanes: BTreeMap<ConnId, (Traffic, Lane)>,
    /// Connections closed here that still carry what was sent.
    closing: JoinSet<()>,
    orders: mpsc::UnboundedSender<Order>,
    inbox: Inbox,
    carried: Arc<Carried>,
    history: History,
    shared: Arc<Shared>,
    said: Said,
}

/// What the figures showed last.
#[derive(Debug)]
struct Said {
    at: Instant,
    phase: Phase,
    /// What the machine was told of the host's clock.
    minute: Option<WeekMinute>,
}

impl Session {
    fn new(
        parts: Parts,
        shared: Arc<Shared>,
        orders: mpsc::UnboundedSender<Order>,
        inbox: Inbox,
    ) -> Self {
        let clock = Clock::start();
        let said = Said {
            at: Instant::now(),
            phase: parts.machine.phase(),
            minute: None,
        };
        Self {
            parts,
            clock,
            started: clock.now(),
            lanes: BTreeMap::new(),
            closing: JoinSet::new(),
            orders,
            inbox,
            carried: Arc::default(),
            history: History::default(),
            shared,
            said,
        }
    }

    async fn run(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        mut heard: mpsc::Receiver<(ConnId, Heard)>,
    ) {
        let wake = Arc::new(Notify::new());
        let waker = Arc::clone(&wake);
        self.parts
            .tracker
            .set_waker(Box::new(move || waker.notify_one()));
        self.handle(SourceEvent::Tick);
        let mut looked: Option<Instant> = None;
        while !self.parts.machine.is_over() {
            let span = self
                .parts
                .machine
                .poll_timeout()
                .map(|at| self.clock.until(at));
            let event = tokio::select! {
                biased;
                Some(order) = orders.recv() => match order {
                    Order::Event(event @ SourceEvent::Persisted(Err(_))) => {
                        self.delay(event);
                        continue;
                    }
                    Order::Event(event) | Order::Late(event) => event,
                    Order::Ready(conn, message) if self.lanes.contains_key(&conn) => {
                        SourceEvent::Message(conn, message)
                    }
                    Order::Ready(..) => continue,
                    Order::Draw(cells, to) => {
                        // Who asked may have gone.
                        let _ = to.send(self.parts.machine.picture(cells));
                        continue;
                    }
                    Order::Stop => return,
                },
                Some((conn, heard)) = heard.recv() => match self.heard(conn, heard) {
                    Some(event) => event,
                    None => continue,
                },
                () = wake.notified() => SourceEvent::Tick,
                () = tokio::time::sleep(span.unwrap_or(FIGURES_EVERY)) => SourceEvent::Tick,
            };
            self.handle(event);
            if looked.is_none_or(|at| at.elapsed() >= FIGURES_EVERY) {
                looked = Some(Instant::now());
                self.look_at_the_clock();
            }
        }
        self.end().await;
    }

    /// What is left once the machine has ended: what was said last leaves the host.
    async fn end(mut self) {
        self.publish();
        self.shared.lock().last = self.parts.machine.picture(MOST_CELLS);
        self.lanes.clear();
        while self.closing.join_next().await.is_some() {}
    }

    fn delay(&self, event: SourceEvent) {
        let orders = self.orders.clone();
        tokio::spawn(async move {
            tokio::time::sleep(RECORD_AGAIN).await;
            let _ = orders.send(Order::Late(event));
        });
    }

    /// What a lane heard, for the machine; nothing of lanes that were closed.
    fn heard(&mut self, conn: ConnId, heard: Heard) -> Option<SourceEvent> {
        if !self.lanes.contains_key(&conn) {
            return None;
        }
        Some(match heard {
            Heard::Connected => SourceEvent::Connected(conn),
            Heard::Message(message @ Message::Ready { .. })
                if !self.parts.disk.is_expected_up() =>
            {
                let (disk, orders) = (Arc::clone(&self.parts.disk), self.orders.clone());
                let ready = Order::Ready(conn, message);
                tokio::spawn(ahead::once_there(disk, move || drop(orders.send(ready))));
                return None;
            }
            Heard::Message(message) => SourceEvent::Message(conn, message),
            Heard::Malformed(e) => {
                tracing::error!(
                    "{} sent bytes that are no message: {e}",
                    self.parts.config.to
                );
                self.lanes.remove(&conn);
                SourceEvent::Malformed(conn, e)
            }
            Heard::Closed(why) => {
                tracing::debug!("the connection to {} ended: {why}", self.parts.config.to);
                self.lanes.remove(&conn);
                SourceEvent::Closed(conn, why)
            }
        })
    }

    fn handle(&mut self, event: SourceEvent) {
        self.parts.machine.handle(self.clock.now(), event);
        while let Some(action) = self.parts.machine.poll_action() {
            self.act(action);
        }
        while self.closing.try_join_next().is_some() {}
        let phase = self.parts.machine.phase();
        // However short it is, each stage is seen once.
        if phase != self.said.phase
            || self.said.at.elapsed() >= FIGURES_EVERY
            || !self.history.has_met(self.parts.machine.stage())
        {
            self.said.at = Instant::now();
            self.said.phase = phase;
            self.publish();
        }
    }

    /// Tell the machine when another minute has begun.
    fn look_at_the_clock(&mut self) {
        let minute = local_minute();
        if self.said.minute != Some(minute) {
            self.said.minute = Some(minute);
            self.handle(SourceEvent::Minute(minute));
        }
    }

    fn act(&mut self, action: SourceAction) {
        let disk = &self.parts.disk;
        match action {
            SourceAction::Connect(conn, lane) => self.connect(conn, lane),
            SourceAction::Close(conn) => self.close(conn),
            SourceAction::Send(conn, message) => {
                if let Some((_, lane)) = self.lanes.get(&conn) {
                    lane.send(message);
                }
            }
            SourceAction::AttachTap => {
                let tap: Arc<dyn WriteTap> = Arc::<Tracker>::clone(&self.parts.tracker);
                let (shared, orders) = (Arc::clone(&self.shared), self.orders.clone());
                let attached = move || {
                    shared.lock().tapped = true;
                    shared.changed.notify_all();
                    let _ = orders.send(Order::Event(SourceEvent::Attached(Ok(()))));
                };
                disk.attach_tap(tap, Box::new(attached));
            }
            SourceAction::DetachTap => disk.detach_tap(Box::new(|| {})),
            SourceAction::Read(op, offset, len) => {
                let tell = self.tell(move |result| SourceEvent::Read(op, whole(result, len)));
                disk.read(offset, len, tell);
            }
            SourceAction::Status(op, offset, len) => {
                disk.status(
                    offset,
                    len,
                    self.tell(move |result| SourceEvent::Status(op, result)),
                );
            }
            SourceAction::Hold(attempt) => {
                tracing::debug!("holding requests for attempt {attempt}");
                disk.hold(self.signal(move || SourceEvent::Held(attempt)));
            }
            SourceAction::Release => disk.release(),
            SourceAction::Park(mark) => disk.park(mark, self.tell(SourceEvent::Parked)),
            SourceAction::Persist(record) => self.persist(&record),
            SourceAction::Reach { attempt, arbiter } => {
                let tell = self.tell(move |result| SourceEvent::Reached(attempt, result));
                arbiter::apart(move || arbiter::reach(&arbiter), tell);
            }
            SourceAction::Reclaim { arbiter, ballot } => {
                let tell = self.tell(move |result| SourceEvent::Decided(ballot, result));
                let ask = move || arbiter::ask(&arbiter, ballot, Side::Source);
                arbiter::apart(ask, tell);
            }
            SourceAction::Brake(bytes) => disk.brake(bytes),
            SourceAction::Checkpoint => {
                let orders = self.orders.clone();
                disk.checkpoint(Box::new(move |name| {
                    let _ = orders.send(Order::Event(SourceEvent::Checkpointed(name)));
                }));
            }
            SourceAction::Save(saved) => self.save(saved.as_deref()),
            SourceAction::Expect(address) => disk.expect(&address),
            SourceAction::ForwardAhead(address) => disk.forward_ahead(&address),
            SourceAction::Forward(address) => {
                tracing::info!("the target runs; requests go to {address}");
                disk.forward(&address);
            }
        }
    }

    /// A callback that tells the machine how something ended.
    fn tell<T>(
        &self,
        event: impl FnOnce(io::Result<T>) -> SourceEvent + Send + 'static,
    ) -> Box<dyn FnOnce(io::Result<T>) + Send> {
        let orders = self.orders.clone();
        Box::new(move |result| {
            let _ = orders.send(Order::Event(event(result)));
        })
    }

    fn signal(&self, event: impl FnOnce() -> SourceEvent + Send + 'static) -> Signal {
        let orders = self.orders.clone();
        Box::new(move || {
            let _ = orders.send(Order::Event(event()));
        })
    }

    fn save(&self, saved: Option<&Saved>) {
        let done = self.tell(SourceEvent::Saved);
        match &self.parts.kept {
            Some(kept) => kept.keep(saved, done),
            None => done(Ok(())),
        }
    }

    fn persist(&self, record: &Ownership) {
        let done = self.tell(SourceEvent::Persisted);
        match &self.parts.store {
            Some(store) => store.persist(record, done),
            None => done(Err(io::Error::other(
                "a disk that was handed over has its record",
            ))),
        }
    }

    fn connect(&mut self, conn: ConnId, lane: u16) {
        let traffic = if lane == 0 {
            Traffic::Ordered
        } else {
            Traffic::Bulk
        };
        let address = self.parts.config.to.clone();
        let lane = Lane::spawn(
            conn,
            self.inbox.clone(),
            Arc::clone(&self.carried),
            |ends| async move {
                let connected = match SiteAddress::parse(&address) {
                    Ok(target) => connect(&target, traffic).await,
                    Err(e) => Err(io::Error::other(e.to_string())),
                };
                match connected {
                    Ok(stream) => {
                        ends.tell(Heard::Connected).await;
                        ends.carry(stream, Decoder::default()).await;
                    }
                    Err(e) => {
                        ends.tell(Heard::Closed(format!(
                            "cannot connect to {address}: {}",
                            tls::explain(&e)
                        )))
                        .await;
                    }
                }
            },
        );
        self.lanes.insert(conn, (traffic, lane));
    }

    /// What waits on a bulk lane is read anew for another one; the ordered lane may carry a farewell.
    fn close(&mut self, conn: ConnId) {
        if let Some((Traffic::Ordered, lane)) = self.lanes.remove(&conn) {
            lane.close(&mut self.closing);
        }
    }

    fn publish(&mut self) {
        let progress = self.parts.machine.progress();
        let elapsed = self.clock.now().since(self.started);
        let wire = Wire {
            sent: self.carried.sent.load(Ordering::Relaxed),
            spared: self.carried.spared.load(Ordering::Relaxed),
        };
        self.history.see(elapsed, &progress, wire);
        let outcome = self.parts.machine.outcome();
        // Where the disk stays is not known before that.
        let outcome = outcome.filter(|_| !self.parts.machine.is_offered());
        let failed = outcome.and_then(|result| result.as_ref().err());
        let awaits = self.parts.machine.awaits();
        let mut state = self.shared.lock();
        state.failed = failed.map(Error::kind);
        state.status.awaits = awaits;
        state.phase = self.parts.machine.phase();
        state.status.progress = progress;
        state.status.sent = wire.sent;
        state.status.elapsed = elapsed.0;
        state.status.dirty_rate = self.history.dirty_rate();
        state.status.behind = self.history.behind();
        state.status.report.clone_from(self.history.report());
        state.status.ended = self.parts.machine.is_over();
        state.status.error = failed.map(ToString::to_string);
        drop(state);
        self.shared.changed.notify_all();
    }
}

/// What was read, if it is as long as was asked for.
fn whole(result: io::Result<Bytes>, len: u32) -> io::Result<Bytes> {
    match result {
        Ok(data) if data.len() != len as usize => {
            let what = format!("the disk gave {} bytes of {len}", data.len());
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, what))
        }
        result => result,
    }
}
