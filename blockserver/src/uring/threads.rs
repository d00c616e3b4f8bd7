//! The operations of a ring carried out by blocking system calls on threads.
//!
//! For hosts where `io_uring` is forbidden (default container profiles). Each operation that waits
//! holds a thread meanwhile, so there are about two a connection; threads that find nothing to do
//! end. Waiting calls also wait for the ring's end, so that closing it cancels them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::call::{Call, Memory};
use super::op::{Allocation, NO_POSITION};

/// How long a thread waits for something to do before it ends.
const IDLE: Duration = Duration::from_secs(5);

/// A ring made of threads.
pub(super) struct ThreadRing {
    shared: Arc<Shared>,
    timers: Vec<(Instant, u64)>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    finished: Condvar,
    /// Readable from the moment the ring closes.
    closing: OwnedFd,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<(u64, Call)>,
    finished: Vec<(u64, i32)>,
    idle: usize,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ThreadRing {
    pub(super) fn new() -> io::Result<Self> {
        let closing = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            finished: Condvar::new(),
            closing,
        };
        Ok(Self {
            shared: Arc::new(shared),
            timers: Vec::new(),
        })
    }

    /// Have a thread carry the call out.
    pub(super) fn submit(&mut self, token: u64, call: Call) {
        if let Call::Timer(_, after) = call {
            self.timers.push((Instant::now() + after, token));
            return;
        }
        let mut state = self.shared.lock();
        state.jobs.push_back((token, call));
        if state.idle >= state.jobs.len() {
            self.shared.work.notify_one();
            return;
        }
        drop(state);
        let shared = Arc::clone(&self.shared);
        let started = thread::Builder::new()
            .name("blockserver-io".into())
            .spawn(move || run(&shared));
        if started.is_err() {
            // No more threads: those that exist take the job when they are done with theirs.
            self.shared.work.notify_one();
        }
    }

    /// Wait until there is a completion, or only see to the timers.
    pub(super) fn wait(&mut self, sleep: bool) {
        let mut state = self.shared.lock();
        loop {
            // First: whoever is always busy must not be late for that.
            let now = Instant::now();
            if let Some(due) = self.timers.iter().position(|(at, _)| *at <= now) {
                let (_, token) = self.timers.swap_remove(due);
                state.finished.push((token, -libc::ETIME));
            }
            if !sleep || !state.finished.is_empty() {
                return;
            }
            let next = self.timers.iter().map(|(at, _)| *at).min();
            let limit = next.map_or(Duration::from_secs(1), |at| at - now);
            let waited = self.shared.finished.wait_timeout(state, limit);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What has completed: tokens and results.
    pub(super) fn take_finished(&mut self) -> Vec<(u64, i32)> {
        std::mem::take(&mut self.shared.lock().finished)
    }

    /// Cancel whatever waits, now and later.
    pub(super) fn close(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let _ = rustix::io::write(&self.shared.closing, &1u64.to_ne_bytes());
        let waiting: Vec<_> = state.jobs.drain(..).map(|(token, _)| token).collect();
        let timers = self.timers.drain(..).map(|(_, token)| token);
        let cancelled = waiting
            .into_iter()
            .chain(timers)
            .map(|token| (token, -libc::ECANCELED));
        state.finished.extend(cancelled);
        self.shared.work.notify_all();
    }
}

impl Drop for ThreadRing {
    fn drop(&mut self) {
        self.close();
    }
}

/// The life of a thread: one job after the other.
fn run(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some((token, call)) = state.jobs.pop_front() {
            drop(state);
            let result = carry_out(call, shared.closing.as_fd().as_raw_fd());
            state = shared.lock();
            state.finished.push((token, result));
            shared.finished.notify_one();
            continue;
        }
        if state.closed {
            return;
        }
        state.idle += 1;
        let waited = shared.work.wait_timeout(state, IDLE);
        let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        state = guard;
        state.idle -= 1;
        if timeout.timed_out() && state.jobs.is_empty() {
            return;
        }
    }
}

/// The result of a call that is made here and now: one on a file, which the ring's end need not cancel.
pub(super) fn carry_out_at_once(call: Call) -> i32 {
    carry_out(call, -1)
}

/// Make the system call; bytes or a descriptor, or a negated errno.
fn carry_out(call: Call, closing: RawFd) -> i32 {
    match call {
        Call::Read(file, to, NO_POSITION) => {
            // SAFETY: the slot of the operation keeps this memory alive and apart.
            attempt(file.0, libc::POLLIN, closing, || unsafe {
                libc::read(file.0, to.start.cast(), to.len as usize)
            })
        }
        Call::Read(file, to, at) => {
            let (start, at) = (to.start.cast(), at.cast_signed());
            // SAFETY: as above.
            retry(|| unsafe { libc::pread(file.0, start, to.len as usize, at) })
        }
        Call::Write(file, from, at) => {
            let (start, at) = (from.start.cast(), at.cast_signed());
            // SAFETY: the slot of the operation keeps this memory alive.
            retry(|| unsafe { libc::pwrite(file.0, start, from.len as usize, at) })
        }
        Call::ReadPieces(file, to, at) => {
            let (count, at) = (to.count.cast_signed(), at.cast_signed());
            // SAFETY: the slot of the operation keeps the vectors and the memory that they name.
            retry(|| unsafe { libc::preadv(file.0, to.start, count, at) })
        }
        Call::WritePieces(file, from, at) => {
            let (count, at) = (from.count.cast_signed(), at.cast_signed());
            // SAFETY: as above.
            retry(|| unsafe { libc::pwritev(file.0, from.start, count, at) })
        }
        // SAFETY: no memory is passed.
        Call::Sync(file) => retry(|| unsafe { libc::fdatasync(file.0) } as isize),
        Call::SetLength(file, len) => {
            // SAFETY: no memory is passed.
            retry(|| unsafe { libc::ftruncate(file.0, len.cast_signed()) } as isize)
        }
        Call::Allocate(file, Allocation { mode, at, len }) => {
            let (at, len) = (at.cast_signed(), len.cast_signed());
            // SAFETY: no memory is passed.
            retry(|| unsafe { libc::fallocate(file.0, mode, at, len) } as isize)
        }
        Call::Receive(socket, to, how) => receive(socket.0, to, how.whole, closing),
        Call::Send(socket, message, _) => {
            let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
            // SAFETY: the slot of the operation keeps the message, its vectors and what they name.
            attempt(socket.0, libc::POLLOUT, closing, || unsafe {
                libc::sendmsg(socket.0, message, flags)
            })
        }
        Call::Accept(listener) => {
            let (none, no) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: null pointers ask for no address.
            attempt(listener.0, libc::POLLIN, closing, || unsafe {
                libc::accept4(listener.0, none, no, libc::SOCK_CLOEXEC) as isize
            })
        }
        Call::Timer(..) => -libc::EINVAL,
    }
}

/// Receive once, or until all of the memory is filled.
fn receive(socket: RawFd, to: Memory, whole: bool, closing: RawFd) -> i32 {
    let (len, mut filled) = (to.len as usize, 0);
    loop {
        // SAFETY: the slot of the operation keeps `len` bytes at `start` alive and apart; `filled`
        // is less than `len` whenever more is asked for.
        let got = attempt(socket, libc::POLLIN, closing, || unsafe {
            let rest = to.start.add(filled).cast();
            libc::recv(socket, rest, len - filled, libc::MSG_DONTWAIT)
        });
        match usize::try_from(got) {
            Ok(bytes) if bytes > 0 => filled += bytes,
            Err(_) if filled == 0 => return got,
            _ => return count(filled),
        }
        if !whole || filled == len {
            return count(filled);
        }
    }
}

/// A number of bytes as a result.
fn count(bytes: usize) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

/// Wait until `fd` is ready or the ring closes, then try; again as long as there was nothing to do.
fn attempt(fd: RawFd, events: i16, closing: RawFd, mut call: impl FnMut() -> isize) -> i32 {
    loop {
        let watch = |fd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let mut watched = [watch(fd, events), watch(closing, libc::POLLIN)];
        // SAFETY: the array outlives the call and has as many entries as it is told.
        let ready = unsafe { libc::poll(watched.as_mut_ptr(), 2, -1) };
        if ready < 0 {
            match errno() {
                libc::EINTR => continue,
                error => return -error,
            }
        }
        if watched[1].revents != 0 {
            return -libc::ECANCELED;
        }
        let result = retry(&mut call);
        if result != -libc::EAGAIN {
            return result;
        }
    }
}

/// The result of a call that may be interrupted.
fn retry(mut call: impl FnMut() -> isize) -> i32 {
    loop {
        let result = call();
        if result >= 0 {
            return i32::try_from(result).unwrap_or(i32::MAX);
        }
        match errno() {
            libc::EINTR => {}
            error => return -error,
        }
    }
}

fn errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}
