//! NBD clients over blocking sockets.
//!
//! Driver: moves bytes between a socket and the parts of the client machine; decides nothing.
//! [`PipelinedClient`] keeps many requests outstanding from one thread, or from two when split;
//! [`BlockingClient`] does one thing after the other.

use std::io::{self, IoSliceMut, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};

use super::client::{
    Answer, Attach, ClientFault, ClientRequest, Completion, DEFAULT_MAX_IN_FLIGHT, InFlight,
    RemoteExport, RemoteExtent, ReplyReader, SubmitError, Wanted, put_disconnect,
};
use super::uri::{Address, Endpoint};
use super::wire::{Command, CommandFlags, DEFAULT_MAX_PAYLOAD, Errno};
use crate::socket::Socket;

/// Bytes received at once beside the data of a read.
const RECEIVE_BUFFER: usize = 128 << 10;
/// Bytes of requests after which they are sent without waiting for more.
const SEND_AT: usize = 256 << 10;
/// The longest range of one trim, zeroing or status: the largest 32-bit multiple of 64 KiB.
const LONGEST_RANGE: u64 = 0xffff_0000;

/// What can go wrong with a client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot connect to the NBD server at {endpoint}: {source}")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The socket failed.
    #[error("the connection to the NBD server failed: {0}")]
    Io(#[from] io::Error),
    /// The server broke the protocol or refused the export.
    #[error(transparent)]
    Fault(#[from] ClientFault),
    /// The request was not sent.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The server failed the request.
    #[error("the NBD server failed {command:?} of {len} bytes at {offset}: {errno:?} {message}")]
    Failed {
        /// What was asked.
        command: Command,
        /// First byte of the disk.
        offset: u64,
        /// How many bytes.
        len: u32,
        /// The error.
        errno: Errno,
        /// What the server said about it; may be empty.
        message: String,
    },
    /// The server went away with requests outstanding.
    #[error("the NBD server closed the connection with {0} requests outstanding")]
    Closed(usize),
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// What to ask the server for.
    pub wanted: Wanted,
    /// Ask for all there is without waiting for the server in between ([`Attach::at_once`]): for one that is known to be
    /// ours, and may be far away.
    pub at_once: bool,
    /// The most requests outstanding.
    pub max_in_flight: usize,
    /// How long connecting, going over to TLS and the handshake may take, each.
    pub limit: Duration,
    /// Without a sign of life of the server's host for so long the connection is lost; `None` for whenever the system
    /// thinks so. Not to be shorter than 4 seconds.
    pub silence: Option<Duration>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            wanted: Wanted::default(),
            at_once: false,
            max_in_flight: DEFAULT_MAX_IN_FLIGHT,
            limit: Duration::from_secs(10),
            silence: None,
        }
    }
}

/// A client that keeps many requests outstanding.
#[derive(Debug)]
pub struct PipelinedClient {
    send: SendHalf,
    receive: ReceiveHalf,
}

/// Sends the requests of a client. Dropping it says goodbye to the server.
#[derive(Debug)]
pub struct SendHalf {
    socket: Arc<Socket>,
    in_flight: Arc<Mutex<InFlight>>,
    remote: Arc<RemoteExport>,
    output: Vec<u8>,
    /// How much of `output` is sent.
    sent: usize,
}

/// Receives the replies of a client.
#[derive(Debug)]
pub struct ReceiveHalf {
    socket: Arc<Socket>,
    in_flight: Arc<Mutex<InFlight>>,
    replies: ReplyReader,
    buffer: Box<[u8]>,
}

fn locked(in_flight: &Mutex<InFlight>) -> MutexGuard<'_, InFlight> {
    // The machine under it is left whole by every step, so a panic elsewhere is no reason to stop.
    in_flight.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PipelinedClient {
    /// Connect to an export.
    pub fn connect(address: &Address, options: &ConnectOptions) -> Result<Self, ClientError> {
        let socket = Socket::connect(&address.endpoint, options.limit).map_err(|source| {
            ClientError::Connect {
                endpoint: address.endpoint.clone(),
                source,
            }
        })?;
        if let Some(span) = options.silence {
            socket.set_silence(span)?;
        }
        Self::attach(socket, &address.export, options)
    }

    /// Do the handshake on a connected socket.
    fn attach(socket: Socket, export: &str, options: &ConnectOptions) -> Result<Self, ClientError> {
        let deadline = Instant::now() + options.limit;
        let mut attach = if options.at_once {
            Attach::at_once(export)
        } else {
            Attach::new(export, options.wanted)
        };
        (&socket).write_all(attach.output())?;
        attach.output().clear();
        let mut input = [0; 4096];
        let (remote, mut replies, rest) = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            socket.set_limits(Some(left.max(Duration::from_millis(1))))?;
            let got = match (&socket).read(&mut input) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                got => got?,
            };
            if got == 0 {
                return Err(ClientError::Closed(0));
            }
            let got = input.get(..got).unwrap_or_default();
            let taken = attach.receive(got)?;
            (&socket).write_all(attach.output())?;
            attach.output().clear();
            if let Some(remote) = attach.remote() {
                let replies = ReplyReader::new(remote, attach.position());
                break (
                    remote.clone(),
                    replies,
                    got.get(taken..).unwrap_or_default(),
                );
            }
        };
        socket.set_limits(None)?;
        let mut in_flight = InFlight::new(options.max_in_flight);
        // Nothing was asked yet, so whatever follows is an error, and found here.
        replies.receive(rest, &mut in_flight)?;
        let (socket, in_flight) = (Arc::new(socket), Arc::new(Mutex::new(in_flight)));
        Ok(Self {
            send: SendHalf {
                socket: Arc::clone(&socket),
                in_flight: Arc::clone(&in_flight),
                remote: Arc::new(remote),
                output: Vec::new(),
                sent: 0,
            },
            receive: ReceiveHalf {
                socket,
                in_flight,
                replies,
                buffer: vec![0; RECEIVE_BUFFER].into_boxed_slice(),
            },
        })
    }

    /// What the server told about the export.
    #[must_use]
    pub fn remote(&self) -> &RemoteExport {
        &self.send.remote
    }

    /// How many requests are outstanding.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        locked(&self.send.in_flight).len()
    }

    /// Queue a request; it leaves with the next [`PipelinedClient::wait`], or when many are queued.
    ///
    /// Never blocks. [`SubmitError::Full`] means: wait for a completion first.
    pub fn submit(&mut self, request: &ClientRequest<'_>) -> Result<u64, ClientError> {
        let cookie = self.send.submit(request)?;
        if self.send.output.len() >= SEND_AT {
            self.send.send_what_fits()?;
        }
        Ok(cookie)
    }

    /// Send what is queued, and wait for an answer to any request. `None`: none is outstanding.
    pub fn wait(&mut self) -> Result<Option<Completion>, ClientError> {
        self.wait_at_most(None)
    }

    /// As [`PipelinedClient::wait`], but `None` also when `limit` has passed.
    pub fn wait_at_most(
        &mut self,
        limit: Option<Duration>,
    ) -> Result<Option<Completion>, ClientError> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if let Some(completion) = self.receive.replies.next_completion() {
                return Ok(Some(completion));
            }
            if locked(&self.receive.in_flight).is_empty() {
                return Ok(None);
            }
            let all_sent = self.send.send_what_fits()?;
            if !all_sent || deadline.is_some() {
                // The server may not read on before we have read its replies: watch both ways.
                let ready = self.poll(!all_sent, deadline)?;
                if ready.is_empty() {
                    return Ok(None);
                }
                if !ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                    continue;
                }
            }
            self.receive.receive_once()?;
        }
    }

    fn poll(&self, sending: bool, deadline: Option<Instant>) -> io::Result<PollFlags> {
        let mut wanted = PollFlags::IN;
        if sending {
            wanted |= PollFlags::OUT;
        }
        let mut fds = [PollFd::new(&*self.send.socket, wanted)];
        let left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(fds.map(|fd| fd.revents())[0]),
            Err(error) => Err(error.into()),
        }
    }

    /// Give back the bytes of a finished read, so that the next one need not allocate.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        locked(&self.receive.in_flight).recycle(buffer);
    }

    /// A half for each of two threads.
    #[must_use]
    pub fn split(self) -> (SendHalf, ReceiveHalf) {
        (self.send, self.receive)
    }
}

/// Ends a connection, whoever is blocked in it.
#[derive(Debug)]
pub struct Ender(Arc<Socket>);

impl Ender {
    /// End it, with nothing more being sent of what the server has not got yet.
    pub fn abandon(&self) {
        self.0.abandon();
    }
}

impl SendHalf {
    /// What the server told about the export.
    #[must_use]
    pub fn remote(&self) -> &RemoteExport {
        &self.remote
    }

    /// What ends the connection from elsewhere.
    #[must_use]
    pub fn ender(&self) -> Ender {
        Ender(Arc::clone(&self.socket))
    }

    /// Queue a request; [`SendHalf::send`] sends it.
    pub fn submit(&mut self, request: &ClientRequest<'_>) -> Result<u64, ClientError> {
        let cookie = locked(&self.in_flight).submit(&self.remote, request, &mut self.output)?;
        self.output.extend_from_slice(request.data);
        Ok(cookie)
    }

    /// Send what is queued; blocks until the kernel has it all.
    pub fn send(&mut self) -> Result<(), ClientError> {
        let rest = self.output.get(self.sent..).unwrap_or_default();
        (&*self.socket).write_all(rest)?;
        self.clear_sent();
        Ok(())
    }

    /// Send what the kernel takes now; whether that was all.
    fn send_what_fits(&mut self) -> io::Result<bool> {
        while let Some(rest) = self.output.get(self.sent..)
            && !rest.is_empty()
        {
            match send(
                &*self.socket,
                rest,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => self.sent += sent,
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.clear_sent();
        Ok(true)
    }

    fn clear_sent(&mut self) {
        self.output.clear();
        self.output.shrink_to(4 * SEND_AT);
        self.sent = 0;
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        put_disconnect(&mut self.output);
        // A goodbye for which there is no room at once is not waited for: the end of the stream says
        // the same, and what was sent before is still answered.
        let said = self.send_what_fits();
        if !matches!(said, Ok(true)) {
            self.socket.stop_writing();
        }
    }
}

impl ReceiveHalf {
    /// Wait for an answer to any request. `None`: the server closed, with none outstanding.
    pub fn wait(&mut self) -> Result<Option<Completion>, ClientError> {
        loop {
            if let Some(completion) = self.replies.next_completion() {
                return Ok(Some(completion));
            }
            match self.receive_once() {
                Ok(()) => {}
                Err(ClientError::Closed(0)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Give back the bytes of a finished read, so that the next one need not allocate.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        locked(&self.in_flight).recycle(buffer);
    }

    /// One blocking receive: the data of a read straight into its buffer, what follows beside it.
    fn receive_once(&mut self) -> Result<(), ClientError> {
        let wanted = self.replies.data_wanted().unwrap_or_default();
        let direct = wanted.len();
        let mut buffers = [IoSliceMut::new(wanted), IoSliceMut::new(&mut self.buffer)];
        let got = match (&*self.socket).read_vectored(&mut buffers) {
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut in_flight = locked(&self.in_flight);
        if got == 0 {
            return Err(ClientError::Closed(in_flight.len()));
        }
        if direct > 0 {
            self.replies.data_filled(got.min(direct), &mut in_flight)?;
        }
        let beside = self.buffer.get(..got.saturating_sub(direct));
        self.replies
            .receive(beside.unwrap_or_default(), &mut in_flight)?;
        Ok(())
    }
}

/// A client that does one thing after the other.
#[derive(Debug)]
pub struct BlockingClient {
    inner: PipelinedClient,
}

impl BlockingClient {
    /// Connect to an export, with block status if the server has it.
    pub fn connect(address: &Address) -> Result<Self, ClientError> {
        Self::connect_with(address, &ConnectOptions::default())
    }

    /// Connect to an export.
    pub fn connect_with(address: &Address, options: &ConnectOptions) -> Result<Self, ClientError> {
        Ok(Self {
            inner: PipelinedClient::connect(address, options)?,
        })
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.remote().size
    }

    /// What the server told about the export.
    #[must_use]
    pub fn remote(&self) -> &RemoteExport {
        self.inner.remote()
    }

    /// Fill `buffer` from `offset`.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ClientError> {
        let mut at = offset;
        let longest = self.longest_payload();
        for piece in buffer.chunks_mut(longest) {
            let request = ClientRequest::read(at, piece.len() as u32);
            if let Answer::Data(data) = self.call(&request)? {
                piece.copy_from_slice(&data);
                self.inner.recycle(data);
            }
            at = at.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Write `data` at `offset`; with `fua` it is durable afterwards.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), ClientError> {
        let flags = CommandFlags {
            fua,
            ..CommandFlags::default()
        };
        let mut at = offset;
        let longest = self.longest_payload();
        for piece in data.chunks(longest) {
            self.call(&ClientRequest::write(at, piece).with(flags))?;
            at = at.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Make everything written before durable.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.call(&ClientRequest::flush()).map(drop)
    }

    /// Make `len` bytes at `offset` read as zero, with these flags (FUA, `NO_HOLE`).
    pub fn zeroes(
        &mut self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<(), ClientError> {
        for (at, len) in ranges(offset, len) {
            self.call(&ClientRequest::plain(Command::WriteZeroes, at, len).with(flags))?;
        }
        Ok(())
    }

    /// Tell the server that `len` bytes at `offset` are not needed any more.
    pub fn trim(&mut self, offset: u64, len: u64) -> Result<(), ClientError> {
        for (at, len) in ranges(offset, len) {
            self.call(&ClientRequest::plain(Command::Trim, at, len))?;
        }
        Ok(())
    }

    /// The extents of `len` bytes from `offset`, all of them, none running past the end.
    pub fn block_status(
        &mut self,
        offset: u64,
        len: u64,
    ) -> Result<Vec<RemoteExtent>, ClientError> {
        let mut found = Vec::new();
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let asked = left.min(LONGEST_RANGE) as u32;
            let request = ClientRequest::plain(Command::BlockStatus, at, asked);
            let Answer::Extents(extents) = self.call(&request)? else {
                break;
            };
            for mut extent in extents {
                extent.len = u64::from(extent.len).min(left) as u32;
                if extent.len > 0 {
                    found.push(extent);
                }
                at = at.saturating_add(extent.len.into());
                left = left.saturating_sub(extent.len.into());
            }
        }
        Ok(found)
    }

    fn longest_payload(&self) -> usize {
        let unit = self.inner.remote().min_block.max(1);
        let max = self.inner.remote().max_payload.min(DEFAULT_MAX_PAYLOAD);
        (max - max % unit).max(unit) as usize
    }

    fn call(&mut self, request: &ClientRequest<'_>) -> Result<Answer, ClientError> {
        self.inner.submit(request)?;
        let Some(completion) = self.inner.wait()? else {
            return Err(ClientError::Closed(0));
        };
        completion.result.map_err(|refusal| ClientError::Failed {
            command: completion.command,
            offset: completion.offset,
            len: completion.len,
            errno: refusal.errno,
            message: refusal.message,
        })
    }
}

/// A range in pieces that fit a request.
fn ranges(offset: u64, len: u64) -> impl Iterator<Item = (u64, u32)> {
    let pieces = len.div_ceil(LONGEST_RANGE);
    (0..pieces).map(move |piece| {
        let done = piece * LONGEST_RANGE;
        let at = offset.saturating_add(done);
        (at, (len - done).min(LONGEST_RANGE) as u32)
    })
}
