//! Requests whose bytes are elsewhere: those of a disk that has moved, and those of one that is an export of another server.
//!
//! Must never let two changes of one byte of such a disk be under way at once: its server may do them in any order, and do
//! them again.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::export::There;
use crate::forward::{ForwardReply, ForwardRequest};

use super::action::Action;
use super::answer::into_bytes;
use super::task::Task;
use super::{Message, Worker};

impl Worker {
    /// How the disk of a task that has begun reaches its bytes, if they are elsewhere.
    fn there(&self, id: u32) -> Option<&There> {
        let (disk, _) = self.tasks.get(id)?.place()?;
        self.disks.get(disk)?.disk.there()
    }

    /// Whether a task's changes have to be kept apart from each other, whoever watches.
    pub(super) fn is_elsewhere(&self, id: u32) -> bool {
        self.there(id).is_some()
    }

    /// Whether nothing is done, as a trim allows: it could be only by writing all of the zeroes.
    pub(super) fn is_left_out(&self, id: u32) -> bool {
        let there = self.there(id).filter(|there| !there.has_zeroes());
        let task = self.tasks.get(id).filter(|_| there.is_some());
        task.is_some_and(|task| matches!(task.asked.action, Action::Discard { .. }))
    }

    /// Have a task carried out where its bytes are; false, and nothing done, if that is in a file here.
    pub(super) fn run_elsewhere(&mut self, id: u32) -> bool {
        let Some((disk, _)) = self.tasks.get(id).and_then(Task::place) else {
            return false;
        };
        let Some(here) = self.disks.get(disk).map(|here| Arc::clone(&here.disk)) else {
            return false;
        };
        let Some(there) = here.there() else {
            return false;
        };
        if let Some(request) = self.forward_request(id) {
            there.ask(request, self.teller(id));
        }
        true
    }

    /// Tells this worker, from any thread, what became of a task elsewhere.
    pub(super) fn teller(
        &self,
        id: u32,
    ) -> impl FnOnce(io::Result<ForwardReply>) + Send + use<> + 'static {
        let (crew, number) = (Arc::clone(&self.crew), self.number);
        move |result| {
            // A worker that has ended has told its clients already.
            let _ = crew
                .inbox(number)
                .post(Message::Forwarded { task: id, result });
        }
    }

    /// What a server elsewhere is asked to do in place of a file here.
    pub(super) fn forward_request(&mut self, id: u32) -> Option<ForwardRequest> {
        let task = self.tasks.get_mut(id)?;
        let mut data = Bytes::new();
        // A guest's read keeps the memory that it is answered in.
        if matches!(task.asked.action, Action::Write { .. })
            && let Some(buffer) = task.asked.buffer.take()
        {
            data = into_bytes(buffer, task.asked.len as usize);
        }
        if task.is_tapped() {
            task.run.sent = Some(data.clone());
        }
        let (action, offset, len) = (task.asked.action, task.asked.offset, task.asked.len);
        Some(ForwardRequest {
            action,
            offset,
            len,
            data,
        })
    }

    /// A server elsewhere answered.
    pub(super) fn forwarded(&mut self, id: u32, result: io::Result<ForwardReply>) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        match result {
            Err(error) => task.run.error = Some(error),
            Ok(ForwardReply::Done) => {}
            Ok(ForwardReply::Extents(extents)) => task.run.extents = extents,
            Ok(ForwardReply::Data(data)) => {
                let len = task.asked.len as usize;
                let buffer = &mut task.asked.buffer;
                let buffer = buffer.get_or_insert_with(|| self.pool.take(len));
                buffer.copy_in(0, &data[..data.len().min(len)]);
            }
        }
        self.finish(id);
    }
}
