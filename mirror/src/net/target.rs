//! Drives a receiving site: listens, and runs one target machine for each disk.
//!
//! The first message of a connection says which disk it is for. Machines come when a disk is first
//! greeted, or at the start for those whose record asks for it, and go when the disk is owned and
//! nobody is connected: then only the record speaks for it. See [`super`].

mod disk;
mod groups;
mod reads;
mod returning;
mod sharing;
mod zeroes;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use uuid::Uuid;

use self::disk::{DiskTask, Happened};
use super::lane::{Carried, Heard, answer_and_close, next_message};
use super::port::TargetHost;
use super::room::Room;
use super::socket::{SiteAddress, Traffic, tune};
use super::stream::Stream;
use super::tls;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{
    GROUP_SUFFIX, JOURNAL_SUFFIXES, RECORD_SUFFIX, RecordStore, SESSION_SUFFIX, WAY_BACK_SUFFIX,
    journal_paths,
};
use crate::group::Gathering;
use crate::record::{Ownership, State};
use crate::session::{ConnId, TargetConfig};
use crate::wire::{Decoder, Fault, Message, Refusal};

/// How long a connection may take to say what it is for.
const GREET_WITHIN: Duration = Duration::from_secs(10);
/// The first byte of an encrypted connection; a greeting begins with another.
const TLS_HANDSHAKE: u8 = 0x16;
/// Connections that have not yet said what they are for.
const STRANGERS: usize = 64;
/// How long no connection is taken when the host has no room for one.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Starts receiving sites.
#[derive(Debug)]
pub struct TargetDriver;

/// What is known of one disk here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TargetStatus {
    /// Its name.
    pub name: String,
    /// What its durable record says: `none`, `emptying`, `receiving`, `following`, `prepared`, `owner` or
    /// `released`.
    pub state: &'static str,
    /// The session that is connected now.
    pub session: Option<Uuid>,
    /// Bytes written to the disk by sessions since the driver started.
    pub written: u64,
    /// Consistent moments of the source that came while the disk followed it, since the driver started.
    pub epochs: u64,
    /// The NBD address at which it is served, once it is.
    pub address: Option<String>,
    /// What failed last here.
    pub trouble: Option<String>,
}

/// A disk here as its metrics show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchedTarget {
    /// What is known of it.
    pub status: TargetStatus,
    /// Bytes of its journal's files.
    pub journal: u64,
}

impl TargetDriver {
    /// Listen at `listen` (`tcp:HOST:PORT`; port 0 for any) for sources that bring disks to `host`.
    ///
    /// Disks whose records ask for it are taken up again at once.
    ///
    /// Fails with [`ErrorKind::InvalidArgument`] or [`ErrorKind::Io`] (the address is in use, the
    /// site cannot be listed). A record that cannot be read only concerns its disk, and is logged.
    pub fn start(listen: &str, host: Arc<dyn TargetHost>) -> Result<TargetHandle> {
        Self::start_at(TargetListener::bind(listen)?, host)
    }

    /// The same where somebody listens already.
    ///
    /// Fails with [`ErrorKind::Io`].
    pub fn start_at(at: TargetListener, host: Arc<dyn TargetHost>) -> Result<TargetHandle> {
        let TargetListener {
            listener,
            address,
            sealed,
        } = at;
        let names = host
            .disks()
            .map_err(|e| Error::io(ErrorKind::Io, "cannot list the disks of this site", e))?;
        let failure = |e| Error::io(ErrorKind::Io, "cannot start the target's thread", e);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failure)?;
        let router = Arc::new(Router {
            host,
            disks: Mutex::default(),
            groups: Mutex::default(),
            next_conn: AtomicU64::new(1),
            carried: Arc::default(),
            sealed,
        });
        let (stop, stopped) = oneshot::channel();
        let (site, handle) = (Arc::clone(&router), runtime.handle().clone());
        let run = move || {
            runtime.block_on(async move {
                site.take_up(&names);
                tokio::select! {
                    () = Arc::clone(&site).accept(listener) => {}
                    _ = stopped => {}
                }
            });
            // Ends every task and its connections; waits for calls to the host that are under way.
            drop(runtime);
        };
        let thread = std::thread::Builder::new().name("mirror-target".into());
        let thread = thread.spawn(run).map_err(failure)?;
        Ok(TargetHandle {
            address,
            router,
            runtime: handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// Where sources are to come, before anybody answers them there.
#[derive(Debug)]
pub struct TargetListener {
    listener: std::net::TcpListener,
    address: SocketAddr,
    sealed: bool,
}

impl TargetListener {
    /// Listen at `listen` (`tls:HOST:PORT` or `tcp:HOST:PORT`; port 0 for any). Starts no thread.
    ///
    /// Fails with [`ErrorKind::InvalidArgument`] or [`ErrorKind::Io`] (the address is in use, or this process has no
    /// [identity](tls::introduce) for encrypted connections).
    pub fn bind(listen: &str) -> Result<Self> {
        let site = SiteAddress::parse(listen)?;
        let failure = |e| Error::io(ErrorKind::Io, format!("cannot listen at {listen}"), e);
        let listener = std::net::TcpListener::bind(site.at()).map_err(failure)?;
        let sealed = site.is_sealed();
        if sealed {
            tls::identity().map_err(failure)?;
        }
        listener.set_nonblocking(true).map_err(failure)?;
        let address = listener.local_addr().map_err(failure)?;
        Ok(Self {
            listener,
            address,
            sealed,
        })
    }
}

/// A site that listens. Dropped, it stops.
#[derive(Debug)]
pub struct TargetHandle {
    address: SocketAddr,
    router: Arc<Router>,
    runtime: tokio::runtime::Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TargetHandle {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same, as sources are told of it.
    #[must_use]
    pub fn site(&self) -> String {
        let scheme = if self.router.sealed { "tls" } else { "tcp" };
        format!("{scheme}:{}", self.address)
    }

    /// What is known of the disks that were received or taken up since the start, by name.
    #[must_use]
    pub fn status(&self) -> Vec<TargetStatus> {
        let disks = self.router.lock();
        disks.values().map(|entry| entry.status().clone()).collect()
    }

    /// What is known of the disks, for whoever asks from elsewhere; nothing any more when the site has ended.
    pub fn watch(&self) -> impl Fn() -> Vec<WatchedTarget> + Send + Sync + 'static {
        let router = Arc::downgrade(&self.router);
        move || {
            router
                .upgrade()
                .map_or_else(Vec::new, |site| site.watched())
        }
    }

    /// Stop as if the process had died: connections end, nothing is said to sources. Disks that are
    /// served stay served.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the target's thread ended in a panic");
        }
    }
}

impl Drop for TargetHandle {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a record says, in a word.
fn state_name(record: &Ownership) -> &'static str {
    match record.state {
        State::Owner { .. } => "owner",
        State::Released { .. } => "released",
        State::Offered { .. } => "offered",
        State::Bound { .. } => "bound",
        State::Emptying { .. } => "emptying",
        State::Receiving { .. } => "receiving",
        State::Following { .. } => "following",
        State::Prepared { .. } => "prepared",
    }
}

/// A disk that was met since the start.
#[derive(Clone, Debug)]
struct Entry {
    /// To its task, while there is one.
    task: Option<mpsc::UnboundedSender<Happened>>,
    status: Arc<Mutex<TargetStatus>>,
}

impl Entry {
    fn status(&self) -> MutexGuard<'_, TargetStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finds the task for a connection.
struct Router {
    host: Arc<dyn TargetHost>,
    disks: Mutex<BTreeMap<String, Entry>>,
    /// Locked by itself only.
    groups: Mutex<BTreeMap<Uuid, Gathering>>,
    next_conn: AtomicU64,
    carried: Arc<Carried>,
    /// Whether connections have to be encrypted.
    sealed: bool,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router")
            .field("disks", &self.disks)
            .finish_non_exhaustive()
    }
}

/// A connection that has said what it is for.
#[derive(Debug)]
struct Arrival {
    conn: ConnId,
    stream: Stream,
    /// With what was read after the first message.
    decoder: Decoder,
    first: Message,
}

impl Router {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disks with their journals. Asks the file system.
    fn watched(&self) -> Vec<WatchedTarget> {
        let disks = self.lock();
        let all: Vec<_> = disks.values().map(|entry| entry.status().clone()).collect();
        drop(disks);
        let with_journal = |status: TargetStatus| {
            let paths = journal_paths(&self.host.record_path(&status.name));
            let files = paths.iter().map(std::fs::metadata);
            WatchedTarget {
                journal: files.flatten().map(|file| file.len()).sum(),
                status,
            }
        };
        all.into_iter().map(with_journal).collect()
    }

    /// Begin with the disks whose records ask for something.
    fn take_up(self: &Arc<Self>, names: &[String]) {
        for name in names {
            let store = RecordStore::open(self.host.record_path(name));
            match store.load() {
                Ok(
                    None
                    | Some(Ownership {
                        state: State::Released { .. } | State::Offered { .. } | State::Bound { .. },
                        ..
                    }),
                ) => {}
                Ok(record) => {
                    let mut disks = self.lock();
                    // A source may have been faster.
                    if disks.get(name).is_none_or(|entry| entry.task.is_none()) {
                        self.begin(&mut disks, name, store, record);
                    }
                }
                Err(e) => tracing::error!("{name} is left alone: {e}"),
            }
        }
    }

    /// Start the task of a disk.
    fn begin(
        self: &Arc<Self>,
        disks: &mut BTreeMap<String, Entry>,
        name: &str,
        store: RecordStore,
        record: Option<Ownership>,
    ) -> mpsc::UnboundedSender<Happened> {
        let fresh = || Entry {
            task: None,
            status: Arc::default(),
        };
        let entry = disks.entry(name.to_owned()).or_insert_with(fresh);
        name.clone_into(&mut entry.status().name);
        let exists = self.host.image_exists(name);
        let config = TargetConfig {
            address: self.host.address(name),
            arbiter: self.host.arbiter(),
            admission: self.host.admission(name),
            in_use: self.host.in_use(name),
            cut: self.cut_of(name, record.as_ref()),
            templates: self.host.templates().len(),
            ..TargetConfig::default()
        };
        let machine = crate::session::Target::new(config, record, exists);
        let (events, incoming) = mpsc::unbounded_channel();
        entry.task = Some(events.clone());
        let task = DiskTask::new(Arc::clone(self), entry, (name.to_owned(), store), machine);
        tokio::spawn(task.run(incoming));
        events
    }

    async fn accept(self: Arc<Self>, listener: std::net::TcpListener) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(e) => {
                tracing::error!("cannot listen for migrations: {e}");
                return;
            }
        };
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        loop {
            let Ok(permit) = Arc::clone(&strangers).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let site = Arc::clone(&self);
                    tokio::spawn(async move {
                        site.meet(stream, peer).await;
                        drop(permit);
                    });
                }
                Err(e) => {
                    tracing::warn!("cannot take a connection: {e}");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    /// Find out who is at the other end, if that matters here.
    async fn open(&self, stream: TcpStream, peer: SocketAddr) -> Option<Stream> {
        if !self.sealed {
            return Some(Stream::Plain(stream));
        }
        let mut first = [0];
        let peeked = stream.peek(&mut first).await;
        if peeked.is_ok_and(|count| count > 0) && first != [TLS_HANDSHAKE] {
            let text = "this site takes encrypted connections only: say tls: instead of tcp:";
            tracing::warn!("{peer} is refused: it does not encrypt");
            let refused = Message::Refused {
                refusal: Refusal::Unknown,
                text: text.to_owned(),
            };
            answer_and_close(Stream::Plain(stream), &refused).await;
            return None;
        }
        match tls::from_source(stream).await {
            Ok(stream) => Some(stream),
            Err(e) => {
                tracing::warn!("{peer} is refused: {}", tls::explain(&e));
                None
            }
        }
    }

    /// Hear what a connection is for.
    async fn meet(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let opened = tokio::time::timeout(GREET_WITHIN, self.open(stream, peer)).await;
        let Ok(Some(mut stream)) = opened else {
            return;
        };
        let (mut decoder, mut room) = (Decoder::default(), Room::default());
        let first = next_message(&mut stream, &mut decoder, &mut room);
        let refused = match tokio::time::timeout(GREET_WITHIN, first).await {
            Err(_) => {
                tracing::warn!("{peer} did not say what it wants");
                return;
            }
            Ok(Ok(Message::Offer(offer))) => {
                let host = Arc::clone(&self.host);
                let taken = tokio::task::spawn_blocking(move || host.offered(&offer)).await;
                match taken.unwrap_or_else(|e| Err(e.to_string())) {
                    Ok(()) => {
                        answer_and_close(stream, &Message::Taken).await;
                        return;
                    }
                    Err(text) => Some((stream, Refusal::CannotCreate, text)),
                }
            }
            Ok(Ok(first)) => self.lead(stream, decoder, first),
            Ok(Err(Heard::Malformed(e))) => {
                tracing::error!("{peer} sent bytes that are no greeting: {e}");
                if e.fault != Fault::Version {
                    return;
                }
                Some((stream, Refusal::Version, e.to_string()))
            }
            Ok(Err(end)) => {
                tracing::debug!("{peer} went away: {end:?}");
                return;
            }
        };
        if let Some((stream, refusal, text)) = refused {
            if refusal == Refusal::Unknown && self.host.takes_more_later() {
                tracing::debug!("{peer} is sent away for now: {text}");
                return;
            }
            tracing::warn!("{peer} is refused: {text}");
            answer_and_close(stream, &Message::Refused { refusal, text }).await;
        }
    }

    /// Bring a connection to its disk; back with it and the reason when there is none.
    fn lead(
        self: &Arc<Self>,
        stream: Stream,
        decoder: Decoder,
        first: Message,
    ) -> Option<(Stream, Refusal, String)> {
        let mut disks = self.lock();
        let task = match &first {
            Message::Hello(hello) => {
                tune(stream.socket(), Traffic::Ordered);
                self.task_for(&mut disks, &hello.description.name)
            }
            Message::Join(join) => {
                tune(stream.socket(), Traffic::Bulk);
                let known = |entry: &&Entry| entry.status().session == Some(join.session);
                let entry = disks.values().find(known);
                entry.and_then(|entry| entry.task.clone()).ok_or_else(|| {
                    (
                        Refusal::Unknown,
                        "that session is not connected here".to_owned(),
                    )
                })
            }
            _ => Err((
                Refusal::Unknown,
                "a connection begins with a greeting".to_owned(),
            )),
        };
        match task {
            Ok(task) => {
                let conn = ConnId(self.next_conn.fetch_add(1, Ordering::Relaxed));
                let arrival = Arrival {
                    conn,
                    stream,
                    decoder,
                    first,
                };
                // Under the lock: a task that ends looks at what came under the same lock.
                let _ = task.send(Happened::Arrived(Box::new(arrival)));
                None
            }
            Err((refusal, text)) => Some((stream, refusal, text)),
        }
    }

    fn task_for(
        self: &Arc<Self>,
        disks: &mut BTreeMap<String, Entry>,
        name: &str,
    ) -> Result<mpsc::UnboundedSender<Happened>, (Refusal, String)> {
        if let Some(task) = disks.get(name).and_then(|entry| entry.task.clone()) {
            return Ok(task);
        }
        if !self.host.takes(name) {
            let text = format!("no disk called {name} comes here");
            return Err((Refusal::Unknown, text));
        }
        let lower = name.to_ascii_lowercase();
        let others = [&SESSION_SUFFIX, &GROUP_SUFFIX, &WAY_BACK_SUFFIX];
        let mut suffixes = JOURNAL_SUFFIXES.iter().chain(others);
        let reserved = suffixes.any(|suffix| lower.ends_with(suffix));
        if reserved || lower.contains(RECORD_SUFFIX) {
            let text = format!("a disk cannot be called {name}: files of the mirror are called so");
            return Err((Refusal::CannotCreate, text));
        }
        let store = RecordStore::open(self.host.record_path(name));
        match store.load() {
            Ok(record) => Ok(self.begin(disks, name, store, record)),
            Err(e) => Err((Refusal::CannotCreate, e.to_string())),
        }
    }
}

/// An error of a host's call, with the words of the panic when it did not end otherwise.
fn joined<T>(result: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    result.unwrap_or_else(|e| Err(io::Error::other(e.to_string())))
}
