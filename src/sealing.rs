//! NBD connections that are encrypted: TLS with the identity of this process, between a connection and a pair of sockets.
//!
//! Driver. One thread carries all of them. Must never pass on a byte of a connection whose other end has not shown who it
//! is, nor leave the connection open for long when the plain end is gone.

use std::io;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use blockserver::nbd::starttls::{self, Door, Entry, Opening};
use blockserver::nbd::wire::{GREETING_LEN, put_greeting};
use blockserver::seal::Seal;
use mirror::net::tls::{self, Sealed};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use crate::identity;

/// Bytes that are on their way through, in each direction.
const CARRIED: usize = 256 << 10;
/// How long the other side has to take what was said before the plain end was closed, and how often that is looked at.
const LOOK: Duration = Duration::from_secs(1);
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
        runtime.spawn(async move {
            let client = stream.peer_addr();
            match within(limit, answer(stream, server)).await {
                Ok(Some((sealed, server))) => carry(sealed, server, Some(Counted::new())).await,
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
        carry(sealed, outside, None).await;
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

/// Carry bytes in both directions until both have ended, or the connection has failed. What was said at an end that is closed
/// still goes where it was said to, for at most [`LINGER`].
async fn carry(sealed: impl Sealed, plain: net::UnixStream, counted: Option<Counted>) {
    let (mut from_far, mut to_far) = tokio::io::split(sealed);
    let outgoing = async {
        let sent = send(&plain, &mut to_far).await;
        // Who is served has all that there is for it.
        drop(counted);
        sent
    };
    let both = async { tokio::try_join!(receive(&mut from_far, &plain), outgoing).map(drop) };
    let carried = tokio::select! {
        carried = both => carried,
        () = left(&plain) => Err(io::ErrorKind::TimedOut.into()),
    };
    // Before the plain end is closed: who hears of that ends perhaps.
    match carried {
        // It is TLS that was not right.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!("an encrypted connection ended: {}", tls::explain(&error));
        }
        Err(error) => tracing::debug!("an encrypted connection ended: {error}"),
        Ok(()) => {}
    }
}

/// What comes from the other side. Where nobody takes it any more it is thrown away: were the connection closed instead, what
/// is still on its way to the other side would be lost.
async fn receive(from: &mut (impl AsyncRead + Unpin), plain: &net::UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; CARRIED];
    let mut taken = true;
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(bytes @ [_, ..]) = buffer.get(..count) else {
            // It may be closed already.
            let _ = rustix::net::shutdown(plain, rustix::net::Shutdown::Write);
            return Ok(());
        };
        taken = taken && write(plain, bytes).await.is_ok();
    }
}

/// What is said at the plain end.
async fn send(plain: &net::UnixStream, into: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; CARRIED];
    loop {
        plain.readable().await?;
        let count = match plain.try_read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            // It was closed before it had heard all; what it had said was read before.
            Err(_) => 0,
            Ok(count) => count,
        };
        let Some(bytes @ [_, ..]) = buffer.get(..count) else {
            return into.shutdown().await;
        };
        into.write_all(bytes).await?;
        into.flush().await?;
    }
}

async fn write(plain: &net::UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        plain.writable().await?;
        match plain.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// Until the plain end has been closed for as long as is waited then, whatever is still said at the other one.
async fn left(plain: &net::UnixStream) {
    let closed = || {
        let mut looked = [PollFd::new(plain, PollFlags::empty())];
        let at_once = Timespec::default();
        let seen = poll(&mut looked, Some(&at_once));
        seen.is_err()
            || looked
                .iter()
                .any(|end| end.revents().contains(PollFlags::HUP))
    };
    while !closed() {
        sleep(LOOK).await;
    }
    sleep(LINGER).await;
}

/// How many clients there are for which something may still have to be carried.
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    const MIB: usize = 1 << 20;

    /// A connection that is carried: its far end, and its plain one.
    fn carried(runtime: &Runtime) -> (tokio::io::DuplexStream, UnixStream) {
        let (far, sealed) = tokio::io::duplex(64 << 10);
        let (plain, outside) = UnixStream::pair().expect("a pair");
        outside.set_nonblocking(true).expect("a socket can be that");
        runtime.spawn(async move {
            let outside = net::UnixStream::from_std(outside).expect("a socket");
            carry(sealed, outside, None).await;
        });
        (far, plain)
    }

    fn runtime() -> Runtime {
        let sealer = Sealer::default();
        sealer.runtime().expect("threads can be made");
        sealer.runtime.into_inner().expect("it was made")
    }

    #[test]
    fn what_a_server_said_before_it_closed_arrives_though_it_had_not_heard_all() {
        let runtime = runtime();
        let (mut far, mut server) = carried(&runtime);
        let (tell, told) = tokio::sync::oneshot::channel();
        let (say, said) = mpsc::channel();
        let client = runtime.spawn(async move {
            far.write_all(&[1; 256]).await.expect("it is taken");
            told.await.expect("the server goes on");
            far.write_all(&[1; 256]).await.expect("it is taken");
            say.send(()).expect("the server goes on");
            let mut heard = Vec::new();
            far.read_to_end(&mut heard).await.map(|_| heard.len())
        });
        let mut first = [0; 1];
        server.read_exact(&mut first).expect("it hears");
        // As the block server sees clients off.
        server.shutdown(std::net::Shutdown::Read).expect("it can");
        tell.send(()).expect("the client goes on");
        said.recv().expect("the client goes on");
        // What was said since finds nobody.
        thread::sleep(Duration::from_millis(100));
        server.write_all(&vec![2; MIB]).expect("it is taken");
        drop(server);
        let heard = runtime.block_on(client).expect("no panic");
        assert_eq!(heard.expect("no error"), MIB);
    }

    #[test]
    fn a_client_that_says_no_more_still_hears_all() {
        let runtime = runtime();
        let (mut far, mut client) = carried(&runtime);
        client.write_all(b"all").expect("it is taken");
        client.shutdown(std::net::Shutdown::Write).expect("it can");
        runtime.spawn(async move {
            let mut asked = Vec::new();
            far.read_to_end(&mut asked).await.expect("it hears");
            assert_eq!(asked, b"all");
            // Longer than is looked for an end that was left.
            sleep(2 * LOOK).await;
            far.write_all(&vec![3; MIB]).await.expect("it is taken");
        });
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).expect("it hears");
        assert_eq!(heard.len(), MIB);
    }
}
