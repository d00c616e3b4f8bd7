//! What can go wrong with a machine: a small kind to match on, the words for a person, the cause.

use std::{fmt, io};

/// What kind of failure it is; a caller decides by this and shows the rest to a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// This host lacks something: `/dev/kvm`, or a part of it.
    Unsupported,
    /// The caller asked for something that cannot be (a size, a number, a state).
    InvalidArgument,
    /// The kernel, the initrd or the command line cannot be loaded as it is.
    BadKernel,
    /// Bytes that are to be the state of a machine are not.
    BadSnapshot,
    /// A state does not fit to this host, or to the devices and the memory that are there for it.
    Mismatch,
    /// A system call on the host failed.
    Host,
    /// The guest did not do what it was asked for.
    Guest,
}

/// An error with its kind, what was being done, and the cause below it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<io::Error>,
}

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `what` is a sentence that says what is wrong and what to do.
    #[must_use]
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            source: None,
        }
    }

    /// The caller asked for what cannot be.
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, what)
    }

    /// What was to be booted cannot be.
    pub(crate) fn kernel(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::BadKernel, what)
    }

    /// A state does not fit.
    pub(crate) fn mismatch(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Mismatch, what)
    }

    /// A system call failed while `what` was done.
    pub(crate) fn host(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::new(ErrorKind::Host, what).because(source)
    }

    /// The same error, with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<io::Error>) -> Self {
        self.source = Some(source.into());
        self
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
        self.source.as_ref().map(|source| source as _)
    }
}
