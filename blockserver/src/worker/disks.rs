//! Disks as one worker sees them: words exchanged with the engine, flushes coalesced.

use std::io;
use std::sync::Arc;

use vdisk::engine::{
    Completion, FileOp, FileOpKind, OpId, Outcome, Participant, Request, RequestId,
};

use crate::export::Disk;
use crate::uring::{Descriptor, Op};

use super::{Message, Token, Worker};

/// A disk on this worker.
pub(super) struct DiskHere {
    pub(super) disk: Arc<Disk>,
    pub(super) file: Descriptor,
    pub(super) participant: Participant,
    /// How many exports and tasks here use it.
    users: usize,
    /// What the engine is to be told, all at once.
    told: Told,
    /// Tasks that wait for the next flush, and those that the running one is for.
    flush_next: Vec<u32>,
    flush_now: Vec<u32>,
    /// Whether it is on the agenda.
    noted: bool,
}

#[derive(Default)]
struct Told {
    requests: Vec<(RequestId, Request)>,
    ended: Vec<(OpId, Outcome)>,
    poll: bool,
    /// Why a flush without it failed.
    failed: Option<String>,
}

impl Told {
    fn is_empty(&self) -> bool {
        let words = self.requests.is_empty() && self.ended.is_empty();
        words && !self.poll && self.failed.is_none()
    }
}

/// The name of a task for engines: unique among all workers.
pub(super) fn request_id(worker: u16, task: u32) -> RequestId {
    RequestId(u64::from(worker) << 32 | u64::from(task))
}

/// The worker and the task that [`request_id`] named.
pub(super) fn owner_of(request: RequestId) -> (u16, u32) {
    ((request.0 >> 32) as u16, request.0 as u32)
}

/// The request whose buffer an operation moves.
fn request_of(op: &FileOpKind) -> Option<RequestId> {
    match op {
        FileOpKind::ReadRequest { request, .. }
        | FileOpKind::WriteRequest { request, .. }
        | FileOpKind::MergeRequest { request, .. }
        | FileOpKind::ReadParent { request, .. }
        | FileOpKind::ZeroRequest { request, .. } => Some(*request),
        _ => None,
    }
}

impl Worker {
    /// The disk as it is here; made when it is seen for the first time.
    pub(super) fn disk_here(&mut self, disk: &Arc<Disk>) -> u32 {
        let known = self
            .disks
            .iter()
            .find(|(_, here)| here.disk.id() == disk.id());
        if let Some((index, _)) = known {
            return index;
        }
        let here = DiskHere {
            file: Descriptor::of(disk.file()),
            participant: disk.map().register(),
            disk: Arc::clone(disk),
            users: 0,
            told: Told::default(),
            flush_next: Vec::new(),
            flush_now: Vec::new(),
            noted: false,
        };
        self.disks.insert(here)
    }

    /// [`Self::disk_here`], to be kept until [`Self::unuse_disk`].
    pub(super) fn use_disk(&mut self, disk: &Arc<Disk>) -> u32 {
        let index = self.disk_here(disk);
        self.count_user(index);
        index
    }

    /// One more task uses a disk that is here.
    pub(super) fn count_user(&mut self, disk: u32) {
        if let Some(here) = self.disks.get_mut(disk) {
            here.users += 1;
        }
    }

    /// One user less.
    pub(super) fn unuse_disk(&mut self, disk: u32) {
        if let Some(here) = self.disks.get_mut(disk) {
            here.users -= 1;
        }
        self.release_disk(disk);
    }

    /// Forget a disk that nobody uses, unless the engine's own work still goes on here.
    pub(super) fn release_disk(&mut self, disk: u32) {
        let unused = |here: &DiskHere| here.users == 0 && here.told.is_empty() && !here.noted;
        if self.disks.get(disk).is_some_and(unused)
            && !self
                .transfers
                .iter()
                .any(|(_, transfer)| transfer.disk == disk)
        {
            self.disks.remove(disk);
        }
    }

    fn note_disk(&mut self, disk: u32) -> Option<&mut Told> {
        let here = self.disks.get_mut(disk)?;
        if !here.noted {
            here.noted = true;
            self.agenda.disks.push(disk);
        }
        Some(&mut here.told)
    }

    /// Hand a task's request to the engine.
    pub(super) fn tell_request(&mut self, disk: u32, task: u32, request: Request) {
        let id = request_id(self.number, task);
        if let Some(told) = self.note_disk(disk) {
            told.requests.push((id, request));
        }
    }

    /// Tell the engine how an operation went.
    pub(super) fn tell_outcome(&mut self, disk: u32, op: OpId, outcome: Outcome) {
        if let Some(told) = self.note_disk(disk) {
            told.ended.push((op, outcome));
        }
    }

    /// Have the engine look again at what waits for workers.
    pub(super) fn tell_poll(&mut self, disk: u32) {
        if let Some(told) = self.note_disk(disk) {
            told.poll = true;
        }
    }

    /// Exchange words with the engine: what it is told against what it wants done.
    pub(super) fn pump(&mut self, disk: u32) {
        let Some(here) = self.disks.get_mut(disk) else {
            return;
        };
        here.noted = false;
        let told = std::mem::take(&mut here.told);
        let shared = Arc::clone(&here.disk);
        let mut ops = Vec::new();
        let mut completions = Vec::new();
        let mut engine = shared.engine();
        if let Some(why) = told.failed {
            engine.fail(&why);
        }
        for (op, outcome) in told.ended {
            engine.complete(op, outcome);
        }
        for (id, request) in told.requests {
            engine.submit(id, request);
        }
        if told.poll {
            engine.poll();
        }
        while let Some(op) = engine.next_op() {
            ops.push(op);
        }
        while let Some(completion) = engine.next_completion() {
            completions.push(completion);
        }
        drop(engine);
        self.hand_out_completions(completions);
        self.hand_out_ops(disk, &shared, ops);
    }

    /// Each operation on a request's buffer goes to the worker that has the buffer.
    fn hand_out_ops(&mut self, disk: u32, shared: &Arc<Disk>, ops: Vec<FileOp>) {
        let number = self.number;
        let worker = |op: &FileOp| request_of(&op.kind).map_or(number, |id| owner_of(id).0);
        let (own, foreign): (Vec<_>, Vec<_>) = ops.into_iter().partition(|op| worker(op) == number);
        let mut batches: Vec<(u16, Vec<FileOp>)> = Vec::new();
        for op in foreign {
            let owner = worker(&op);
            match batches.iter_mut().find(|(of, _)| *of == owner) {
                Some((_, batch)) => batch.push(op),
                None => batches.push((owner, vec![op])),
            }
        }
        for (owner, ops) in batches {
            let disk = Arc::clone(shared);
            // A worker that has ended has no requests, so none of these is lost.
            let _ = self
                .crew
                .inbox(owner)
                .post(Message::Operations { disk, ops });
        }
        self.carry_out(disk, own);
        self.release_disk(disk);
    }

    fn hand_out_completions(&mut self, all: Vec<Completion>) {
        let mut foreign: Vec<(u16, Vec<Completion>)> = Vec::new();
        for completion in all {
            let (owner, _) = owner_of(completion.request);
            if owner == self.number {
                self.engine_answered(completion);
                continue;
            }
            match foreign.iter_mut().find(|(of, _)| *of == owner) {
                Some((_, batch)) => batch.push(completion),
                None => foreign.push((owner, vec![completion])),
            }
        }
        for (owner, completions) in foreign {
            let _ = self
                .crew
                .inbox(owner)
                .post(Message::Completions { completions });
        }
    }

    /// Make everything that completed before durable, for a task, without the engine.
    pub(super) fn queue_flush(&mut self, disk: u32, task: u32) {
        if let Some(here) = self.disks.get_mut(disk) {
            here.flush_next.push(task);
            self.agenda.flushes.push(disk);
        }
    }

    /// One flush runs at a time, for all that had come when it began.
    pub(super) fn start_flush(&mut self, disk: u32) {
        let Some(here) = self.disks.get_mut(disk) else {
            return;
        };
        if here.flush_now.is_empty() && !here.flush_next.is_empty() {
            std::mem::swap(&mut here.flush_now, &mut here.flush_next);
            self.ring
                .submit(Op::Sync { file: here.file }, Token::Sync(disk));
        }
    }

    /// The running flush ended.
    pub(super) fn synced(&mut self, disk: u32, result: &io::Result<usize>) {
        let Some(here) = self.disks.get_mut(disk) else {
            return;
        };
        // Another's flush may have heard of a failure that concerns what this one covered.
        let lost = result.is_ok() && here.disk.has_failed();
        let lost = lost.then(|| Err(io::Error::from_raw_os_error(libc::EIO)));
        let result = lost.as_ref().unwrap_or(result);
        let waiting = std::mem::take(&mut here.flush_now);
        if let Err(error) = result {
            tracing::error!(%error, "a flush failed; the disk takes no more changes");
            here.disk.set_failed();
            let why = error.to_string();
            if let Some(told) = self.note_disk(disk) {
                told.failed = Some(why);
            }
        }
        for task in waiting {
            let result = result.as_ref().map(drop).map_err(copy_of);
            self.flushed(task, result);
        }
        self.start_flush(disk);
    }
}

/// The same error once more.
fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_request_says_whose_it_is() {
        for (worker, task) in [(0, 0), (3, 7), (u16::MAX, u32::MAX)] {
            assert_eq!(owner_of(request_id(worker, task)), (worker, task));
        }
    }
}
