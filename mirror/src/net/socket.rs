//! TCP addresses and what is set on a socket.
//!
//! Must never fail for an option that the host does not offer: all of them are about speed.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::stream::Stream;
use super::tls;
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

/// Where a site listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteAddress {
    /// `HOST:PORT`.
    at: String,
    sealed: bool,
}

impl SiteAddress {
    /// The address written `tls:HOST:PORT`, `tcp:HOST:PORT` or `HOST:PORT`.
    ///
    /// Fails with [`ErrorKind::InvalidArgument`] when it is none.
    pub fn parse(text: &str) -> Result<Self> {
        let (at, sealed) = match text.strip_prefix("tls:") {
            Some(at) => (at, true),
            None => (text.strip_prefix("tcp:").unwrap_or(text), false),
        };
        let parts = at.rsplit_once(':');
        let valid =
            parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if valid {
            let at = at.to_owned();
            return Ok(Self { at, sealed });
        }
        let what = format!("{text} is no address of the form tls:HOST:PORT or tcp:HOST:PORT");
        Err(Error::new(ErrorKind::InvalidArgument, what))
    }

    /// Whether `text` is written like one, with a word for how it is reached.
    #[must_use]
    pub fn is_written(text: &str) -> bool {
        text.starts_with("tls:") || text.starts_with("tcp:")
    }

    /// Whether what goes there is encrypted, and both sides show who they are.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Whether only this host is reached there.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = self.at.rsplit_once(':').map_or("", |(host, _)| host);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let address: std::result::Result<IpAddr, _> = bare.parse();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// `HOST:PORT`.
    pub(super) fn at(&self) -> &str {
        &self.at
    }
}

/// Connect to `address` for that traffic.
pub(super) async fn connect(address: &SiteAddress, traffic: Traffic) -> io::Result<Stream> {
    let connecting = async {
        let stream = TcpStream::connect(address.at()).await?;
        tune(&stream, traffic);
        if address.sealed {
            tls::to_target(stream).await
        } else {
            Ok(Stream::Plain(stream))
        }
    };
    tokio::time::timeout(CONNECT_WITHIN, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
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
        for (text, at, sealed) in [
            ("tcp:b:9000", "b:9000", false),
            ("[::1]:9000", "[::1]:9000", false),
            ("tls:b:9000", "b:9000", true),
        ] {
            let address = SiteAddress::parse(text).unwrap();
            assert_eq!((address.at(), address.is_sealed()), (at, sealed));
        }
        for bad in ["tcp:b", "tcp::9000", "tls:b", "b:70000", "", "unix:/a"] {
            let kind = SiteAddress::parse(bad).unwrap_err().kind();
            assert_eq!(kind, ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn only_addresses_of_this_host_are_taken_for_such() {
        let is = |text| SiteAddress::parse(text).unwrap().is_loopback();
        assert!(["127.0.0.1:1", "tcp:127.3.2.1:1", "[::1]:1", "localhost:1"].map(is) == [true; 4]);
        assert!(
            ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "b:1", "localhost.b:1"].map(is) == [false; 5]
        );
    }
}
