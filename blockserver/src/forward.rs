//! Requests sent on to an NBD server elsewhere, in place of a disk that has moved there.
//!
//! Driver: one thread connects and sends, one receives. Every request is kept until it is answered;
//! when the connection is lost, or the server says that it is going away, a new one is made and what
//! was not answered is sent again, in the old order. All commands may be repeated safely, since the
//! client that made a request has not been told anything about it and may not count on an order
//! among requests in flight.
//!
//! Clients do not notice such an end, so it must not cost them what they were told is written: a
//! server that crashed may have lost what was not flushed. Changes are therefore kept until a flush
//! that covers them succeeded, and done again, one after the other, before anything else is sent
//! over a new connection. When much is kept, a flush of our own makes an end of it; as long as none succeeds, and more is
//! kept than may be, changes fail.
//!
//! Where others change the disk too, doing again what was answered could take their changes back. There each change is
//! asked to be durable before it is answered, and nothing is kept ([`Forwarder::write_through`]). A disk that comes back
//! ([`Forwarder::settle`]) has all that was answered; what was not is answered by the other server, which sends it here.
//!
//! Where the export stands for a disk of this server ([`Forwarder::start_as_disk`]) it has to be the same at every
//! connection, and nothing of a lost one may overtake what comes after it.

mod fit;
mod kept;
mod terms;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use vdisk::engine::Extent;

use self::fit::{Fit, fit, reply, wire_request};
use self::kept::{Kept, Room};
pub(crate) use self::terms::Terms;
use crate::nbd::Errno;
use crate::nbd::blocking_client::{
    ClientError, ConnectOptions, Ender, PipelinedClient, ReceiveHalf, SendHalf,
};
use crate::nbd::uri::Address;
use crate::nbd::wire::transmission;
use crate::worker::Action;

/// Requests outstanding at the server at most.
const IN_FLIGHT: usize = 128;
/// Waits between attempts to connect: from the first to the second, doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How long a server that is not ours is given to be done with what it was sent over a lost connection.
const LATE: Duration = Duration::from_secs(2);
/// Without a sign of life for so long from the host of a server that is a disk here the connection is lost.
const SILENCE: Duration = Duration::from_secs(30);

/// A request in place of a disk.
#[derive(Clone)]
pub(crate) struct ForwardRequest {
    pub(crate) action: Action,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// What is written; empty for everything else.
    pub(crate) data: Bytes,
}

impl ForwardRequest {
    fn flush() -> Self {
        Self {
            action: Action::Flush,
            offset: 0,
            len: 0,
            data: Bytes::new(),
        }
    }
}

/// What the server answered.
#[derive(Debug)]
pub(crate) enum ForwardReply {
    Done,
    Data(Vec<u8>),
    Extents(Vec<Extent>),
}

type Done = Box<dyn FnOnce(io::Result<ForwardReply>) + Send>;

/// Who is to be told what.
type Answered = (Done, io::Result<ForwardReply>);

struct Job {
    number: u64,
    request: ForwardRequest,
    /// For a flush, set when it is sent: it covers the changes kept before this one.
    covers: u64,
    done: Done,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Not sent yet, in order.
    waiting: VecDeque<Job>,
    /// Sent and not answered, by cookie.
    sent: BTreeMap<u64, Job>,
    kept: Kept,
    /// Kept changes still to be done again on the present connection: their place in `kept`.
    again: std::ops::Range<usize>,
    /// The one that is being done again.
    repeating: Option<u64>,
    line: Line,
    /// Nothing more will come.
    closed: bool,
    /// Each change has to be durable when it is answered.
    through: bool,
    /// What was sent over a connection that was lost may be done late.
    late: bool,
    pause: Pause,
    /// What the export has to be, if it is a disk of this server.
    terms: Option<Terms>,
}

/// The connection.
#[derive(Default, PartialEq, Eq)]
enum Line {
    /// There is none.
    #[default]
    Down,
    Up,
    /// It is of no use any more.
    Broken,
}

/// Whether a lost connection is made again.
#[derive(Default)]
enum Pause {
    #[default]
    None,
    /// Not before that.
    Until(Instant),
    /// Not until something else is said.
    On,
}

impl State {
    /// Whether no connection may be made now.
    fn is_paused(&mut self) -> bool {
        if matches!(self.pause, Pause::Until(until) if Instant::now() >= until) {
            self.pause = Pause::None;
        }
        !matches!(self.pause, Pause::None)
    }

    /// Whether the server may still be at work on what came over the connection that was lost.
    fn rests(&self) -> bool {
        self.late && (!self.sent.is_empty() || self.repeating.is_some())
    }

    /// Everything not answered is to be sent (again), oldest first.
    fn take_back(&mut self) {
        self.line = Line::Down;
        self.repeating = None;
        self.again = 0..self.kept.changes.len();
        let sent = std::mem::take(&mut self.sent).into_values();
        let mut all: Vec<_> = sent.chain(self.waiting.drain(..)).collect();
        all.sort_by_key(|job| job.number);
        self.waiting = all.into();
    }

    /// Whether nothing is left to do for those who asked.
    fn is_over(&self) -> bool {
        self.closed && self.waiting.is_empty() && self.sent.is_empty()
    }

    /// A request was answered, well or not.
    fn answered(&mut self, job: &Job, went_well: bool) {
        match job.request.action {
            action if action.is_of_disk() => {
                self.kept.flushing = false;
                if !went_well {
                    // Not again at once: the next change asks for the next flush.
                    return;
                }
                self.kept.forget_before(job.covers);
            }
            Action::Read | Action::Status => {}
            // A change that failed may have been made in part; it is not to be made again.
            _ if !went_well || self.kept.none || self.through => {}
            _ => self.kept.push(job.request.clone()),
        }
        self.flush_if_due();
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to one export of a server elsewhere. When it is dropped, what it was given is still
/// carried out.
pub(crate) struct Forwarder {
    address: Address,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "to {}", self.address)
    }
}

impl Forwarder {
    /// Begin to connect to the export.
    pub(crate) fn start(address: Address) -> Self {
        Self::begin(address, State::default())
    }

    /// The same, once the server has had time to end what a process before this one may have sent it.
    pub(crate) fn start_rested(address: Address) -> Self {
        let pause = Pause::Until(Instant::now() + LATE);
        #[rustfmt::skip]
        let state = State { pause, ..State::default() };
        Self::begin(address, state)
    }

    /// The same to an export that is a disk of this server and has to be what `terms` say at every connection; `rested` as
    /// in [`Self::start_rested`].
    pub(crate) fn start_as_disk(address: Address, terms: Terms, rested: bool) -> Self {
        let rest = Pause::Until(Instant::now() + LATE);
        let state = State {
            pause: if rested { rest } else { Pause::None },
            late: true,
            terms: Some(terms),
            ..State::default()
        };
        Self::begin(address, state)
    }

    fn begin(address: Address, state: State) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let threads = Arc::clone(&shared);
        let to = address.clone();
        let started = thread::Builder::new()
            .name("forward-send".into())
            .spawn(move || keep_connected(&threads, &to));
        if let Err(error) = started {
            tracing::error!(%error, "no thread to forward requests");
            shared.lock().closed = true;
        }
        Self { address, shared }
    }

    /// Where it leads.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether there is a connection.
    pub(crate) fn is_up(&self) -> bool {
        self.shared.lock().line == Line::Up
    }

    /// Have each change durable before it is answered, from now on.
    pub(crate) fn write_through(&self) {
        self.shared.lock().through = true;
    }

    /// Give the server time to end what it was sent over a lost connection, from now on.
    pub(crate) fn rest(&self) {
        self.shared.lock().late = true;
    }

    /// Make no connection anew until [`Self::resume`], or for `limit`; not if one is missing or what was answered is being
    /// done again.
    pub(crate) fn pause(&self, limit: Option<Duration>) -> bool {
        let mut state = self.shared.lock();
        let repeats = state.repeating.is_some() || !state.again.is_empty();
        let busy = state.line != Line::Up || repeats;
        if busy && !state.is_paused() && !state.kept.changes.is_empty() {
            return false;
        }
        state.pause = match limit {
            Some(limit) => Pause::Until(Instant::now() + limit),
            None => Pause::On,
        };
        true
    }

    pub(crate) fn resume(&self) {
        self.shared.lock().pause = Pause::None;
    }

    /// What was answered is not done again any more.
    pub(crate) fn settle(&self) {
        let mut state = self.shared.lock();
        state.kept = Kept {
            none: true,
            lost: state.kept.lost,
            ..Kept::default()
        };
        state.again = 0..0;
        state.pause = Pause::None;
    }

    /// Send a request; `done` is called on a thread of its own and must not block.
    pub(crate) fn submit(
        &self,
        request: ForwardRequest,
        done: impl FnOnce(io::Result<ForwardReply>) + Send + 'static,
    ) {
        let mut state = self.shared.lock();
        if state.closed {
            drop(state);
            done(Err(io::Error::from_raw_os_error(libc::EIO)));
            return;
        }
        let number = state.next;
        state.next += 1;
        state.waiting.push_back(Job {
            number,
            request,
            covers: 0,
            done: Box::new(done),
        });
        self.shared.changed.notify_all();
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

/// Connect, again and again, and send until nothing more comes.
fn keep_connected(shared: &Arc<Shared>, address: &Address) {
    let mut pause = RETRY.0;
    let terms = shared.lock().terms;
    // Clients wait for the first connection, and who owns a disk that has moved is one of ours most often.
    let mut options = ConnectOptions {
        at_once: terms.is_none(),
        silence: terms.map(|_| SILENCE),
        ..ConnectOptions::default()
    };
    let mut said = String::new();
    loop {
        {
            let mut state = shared.lock();
            if state.closed && state.waiting.is_empty() {
                return;
            }
            if state.is_paused() {
                drop(state);
                thread::sleep(RETRY.0);
                continue;
            }
        }
        match connect(address, &mut options, terms) {
            Ok(client) => {
                tracing::info!(%address, "forwarding");
                shared.lock().line = Line::Up;
                let answered = serve(shared, client);
                pause = if answered {
                    RETRY.0
                } else {
                    (pause * 2).min(RETRY.1)
                };
                let mut state = shared.lock();
                if state.rests() {
                    pause = pause.max(LATE);
                }
                state.take_back();
                if state.closed && state.waiting.is_empty() {
                    return;
                }
                drop(state);
                tracing::warn!(%address, "the connection was lost; it is made again");
            }
            Err(error) => {
                if pause == RETRY.0 || error != said {
                    tracing::warn!(%address, error, "no connection yet; clients wait");
                }
                said = error;
                pause = (pause * 2).min(RETRY.1);
            }
        }
        thread::sleep(pause);
    }
}

/// A connection to what has to be there, or why there is none.
fn connect(
    address: &Address,
    options: &mut ConnectOptions,
    terms: Option<Terms>,
) -> Result<PipelinedClient, String> {
    let connected = PipelinedClient::connect(address, options);
    let client = connected.map_err(|error| {
        // Who is reached and cannot be talked to so may be another server, which wants to be asked step by step.
        let reached = !matches!(error, ClientError::Connect { .. });
        options.at_once ^= terms.is_none() && reached;
        error.to_string()
    })?;
    match terms.and_then(|terms| terms.broken_by(client.remote())) {
        Some(why) => Err(format!("what is there is not the disk: {why}")),
        None => Ok(client),
    }
}

/// Use one connection for as long as it holds; whether anything was answered.
fn serve(shared: &Arc<Shared>, client: PipelinedClient) -> bool {
    let (send, receive) = client.split();
    let (receiver, ender) = (Arc::clone(shared), send.ender());
    let thread = thread::Builder::new()
        .name("forward-receive".into())
        .spawn(move || receive_all(&receiver, receive, &ender));
    let Ok(thread) = thread else {
        return false;
    };
    send_all(shared, send);
    // The send half is gone and has said goodbye, so the server closes and the receiver ends.
    thread.join().unwrap_or(false)
}

/// Send what comes until the connection breaks or nothing is left to come.
fn send_all(shared: &Arc<Shared>, mut send: SendHalf) {
    let mut state = shared.lock();
    loop {
        if state.line == Line::Broken || state.is_over() {
            return;
        }
        let mut answered = Vec::new();
        let queued = if state.again.is_empty() && state.repeating.is_none() {
            queue_waiting(&mut state, &mut send, (shared, &mut answered))
        } else {
            queue_again(&mut state, &mut send)
        };
        if queued || !answered.is_empty() {
            drop(state);
            for (done, answer) in answered {
                done(answer);
            }
            if send.send().is_err() {
                return;
            }
            state = shared.lock();
        } else {
            state = shared.wait(state);
        }
    }
}

/// Queue the next change that is done again, once the one before was answered; whether there is one.
fn queue_again(state: &mut State, send: &mut SendHalf) -> bool {
    if state.repeating.is_some() {
        return false;
    }
    let Some(change) = state
        .again
        .next()
        .and_then(|place| state.kept.changes.get(place))
    else {
        return false;
    };
    match send.submit(&wire_request(change, false)) {
        Ok(cookie) => state.repeating = Some(cookie),
        Err(error) => {
            tracing::error!(%error, "a change cannot be made again at the server");
            state.kept.lost = true;
        }
    }
    true
}

/// Queue what waits, as far as the server takes it; whether there was anything. What is answered without the server is left
/// to the caller, who holds no lock then.
fn queue_waiting(
    state: &mut State,
    send: &mut SendHalf,
    (shared, answered): (&Arc<Shared>, &mut Vec<Answered>),
) -> bool {
    let failed = || Err(io::Error::from_raw_os_error(libc::EIO));
    let mut queued = false;
    while state.sent.len() < IN_FLIGHT
        && let Some(job) = state.waiting.pop_front()
    {
        let mut job = match fit(shared, state, send.remote(), job) {
            Fit::Send(job) => job,
            Fit::Instead => continue,
            Fit::Answer(done, answer) => {
                answered.push((done, answer));
                continue;
            }
        };
        if matches!(job.request.action, Action::Flush) && state.kept.lost {
            state.kept.flushing = false;
            answered.push((job.done, failed()));
            continue;
        }
        match state.room_for(job.request.action) {
            Room::There => {}
            Room::Later => {
                state.waiting.push_front(job);
                break;
            }
            Room::None => {
                answered.push((job.done, failed()));
                continue;
            }
        }
        job.covers = state.kept.next();
        let through = state.through && send.remote().has(transmission::SEND_FUA);
        match send.submit(&wire_request(&job.request, through)) {
            Ok(cookie) => {
                queued = true;
                state.sent.insert(cookie, job);
            }
            Err(error) => {
                tracing::warn!(%error, "a request cannot be forwarded");
                answered.push((job.done, failed()));
            }
        }
    }
    queued
}

/// Hand answers to those who wait for them until the connection breaks; whether there were any.
fn receive_all(shared: &Shared, mut receive: ReceiveHalf, ender: &Ender) -> bool {
    let mut answered = false;
    loop {
        let completion = match receive.wait() {
            Ok(Some(completion)) => completion,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "forwarding");
                break;
            }
        };
        let mut state = shared.lock();
        let refusal = completion.result.as_ref().err();
        let leaves = refusal.is_some_and(|refusal| refusal.errno == Errno::Shutdown);
        if state.repeating == Some(completion.cookie) {
            if leaves {
                // All that is done again is done once more, there or wherever it comes up again.
                break;
            }
            state.repeating = None;
            if let Err(refusal) = &completion.result {
                tracing::error!(?refusal, "a change cannot be made again at the server");
                state.kept.lost = true;
            }
            shared.changed.notify_all();
            continue;
        }
        let Some(job) = state.sent.remove(&completion.cookie) else {
            continue;
        };
        if leaves {
            // It is going away: ask again, there or wherever it comes up again.
            state.waiting.push_front(job);
            break;
        }
        answered = true;
        state.answered(&job, completion.result.is_ok());
        shared.changed.notify_all();
        drop(state);
        let result = reply(completion, job.request.len);
        (job.done)(result);
    }
    let mut state = shared.lock();
    if state.rests() {
        // What this host has not sent yet it would send on, for as long as that takes.
        ender.abandon();
    }
    state.line = Line::Broken;
    drop(state);
    shared.changed.notify_all();
    answered
}
