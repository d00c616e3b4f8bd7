//! The seam through which a mirror sees the writes of a served disk.

use bytes::Bytes;

use crate::units::GuestOffset;

/// What one change did to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These bytes were written.
    Data(Bytes),
    /// This many bytes now read as zero.
    Zeroes(u64),
    /// This many bytes may read as something else now, or not: the change failed, and may have been made in part.
    Unknown(u64),
}

impl Change {
    /// How many bytes of the disk it covers.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(len) | Self::Unknown(len) => *len,
        }
    }

    /// Whether it covers nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Sees every change of a disk, in an order that is right for overlapping changes.
///
/// Whoever serves the disk keeps these rules: overlapping changes are serialised while a tap is on;
/// [`WriteTap::changed`] is called after the change succeeded locally, or failed, and before the client hears
/// of it; the bytes handed over are those that were written.
pub trait WriteTap: Send + Sync {
    /// `change` at `offset` is in the local disk, or failed there, and about to be answered.
    ///
    /// Must not block: it runs on the thread that serves the disk.
    fn changed(&self, offset: GuestOffset, change: Change);
}
