//! What all workers share, and how others talk to one of them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vdisk::engine::{Completion, FileOp};

use crate::export::{Barrier, Disk, Export, ExportIndex, LocalDone, LocalRequest, QueueShared};
use crate::forward::ForwardReply;
use crate::socket::Listener;

use super::queue::Attachment;

/// Something for a worker to do.
pub(crate) enum Message {
    /// Serve this client.
    Connection(OwnedFd),
    /// Accept clients from this socket.
    Listen(Listener),
    /// Serve this virtqueue.
    Attach(Box<Attachment>),
    /// Give this virtqueue back when what is in flight of it has ended; in a hurry nothing of it waits for its
    /// turn.
    StopQueue {
        queue: Arc<QueueShared>,
        hurry: bool,
    },
    /// Take on the policy of an export. The barrier is passed at once, or when what began before has ended.
    Policy {
        export: Arc<Export>,
        barrier: Arc<Barrier>,
        at_once: bool,
    },
    /// Carry out a request of this process.
    Local {
        export: Arc<Export>,
        request: LocalRequest,
        done: LocalDone,
    },
    /// Carry out operations on requests of this worker.
    Operations { disk: Arc<Disk>, ops: Vec<FileOp> },
    /// Requests of this worker ended in the engine.
    Completions { completions: Vec<Completion> },
    /// A request of this worker may go on: its range is free.
    Granted { task: u32 },
    /// A server elsewhere answered a request of this worker.
    Forwarded {
        task: u32,
        result: io::Result<ForwardReply>,
    },
    /// Take no more clients, end what is in flight, see the clients off.
    Drain { barrier: Arc<Barrier> },
    /// End.
    Quit,
}

/// A worker's letter box.
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    /// Whether the worker has been woken for what is in the box.
    woken: AtomicBool,
    event: OwnedFd,
}

#[derive(Default)]
struct InboxState {
    messages: Vec<Message>,
    closed: bool,
}

impl Inbox {
    fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            woken: AtomicBool::new(false),
            event: eventfd(0, EventfdFlags::CLOEXEC)?,
        })
    }

    /// Readable when there is something in the box.
    pub(crate) fn event(&self) -> &OwnedFd {
        &self.event
    }

    /// Put a message in; gives it back when the worker has ended.
    pub(crate) fn post(&self, message: Message) -> Result<(), Message> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(message);
        }
        state.messages.push(message);
        drop(state);
        if !self.woken.swap(true, Ordering::AcqRel) {
            // Cannot fail: the counter is far from its limit, as it is read after each wake-up.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
        Ok(())
    }

    /// Take everything out.
    pub(crate) fn take(&self) -> Vec<Message> {
        self.woken.store(false, Ordering::Release);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.messages)
    }

    /// Take everything out and nothing more in.
    pub(crate) fn close(&self) -> Vec<Message> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        std::mem::take(&mut state.messages)
    }
}

/// Bounds on what clients may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long the handshake may take.
    pub(crate) handshake: Duration,
    /// How long clients have at the end.
    pub(crate) drain: Duration,
    /// How many clients there may be.
    pub(crate) connections: usize,
    /// How many requests of one client may be in flight.
    pub(crate) requests: usize,
    /// How many bytes those may carry, unless it is a single one.
    pub(crate) bytes: usize,
    /// How many bytes all clients' requests on one worker may carry together before each is
    /// worked for one request at a time.
    pub(crate) worker_bytes: usize,
}

/// What all workers share.
pub(crate) struct Crew {
    inboxes: Vec<Inbox>,
    next: AtomicUsize,
    pub(crate) exports: ExportIndex,
    pub(crate) connections: AtomicUsize,
    pub(crate) limits: Limits,
}

impl Crew {
    pub(crate) fn new(workers: usize, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            inboxes: (0..workers)
                .map(|_| Inbox::new())
                .collect::<io::Result<_>>()?,
            next: AtomicUsize::new(0),
            exports: ExportIndex::default(),
            connections: AtomicUsize::new(0),
            limits,
        })
    }

    /// How many workers there are.
    pub(crate) fn workers(&self) -> usize {
        self.inboxes.len()
    }

    /// The letter box of a worker.
    pub(crate) fn inbox(&self, worker: u16) -> &Inbox {
        &self.inboxes[usize::from(worker) % self.inboxes.len()]
    }

    /// The worker whose turn it is.
    pub(crate) fn next(&self) -> u16 {
        (self.next.fetch_add(1, Ordering::Relaxed) % self.inboxes.len()) as u16
    }

    /// Put a message into the box of the worker that does what this process itself asks of an export: always the
    /// same one, since two wake each other and wait for each other at the file's lock.
    pub(crate) fn post_own(&self, export: u64, message: Message) -> Result<(), Message> {
        let worker = export % self.inboxes.len() as u64;
        self.inbox(worker as u16).post(message)
    }

    /// Tell every worker something that has a barrier; those that ended are past it.
    pub(crate) fn broadcast(
        &self,
        barrier: &Arc<Barrier>,
        message: impl Fn(Arc<Barrier>) -> Message,
    ) {
        for inbox in &self.inboxes {
            if inbox.post(message(Arc::clone(barrier))).is_err() {
                barrier.pass();
            }
        }
    }

    /// Have every worker take the policy of `export` on; call back when all of them live by it.
    pub(crate) fn announce(&self, export: &Arc<Export>, passed: Box<dyn FnOnce() + Send>) {
        let barrier = Barrier::new(self.workers(), passed);
        self.broadcast(&barrier, |barrier| Message::Policy {
            export: Arc::clone(export),
            barrier,
            at_once: false,
        });
    }

    /// The same; called back as soon as all live by it, whatever is still in flight.
    pub(crate) fn announce_at_once(&self, export: &Arc<Export>, passed: Box<dyn FnOnce() + Send>) {
        let barrier = Barrier::new(self.workers(), passed);
        self.broadcast(&barrier, |barrier| Message::Policy {
            export: Arc::clone(export),
            barrier,
            at_once: true,
        });
    }
}
