//! What can be wrong with a package.

/// What kind of wrong it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Bytes are not what they must be.
    Damaged,
    /// It is sound, and not the one that was wanted: of another package, or another volume.
    Other,
    /// A later version of the format.
    Unsupported,
}

/// What is wrong with a package, and where in the volume or manifest; the file's name the caller knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: String,
}

/// The result of reading a package.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Damaged,
            what: what.into(),
        }
    }

    pub(crate) fn other(what: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Other,
            what: what.into(),
        }
    }

    pub(crate) fn unsupported(version: impl std::fmt::Display) -> Self {
        Self {
            kind: ErrorKind::Unsupported,
            what: format!("is a package of version {version}, and version 1 is known here"),
        }
    }

    /// What kind of wrong it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}
