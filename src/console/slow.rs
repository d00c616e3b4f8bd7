//! Where a console's output may be stuck for any time: stdout, stderr, a FIFO. A thread of its own writes there.
//!
//! The guest never waits for it. What is not taken waits in a queue; when that is full the oldest falls out. At the
//! end of the machine what waits is still offered, as long as some of it is taken, but not for ever.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vmm::confine::{self, Kind};

/// Most bytes that wait: seconds of a guest that does nothing but print.
const MOST: usize = 4 << 20;
/// Bytes that are written at once.
const PIECE: usize = 16 << 10;
/// At the end, after so long without anything being taken, nobody reads.
const STALLED: Duration = Duration::from_secs(2);
/// The end takes no longer.
const LONGEST: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    /// How many pieces were taken.
    taken: u64,
    /// Nothing more comes.
    closed: bool,
    /// Nothing more is written.
    ended: bool,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece; none at the end.
    fn next(&self) -> Option<Vec<u8>> {
        let idle = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.closed;
        let waiting = self.changed.wait_while(self.lock(), idle);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        let len = waiting.bytes.len().min(PIECE);
        (len > 0).then(|| waiting.bytes.drain(..len).collect())
    }

    fn write(&self, mut to: File) {
        while let Some(piece) = self.next() {
            if to.write_all(&piece).is_err() {
                // Who has gone does not come back.
                break;
            }
            self.lock().taken += 1;
            self.changed.notify_all();
        }
        let mut waiting = self.lock();
        waiting.ended = true;
        waiting.bytes.clear();
        drop(waiting);
        self.changed.notify_all();
    }
}

/// See the file's head.
pub(super) struct Slow(Arc<Queue>);

impl Slow {
    /// Write to `to` from now on.
    pub(super) fn start(to: File) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let writing = Arc::clone(&queue);
        let thread = thread::Builder::new().name("console out".into());
        thread.spawn(move || {
            confine::thread(Kind::Console);
            writing.write(to);
        })?;
        Ok(Self(queue))
    }

    /// Have this written, sometime.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut waiting = self.0.lock();
        if waiting.ended {
            return;
        }
        let waited = !waiting.bytes.is_empty();
        waiting.bytes.extend(bytes);
        let over = waiting.bytes.len().saturating_sub(MOST);
        waiting.bytes.drain(..over);
        drop(waiting);
        if !waited {
            self.0.changed.notify_all();
        }
    }

    /// Nothing more comes. Says whether all of it was taken, or nobody was left to take it; else the thread is
    /// left to itself.
    pub(super) fn close(self) -> bool {
        let end = Instant::now() + LONGEST;
        let mut waiting = self.0.lock();
        waiting.closed = true;
        self.0.changed.notify_all();
        while !waiting.ended {
            let before = waiting.taken;
            let none = |waiting: &mut Waiting| waiting.taken == before && !waiting.ended;
            let looked = self.0.changed.wait_timeout_while(waiting, STALLED, none);
            let timeout;
            (waiting, timeout) = looked.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() || Instant::now() >= end {
                break;
            }
        }
        waiting.ended
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Slow, UnixStream) {
        let (to, from) = UnixStream::pair().unwrap();
        (Slow::start(OwnedFd::from(to).into()).unwrap(), from)
    }

    #[test]
    fn who_reads_gets_every_byte_also_the_last() {
        let (slow, mut from) = pair();
        let reading = thread::spawn(move || {
            let mut read = Vec::new();
            from.read_to_end(&mut read).unwrap();
            read
        });
        let printed: Vec<u8> = (0..3 << 20).map(|byte: u32| (byte / 3) as u8).collect();
        for part in printed.chunks(997) {
            slow.push(part);
        }
        assert!(slow.close());
        assert!(reading.join().unwrap() == printed);
    }

    #[test]
    fn nobody_who_reads_holds_up_nobody() {
        let (slow, from) = pair();
        for _ in 0..3 {
            slow.push(&vec![0; MOST - 1]);
        }
        assert!(slow.0.lock().bytes.len() <= MOST);
        assert!(!slow.close());
        let (slow, gone) = pair();
        drop(gone);
        slow.push(&[0; 10]);
        assert!(slow.close(), "nobody is left");
        drop(from);
    }
}
