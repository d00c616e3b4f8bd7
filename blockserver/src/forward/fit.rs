//! A request as the server elsewhere takes it, and its answer as one of a disk.
//!
//! Servers of other kinds offer less than ours. What can be had from them by other requests is asked so: zeroes are
//! written, and what has to be durable when it is answered is flushed. Must never answer well what was not done.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use vdisk::engine::Extent;

use super::{Done, ForwardReply, ForwardRequest, Job, Shared, State};
use crate::nbd::client::{Answer, ClientRequest, Completion, RemoteExport, RemoteExtent};
use crate::nbd::wire::{allocation, transmission};
use crate::nbd::{Command, CommandFlags};
use crate::worker::Action;

/// As many zeroes as are written at once.
static ZEROES: [u8; 256 << 10] = [0; 256 << 10];

/// What to do about a request.
pub(super) enum Fit {
    Send(Job),
    /// Others that do the same wait in its place.
    Instead,
    /// The server has no part in it.
    Answer(Done, io::Result<ForwardReply>),
}

/// A request as this server takes it.
pub(super) fn fit(shared: &Arc<Shared>, state: &mut State, remote: &RemoteExport, job: Job) -> Fit {
    let Job { request, .. } = &job;
    let whole = |allocated| {
        let len = request.len;
        Ok(ForwardReply::Extents(vec![Extent {
            len,
            allocated,
            zero: false,
        }]))
    };
    let answer = match request.action {
        Action::Status if remote.allocation.is_none() => whole(true),
        Action::Discard { .. } if !remote.has(transmission::SEND_TRIM) => Ok(ForwardReply::Done),
        Action::Flush if !remote.has(transmission::SEND_FLUSH) => {
            // It never says that anything is durable, so nothing is kept for long.
            let all = state.kept.next();
            state.kept.forget_before(all);
            state.kept.flushing = false;
            Ok(ForwardReply::Done)
        }
        Action::Zero { fua, .. } if !remote.has(transmission::SEND_WRITE_ZEROES) => {
            write_zeroes(state, job, fua);
            return Fit::Instead;
        }
        _ if !remote.has(transmission::SEND_FUA) => {
            return Fit::Send(flush_behind(shared, job, state.through));
        }
        _ => return Fit::Send(job),
    };
    Fit::Answer(job.done, answer)
}

/// Writes of zeroes in place of a request, in front of what waits.
fn write_zeroes(state: &mut State, job: Job, fua: bool) {
    let Job {
        number,
        request,
        done,
        ..
    } = job;
    let piece = ZEROES.len() as u64;
    let pieces = request.len.div_ceil(piece).max(1);
    let parts = Arc::new(Mutex::new(Parts {
        left: pieces,
        failed: None,
        done: Some(done),
    }));
    for at in (0..pieces).rev() {
        let begin = at * piece;
        let len = (request.len - begin).min(piece);
        let parts = Arc::clone(&parts);
        state.waiting.push_front(Job {
            number,
            request: ForwardRequest {
                action: Action::Write { fua },
                offset: request.offset + begin,
                len,
                data: Bytes::from_static(ZEROES.get(..len as usize).unwrap_or_default()),
            },
            covers: 0,
            done: Box::new(move |result| Parts::end(&parts, result)),
        });
    }
}

/// Requests that are answered as one.
struct Parts {
    left: u64,
    failed: Option<io::Error>,
    done: Option<Done>,
}

impl Parts {
    fn end(parts: &Mutex<Self>, result: io::Result<ForwardReply>) {
        let mut parts = parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.left -= 1;
        if let Err(error) = result {
            parts.failed = Some(error);
        }
        if parts.left > 0 {
            return;
        }
        let result = parts.failed.take().map_or(Ok(ForwardReply::Done), Err);
        let done = parts.done.take();
        drop(parts);
        if let Some(done) = done {
            done(result);
        }
    }
}

/// The same request, answered only once a flush behind it has succeeded if it has to be durable then.
fn flush_behind(shared: &Arc<Shared>, mut job: Job, through: bool) -> Job {
    let durable = match &mut job.request.action {
        Action::Write { fua } | Action::Zero { fua, .. } | Action::Discard { fua } => {
            std::mem::replace(fua, false) || through
        }
        _ => false,
    };
    if !durable {
        return job;
    }
    let (shared, done) = (Arc::clone(shared), job.done);
    job.done = Box::new(move |result| match result {
        Ok(_) => shared.flush(done),
        Err(error) => done(Err(error)),
    });
    job
}

impl Shared {
    /// Have the server flush what it has answered.
    fn flush(&self, done: Done) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            done(Err(io::Error::from_raw_os_error(libc::EIO)));
            return;
        }
        let number = state.next;
        state.next += 1;
        let request = ForwardRequest::flush();
        #[rustfmt::skip]
        state.waiting.push_back(Job { number, request, covers: 0, done });
        self.changed.notify_all();
    }
}

/// As it is sent; `through` if a change has to be durable when it is answered.
pub(super) fn wire_request(request: &ForwardRequest, through: bool) -> ClientRequest<'_> {
    let (offset, len) = (request.offset, request.len as u32);
    let flags = |fua, no_hole| CommandFlags {
        fua: fua || through,
        no_hole,
        ..CommandFlags::default()
    };
    match request.action {
        Action::Read => ClientRequest::read(offset, len),
        Action::Write { fua } => {
            ClientRequest::write(offset, &request.data).with(flags(fua, false))
        }
        Action::Zero { unmap, fua } => {
            ClientRequest::plain(Command::WriteZeroes, offset, len).with(flags(fua, !unmap))
        }
        Action::Discard { fua } => {
            ClientRequest::plain(Command::Trim, offset, len).with(flags(fua, false))
        }
        Action::Status => ClientRequest::plain(Command::BlockStatus, offset, len),
        // Only this process parks, and its requests are not forwarded.
        Action::Flush
        | Action::Park { .. }
        | Action::Resize { .. }
        | Action::Compact { .. }
        | Action::Checkpoint { .. } => ClientRequest::flush(),
    }
}

/// What a disk would have answered.
pub(super) fn reply(completion: Completion, len: u64) -> io::Result<ForwardReply> {
    match completion.result {
        Ok(Answer::Done) => Ok(ForwardReply::Done),
        Ok(Answer::Data(data)) => Ok(ForwardReply::Data(data)),
        Ok(Answer::Extents(extents)) => Ok(ForwardReply::Extents(extents_of(&extents, len))),
        Err(refusal) => Err(io::Error::from_raw_os_error(
            refusal.errno.to_wire().cast_signed(),
        )),
    }
}

/// A server's extents, none beyond the range asked about.
fn extents_of(remote: &[RemoteExtent], mut left: u64) -> Vec<Extent> {
    let mut extents = Vec::with_capacity(remote.len());
    for one in remote {
        let len = u64::from(one.len).min(left);
        left -= len;
        if len > 0 {
            let allocated = one.flags & allocation::HOLE == 0;
            let zero = one.flags & allocation::ZERO != 0;
            extents.push(Extent {
                len,
                allocated,
                zero,
            });
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(action: Action) -> Job {
        Job {
            number: 0,
            request: ForwardRequest {
                action,
                offset: 0,
                len: 4096,
                data: Bytes::from_static(&[1; 4096]),
            },
            covers: 0,
            done: Box::new(|_| {}),
        }
    }

    /// A server of 1 MiB that has no more than `flags` says.
    fn remote(flags: u16) -> RemoteExport {
        RemoteExport {
            size: 1 << 20,
            flags,
            min_block: 1,
            preferred_block: 4096,
            max_payload: 32 << 20,
            structured: false,
            allocation: None,
        }
    }

    #[test]
    fn what_a_server_without_flush_has_is_not_kept_for_ever() {
        let shared = Arc::new(Shared::default());
        let mut state = State::default();
        for _ in 0..3 * super::super::kept::KEEP_CHANGES {
            let change = job(Action::Write { fua: false });
            let Fit::Send(change) = fit(&shared, &mut state, &remote(0), change) else {
                panic!("it is to be sent");
            };
            state.answered(&change, true);
            while let Some(own) = state.waiting.pop_front() {
                let answered = fit(&shared, &mut state, &remote(0), own);
                assert!(matches!(answered, Fit::Answer(_, Ok(ForwardReply::Done))));
            }
            assert!(state.kept.changes.len() <= super::super::kept::KEEP_CHANGES);
        }
    }

    #[test]
    fn a_foreign_server_rests_also_when_only_a_change_was_being_done_again() {
        let mut state = State {
            late: true,
            ..State::default()
        };
        assert!(!state.rests(), "it has nothing to do");
        state.repeating = Some(1);
        assert!(state.rests());
        state.take_back();
        state.sent.insert(1, job(Action::Flush));
        assert!(state.rests());
        state.late = false;
        assert!(!state.rests(), "it is one of ours");
    }
}
