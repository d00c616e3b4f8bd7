//! One disk under several workers, with every file operation pending until the seed lets it happen.

mod faults;
mod medium;
mod workers;

use std::collections::BTreeMap;
use std::sync::Arc;

use vdisk::engine::{
    BlockMap, Done, Engine, FileOpKind, Generation, Outcome, Participant, Request, RequestId,
};
use vdisk::storage::{CrashStorage, MemoryStorage, Storage};
use vdisk::units::GuestOffset;

pub use self::faults::Faults;
use self::medium::Pending;
use super::model::{Model, SECTOR, Stamp, parent_read};
use super::random::Random;
use super::tracking::Ledger;

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
    /// How often the disk got another size, and was made as short as it can be.
    pub resized: u64,
    pub compacted: u64,
    /// Requests that failed.
    pub refused: Vec<(Request, String)>,
    /// What must be known of changes.
    pub ledger: Ledger,
}

impl World {
    pub fn new(image: MemoryStorage, engine: Engine, mut model: Model, random: Random) -> Self {
        let map = Arc::clone(engine.map());
        model.set_size(map.size());
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
            resized: 0,
            compacted: 0,
            refused: Vec::new(),
            ledger: Ledger::default(),
        }
    }

    /// Bytes of the disk as its workers see it now.
    pub fn size(&self) -> u64 {
        self.map.size()
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
        self.ledger.asked(&request);
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
        if let Request::Resize { size, discard_data } = request {
            self.model.resizes(id, size, discard_data);
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
        let done = match result {
            Ok(done) => done,
            Err(error) => return self.refused(id, open.request, error),
        };
        let (offset, len) = open.request.range().unwrap_or((0, 0));
        match open.request {
            Request::Read { .. } => self.check_read(offset, &open),
            Request::Flush | Request::Park { .. } => self.model.flushed(open.issued),
            Request::Checkpoint { name, .. } => {
                // Nobody changed anything while it was taken.
                self.model.flushed(self.now);
                let open = self.open.values().map(|open| &open.request);
                self.ledger
                    .taken(name, self.storage.live(), &self.model, open);
            }
            Request::Status { .. } => {}
            Request::Compact { .. } => {
                let Done::Compacted(how_far) = done else {
                    panic!("a compaction ended with {done:?}");
                };
                self.compacted += u64::from(how_far.done && how_far.moved > 0);
            }
            Request::Resize { size, .. } => {
                self.now += 1;
                self.model.resized(id, size, self.now);
                self.resized += 1;
            }
            request => {
                let sectors = (offset / SECTOR, len / SECTOR);
                self.model
                    .complete(id, sectors, self.now, request.durable());
            }
        }
        let _ = open.stamp;
    }

    /// A request failed, which it may if the medium did or its size was in the way.
    fn refused(&mut self, id: u64, request: Request, error: String) {
        let resize = matches!(request, Request::Resize { .. });
        if resize && !self.map.failed() {
            self.model.not_resized(id);
        }
        let compact = matches!(request, Request::Compact { .. });
        let may = |what: &str| error.contains(what);
        if may("go beyond the disk")
            || may("and room for no more")
            || compact && (may("compacted") || may("being moved"))
            || resize && (may("the disk holds data at byte") || may("the disk is being moved"))
        {
            return;
        }
        assert_ne!(self.faults, Faults::None, "{request:?} failed: {error}");
        self.refused.push((request, error));
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
                FileOpKind::ReadParent {
                    start, offset, len, ..
                } => {
                    let range = *start as usize..(*start + *len) as usize;
                    parent_read(offset.0, &mut buffer[range]);
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
