//! One virtqueue: chains out of a guest's memory, requests, used entries back.
//!
//! ```text
//!   kick ─► attend ─► pop ─► request ─► its steps, one task after the other ─► used ring ─► one call
//!             ▲         └ nothing left: quiet, until there is more or the worker would sleep   │
//!             └────────── something ended: there is room again ◄───────────────────────────────┘
//! ```
//!
//! What a queue may have in flight is bounded as for a session. The driver is not told of each request
//! but of a batch, and only if it wants to be. A queue that cannot go on takes nothing more; what it
//! had in flight is still answered, and its neighbours do not notice.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::export::{Export, Mode, QueueShared};
use crate::uring::{Descriptor, Finished, IoBuffer, NO_POSITION, Op, Slab};
use crate::virtio::block::{Chain, Fault, Parsed, Request, Rules, Status, What, feature};
use crate::virtio::ring::SplitQueue;
use crate::virtio::{GuestMemory, QueueOptions, QueueSetup};

use super::exports::ExportHere;
use super::request::{InFlight, carried};
use super::task::{Asked, From};
use super::{Token, Worker};

/// The most chains that a queue takes before everybody else has had a turn. One in flight for long does
/// not count twice, but one that ends at once might be offered again at once, for ever.
const TURN: u32 = 256;

/// With so many requests in flight that end quickly, the driver is not asked to tell of more: each end has a look. Being
/// told costs a processor of the guest an exit each time.
const BUSY: usize = 16;
/// What ends quickly. So much later, as a rule, is a request seen that came when nobody was to be told.
const QUICK: Duration = Duration::from_millis(1);

/// A queue on its way to its worker.
pub(crate) struct Attachment {
    pub(crate) export: Arc<Export>,
    pub(crate) memory: GuestMemory,
    pub(crate) setup: QueueSetup,
    pub(crate) options: QueueOptions,
    pub(crate) shared: Arc<QueueShared>,
}

/// How a queue and its driver wake each other.
struct Bells {
    kick: OwnedFd,
    kick_known: Descriptor,
    call: OwnedFd,
    /// Not here while the kick is waited for.
    counter: Option<IoBuffer>,
    /// On the agenda, to be attended to.
    noted: bool,
    /// On the agenda, the driver to be told of what was put into the used ring.
    untold: bool,
    /// All there was has been taken, and the driver has not been asked since to tell of more.
    quiet: bool,
}

/// Whether a queue goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// The driver broke a rule; nothing more is taken.
    Broken,
    /// Nothing more is taken; when what is in flight has ended the queue is given back.
    Stopping,
}

/// What a queue has taken in a round of its worker.
#[derive(Default)]
struct Turn {
    round: u64,
    taken: u32,
}

impl Turn {
    /// Count one chain; whether it is the last one of this round.
    fn is_over(&mut self, round: u64) -> bool {
        if self.round != round {
            *self = Self { round, taken: 0 };
        }
        self.taken += 1;
        self.taken == TURN
    }

    /// Whether more may be taken in this round.
    fn is_open(&self, round: u64) -> bool {
        self.round != round || self.taken < TURN
    }
}

/// A queue.
pub(super) struct QueueHere {
    ring: SplitQueue,
    /// Taken apart here, one after the other.
    chain: Chain,
    bells: Bells,
    export: u32,
    options: QueueOptions,
    requests: Slab<InFlight>,
    /// Bytes that the requests in flight stand for.
    carried: usize,
    /// Whether the one that ended last ended quickly.
    quick: bool,
    turn: Turn,
    end: End,
    /// Whether its requests wait for nobody's limits: the host wants it back.
    hurried: bool,
    shared: Arc<QueueShared>,
}

impl QueueHere {
    /// The export here that it is attached to.
    pub(super) fn export(&self) -> u32 {
        self.export
    }

    /// Its worker ends: nothing more will become of it.
    pub(super) fn give_back(&self) {
        self.shared.give_back(self.ring.state());
    }
}

impl Worker {
    /// Serve a queue from now on.
    pub(super) fn attach_queue(&mut self, attachment: Attachment) {
        let Attachment {
            export,
            memory,
            setup,
            options,
            shared,
        } = attachment;
        let ring = match SplitQueue::open(memory, &setup.state, options.features) {
            Ok(ring) => ring,
            Err(why) => {
                // Checked before it was sent here, on memory that does not change.
                tracing::error!(why, "a virtqueue cannot be served");
                return shared.give_back(setup.state);
            }
        };
        let index = self.export_here(&export);
        let closed = self.exports.get_mut(index).is_none_or(|here| {
            here.attached += 1;
            matches!(here.policy.mode, Mode::Closed)
        });
        let queue = self.entrances.queues.insert(QueueHere {
            ring,
            chain: Chain::default(),
            bells: Bells {
                kick_known: Descriptor::of(&setup.kick),
                kick: setup.kick,
                call: setup.call,
                counter: Some(IoBuffer::zeroed(8)),
                noted: false,
                untold: false,
                quiet: false,
            },
            export: index,
            options,
            requests: Slab::new(),
            carried: 0,
            quick: false,
            turn: Turn::default(),
            end: End::Open,
            hurried: false,
            shared,
        });
        self.note_queue(queue);
        if closed || self.life.draining {
            self.stop_queue(queue);
        }
    }

    /// The queue here that was attached with this, if it still is.
    pub(super) fn queue_of(&self, shared: &Arc<QueueShared>) -> Option<u32> {
        let mut all = self.entrances.queues.iter();
        let found = all.find(|(_, queue)| Arc::ptr_eq(&queue.shared, shared));
        found.map(|(index, _)| index)
    }

    /// Take nothing more from a queue, and give it back when what is in flight has ended.
    pub(super) fn stop_queue(&mut self, queue: u32) {
        if let Some(q) = self.entrances.queues.get_mut(queue)
            && q.end != End::Stopping
        {
            q.end = End::Stopping;
            if q.bells.counter.is_none() {
                // Ends the read that is in flight: whoever serves the queue next must not miss a kick
                // that this one took.
                ring_bell(&q.bells.kick);
            }
            self.note_queue(queue);
        }
    }

    /// Nothing of a queue that is stopped waits for its turn any more.
    pub(super) fn hurry_queue(&mut self, queue: u32) {
        if let Some(q) = self.entrances.queues.get_mut(queue) {
            q.hurried = true;
            let export = q.export;
            self.begin_all_of_queue(export, queue);
        }
    }

    /// Whether nothing of a queue waits for its turn.
    pub(super) fn is_hurried(&self, queue: u32) -> bool {
        let q = self.entrances.queues.get(queue);
        q.is_none_or(|q| q.hurried)
    }

    /// Put a queue on the agenda.
    fn note_queue(&mut self, queue: u32) {
        if let Some(q) = self.entrances.queues.get_mut(queue)
            && !q.bells.noted
        {
            q.bells.noted = true;
            self.agenda.queues.push(queue);
        }
    }

    /// The driver has put something in.
    pub(super) fn kicked(&mut self, queue: u32, one: &mut Finished<Token>) {
        let Some(q) = self.entrances.queues.get_mut(queue) else {
            return;
        };
        q.bells.counter = one.buffer();
        if let Err(error) = one.result()
            && !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
        {
            tracing::error!(%error, "the kick of a virtqueue cannot be read");
            self.break_queue(queue, Fault::Kick);
        }
        self.note_queue(queue);
    }

    /// Do what there is to do for a queue: take requests, wait for more, give it back.
    pub(super) fn attend_queue(&mut self, queue: u32) {
        if let Some(q) = self.entrances.queues.get_mut(queue) {
            q.bells.noted = false;
        }
        if let Err(fault) = self.take_chains(queue) {
            self.break_queue(queue, fault);
        }
        let Some(q) = self.entrances.queues.get_mut(queue) else {
            return;
        };
        match q.end {
            End::Open => {
                if let Some(buffer) = q.bells.counter.take() {
                    let read = Op::Read {
                        file: q.bells.kick_known,
                        buffer,
                        range: 0..8,
                        at: NO_POSITION,
                    };
                    self.ring.submit(read, Token::Kick(queue));
                }
            }
            End::Stopping if q.requests.is_empty() && q.bells.counter.is_some() => {
                self.give_back(queue);
            }
            End::Broken | End::Stopping => {}
        }
    }

    fn give_back(&mut self, queue: u32) {
        self.call_driver(queue);
        let Some(q) = self.entrances.queues.remove(queue) else {
            return;
        };
        if let Some(here) = self.exports.get_mut(q.export) {
            here.attached -= 1;
            self.release_export(q.export);
        }
        let (state, shared) = (q.ring.state(), Arc::clone(&q.shared));
        // Whoever waits for it may unmap the memory and close the bells.
        drop(q);
        shared.give_back(state);
    }

    /// Take what the driver has made available, as long as there is room.
    fn take_chains(&mut self, queue: u32) -> Result<(), Fault> {
        let mut disarmed = false;
        loop {
            let full = self.is_queue_full(queue);
            let Some(q) = self.entrances.queues.get_mut(queue) else {
                return Ok(());
            };
            q.bells.quiet = false;
            if full {
                return Ok(());
            }
            let Some(here) = self.exports.get(q.export) else {
                return Ok(());
            };
            let disk = &here.policy.disk;
            let rules = Rules {
                size: disk.size(),
                read_only: here.shared.options.read_only || disk.read_only(),
                features: q.options.features,
            };
            let popped = q.ring.pop(&mut q.chain, &rules)?;
            if popped.is_some() && q.turn.is_over(self.life.round) {
                // The next round begins with it.
                ring_bell(&q.bells.kick);
            }
            match popped {
                Some((head, Parsed::Request(request))) => {
                    if !disarmed {
                        // Until the worker would sleep.
                        q.ring.disarm()?;
                        disarmed = true;
                    }
                    self.take_up(queue, head, request)?;
                }
                Some((head, Parsed::Refused(status))) => {
                    q.ring.put(head, q.chain.status_at(), status, 0)?;
                    self.have_told(queue);
                }
                None => {
                    q.bells.quiet = true;
                    return Ok(());
                }
            }
        }
    }

    /// Whether some queue is looked at by nobody unless its driver is asked to tell.
    pub(super) fn has_quiet_queue(&self) -> bool {
        let mut queues = self.entrances.queues.iter();
        queues.any(|(_, queue)| queue.bells.quiet)
    }

    /// Put those queues on the agenda that are quiet no more; whether there are any.
    pub(super) fn note_refilled_queues(&mut self) -> bool {
        self.note_queues(|_, queue| Ok(queue.ring.has_more()))
    }

    /// Have the drivers of quiet queues tell of what they put in; whether some did already.
    pub(super) fn arm_queues(&mut self) -> bool {
        self.note_queues(|exports, queue| {
            queue.bells.quiet = false;
            let waits = exports
                .get(queue.export)
                .is_none_or(|here| !here.line.is_empty());
            let looks = queue.quick && queue.requests.len() >= BUSY && !waits;
            Ok(!looks && queue.ring.arm()?)
        })
    }

    /// Put those quiet queues on the agenda of which this says so, or that break by it; whether there are any.
    fn note_queues(
        &mut self,
        mut wanted: impl FnMut(&Slab<ExportHere>, &mut QueueHere) -> Result<bool, Fault>,
    ) -> bool {
        let before = self.agenda.queues.len();
        for (index, queue) in self.entrances.queues.iter_mut() {
            // A fault is found again by whoever takes chains.
            if queue.bells.quiet
                && !queue.bells.noted
                && wanted(&self.exports, queue).unwrap_or(true)
            {
                queue.bells.noted = true;
                self.agenda.queues.push(index);
            }
        }
        self.agenda.queues.len() > before
    }

    /// Whether nothing is to be taken from a queue now.
    fn is_queue_full(&self, queue: u32) -> bool {
        let Some(q) = self.entrances.queues.get(queue) else {
            return true;
        };
        let limits = &self.crew.limits;
        if !q.turn.is_open(self.life.round) {
            return true;
        }
        // As for sessions: who has nothing in flight may always go on.
        q.end != End::Open
            || (self.life.carried >= limits.worker_bytes && !q.requests.is_empty())
            || q.requests.len() >= limits.requests
            || q.carried >= limits.bytes
    }

    /// Begin a request.
    fn take_up(&mut self, queue: u32, head: u16, request: Request) -> Result<(), Fault> {
        let Some(q) = self.entrances.queues.get_mut(queue) else {
            return Ok(());
        };
        let mut data = None;
        if request.len > 0 {
            let segments = q.chain.data().iter();
            let segments = segments.map(|segment| (segment.address, segment.len as usize));
            data = IoBuffer::of_guest(q.ring.memory(), segments);
            if data.is_none() {
                let (at, status) = (q.chain.status_at(), Status::IoError);
                q.ring.put(head, at, status, request.written(status))?;
                self.have_told(queue);
                return Ok(());
            }
        }
        let carried = carried(&request);
        let id = q.requests.insert(InFlight {
            head,
            status_at: q.chain.status_at(),
            request,
            data,
            done: 0,
            step: 0,
            failed: false,
            taken: self.life.now,
        });
        q.carried += carried;
        self.life.carried += carried;
        self.go_on_with(queue, id);
        Ok(())
    }

    /// Begin the next step of a request, or answer it.
    pub(super) fn go_on_with(&mut self, queue: u32, id: u32) {
        let Some(q) = self.entrances.queues.get_mut(queue) else {
            return;
        };
        let through = q.options.features & feature::FLUSH == 0;
        let Some(request) = q.requests.get_mut(id) else {
            return;
        };
        let next = if request.failed {
            None
        } else {
            request.next_step(through)
        };
        let Some((action, offset, len)) = next else {
            return self.answer_chain(queue, id);
        };
        request.step = len;
        let start = request.done as usize;
        let data = request.data.as_ref();
        let part = data.map(|data| data.part(start..start + len as usize));
        if part.as_ref().is_some_and(Option::is_none) {
            request.failed = true;
            return self.answer_chain(queue, id);
        }
        let buffer = part.flatten();
        let from = From::Queue { queue, request: id };
        let export = q.export;
        #[rustfmt::skip]
        let asked = Asked { from, action, offset, len, buffer };
        self.take_on(export, asked);
    }

    /// A step of a request ended; whether it found that nothing is in the file.
    pub(super) fn step_ended(&mut self, queue: u32, id: u32, result: io::Result<bool>) {
        let Some(q) = self.entrances.queues.get_mut(queue) else {
            return;
        };
        let Some(request) = q.requests.get_mut(id) else {
            return;
        };
        let start = request.done as usize;
        match (result, &request.data) {
            (Err(error), _) => {
                tracing::debug!(%error, what = ?request.request.what, "a guest's request failed");
                request.failed = true;
            }
            (Ok(true), Some(data)) => data.zero(start..start + request.step as usize),
            (Ok(_), _) => {}
        }
        request.done += if request.data.is_some() {
            request.step
        } else {
            1
        };
        if request.failed || request.done >= request.steps_end() {
            self.answer_chain(queue, id);
        } else {
            // Not from here: each step would be one call deeper than the one before.
            self.agenda.steps.push((queue, id));
        }
    }

    fn answer_chain(&mut self, queue: u32, id: u32) {
        let Some(q) = self.entrances.queues.get_mut(queue) else {
            return;
        };
        let Some(ended) = q.requests.remove(id) else {
            return;
        };
        let carried = carried(&ended.request);
        q.carried -= carried;
        q.quick = self.life.now.saturating_duration_since(ended.taken) < QUICK;
        self.life.carried -= carried;
        let status = if ended.failed {
            Status::IoError
        } else {
            Status::Ok
        };
        if let (What::Identify, Some(data)) = (&ended.request.what, &ended.data) {
            let serial = q.options.serial;
            let len = (ended.request.len as usize).min(serial.len());
            data.copy_in(0, serial.get(..len).unwrap_or(&serial));
        }
        let written = ended.request.written(status);
        let put = q.ring.put(ended.head, ended.status_at, status, written);
        self.have_told(queue);
        if let Err(fault) = put {
            self.break_queue(queue, fault);
        }
        // There is room again, and more may have come unannounced.
        self.note_queue(queue);
    }

    /// Have the driver told once this batch is through.
    fn have_told(&mut self, queue: u32) {
        if let Some(q) = self.entrances.queues.get_mut(queue)
            && !q.bells.untold
        {
            q.bells.untold = true;
            self.agenda.calls.push(queue);
        }
    }

    /// Tell the driver of what was put into the used ring, if it wants to know.
    pub(super) fn call_driver(&mut self, queue: u32) {
        let Some(q) = self.entrances.queues.get_mut(queue) else {
            return;
        };
        if !std::mem::take(&mut q.bells.untold) {
            return;
        }
        match q.ring.wants_call() {
            Ok(true) => ring_bell(&q.bells.call),
            Ok(false) => {}
            Err(fault) => self.break_queue(queue, fault),
        }
    }

    /// A queue cannot go on.
    fn break_queue(&mut self, queue: u32, fault: Fault) {
        if let Some(q) = self.entrances.queues.get_mut(queue)
            && q.end == End::Open
        {
            q.end = End::Broken;
            let number = q.options.number;
            tracing::warn!(number, %fault, "a virtqueue is of no use until its device is reset");
            q.shared.set_broken();
            if let Some(broken) = q.options.broken.clone() {
                broken(fault);
            }
        }
    }
}

/// Add one to an eventfd. Whoever it belongs to may have closed the other end; that is its business.
fn ring_bell(bell: &OwnedFd) {
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
