//! One worker: a thread with one ring, on which its clients' sockets and all disk files are.
//!
//! ```text
//!   enter ─► reap completions ─► feed sessions, end transfers ─► pump engines ─► queue sends ─► look out ─► enter
//! ```
//!
//! Everything that came with one entry into the kernel is dealt with before the next: many requests
//! per receive, many replies per send, many file operations per entry. A worker never blocks
//! anywhere else, holds an engine's lock only to exchange words with it, and shares nothing else
//! with other workers while requests flow: they talk through inboxes.
//!
//! | module | what it does |
//! |---|---|
//! | `session` | one client: bytes in, requests, replies out |
//! | `queue` | one virtqueue of a guest: chains in, requests, used entries out |
//! | `request` | one of its requests: its steps |
//! | `local` | requests of this process itself |
//! | `action`, `task`, `answer` | one request from its beginning to its end, and the reply to it |
//! | `transfer`, `merge` | one operation on a file, short counts and unaligned ends included |
//! | `copy` | one part of a file copied to another |
//! | `metadata` | holes and lengths of files |
//! | `layers` | what a disk that is built on another asks of it |
//! | `disks` | an engine's words exchanged, flushes coalesced |
//! | `elsewhere` | what a server elsewhere is asked in place of a file here |
//! | `lookout` | looking out for news before sleeping |
//! | `line` | what waits for its turn under an export's limits |
//! | `exports` | policy of each export here; what waits while one is held |
//! | `inbox` | what workers share, and letters to them |

mod action;
mod answer;
mod copy;
mod disks;
mod elsewhere;
mod exports;
mod inbox;
mod layers;
mod line;
mod local;
mod lookout;
mod merge;
mod metadata;
mod queue;
mod request;
mod session;
mod task;
mod transfer;

pub(crate) use action::Action;
pub(crate) use inbox::{Crew, Limits, Message};
pub(crate) use queue::Attachment;

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::export::Barrier;
use crate::socket::Listener;
use crate::uring::{Backend, Descriptor, Finished, IoBuffer, NO_POSITION, Op, Pool, Ring, Slab};

use self::disks::DiskHere;
use self::exports::ExportHere;
use self::lookout::Lookout;
use self::queue::QueueHere;
use self::session::Session;
use self::task::{Part, Task};
use self::transfer::Transfer;

/// Bytes of buffers that a worker keeps for use again.
const POOL_LIMIT: usize = 64 << 20;
/// How long accepting pauses when the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a completion is about.
#[derive(Clone, Copy, Debug)]
enum Token {
    /// Something is in the inbox.
    Inbox,
    /// A listener has a client.
    Accept(u32),
    /// A listener may accept again.
    AcceptAgain(u32),
    /// A virtqueue's driver has put something in.
    Kick(u32),
    /// A session received.
    Receive(u32),
    /// A session sent.
    Send(u32),
    /// A session's handshake took too long.
    Handshake { session: u32, serial: u64 },
    /// A transfer went on.
    Transfer(u32),
    /// A disk's coalesced flush ended.
    Sync(u32),
    /// It may be the turn of what waits under an export's limits.
    Turn { export: u32, way: usize, timer: u64 },
    /// Clients had their time to leave.
    DrainLimit,
}

/// A socket that clients connect to.
struct ListenerHere {
    listener: Listener,
    descriptor: Descriptor,
}

/// Where requests come in, besides the sessions that clients make.
#[derive(Default)]
struct Entrances {
    listeners: Slab<ListenerHere>,
    queues: Slab<QueueHere>,
    lookout: Lookout,
}

impl Entrances {
    /// Give the queues back as they are.
    fn give_back(&self) {
        for (_, queue) in self.queues.iter() {
            queue.give_back();
        }
    }
}

/// What is to be done before the kernel is entered again.
#[derive(Default)]
struct Agenda {
    sessions: Vec<u32>,
    disks: Vec<u32>,
    granted: Vec<u32>,
    flushes: Vec<u32>,
    sends: Vec<u32>,
    queues: Vec<u32>,
    /// Requests of queues that go on with their next step.
    steps: Vec<(u32, u32)>,
    /// Queues whose drivers may want to be told.
    calls: Vec<u32>,
    /// A part of a disk's file that held data when the file system was asked in this turn; not longer, since it may be
    /// given up.
    data: Option<(u32, Range<u64>)>,
    /// Scratch space of the map's lookups.
    parts: Vec<Part>,
}

/// How far the worker's life is.
struct Life {
    /// The time when completions were last reaped.
    now: Instant,
    /// How often completions have been reaped.
    round: u64,
    serial: u64,
    /// Bytes of clients' requests in flight and of replies not sent.
    carried: usize,
    draining: bool,
    /// To be passed when the clients are gone.
    drained: Option<Arc<Barrier>>,
    quit: bool,
}

/// A worker. Made and run on its own thread.
pub(crate) struct Worker {
    number: u16,
    crew: Arc<Crew>,
    ring: Ring<Token>,
    pool: Pool,
    sessions: Slab<Session>,
    tasks: Slab<Task>,
    transfers: Slab<Transfer>,
    disks: Slab<DiskHere>,
    exports: Slab<ExportHere>,
    entrances: Entrances,
    agenda: Agenda,
    life: Life,
}

impl Worker {
    /// The worker of this number, with a ring of this kind.
    pub(crate) fn new(number: u16, crew: Arc<Crew>, backend: Backend) -> io::Result<Self> {
        Ok(Self {
            number,
            crew,
            ring: Ring::new(backend)?,
            pool: Pool::new(POOL_LIMIT),
            sessions: Slab::new(),
            tasks: Slab::new(),
            transfers: Slab::new(),
            disks: Slab::new(),
            exports: Slab::new(),
            entrances: Entrances::default(),
            agenda: Agenda::default(),
            life: Life {
                now: Instant::now(),
                round: 1,
                serial: 0,
                carried: 0,
                draining: false,
                drained: None,
                quit: false,
            },
        })
    }

    /// Work until told to quit.
    pub(crate) fn run(mut self) {
        self.read_inbox(IoBuffer::zeroed(8));
        let mut finished = Vec::new();
        while !self.life.quit {
            let sleep = self.may_sleep();
            if let Err(error) = self.ring.enter(sleep) {
                tracing::error!(worker = self.number, %error, "the ring failed; its clients are lost");
                break;
            }
            self.begin_round();
            self.ring.reap(&mut finished);
            for one in finished.drain(..) {
                self.finished(one);
            }
            self.settle_agenda();
        }
        self.end();
    }

    fn begin_round(&mut self) {
        self.life.now = Instant::now();
        self.life.round += 1;
    }

    fn finished(&mut self, mut one: Finished<Token>) {
        match one.context {
            Token::Transfer(transfer) => {
                let result = one.result();
                // The ring's hold on the buffer ends here, so that it can be used again.
                drop(one);
                self.transfer_went_on(transfer, result);
            }
            Token::Kick(queue) => self.kicked(queue, &mut one),
            Token::Receive(session) => self.received(session, &mut one),
            Token::Send(session) => self.sent(session, &mut one),
            Token::Sync(disk) => self.synced(disk, &one.result()),
            Token::Inbox => {
                for message in self.crew.clone().inbox(self.number).take() {
                    self.message(message);
                }
                let buffer = one.buffer().unwrap_or_else(|| IoBuffer::zeroed(8));
                self.read_inbox(buffer);
            }
            Token::Accept(listener) => self.accepted(listener, one.accepted()),
            Token::AcceptAgain(listener) => self.accept(listener),
            Token::Handshake { session, serial } => self.handshake_limit(session, serial),
            Token::Turn { export, way, timer } => self.ask_again(export, way, timer),
            Token::DrainLimit => self.drain_limit(),
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Connection(socket) => self.open_session(socket),
            Message::Listen(listener) => self.listen(listener),
            Message::Attach(attachment) => self.attach_queue(*attachment),
            Message::StopQueue { queue, hurry } => {
                if let Some(queue) = self.queue_of(&queue) {
                    self.stop_queue(queue);
                    if hurry {
                        self.hurry_queue(queue);
                    }
                }
            }
            #[rustfmt::skip]
            Message::Policy { export, barrier, at_once } => {
                self.take_policy(&export, barrier, at_once);
            }
            #[rustfmt::skip]
            Message::Local { export, request, done } => self.local(&export, &request, done),
            Message::Operations { disk, ops } => {
                let disk = self.disk_here(&disk);
                self.carry_out(disk, ops);
            }
            Message::Completions { completions } => {
                for completion in completions {
                    self.engine_answered(completion);
                }
            }
            Message::Granted { task } => self.agenda.granted.push(task),
            Message::Forwarded { task, result } => self.forwarded(task, result),
            Message::Drain { barrier } => self.drain(barrier),
            Message::Quit => self.life.quit = true,
        }
    }

    /// Do what the batch left to do, until nothing is left, then send.
    fn settle_agenda(&mut self) {
        self.agenda.data = None;
        loop {
            if let Some(task) = self.agenda.granted.pop() {
                self.run_task(task);
            } else if let Some(disk) = self.agenda.disks.pop() {
                self.pump(disk);
            } else if let Some(session) = self.agenda.sessions.pop() {
                self.attend(session);
            } else if let Some((queue, request)) = self.agenda.steps.pop() {
                self.go_on_with(queue, request);
            } else if let Some(queue) = self.agenda.queues.pop() {
                self.attend_queue(queue);
            } else {
                break;
            }
        }
        while let Some(disk) = self.agenda.flushes.pop() {
            self.start_flush(disk);
        }
        while let Some(session) = self.agenda.sends.pop() {
            self.send(session);
        }
        while let Some(queue) = self.agenda.calls.pop() {
            self.call_driver(queue);
        }
        self.check_drained();
    }

    fn read_inbox(&mut self, buffer: IoBuffer) {
        let file = Descriptor::of(self.crew.inbox(self.number).event());
        let read = Op::Read {
            file,
            buffer,
            range: 0..8,
            at: NO_POSITION,
        };
        self.ring.submit(read, Token::Inbox);
    }

    fn listen(&mut self, listener: Listener) {
        let descriptor = Descriptor::of(&listener);
        let listener = self.entrances.listeners.insert(ListenerHere {
            listener,
            descriptor,
        });
        self.accept(listener);
    }

    fn accept(&mut self, listener: u32) {
        if let Some(known) = self.entrances.listeners.get(listener)
            && !self.life.draining
        {
            let op = Op::Accept {
                listener: known.descriptor,
            };
            self.ring.submit(op, Token::Accept(listener));
        }
    }

    fn accepted(&mut self, listener: u32, accepted: io::Result<OwnedFd>) {
        match accepted {
            Ok(socket) => {
                self.place_client(listener, socket);
                self.accept(listener);
            }
            Err(_) if self.life.draining => {}
            Err(error) => {
                tracing::warn!(%error, "a client could not be accepted");
                let after = ACCEPT_PAUSE;
                self.ring
                    .submit(Op::Timer { after }, Token::AcceptAgain(listener));
            }
        }
    }

    /// Give a new client to the worker whose turn it is.
    fn place_client(&mut self, listener: u32, socket: OwnedFd) {
        let before = self.crew.connections.fetch_add(1, Ordering::Relaxed);
        if before >= self.crew.limits.connections {
            self.crew.connections.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(
                limit = before,
                "a client was turned away: there are too many"
            );
            return;
        }
        let limit = self.crew.limits.handshake;
        let served = match self.entrances.listeners.get(listener) {
            Some(known) => known.listener.plain_end(socket, limit),
            None => Ok(socket),
        };
        let socket = match served {
            Ok(socket) => socket,
            Err(error) => {
                self.crew.connections.fetch_sub(1, Ordering::Relaxed);
                tracing::warn!(%error, "a client cannot be served");
                return;
            }
        };
        let turn = self.crew.next();
        if turn == self.number {
            self.open_session(socket);
        } else if self
            .crew
            .inbox(turn)
            .post(Message::Connection(socket))
            .is_err()
        {
            self.crew.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Take no more clients, end what is in flight, see the clients off.
    fn drain(&mut self, barrier: Arc<Barrier>) {
        self.life.draining = true;
        self.life.drained = Some(barrier);
        for listener in self.entrances.listeners.indices() {
            if let Some(gone) = self.entrances.listeners.get(listener) {
                // Ends the accept that is in flight.
                let _ = rustix::net::shutdown(&gone.listener, rustix::net::Shutdown::Both);
            }
        }
        for export in self.exports.indices() {
            self.fail_waiting(export);
            for task in self.clear_line(export) {
                self.admit(task);
            }
        }
        for session in self.sessions.indices() {
            self.see_off(session);
        }
        for queue in self.entrances.queues.indices() {
            self.stop_queue(queue);
        }
        let after = self.crew.limits.drain;
        self.ring.submit(Op::Timer { after }, Token::DrainLimit);
    }

    /// Clients that have not taken their replies by now lose them.
    fn drain_limit(&mut self) {
        for session in self.sessions.indices() {
            self.break_off(session);
        }
        if let Some(barrier) = self.life.drained.take() {
            barrier.pass();
        }
    }

    fn check_drained(&mut self) {
        if self.sessions.is_empty()
            && self.entrances.queues.is_empty()
            && let Some(barrier) = self.life.drained.take()
        {
            barrier.pass();
        }
    }

    /// Nothing more will be done here: tell those who wait.
    fn end(mut self) {
        for message in self.crew.clone().inbox(self.number).close() {
            match message {
                Message::Policy { barrier, .. } | Message::Drain { barrier } => barrier.pass(),
                Message::Local { done, .. } => done(Err(task::shut_down())),
                Message::Attach(attachment) => {
                    attachment.shared.give_back(attachment.setup.state);
                }
                _ => {}
            }
        }
        if let Some(barrier) = self.life.drained.take() {
            barrier.pass();
        }
        for export in self.exports.indices() {
            if let Some(here) = self.exports.remove(export) {
                here.pass_all();
            }
        }
        for task in self.tasks.indices() {
            if let Some(task) = self.tasks.remove(task) {
                task.abandon();
            }
        }
        // The ring goes first and waits for the kernel; sockets, files and buffers after it.
        drop(self.ring);
        self.entrances.give_back();
    }
}
