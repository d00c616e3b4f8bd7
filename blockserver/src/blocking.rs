//! The NBD server for hosts where `io_uring` is forbidden: a thread for each connection.
//!
//! Driver: moves bytes between sockets, the connection machine and a [`BlockingDisk`]. It must not
//! hold more than one request's data for each connection, and must end a connection whose
//! handshake does not end in time.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use vdisk::engine::Extent;

use crate::nbd::wire::allocation;
use crate::nbd::{
    Command, Connection, ConnectionState, Errno, Event, ExportInfo, ExportTable, NbdRequest,
    ProtocolError,
};
use crate::socket::{Listener, Socket};

/// Bytes received at once.
const RECEIVE_BUFFER: usize = 128 << 10;
/// Bytes of replies after which they are sent without waiting for more.
const SEND_AT: usize = 256 << 10;

/// A disk that does one thing after the other, or locks by itself what must not overlap.
///
/// Ranges lie within the disk and are not empty. Errors reach the client as errno.
pub trait BlockingDisk: Send + Sync {
    /// Bytes; does not change while it is served.
    fn size(&self) -> u64;

    /// Fill `buffer` from `offset`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> vdisk::Result<()>;

    /// Write `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> vdisk::Result<()>;

    /// Make a range read as zero; its space may be given back unless `keep`.
    fn zero(&self, offset: u64, len: u64, keep: bool) -> vdisk::Result<()>;

    /// The range is not needed any more; it reads as zero or as before.
    fn discard(&self, offset: u64, len: u64) -> vdisk::Result<()>;

    /// Make everything durable that was done before, by any connection.
    fn flush(&self) -> vdisk::Result<()>;

    /// Consecutive extents from `offset`, at least one; they may end before the range does and do
    /// not go beyond it.
    fn status(&self, offset: u64, len: u64) -> vdisk::Result<Vec<Extent>>;
}

/// A disk under a name.
#[derive(Clone)]
pub struct BlockingExport {
    /// What clients ask for; empty is the default export.
    pub name: String,
    /// What clients learn; `id` is set by the server, `size` taken from the disk.
    pub info: ExportInfo,
    /// The disk.
    pub disk: Arc<dyn BlockingDisk>,
}

/// What the server allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients at a time; one more is turned away.
    pub connections: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long a stopping server waits for clients to take their last replies.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100,
            handshake: Duration::from_secs(10),
            farewell: Duration::from_secs(5),
        }
    }
}

struct Exports(Vec<BlockingExport>);

impl ExportTable for Exports {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        let export = self.0.iter().find(|export| export.name == name);
        export.map(|export| export.info.clone())
    }

    fn names(&self) -> Vec<(String, String)> {
        self.0
            .iter()
            .map(|export| (export.name.clone(), export.info.description.clone()))
            .collect()
    }
}

impl Exports {
    fn disk(&self, id: u64) -> Option<Arc<dyn BlockingDisk>> {
        let export = self.0.get(usize::try_from(id).ok()?)?;
        Some(Arc::clone(&export.disk))
    }
}

/// Serves disks over blocking sockets.
pub struct BlockingServer {
    exports: Arc<Exports>,
    limits: Limits,
    stopping: AtomicBool,
    wake: OwnedFd,
    sockets: Mutex<Vec<Weak<Socket>>>,
}

impl BlockingServer {
    /// A server of these exports.
    pub fn new(mut exports: Vec<BlockingExport>, limits: Limits) -> io::Result<Self> {
        for (id, export) in exports.iter_mut().enumerate() {
            export.info.id = id as u64;
            export.info.size = export.disk.size();
        }
        Ok(Self {
            exports: Arc::new(Exports(exports)),
            limits,
            stopping: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC)?,
            sockets: Mutex::new(Vec::new()),
        })
    }

    /// Serve the clients of `listener` until [`BlockingServer::stop`]; ends when all are gone.
    pub fn serve(&self, listener: &Listener) -> io::Result<()> {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        let result = loop {
            match self.next_client(listener) {
                Ok(Some(socket)) => {
                    threads.retain(|thread| !thread.is_finished());
                    if threads.len() >= self.limits.connections {
                        tracing::warn!(limit = threads.len(), "too many clients: one turned away");
                        continue;
                    }
                    match self.start(socket) {
                        Ok(thread) => threads.push(thread),
                        Err(error) => tracing::warn!(%error, "no thread for a client"),
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.stop();
        self.part_from(threads);
        result
    }

    /// Wait for the clients' threads; cut off the clients that do not take their last replies.
    fn part_from(&self, threads: Vec<JoinHandle<()>>) {
        let deadline = Instant::now() + self.limits.farewell;
        while Instant::now() < deadline && !threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(2));
        }
        for socket in self.sockets().iter().filter_map(Weak::upgrade) {
            socket.shut_down();
        }
        for thread in threads {
            // A panic of that thread was printed by it.
            let _ = thread.join();
        }
    }

    /// Take no new client and no new request; what was taken is answered.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // It cannot fail but by the counter being full, and then it wakes too.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        for socket in self.sockets().iter().filter_map(Weak::upgrade) {
            socket.stop_reading();
        }
    }

    fn sockets(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Socket>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next client; `None` when the server is to stop.
    fn next_client(&self, listener: &Listener) -> io::Result<Option<Socket>> {
        loop {
            let mut fds = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(&self.wake, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [client, _] = fds.map(|fd| fd.revents());
            if self.stopping.load(Ordering::SeqCst) {
                return Ok(None);
            }
            if client.is_empty() {
                continue;
            }
            match listener.accept() {
                Ok(socket) => return Ok(Some(socket)),
                Err(error) => {
                    // One client's trouble, or no descriptor free: others are served on.
                    tracing::warn!(%error, "a client could not be accepted");
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }

    fn start(&self, socket: Socket) -> io::Result<JoinHandle<()>> {
        let socket = Arc::new(socket);
        {
            let mut sockets = self.sockets();
            sockets.retain(|socket| socket.strong_count() > 0);
            sockets.push(Arc::downgrade(&socket));
        }
        if self.stopping.load(Ordering::SeqCst) {
            socket.stop_reading();
        }
        let exports = Arc::clone(&self.exports);
        let limit = self.limits.handshake;
        std::thread::Builder::new()
            .name("nbd-client".into())
            .spawn(move || {
                let ended = Client::new(&socket, &exports, limit).run();
                if let Err(error) = ended {
                    tracing::warn!(%error, "an NBD client was dropped");
                }
                socket.shut_down();
            })
    }
}

/// Why a client was dropped.
#[derive(Debug, thiserror::Error)]
enum Dropped {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("its connection failed: {0}")]
    Io(io::Error),
    #[error("its handshake took too long")]
    Slow,
}

impl From<io::Error> for Dropped {
    fn from(error: io::Error) -> Self {
        // Only sockets with a handshake's deadline have a limit to run into.
        match error.kind() {
            io::ErrorKind::WouldBlock => Self::Slow,
            _ => Self::Io(error),
        }
    }
}

/// One client, on its own thread.
struct Client<'a> {
    socket: &'a Socket,
    exports: &'a Exports,
    machine: Connection,
    disk: Option<Arc<dyn BlockingDisk>>,
    /// The payload of the write at hand.
    payload: Vec<u8>,
    /// When the handshake must be over; `None` once it is.
    deadline: Option<Instant>,
}

impl<'a> Client<'a> {
    fn new(socket: &'a Socket, exports: &'a Exports, limit: Duration) -> Self {
        Self {
            socket,
            exports,
            machine: Connection::new(),
            disk: None,
            payload: Vec::new(),
            deadline: Some(Instant::now() + limit),
        }
    }

    fn run(&mut self) -> Result<(), Dropped> {
        let mut input = vec![0; RECEIVE_BUFFER];
        loop {
            self.send()?;
            if self.machine.state() == ConnectionState::Closing {
                return Ok(());
            }
            self.keep_deadline()?;
            let got = match self.socket.read(&mut input) {
                Ok(0) => return Ok(()),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let result = self.take(input.get(..got).unwrap_or_default());
            if result.is_err() {
                // What was already answered is still worth sending.
                let _ = self.send();
            }
            result?;
        }
    }

    /// While the handshake lasts, let no system call last longer than what is left of its time.
    fn keep_deadline(&mut self) -> Result<(), Dropped> {
        let Some(deadline) = self.deadline else {
            return Ok(());
        };
        if self.machine.state() == ConnectionState::Transmission {
            self.deadline = None;
            self.socket.set_limits(None)?;
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Dropped::Slow);
        }
        self.socket.set_limits(Some(left))?;
        Ok(())
    }

    /// Feed bytes to the machine and carry out what comes of it.
    fn take(&mut self, mut input: &[u8]) -> Result<(), Dropped> {
        loop {
            let taken = self.machine.receive(input, self.exports);
            let rest = taken.as_ref().map_or(0, |taken| *taken);
            input = input.get(rest..).unwrap_or_default();
            while let Some(event) = self.machine.next_event() {
                match event {
                    Event::Attached { export } => self.disk = self.exports.disk(export),
                    Event::Request(request) => {
                        if request.command == Command::Write {
                            input = self.take_payload(request.len, input)?;
                        }
                        self.answer(&request);
                        if self.machine.output().len() >= SEND_AT {
                            self.send()?;
                        }
                    }
                    Event::Disconnect => return Ok(()),
                }
            }
            if taken? == 0 {
                return Ok(());
            }
        }
    }

    /// Collect the payload of a write: first from `input`, the rest from the socket.
    fn take_payload<'i>(&mut self, len: u32, input: &'i [u8]) -> Result<&'i [u8], Dropped> {
        let len = len as usize;
        let (here, rest) = input.split_at_checked(len).unwrap_or((input, &[]));
        self.payload.clear();
        self.payload.shrink_to(4 * SEND_AT);
        self.payload.extend_from_slice(here);
        if here.len() < len {
            // Replies must not wait for a slow sender.
            self.send()?;
            self.payload.resize(len, 0);
            let missing = self.payload.get_mut(here.len()..).unwrap_or_default();
            let mut socket = self.socket;
            socket.read_exact(missing)?;
        }
        self.machine.payload_taken();
        Ok(rest)
    }

    /// Carry out a request and put its reply into the output.
    fn answer(&mut self, request: &NbdRequest) {
        let style = self.machine.reply_style();
        let Some(disk) = &self.disk else {
            style.reply_error(self.machine.output(), request.cookie, Errno::Io);
            return;
        };
        let out = self.machine.output();
        let start = out.len();
        let (offset, len) = (request.offset, u64::from(request.len));
        let done = match request.command {
            Command::Read => {
                style.reply_read_header(out, request.cookie, offset, request.len);
                let data = out.len();
                out.resize(data.saturating_add(request.len as usize), 0);
                disk.read_at(offset, out.get_mut(data..).unwrap_or_default())
            }
            Command::Write => disk.write_at(offset, &self.payload),
            Command::Flush => disk.flush(),
            Command::Trim => disk.discard(offset, len),
            Command::WriteZeroes => disk.zero(offset, len, request.flags.no_hole),
            Command::BlockStatus => disk.status(offset, len).map(|extents| {
                let wire = wire_extents(&extents, request);
                style.reply_block_status(out, request.cookie, &wire);
            }),
        };
        let durable = request.flags.fua && request.command.changes();
        match done.and_then(|()| if durable { disk.flush() } else { Ok(()) }) {
            Ok(()) if matches!(request.command, Command::Read | Command::BlockStatus) => {}
            Ok(()) => style.reply_done(out, request.cookie),
            Err(error) => {
                tracing::warn!(%error, command = ?request.command, offset, len, "a request failed");
                out.truncate(start);
                style.reply_error(out, request.cookie, Errno::from(&error));
            }
        }
    }

    fn send(&mut self) -> Result<(), Dropped> {
        let mut output = std::mem::take(self.machine.output());
        let mut rest = output.as_slice();
        while !rest.is_empty() {
            // A client that takes its replies byte by byte gains no time by it.
            self.keep_deadline()?;
            let sent = match self.socket.write(rest) {
                Ok(0) => return Err(Dropped::Io(io::ErrorKind::WriteZero.into())),
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error.into()),
            };
            rest = rest.get(sent..).unwrap_or_default();
        }
        output.clear();
        output.shrink_to(4 * SEND_AT);
        *self.machine.output() = output;
        Ok(())
    }
}

/// The extents of a disk as the protocol writes them: like ones joined, only one if asked for one.
fn wire_extents(extents: &[Extent], request: &NbdRequest) -> Vec<(u32, u32)> {
    let mut wire: Vec<(u32, u32)> = Vec::new();
    let mut left = u64::from(request.len);
    for extent in extents {
        let len = extent.len.min(left);
        left -= len;
        let mut flags = 0;
        if !extent.allocated {
            flags |= allocation::HOLE;
        }
        if extent.zero {
            flags |= allocation::ZERO;
        }
        // No longer than the request, so it fits 32 bits, joined or not.
        let len = len as u32;
        match wire.last_mut() {
            Some(last) if last.1 == flags => last.0 += len,
            Some(_) if request.flags.req_one => break,
            _ if len == 0 => {}
            _ => wire.push((len, flags)),
        }
    }
    if wire.is_empty() {
        // Allocated data is always a true answer.
        wire.push((request.len, 0));
    }
    wire
}
