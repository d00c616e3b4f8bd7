//! Drives one session to a server that knows nothing of moves, on a thread of its own.
//!
//! Must never decide anything and never block on the disk or on the server, which [`ForeignServer`] reaches.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use vdisk::tap::WriteTap;

use super::handle::Shared;
use super::parts::{begun, on_a_thread};
use super::{FIGURES_EVERY, Order, RECORD_AGAIN, Said, SourceDriver, SourceHandle, whole};
use crate::clock::Micros;
use crate::error::{Error, ErrorKind, Result};
use crate::files::RecordStore;
use crate::history::{History, Wire};
use crate::net::port::ServedDisk;
use crate::net::{Clock, local_minute};
use crate::record::{Ownership, State};
use crate::session::foreign::{
    Foreign, ForeignAction, ForeignAnswer, ForeignEvent, ForeignExport, ForeignOrder,
};
use crate::session::{OpId, SourceConfig, SourceEvent};
use crate::tracker::Tracker;

/// What is said of every such session.
const NOT_PROMISED: &str = "an NBD server keeps no order and no record: what it has is this disk only once the move has \
ended, nothing but this host's record says that it owns the disk then, nothing keeps others from writing there, what is \
durable there is what its flush says is, and a move that is broken off begins again from the start";

/// Told what is heard of connections; may be called on any thread.
pub type Hear = Arc<dyn Fn(ForeignHeard) + Send + Sync>;

/// What is heard of connections.
#[derive(Debug)]
pub enum ForeignHeard {
    /// The server answered; an error is what it said.
    Answered(OpId, Result<ForeignAnswer, String>),
    /// One of them ended: all are of no use.
    Lost(String),
}

/// A server that knows nothing of moves, and the export of it that is meant.
pub trait ForeignServer: Send + Sync + 'static {
    /// Connect to it, as often as it likes; may block.
    ///
    /// # Errors
    /// Whatever kept it from being reached.
    fn open(&self, hear: Hear) -> io::Result<(ForeignExport, Box<dyn ForeignLines>)>;
}

/// Connections to it. When they are dropped what was asked may or may not be done.
pub trait ForeignLines: Send {
    /// Ask for something; never blocks.
    fn ask(&self, op: OpId, order: ForeignOrder);
}

impl SourceDriver {
    /// Move `disk` to an export of a server that knows nothing of moves, while it is served; `config.to` is its address.
    /// Nothing is kept of the session. One that has no flush is refused, except `without_flush`.
    ///
    /// # Errors
    /// As [`SourceDriver::start`].
    pub fn start_foreign(
        disk: Arc<dyn ServedDisk>,
        server: Arc<dyn ForeignServer>,
        store: RecordStore,
        (config, without_flush): (SourceConfig, bool),
    ) -> Result<SourceHandle> {
        let record = Self::record(&store)?;
        let tracker = Arc::new(Tracker::new(config.description.size, 0));
        let for_machine = Arc::clone(&tracker);
        let machine = Foreign::new(config.clone(), &record, for_machine, without_flush)?;
        let (orders, incoming) = mpsc::unbounded_channel();
        let (tell, told) = mpsc::unbounded_channel();
        let shared = begun(&config, machine.progress(), machine.phase());
        shared.lock().status.not_promised = Some(NOT_PROMISED);
        let handle = SourceHandle {
            shared: Arc::clone(&shared),
            orders,
        };
        let site = Site {
            disk,
            server,
            store,
            tracker,
            address: config.to,
        };
        on_a_thread(&Arc::clone(&shared), move || {
            Session::new((machine, site), shared, tell).run(incoming, told)
        })?;
        Ok(handle)
    }

    /// Go on with a disk that was handed over to such a server by `record`: `forward` is called with its address.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the record says something else.
    pub fn moved_to_foreign(
        record: &Ownership,
        mut config: SourceConfig,
        forward: impl FnOnce(&str),
    ) -> Result<SourceHandle> {
        let State::Released { session, to, .. } = &record.state else {
            let what = "the disk was not handed over";
            return Err(Error::new(ErrorKind::InvalidArgument, what));
        };
        config.session = *session;
        config.to.clone_from(to);
        let machine = Foreign::moved(config.clone(), record)?;
        let shared = begun(&config, machine.progress(), machine.phase());
        let mut state = shared.lock();
        state.status.not_promised = Some(NOT_PROMISED);
        state.status.ended = true;
        state.stopped = true;
        drop(state);
        forward(to);
        // Nobody listens: there is nothing to be ordered any more.
        let (orders, _) = mpsc::unbounded_channel();
        Ok(SourceHandle { shared, orders })
    }
}

/// What the session works on.
struct Site {
    disk: Arc<dyn ServedDisk>,
    server: Arc<dyn ForeignServer>,
    store: RecordStore,
    tracker: Arc<Tracker>,
    address: String,
}

/// What comes back.
enum Told {
    Event(ForeignEvent),
    /// The same, and it has waited enough.
    Late(ForeignEvent),
    /// The connections of that number.
    Opened(u64, io::Result<(ForeignExport, Box<dyn ForeignLines>)>),
}

type Tell = mpsc::UnboundedSender<Told>;

/// The session as its thread has it.
struct Session {
    machine: Foreign,
    site: Site,
    lines: Option<Box<dyn ForeignLines>>,
    /// The last connections that were asked for.
    opened: u64,
    clock: Clock,
    started: Micros,
    shared: Arc<Shared>,
    tell: Tell,
    /// Bytes given to the server.
    sent: u64,
    history: History,
    said: Said,
}

impl Session {
    fn new((machine, site): (Foreign, Site), shared: Arc<Shared>, tell: Tell) -> Self {
        let clock = Clock::start();
        let said = Said {
            at: Instant::now(),
            phase: machine.phase(),
            minute: None,
        };
        Self {
            machine,
            site,
            lines: None,
            opened: 0,
            started: clock.now(),
            clock,
            shared,
            tell,
            sent: 0,
            history: History::default(),
            said,
        }
    }

    async fn run(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        mut told: mpsc::UnboundedReceiver<Told>,
    ) {
        let wake = Arc::new(Notify::new());
        let waker = Arc::clone(&wake);
        let tracker = &self.site.tracker;
        tracker.set_waker(Box::new(move || waker.notify_one()));
        self.handle(ForeignEvent::Tick);
        let mut looked: Option<Instant> = None;
        while !self.machine.is_over() {
            let until = self.machine.poll_timeout().map(|at| self.clock.until(at));
            let event = tokio::select! {
                biased;
                Some(order) = orders.recv() => match order {
                    Order::Event(SourceEvent::Command(command)) => ForeignEvent::Command(command),
                    Order::Event(_) | Order::Late(_) | Order::Ready(..) => continue,
                    Order::Draw(cells, to) => {
                        // Who asked may have gone.
                        let _ = to.send(self.machine.picture(cells));
                        continue;
                    }
                    Order::Stop => return,
                },
                Some(told) = told.recv() => match self.heard(told) {
                    Some(event) => event,
                    None => continue,
                },
                () = wake.notified() => ForeignEvent::Tick,
                () = tokio::time::sleep(until.unwrap_or(FIGURES_EVERY)) => ForeignEvent::Tick,
            };
            self.handle(event);
            if looked.is_none_or(|at| at.elapsed() >= FIGURES_EVERY) {
                looked = Some(Instant::now());
                self.look_at_the_clock();
            }
        }
        self.publish();
    }

    fn heard(&mut self, told: Told) -> Option<ForeignEvent> {
        match told {
            Told::Event(event @ ForeignEvent::Persisted(Err(_))) => {
                // The machine asks for the next attempt at once.
                self.later(RECORD_AGAIN, event);
                None
            }
            Told::Event(event) | Told::Late(event) => Some(event),
            // One that was lost while it was being made may be there after the next.
            Told::Opened(link, Ok(_)) if link != self.opened => None,
            Told::Opened(link, Ok((export, lines))) => {
                self.lines = Some(lines);
                Some(ForeignEvent::Opened(link, Ok(export)))
            }
            Told::Opened(link, Err(e)) => Some(ForeignEvent::Opened(link, Err(e.to_string()))),
        }
    }

    fn later(&self, span: Duration, event: ForeignEvent) {
        let tell = self.tell.clone();
        tokio::spawn(async move {
            tokio::time::sleep(span).await;
            let _ = tell.send(Told::Late(event));
        });
    }

    fn handle(&mut self, event: ForeignEvent) {
        self.machine.handle(self.clock.now(), event);
        while let Some(action) = self.machine.poll_action() {
            self.act(action);
        }
        let phase = self.machine.phase();
        if phase != self.said.phase || self.said.at.elapsed() >= FIGURES_EVERY {
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
            self.handle(ForeignEvent::Minute(minute));
        }
    }

    fn act(&mut self, action: ForeignAction) {
        let disk = Arc::clone(&self.site.disk);
        match action {
            ForeignAction::Open(link) => {
                self.opened = link;
                self.open(link);
            }
            ForeignAction::Close => self.lines = None,
            ForeignAction::Ask(op, order) => {
                if let ForeignOrder::Write(_, data) = &order {
                    self.sent += data.len() as u64;
                }
                if let Some(lines) = &self.lines {
                    lines.ask(op, order);
                }
            }
            ForeignAction::AttachTap => {
                let tap: Arc<dyn WriteTap> = Arc::<Tracker>::clone(&self.site.tracker);
                let attached = self.tell(|()| ForeignEvent::Attached);
                disk.attach_tap(tap, Box::new(move || attached(())));
            }
            ForeignAction::DetachTap => disk.detach_tap(Box::new(|| {})),
            ForeignAction::Read(op, offset, len) => {
                let read = self.tell(move |data| ForeignEvent::Read(op, whole(data, len)));
                disk.read(offset, len, Box::new(read));
            }
            ForeignAction::Status(op, offset, len) => {
                let status = self.tell(move |extents| ForeignEvent::Status(op, extents));
                disk.status(offset, len, Box::new(status));
            }
            ForeignAction::Hold(attempt) => {
                let held = self.tell(move |()| ForeignEvent::Held(attempt));
                disk.hold(Box::new(move || held(())));
            }
            ForeignAction::Release => disk.release(),
            ForeignAction::Park(mark) => {
                disk.park(mark, Box::new(self.tell(ForeignEvent::Parked)));
            }
            ForeignAction::Persist(record) => {
                let persisted = self.tell(ForeignEvent::Persisted);
                self.site.store.persist(&record, Box::new(persisted));
            }
            ForeignAction::Forward => {
                tracing::info!("the disk has moved; requests go to {}", self.site.address);
                disk.forward(&self.site.address);
            }
        }
    }

    /// A callback that tells the machine of something.
    fn tell<T>(
        &self,
        event: impl FnOnce(T) -> ForeignEvent + Send + 'static,
    ) -> impl FnOnce(T) + Send + 'static {
        let tell = self.tell.clone();
        move |heard| {
            let _ = tell.send(Told::Event(event(heard)));
        }
    }

    fn open(&self, link: u64) {
        let (server, tell) = (Arc::clone(&self.site.server), self.tell.clone());
        let heard = self.tell.clone();
        let hear: Hear = Arc::new(move |what| {
            let event = match what {
                ForeignHeard::Answered(op, result) => ForeignEvent::Answered(link, op, result),
                ForeignHeard::Lost(why) => ForeignEvent::Lost(link, why),
            };
            let _ = heard.send(Told::Event(event));
        });
        tokio::task::spawn_blocking(move || {
            let _ = tell.send(Told::Opened(link, server.open(hear)));
        });
    }

    fn publish(&mut self) {
        let progress = self.machine.progress();
        let elapsed = self.clock.now().since(self.started);
        let wire = Wire {
            sent: self.sent,
            spared: 0,
        };
        self.history.see(elapsed, &progress, wire);
        let failed = self
            .machine
            .outcome()
            .and_then(|result| result.as_ref().err());
        let mut state = self.shared.lock();
        state.failed = failed.map(Error::kind);
        state.phase = self.machine.phase();
        state.status.progress = progress;
        state.status.sent = self.sent;
        state.status.elapsed = elapsed.0;
        state.status.dirty_rate = self.history.dirty_rate();
        state.status.report.clone_from(self.history.report());
        state.status.ended = self.machine.is_over();
        state.status.error = failed.map(ToString::to_string);
        drop(state);
        self.shared.changed.notify_all();
    }
}
