//! Mapping requests: from ranges of the disk to operations on the file.

use super::ops::Purpose;
use super::requests::{Stage, failed};
use super::vhdx::Sectors;
use super::{Engine, Extent, FileOpKind, Outcome, Request, RequestId};
use crate::error::{Error, ErrorKind};
use crate::units::{FileOffset, GuestOffset};

/// A status request in more extents than this is answered up to there.
const MOST_EXTENTS: usize = 4096;

/// What became of one run of a request's bytes.
pub(super) enum Run {
    /// They lie in the file; once written, these sectors are the child's own.
    File {
        at: FileOffset,
        len: u64,
        sets: Option<Sectors>,
    },
    /// They lie in the parent.
    Parent { len: u64 },
    /// They read as zero, or need nothing done.
    Zero { len: u64 },
    /// The request waits; it is in the list of whatever it waits for.
    Blocked,
    /// They can not be served.
    Failed(Error),
}

impl Engine {
    /// Take `id` as far as it goes now.
    pub(super) fn step(&mut self, id: RequestId) {
        let Some(active) = self.requests.get(id) else {
            return;
        };
        if active.stage != Stage::Mapping {
            return;
        }
        let request = active.request;
        if let Some(error) = self.refuse(&request) {
            self.finish_with(id, error);
            return;
        }
        match request {
            Request::Flush => {
                self.set_stage(id, Stage::Flushing);
                self.flush_wait(id);
            }
            Request::Park { mark } => self.park(id, mark),
            Request::Resize { size, discard_data } => self.resize(id, size, discard_data),
            Request::Compact { defragment, budget } => self.compact(id, defragment, budget),
            Request::Checkpoint { name, time } => self.checkpoint(id, name, time),
            Request::Status { .. } | Request::Read { .. } => self.map_range(id),
            Request::Write { .. } | Request::WriteZeroes { .. } | Request::Discard { .. } => {
                if self.fence.shuts_out(id) {
                    self.requests.block(id);
                } else {
                    self.map_range(id);
                }
            }
        }
    }

    fn refuse(&self, request: &Request) -> Option<Error> {
        if let Some(why) = &self.failed
            && (request.changes() || request.range().is_none())
        {
            return Some(failed(why));
        }
        if request.changes() && self.map.read_only() {
            return Some(Error::invalid("the disk is open read-only"));
        }
        let (offset, len) = request.range()?;
        let end = offset.checked_add(len);
        (end.is_none_or(|end| end > self.map.size())).then(|| {
            Error::invalid(format!(
                "{len} bytes at {offset:#x} go beyond the disk of {} bytes",
                self.map.size()
            ))
        })
    }

    fn set_stage(&mut self, id: RequestId, stage: Stage) {
        if let Some(active) = self.requests.get_mut(id) {
            active.stage = stage;
        }
    }

    fn map_range(&mut self, id: RequestId) {
        loop {
            let Some(active) = self.requests.get(id) else {
                return;
            };
            let (request, cursor) = (active.request, active.cursor);
            let (offset, len) = request.range().unwrap_or((0, 0));
            if cursor == len || active.extents.len() >= MOST_EXTENTS {
                break;
            }
            let moved = match self.run_in_block(id, &request, offset + cursor, len - cursor) {
                Run::Blocked => return,
                Run::Failed(error) => {
                    if let Some(active) = self.requests.get_mut(id) {
                        active.error.get_or_insert(error);
                    }
                    break;
                }
                Run::File { at, len, sets } => {
                    self.emit_file(id, &request, cursor, (at, len, sets))
                }
                Run::Parent { len } => self.emit_parent(id, &request, cursor, len),
                Run::Zero { len } => Some(self.emit_zero(id, &request, cursor, len)),
            };
            let Some(moved) = moved else { return };
            if let Some(active) = self.requests.get_mut(id) {
                active.cursor += moved;
            }
        }
        self.set_stage(id, Stage::Running);
        self.check_ended(id);
    }

    /// Operations for a run that lies in the file; `None` when the request must be alone first.
    fn emit_file(
        &mut self,
        id: RequestId,
        request: &Request,
        start: u64,
        (at, len, sets): (FileOffset, u64, Option<Sectors>),
    ) -> Option<u64> {
        let aligned = (at.0 | len) & (self.map.shape().alignment - 1) == 0;
        let kind = match request {
            Request::Read { .. } => FileOpKind::ReadRequest {
                request: id,
                start,
                at,
                len,
            },
            Request::Write { .. } if aligned => FileOpKind::WriteRequest {
                request: id,
                start,
                at,
                len,
            },
            Request::Write { .. } if self.fence.holds(id) => FileOpKind::MergeRequest {
                request: id,
                start,
                at,
                len,
            },
            Request::Write { .. } => {
                self.fence_want(id);
                return None;
            }
            Request::WriteZeroes { unmap, .. } => FileOpKind::Zero {
                at,
                len,
                keep: !unmap,
            },
            Request::Discard { .. } => FileOpKind::Zero {
                at,
                len,
                keep: false,
            },
            Request::Status { .. } => {
                self.ask_extents(id, FileOpKind::Holes { at, len });
                return None;
            }
            Request::Flush
            | Request::Park { .. }
            | Request::Resize { .. }
            | Request::Compact { .. }
            | Request::Checkpoint { .. } => return Some(len),
        };
        self.push_part(id, kind, sets);
        Some(len)
    }

    /// Ask what is allocated. One question at a time: the answer says how far to go on, and extents
    /// come in order.
    fn ask_extents(&mut self, id: RequestId, kind: FileOpKind) {
        self.count_op(id);
        self.ops.push(Purpose::Holes { request: id }, kind);
    }

    /// Operations for a run that lies in the parent; `None` when its answer must be waited for.
    fn emit_parent(
        &mut self,
        id: RequestId,
        request: &Request,
        start: u64,
        len: u64,
    ) -> Option<u64> {
        let first = request.range().map_or(0, |(offset, _)| offset);
        let offset = GuestOffset(first + start);
        match request {
            Request::Read { .. } => {
                let kind = FileOpKind::ReadParent {
                    request: id,
                    start,
                    offset,
                    len,
                };
                self.push_part(id, kind, None);
            }
            Request::Status { .. } => {
                self.ask_extents(id, FileOpKind::StatusParent { offset, len });
                return None;
            }
            // What the guest discards may stay as it is; nothing else is left to the parent.
            _ => {}
        }
        Some(len)
    }

    fn emit_zero(&mut self, id: RequestId, request: &Request, start: u64, len: u64) -> u64 {
        match request {
            Request::Read { .. } => {
                self.push_part(
                    id,
                    FileOpKind::ZeroRequest {
                        request: id,
                        start,
                        len,
                    },
                    None,
                );
            }
            Request::Status { .. } => {
                self.push_extent(
                    id,
                    Extent {
                        len,
                        allocated: false,
                        zero: true,
                    },
                );
            }
            _ => {}
        }
        len
    }

    /// Hand out an operation for `id` that keeps the map's generation in use until it ends.
    pub(super) fn push_part(&mut self, id: RequestId, kind: FileOpKind, sets: Option<Sectors>) {
        let generation = self.me.enter();
        self.count_op(id);
        if let Some(sectors) = sets {
            self.pin_bits(sectors);
        }
        self.ops.push(
            Purpose::Part {
                request: id,
                generation,
                sets,
            },
            kind,
        );
    }

    pub(super) fn count_op(&mut self, id: RequestId) {
        if let Some(active) = self.requests.get_mut(id) {
            active.outstanding += 1;
        }
    }

    fn push_extent(&mut self, id: RequestId, extent: Extent) {
        let Some(active) = self.requests.get_mut(id) else {
            return;
        };
        match active.extents.last_mut() {
            Some(last) if (last.allocated, last.zero) == (extent.allocated, extent.zero) => {
                last.len += extent.len;
            }
            _ => active.extents.push(extent),
        }
    }

    pub(super) fn part_ended(&mut self, id: RequestId, outcome: Outcome) {
        let Some(active) = self.requests.get_mut(id) else {
            return;
        };
        active.outstanding -= 1;
        if let Outcome::Failed(error) = outcome {
            active
                .error
                .get_or_insert_with(|| Error::io("the image file refused the request", error));
        }
        self.check_ended(id);
    }

    /// What the request needed of the parent could not be brought.
    pub(super) fn copy_up_failed(&mut self, id: RequestId, error: std::io::Error) {
        self.set_stage(id, Stage::Running);
        self.part_ended(id, Outcome::Failed(error));
    }

    pub(super) fn holes_ended(&mut self, id: RequestId, outcome: Outcome) {
        let Outcome::Holes(extents) = outcome else {
            self.set_stage(id, Stage::Running);
            return self.part_ended(id, outcome);
        };
        for extent in extents {
            self.push_extent(id, extent);
            if let Some(active) = self.requests.get_mut(id) {
                active.cursor += extent.len;
            }
        }
        if let Some(active) = self.requests.get_mut(id) {
            active.outstanding -= 1;
        }
        self.step(id);
    }

    fn check_ended(&mut self, id: RequestId) {
        let Some(active) = self.requests.get_mut(id) else {
            return;
        };
        if active.stage != Stage::Running || active.outstanding != 0 {
            return;
        }
        if active.error.is_some() || !active.request.durable() {
            self.requests.finish(id);
        } else {
            active.stage = Stage::Flushing;
            self.flush_wait(id);
        }
        self.fence_release(id);
        self.wake = true;
    }

    /// End a request with `error`, once the operations on its buffer have ended.
    pub(super) fn finish_with(&mut self, id: RequestId, error: Error) {
        if let Some(active) = self.requests.get_mut(id) {
            active.error.get_or_insert(error);
            active.stage = Stage::Running;
            self.check_ended(id);
        }
    }

    /// The error of a disk that has no room.
    pub(super) fn no_space(what: &str) -> Error {
        Error::new(ErrorKind::NoSpace, what)
    }
}
