//! The server object: workers, listening sockets, exports, and an orderly end.
//!
//! Driver: it starts threads and hands things to them; it decides nothing about requests.

use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vdisk::tap::WriteTap;

use crate::export::{
    Barrier, Disk, Export, ExportHandle, ExportOptions, LocalRequest, Mode, Policy,
};
use crate::nbd::uri::Endpoint;
use crate::socket::Listener;
use crate::uring::{Backend, Ring};
use crate::worker::{Crew, Limits, Message, Worker};

/// How long the last flush of a disk may take that is an export of another server, which may be gone.
const LAST_FLUSH: Duration = Duration::from_secs(10);

/// How a server is to be.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// How many workers, at most 63; 0 means one for each processor.
    pub workers: usize,
    /// Where to listen from the start. A client that comes before the first export is added finds
    /// none; use [`Server::listen`] afterwards to avoid that.
    pub listen: Vec<Endpoint>,
    /// How long a client may take to choose an export.
    pub handshake_limit: Duration,
    /// How long clients have, when the server ends, to take the replies to what was in flight.
    pub drain_limit: Duration,
    /// How many clients there may be; one more is turned away.
    pub max_connections: usize,
    /// How many requests of one client are worked on at once; it is not read from beyond that.
    pub requests_per_connection: usize,
    /// How many bytes the reads and writes among them may carry, unless it is a single one.
    pub bytes_per_connection: usize,
    /// How many bytes all clients' reads and writes may carry together, replies that a client has
    /// not taken included; beyond that, clients are worked for one request at a time.
    pub bytes_in_flight: usize,
    /// Use blocking system calls on threads also where `io_uring` is allowed.
    pub force_blocking: bool,
    /// Called by each worker on its thread, once it has its ring and before it does any work; told whether
    /// `io_uring` is what it works with.
    pub before_work: Option<fn(bool)>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            workers: 0,
            listen: Vec::new(),
            handshake_limit: Duration::from_secs(10),
            drain_limit: Duration::from_secs(5),
            max_connections: 1000,
            requests_per_connection: 256,
            bytes_per_connection: 64 << 20,
            bytes_in_flight: 1 << 30,
            force_blocking: false,
            before_work: None,
        }
    }
}

/// A running server. It is shut down at the latest when it is dropped.
pub struct Server {
    crew: Arc<Crew>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    addresses: Mutex<Vec<Endpoint>>,
    next_export: AtomicU64,
    backend: Backend,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Start the workers and listen.
    pub fn start(config: ServerConfig) -> io::Result<Self> {
        let backend = if config.force_blocking {
            Backend::Threads
        } else {
            choose_backend()?
        };
        let workers = match config.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            chosen => chosen,
        }
        .clamp(1, 63);
        let limits = Limits {
            handshake: config.handshake_limit,
            drain: config.drain_limit,
            connections: config.max_connections,
            requests: config.requests_per_connection.max(1),
            bytes: config.bytes_per_connection.max(1),
            worker_bytes: (config.bytes_in_flight / workers).max(1),
        };
        let crew = Arc::new(Crew::new(workers, limits)?);
        let mut server = Self {
            threads: Mutex::default(),
            addresses: Mutex::default(),
            next_export: AtomicU64::new(1),
            crew,
            backend,
        };
        server.start_workers(config.before_work)?;
        for endpoint in config.listen {
            server.listen(&endpoint)?;
        }
        Ok(server)
    }

    fn start_workers(&mut self, before_work: Option<fn(bool)>) -> io::Result<()> {
        let (sender, receiver) = mpsc::channel();
        for number in 0..self.crew.workers() as u16 {
            let (crew, sender, backend) = (Arc::clone(&self.crew), sender.clone(), self.backend);
            let body = move || match Worker::new(number, crew, backend) {
                Ok(worker) => {
                    if let Some(prepare) = before_work {
                        prepare(backend == Backend::Uring);
                    }
                    let _ = sender.send(Ok(()));
                    drop(sender);
                    run_or_abort(worker);
                }
                Err(error) => {
                    let _ = sender.send(Err(error));
                }
            };
            let thread = thread::Builder::new()
                .name(format!("blockserver-{number}"))
                .spawn(body)?;
            lock(&self.threads).push(thread);
        }
        drop(sender);
        receiver.into_iter().collect()
    }

    /// Listen on one more address; answers the address with the port that was chosen for port 0.
    ///
    /// # Errors
    /// The address is in use, or cannot be used. The file of a unix socket on which nobody listens
    /// any more is replaced.
    pub fn listen(&self, endpoint: &Endpoint) -> io::Result<Endpoint> {
        let listener = Listener::bind(endpoint)?;
        let address = listener.endpoint()?;
        if self.crew.inbox(0).post(Message::Listen(listener)).is_err() {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the server has been stopped",
            ));
        }
        lock(&self.addresses).push(address.clone());
        Ok(address)
    }

    /// Where clients can connect.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<Endpoint> {
        lock(&self.addresses).clone()
    }

    /// Whether `io_uring` does the work; else blocking system calls on threads do.
    #[must_use]
    pub fn uses_io_uring(&self) -> bool {
        self.backend == Backend::Uring
    }

    /// Serve a disk under a name. While it is the only export, clients find it under the empty name
    /// too.
    ///
    /// # Errors
    /// `AlreadyExists`: the name is taken.
    pub fn add_export(
        &self,
        name: &str,
        disk: Arc<Disk>,
        options: ExportOptions,
    ) -> io::Result<ExportHandle> {
        self.insert(
            name,
            Policy {
                mode: Mode::Serve,
                tap: None,
                disk,
                limited: false,
            },
            options,
        )
    }

    /// Serve a disk under a name, its clients' requests held from the start until
    /// [`ExportHandle::release`] or [`ExportHandle::forward`], with a tap if one is given.
    pub fn add_held_export(
        &self,
        name: &str,
        disk: Arc<Disk>,
        options: ExportOptions,
        tap: Option<Arc<dyn WriteTap>>,
    ) -> io::Result<ExportHandle> {
        self.insert(
            name,
            Policy {
                mode: Mode::Hold,
                tap,
                disk,
                limited: false,
            },
            options,
        )
    }

    fn insert(
        &self,
        name: &str,
        policy: Policy,
        options: ExportOptions,
    ) -> io::Result<ExportHandle> {
        let id = self.next_export.fetch_add(1, Ordering::Relaxed);
        let export = Export::new(id, name.to_owned(), options, policy, self.crew.workers());
        let export = Arc::new(export);
        self.crew.exports.insert(Arc::clone(&export)).map_err(|_| {
            let what = format!("there is an export named '{name}' already");
            io::Error::new(io::ErrorKind::AlreadyExists, what)
        })?;
        Ok(ExportHandle::new(export, Arc::clone(&self.crew)))
    }

    /// The export of this name.
    #[must_use]
    pub fn export(&self, name: &str) -> Option<ExportHandle> {
        self.exports()
            .into_iter()
            .find(|export| export.name() == name)
    }

    /// All exports.
    #[must_use]
    pub fn exports(&self) -> Vec<ExportHandle> {
        let all = self.crew.exports.all().into_iter();
        all.map(|export| ExportHandle::new(export, Arc::clone(&self.crew)))
            .collect()
    }

    /// Serve an export no more: its clients are disconnected once what is in flight has ended, and
    /// a disk that could be written is closed cleanly. The file is closed when the last handle goes.
    pub fn remove_export(&self, export: &ExportHandle) -> io::Result<()> {
        export.close_and_wait();
        let closed = close_cleanly(export);
        self.crew.exports.remove(export.id());
        // Once more, so that the workers let go of the disk.
        export.close_and_wait();
        closed
    }

    /// End: what is in flight ends, new requests fail with ESHUTDOWN, clients are disconnected,
    /// every disk that could be written is closed cleanly.
    ///
    /// # Errors
    /// The first disk that could not be closed cleanly; the others were tried too.
    pub fn shutdown(self) -> io::Result<()> {
        self.stop()
    }

    /// As [`Server::shutdown`], for a server that others hold too; a second call does nothing.
    pub fn stop(&self) -> io::Result<()> {
        let threads = std::mem::take(&mut *lock(&self.threads));
        if threads.is_empty() {
            return Ok(());
        }
        let (sender, receiver) = mpsc::channel();
        let drained = move || {
            let _ = sender.send(());
        };
        let barrier = Barrier::new(self.crew.workers(), Box::new(drained));
        self.crew
            .broadcast(&barrier, |barrier| Message::Drain { barrier });
        drop(barrier);
        let _ = receiver.recv();
        let mut result = Ok(());
        for export in self.exports() {
            let closed = close_cleanly(&export);
            result = result.and(closed);
        }
        for number in 0..self.crew.workers() as u16 {
            // One that has ended needs no telling.
            let _ = self.crew.inbox(number).post(Message::Quit);
        }
        for thread in threads {
            // A worker's panic would have ended the process.
            let _ = thread.join();
        }
        result
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "a disk was not closed cleanly");
        }
    }
}

/// Leave a cleanly closed image, if the disk could be written; a mark that is in it stays: whose
/// disk it is does not change because this process ends. What clients may do with the export
/// does not matter: this process may have written to it.
fn close_cleanly(export: &ExportHandle) -> io::Result<()> {
    if export.disk().read_only() {
        return Ok(());
    }
    let mark = export.disk().mark();
    let park = LocalRequest::Park { mark };
    if export.disk().is_elsewhere() {
        return export.call_within(park, LAST_FLUSH).map(drop);
    }
    export.call(park).map(drop)
}

/// Run a worker; a panic in it ends the process. The engine it may have left in the middle of a step
/// must not decide anything any more, and what a disk needs to be opened again is on the medium.
fn run_or_abort(worker: Worker) {
    if panic::catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
        tracing::error!("a worker panicked: the process ends so that no disk is harmed");
        process::abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `io_uring`, unless this host forbids it, which is said once.
fn choose_backend() -> io::Result<Backend> {
    static SAID: AtomicUsize = AtomicUsize::new(0);
    // On a thread of its own: the kernel interrupts whoever made a ring once more when it is gone.
    let tried = thread::spawn(|| Ring::<()>::new(Backend::Uring).map(drop)).join();
    let error = match tried {
        Ok(Ok(())) => return Ok(Backend::Uring),
        Ok(Err(error)) => error,
        Err(_) => io::Error::other("a thread to try io_uring panicked"),
    };
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOMEM) => {
            if SAID.fetch_add(1, Ordering::Relaxed) == 0 {
                tracing::warn!(%error, "io_uring is refused here: blocking system calls serve instead");
            }
            Ok(Backend::Threads)
        }
        _ => Err(error),
    }
}
