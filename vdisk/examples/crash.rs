//! Find out what a power cut leaves: a disk over a file that remembers what was flushed.
//!
//! Whoever changes the engine, or writes a storage, can hold it against [`CrashStorage`]: it yields any
//! image that a cut may leave, with writes lost, reordered and torn.

use std::io;
use std::sync::{Arc, Mutex};

use vdisk::check::check;
use vdisk::create::{CreateOptions, create};
use vdisk::disk::{Disk, ImageFormat, OpenOptions, open_engine, random_bits};
use vdisk::storage::{CrashStorage, MemoryStorage, Storage};

/// The file, held by the disk and by whoever cuts the power.
#[derive(Clone)]
struct Shared(Arc<Mutex<CrashStorage>>);

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut CrashStorage) -> T) -> T {
        act(&mut self.0.lock().expect("nobody panicked"))
    }
}

impl Storage for Shared {
    fn len(&mut self) -> io::Result<u64> {
        self.with(Storage::len)
    }
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.with(|file| file.read_at(offset, buffer))
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|file| file.write_at(offset, data))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.with(Storage::flush)
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.with(|file| file.set_len(len))
    }
    fn zero(&mut self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        self.with(|file| file.zero(offset, len, keep))
    }
    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.with(|file| file.reserve(offset, len))
    }
    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        self.with(|file| file.next_data(offset))
    }
}

fn open(storage: impl Storage + Send + 'static) -> vdisk::Result<Disk> {
    let (mut storage, options) = (Box::new(storage), OpenOptions::default());
    let engine = open_engine(&mut *storage, ImageFormat::Vhdx, &options, &mut random_bits)?;
    Ok(Disk::new(storage, engine))
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut image = MemoryStorage::new();
    create(&mut image, CreateOptions::new(64 << 20, &mut random_bits))?;
    let file = Shared(Arc::new(Mutex::new(CrashStorage::new(image))));
    let mut disk = open(file.clone())?;
    disk.write_at(0, &[1; 8192])?;
    disk.flush()?;
    disk.write_at(0, &[2; 4096])?;
    disk.write_at(30 << 20, &[3; 4096])?;

    let mut state = 1_u64;
    let mut choose = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    for _ in 0..200 {
        let mut left = file.with(|file| file.cut(&[], &mut choose));
        assert!(check(&mut left)?.is_sound());
        let mut disk = open(left)?;
        let mut back = [0xEE; 8192];
        disk.read_at(0, &mut back)?;
        // What was flushed is there, or what was written over it since, sector by sector.
        let sectors = back.chunks(512).enumerate();
        let right = |(n, sector): (usize, &[u8])| sector == [1; 512] || n < 8 && sector == [2; 512];
        assert!(sectors.into_iter().all(right));
    }
    Ok(())
}
