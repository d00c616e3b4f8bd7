//! Carries packets between two interfaces as two [`Way`]s say, on a thread of its own.
//!
//! Must never decide what happens to a packet; it reads the clock and moves bytes.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::kernel;
use crate::namespace::{Namespace, said};
use crate::way::{Counts, Shape, Way};

/// While packets come one after another they are handled together, so often: one system call to sleep for all of
/// them, and nobody is late by more than this.
const TOGETHER: Duration = Duration::from_micros(100);
/// Packets read from one interface before the other has its turn.
const TURN: usize = 256;
/// The longest packet of IP.
const LONGEST: usize = 65536;
/// Packets that may wait in an interface to be read: more than are sent while this thread waits for a processor, so that
/// the queue which is too full is the one that counts.
const INTERFACE_QUEUE: u32 = 20_000;

/// One end of a link.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it is.
    pub namespace: &'a Namespace,
    /// Its address there, as `10.0.0.1/24`.
    pub address: &'a str,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    /// From the first end to the second, and back.
    ways: Mutex<[Way; 2]>,
    wake: OwnedFd,
    stop: AtomicBool,
}

impl Shared {
    fn ways(&self) -> MutexGuard<'_, [Way; 2]> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Changes both ways now, and has the thread look at them.
    fn change(&self, mut change: impl FnMut(&mut Way, Duration)) {
        let mut ways = self.ways();
        let now = self.now();
        for way in ways.iter_mut() {
            change(way, now);
        }
        drop(ways);
        self.wake();
    }

    fn wake(&self) {
        // It fails where the thread has been woken very often and has not looked: it will.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// A link that carries packets until it is dropped.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Joins two namespaces by interfaces of the name `interface`. `seed` decides what is lost.
    ///
    /// # Errors
    /// Not permitted, or there is an interface of this name or address.
    pub fn join(ends: [End<'_>; 2], interface: (&str, u32), way: (Shape, u64)) -> io::Result<Self> {
        let [first, second] = ends;
        let files = [attach(first, interface)?, attach(second, interface)?];
        let (shape, seed) = way;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let shared = Arc::new(Shared {
            started: Instant::now(),
            ways: Mutex::new([Way::new(shape, seed), Way::new(shape, !seed)]),
            wake: eventfd(0, flags)?,
            stop: AtomicBool::new(false),
        });
        let carrier = Carrier {
            shared: Arc::clone(&shared),
            files,
            buffer: vec![0; LONGEST],
        };
        let thread = std::thread::Builder::new()
            .name("link".into())
            .spawn(move || carrier.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Nothing gets through any more, and nobody is told.
    pub fn cut(&self) {
        self.shared.change(Way::cut);
    }

    /// It is open again.
    pub fn mend(&self) {
        self.shared.change(|way, _| way.mend());
    }

    /// Changes what both ways are like.
    pub fn reshape(&self, change: impl Fn(&mut Shape)) {
        self.shared.change(|way, now| {
            let mut shape = way.shape();
            change(&mut shape);
            way.reshape(now, shape);
        });
    }

    /// What became of the packets: from the first end to the second, and back.
    #[must_use]
    pub fn counts(&self) -> [Counts; 2] {
        let ways = self.shared.ways();
        [ways[0].counts(), ways[1].counts()]
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// An interface at this end, switched on.
fn attach(end: End<'_>, (name, mtu): (&str, u32)) -> io::Result<File> {
    let made = end.namespace.enter(|| kernel::tun(name))?;
    let made = made.map_err(|e| said(&format!("TUN interface {name} cannot be made"), &e))?;
    let address = end.address;
    for words in [
        format!("ip addr add {address} dev {name}"),
        format!("ip link set {name} mtu {mtu} txqueuelen {INTERFACE_QUEUE} up"),
    ] {
        end.namespace.run(&words)?;
    }
    Ok(made)
}

struct Carrier {
    shared: Arc<Shared>,
    files: [File; 2],
    buffer: Vec<u8>,
}

impl Carrier {
    fn run(mut self) {
        // The kernel may let a thread sleep 50 us longer than it asked for, unless told.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut before = Duration::ZERO;
        while !self.shared.stop.load(Ordering::Relaxed) {
            if self.wait().is_err() {
                return;
            }
            let since = self.shared.now().saturating_sub(before);
            if since < TOGETHER {
                std::thread::sleep(TOGETHER.saturating_sub(since));
            }
            before = self.shared.now();
            self.round();
        }
    }

    /// Waits for a packet, a change, or the next arrival.
    fn wait(&self) -> io::Result<()> {
        let ways = self.shared.ways();
        let next = ways.iter().filter_map(Way::next_at).min();
        drop(ways);
        let span = next.map(|at| at.saturating_sub(self.shared.now()));
        let span = span.and_then(|span| Timespec::try_from(span).ok());
        let [first, second] = &self.files;
        let mut ready = [first.as_fd(), second.as_fd(), self.shared.wake.as_fd()]
            .map(|file| PollFd::from_borrowed_fd(file, PollFlags::IN));
        match poll(&mut ready, span.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        Ok(())
    }

    /// Takes what came, and hands over what has arrived.
    fn round(&mut self) {
        let shared = Arc::clone(&self.shared);
        for from in 0..2 {
            for _ in 0..TURN {
                let Some(packet) = self.read(from) else { break };
                shared.ways()[from].offer(shared.now(), packet);
            }
            loop {
                let packet = shared.ways()[from].arrival(shared.now());
                let Some(packet) = packet else { break };
                // An interface that was switched off takes nothing, as a host that is down.
                let _ = self.files[1 - from].write(&packet);
            }
        }
    }

    fn read(&mut self, from: usize) -> Option<Vec<u8>> {
        loop {
            match self.files[from].read(&mut self.buffer) {
                Ok(length) => return Some(self.buffer[..length].to_vec()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}
