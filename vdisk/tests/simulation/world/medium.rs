//! The file operations under way, and how each ends: done, failed, or cut off by the power.

use bytes::Bytes;
use vdisk::engine::{Done, Extent, FileOp, FileOpKind, Outcome, RequestId};
use vdisk::storage::{Change, FlushMark, MemoryStorage, Storage};
use vdisk::units::FileOffset;

use super::World;
use crate::simulation::model::{PARENT_SECTORS, SECTOR, parent_read, parent_stamp};

/// A file operation that has not ended.
pub(super) enum Pending {
    Engine {
        op: FileOp,
        mark: Option<FlushMark>,
        merged: Option<(u64, Vec<u8>)>,
    },
    Read {
        request: u64,
        start: u64,
        at: FileOffset,
        len: u64,
    },
    Write {
        request: u64,
        start: u64,
        at: FileOffset,
        len: u64,
    },
    Flush {
        request: u64,
        mark: FlushMark,
    },
}

impl Pending {
    /// The request whose buffer it moves.
    pub(super) fn request(&self) -> Option<u64> {
        match self {
            Self::Engine { op, .. } => match &op.kind {
                FileOpKind::ReadRequest { request, .. }
                | FileOpKind::WriteRequest { request, .. }
                | FileOpKind::MergeRequest { request, .. }
                | FileOpKind::ReadParent { request, .. }
                | FileOpKind::ZeroRequest { request, .. } => Some(request.0),
                _ => None,
            },
            Self::Read { request, .. } | Self::Write { request, .. } => Some(*request),
            Self::Flush { .. } => None,
        }
    }
}

impl World {
    /// Let one pending file operation happen.
    pub fn step(&mut self) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        self.now += 1;
        let chosen = self.random.below(self.pending.len() as u64) as usize;
        match self.pending.swap_remove(chosen) {
            Pending::Engine { op, mark, merged } => self.run_engine_op(op, mark, merged),
            Pending::Read {
                request,
                start,
                at,
                len,
            } => {
                self.read_into(request, start, at, len);
                self.fast_part_ended(request, 1);
            }
            Pending::Write {
                request,
                start,
                at,
                len,
            } => {
                let kind = FileOpKind::WriteRequest {
                    request: RequestId(request),
                    start,
                    at,
                    len,
                };
                let change = self.write_of(request, start, at, len);
                if let Some(error) = self.fault(&kind) {
                    self.apply_part(&change);
                    self.open.get_mut(&request).unwrap().error = Some(error.to_string());
                } else {
                    self.storage.apply(change);
                }
                self.fast_part_ended(request, 1);
            }
            Pending::Flush { request, mark } => match self.fault(&FileOpKind::Flush) {
                Some(error) => {
                    let random = &mut self.random;
                    self.storage
                        .fail_flush(mark, &mut |bound| random.below(bound));
                    self.engine.fail(&error.to_string());
                    self.ended(request, Err(error.to_string()));
                }
                None if self.map.failed() => self.ended(request, Err("a flush failed".into())),
                None => {
                    self.storage.end_flush(mark);
                    self.ended(request, Ok(Done::Done));
                }
            },
        }
        self.drain();
        true
    }

    fn run_engine_op(
        &mut self,
        op: FileOp,
        mark: Option<FlushMark>,
        merged: Option<(u64, Vec<u8>)>,
    ) {
        if let (
            FileOpKind::MergeRequest {
                request,
                start,
                at,
                len,
            },
            None,
        ) = (&op.kind, &merged)
        {
            let merged = self.merge(request.0, *start, *at, *len);
            self.pending.push(Pending::Engine {
                op,
                mark,
                merged: Some(merged),
            });
            return;
        }
        let outcome = match self.fault(&op.kind) {
            Some(error) => {
                self.fail_op(&op.kind, mark, merged);
                Outcome::Failed(error)
            }
            None => self.outcome(&op, mark, merged),
        };
        self.engine.complete(op.id, outcome);
    }

    fn outcome(
        &mut self,
        op: &FileOp,
        mark: Option<FlushMark>,
        merged: Option<(u64, Vec<u8>)>,
    ) -> Outcome {
        match &op.kind {
            FileOpKind::Read { at, len } => {
                let mut buffer = vec![0; *len as usize];
                self.storage.live().get(at.0, &mut buffer);
                return Outcome::Data(buffer.into());
            }
            FileOpKind::ReadRequest {
                request,
                start,
                at,
                len,
            } => {
                self.read_into(request.0, *start, *at, *len);
            }
            FileOpKind::ZeroRequest {
                request,
                start,
                len,
            } => {
                let buffer = &mut self.open.get_mut(&request.0).unwrap().buffer;
                buffer[*start as usize..(*start + *len) as usize].fill(0);
            }
            FileOpKind::ReadParent {
                request,
                start,
                offset,
                len,
            } => {
                let buffer = &mut self.open.get_mut(&request.0).unwrap().buffer;
                let range = *start as usize..(*start + *len) as usize;
                parent_read(offset.0, &mut buffer[range]);
            }
            FileOpKind::Flush => self.storage.end_flush(mark.unwrap()),
            FileOpKind::Reserve { .. } => {}
            FileOpKind::Holes { at, len } => {
                return Outcome::Holes(self.holes(at.0, *len));
            }
            FileOpKind::StatusParent { offset, len } => {
                return Outcome::Holes(self.parent_extents(offset.0, *len));
            }
            FileOpKind::Copy { from, len, .. } if self.is_zero(from.0, *len) => {
                let change = self.change_of(&op.kind).expect("a copy is a change");
                self.storage.apply(change);
                return Outcome::Holes(vec![Extent {
                    len: *len,
                    allocated: false,
                    zero: true,
                }]);
            }
            FileOpKind::MergeRequest { .. } => {
                let (at, bytes) = merged.unwrap();
                self.storage.apply(Change::Write(at, bytes.into()));
            }
            _ => {
                if let Some(change) = self.change_of(&op.kind) {
                    self.storage.apply(change);
                }
            }
        }
        Outcome::Done
    }

    fn is_zero(&self, at: u64, len: u64) -> bool {
        let mut bytes = vec![0; len as usize];
        self.storage.live().get(at, &mut bytes);
        bytes.iter().all(|byte| *byte == 0)
    }

    /// Data and holes of a range; like a file system, perhaps not of all of it.
    fn holes(&mut self, at: u64, len: u64) -> Vec<Extent> {
        const PAGE: u64 = 4096;
        let (mut from, end, most) = (at, at + len, 1 + self.random.below(8));
        let mut extents = Vec::new();
        while from < end && (extents.len() as u64) < most {
            let data = self.storage.next_data(from).unwrap();
            let data = data.map_or(end, |data| data.min(end));
            let zero = data > from;
            let to = if zero {
                data
            } else {
                ((from / PAGE + 1) * PAGE).min(end)
            };
            extents.push(Extent {
                len: to - from,
                allocated: !zero,
                zero,
            });
            from = to;
        }
        extents
    }

    /// The same of the parent: its data in pieces or as one, perhaps not all of it.
    fn parent_extents(&mut self, at: u64, len: u64) -> Vec<Extent> {
        let (first, end) = (at / SECTOR, (at + len) / SECTOR);
        let (fine, most) = (self.random.one_in(2), 1 + self.random.below(8));
        let shows = |sector| parent_stamp(sector) != 0 || !fine && sector < PARENT_SECTORS;
        let (mut from, mut extents) = (first, Vec::new());
        while from < end && (extents.len() as u64) < most {
            let zero = !shows(from);
            let known = end.min(PARENT_SECTORS);
            let to = match from {
                PARENT_SECTORS.. => end,
                _ if fine => (from..known)
                    .find(|sector| shows(*sector) == zero)
                    .unwrap_or(known),
                _ => known,
            };
            extents.push(Extent {
                len: (to - from) * SECTOR,
                allocated: !zero,
                zero,
            });
            from = to;
        }
        extents
    }

    fn merge(&self, request: u64, start: u64, at: FileOffset, len: u64) -> (u64, Vec<u8>) {
        let from = at.0 / self.alignment * self.alignment;
        let to = (at.0 + len).next_multiple_of(self.alignment);
        let mut bytes = vec![0; (to - from) as usize];
        self.storage.live().get(from, &mut bytes);
        let data = &self.open[&request].buffer[start as usize..(start + len) as usize];
        bytes[(at.0 - from) as usize..][..len as usize].copy_from_slice(data);
        (from, bytes)
    }

    fn read_into(&mut self, request: u64, start: u64, at: FileOffset, len: u64) {
        let buffer = &mut self.open.get_mut(&request).unwrap().buffer;
        self.storage
            .live()
            .get(at.0, &mut buffer[start as usize..(start + len) as usize]);
    }

    fn write_of(&self, request: u64, start: u64, at: FileOffset, len: u64) -> Change {
        assert!(
            at.0 + len <= self.storage.live().length(),
            "a guest write beyond the file"
        );
        let data = &self.open[&request].buffer[start as usize..(start + len) as usize];
        Change::Write(at.0, Bytes::copy_from_slice(data))
    }

    /// How an operation changes the file, if it does.
    pub(super) fn change_of(&self, kind: &FileOpKind) -> Option<Change> {
        Some(match kind {
            FileOpKind::Write { at, data } => {
                let end = at.0 + data.len() as u64;
                assert!(
                    end <= self.storage.live().length(),
                    "metadata beyond the file"
                );
                Change::Write(at.0, data.clone())
            }
            FileOpKind::WriteRequest {
                request,
                start,
                at,
                len,
            } => {
                assert_eq!((at.0 | len) % self.alignment, 0, "an unaligned write");
                self.write_of(request.0, *start, *at, *len)
            }
            FileOpKind::CopyUp { offset, at, len } => {
                // With its surroundings, as a driver must where the file has a coarser alignment.
                let from = at.0 / self.alignment * self.alignment;
                let to = (at.0 + len).next_multiple_of(self.alignment);
                let mut bytes = vec![0; (to - from) as usize];
                self.storage.live().get(from, &mut bytes);
                let place = (at.0 - from) as usize..(at.0 + len - from) as usize;
                parent_read(offset.0, &mut bytes[place]);
                Change::Write(from, bytes.into())
            }
            FileOpKind::Zero { at, len, .. } => Change::Zero(at.0, *len),
            FileOpKind::Copy { from, to, len } => {
                let mut bytes = vec![0; *len as usize];
                assert!(from.0.max(to.0) + len <= self.storage.live().length());
                self.storage.live().get(from.0, &mut bytes);
                Change::Write(to.0, bytes.into())
            }
            FileOpKind::SetLen { len } => Change::Length(*len),
            _ => return None,
        })
    }

    /// What a power cut now may leave.
    pub fn cut(&mut self) -> MemoryStorage {
        let in_flight: Vec<Change> = self
            .pending
            .iter()
            .filter_map(|pending| match pending {
                Pending::Engine {
                    op,
                    merged: Some((at, bytes)),
                    ..
                } => {
                    let _ = op;
                    Some(Change::Write(*at, bytes.clone().into()))
                }
                Pending::Engine { op, .. } => self.change_of(&op.kind),
                Pending::Write {
                    request,
                    start,
                    at,
                    len,
                } => Some(self.write_of(*request, *start, *at, *len)),
                _ => None,
            })
            .collect();
        let random = &mut self.random;
        self.storage
            .cut(&in_flight, &mut |bound| random.below(bound))
    }
}
