//! TCP addresses and what is set on a socket.
//!
//! Must never fail for an option that the host does not offer: all of them are about speed.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rustix::net::sockopt::set_tcp_congestion;
use rustix::net::{AddressFamily, SocketType};
use tokio::net::TcpStream;

use super::stream::Stream;
use super::tls;
use crate::error::{Error, ErrorKind, Result};

/// Unsent bytes that a bulk lane's socket may hold: more only delays what is sent next.
const BULK_UNSENT: u32 = 128 << 10;
/// Loss on a long way costs this one little, and the usual Reno or CUBIC nearly everything.
const STEADY: &str = "bbr";
/// Bulk lanes where only the usual ones are to be had: at 80 ms there and back and one packet of a thousand lost each of them
/// brings 5 to 6 Mbit/s, whatever the line could, and a loss slows none but its own.
const MANY_LANES: u16 = 32;
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

/// Bulk lanes to `address` where `usual` ones do if the kernel has what a long way needs.
pub(super) fn lanes(address: &SiteAddress, usual: u16) -> u16 {
    let probe = || {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        set_tcp_congestion(socket, STEADY)
    };
    if address.is_loopback() || probe().is_ok() {
        return usual;
    }
    tracing::debug!("there is no {STEADY}: {MANY_LANES} connections");
    usual.max(MANY_LANES)
}

/// Set what makes it faster. What cannot be set is left as it is.
pub(super) fn tune(stream: &TcpStream, traffic: Traffic) {
    let socket = socket2::SockRef::from(stream);
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!("TCP_NODELAY cannot be set: {e}");
    }
    if let Err(e) = set_tcp_congestion(stream, STEADY) {
        tracing::debug!("TCP_CONGESTION cannot be set to {STEADY}: {e}");
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
    fn there_are_as_many_lanes_as_usual_to_this_host_and_no_fewer_to_another() {
        let to = |text| lanes(&SiteAddress::parse(text).unwrap(), 2);
        assert_eq!(to("127.0.0.1:9"), 2);
        assert!([2, MANY_LANES].contains(&to("10.0.0.1:9")));
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
