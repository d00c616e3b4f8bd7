//! One disk under several workers, with every file operation pending until the seed lets it happen.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use vdisk::engine::{
    Access, BlockMap, Done, Engine, Extent, FileOp, FileOpKind, Generation, Lookup, Outcome,
    Participant, Request, RequestId,
};
use vdisk::storage::{Change, CrashStorage, FlushMark, MemoryStorage, Storage};
use vdisk::units::{FileOffset, GuestOffset};

use super::model::{Model, SECTOR, Stamp};
use super::random::Random;

/// A request as its worker sees it.
struct Open {
    request: Request,
    buffer: Vec<u8>,
    stamp: Stamp,
    issued: u64,
    worker: usize,
    /// Fast path: its generation and how many operations are left.
    fast: Option<(Generation, usize)>,
    /// Fast path: why it failed.
    error: Option<String>,
}

/// A file operation that has not ended.
enum Pending {
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
    fn request(&self) -> Option<u64> {
        match self {
            Self::Engine { op, .. } => match &op.kind {
                FileOpKind::ReadRequest { request, .. }
                | FileOpKind::WriteRequest { request, .. }
                | FileOpKind::MergeRequest { request, .. }
                | FileOpKind::ZeroRequest { request, .. } => Some(request.0),
                _ => None,
            },
            Self::Read { request, .. } | Self::Write { request, .. } => Some(*request),
            Self::Flush { .. } => None,
        }
    }
}

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

/// The world.
pub struct World {
    pub storage: CrashStorage,
    pub engine: Engine,
    pub model: Model,
    pub random: Random,
    pub now: u64,
    map: Arc<BlockMap>,
    workers: Vec<Participant>,
    open: BTreeMap<u64, Open>,
    pending: Vec<Pending>,
    next_request: u64,
    alignment: u64,
    pub faults: Faults,
    /// Requests that failed.
    pub refused: Vec<(Request, String)>,
}

impl World {
    pub fn new(image: MemoryStorage, engine: Engine, model: Model, random: Random) -> Self {
        let map = Arc::clone(engine.map());
        Self {
            storage: CrashStorage::new(image),
            workers: (0..3).map(|_| map.register()).collect(),
            alignment: map.shape().alignment,
            map,
            engine,
            model,
            random,
            now: 1,
            open: BTreeMap::new(),
            pending: Vec::new(),
            next_request: 1,
            faults: Faults::None,
            refused: Vec::new(),
        }
    }

    /// Whether a request to park is open.
    pub fn parking(&self) -> bool {
        self.open
            .values()
            .any(|open| matches!(open.request, Request::Park { .. }))
    }

    /// Whether a change is open.
    pub fn changing(&self) -> bool {
        self.open.values().any(|open| open.request.changes())
    }

    /// Whether `kind` fails this time, and how.
    fn fault(&mut self, kind: &FileOpKind) -> Option<std::io::Error> {
        let needs_room = match kind {
            FileOpKind::SetLen { len } => *len > self.storage.live().length(),
            FileOpKind::Zero { keep, .. } => *keep,
            FileOpKind::Reserve { .. }
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

    pub fn idle(&self) -> bool {
        self.open.is_empty()
    }

    pub fn busy(&self) -> usize {
        self.open.len()
    }

    /// Submit a request on a random worker.
    pub fn submit(&mut self, request: Request) {
        let id = self.next_request;
        self.next_request += 1;
        self.now += 1;
        let (offset, len) = request.range().unwrap_or((0, 0));
        let mut stamp = 0;
        let mut buffer = vec![
            0xEE;
            if matches!(request, Request::Read { .. }) {
                len as usize
            } else {
                0
            }
        ];
        if let Request::Write { .. } = request {
            stamp = self.model.stamp();
            buffer = stamp.to_le_bytes().repeat(len as usize / 8);
        }
        if request.changes() {
            let weak = matches!(request, Request::Discard { .. });
            self.model
                .issue((id, weak), (offset / SECTOR, len / SECTOR), stamp, self.now);
        }
        let worker = self.random.below(self.workers.len() as u64) as usize;
        let open = Open {
            request,
            buffer,
            stamp,
            issued: self.now,
            worker,
            fast: None,
            error: None,
        };
        self.open.insert(id, open);
        if self.map.failed() && (request.changes() || request.range().is_none()) {
            self.ended(id, Err("a flush failed".into()));
        } else if !self.fast_path(id) {
            self.engine.submit(RequestId(id), request);
        }
        self.drain();
    }

    /// What a worker does without the engine; `false` when only the engine can.
    fn fast_path(&mut self, id: u64) -> bool {
        let open = &self.open[&id];
        let (worker, request) = (open.worker, open.request);
        let access = match request {
            Request::Read { .. } => Access::Read,
            Request::Write { .. } => Access::Write,
            Request::Flush if !self.map.flush_needs_engine() => {
                let mark = self.storage.begin_flush();
                self.pending.push(Pending::Flush { request: id, mark });
                return true;
            }
            _ => return false,
        };
        let generation = self.workers[worker].enter();
        let Some(parts) = self.look_up(request, access) else {
            self.leave(worker, generation);
            return false;
        };
        for (start, at, len) in &parts {
            let (request, start, at, len) = (id, *start, *at, *len);
            self.pending.push(match access {
                Access::Read => Pending::Read {
                    request,
                    start,
                    at,
                    len,
                },
                Access::Write => Pending::Write {
                    request,
                    start,
                    at,
                    len,
                },
            });
        }
        let open = self.open.get_mut(&id).unwrap();
        if access == Access::Read {
            let mut zeroed = vec![true; open.buffer.len()];
            for (start, _, len) in &parts {
                zeroed[*start as usize..(*start + *len) as usize].fill(false);
            }
            for (byte, zero) in open.buffer.iter_mut().zip(zeroed) {
                if zero {
                    *byte = 0;
                }
            }
        }
        open.fast = Some((generation, parts.len()));
        self.fast_part_ended(id, 0);
        true
    }

    fn look_up(&self, request: Request, access: Access) -> Option<Vec<(u64, FileOffset, u64)>> {
        let (offset, len) = request.range()?;
        let (mut parts, mut done) = (Vec::new(), 0);
        while done < len {
            match self
                .map
                .lookup(GuestOffset(offset + done), len - done, access)
            {
                Lookup::File { at, len } => {
                    parts.push((done, at, len));
                    done += len;
                }
                Lookup::Zero { len } => done += len,
                Lookup::Engine => return None,
            }
        }
        Some(parts)
    }

    fn leave(&mut self, worker: usize, generation: Generation) {
        if self.workers[worker].leave(generation) {
            self.engine.poll();
        }
    }

    fn fast_part_ended(&mut self, id: u64, ended: usize) {
        let open = self.open.get_mut(&id).unwrap();
        let Some((generation, left)) = &mut open.fast else {
            return;
        };
        *left -= ended;
        if *left != 0 {
            return;
        }
        let (worker, generation) = (open.worker, *generation);
        self.leave(worker, generation);
        if let Some(error) = self.open.get_mut(&id).unwrap().error.take() {
            return self.ended(id, Err(error));
        }
        if self.map.failed() && self.open[&id].request.durable() {
            return self.ended(id, Err("a flush failed".into()));
        }
        let fua = matches!(self.open[&id].request, Request::Write { fua: true, .. });
        if !fua {
            self.ended(id, Ok(Done::Done));
        } else if self.map.flush_needs_engine() {
            // The write is in place: as a worker does, let the engine flush under a name of its own.
            self.engine.submit(RequestId(id), Request::Flush);
        } else {
            let mark = self.storage.begin_flush();
            self.pending.push(Pending::Flush { request: id, mark });
        }
    }

    /// Collect what the engine wants and says.
    pub fn drain(&mut self) {
        loop {
            let mut moved = false;
            while let Some(op) = self.engine.next_op() {
                moved = true;
                let mark = (op.kind == FileOpKind::Flush).then(|| self.storage.begin_flush());
                self.pending.push(Pending::Engine {
                    op,
                    mark,
                    merged: None,
                });
            }
            while let Some(completion) = self.engine.next_completion() {
                moved = true;
                let result = completion.result.map_err(|error| error.to_string());
                self.ended(completion.request.0, result);
            }
            if !moved {
                return;
            }
        }
    }

    fn ended(&mut self, id: u64, result: Result<Done, String>) {
        self.now += 1;
        let open = self.open.remove(&id).expect("a request ends once");
        assert!(
            !self
                .pending
                .iter()
                .any(|pending| pending.request() == Some(id)),
            "{:?} ended while operations on its buffer are under way",
            open.request
        );
        if let Err(error) = result {
            assert_ne!(
                self.faults,
                Faults::None,
                "{:?} failed: {error}",
                open.request
            );
            self.refused.push((open.request, error));
            return;
        }
        let (offset, len) = open.request.range().unwrap_or((0, 0));
        match open.request {
            Request::Read { .. } => self.check_read(offset, &open),
            Request::Flush | Request::Park { .. } => self.model.flushed(open.issued),
            Request::Status { .. } => {}
            request => {
                let sectors = (offset / SECTOR, len / SECTOR);
                self.model
                    .complete(id, sectors, self.now, request.durable());
            }
        }
        let _ = open.stamp;
    }

    fn check_read(&self, offset: u64, open: &Open) {
        for (number, bytes) in open.buffer.chunks_exact(SECTOR as usize).enumerate() {
            let sector = offset / SECTOR + number as u64;
            let stamp = whole_stamp(bytes);
            assert!(
                stamp.is_some_and(|stamp| self.model.may_read(sector, stamp, open.issued)),
                "sector {sector} read as {stamp:?}, which it can not hold: {}",
                self.model.describe(sector)
            );
        }
    }

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

    /// What an operation that fails may have done: nothing, all, or some of it.
    fn fail_op(
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

    fn apply_part(&mut self, change: &Change) {
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
            FileOpKind::Flush => self.storage.end_flush(mark.unwrap()),
            FileOpKind::Reserve { .. } => {}
            FileOpKind::Holes { len, .. } => {
                return Outcome::Holes(vec![Extent {
                    len: *len,
                    allocated: true,
                    zero: false,
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
    fn change_of(&self, kind: &FileOpKind) -> Option<Change> {
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
            FileOpKind::Zero { at, len, .. } => Change::Zero(at.0, *len),
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

    /// Run until no request is open and nothing goes on behind them.
    pub fn run_dry(&mut self) {
        self.run_until_answered();
        while self.step() {}
    }

    /// Run until no request is open.
    pub fn run_until_answered(&mut self) {
        let mut left = 100_000;
        while !self.idle() {
            left -= 1;
            assert!(left > 0, "requests go round and round: {}", self.stuck());
            assert!(
                self.step(),
                "requests are open and nothing is pending: {}",
                self.stuck()
            );
        }
    }

    fn stuck(&self) -> String {
        format!(
            "{:?}",
            self.open
                .values()
                .map(|open| open.request)
                .collect::<Vec<_>>()
        )
    }
}

/// The stamp that fills a sector; `None` for one that no single write made.
pub fn whole_stamp(sector: &[u8]) -> Option<Stamp> {
    let mut words = sector
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let first = words.next()?;
    words.all(|word| word == first).then_some(first)
}

/// Read from an engine that has no other user.
pub fn read(engine: &mut Engine, storage: &mut dyn Storage, offset: u64, len: u64) -> Vec<u8> {
    let mut buffer = vec![0xEE; len as usize];
    engine.submit(
        RequestId(0),
        Request::Read {
            offset: GuestOffset(offset),
            len,
        },
    );
    loop {
        while let Some(op) = engine.next_op() {
            let outcome = match &op.kind {
                FileOpKind::Read { at, len } => {
                    let mut data = vec![0; *len as usize];
                    storage.read_at(at.0, &mut data).unwrap();
                    Outcome::Data(data.into())
                }
                FileOpKind::ReadRequest { start, at, len, .. } => {
                    let range = *start as usize..(*start + *len) as usize;
                    storage.read_at(at.0, &mut buffer[range]).unwrap();
                    Outcome::Done
                }
                FileOpKind::ZeroRequest { start, len, .. } => {
                    buffer[*start as usize..(*start + *len) as usize].fill(0);
                    Outcome::Done
                }
                kind => panic!("a read asks for {kind:?}"),
            };
            engine.complete(op.id, outcome);
        }
        if let Some(completion) = engine.next_completion() {
            completion.result.unwrap();
            return buffer;
        }
    }
}
