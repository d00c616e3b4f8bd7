//! What goes wrong with file operations, and what one that fails may have done.

use vdisk::engine::FileOpKind;
use vdisk::storage::{Change, FlushMark};

use super::World;
use crate::simulation::model::SECTOR;

/// What goes wrong with file operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Faults {
    /// Nothing.
    #[default]
    None,
    /// One operation in so many that needs room has none: to lengthen, to reserve, to write a
    /// guest's bytes, to zero and keep.
    NoRoom(u64),
    /// The file can not have more bytes than these.
    Longest(u64),
    /// One operation in so many fails, whichever it is.
    Medium(u64),
}

impl World {
    /// Whether `kind` fails this time, and how.
    pub(super) fn fault(&mut self, kind: &FileOpKind) -> Option<std::io::Error> {
        let needs_room = match kind {
            FileOpKind::SetLen { len } => *len > self.storage.live().length(),
            FileOpKind::Zero { keep, .. } => *keep,
            FileOpKind::Reserve { .. }
            | FileOpKind::CopyUp { .. }
            | FileOpKind::WriteRequest { .. }
            | FileOpKind::MergeRequest { .. } => true,
            _ => false,
        };
        match self.faults {
            Faults::Longest(most) if matches!(kind, FileOpKind::SetLen { len } if *len > most) => {
                Some(std::io::ErrorKind::FileTooLarge.into())
            }
            Faults::NoRoom(times) if needs_room && self.random.one_in(times) => {
                Some(std::io::ErrorKind::StorageFull.into())
            }
            Faults::Medium(times)
                if !matches!(kind, FileOpKind::ZeroRequest { .. }) && self.random.one_in(times) =>
            {
                Some(std::io::Error::other("medium"))
            }
            _ => None,
        }
    }

    /// What an operation that fails may have done: nothing, all, or some of it.
    pub(super) fn fail_op(
        &mut self,
        kind: &FileOpKind,
        mark: Option<FlushMark>,
        merged: Option<(u64, Vec<u8>)>,
    ) {
        let random = &mut self.random;
        if let Some(mark) = mark {
            self.storage
                .fail_flush(mark, &mut |bound| random.below(bound));
        }
        let change = match merged {
            Some((at, bytes)) => Some(Change::Write(at, bytes.into())),
            None => self.change_of(kind),
        };
        if let Some(change) = change {
            self.apply_part(&change);
        }
    }

    pub(super) fn apply_part(&mut self, change: &Change) {
        let part = match change {
            Change::Length(_) => return,
            change if self.random.one_in(3) => change.clone(),
            Change::Write(at, data) => {
                let sectors = self.random.below(data.len() as u64 / SECTOR + 1);
                Change::Write(*at, data.slice(..(sectors * SECTOR) as usize))
            }
            Change::Zero(at, len) => {
                Change::Zero(*at, self.random.below(len / SECTOR + 1) * SECTOR)
            }
        };
        self.storage.apply(part);
    }
}
