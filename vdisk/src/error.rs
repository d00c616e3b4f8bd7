//! What can go wrong with an image: a small kind to match on, the words for a person, the cause.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use crate::format::Code;

/// What kind of failure it is; a caller decides by this and shows the rest to a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The image breaks the format: nothing more is read from it.
    Corrupt,
    /// The image is dirty or damaged in a way a repair or a writable open would mend.
    NeedsRepair,
    /// Legal, but something this version cannot do.
    Unsupported,
    /// The caller asked for something that cannot be (a size, an offset, a state).
    InvalidArgument,
    /// Another process holds the image.
    Locked,
    /// The image is the incomplete target of a migration, or has been handed over to another owner.
    NotOwned,
    /// The disk that an image is built on was not found where it may be.
    NoParent,
    /// No room on the host's file system.
    NoSpace,
    /// The host's file system or medium failed.
    Io,
    /// A flush failed before: what is on the medium is unknown, nothing more is accepted.
    Failed,
}

/// An error with its kind, what was being done, where, and the cause below it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    code: Option<Code>,
    what: String,
    path: Option<PathBuf>,
    offset: Option<u64>,
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
            code: None,
            what: what.into(),
            path: None,
            offset: None,
            source: None,
        }
    }

    /// The image breaks the format in the way `what` says.
    #[must_use]
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, what)
    }

    /// The caller asked for what cannot be.
    #[must_use]
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, what)
    }

    /// A failed system call while doing `what`.
    #[must_use]
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => ErrorKind::NoSpace,
            _ => ErrorKind::Io,
        };
        Self {
            kind,
            code: None,
            what: what.into(),
            path: None,
            offset: None,
            source: Some(source),
        }
    }

    /// The same error, with the byte offset in the file at which it was found.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// The same error, with the file it concerns.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// The same error, as this kind of finding, if it is not one already.
    #[must_use]
    pub fn coded(mut self, code: Code) -> Self {
        self.code.get_or_insert(code);
        self
    }

    /// What kind of finding it is to an examination of the image, where it is one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        self.code
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The byte offset in the file at which it was found, where there is one.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.display())?;
        }
        f.write_str(&self.what)?;
        if let Some(offset) = self.offset {
            write!(f, " (at file offset {offset:#x})")?;
        }
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
