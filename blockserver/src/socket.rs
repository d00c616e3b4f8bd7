//! Stream sockets that NBD runs over: TCP, encrypted or not, or unix.
//!
//! Driver: opens, listens, closes; knows nothing of what passes through. On TCP it turns Nagle's
//! algorithm off, as the protocol document asks of both sides.

use std::io::{self, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt;

use crate::nbd::uri::Endpoint;

/// A connected socket. Reading and writing take it by shared reference, so two threads may use it.
#[derive(Debug)]
pub(crate) enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over TCP, encrypted: what is read and written, and the connection itself.
    Sealed(UnixStream, TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// Connect to `endpoint`, waiting at most `limit` for each address that its name stands for.
    pub(crate) fn connect(endpoint: &Endpoint, limit: Duration) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp { host, port } => connect_tcp(host, *port, limit).map(Self::Tcp),
            Endpoint::Tls { host, port } => {
                // Before there is a connection that nobody can encrypt.
                let seal = crate::seal::seal()?;
                let stream = connect_tcp(host, *port, limit)?;
                let plain = seal.call(stream.try_clone()?, limit)?;
                Ok(Self::Sealed(plain, stream))
            }
            Endpoint::Unix(path) => UnixStream::connect(path).map(Self::Unix),
        }
    }

    /// How long a read and a write may block; `None` is for ever.
    pub(crate) fn set_limits(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(limit)?;
                stream.set_write_timeout(limit)
            }
            Self::Sealed(stream, _) | Self::Unix(stream) => {
                stream.set_read_timeout(limit)?;
                stream.set_write_timeout(limit)
            }
        }
    }

    /// Take the connection for lost when the peer's host has given no sign of life for about `span`, at least 4 seconds.
    /// A unix socket needs none.
    pub(crate) fn set_silence(&self, span: Duration) -> io::Result<()> {
        let (Self::Tcp(stream) | Self::Sealed(_, stream)) = self else {
            return Ok(());
        };
        let part = Duration::from_secs((span.as_secs() / 4).max(1));
        let most = u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, part)?;
        sockopt::set_tcp_keepintvl(stream, part)?;
        sockopt::set_tcp_keepcnt(stream, 3)?;
        // What was sent and not acknowledged counts as well.
        sockopt::set_tcp_user_timeout(stream, most)?;
        Ok(())
    }

    /// End it in both directions, for whoever uses it: nothing more of what was sent leaves this host, as far as that is
    /// in its hand.
    pub(crate) fn abandon(&self) {
        let _ = match self {
            Self::Tcp(stream) | Self::Sealed(_, stream) => {
                // What the kernel has not sent yet is thrown away at the close.
                let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
                stream.shutdown(std::net::Shutdown::Both)
            }
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }

    /// End the outgoing direction: the peer sees the end of the stream behind what was sent.
    pub(crate) fn stop_writing(&self) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Write),
            Self::Sealed(stream, _) | Self::Unix(stream) => {
                stream.shutdown(std::net::Shutdown::Write)
            }
        };
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Sealed(stream, _) | Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).read(buffer),
            Socket::Sealed(stream, _) | Socket::Unix(stream) => (&*stream).read(buffer),
        }
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).read_vectored(buffers),
            Socket::Sealed(stream, _) | Socket::Unix(stream) => (&*stream).read_vectored(buffers),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&*stream).write(data),
            Socket::Sealed(stream, _) | Socket::Unix(stream) => (&*stream).write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn connect_tcp(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let mut last = None;
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the host has no address")))
}

/// A listening socket. A unix socket's file is removed when this is dropped.
#[derive(Debug)]
pub(crate) enum Listener {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a TCP port, for encrypted connections.
    Tls(TcpListener),
    /// On a unix socket, and its path.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listen on `endpoint`. The file of a unix socket on which nobody listens any more is replaced.
    pub(crate) fn bind(endpoint: &Endpoint) -> io::Result<Self> {
        let bound = match endpoint {
            Endpoint::Tcp { host, port } => {
                TcpListener::bind((host.as_str(), *port)).map(Self::Tcp)
            }
            Endpoint::Tls { host, port } => crate::seal::seal()
                .and_then(|_| TcpListener::bind((host.as_str(), *port)))
                .map(Self::Tls),
            Endpoint::Unix(path) => bind_unix(path),
        };
        bound.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot listen on {endpoint}: {error}"),
            )
        })
    }

    /// Where it listens; with the port that the system chose when 0 was asked for.
    pub(crate) fn endpoint(&self) -> io::Result<Endpoint> {
        let at = |listener: &TcpListener| {
            let address: SocketAddr = listener.local_addr()?;
            io::Result::Ok((address.ip().to_string(), address.port()))
        };
        match self {
            Self::Tcp(listener) => {
                let (host, port) = at(listener)?;
                Ok(Endpoint::Tcp { host, port })
            }
            Self::Tls(listener) => {
                let (host, port) = at(listener)?;
                Ok(Endpoint::Tls { host, port })
            }
            Self::Unix(_, path) => Ok(Endpoint::Unix(path.clone())),
        }
    }
}

impl Listener {
    /// What is served of a connection that was accepted here: its plain end, at once, where it is encrypted.
    pub(crate) fn plain_end(&self, accepted: OwnedFd, limit: Duration) -> io::Result<OwnedFd> {
        if !matches!(self, Self::Tls(_)) {
            return Ok(accepted);
        }
        let (served, outside) = UnixStream::pair()?;
        let stream = TcpStream::from(accepted);
        stream.set_nodelay(true)?;
        // A client whose host has gone is noticed some time.
        sockopt::set_socket_keepalive(&stream, true)?;
        crate::seal::seal()?.admit(stream, outside, limit);
        Ok(served.into())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) | Self::Tls(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<Listener> {
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        match UnixStream::connect(path) {
            Ok(_) => {
                let reason = "a server is listening there already";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, reason));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Listener::Unix(UnixListener::bind(path)?, path.to_owned()))
}
