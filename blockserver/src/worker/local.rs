//! Requests of this process itself.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::export::{Export, LocalDone, LocalRequest};
use crate::uring::IoBuffer;

use super::Worker;
use super::action::Action;
use super::task::{Asked, From};

/// The longest read or write, in bytes.
const LONGEST: u64 = 64 << 20;

impl Worker {
    /// Take on a request of this process.
    pub(super) fn local(&mut self, export: &Arc<Export>, request: &LocalRequest, done: LocalDone) {
        let (action, offset, len) = action_of(request);
        let index = self.export_here(export);
        let here = self.exports.get(index);
        let size = here.map_or(0, |here| here.policy.disk.size());
        let moves = matches!(action, Action::Read | Action::Write { .. });
        let whole = action.is_of_disk();
        let fits = offset.checked_add(len).is_some_and(|end| end <= size)
            && (!moves || len <= LONGEST)
            && (whole || len > 0);
        if !fits {
            let what = format!("{len} bytes at {offset} are outside the disk of {size} bytes");
            done(Err(io::Error::new(io::ErrorKind::InvalidInput, what)));
            return;
        }
        let buffer = match request {
            LocalRequest::Write { data, .. } => Some(self.buffer_for(index, data)),
            _ => None,
        };
        let from = From::Local(done);
        #[rustfmt::skip]
        let asked = Asked { from, action, offset, len, buffer };
        self.take_on(index, asked);
    }

    /// These bytes where they are, if they lie as direct writes to the export's file need it, else a copy that does.
    fn buffer_for(&mut self, export: u32, data: &Bytes) -> IoBuffer {
        let disk = self.exports.get(export).map(|here| here.disk);
        let mask = disk.map_or(0, |disk| self.alignment(disk) - 1);
        let lent = IoBuffer::lent(data.clone());
        if lent.is_aligned(0..data.len(), mask as usize) {
            return lent;
        }
        let taken = self.pool.take(data.len());
        taken.copy_in(0, data);
        taken
    }
}

/// What a request asks of the disk, and of which range.
fn action_of(request: &LocalRequest) -> (Action, u64, u64) {
    let (fua, unmap) = (false, true);
    match request {
        LocalRequest::Read { offset, len } => (Action::Read, *offset, *len),
        LocalRequest::Write { offset, data } => (Action::Write { fua }, *offset, data.len() as u64),
        LocalRequest::Zero { offset, len } => (Action::Zero { unmap, fua }, *offset, *len),
        LocalRequest::Flush => (Action::Flush, 0, 0),
        LocalRequest::Status { offset, len } => (Action::Status, *offset, *len),
        LocalRequest::Park { mark } => (Action::Park { mark: *mark }, 0, 0),
        LocalRequest::Resize { size, discard_data } => {
            let (size, discard_data) = (*size, *discard_data);
            (Action::Resize { size, discard_data }, 0, 0)
        }
        LocalRequest::Checkpoint { name, time } => {
            let (name, time) = (*name, *time);
            (Action::Checkpoint { name, time }, 0, 0)
        }
        LocalRequest::Compact { defragment, budget } => {
            let (defragment, budget) = (*defragment, *budget);
            (Action::Compact { defragment, budget }, 0, 0)
        }
    }
}
