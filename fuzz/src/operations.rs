//! Requests on an engine, one by one and together, on disks of every kind, with power cuts between any
//! two operations on the file, compared with a flat model of what the disk holds.
//!
//! The simulation of `vdisk/tests/simulation` draws its scenarios from a seed and knows workers; here
//! libFuzzer chooses each request, its place, the order in which operations end, and the moment of the
//! cut, and is told by coverage what is new. What must hold: a read brings what the model allows, a
//! cut leaves what the model allows, the image is sound then, and nothing is refused without a reason.

mod machine;
mod model;

use arbitrary::{Arbitrary, Unstructured};
use vdisk::ErrorKind;
use vdisk::check::{Severity, check};
use vdisk::create::{CreateOptions, create};
use vdisk::disk::{OpenOptions, open_child_engine_with};
use vdisk::engine::{Done, Engine, EngineOptions, Request};
use vdisk::format::{Guid, ParentLocator};
use vdisk::storage::MemoryStorage;
use vdisk::units::GuestOffset;

use self::machine::Machine;
use self::model::{EDGE, Model, UNIT};
use crate::images::{MIB, bits};

/// Steps beyond these are not taken.
const MOST_STEPS: usize = 40;
/// Requests in flight together at most.
const MOST_TOGETHER: usize = 6;

#[derive(Arbitrary, Debug)]
struct Plan {
    shape: Shape,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Dynamic,
    Fixed,
    Child,
}

#[expect(clippy::struct_excessive_bools, reason = "each is a bit of the input")]
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Shape {
    kind: Kind,
    large_sectors: bool,
    large_blocks: bool,
    size: u8,
    alignment: u8,
    small_cache: bool,
    small_entries: bool,
    /// Whether the table is gone through while the disk is in use.
    scan_later: bool,
}

#[derive(Arbitrary, Debug)]
enum Step {
    One(Planned),
    Together(Vec<Planned>, Vec<u8>),
    /// These requests, so many operations on the file, in this order; then a cut with that luck.
    Cut(Vec<Planned>, u8, Vec<u8>, u32),
    Park,
}

/// Block, whether near its end, and how many units from there.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Place(u8, bool, u8, u8);

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Planned {
    Write(Place, bool),
    WriteBlock(u8),
    Read(Place),
    Zero(Place, bool, bool),
    ZeroBlocks(u8, u8),
    Discard(Place),
    DiscardBlocks(u8, u8),
    Flush,
    Status(Place),
    Resize(u8, bool),
    ResizeRaw(u64, bool),
    Compact(bool, u8),
}

impl Shape {
    fn block(self) -> u64 {
        if self.large_blocks { 2 * MIB } else { MIB }
    }

    fn sector(self) -> u64 {
        if self.large_sectors { 4096 } else { 512 }
    }

    fn alignment(self) -> u64 {
        [1, 512, 4096][usize::from(self.alignment) % 3]
    }

    /// Sizes of the disk; each ends at a unit's border, and none inside the middle of a block.
    fn size(self, number: u8) -> u64 {
        let sizes = [6, 2, 40, 1026, 4200, 8300];
        let most = if self.kind == Kind::Fixed { 3 } else { 6 };
        let number = usize::from(number);
        sizes[number % most] * MIB + [0, 4096, 8192][number / 8 % 3]
    }

    fn create(self) -> MemoryStorage {
        let mut file = MemoryStorage::new();
        let mut bits = bits(11);
        let mut options = CreateOptions::new(self.size(self.size), &mut bits);
        options.block_size = Some(self.block() as u32);
        options.logical_sector = self.sector() as u32;
        options.log_len = Some(MIB as u32);
        options.fixed = self.kind == Kind::Fixed;
        if self.kind == Kind::Child {
            options.parent = Some(ParentLocator::new(Guid::from_random(1), "parent.vhdx"));
        }
        create(&mut file, options).expect("an image is created");
        file
    }

    /// Opens an image for writing; what the opening wrote is in it.
    fn open(self, file: &mut MemoryStorage, seed: u64) -> Engine {
        let options = OpenOptions {
            alignment: self.alignment(),
            cache: if self.small_cache { 3 * 4096 } else { 1 << 20 },
            ..OpenOptions::default()
        };
        let tune = |options: EngineOptions| EngineOptions {
            log_len: Some(MIB as u32),
            entry_pages: if self.small_entries { 1 } else { 1000 },
            scan_first: if self.scan_later { 0 } else { 4 * MIB },
            ..options
        };
        let opened = open_child_engine_with(file, &options, &mut bits(seed), tune);
        opened.expect("what is left opens").0
    }
}

/// The requests of a disk of `size` bytes.
struct Requests {
    shape: Shape,
    size: u64,
}

impl Requests {
    /// Blocks that are near each other, on other pages of the table, at the borders, at the end.
    fn block(&self, number: u8) -> u64 {
        let many = self.size.div_ceil(self.shape.block());
        let blocks = [
            0, 1, 2, 3, 4, 511, 512, 1023, 1024, 2047, 2048, 4095, 4096, 4199,
        ];
        let number = usize::from(number) % (blocks.len() + 2);
        let from_end = |back: u64| many.saturating_sub(1 + back);
        let block = blocks.get(number).copied();
        block
            .unwrap_or_else(|| from_end(number as u64 - blocks.len() as u64))
            .min(many - 1)
    }

    fn range(&self, Place(block, end, unit, count): Place) -> (GuestOffset, u64) {
        let unit = u64::from(unit) % EDGE;
        let start = self.block(block) * self.shape.block();
        let within = if end {
            self.shape.block() - (EDGE - unit) * UNIT
        } else {
            unit * UNIT
        };
        let start = (start + within).min(self.size - UNIT);
        // From the first edge into no middle; over the border of the block, if from the last.
        let most = if end {
            EDGE + (EDGE - unit)
        } else {
            EDGE - unit
        };
        let len = (1 + u64::from(count) % most) * UNIT;
        (GuestOffset(start), len.min(self.size - start))
    }

    fn blocks(&self, first: u8, count: u8) -> (GuestOffset, u64) {
        let start = self.block(first) * self.shape.block();
        let len = (1 + u64::from(count) % 3) * self.shape.block();
        (GuestOffset(start), len.min(self.size - start))
    }

    fn request(&self, planned: Planned) -> Request {
        let ranged = |place| self.range(place);
        match planned {
            Planned::Write(place, fua) => {
                let (offset, len) = ranged(place);
                Request::Write { offset, len, fua }
            }
            Planned::WriteBlock(block) => {
                let (offset, len) = self.blocks(block, 0);
                let fua = false;
                Request::Write { offset, len, fua }
            }
            Planned::Read(place) => {
                let (offset, len) = ranged(place);
                Request::Read { offset, len }
            }
            Planned::Zero(place, fua, unmap) => zeroes(ranged(place), fua, unmap),
            Planned::ZeroBlocks(first, count) => zeroes(self.blocks(first, count), false, true),
            Planned::Discard(place) => discard(ranged(place)),
            Planned::DiscardBlocks(first, count) => discard(self.blocks(first, count)),
            Planned::Flush => Request::Flush,
            Planned::Status(place) => {
                let (offset, len) = ranged(place);
                Request::Status { offset, len }
            }
            Planned::Resize(number, discard_data) => Request::Resize {
                size: self.shape.size(number),
                discard_data,
            },
            Planned::ResizeRaw(size, discard_data) => Request::Resize {
                // Sizes that are possible are those of the other kind.
                size: if size.is_multiple_of(512) {
                    size | 1
                } else {
                    size
                },
                discard_data,
            },
            Planned::Compact(defragment, budget) => Request::Compact {
                defragment,
                budget: [1, 3 * MIB, 1 << 40][usize::from(budget) % 3],
            },
        }
    }
}

fn zeroes((offset, len): (GuestOffset, u64), fua: bool, unmap: bool) -> Request {
    Request::WriteZeroes {
        offset,
        len,
        fua,
        unmap,
    }
}

fn discard((offset, len): (GuestOffset, u64)) -> Request {
    Request::Discard { offset, len }
}

/// A disk in use, and what it may hold.
struct Session {
    shape: Shape,
    machine: Machine,
    model: Model,
    opened: u64,
}

impl Session {
    fn new(shape: Shape) -> Self {
        let mut file = shape.create();
        let engine = shape.open(&mut file, 0);
        let model = Model::new(
            shape.kind == Kind::Child,
            shape.block(),
            engine.map().size(),
        );
        Self {
            shape,
            machine: Machine::new(file, engine),
            model,
            opened: 0,
        }
    }

    fn requests(&self) -> Requests {
        Requests {
            shape: self.shape,
            size: self.machine.size(),
        }
    }

    fn one(&mut self, planned: Planned) {
        let request = self.requests().request(planned);
        let stamp = self.model.stamp();
        let before = self.machine.size();
        let id = self.machine.submit(request, stamp);
        self.machine.run(&[]);
        let (result, buffer) = self.machine.take(id).expect("it ends");
        if let Request::Resize { size, discard_data } = request {
            return self.resized(before, (size, discard_data), result);
        }
        let done = result.unwrap_or_else(|error| panic!("{request:?} failed: {error}"));
        match request {
            Request::Read { offset, .. } => self.model.read(offset.0, &buffer),
            Request::Status { offset, len } => self.model.told(offset.0, len, &done),
            Request::Flush => self.model.flushed(),
            Request::Compact { .. } => self.compacted(&done),
            request => self.model.changed(&request, stamp),
        }
    }

    /// A step of a compaction that nothing else met.
    fn compacted(&mut self, done: &Done) {
        let Done::Compacted(how_far) = done else {
            panic!("a compaction ended with {done:?}");
        };
        let length = self.machine.length();
        assert!(how_far.end <= length, "{how_far:?} of {length}");
        if how_far.done {
            assert_eq!(how_far.end, length, "{how_far:?}");
        }
    }

    fn resized(&mut self, before: u64, (size, discard): (u64, bool), result: vdisk::Result<Done>) {
        let possible = size.is_multiple_of(self.shape.sector()) && size > 0 && size <= 64 << 40;
        match result {
            Ok(_) => {
                assert!(possible, "{size} bytes");
                self.model.resized(size);
            }
            Err(error) => {
                let cuts = size < before && !discard;
                let why = error.kind();
                let refused = matches!(why, ErrorKind::InvalidArgument | ErrorKind::Unsupported);
                assert!(
                    refused && (!possible || cuts),
                    "{before} to {size}: {error}"
                );
            }
        }
        let now = self.machine.size();
        assert_eq!(now, self.model.size(), "the size that the map says");
    }

    /// Several requests, none of which gives the disk another size.
    fn submit(&mut self, planned: &[Planned]) -> Vec<(u64, Request, u64)> {
        let requests = self.requests();
        let fitting = planned
            .iter()
            .map(|planned| requests.request(*planned))
            .filter(|request| !matches!(request, Request::Resize { .. }));
        fitting
            .take(MOST_TOGETHER)
            .map(|request| {
                let stamp = self.model.stamp();
                (self.machine.submit(request, stamp), request, stamp)
            })
            .collect()
    }

    fn together(&mut self, planned: &[Planned], order: &[u8]) {
        let submitted = self.submit(planned);
        self.machine.run(order);
        let changes: Vec<(Request, u64)> = submitted
            .iter()
            .map(|(_, request, stamp)| (*request, *stamp))
            .collect();
        self.model.changed_together(&changes);
        for (id, request, _) in submitted {
            let (result, buffer) = self.machine.take(id).expect("it ends");
            if let Err(error) = result {
                // Only one compaction runs at a time.
                let second = matches!(request, Request::Compact { .. })
                    && error.kind() == ErrorKind::InvalidArgument;
                assert!(second, "{request:?} failed: {error}");
            }
            if let Request::Read { offset, .. } = request {
                self.model.read_any(offset.0, &buffer);
            }
        }
    }

    fn cut(&mut self, planned: &[Planned], (after, order): (u8, &[u8]), luck: u32) {
        let alone = match planned {
            [Planned::Resize(..)] => Some(self.requests().request(planned[0])),
            _ => None,
        };
        if let Some(request) = alone {
            self.machine.submit(request, 0);
        }
        let submitted = self.submit(planned);
        self.machine.run_some(usize::from(after), order);
        let flushed = submitted.iter().any(|(id, request, _)| {
            *request == Request::Flush && matches!(self.machine.take(*id), Some((Ok(_), _)))
        });
        let changes: Vec<(Request, u64)> = submitted
            .iter()
            .map(|(_, request, stamp)| (*request, *stamp))
            .collect();
        self.model.under_way(&changes, flushed);
        let mut file = self.machine.cut(luck);
        self.open_again(&mut file, alone);
    }

    fn open_again(&mut self, file: &mut MemoryStorage, resize: Option<Request>) {
        self.opened += 1;
        let engine = self.shape.open(file, self.opened);
        let report = check(file).expect("it can be checked");
        assert!(report.is_sound(), "after a cut: {:?}", report.findings);
        self.model.may_be_resized(resize, engine.map().size());
        self.machine = Machine::new(file.clone(), engine);
        self.settle();
    }

    /// What is there is what there is.
    fn settle(&mut self) {
        let machine = &mut self.machine;
        self.model
            .settle(&mut |offset, len| machine.read(offset, len));
    }

    fn park(&mut self) {
        let id = self.machine.submit(Request::Park { mark: None }, 0);
        self.machine.run(&[]);
        let (result, _) = self.machine.take(id).expect("it ends");
        result.expect("it can be parked");
        self.model.flushed();
        let mut file = self.machine.cut(0);
        let report = check(&mut file).expect("it can be checked");
        let mut findings = report.findings.iter();
        let behind = "DataWriteGuid is ";
        let fault = findings.find(|found| {
            // A cut between the two writes of a header leaves one behind until the next session.
            found.severity > Severity::Leak && !found.message.starts_with(behind)
        });
        assert!(fault.is_none() && report.complete, "closed: {fault:?}");
        self.open_again(&mut file, None);
    }
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let mut session = Session::new(plan.shape);
    for step in plan.steps.iter().take(MOST_STEPS) {
        match step {
            Step::One(planned) => session.one(*planned),
            Step::Together(planned, order) => session.together(planned, order),
            Step::Cut(planned, after, order, luck) => session.cut(planned, (*after, order), *luck),
            Step::Park => session.park(),
        }
    }
    session.park();
}
