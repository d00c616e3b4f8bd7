//! TCP addresses and what is set on a socket.
//!
//! Must never fail for an option that the host does not offer: all of them are about speed.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::error::{Error, ErrorKind, Result};

/// Unsent bytes that a bulk lane's socket may hold: more only delays what is sent next.
const BULK_UNSENT: u32 = 128 << 10;
/// How long one attempt to connect may take; the machine gives up about then, too.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    /// Records and control.
    Ordered,
    /// Chunks.
    Bulk,
}

/// `HOST:PORT` of an address written `tcp:HOST:PORT` or `HOST:PORT`.
pub(super) fn host_and_port(address: &str) -> Result<&str> {
    let rest = address.strip_prefix("tcp:").unwrap_or(address);
    let valid = rest
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if valid {
        return Ok(rest);
    }
    let what = format!("{address} is no address of the form tcp:HOST:PORT");
    Err(Error::new(ErrorKind::InvalidArgument, what))
}

/// Connect to `address` (`HOST:PORT`) for that traffic.
pub(super) async fn connect(address: &str, traffic: Traffic) -> io::Result<TcpStream> {
    let connecting = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address));
    let stream = connecting
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    tune(&stream, traffic);
    Ok(stream)
}

/// Set what makes it faster. What cannot be set is left as it is.
pub(super) fn tune(stream: &TcpStream, traffic: Traffic) {
    let socket = socket2::SockRef::from(stream);
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY cannot be set: {e}");
    }
    // Loss on a long way costs BBR little and the usual Reno or CUBIC nearly everything.
    if let Err(e) = rustix::net::sockopt::set_tcp_congestion(stream, "bbr") {
        tracing::debug!("TCP_CONGESTION cannot be set to bbr: {e}");
    }
    if traffic == Traffic::Bulk
        && let Err(e) = socket.set_tcp_notsent_lowat(BULK_UNSENT)
    {
        tracing::debug!("TCP_NOTSENT_LOWAT cannot be set: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_host_and_a_port() {
        assert_eq!(host_and_port("tcp:b:9000").unwrap(), "b:9000");
        assert_eq!(host_and_port("[::1]:9000").unwrap(), "[::1]:9000");
        for bad in ["tcp:b", "tcp::9000", "b:70000", "", "unix:/a"] {
            assert_eq!(
                host_and_port(bad).unwrap_err().kind(),
                ErrorKind::InvalidArgument
            );
        }
    }
}
