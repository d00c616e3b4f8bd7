//! Drives the target machine of one disk.
//!
//! Must never touch the disk but for an action of the machine.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use vdisk::engine::Mark;

use super::{Arrival, Entry, Router, joined, state_name};
use crate::arbiter::Side;
use crate::files::{RecordStore, journal_paths};
use crate::group::{Gathering, Member};
use crate::journal::{self as form, Head};
use crate::net::journal::{self, Ask, Journal};
use crate::net::lane::{Heard, INBOX, Inbox, Lane, answer_and_close};
use crate::net::port::{DiskPort, Done, TargetHost};
use crate::net::{Clock, arbiter};
use crate::record::State;
use crate::session::{ConnId, OpId, Target, TargetAction, TargetEvent, Upto};
use crate::wire::{Content, DiskDescription, Message, Refusal};

/// How long a task without a deadline sleeps.
const LONG: Duration = Duration::from_hours(1);

/// What comes to the task of a disk beside what its lanes hear.
pub(super) enum Happened {
    Event(TargetEvent),
    /// Of the disk's group, unasked.
    OfGroup(TargetEvent),
    Arrived(Box<Arrival>),
    Opened(io::Result<Option<Arc<dyn DiskPort>>>),
    Served(io::Result<String>),
    /// Nobody waits for the disk any more; whoever says so is told when its task has ended, by that being dropped.
    Forgotten(std::sync::mpsc::Sender<()>),
}

/// The task: the machine and what it works with.
pub(super) struct DiskTask {
    router: Arc<Router>,
    entry: Entry,
    name: String,
    store: RecordStore,
    machine: Target,
    clock: Clock,
    port: Option<Arc<dyn DiskPort>>,
    journal: Journal,
    pub(super) lanes: BTreeMap<ConnId, Lane>,
    pub(super) closing: JoinSet<()>,
    /// What the machine has asked for and has no answer to.
    pub(super) asked: u64,
    /// Another process has changed what is known of the disk.
    superseded: Option<io::Error>,
}

impl DiskTask {
    pub(super) fn new(
        router: Arc<Router>,
        entry: &Entry,
        (name, store): (String, RecordStore),
        machine: Target,
    ) -> Self {
        let journal = Journal::new(journal_paths(store.path()));
        Self {
            journal,
            router,
            entry: entry.clone(),
            name,
            store,
            machine,
            clock: Clock::start(),
            port: None,
            lanes: BTreeMap::new(),
            closing: JoinSet::new(),
            asked: 0,
            superseded: None,
        }
    }

    pub(super) async fn run(mut self, mut incoming: mpsc::UnboundedReceiver<Happened>) {
        let (inbox, mut heard) = mpsc::channel(INBOX);
        if let Err(e) = self.take_journal().await {
            return self.leave_alone(&e, incoming).await;
        }
        self.handle(TargetEvent::Tick);
        loop {
            let span = self
                .machine
                .poll_timeout()
                .map_or(LONG, |at| self.clock.until(at));
            let event = tokio::select! {
                biased;
                Some(happened) = incoming.recv() => match happened {
                    Happened::Forgotten(told) => {
                        self.break_off(incoming).await;
                        return drop(told);
                    }
                    happened => self.happened(happened, &inbox),
                },
                Some((conn, heard)) = heard.recv() => match self.heard(conn, heard) {
                    Some(event) => event,
                    None => continue,
                },
                () = tokio::time::sleep(span) => TargetEvent::Tick,
            };
            self.handle(event);
            if let Some(why) = self.superseded.take() {
                return self.leave_alone(&why, incoming).await;
            }
            if self.is_done() && self.leave(&mut incoming) {
                break;
            }
        }
        while self.closing.join_next().await.is_some() {}
    }

    /// The journal of a disk that follows is this process's, and the record still what the machine was made with: a
    /// promotion may have had both.
    async fn take_journal(&mut self) -> io::Result<()> {
        let Some(State::Following { session, .. }) = self.machine.record().map(|r| &r.state) else {
            return Ok(());
        };
        let (tell, told) = oneshot::channel();
        let done: Done = Box::new(move |result| {
            let _ = tell.send(result);
        });
        self.journal.ask(Ask::Open(*session, done));
        told.await.map_err(io::Error::other)??;
        if self.store.load().map_err(io::Error::other)?.as_ref() != self.machine.record() {
            return Err(io::Error::other("its ownership record has changed"));
        }
        Ok(())
    }

    /// The disk cannot be gone on with; who came for it hears why, and whoever comes later finds what is durable then.
    async fn leave_alone(
        mut self,
        why: &io::Error,
        mut incoming: mpsc::UnboundedReceiver<Happened>,
    ) {
        tracing::error!("{} is left alone: {why}", self.name);
        self.entry.status().trouble = Some(why.to_string());
        for (_, lane) in std::mem::take(&mut self.lanes) {
            let text = format!("the disk is left alone: {why}");
            lane.send(Message::Failed { text });
            lane.close(&mut self.closing);
        }
        while self.closing.join_next().await.is_some() {}
        self.port = None;
        let (router, name) = (Arc::clone(&self.router), self.name.clone());
        let let_go = tokio::task::spawn_blocking(move || router.host.let_go(&name));
        let _ = let_go.await;
        while !self.leave(&mut incoming) {
            match incoming.recv().await {
                Some(Happened::Arrived(arrival)) => {
                    let refusal = Refusal::CannotCreate;
                    let text = format!("the disk cannot be gone on with: {why}");
                    answer_and_close(arrival.stream, &Message::Refused { refusal, text }).await;
                }
                Some(Happened::Forgotten(_)) => return,
                _ => {}
            }
        }
    }

    /// Whether only the record has to speak for the disk from now on.
    fn is_done(&self) -> bool {
        let state = self.machine.record().map(|record| &record.state);
        self.lanes.is_empty()
            && self.asked == 0
            && self.machine.poll_timeout().is_none()
            && matches!(
                state,
                None | Some(
                    State::Owner { .. }
                        | State::Released { .. }
                        | State::Offered { .. }
                        | State::Bound { .. }
                )
            )
    }

    /// End, unless somebody came meanwhile.
    fn leave(&mut self, incoming: &mut mpsc::UnboundedReceiver<Happened>) -> bool {
        let mut disks = self.router.lock();
        if !incoming.is_empty() {
            return false;
        }
        if let Some(entry) = disks.get_mut(&self.name) {
            entry.task = None;
            // Nothing came of it: whoever makes names up does not fill this host's memory.
            let nothing = self.machine.record().is_none() && entry.status().trouble.is_none();
            if nothing {
                disks.remove(&self.name);
            }
        }
        true
    }

    fn happened(&mut self, happened: Happened, inbox: &Inbox) -> TargetEvent {
        match happened {
            Happened::Event(event) => {
                self.asked = self.asked.saturating_sub(1);
                event
            }
            Happened::OfGroup(event) => event,
            Happened::Forgotten(_) => TargetEvent::Tick,
            Happened::Arrived(arrival) => {
                let Arrival {
                    conn,
                    stream,
                    decoder,
                    first,
                } = *arrival;
                let carried = Arc::clone(&self.router.carried);
                let carry = |ends: crate::net::lane::Ends| ends.carry(stream, decoder);
                self.lanes
                    .insert(conn, Lane::spawn(conn, inbox.clone(), carried, carry));
                TargetEvent::Message(conn, first)
            }
            Happened::Opened(result) => {
                self.asked = self.asked.saturating_sub(1);
                let result = self.note("open the disk", result);
                TargetEvent::Opened(result.map(|port| self.port = port))
            }
            Happened::Served(result) => {
                self.asked = self.asked.saturating_sub(1);
                let result = self.note("serve the disk", result);
                if let Ok(address) = &result {
                    tracing::info!("{} is owned here and served at {address}", self.name);
                    self.port = None;
                    self.entry.status().address = Some(address.clone());
                }
                TargetEvent::Serving(result)
            }
        }
    }

    pub(super) fn port(&self) -> Option<&Arc<dyn DiskPort>> {
        self.port.as_ref()
    }

    fn note<T>(&self, doing: &str, result: io::Result<T>) -> io::Result<T> {
        if let Err(e) = &result {
            tracing::error!("{}: cannot {doing}: {e}", self.name);
            self.entry.status().trouble = Some(format!("cannot {doing}: {e}"));
        }
        result
    }

    /// What a lane heard, for the machine; nothing of lanes that were closed.
    fn heard(&mut self, conn: ConnId, heard: Heard) -> Option<TargetEvent> {
        if !self.lanes.contains_key(&conn) {
            return None;
        }
        Some(match heard {
            Heard::Connected => return None,
            Heard::Message(message) => TargetEvent::Message(conn, message),
            Heard::Malformed(e) => {
                tracing::error!(
                    "{}: the source sent bytes that are no message: {e}",
                    self.name
                );
                // The machine may have something to say before it closes.
                TargetEvent::Malformed(conn, e)
            }
            Heard::Closed(why) => {
                tracing::debug!("{}: a connection ended: {why}", self.name);
                self.lanes.remove(&conn);
                TargetEvent::Closed(conn)
            }
        })
    }

    fn handle(&mut self, event: TargetEvent) {
        if let TargetEvent::Decided(_, Err(e)) = &event {
            // Twice a second for as long as it is away.
            tracing::debug!("{}: the arbiter does not answer: {e}", self.name);
            self.entry.status().trouble = Some(format!("the arbiter does not answer: {e}"));
        }
        let failed = match &event {
            TargetEvent::Persisted(Err(e)) | TargetEvent::Disk(_, Err(e)) => Some(("write", e)),
            TargetEvent::Read(_, Err(e)) | TargetEvent::Zeroes(_, Err(e)) => Some(("read", e)),
            _ => None,
        };
        if let Some((what, e)) = failed {
            let text = format!("a {what} failed: {e}");
            tracing::error!("{}: {text}", self.name);
            self.entry.status().trouble = Some(text);
        }
        if let TargetEvent::Persisted(Err(e)) = &event
            && e.kind() == io::ErrorKind::AlreadyExists
        {
            self.superseded = Some(io::Error::new(e.kind(), e.to_string()));
            return;
        }
        self.machine.handle(self.clock.now(), event);
        // Before anybody hears of it: the lanes of a session are told apart by this.
        self.publish();
        while let Some(action) = self.machine.poll_action() {
            self.act(action);
        }
        while self.closing.try_join_next().is_some() {}
    }

    fn publish(&self) {
        let mut status = self.entry.status();
        status.session = self.machine.session().map(|(session, _)| session);
        status.state = self.machine.record().map_or("none", state_name);
    }

    fn act(&mut self, action: TargetAction) {
        match action {
            TargetAction::Send(conn, message) => {
                let message = self.unless_busy(message);
                if let Some(lane) = self.lanes.get(&conn) {
                    lane.send(message);
                }
            }
            TargetAction::Close(conn) => {
                if let Some(lane) = self.lanes.remove(&conn) {
                    lane.close(&mut self.closing);
                }
            }
            TargetAction::Open { description, fresh } => self.open(description, fresh),
            reading @ (TargetAction::Read(..)
            | TargetAction::ReadTemplate { .. }
            | TargetAction::Zeroes(..)) => self.read(&reading),
            TargetAction::Write(op, offset, data) => {
                self.entry.status().written += data.len() as u64;
                self.write(op, offset, data);
            }
            TargetAction::Zero(op, offset, len) => {
                self.with_port(op, |port, done| port.zero(offset, len, done));
            }
            TargetAction::Flush(op) => self.with_port(op, <dyn DiskPort>::flush),
            TargetAction::StartJournal { op, session, seq } => {
                let filling = 1;
                #[rustfmt::skip]
                let head = Head { session, filling, seq };
                let done = self.tell(move |result| TargetEvent::Disk(op, result));
                self.journal.ask(Ask::Start(head, done));
            }
            TargetAction::Journal(op, offset, content) => {
                self.entry.status().written += content.held();
                self.append(op, offset, content);
            }
            TargetAction::Mark { op, seq, sealed } => {
                self.entry.status().epochs += u64::from(sealed);
                let done = self.tell(move |result| TargetEvent::Disk(op, result));
                self.journal.ask(Ask::Mark { seq, sealed, done });
            }
            TargetAction::Apply(op, upto) => self.apply(op, upto),
            action @ (TargetAction::Reached { .. } | TargetAction::Leave(_)) => {
                self.tell_group(&action);
            }
            TargetAction::Persist(record) => {
                tracing::debug!("{}: recording {:?}", self.name, record.state);
                self.tell_port(&record.state);
                let done = self.tell(TargetEvent::Persisted);
                self.store
                    .persist_over(self.machine.record(), &record, done);
            }
            TargetAction::Reach { attempt, arbiter } => self.ask(
                move || arbiter::reach(&arbiter),
                move |result| TargetEvent::Reached(attempt, result),
            ),
            TargetAction::Claim { arbiter, ballot } => self.ask(
                move || arbiter::ask(&arbiter, ballot, Side::Target),
                move |result| TargetEvent::Decided(ballot, result),
            ),
            TargetAction::WayBack(way) => {
                let way_back = Some(way).filter(|way| !way.address.is_empty());
                let (router, name) = (Arc::clone(&self.router), self.name.clone());
                tokio::task::spawn_blocking(move || router.host.way_back(&name, way_back));
            }
            TargetAction::Park(mark) => self.park(mark),
            TargetAction::Serve => self.serve(),
        }
    }

    /// What the disk's group has to know.
    fn tell_group(&self, action: &TargetAction) {
        let name = self.name.clone();
        let of = |group| (self.name.as_str(), group);
        match *action {
            TargetAction::Reached {
                group,
                session,
                cut,
                disks,
            } => {
                let member = Member { name, session };
                let reached = move |all: &mut Gathering| {
                    all.reached(member, (group.sequence, cut), disks);
                };
                self.router.with_group(of(group.id), reached);
            }
            TargetAction::Leave(group) => {
                self.router
                    .with_group(of(group), move |all| all.leave(&name));
            }
            _ => {}
        }
    }

    pub(super) fn host(&self) -> &dyn TargetHost {
        self.router.host.as_ref()
    }

    /// A callback that tells the machine how something ended.
    fn tell(&mut self, event: impl FnOnce(io::Result<()>) -> TargetEvent + Send + 'static) -> Done {
        self.answer(event)
    }

    /// A callback that tells the machine what came of something.
    pub(super) fn answer<T>(
        &mut self,
        event: impl FnOnce(T) -> TargetEvent + Send + 'static,
    ) -> Box<dyn FnOnce(T) + Send> {
        self.asked += 1;
        let task = self.entry.task.clone();
        Box::new(move |result| {
            if let Some(task) = task {
                let _ = task.send(Happened::Event(event(result)));
            }
        })
    }

    /// Ask somebody else, who may take long.
    fn ask<T: Send + 'static>(
        &mut self,
        ask: impl FnOnce() -> io::Result<T> + Send + 'static,
        event: impl FnOnce(io::Result<T>) -> TargetEvent + Send + 'static,
    ) {
        self.asked += 1;
        let task = self.entry.task.clone();
        arbiter::apart(ask, move |answer| {
            if let Some(task) = task {
                let _ = task.send(Happened::Event(event(answer)));
            }
        });
    }

    fn write(&mut self, op: OpId, offset: u64, data: bytes::Bytes) {
        let room = self.router.host.make_room(data.len() as u64);
        self.with_port(op, |port, done| match room {
            Ok(()) => port.write(offset, data, done),
            Err(e) => done(Err(e)),
        });
    }

    fn append(&mut self, op: OpId, offset: u64, content: Content) {
        let room = self.router.host.make_room(content.held());
        let done = self.tell(move |result| TargetEvent::Disk(op, result));
        match room {
            Ok(()) => {
                let entry = form::Entry::Change { offset, content };
                self.journal.ask(Ask::Append(entry, done));
            }
            Err(e) => done(Err(e)),
        }
    }

    fn with_port(&mut self, op: OpId, call: impl FnOnce(&dyn DiskPort, Done)) {
        let done = self.tell(move |result| TargetEvent::Disk(op, result));
        match &self.port {
            Some(port) => call(port.as_ref(), done),
            None => done(Err(io::Error::other("the disk is not open"))),
        }
    }

    /// The session that the durable record names.
    fn session(&self) -> uuid::Uuid {
        match self.machine.record().map(|record| &record.state) {
            Some(
                State::Receiving { session, .. }
                | State::Following { session, .. }
                | State::Prepared { session, .. },
            ) => *session,
            _ => uuid::Uuid::nil(),
        }
    }

    fn apply(&mut self, op: OpId, upto: Upto) {
        let done = self.tell(move |result| TargetEvent::Disk(op, result));
        match &self.port {
            Some(port) => {
                let port = Arc::clone(port);
                self.journal
                    .ask(Ask::Apply(self.session(), upto, port, done));
            }
            None => done(Err(io::Error::other("the disk is not open"))),
        }
    }

    fn park(&mut self, mark: Option<Mark>) {
        let done = self.tell(TargetEvent::Parked);
        match &self.port {
            Some(port) => port.park(mark, done),
            // Opened for the takeover of a disk that is served: the mark was removed before.
            None => done(Ok(())),
        }
    }

    /// Have the host do something that may block, and hear of its end.
    fn ask_host<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&Router, &str) -> io::Result<T> + Send + 'static,
        happened: impl FnOnce(io::Result<T>) -> Happened + Send + 'static,
    ) {
        self.asked += 1;
        let (router, name, task) = (
            Arc::clone(&self.router),
            self.name.clone(),
            self.entry.task.clone(),
        );
        tokio::spawn(async move {
            let result = tokio::task::spawn_blocking(move || call(&router, &name)).await;
            if let Some(task) = task {
                let _ = task.send(happened(joined(result)));
            }
        });
    }

    fn open(&mut self, description: Option<DiskDescription>, fresh: bool) {
        self.port = None;
        let open = move |router: &Router, name: &str| {
            let host = &router.host;
            let Some(description) = description else {
                // For a takeover: a disk that is served is where it shall be.
                return if host.served(name).is_some() {
                    Ok(None)
                } else {
                    host.open(name).map(Some)
                };
            };
            let port = if fresh {
                journal::remove(&journal_paths(&host.record_path(name)))?;
                host.create(&description)?
            } else {
                host.open(name)?
            };
            if port.size() != description.size {
                let what = format!(
                    "the image has {} bytes, the source's disk {}",
                    port.size(),
                    description.size
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            let sector = port.logical_sector();
            if sector.is_some_and(|sector| sector != description.logical_sector) {
                let what = format!(
                    "the image has logical sectors of {} bytes, the source's disk of {}",
                    sector.unwrap_or_default(),
                    description.logical_sector
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            Ok(Some(port))
        };
        self.ask_host(open, Happened::Opened);
    }

    fn serve(&mut self) {
        let serve = |router: &Router, name: &str| {
            let host = &router.host;
            let address = match host.served(name) {
                Some(address) => address,
                None => host.serve(name)?,
            };
            // Nothing follows any more; what is left of a journal is in the disk.
            if let Err(e) = journal::remove(&journal_paths(&host.record_path(name))) {
                tracing::warn!("{name}: its journal is left behind: {e}");
            }
            Ok(address)
        };
        self.ask_host(serve, Happened::Served);
    }
}
