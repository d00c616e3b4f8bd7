//! NBD connections that are encrypted: TLS with the identity of this process, between a connection and a pair of sockets.
//!
//! Driver. One thread carries all of them. Must never pass on a byte of a connection whose other end has not shown who it
//! is, nor leave one end open when the other is gone.

use std::io;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use blockserver::nbd::starttls::{self, Door, Entry, Opening};
use blockserver::nbd::wire::{GREETING_LEN, put_greeting};
use blockserver::seal::Seal;
use mirror::net::tls::{self, Sealed};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::identity;

/// Bytes that are on their way through, in each direction.
const CARRIED: usize = 256 << 10;
/// How long the other direction may go on when one has ended.
const LINGER: Duration = Duration::from_secs(30);
/// How long clients have when the process ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// From now on NBD connections that are to be encrypted are.
pub(crate) fn introduce() {
    blockserver::seal::introduce(Box::new(Sealer::default()));
}

#[derive(Default)]
struct Sealer {
    /// Made when it is needed: a process may have to be confined before.
    runtime: OnceLock<Runtime>,
}

impl Sealer {
    fn runtime(&self) -> io::Result<&Runtime> {
        if let Some(runtime) = self.runtime.get() {
            return Ok(runtime);
        }
        let made = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("sealed")
            .enable_all()
            .build()?;
        Ok(self.runtime.get_or_init(|| made))
    }
}

impl Seal for Sealer {
    fn ready(&self) -> io::Result<()> {
        if !tls::is_introduced() {
            identity::introduce(None).map_err(|failure| io::Error::other(failure.what))?;
        }
        if !tls::is_introduced() {
            return Err(identity::missing());
        }
        self.runtime().map(drop)
    }

    fn call(&self, stream: TcpStream, limit: Duration) -> io::Result<UnixStream> {
        let (plain, outside) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        outside.set_nonblocking(true)?;
        let (tell, told) = mpsc::channel();
        self.runtime()?.spawn(async move {
            match within(limit, call(stream, outside)).await {
                Ok((sealed, outside)) => {
                    let _ = tell.send(Ok(()));
                    pass_on(sealed, outside).await;
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        });
        told.recv().map_err(io::Error::other)??;
        Ok(plain)
    }

    fn admit(&self, stream: TcpStream, server: UnixStream, limit: Duration) {
        let Ok(runtime) = self.runtime() else { return };
        let counted = Counted::new();
        runtime.spawn(async move {
            let _counted = counted;
            let client = stream.peer_addr();
            match within(limit, answer(stream, server)).await {
                Ok(Some((sealed, server))) => carry(sealed, server).await,
                Ok(None) => {}
                Err(error) => tracing::warn!(?client, "a client is refused: {error}"),
            }
        });
    }
}

/// At most so long; what it failed of in words about certificates, if it was those.
async fn within<T>(limit: Duration, doing: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(limit, doing).await {
        Ok(done) => done.map_err(|e| io::Error::new(e.kind(), tls::explain(&e))),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Have a server go over to TLS, and greet the client here in its place.
async fn call(
    stream: TcpStream,
    outside: UnixStream,
) -> io::Result<(impl Sealed, net::UnixStream)> {
    let mut stream = net::TcpStream::from_std(stream)?;
    let mut outside = net::UnixStream::from_std(outside)?;
    stream.write_all(&starttls::opening()).await?;
    let mut opening = Opening::default();
    while opening.needs() > 0 {
        let mut unit = vec![0; opening.needs()];
        stream.read_exact(&mut unit).await?;
        opening.take(&unit).map_err(io::Error::other)?;
    }
    let sealed = tls::seal_to_server(stream).await?;
    let mut greeting = Vec::with_capacity(GREETING_LEN);
    put_greeting(&mut greeting);
    outside.write_all(&greeting).await?;
    Ok((sealed, outside))
}

/// The client's flags have gone to the server already; all that comes behind them does now.
async fn pass_on(sealed: impl Sealed, mut outside: net::UnixStream) {
    let mut flags = [0; starttls::CLIENT_FLAGS_LEN];
    if outside.read_exact(&mut flags).await.is_ok() {
        carry(sealed, outside).await;
    }
}

/// Greet a client and have it go over to TLS; `None` if it does not want to.
async fn answer(
    stream: TcpStream,
    server: UnixStream,
) -> io::Result<Option<(impl Sealed, net::UnixStream)>> {
    stream.set_nonblocking(true)?;
    server.set_nonblocking(true)?;
    let mut stream = net::TcpStream::from_std(stream)?;
    let mut server = net::UnixStream::from_std(server)?;
    let mut greeting = [0; GREETING_LEN];
    server.read_exact(&mut greeting).await?;
    stream.write_all(&greeting).await?;
    let mut door = Door::default();
    loop {
        let mut unit = vec![0; door.needs()];
        stream.read_exact(&mut unit).await?;
        let entry = door.take(&unit).map_err(io::Error::other)?;
        if let Entry::Flags(flags) = entry {
            server.write_all(&flags).await?;
        }
        stream.write_all(door.output()).await?;
        door.output().clear();
        match entry {
            Entry::Seal => break,
            Entry::Leave => return Ok(None),
            Entry::More | Entry::Flags(_) => {}
        }
    }
    Ok(Some((tls::seal_from_client(stream).await?, server)))
}

/// Carry bytes in both directions until both have ended or one has failed, the second at most [`LINGER`] after the first.
async fn carry(sealed: impl Sealed, plain: net::UnixStream) {
    // As a server has them.
    let (requests, replies) = tokio::io::split(sealed);
    let (output, input) = plain.into_split();
    let mut incoming = pin!(copy(requests, input));
    let mut outgoing = pin!(copy(output, replies));
    let carried = tokio::select! {
        ended = &mut incoming => second(ended, outgoing).await,
        ended = &mut outgoing => second(ended, incoming).await,
    };
    match carried {
        // It is TLS that was not right.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!("an encrypted connection ended: {}", tls::explain(&error));
        }
        Err(error) => tracing::debug!("an encrypted connection ended: {error}"),
        Ok(()) => {}
    }
}

/// Wait for the other direction, if the first one ended well.
async fn second(
    first: io::Result<()>,
    other: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    first?;
    timeout(LINGER, other)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut into: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut buffer = vec![0; CARRIED];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(bytes @ [_, ..]) = buffer.get(..count) else {
            return into.shutdown().await;
        };
        into.write_all(bytes).await?;
        into.flush().await?;
    }
}

/// How many connections of clients are carried.
static CLIENTS: AtomicUsize = AtomicUsize::new(0);

/// Counts one of them while it is there.
struct Counted;

impl Counted {
    fn new() -> Self {
        CLIENTS.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        CLIENTS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Give clients time to take what a server that has ended left for them.
pub(crate) fn see_off() {
    let since = Instant::now();
    while CLIENTS.load(Ordering::Relaxed) > 0 && since.elapsed() < FAREWELL {
        thread::sleep(Duration::from_millis(5));
    }
}
