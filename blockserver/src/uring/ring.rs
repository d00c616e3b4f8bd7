//! One ring: operations in, completions out, one system call for a few of them.
//!
//! Every operation in flight has a slot that owns its context and what the kernel works on; the
//! slot's number is the `user_data`. Slots are emptied by completions and by nothing else, so a ring
//! that is dropped first cancels what runs and waits for it.
//!
//! Files and sockets are not registered with the kernel's ring: when a process is killed, the kernel
//! may keep registered ones open for more than a minute (seen on 6.18), locks and clients included.

use std::collections::VecDeque;
use std::io;

use io_uring::register::{Probe, Restriction};
use io_uring::types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::call::Call;
use super::op::{Allocation, Finished, Held, Op, Reception};
use super::slab::Slab;
use super::threads::{ThreadRing, carry_out_at_once};

/// Submission entries; a batch that is larger is submitted in parts.
const ENTRIES: u32 = 512;
/// Completion entries: what may be in flight before the kernel has to keep completions aside.
const COMPLETIONS: u32 = 8192;
/// As many operations go to the kernel at once. More cost fewer system calls, but the disk stands idle while a large
/// batch is made ready; fewer cost a virtual disk one more exit to its host each (measured with 1, 2, 4, 5, 6, 8 and all).
const A_FEW: usize = 4;
/// `IORING_RECVSEND_POLL_FIRST`: wait before the first attempt.
const POLL_FIRST: u16 = 1;

/// What carries the operations out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// `io_uring`.
    Uring,
    /// Blocking system calls on threads.
    Threads,
}

enum Engine {
    Uring(Box<IoUring>),
    Threads(ThreadRing),
}

struct Slot<C> {
    context: C,
    held: Held,
}

/// A ring. Made, used and dropped on one thread.
pub(crate) struct Ring<C> {
    engine: Engine,
    slots: Slab<Slot<C>>,
    backlog: VecDeque<squeue::Entry>,
    /// What was done at once, and its result.
    done: Vec<(u32, i32)>,
    /// The kernel says that it has work, but had none when it was entered: it says so a little late, and may have done
    /// the work by then. Only the next work takes that back.
    hollow: bool,
}

impl<C> Ring<C> {
    /// A ring of this kind, with the cheapest way to deliver completions that the kernel has.
    pub(crate) fn new(backend: Backend) -> io::Result<Self> {
        let engine = match backend {
            Backend::Threads => Engine::Threads(ThreadRing::new()?),
            Backend::Uring => Engine::Uring(Box::new(set_up()?)),
        };
        Ok(Self {
            engine,
            slots: Slab::new(),
            backlog: VecDeque::new(),
            done: Vec::new(),
            hollow: false,
        })
    }

    /// How many operations are in flight.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// Begin an operation, with the next [`Self::enter`] at the latest; `context` comes back with its completion.
    pub(crate) fn submit(&mut self, op: Op, context: C) {
        let (held, call) = Call::new(op);
        let token = self.slots.insert(Slot { context, held });
        match &mut self.engine {
            Engine::Threads(threads) => threads.submit(u64::from(token), call),
            Engine::Uring(_) => {
                let entry = entry(&call).user_data(u64::from(token));
                if !self.backlog.is_empty() || !self.push(&entry) {
                    self.backlog.push_back(entry);
                }
                self.hand_over_a_few();
            }
        }
    }

    /// Do an operation now, on this thread: one that copies within memory, so that to hand it over would cost more than to
    /// do it. Its completion comes as those of others do.
    pub(crate) fn do_at_once(&mut self, op: Op, context: C) {
        let (held, call) = Call::new(op);
        let token = self.slots.insert(Slot { context, held });
        self.done.push((token, carry_out_at_once(call)));
    }

    /// Hand what has collected to the kernel once it is a few. What fails here is tried again by [`Self::enter`].
    fn hand_over_a_few(&mut self) {
        if let Engine::Uring(ring) = &mut self.engine
            && ring.submission().len() >= A_FEW
        {
            let _ = ring.submit();
        }
    }

    /// Hand everything to the kernel, so that [`Self::has_news`] tells of whatever ends; false if it cannot tell.
    pub(crate) fn hand_over(&mut self) -> bool {
        let Engine::Uring(ring) = &mut self.engine else {
            return false;
        };
        // What fails here is tried again by `enter`.
        !self.hollow
            && self.backlog.is_empty()
            && (ring.submission().is_empty() || ring.submit().is_ok())
    }

    /// Whether something ended, as far as that is seen without a system call. [`Self::enter`] has it reaped.
    pub(crate) fn has_news(&mut self) -> bool {
        match &mut self.engine {
            _ if !self.done.is_empty() => true,
            Engine::Threads(_) => false,
            Engine::Uring(ring) => {
                !ring.completion().is_empty() || (!self.hollow && has_work(&ring.submission()))
            }
        }
    }

    /// Hand everything to the kernel, and sleep until there is a completion if wished.
    ///
    /// Waiting a little longer for more of them to collect was measured to cost more than it saves.
    pub(crate) fn enter(&mut self, sleep: bool) -> io::Result<()> {
        let sleep = sleep && self.done.is_empty();
        while let Some(entry) = self.backlog.pop_front() {
            if !self.push(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        let ring = match &mut self.engine {
            Engine::Threads(threads) => {
                threads.wait(sleep);
                return Ok(());
            }
            Engine::Uring(ring) => ring,
        };
        let entered = if sleep && self.backlog.is_empty() && ring.completion().is_empty() {
            ring.submit_and_wait(1)
        } else if !ring.submission().is_empty() || has_work(&ring.submission()) {
            ring.submit()
        } else {
            Ok(0)
        };
        self.hollow = ring.completion().is_empty() && has_work(&ring.submission());
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Interrupted, or the completions have to be reaped first: the caller does so now.
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Move what has completed into `into`.
    pub(crate) fn reap(&mut self, into: &mut Vec<Finished<C>>) {
        for (token, raw) in self.done.drain(..) {
            finish(&mut self.slots, into, u64::from(token), raw, false);
        }
        match &mut self.engine {
            Engine::Threads(threads) => {
                for (token, raw) in threads.take_finished() {
                    finish(&mut self.slots, into, token, raw, false);
                }
            }
            Engine::Uring(ring) => {
                for entry in ring.completion() {
                    let more_input = cqueue::sock_nonempty(entry.flags());
                    finish(
                        &mut self.slots,
                        into,
                        entry.user_data(),
                        entry.result(),
                        more_input,
                    );
                }
            }
        }
    }

    /// Put an entry into the submission queue, emptying it into the kernel when it is full.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        let Engine::Uring(ring) = &mut self.engine else {
            return false;
        };
        for attempt in 0..2 {
            // SAFETY: all memory the entry names is owned by its slot in `slots` (see `Call`), which
            // is emptied only by the completion; descriptors are kept open by the submitter.
            if unsafe { ring.submission().push(entry) }.is_ok() {
                return true;
            }
            if attempt == 0 && ring.submit().is_err() {
                return false;
            }
        }
        false
    }
}

impl<C> Drop for Ring<C> {
    fn drop(&mut self) {
        for entry in self.backlog.drain(..) {
            // Never reached the kernel, so no completion will come.
            self.slots.remove(entry.get_user_data() as u32);
        }
        let mut finished = Vec::new();
        self.reap(&mut finished);
        if let Engine::Uring(ring) = &self.engine {
            let _ = ring.submit();
            // Sockets, timers and eventfds end by this; file operations end by themselves.
            let limit = Some(Timespec::new().sec(1));
            let _ = ring
                .submitter()
                .register_sync_cancel(limit, CancelBuilder::any());
        }
        if let Engine::Threads(threads) = &mut self.engine {
            threads.close();
        }
        let mut patience = 10_000;
        while !self.slots.is_empty() && patience > 0 {
            match &mut self.engine {
                Engine::Threads(threads) => threads.wait(true),
                Engine::Uring(ring) => {
                    let soon = Timespec::new().nsec(1_000_000);
                    let args = SubmitArgs::new().timespec(&soon);
                    let _ = ring.submitter().submit_with_args(1, &args);
                }
            }
            self.reap(&mut finished);
            finished.clear();
            patience -= 1;
        }
        if !self.slots.is_empty() {
            // The kernel still owns this memory: it is never freed rather than freed too early.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

/// Whether the kernel has completions that only an entry into it brings.
fn has_work(queue: &squeue::SubmissionQueue<'_>) -> bool {
    queue.taskrun() || queue.cq_overflow()
}

/// Empty the slot of a completion.
fn finish<C>(
    slots: &mut Slab<Slot<C>>,
    into: &mut Vec<Finished<C>>,
    token: u64,
    raw: i32,
    more_input: bool,
) {
    if let Some(slot) = slots.remove(token as u32) {
        into.push(Finished {
            context: slot.context,
            held: slot.held,
            more_input,
            raw,
        });
    }
}

/// The best ring that this kernel gives: completions run when we ask for them (6.1), else without
/// interrupting us (5.19), both with a flag that says when there are some, else as they come. It is restricted to what [`entry`] makes (5.10).
fn set_up() -> io::Result<IoUring> {
    let mut best = IoUring::builder();
    best.setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag();
    let mut middle = IoUring::builder();
    middle.setup_coop_taskrun().setup_taskrun_flag();
    let mut refused = None;
    for mut builder in [best, middle, IoUring::builder()] {
        builder
            .setup_clamp()
            .setup_cqsize(COMPLETIONS)
            .setup_submit_all()
            .setup_r_disabled();
        match builder.build(ENTRIES) {
            Ok(ring) => return restrict(&ring).map(|()| ring),
            // A flag that this kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    let mut plain = IoUring::builder();
    plain.setup_clamp().setup_cqsize(COMPLETIONS);
    plain
        .build(ENTRIES)
        .map_err(|error| refused.unwrap_or(error))
}

/// The operations that [`entry`] makes.
const OPERATIONS: [u8; 12] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Ftruncate::CODE,
    opcode::Fallocate::CODE,
    opcode::Recv::CODE,
    opcode::Send::CODE,
    opcode::SendMsg::CODE,
    opcode::Accept::CODE,
    opcode::Timeout::CODE,
];
/// `IORING_REGISTER_SYNC_CANCEL` (6.0), which ends what waits.
const CANCEL: u8 = 24;

/// Have a ring do nothing but these, and start it: filters of system calls do not see what a ring is asked for,
/// so that whoever gets hold of a worker could else open files by it.
fn restrict(ring: &IoUring) -> io::Result<()> {
    let ring = ring.submitter();
    let mut known = Probe::new();
    ring.register_probe(&mut known)?;
    let operations = || {
        let known = OPERATIONS.into_iter().filter(|op| known.is_supported(*op));
        known.map(Restriction::sqe_op)
    };
    let cancel = Restriction::register_op(CANCEL);
    let mut all: Vec<_> = operations().chain([cancel]).collect();
    // An older kernel has no such cancelling, and refuses the whole list for it.
    ring.register_restrictions(&mut all)
        .or_else(|_| ring.register_restrictions(&mut operations().collect::<Vec<_>>()))?;
    ring.register_enable_rings()
}

/// The submission entry of a call.
fn entry(call: &Call) -> squeue::Entry {
    match *call {
        Call::Read(file, to, at) => opcode::Read::new(Fd(file.0), to.start, to.len)
            .offset(at)
            .build(),
        Call::Write(file, from, at) => opcode::Write::new(Fd(file.0), from.start, from.len)
            .offset(at)
            .build(),
        Call::ReadPieces(file, to, at) => opcode::Readv::new(Fd(file.0), to.start, to.count)
            .offset(at)
            .build(),
        Call::WritePieces(file, from, at) => {
            opcode::Writev::new(Fd(file.0), from.start, from.count)
                .offset(at)
                .build()
        }
        Call::Sync(file) => opcode::Fsync::new(Fd(file.0))
            .flags(FsyncFlags::DATASYNC)
            .build(),
        Call::SetLength(file, len) => opcode::Ftruncate::new(Fd(file.0), len).build(),
        Call::Allocate(file, Allocation { mode, at, len }) => {
            opcode::Fallocate::new(Fd(file.0), len)
                .offset(at)
                .mode(mode)
                .build()
        }
        Call::Receive(socket, to, Reception { whole, idle }) => {
            let flags = if whole { libc::MSG_WAITALL } else { 0 };
            let first = if idle { POLL_FIRST } else { 0 };
            opcode::Recv::new(Fd(socket.0), to.start, to.len)
                .flags(flags)
                .ioprio(first)
                .build()
        }
        Call::Send(socket, message, only) => {
            let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
            let only = only.and_then(|(from, len)| Some((from, u32::try_from(len).ok()?)));
            if let Some((from, len)) = only {
                opcode::Send::new(Fd(socket.0), from, len)
                    .flags(flags)
                    .build()
            } else {
                let flags = flags.cast_unsigned();
                opcode::SendMsg::new(Fd(socket.0), message)
                    .flags(flags)
                    .build()
            }
        }
        Call::Accept(listener) => {
            let (no, none) = (std::ptr::null_mut(), std::ptr::null_mut());
            let cloexec = libc::SOCK_CLOEXEC;
            opcode::Accept::new(Fd(listener.0), no, none)
                .flags(cloexec)
                .build()
        }
        Call::Timer(time, _) => opcode::Timeout::new(time).build(),
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
