//! Images that somebody made to do harm: whatever is in them, opening, checking, reading and writing
//! end, with an error or without, and never with a panic, without end or with much memory.
//!
//! `DISKFERRY_SEED=n` runs one seed; `DISKFERRY_SEEDS=n` sets how many are run.

#[expect(
    unreachable_pub,
    dead_code,
    reason = "a test binary has no outside and uses a part"
)]
mod simulation;

use std::io;

use simulation::random::Random;
use vdisk::check::check;
use vdisk::create::{CreateOptions, create};
use vdisk::disk::{Disk, ImageFormat, OpenOptions, open_engine};
use vdisk::storage::{MemoryStorage, Storage};

const MIB: u64 = 1 << 20;

/// Operations that one image may cost.
const PATIENCE: u64 = 200_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
}

/// A memory file that counts what is done to it, and takes no more than a file system would.
struct Counted {
    file: MemoryStorage,
    left: u64,
}

impl Counted {
    fn count(&mut self) {
        self.left = self.left.checked_sub(1).expect("it goes on without end");
    }
}

impl Storage for Counted {
    fn len(&mut self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.count();
        assert!(buffer.len() <= 64 << 20, "{} bytes at once", buffer.len());
        self.file.read_at(offset, buffer)
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.count();
        self.file.write_at(offset, data)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.count();
        Ok(())
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.count();
        // As ext4 with blocks of 4 KiB.
        if len > 16 << 40 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.file.set_len(len)
    }
    fn zero(&mut self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        self.count();
        self.file.zero(offset, len, keep)
    }
    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.count();
        self.file.reserve(offset, len)
    }
    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        self.count();
        self.file.next_data(offset)
    }
}

fn open(file: MemoryStorage, read_only: bool, random: &mut Random) -> vdisk::Result<Disk> {
    let mut storage = Counted {
        file,
        left: PATIENCE,
    };
    let options = OpenOptions {
        read_only,
        allow_marked: true,
        cache: 1 << 20,
        ..OpenOptions::default()
    };
    let mut bits = || u128::from(random.next()) << 64 | u128::from(random.next());
    let engine = open_engine(&mut storage, ImageFormat::Vhdx, &options, &mut bits)?;
    Ok(Disk::new(Box::new(storage), engine))
}

/// A sound image with some blocks; about half the time with a log to be replayed.
fn sound(random: &mut Random) -> MemoryStorage {
    let mut file = MemoryStorage::new();
    let mut seed = Random::new(random.next());
    let mut bits = || u128::from(seed.next());
    let mut options = CreateOptions::new(
        [64 * MIB, 5000 * MIB, 1 << 40][random.below(3) as usize],
        &mut bits,
    );
    options.block_size = Some(1 << 20);
    options.log_len = Some(1 << 20);
    create(&mut file, options).expect("created");
    let shared = Shared::default();
    *shared.0.lock().unwrap() = file;
    let options = OpenOptions::default();
    let engine = open_engine(
        &mut shared.clone(),
        ImageFormat::Vhdx,
        &options,
        &mut || u128::from(random.next()),
    );
    let mut disk = Disk::new(Box::new(shared.clone()), engine.expect("opened"));
    for block in 0..6 {
        disk.write_at(block * 7 * MIB, &[1; 4096]).expect("written");
        disk.flush().expect("flushed");
    }
    if random.one_in(2) {
        disk.close().expect("closed");
    } else {
        drop(disk);
    }
    shared.0.lock().unwrap().clone()
}

/// A file that outlives its disk.
#[derive(Clone, Default)]
struct Shared(std::sync::Arc<std::sync::Mutex<MemoryStorage>>);

impl Storage for Shared {
    fn len(&mut self) -> io::Result<u64> {
        self.0.lock().unwrap().len()
    }
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.lock().unwrap().read_at(offset, buffer)
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().write_at(offset, data)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().set_len(len)
    }
    fn zero(&mut self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        self.0.lock().unwrap().zero(offset, len, keep)
    }
    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().reserve(offset, len)
    }
    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        self.0.lock().unwrap().next_data(offset)
    }
}

/// A number as somebody who means harm would choose it.
fn evil(random: &mut Random) -> u64 {
    match random.below(6) {
        0 => random.below(16),
        1 => 1 << random.below(64),
        2 => (1 << random.below(64)) - 1,
        3 => u64::MAX - random.below(16),
        4 => (random.below(64) * MIB) | random.below(8),
        _ => random.next(),
    }
}

/// Where the structures of an image made here lie: start, bytes that matter, checksum or not.
const STRUCTURES: [(u64, u64, Option<u64>); 7] = [
    (64 << 10, 88, Some(4096)),
    (128 << 10, 88, Some(4096)),
    (192 << 10, 112, Some(65536)),
    (256 << 10, 112, Some(65536)),
    // The log, the metadata table, the BAT.
    (MIB, 8 * 4096, None),
    (2 * MIB, 300, None),
    (3 * MIB, 9 * 4096, None),
];

fn harm(file: &mut MemoryStorage, random: &mut Random) {
    let (start, len, checked) = STRUCTURES[random.below(STRUCTURES.len() as u64) as usize];
    for _ in 0..=random.below(3) {
        let width = 1 << random.below(4);
        let at = start + random.below(len / 8) * 8 + [0, 4][random.below(2) as usize];
        file.put(at, &evil(random).to_le_bytes()[..width]);
    }
    if let Some(len) = checked {
        sign(file, start, len);
    } else if start == MIB {
        // Entries of the log as well, else a checksum keeps all harm out.
        for at in (start..start + MIB).step_by(4096) {
            let mut head = [0; 12];
            file.get(at, &mut head);
            let len = u64::from(u32::from_le_bytes(head[8..].try_into().unwrap()));
            if head.starts_with(b"loge") && (4096..=MIB).contains(&len) && at + len <= start + MIB {
                sign(file, at, len);
            }
        }
    } else if start == 2 * MIB {
        // The items lie 64 KiB further on.
        let at = start + (64 << 10) + random.below(8) * 4;
        file.put(at, &evil(random).to_le_bytes());
    }
    if random.one_in(20) {
        let len = file.length();
        file.resize(random.below(len + 8 * MIB));
    }
}

fn sign(file: &mut MemoryStorage, at: u64, len: u64) {
    let mut bytes = vec![0; len as usize];
    file.get(at, &mut bytes);
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(&bytes);
    file.put(at + 4, &sum.to_le_bytes());
}

/// Everything that is done with images; whether it could be opened for writing.
fn use_it(file: &MemoryStorage, random: &mut Random) -> bool {
    let mut counted = Counted {
        file: file.clone(),
        left: PATIENCE,
    };
    let _ = check(&mut counted);
    let mut back = vec![0; 70_000];
    let places = [0, 7 * MIB, 8 * MIB - 100, 14 * MIB, 4100 * MIB];
    if let Ok(mut disk) = open(file.clone(), true, random) {
        for place in places {
            let _ = disk.read_at(place, &mut back);
            let _ = disk.status(place, 10 * MIB);
        }
        let _ = disk.close();
    }
    let Ok(mut disk) = open(file.clone(), false, random) else {
        return false;
    };
    for place in places {
        let _ = disk.write_at(place + MIB, &back);
        let _ = disk.discard(place, 3 * MIB);
        let _ = disk.zero(place + 1000, 70_000);
        let _ = disk.flush();
        let _ = disk.read_at(place, &mut back);
    }
    let _ = disk.close();
    true
}

#[test]
fn whatever_an_image_says_its_use_comes_to_an_end() {
    let seeds = match number("DISKFERRY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DISKFERRY_SEEDS").unwrap_or(600),
    };
    let many = seeds.end - seeds.start;
    let mut opened = 0;
    for seed in seeds {
        println!("DISKFERRY_SEED={seed}");
        let mut random = Random::new(seed);
        let mut file = sound(&mut random);
        for _ in 0..=random.below(2) {
            harm(&mut file, &mut random);
        }
        opened += u64::from(use_it(&file, &mut random));
    }
    println!("{opened} of {many} were opened for writing");
    assert!(
        many == 1 || (many / 20..many).contains(&opened),
        "harm that does none, or none let in"
    );
}
