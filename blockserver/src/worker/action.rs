//! What a request asks of a disk.

use vdisk::engine::Mark;
use vdisk::format::track::CheckpointName;

use crate::export::Kind;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Fill the buffer.
    Read,
    /// Write the buffer.
    Write { fua: bool },
    /// Make the range read as zero.
    Zero { unmap: bool, fua: bool },
    /// The range is not needed any more.
    Discard { fua: bool },
    /// Make everything durable.
    Flush,
    /// Tell the extents.
    Status,
    /// Leave a cleanly closed image.
    Park { mark: Option<Mark> },
    /// Give the disk another size.
    Resize { size: u64, discard_data: bool },
    /// Go on making the file as short as it can be.
    Compact { defragment: bool, budget: u64 },
    /// Remember this moment.
    Checkpoint { name: CheckpointName, time: u64 },
}

impl Action {
    /// Whether the disk reads as something else afterwards.
    pub(crate) fn changes(self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Zero { .. } | Self::Discard { .. }
        )
    }

    /// Whether it concerns the disk and no range of it. All but a flush are asked for by this process only.
    pub(crate) fn is_of_disk(self) -> bool {
        self.kind() == Kind::Flush
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Read => Kind::Read,
            Self::Write { .. } => Kind::Write,
            Self::Zero { .. } | Self::Discard { .. } => Kind::Zero,
            Self::Flush
            | Self::Park { .. }
            | Self::Resize { .. }
            | Self::Compact { .. }
            | Self::Checkpoint { .. } => Kind::Flush,
            Self::Status => Kind::Status,
        }
    }
}
