//! Memory that comes in while the machine runs.
//!
//! Driver of [`super::pending`], thin: one thread hears which pages are touched, one reads what is waited for, others
//! that and the rest. The descriptor that holds faults back is closed only when all is in, or when nobody runs any
//! more: a page that cannot be had stays absent, so nobody ever sees another content of it.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;

use super::Slot;
use super::buffer::Buffer;
use super::image::{EXTENT, Entry};
use super::pending::{Pending, Touch};
use super::read::MemoryImage;
use super::userfault::UserFaults;
use crate::confine::Kind;
use crate::layout::PAGE;
use crate::{Error, ErrorKind, Result, threads};

/// Threads that read: the first only what is waited for, so that nobody waits for what nobody wants yet.
const READERS: usize = 3;

/// Is told why memory cannot be had.
pub(crate) type WhenLost = Box<dyn FnOnce(String) + Send>;

/// Memory on its way in.
pub(super) struct Lazy {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Lazy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lazy").finish_non_exhaustive()
    }
}

/// Where pages come from and go to.
struct Source {
    image: MemoryImage,
    faults: UserFaults,
    slots: Vec<Slot>,
    huge: bool,
}

struct Shared {
    now: Mutex<Now>,
    changed: Condvar,
    /// Wakes the thread that hears faults.
    bell: OwnedFd,
}

struct Now {
    pending: Pending,
    stopping: bool,
    when_lost: Option<WhenLost>,
    /// Let go when all is in.
    source: Option<Arc<Source>>,
}

impl Lazy {
    /// Have the memory at `slots`, of which no page exists, come in from `image`.
    pub(super) fn start(
        image: MemoryImage,
        (slots, huge): (Vec<Slot>, bool),
        faults: UserFaults,
    ) -> Result<Self> {
        let failed = |what: &'static str| move |error: io::Error| Error::host(what, error);
        for slot in &slots {
            let registered = faults.register(slot.host, slot.bytes);
            registered.map_err(failed("faults of the machine's memory cannot be had"))?;
        }
        let entries = image.entries().iter();
        let pending = Pending::new(entries.map(|entry| (entry.extent, entry.pages)), huge);
        let source = Arc::new(Source {
            image,
            faults,
            slots,
            huge,
        });
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bell = bell.map_err(|error| failed("no eventfd for the memory")(error.into()))?;
        let shared = Arc::new(Shared {
            now: Mutex::new(Now {
                pending,
                stopping: false,
                when_lost: None,
                source: Some(Arc::clone(&source)),
            }),
            changed: Condvar::new(),
            bell,
        });
        let mut lazy = Self {
            shared,
            threads: Vec::new(),
        };
        lazy.spawn("memory-faults", &source, |shared, source| {
            shared.hear(source)
        })?;
        for reader in 0..READERS {
            let only_asked = reader == 0;
            lazy.spawn(
                &format!("memory-{reader}"),
                &source,
                move |shared, source| shared.bring(source, only_asked),
            )?;
        }
        Ok(lazy)
    }

    fn spawn(
        &mut self,
        name: &str,
        source: &Arc<Source>,
        run: impl FnOnce(&Shared, &Source) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (shared, source) = (Arc::clone(&self.shared), Arc::clone(source));
        let thread = threads::spawn(name, Kind::Memory, move || {
            let gone = Gone(&shared);
            if let Err(error) = run(&shared, &source) {
                shared.lose(&error.to_string());
            }
            drop(gone);
        });
        let failed = |error| Error::host("no thread that brings memory in", error);
        self.threads.push(thread.map_err(failed)?);
        Ok(())
    }

    /// Have `call` told why memory cannot be had, if that happens or has happened.
    pub(super) fn when_lost(&self, call: WhenLost) {
        let mut now = self.shared.now();
        match now.pending.lost().map(str::to_owned) {
            Some(why) => {
                drop(now);
                call(why);
            }
            None => now.when_lost = Some(call),
        }
    }

    /// Return when all is in.
    pub(super) fn wait(&self) -> Result<()> {
        let waits = |now: &mut Now| {
            !now.pending.is_whole() && now.pending.lost().is_none() && !now.stopping
        };
        let now = self.shared.changed.wait_while(self.shared.now(), waits);
        let now = now.unwrap_or_else(PoisonError::into_inner);
        match now.pending.lost() {
            None if now.pending.is_whole() => Ok(()),
            why => Err(Error::new(
                ErrorKind::BadSnapshot,
                why.unwrap_or("the machine ends"),
            )),
        }
    }

    /// Why memory cannot be had, if so.
    pub(super) fn lost(&self) -> Option<String> {
        self.shared.now().pending.lost().map(str::to_owned)
    }

    /// Bytes of memory that are not in, at most.
    pub(super) fn left(&self) -> u64 {
        self.shared.now().pending.left() as u64 * EXTENT
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        self.shared.now().stopping = true;
        self.shared.tell();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A thread that panics must not leave others waiting for pages that never come.
struct Gone<'a>(&'a Shared);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0
                .lose("a thread that brings memory in has panicked; see the log");
        }
    }
}

impl Shared {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wake every thread.
    fn tell(&self) {
        self.changed.notify_all();
        if let Err(error) = rustix::io::write(&self.bell, &1_u64.to_ne_bytes()) {
            tracing::warn!(%error, "the bell of the memory's threads");
        }
    }

    fn lose(&self, why: &str) {
        let mut now = self.now();
        if !now.pending.lose(why) {
            return;
        }
        let call = now.when_lost.take();
        drop(now);
        tracing::error!(why, "memory of the machine is lost");
        self.tell();
        if let Some(call) = call {
            call(why.to_owned());
        }
    }

    /// Hear which pages are touched, until all is in.
    fn hear(&self, source: &Source) -> Result<()> {
        let failed = |error: io::Error| Error::host("faults of memory cannot be heard", error);
        loop {
            let mut fds = [
                PollFd::new(&source.faults, PollFlags::IN),
                PollFd::new(&self.bell, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
            {
                let now = self.now();
                if now.stopping || now.pending.is_whole() || now.pending.lost().is_some() {
                    return Ok(());
                }
            }
            for address in source.faults.touched().map_err(failed)? {
                self.touched(source, address).map_err(failed)?;
            }
        }
    }

    fn touched(&self, source: &Source, address: u64) -> io::Result<()> {
        let Some(offset) = source.offset_of(address) else {
            return Err(io::Error::other("a fault elsewhere"));
        };
        let (extent, page) = ((offset / EXTENT) as u32, (offset % EXTENT / PAGE) as usize);
        let touch = self.now().pending.touched(extent, page);
        match touch {
            Touch::Zero => source.zero(address),
            Touch::There => source.wake(address),
            Touch::Later => {
                self.changed.notify_all();
                Ok(())
            }
        }
    }

    /// Bring extents in, until all are.
    fn bring(&self, source: &Source, only_asked: bool) -> Result<()> {
        let mut buffer = Buffer::new();
        let mut spare = source.huge.then(Buffer::new);
        let mut now = self.now();
        loop {
            if now.stopping || now.pending.is_whole() || now.pending.lost().is_some() {
                return Ok(());
            }
            let Some(place) = now.pending.next(only_asked) else {
                let waited = self.changed.wait(now);
                now = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(now);
            let entries = source.image.entries();
            let entry = entries
                .get(place)
                .ok_or_else(|| Error::invalid("no such extent"))?;
            source.image.read(entry, &mut buffer)?;
            let filled = source.fill(entry, &buffer, spare.as_mut());
            filled.map_err(|error| Error::host("memory that was read cannot be put in", error))?;
            now = self.now();
            now.pending.arrived(place);
            if now.pending.is_whole() {
                source.release();
                now.source = None;
                drop(now);
                self.tell();
                return Ok(());
            }
        }
    }
}

impl Source {
    /// Where in the memory's file an address of this process is.
    fn offset_of(&self, address: u64) -> Option<u64> {
        let mut offset = 0;
        for slot in &self.slots {
            if let Some(within) = address.checked_sub(slot.host)
                && within < slot.bytes
            {
                return Some(offset + within);
            }
            offset += slot.bytes;
        }
        None
    }

    /// The address of an extent in this process. No extent is in two slots.
    fn address_of(&self, extent: u32) -> io::Result<u64> {
        let mut offset = u64::from(extent) * EXTENT;
        for slot in &self.slots {
            if offset < slot.bytes {
                return Ok(slot.host + offset);
            }
            offset -= slot.bytes;
        }
        Err(io::Error::other("an extent beyond the memory"))
    }

    fn page_bytes(&self) -> u64 {
        if self.huge { EXTENT } else { PAGE }
    }

    fn zero(&self, address: u64) -> io::Result<()> {
        let bytes = self.page_bytes();
        let start = address - address % bytes;
        if !self.huge {
            return self.faults.zero(start, bytes);
        }
        match self.faults.fill(start, Buffer::new().bytes()) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.faults.wake(start, bytes)
            }
            result => result,
        }
    }

    fn wake(&self, address: u64) -> io::Result<()> {
        let bytes = self.page_bytes();
        self.faults.wake(address - address % bytes, bytes)
    }

    /// Put the pages of an extent, which `packed` has one after another, where they belong.
    fn fill(&self, entry: &Entry, packed: &Buffer, spare: Option<&mut Buffer>) -> io::Result<()> {
        let start = self.address_of(entry.extent)?;
        let mut rest = packed.bytes();
        let mut whole = spare;
        if let Some(whole) = &mut whole {
            whole.bytes_mut().fill(0);
        }
        for (first, count) in entry.pages.runs() {
            let (run, behind) = rest.split_at(count * PAGE as usize);
            rest = behind;
            let at = first * PAGE as usize;
            match &mut whole {
                Some(whole) => whole.bytes_mut()[at..][..run.len()].copy_from_slice(run),
                None => self.faults.fill(start + at as u64, run)?,
            }
        }
        match whole {
            Some(whole) => self.faults.fill(start, whole.bytes()),
            None => Ok(()),
        }
    }

    /// All is in: pages that are still absent are zero, and nobody has to be asked.
    fn release(&self) {
        for slot in &self.slots {
            if let Err(error) = self.faults.unregister(slot.host, slot.bytes) {
                // It ends when the descriptor is closed, too.
                tracing::warn!(%error, "faults of memory cannot be given back");
            }
        }
    }
}
