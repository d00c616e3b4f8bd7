//! An engine and its file, driven by hand: each operation on the file waits until it is let happen.

use std::collections::BTreeMap;

use bytes::Bytes;
use vdisk::Result;
use vdisk::engine::{
    Access, Done, Engine, Extent, FileOp, FileOpKind, Lookup, Outcome, Request, RequestId,
};
use vdisk::storage::{Change, CrashStorage, FlushMark, MemoryStorage, Storage};
use vdisk::units::GuestOffset;

use super::model::parent_read;

/// Operations after which requests go round and round.
const PATIENCE: usize = 200_000;

/// An operation that has not ended; of a flush, what it covers.
struct Pending {
    op: FileOp,
    mark: Option<FlushMark>,
}

/// The engine, its file, the buffers of its requests.
pub(super) struct Machine {
    storage: CrashStorage,
    engine: Engine,
    alignment: u64,
    pending: Vec<Pending>,
    buffers: BTreeMap<u64, Vec<u8>>,
    ended: BTreeMap<u64, Result<Done>>,
    last: u64,
}

impl Machine {
    pub(super) fn new(file: MemoryStorage, engine: Engine) -> Self {
        Self {
            storage: CrashStorage::new(file),
            alignment: engine.map().shape().alignment,
            engine,
            pending: Vec::new(),
            buffers: BTreeMap::new(),
            ended: BTreeMap::new(),
            last: 0,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.engine.map().size()
    }

    /// Length of the file in bytes.
    pub(super) fn length(&self) -> u64 {
        self.storage.live().length()
    }

    /// Hands a request over; a write is of `stamp` all over.
    pub(super) fn submit(&mut self, request: Request, stamp: u64) -> u64 {
        self.last += 1;
        let buffer = match request {
            Request::Write { len, .. } => stamp.to_le_bytes().repeat(len as usize / 8),
            Request::Read { len, .. } => vec![0xEE; len as usize],
            _ => Vec::new(),
        };
        self.buffers.insert(self.last, buffer);
        self.engine.submit(RequestId(self.last), request);
        self.drain();
        self.last
    }

    /// How a request ended, and its buffer; `None` if it did not.
    pub(super) fn take(&mut self, id: u64) -> Option<(Result<Done>, Vec<u8>)> {
        let result = self.ended.remove(&id)?;
        Some((result, self.buffers.remove(&id)?))
    }

    fn drain(&mut self) {
        while let Some(op) = self.engine.next_op() {
            let mark = (op.kind == FileOpKind::Flush).then(|| self.storage.begin_flush());
            self.pending.push(Pending { op, mark });
        }
        while let Some(completion) = self.engine.next_completion() {
            let before = self.ended.insert(completion.request.0, completion.result);
            assert!(before.is_none(), "a request ends once");
        }
    }

    /// Lets up to `count` operations happen, each one the pending one that `order` names.
    pub(super) fn run_some(&mut self, count: usize, order: &[u8]) {
        let mut order = order.iter().copied();
        for _ in 0..count {
            if self.pending.is_empty() {
                return;
            }
            let chosen = usize::from(order.next().unwrap_or(0)) % self.pending.len();
            let Pending { op, mark } = self.pending.remove(chosen);
            let outcome = self.execute(&op, mark);
            self.engine.complete(op.id, outcome);
            self.drain();
        }
    }

    /// Lets everything happen; every request ends.
    pub(super) fn run(&mut self, order: &[u8]) {
        self.run_some(PATIENCE, order);
        assert!(self.pending.is_empty(), "it goes round and round");
        let open = self.buffers.keys().find(|id| !self.ended.contains_key(id));
        assert_eq!(open, None, "a request waits for nothing");
    }

    fn execute(&mut self, op: &FileOp, mark: Option<FlushMark>) -> Outcome {
        if let Some(change) = self.change(&op.kind) {
            let hole = self.copies_zeros(&op.kind);
            self.storage.apply(change);
            return hole.unwrap_or(Outcome::Done);
        }
        let live = self.storage.live();
        match &op.kind {
            FileOpKind::Read { at, len } => {
                let mut data = vec![0; *len as usize];
                live.get(at.0, &mut data);
                return Outcome::Data(data.into());
            }
            FileOpKind::ReadRequest {
                request,
                start,
                at,
                len,
            } => {
                let buffer = self.buffers.get_mut(&request.0).expect("it is open");
                live.get(at.0, &mut buffer[*start as usize..][..*len as usize]);
            }
            FileOpKind::ZeroRequest {
                request,
                start,
                len,
            } => {
                let buffer = self.buffers.get_mut(&request.0).expect("it is open");
                buffer[*start as usize..][..*len as usize].fill(0);
            }
            FileOpKind::ReadParent {
                request,
                start,
                offset,
                len,
            } => {
                let buffer = self.buffers.get_mut(&request.0).expect("it is open");
                let part = &mut buffer[*start as usize..][..*len as usize];
                parent_read(offset.0, part);
            }
            FileOpKind::Flush => self.storage.end_flush(mark.expect("taken when it began")),
            FileOpKind::Holes { at, len } => return Outcome::Holes(self.holes(at.0, *len)),
            FileOpKind::StatusParent { len, .. } => {
                return Outcome::Holes(vec![Extent {
                    len: *len,
                    allocated: true,
                    zero: false,
                }]);
            }
            FileOpKind::Reserve { .. } => {}
            kind => panic!("{kind:?} does nothing"),
        }
        Outcome::Done
    }

    fn holes(&mut self, at: u64, len: u64) -> Vec<Extent> {
        let data = self.storage.next_data(at).ok().flatten();
        let data = data.map_or(at + len, |data| data.min(at + len));
        let zero = data > at;
        vec![Extent {
            len: if zero { data - at } else { len.min(4096) },
            allocated: !zero,
            zero,
        }]
    }

    /// What is told of a copy that found nothing but zeros.
    fn copies_zeros(&self, kind: &FileOpKind) -> Option<Outcome> {
        let FileOpKind::Copy { from, len, .. } = *kind else {
            return None;
        };
        let mut bytes = vec![0; len as usize];
        self.storage.live().get(from.0, &mut bytes);
        let hole = Extent {
            len,
            allocated: false,
            zero: true,
        };
        let zero = bytes.iter().all(|byte| *byte == 0);
        zero.then(|| Outcome::Holes(vec![hole]))
    }

    /// How an operation changes the file as it is now, if it does.
    fn change(&self, kind: &FileOpKind) -> Option<Change> {
        let inside = |end: u64| assert!(end <= self.storage.live().length(), "{kind:?}");
        Some(match kind {
            FileOpKind::Write { at, data } => {
                inside(at.0 + data.len() as u64);
                Change::Write(at.0, data.clone())
            }
            FileOpKind::WriteRequest {
                request,
                start,
                at,
                len,
            } => {
                inside(at.0 + len);
                assert_eq!((at.0 | len) % self.alignment, 0, "{kind:?}");
                let data = &self.buffers[&request.0][*start as usize..][..*len as usize];
                Change::Write(at.0, Bytes::copy_from_slice(data))
            }
            FileOpKind::MergeRequest {
                request,
                start,
                at,
                len,
            } => {
                let data = &self.buffers[&request.0][*start as usize..][..*len as usize];
                self.merged(at.0, data)
            }
            FileOpKind::CopyUp { offset, at, len } => {
                let mut data = vec![0; *len as usize];
                parent_read(offset.0, &mut data);
                self.merged(at.0, &data)
            }
            FileOpKind::Zero { at, len, .. } => Change::Zero(at.0, *len),
            FileOpKind::Copy { from, to, len } => {
                inside(from.0.max(to.0) + len);
                assert!(from.0.abs_diff(to.0) >= *len, "{kind:?} overlaps");
                let mut data = vec![0; *len as usize];
                self.storage.live().get(from.0, &mut data);
                Change::Write(to.0, data.into())
            }
            FileOpKind::SetLen { len } => Change::Length(*len),
            _ => return None,
        })
    }

    /// A write of `data` with what surrounds it, as a file of this alignment needs it.
    fn merged(&self, at: u64, data: &[u8]) -> Change {
        let from = at / self.alignment * self.alignment;
        let to = (at + data.len() as u64).next_multiple_of(self.alignment);
        let mut bytes = vec![0; (to - from) as usize];
        self.storage.live().get(from, &mut bytes);
        bytes[(at - from) as usize..][..data.len()].copy_from_slice(data);
        Change::Write(from, bytes.into())
    }

    /// What a power cut now may leave; `luck` decides what of it.
    pub(super) fn cut(&mut self, luck: u32) -> MemoryStorage {
        let pending = self.pending.iter();
        let under_way: Vec<Change> = pending
            .filter_map(|pending| self.change(&pending.op.kind))
            .collect();
        let mut state = u64::from(luck);
        let mut choose = |below: u64| {
            state = state
                .wrapping_mul(0x5851_F42D_4C95_7F2D)
                .wrapping_add(0x1405_7B7E_F767_814F);
            (state >> 33) % below.max(1)
        };
        self.storage.cut(&under_way, &mut choose)
    }

    /// Reads while nothing else is open; once through the engine, and where the map knows the place, as
    /// a worker does.
    pub(super) fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let at = GuestOffset(offset);
        let id = self.submit(Request::Read { offset: at, len }, 0);
        self.run(&[]);
        let (result, buffer) = self.take(id).expect("it ends");
        result.unwrap_or_else(|error| panic!("{offset:#x} cannot be read: {error}"));
        let map = self.engine.map();
        let mut worker = map.register();
        let generation = worker.enter();
        let found = map.lookup(at, len, Access::Read);
        let _ = worker.leave(generation);
        let seen = match found {
            Lookup::File { at, len } => {
                let mut seen = vec![0; len as usize];
                self.storage.live().get(at.0, &mut seen);
                seen
            }
            Lookup::Zero { len } => vec![0; len as usize],
            Lookup::Engine => Vec::new(),
        };
        assert!(
            buffer.starts_with(&seen),
            "map and engine differ at {offset:#x}"
        );
        buffer
    }
}
