//! What becomes of a request that ended: a reply to its client, or an answer within this process.

use std::io;

use bytes::Bytes;
use vdisk::engine::{Compacted, Extent};

use crate::export::LocalReply;
use crate::nbd::wire::allocation;
use crate::nbd::{Command, Errno, NbdRequest};
use crate::uring::{ALIGNMENT, IoBuffer};

use super::Worker;
use super::action::Action;
use super::task::{Asked, From, Task};

/// What a client is told of a request that went well.
pub(super) enum Answer {
    /// It was done.
    Done,
    /// The bytes read, and how many there are.
    Data(IoBuffer, usize),
    /// The bytes read are all zero.
    Hole,
    /// The extents.
    Extents(Vec<Extent>),
    /// How far a compaction is.
    Compacted(Compacted),
}

/// What a reply says of its request.
pub(super) struct Reply {
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Whether one extent is enough.
    pub(super) one: bool,
    /// Bytes that the request counted for.
    pub(super) carried: usize,
}

/// How many bytes of buffers a request stands for.
pub(super) fn carried(action: Action, len: u64) -> usize {
    match action {
        Action::Read | Action::Write { .. } => len as usize,
        _ => 0,
    }
}

/// The first `len` bytes of a buffer, to be used on any thread; without a copy where that does not
/// waste much memory and nobody else holds it.
pub(super) fn into_bytes(buffer: IoBuffer, len: usize) -> Bytes {
    if len >= ALIGNMENT && buffer.capacity() <= 2 * len {
        match buffer.into_aligned() {
            Ok(aligned) => return Bytes::from_owner(aligned).slice(..len),
            Err(shared) => return copied(&shared, len),
        }
    }
    copied(&buffer, len)
}

fn copied(buffer: &IoBuffer, len: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(len);
    buffer.copy_out(0..len, &mut bytes);
    Bytes::from(bytes)
}

impl Worker {
    /// Tell whoever made a request how it went.
    pub(super) fn answer(&mut self, task: Task) {
        let Task { asked, run, .. } = task;
        #[rustfmt::skip]
        let Asked { from, action, offset, len, buffer } = asked;
        let result = match run.error {
            Some(error) => Err(error),
            None if action == Action::Status => Ok(Answer::Extents(run.extents)),
            None if action == Action::Read => Ok(match (run.hole, buffer) {
                (false, Some(buffer)) => Answer::Data(buffer, len as usize),
                _ => Answer::Hole,
            }),
            None => {
                if let Some(buffer) = buffer {
                    self.pool.give(buffer);
                }
                Ok(run.compacted.map_or(Answer::Done, Answer::Compacted))
            }
        };
        match from {
            From::Session {
                session,
                cookie,
                one,
            } => {
                let reply = Reply {
                    cookie,
                    offset,
                    len,
                    one,
                    carried: carried(action, len),
                };
                self.reply(session, &reply, result);
            }
            From::Queue { queue, request } => {
                // What was read is where the guest wants it.
                let hole = result.map(|answer| matches!(answer, Answer::Hole));
                self.step_ended(queue, request, hole);
            }
            From::Child(question) => self.parent_answered(*question, result),
            From::Local(done) => done(result.map(|answer| match answer {
                Answer::Done => LocalReply::Done,
                Answer::Extents(extents) => LocalReply::Extents(extents),
                Answer::Compacted(how_far) => LocalReply::Compacted(how_far),
                Answer::Data(buffer, len) => LocalReply::Data(into_bytes(buffer, len)),
                Answer::Hole => LocalReply::Data(Bytes::from(vec![0; len as usize])),
            })),
        }
    }
}

/// What a client's request asks of the disk.
pub(super) fn action_of(request: &NbdRequest) -> Action {
    let fua = request.flags.fua;
    match request.command {
        Command::Read => Action::Read,
        Command::Write => Action::Write { fua },
        Command::Flush => Action::Flush,
        Command::Trim => Action::Discard { fua },
        Command::WriteZeroes => Action::Zero {
            unmap: !request.flags.no_hole,
            fua,
        },
        Command::BlockStatus => Action::Status,
    }
}

pub(super) fn errno_of(error: &io::Error) -> Errno {
    if error.raw_os_error() == Some(libc::ESHUTDOWN) {
        return Errno::Shutdown;
    }
    Errno::from(error)
}

/// Extents as the protocol tells them; neighbours that are alike become one.
pub(super) fn extents_told(extents: &[Extent], one: bool) -> Vec<(u32, u32)> {
    let mut told: Vec<(u32, u32)> = Vec::with_capacity(extents.len());
    for extent in extents {
        let hole = if extent.allocated {
            0
        } else {
            allocation::HOLE
        };
        let zero = if extent.zero { allocation::ZERO } else { 0 };
        let len = u32::try_from(extent.len).unwrap_or(u32::MAX);
        match told.last_mut() {
            Some((last, flags)) if *flags == hole | zero && last.checked_add(len).is_some() => {
                *last += len;
            }
            _ => told.push((len, hole | zero)),
        }
    }
    if one {
        told.truncate(1);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_that_are_alike_are_told_as_one() {
        let extent = |len, allocated, zero| Extent {
            len,
            allocated,
            zero,
        };
        let extents = [
            extent(10, true, false),
            extent(5, true, false),
            extent(7, false, true),
            extent(1, true, true),
        ];
        assert_eq!(extents_told(&extents, false), [(15, 0), (7, 3), (1, 2)]);
        assert_eq!(extents_told(&extents, true), [(15, 0)]);
    }
}
