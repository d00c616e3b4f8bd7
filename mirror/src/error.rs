//! What can go wrong in a migration: a small kind to match on, and the words for a person.

use std::{fmt, io};

/// What kind of failure it is; a caller decides by this and shows the rest to a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The other host sent bytes that are no message of this protocol.
    PeerMalformed,
    /// The other host sent a message that the protocol does not allow now.
    PeerMisbehaved,
    /// What arrived is not what was sent: a digest does not match.
    Damaged,
    /// The other host said no, and why.
    Refused,
    /// The other host no longer has what it said it had.
    PeerLostState,
    /// The disk on this host failed.
    Disk,
    /// The ownership record could not be read or written.
    Record,
    /// The disk belongs to another host, or its copy here is not complete.
    NotOwned,
    /// The caller asked for something that cannot be now.
    InvalidArgument,
    /// A socket or a file of this host failed.
    Io,
    /// The user ended it.
    Cancelled,
    /// Another disk of its group is mirrored no more.
    GroupEnded,
}

/// An error with its kind, a sentence saying what is wrong, and the cause below it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<io::Error>,
}

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `what` says what is wrong and, where one can do something, what.
    #[must_use]
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            source: None,
        }
    }

    /// A failed system call while doing `what`.
    #[must_use]
    pub fn io(kind: ErrorKind, what: impl Into<String>, source: io::Error) -> Self {
        Self {
            kind,
            what: what.into(),
            source: Some(source),
        }
    }

    /// The other host broke the protocol in the way `what` says.
    #[must_use]
    pub fn misbehaved(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::PeerMisbehaved, what)
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}

impl From<crate::wire::DecodeError> for Error {
    fn from(e: crate::wire::DecodeError) -> Self {
        Self::new(ErrorKind::PeerMalformed, e.to_string())
    }
}
