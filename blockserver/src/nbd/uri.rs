//! How people write where an NBD server is.
//!
//! Codec: text to a checked [`Address`] and back. Specified in `doc/uri.md` of the NBD project
//! (`nbd://HOST:PORT/EXPORT`, `nbds://HOST:PORT/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`); `tcp:HOST:PORT`,
//! `tls:HOST:PORT` and `unix:PATH` are the short forms of this program and name the default export.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The registered TCP port of NBD.
pub const DEFAULT_PORT: u16 = 10809;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A TCP port.
    Tcp {
        /// Name or address; an IPv6 address without its brackets.
        host: String,
        /// Port; 0 lets the system choose, which makes sense only when listening.
        port: u16,
    },
    /// The same, where connections are encrypted before anything else is said.
    Tls {
        /// Name or address; an IPv6 address without its brackets.
        host: String,
        /// Port; 0 lets the system choose, which makes sense only when listening.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// Where a server listens and which of its exports is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Where the server listens.
    pub endpoint: Endpoint,
    /// The name of the export; empty is the default export.
    pub export: String,
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError {
    text: String,
    reason: &'static str,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is no NBD address: {} (use nbd://HOST:PORT/EXPORT, \
             nbds://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH, tcp:HOST:PORT, tls:HOST:PORT or unix:PATH)",
            self.text, self.reason
        )
    }
}

impl std::error::Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse(text).map_err(|reason| AddressError {
            text: text.to_owned(),
            reason,
        })
    }
}

impl FromStr for Endpoint {
    type Err = AddressError;

    /// Only the short forms and URIs without an export.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let address: Address = text.parse()?;
        if address.export.is_empty() {
            Ok(address.endpoint)
        } else {
            Err(AddressError {
                text: text.to_owned(),
                reason: "an export makes no sense here",
            })
        }
    }
}

/// The short form: `tcp:HOST:PORT`, `tls:HOST:PORT` or `unix:PATH`.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tcp:{}:{port}", Bracketed(host)),
            Self::Tls { host, port } => write!(f, "tls:{}:{port}", Bracketed(host)),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A host as it stands before a port.
struct Bracketed<'a>(&'a str);

impl fmt::Display for Bracketed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') {
            write!(f, "[{}]", self.0)
        } else {
            f.write_str(self.0)
        }
    }
}

/// The URI, which other programs understand too.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Tcp { host, port } => write!(f, "nbd://{}:{port}/", Bracketed(host)),
            Endpoint::Tls { host, port } => write!(f, "nbds://{}:{port}/", Bracketed(host)),
            Endpoint::Unix(_) => f.write_str("nbd+unix:///"),
        }?;
        write_escaped(f, &self.export)?;
        if let Endpoint::Unix(path) = &self.endpoint {
            f.write_str("?socket=")?;
            write_escaped(f, &path.to_string_lossy())?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Result<Address, &'static str> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(Address {
            endpoint: unix(path)?,
            export: String::new(),
        });
    }
    for (word, sealed) in [("tcp:", false), ("tls:", true)] {
        if let Some(place) = text.strip_prefix(word) {
            return Ok(Address {
                endpoint: over_tcp(place, None, sealed)?,
                export: String::new(),
            });
        }
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("it has no scheme");
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (place, export) = rest.split_once('/').unwrap_or((rest, ""));
    let export = unescape(export)?;
    let endpoint = match scheme {
        "nbd" => over_tcp(place, Some(DEFAULT_PORT), false)?,
        "nbds" => over_tcp(place, Some(DEFAULT_PORT), true)?,
        "nbd+unix" if place.is_empty() => {
            let socket = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("socket="))
                .ok_or("a nbd+unix URI needs ?socket=PATH")?;
            unix(&unescape(socket)?)?
        }
        "nbd+unix" => return Err("a nbd+unix URI has no host (write three slashes)"),
        "nbds+unix" => return Err("what does not leave this host is not encrypted"),
        _ => return Err("its scheme is unknown"),
    };
    Ok(Address { endpoint, export })
}

fn unix(path: &str) -> Result<Endpoint, &'static str> {
    if path.is_empty() {
        return Err("the socket path is empty");
    }
    if path.contains('\0') {
        return Err("the socket path has a NUL in it");
    }
    Ok(Endpoint::Unix(Path::new(path).to_owned()))
}

/// `HOST:PORT`, `[V6]:PORT`, or one without a port where there is a default.
fn over_tcp(
    place: &str,
    default_port: Option<u16>,
    sealed: bool,
) -> Result<Endpoint, &'static str> {
    if place.contains('@') {
        return Err("user names are not supported");
    }
    let (host, port) = if let Some(v6) = place.strip_prefix('[') {
        let (host, after) = v6.split_once(']').ok_or("a '[' is not closed")?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err("only a port may follow ']'"),
        }
    } else {
        match place.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("write an IPv6 address in brackets");
            }
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        }
    };
    if host.is_empty() {
        return Err("the host is empty");
    }
    let port = match port {
        Some(port) => port
            .parse()
            .map_err(|_| "the port is not a number up to 65535")?,
        None => default_port.ok_or("the port is missing")?,
    };
    let host = host.to_owned();
    Ok(if sealed {
        Endpoint::Tls { host, port }
    } else {
        Endpoint::Tcp { host, port }
    })
}

/// Undo percent escapes.
fn unescape(text: &str) -> Result<String, &'static str> {
    const BAD: &str = "'%' must be followed by two hexadecimal digits";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = char::from(rest.next().ok_or(BAD)?);
            digit.to_digit(16).ok_or(BAD)
        };
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).map_err(|_| BAD)?);
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 once unescaped")
}

/// Escape what has a meaning in a URI; slashes may stay.
fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            write!(f, "{}", char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(host: &str, port: u16, export: &str) -> Address {
        Address {
            endpoint: Endpoint::Tcp {
                host: host.into(),
                port,
            },
            export: export.into(),
        }
    }

    fn tls(host: &str, port: u16, export: &str) -> Address {
        Address {
            endpoint: Endpoint::Tls {
                host: host.into(),
                port,
            },
            export: export.into(),
        }
    }

    fn unix(path: &str, export: &str) -> Address {
        Address {
            endpoint: Endpoint::Unix(path.into()),
            export: export.into(),
        }
    }

    #[test]
    fn every_form_that_people_write_is_understood() {
        for (text, address) in [
            ("nbd://host:1234/disk", tcp("host", 1234, "disk")),
            ("nbd://host", tcp("host", 10809, "")),
            ("nbd://[::1]:7/a%20b/c", tcp("::1", 7, "a b/c")),
            ("nbd+unix:///disk?socket=/run/s", unix("/run/s", "disk")),
            ("nbd+unix:///?x=y&socket=%2Frun%2Fs", unix("/run/s", "")),
            ("unix:/run/s", unix("/run/s", "")),
            ("tcp:localhost:10810", tcp("localhost", 10810, "")),
            ("tcp:[::]:0", tcp("::", 0, "")),
            ("nbds://host/disk", tls("host", 10809, "disk")),
            ("tls:[::1]:7", tls("::1", 7, "")),
        ] {
            assert_eq!(text.parse(), Ok(address), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_a_reason() {
        for text in [
            "",
            "host",
            "tcp:host",
            "tcp::1",
            "tcp:::1:5",
            "tcp:h:70000",
            "unix:",
            "nbd://",
            "nbds+unix:///?socket=/s",
            "tls:h",
            "nbd+unix:///x",
            "nbd+unix://h/?socket=/s",
            "ftp://h",
            "nbd://h/%zz",
            "nbd://h/%f",
            "nbd://[::1",
            "nbd://[::1]x",
            "nbd://u@h/",
            "nbd://h/%ff",
            "unix:a\0b",
        ] {
            let error = text.parse::<Address>().expect_err(text);
            assert!(error.to_string().contains("is no NBD address: "));
        }
        assert!("nbd://h/disk".parse::<Endpoint>().is_err());
        let endpoint: Endpoint = "tcp:[::1]:5".parse().expect("an endpoint");
        assert_eq!(endpoint.to_string(), "tcp:[::1]:5");
    }

    proptest! {
        #[test]
        fn an_address_survives_being_written_and_read(
            export in "[^\0]{0,20}", path in "/[^\0]{1,20}", port: u16, how in 0..3,
        ) {
            let address = match how {
                0 => tcp("a.example", port, &export),
                1 => tls("::1", port, &export),
                _ => unix(&path, &export),
            };
            prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(nbds?|tcp|tls|unix|nbd\\+unix)?(:|://)?.{0,40}") {
            let _ = text.parse::<Address>();
        }
    }
}
