//! A disk of a few interesting blocks, random requests on it, power cuts, and what must hold then.

use std::collections::BTreeMap;

use vdisk::check::check;
use vdisk::create::{CreateOptions, create};
use vdisk::disk::{OpenOptions, open_child_engine_with};
use vdisk::engine::{Engine, EngineOptions, Request};
use vdisk::format::{Guid, ParentLocator, Severity};
use vdisk::storage::{CrashStorage, MemoryStorage, Storage};
use vdisk::units::GuestOffset;

use super::model::{Model, SECTOR, Stamp};
use super::random::Random;
use super::tracking::{GRANULARITY, Ledger, random_checkpoint};
use super::world::{World, whole_stamp};

pub const MIB: u64 = 1 << 20;

/// Size of a new disk: its BAT has nine pages of 1 MiB blocks.
const SIZE: u64 = 4200 * MIB;

/// Size of a new disk with a parent: more BAT pages are touched than are kept at least.
const CHILD_SIZE: u64 = 12_300 * MIB;

/// Sizes that a disk gets, in MiB: some for which its table has room, some for which it has to move,
/// once or twice.
const SIZES: [u64; 10] = [
    4200, 4200, 4199, 2049, 1025, 600, 8190, 140_000, 420_000, 900_000,
];

const ZEROES: &[u8] = &[0; SECTOR as usize];

/// What a scenario varies.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub alignment: u64,
    pub cache: usize,
    pub block: u32,
    /// One request in so many is a flush; many flushes take the log round and round.
    pub flush: u64,
    /// Whether the disk has a parent, and the size of its sectors then.
    pub child: Option<u32>,
    /// Whether changes are tracked.
    pub tracked: bool,
}

impl Variant {
    pub fn of_seed(seed: u64) -> Self {
        Self {
            alignment: [1, 512, 4096][(seed % 3) as usize],
            cache: [1 << 20, 4 * 4096, 3 * 4096][(seed / 3 % 3) as usize],
            block: [1 << 20, 1 << 20, 2 << 20][(seed / 9 % 3) as usize],
            flush: [3, 12, 30][(seed / 27 % 3) as usize],
            child: [None, Some(512), None, Some(4096)][(seed % 4) as usize],
            tracked: seed % 5 < 2,
        }
    }
}

pub fn new_image(variant: &Variant, random: &mut Random) -> MemoryStorage {
    let mut storage = MemoryStorage::new();
    let mut bits = || u128::from(random.next()) << 64 | u128::from(random.next());
    let size = if variant.child.is_some() {
        CHILD_SIZE
    } else {
        SIZE
    };
    let mut options = CreateOptions::new(size, &mut bits);
    options.block_size = Some(variant.block);
    options.log_len = Some(1 << 20);
    if let Some(sector) = variant.child {
        options.logical_sector = sector;
        options.parent = Some(ParentLocator::new(Guid::from_random(1), "parent.vhdx"));
    }
    create(&mut storage, options).expect("an image is created");
    // The log of 1 MiB and the metadata come first.
    let bat = 3 * MIB;
    if random.one_in(2) {
        // What stands behind the end means nothing.
        for entry in (size / MIB + 8..size / MIB + 2000).step_by(97) {
            storage.put(bat + entry * 8, &(random.next() | 6).to_le_bytes());
        }
    }
    if let (Some(sector), true) = (variant.child, random.one_in(2)) {
        // Nor do bits of blocks that are not there, which an earlier crash may have left.
        let bits: Vec<u8> = (0..MIB).map(|_| random.next() as u8).collect();
        storage.put(4 * MIB, &bits);
        let ratio = (u64::from(sector) << 23) / u64::from(variant.block);
        storage.put(bat + ratio * 8, &((4 * MIB) | 6).to_le_bytes());
    }
    if variant.tracked {
        let mut bits = || u128::from(random.next()) << 64 | u128::from(random.next());
        vdisk::track::enable(&mut storage, Some(GRANULARITY), &mut bits).expect("tracking is on");
    }
    storage
}

/// Another size for the disk.
fn random_resize(random: &mut Random, variant: &Variant) -> Request {
    let mib = SIZES[random.below(SIZES.len() as u64) as usize];
    let sectors = [0, 0, 8, 100, 200][random.below(5) as usize];
    Request::Resize {
        size: (mib * MIB + sectors * SECTOR)
            .next_multiple_of(u64::from(variant.child.unwrap_or(512))),
        discard_data: random.one_in(2),
    }
}

/// Open `image` for writing, replaying its log; what the opening wrote goes into it.
pub fn open(
    image: &mut dyn Storage,
    variant: &Variant,
    random: &mut Random,
) -> Result<Engine, String> {
    // Rounds of many entries can be cut between any two of their pages.
    let entry_pages = if random.one_in(2) { 1 } else { 1000 };
    // Or the table is gone through while the disk is in use.
    let scan_first = if random.one_in(2) { 0 } else { MIB };
    let mut bits = || u128::from(random.next()) << 64 | u128::from(random.next());
    let options = OpenOptions {
        alignment: variant.alignment,
        cache: variant.cache,
        allow_marked: true,
        ..OpenOptions::default()
    };
    let tune = |options: EngineOptions| EngineOptions {
        log_len: Some(1 << 20),
        entry_pages,
        scan_first,
        ..options
    };
    open_child_engine_with(image, &options, &mut bits, tune)
        .map(|(engine, _)| engine)
        .map_err(|error| error.to_string())
}

/// A request on one of the interesting blocks of a disk of `size` bytes.
pub fn random_request(random: &mut Random, variant: &Variant, size: u64) -> Request {
    let block = u64::from(variant.block);
    if random.one_in(variant.flush) {
        return Request::Flush;
    }
    if variant.tracked && random.one_in(40) {
        return random_checkpoint(random);
    }
    if random.one_in(50) {
        return random_resize(random, variant);
    }
    if random.one_in(25) {
        return Request::Compact {
            defragment: random.one_in(3),
            budget: [1, 3 * MIB, 1 << 40][random.below(3) as usize],
        };
    }
    let chosen = random_block(random, variant, size.div_ceil(block));
    let within = match random.below(4) {
        0 => 0,
        1 => block - 4 * SECTOR,
        _ => random.below(8) * 8 * SECTOR,
    };
    let base = chosen * block + within;
    let sectors = 1 + random.below(12);
    let (mut offset, mut len) = (base + random.below(3) * SECTOR, sectors * SECTOR);
    if !random.one_in(3) {
        offset = base;
        len = len.next_multiple_of(4096);
    }
    let whole = random.one_in(2);
    let end = (offset + len).min(size);
    let (offset, len) = (
        offset.min(size - SECTOR),
        end.saturating_sub(offset).max(SECTOR),
    );
    let at = GuestOffset(offset);
    match random.below(20) {
        0..=8 => Request::Write {
            offset: at,
            len,
            fua: random.one_in(10),
        },
        9..=12 => Request::Read { offset: at, len },
        13 | 14 => Request::Write {
            offset: at,
            len,
            fua: false,
        },
        15 | 16 if whole => Request::Discard {
            offset: GuestOffset(chosen * block),
            len: block.min(size - chosen * block),
        },
        15 | 16 => Request::Discard { offset: at, len },
        17 if whole => zeroes(random, chosen * block, block.min(size - chosen * block)),
        17 | 18 => zeroes(random, offset, len),
        _ => Request::Status { offset: at, len },
    }
}

/// A few neighbours at the beginning, at chunk and page borders, on many pages, at the end.
fn random_block(random: &mut Random, variant: &Variant, blocks: u64) -> u64 {
    let last = blocks - 1;
    let interesting = [
        [0, 1, 2, 510, 511, 512].as_slice(),
        &[1023, 1500, 2047, 2048, 4198, last - 1, last],
        &[2600, 3100, 3600, 5300, 5800],
    ]
    .concat();
    let many = if variant.child.is_some() { 18 } else { 13 };
    interesting[random.below(many) as usize].min(last)
}

fn zeroes(random: &mut Random, offset: u64, len: u64) -> Request {
    Request::WriteZeroes {
        offset: GuestOffset(offset),
        len,
        fua: random.one_in(8),
        unmap: !random.one_in(3),
    }
}

/// Everything that a power cut must leave whole, checked on one image; the image after its replay.
pub fn verify(
    image: &MemoryStorage,
    (model, ledger): (&Model, &mut Ledger),
    variant: &Variant,
    random: &mut Random,
) -> MemoryStorage {
    let cut = image.clone();
    let mut image = image.clone();
    if random.one_in(4) {
        image = cut_replay(&image, variant, random);
    }
    let mut engine =
        open(&mut image, variant, random).unwrap_or_else(|error| panic!("does not open: {error}"));
    let report = check(&mut image).unwrap_or_else(|error| panic!("cannot be checked: {error}"));
    assert!(report.is_sound(), "check found: {:?}", report.findings);
    let size = engine.map().size();
    assert!(
        model.may_have_size(size),
        "the disk came back with {size} bytes: {model:?}"
    );
    let blocks: std::collections::BTreeSet<u64> = model
        .touched()
        .map(|sector| sector * SECTOR / u64::from(variant.block))
        .collect();
    let mut seen = BTreeMap::new();
    for block in blocks {
        let whole = (block, u64::from(variant.block));
        verify_block(&mut engine, &mut image, model, whole, &mut seen);
    }
    // What the activity log says counts whether or not it has been added to the bitmap.
    ledger.verify(&cut, model, &seen);
    ledger.verify(&image, model, &seen);
    image
}

fn verify_block(
    engine: &mut Engine,
    image: &mut MemoryStorage,
    model: &Model,
    (block, size): (u64, u64),
    seen: &mut BTreeMap<u64, Stamp>,
) {
    let len = size.min(engine.map().size().saturating_sub(block * size));
    if len == 0 {
        return;
    }
    let data = super::world::read(engine, image, block * size, len);
    for (number, bytes) in data.chunks_exact(SECTOR as usize).enumerate() {
        let sector = block * size / SECTOR + number as u64;
        // Most of a block was never written; comparing slices is what makes that cheap.
        if !model.knows(sector) && same_word(bytes, model.base(sector)) {
            continue;
        }
        let stamp = whole_stamp(bytes);
        assert!(
            stamp.is_some_and(|stamp| model.may_survive(sector, stamp)),
            "sector {sector} came back as {stamp:?}, which it may not hold: {}",
            model.describe(sector)
        );
        seen.insert(sector, stamp.unwrap_or_default());
    }
}

/// Whether every word of a sector is `stamp`.
fn same_word(sector: &[u8], stamp: u64) -> bool {
    // Mostly zeros; comparing slices is what makes that cheap.
    if stamp == 0 {
        return sector == ZEROES;
    }
    let (words, _) = sector.as_chunks::<8>();
    words.iter().all(|word| *word == stamp.to_le_bytes())
}

/// Replay the log, cut the power during it, and give what that leaves.
fn cut_replay(image: &MemoryStorage, variant: &Variant, random: &mut Random) -> MemoryStorage {
    let mut storage = Interrupted {
        inner: CrashStorage::new(image.clone()),
        left: random.below(40),
    };
    let mut fork = Random::new(random.next());
    let _ = open(&mut storage, variant, &mut fork);
    storage.inner.cut(&[], &mut |bound| random.below(bound))
}

/// A storage on which the power fails after some changes.
struct Interrupted {
    inner: CrashStorage,
    left: u64,
}

impl Interrupted {
    fn spend(&mut self) -> std::io::Result<()> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| std::io::Error::other("power cut"))?;
        Ok(())
    }
}

impl Storage for Interrupted {
    fn len(&mut self) -> std::io::Result<u64> {
        self.inner.len()
    }
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.inner.read_at(offset, buffer)
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.spend()?;
        self.inner.write_at(offset, data)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.spend()?;
        self.inner.flush()
    }
    fn set_len(&mut self, len: u64) -> std::io::Result<()> {
        self.spend()?;
        self.inner.set_len(len)
    }
    fn zero(&mut self, offset: u64, len: u64, keep: bool) -> std::io::Result<()> {
        self.spend()?;
        self.inner.zero(offset, len, keep)
    }
    fn reserve(&mut self, offset: u64, len: u64) -> std::io::Result<()> {
        self.inner.reserve(offset, len)
    }
    fn next_data(&mut self, offset: u64) -> std::io::Result<Option<u64>> {
        self.inner.next_data(offset)
    }
}

/// What was done in one seed, or in several.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Crash images that were verified.
    pub points: u64,
    /// Resizes, and compactions that moved something.
    pub resized: u64,
    pub compacted: u64,
    /// How often a sector that had changed was listed as such.
    pub listed: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.points += other.points;
        self.resized += other.resized;
        self.compacted += other.compacted;
        self.listed += other.listed;
    }
}

/// Run one seed: several sessions on one disk, each ended by a power cut or a clean close. Returns
/// what was done and verified.
pub fn run(seed: u64) -> Counts {
    let mut random = Random::new(seed);
    let variant = Variant::of_seed(seed);
    let mut image = new_image(&variant, &mut random);
    let mut model = Model::new(variant.child.is_some());
    let mut counts = Counts::default();
    let mut ledger = Ledger::default();
    for _ in 0..4 {
        let engine = open(&mut image, &variant, &mut random).expect("a verified image opens");
        let fork = Random::new(random.next());
        let mut world = World::new(image, engine, model, fork);
        world.ledger = ledger;
        counts.points += session(&mut world, &variant, &mut random);
        let left = if random.one_in(3) {
            close(&mut world)
        } else {
            world.ledger.cut();
            world.cut()
        };
        counts.resized += world.resized;
        counts.compacted += world.compacted;
        model = world.model.clone();
        ledger = world.ledger;
        image = verify(&left, (&model, &mut ledger), &variant, &mut random);
        ledger.remove_some(&mut image, &mut random);
        counts.points += 1;
        let mut engine = open(&mut image, &variant, &mut random).expect("it was just opened");
        let size = engine.map().size();
        model.settle(size, |sector| {
            if sector * SECTOR >= size {
                return 0;
            }
            let bytes = super::world::read(&mut engine, &mut image, sector * SECTOR, SECTOR);
            whole_stamp(&bytes).expect("verified before")
        });
    }
    counts.listed = ledger.found;
    counts
}

fn session(world: &mut World, variant: &Variant, random: &mut Random) -> u64 {
    let mut verified = 0;
    let depth = 1 + random.below(24) as usize;
    for _ in 0..60 + random.below(240) {
        if world.busy() < depth {
            let request = random_request(random, variant, world.size());
            world.submit(request);
        }
        for _ in 0..random.below(4) {
            world.step();
        }
        if random.one_in(24) {
            let left = world.cut();
            let mut ledger = world.ledger.clone();
            ledger.cut();
            verify(&left, (&world.model, &mut ledger), variant, random);
            world.ledger.found = ledger.found;
            verified += 1;
        }
    }
    verified
}

fn close(world: &mut World) -> MemoryStorage {
    world.run_dry();
    world.submit(Request::Park { mark: None });
    world.run_dry();
    world.model.flushed(world.now);
    let left = world.cut();
    let mut image = left.clone();
    let report = check(&mut image).expect("a closed image can be checked");
    let mut faults = report
        .findings
        .iter()
        .filter(|found| found.severity > Severity::Leak);
    assert!(
        faults.next().is_none(),
        "a closed image has no fault: {:?}",
        report.findings
    );
    left
}
