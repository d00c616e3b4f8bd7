//! Encrypted connections, as far as this crate has a part in them: what is said before ([`crate::nbd::starttls`]), and who
//! encrypts.
//!
//! Who encrypts is told by the program, which knows who it is to others ([`introduce`]). The server and the clients here see
//! the plain end of a pair of sockets, and know nothing of what becomes of the bytes at the other end. Must never let
//! anything go unencrypted over a connection that was to be encrypted.

use std::io;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

/// Encrypts connections, for as long as both ends are there.
pub trait Seal: Send + Sync {
    /// Whether it can: fails when this process is nobody to others.
    fn ready(&self) -> io::Result<()>;

    /// Encrypt a connection that was made to a server, in at most `limit`; the plain end of it, on which the server greets
    /// and takes flags as it does unencrypted. Blocks.
    fn call(&self, stream: TcpStream, limit: Duration) -> io::Result<UnixStream>;

    /// Encrypt a connection that a client made, in at most `limit`: `server` is where the server greets it. Does not block,
    /// and closes both when that fails.
    fn admit(&self, stream: TcpStream, server: UnixStream, limit: Duration);
}

static SEAL: OnceLock<Box<dyn Seal>> = OnceLock::new();

/// From now on `seal` encrypts what is to be. Said again it has no effect.
pub fn introduce(seal: Box<dyn Seal>) {
    let _ = SEAL.set(seal);
}

/// Who encrypts; fails when nobody can.
pub(crate) fn seal() -> io::Result<&'static dyn Seal> {
    let seal = SEAL.get().ok_or_else(|| {
        let what = "this program does not encrypt connections";
        io::Error::new(io::ErrorKind::Unsupported, what)
    })?;
    seal.ready()?;
    Ok(seal.as_ref())
}
