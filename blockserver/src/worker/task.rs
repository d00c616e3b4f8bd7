//! One request from its beginning to its reply.
//!
//! ```text
//!   admit ─► start ─► run_task ─► parts of it ─► ran ─► (sync) ─► finish
//!     │        │          └─────► the engine ────┘
//!     │        └ waits for its range, while a tap is on
//!     └ waits while the export is held, or for its turn; goes elsewhere while it is forwarded
//! ```

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use vdisk::engine::{Access, Compacted, Completion, Done, Extent, Generation, Lookup, Request};
use vdisk::tap::{Change, WriteTap};
use vdisk::units::{FileOffset, GuestOffset};

use crate::export::{LocalDone, Mode};
use crate::uring::IoBuffer;

use super::action::Action;
use super::answer::into_bytes;
use super::layers::Question;
use super::transfer::{Purpose, Span};
use super::{Message, Worker};

/// Who made a request.
pub(super) enum From {
    /// A client.
    Session {
        /// The session here.
        session: u32,
        /// The client's name for the request.
        cookie: u64,
        /// Whether one extent is enough of an answer.
        one: bool,
    },
    /// A guest's virtqueue, whose memory is the buffer.
    Queue {
        /// The queue here.
        queue: u32,
        /// The queue's name for the request.
        request: u32,
    },
    /// This process.
    Local(LocalDone),
    /// The engine of a disk that is built on this one.
    Child(Box<Question>),
}

/// One piece of a request as the map tells it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// First byte in the request's buffer.
    start: usize,
    /// Where in the file; nowhere means zeros.
    at: Option<FileOffset>,
    len: u64,
}

/// The export of a task on a disk beneath the one that is served.
const BELOW: u32 = u32::MAX;

/// How far a task is.
#[derive(Default)]
pub(super) struct Run {
    /// File operations in flight.
    pending: u32,
    pub(super) error: Option<io::Error>,
    /// What the map was when its parts were looked up.
    generation: Option<Generation>,
    /// What is left when its parts have ended is to make it durable.
    sync: bool,
    /// It was a read, and nothing of it is in the file.
    pub(super) hole: bool,
    pub(super) extents: Vec<Extent>,
    pub(super) compacted: Option<Compacted>,
    /// What was written elsewhere, for the tap.
    pub(super) sent: Option<Bytes>,
}

/// What somebody asks for.
pub(super) struct Asked {
    pub(super) from: From,
    pub(super) action: Action,
    /// First byte of the disk, and how many.
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The bytes to write, then those that were read; as long as the request. Of a read nothing yet,
    /// unless it is a guest's.
    pub(super) buffer: Option<IoBuffer>,
}

/// A request.
pub(super) struct Task {
    pub(super) asked: Asked,
    pub(super) export: u32,
    /// The disk and the era it was started in; before that nothing.
    place: Option<(u32, u64)>,
    /// Sees the change when it has been made; its range is locked until then.
    tap: Option<Arc<dyn WriteTap>>,
    /// Whether its range is locked, or it waits for that.
    locked: bool,
    pub(super) run: Run,
    pub(super) began: Instant,
}

impl Task {
    /// The disk and the era it was started in.
    pub(super) fn place(&self) -> Option<(u32, u64)> {
        self.place
    }

    /// Whether this process asks for it.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self.asked.from, From::Local(_))
    }

    /// Whether a tap sees the change.
    pub(super) fn is_tapped(&self) -> bool {
        self.tap.is_some()
    }

    /// The worker ends: nothing more will become of it.
    pub(super) fn abandon(self) {
        if let From::Local(done) = self.asked.from {
            done(Err(shut_down()));
        }
    }
}

/// The error of what comes too late.
pub(super) fn shut_down() -> io::Error {
    io::Error::from_raw_os_error(libc::ESHUTDOWN)
}

impl Worker {
    /// Take on a request.
    pub(super) fn take_on(&mut self, export: u32, asked: Asked) {
        let task = self.tasks.insert(Task {
            asked,
            export,
            place: None,
            tap: None,
            locked: false,
            run: Run::default(),
            began: self.life.now,
        });
        self.admit(task);
    }

    /// A request to a disk beneath the one that is served; its user has been counted.
    pub(super) fn begin_below(&mut self, asked: Asked, disk: u32) -> u32 {
        self.tasks.insert(Task {
            asked,
            export: BELOW,
            place: Some((disk, 0)),
            tap: None,
            locked: false,
            run: Run::default(),
            began: self.life.now,
        })
    }

    /// Let a request begin, if the policy of its export says so.
    pub(super) fn admit(&mut self, id: u32) {
        let Some(task) = self.tasks.get(id) else {
            return;
        };
        let Some(here) = self.exports.get_mut(task.export) else {
            return self.fail(id, shut_down());
        };
        if task.is_ours() {
            return self.start(id);
        }
        // Queues take nothing more by then; what they ask for belongs to what they have taken.
        let late = self.life.draining && !matches!(task.asked.from, From::Queue { .. });
        match here.policy.mode.clone() {
            _ if late => self.fail(id, shut_down()),
            Mode::Closed => self.fail(id, shut_down()),
            Mode::Serve if here.policy.limited && !self.life.draining => self.line_up(id),
            Mode::Serve => self.start(id),
            Mode::Hold if self.life.draining => self.fail(id, shut_down()),
            Mode::Hold => here.waiting.push_back(id),
            Mode::Forward(forwarder) => {
                self.place(id);
                if let Some(request) = self.forward_request(id) {
                    forwarder.submit(request, self.teller(id));
                }
            }
        }
    }

    /// Count a task among those in flight on its export's disk.
    fn place(&mut self, id: u32) -> Option<(u32, u64)> {
        let task = self.tasks.get_mut(id)?;
        let here = self.exports.get_mut(task.export)?;
        let place = (here.disk, here.begin());
        task.place = Some(place);
        self.count_user(place.0);
        Some(place)
    }

    pub(super) fn start(&mut self, id: u32) {
        self.place(id);
        if self.is_left_out(id) {
            return self.finish(id);
        }
        let elsewhere = self.is_elsewhere(id);
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        let Some(here) = self.exports.get(task.export) else {
            return;
        };
        if task.asked.action.changes() && (elsewhere || here.policy.tap.is_some()) {
            task.tap.clone_from(&here.policy.tap);
            task.locked = true;
            // What a trimmed range holds afterwards is open; whoever follows the tap must hold the
            // same, so it becomes zeros here and there. So does a server that is asked once more.
            if let Action::Discard { fua } = task.asked.action {
                task.asked.action = Action::Zero { unmap: true, fua };
            }
            // A guest may change its memory meanwhile, and disk and tap must get the same.
            if let Some(buffer) = task
                .asked
                .buffer
                .as_mut()
                .filter(|buffer| buffer.is_foreign())
            {
                let len = task.asked.len as usize;
                let copy = self.pool.take(len);
                copy.copy_from(0, buffer, 0..len);
                *buffer = copy;
            }
            let owner = (self.number, id);
            if !here
                .shared
                .locks
                .acquire(owner, task.asked.offset, task.asked.len)
            {
                return;
            }
        }
        self.run_task(id);
    }

    /// Carry a task out: straight on the file where the map allows it, else through the engine.
    pub(super) fn run_task(&mut self, id: u32) {
        if self.run_elsewhere(id) {
            return;
        }
        let Some(task) = self.tasks.get(id) else {
            return;
        };
        let Some((disk, _)) = task.place else {
            return;
        };
        let (offset, len) = (GuestOffset(task.asked.offset), task.asked.len);
        let broken = self
            .disks
            .get(disk)
            .is_none_or(|here| here.disk.has_failed());
        if broken && !matches!(task.asked.action, Action::Read | Action::Status) {
            return self.fail(id, io::Error::from_raw_os_error(libc::EIO));
        }
        let request = match task.asked.action {
            Action::Read => {
                if self.run_direct(id, disk, Access::Read) {
                    return;
                }
                if let Some(task) = self.tasks.get_mut(id) {
                    let buffer = &mut task.asked.buffer;
                    buffer.get_or_insert_with(|| self.pool.take(len as usize));
                }
                Request::Read { offset, len }
            }
            Action::Write { fua } => {
                if self.run_direct(id, disk, Access::Write) {
                    return;
                }
                Request::Write { offset, len, fua }
            }
            Action::Zero { unmap, fua } => Request::WriteZeroes {
                offset,
                len,
                fua,
                unmap,
            },
            Action::Discard { fua } => {
                self.set_sync(id, fua);
                Request::Discard { offset, len }
            }
            Action::Flush => return self.sync(id),
            Action::Status => Request::Status { offset, len },
            Action::Park { mark } => Request::Park { mark },
            Action::Resize { size, discard_data } => Request::Resize { size, discard_data },
            Action::Compact { defragment, budget } => Request::Compact { defragment, budget },
            Action::Checkpoint { name, time } => Request::Checkpoint { name, time },
        };
        self.tell_request(disk, id, request);
    }

    fn set_sync(&mut self, id: u32, sync: bool) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.run.sync = sync;
        }
    }

    /// Carry out a read or write by the map alone; false, and nothing done, where it takes the
    /// engine.
    fn run_direct(&mut self, id: u32, disk: u32, access: Access) -> bool {
        let (Some(task), Some(here)) = (self.tasks.get_mut(id), self.disks.get_mut(disk)) else {
            return false;
        };
        let generation = here.participant.enter();
        let parts = &mut self.agenda.parts;
        parts.clear();
        let mut start = 0;
        while start < task.asked.len {
            let offset = GuestOffset(task.asked.offset + start);
            let (at, len) = match here
                .disk
                .map()
                .lookup(offset, task.asked.len - start, access)
            {
                Lookup::File { at, len } => (Some(at), len),
                Lookup::Zero { len } => (None, len),
                Lookup::Engine => {
                    if here.participant.leave(generation) {
                        self.tell_poll(disk);
                    }
                    return false;
                }
            };
            parts.push(Part {
                start: start as usize,
                at,
                len,
            });
            start += len;
        }
        task.run.generation = Some(generation);
        task.run.sync = task.asked.action == Action::Write { fua: true };
        task.run.hole = access == Access::Read && parts.iter().all(|part| part.at.is_none());
        task.run.pending = 1;
        if !task.run.hole {
            let parts = std::mem::take(parts);
            self.run_parts(id, disk, &parts, access);
            self.agenda.parts = parts;
        }
        self.part_ended(id, Ok(()));
        true
    }

    fn run_parts(&mut self, id: u32, disk: u32, parts: &[Part], access: Access) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        let len = task.asked.len as usize;
        let buffer = task
            .asked
            .buffer
            .get_or_insert_with(|| self.pool.take(len))
            .clone();
        for part in parts {
            let range = part.start..part.start + part.len as usize;
            let Some(at) = part.at else {
                buffer.zero(range);
                continue;
            };
            if let Some(task) = self.tasks.get_mut(id) {
                task.run.pending += 1;
            }
            let span = Span::new(access == Access::Write, buffer.clone(), range, at.0);
            self.transfer(Purpose::Part(id), disk, span);
        }
    }

    /// One file operation of a task that went by the map has ended.
    pub(super) fn part_ended(&mut self, id: u32, result: io::Result<()>) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        if let Err(error) = result {
            task.run.error.get_or_insert(error);
        }
        task.run.pending -= 1;
        if task.run.pending > 0 {
            return;
        }
        if let (Some(generation), Some((disk, _))) = (task.run.generation.take(), task.place)
            && let Some(here) = self.disks.get_mut(disk)
            && here.participant.leave(generation)
        {
            self.tell_poll(disk);
        }
        self.ran(id);
    }

    /// The engine is done with a request of this worker.
    pub(super) fn engine_answered(&mut self, completion: Completion) {
        let (_, id) = super::disks::owner_of(completion.request);
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        match completion.result {
            Ok(Done::Done) => {}
            Ok(Done::Extents(extents)) => task.run.extents = extents,
            Ok(Done::Compacted(how_far)) => task.run.compacted = Some(how_far),
            Err(error) => task.run.error = Some(io_error(error)),
        }
        self.ran(id);
    }

    /// All that a task does to the file is done, but for making it durable.
    fn ran(&mut self, id: u32) {
        let Some(task) = self.tasks.get_mut(id) else {
            return;
        };
        if std::mem::take(&mut task.run.sync) && task.run.error.is_none() {
            self.sync(id);
        } else {
            self.finish(id);
        }
    }

    /// Make durable what completed before, a task's own write included.
    fn sync(&mut self, id: u32) {
        let Some((disk, _)) = self.tasks.get(id).and_then(|task| task.place) else {
            return;
        };
        let Some(here) = self.disks.get(disk) else {
            return;
        };
        if here.disk.read_only() {
            self.finish(id);
        } else if here.disk.map().flush_needs_engine() {
            self.tell_request(disk, id, Request::Flush);
        } else {
            self.queue_flush(disk, id);
        }
    }

    /// A flush that a task waited for has ended.
    pub(super) fn flushed(&mut self, id: u32, result: io::Result<()>) {
        match result {
            Ok(()) => self.finish(id),
            Err(error) => self.fail(id, error),
        }
    }

    /// End a task with an error.
    pub(super) fn fail(&mut self, id: u32, error: io::Error) {
        if let Some(task) = self.tasks.get_mut(id) {
            task.run.error = Some(error);
            self.finish(id);
        }
    }

    /// A task is over: tell the tap, free its range, count, answer.
    pub(super) fn finish(&mut self, id: u32) {
        let Some(mut task) = self.tasks.remove(id) else {
            return;
        };
        let export = task.export;
        if let Some(tap) = task.tap.take() {
            tell_tap(&mut task, tap.as_ref());
        }
        if task.locked {
            self.unlock(export, id);
        }
        if let Some(here) = self.exports.get(export)
            && let Some(counters) = here.shared.counters.get(usize::from(self.number))
        {
            let took = self.life.now.saturating_duration_since(task.began);
            counters.count(
                task.asked.action.kind(),
                task.asked.len,
                task.run.error.is_some(),
                took,
            );
        }
        let place = task.place;
        self.answer(task);
        if let Some((disk, era)) = place {
            self.unuse_disk(disk);
            self.end_era(export, era);
        }
    }

    /// Free a task's range and let those go on that waited for it.
    fn unlock(&mut self, export: u32, id: u32) {
        let Some(here) = self.exports.get(export) else {
            return;
        };
        for (worker, task) in here.shared.locks.release((self.number, id)) {
            if worker == self.number {
                self.agenda.granted.push(task);
            } else {
                let _ = self.crew.inbox(worker).post(Message::Granted { task });
            }
        }
    }
}

/// Show a change to the tap; one that failed may have been made in part.
fn tell_tap(task: &mut Task, tap: &dyn WriteTap) {
    let len = task.asked.len;
    let sent = task.run.sent.take();
    let change = match (task.asked.action, task.asked.buffer.take()) {
        _ if task.run.error.is_some() => Change::Unknown(len),
        (Action::Write { .. }, Some(buffer)) => Change::Data(into_bytes(buffer, len as usize)),
        (Action::Write { .. }, None) => sent.map_or(Change::Unknown(len), Change::Data),
        _ => Change::Zeroes(len),
    };
    tap.changed(GuestOffset(task.asked.offset), change);
}

/// An engine's error in the words of system calls, with its text kept.
fn io_error(error: vdisk::Error) -> io::Error {
    use vdisk::ErrorKind;
    let kind = match error.kind() {
        ErrorKind::NoSpace => io::ErrorKind::StorageFull,
        ErrorKind::InvalidArgument => io::ErrorKind::InvalidInput,
        ErrorKind::NotOwned => io::ErrorKind::PermissionDenied,
        ErrorKind::Unsupported => io::ErrorKind::Unsupported,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::Errno;
    use crate::worker::answer::errno_of;

    #[test]
    fn a_client_learns_what_kind_of_failure_it_was() {
        use vdisk::ErrorKind;
        for (kind, expected) in [
            (ErrorKind::NoSpace, Errno::NoSpace),
            (ErrorKind::Io, Errno::Io),
            (ErrorKind::Corrupt, Errno::Io),
            (ErrorKind::NotOwned, Errno::NotPermitted),
            (ErrorKind::InvalidArgument, Errno::Invalid),
        ] {
            let error = io_error(vdisk::Error::new(kind, "made to fail"));
            assert_eq!(errno_of(&error), expected, "{error}");
        }
        for (number, expected) in [
            (libc::ENOSPC, Errno::NoSpace),
            (libc::EDQUOT, Errno::NoSpace),
            (libc::EFBIG, Errno::NoSpace),
            (libc::EIO, Errno::Io),
            (libc::EROFS, Errno::NotPermitted),
            (libc::ENOMEM, Errno::OutOfMemory),
        ] {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(errno_of(&error), expected, "{error}");
        }
    }
}
