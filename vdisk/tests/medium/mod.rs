//! A file in memory of which the test fails operations and cuts the power, and images on it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use vdisk::check::check;
use vdisk::create::{CreateOptions, create};
use vdisk::disk::{Disk, ImageFormat, OpenOptions, open_engine, random_bits};
use vdisk::open::{Admit, Image, LoadOptions, load};
use vdisk::storage::{CrashStorage, MemoryStorage, Storage};

pub(crate) const MIB: u64 = 1 << 20;

/// A file of which one operation, or each from that one on, fails.
#[derive(Clone)]
pub(crate) struct Medium(Arc<Mutex<State>>);

pub(crate) struct State {
    pub(crate) file: CrashStorage,
    /// Operations so far.
    pub(crate) done: u64,
    /// Bytes read so far.
    pub(crate) read: u64,
    /// The number of the one that fails.
    pub(crate) fails: u64,
    /// Whether each after it fails as well.
    pub(crate) for_good: bool,
}

impl Medium {
    pub(crate) fn new(image: MemoryStorage) -> Self {
        Self(Arc::new(Mutex::new(State {
            file: CrashStorage::new(image),
            done: 0,
            read: 0,
            fails: u64::MAX,
            for_good: false,
        })))
    }

    /// The file itself, and what has happened to it.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// What a power cut leaves of the file; another seed, another outcome.
    pub(crate) fn cut(&self, seed: u64) -> MemoryStorage {
        let mut choices = seed;
        self.state().file.cut(&[], &mut |bound| {
            choices = choices
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (choices >> 33) % bound
        })
    }

    fn spend(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let number = state.done;
        state.done += 1;
        if number == state.fails || state.for_good && number > state.fails {
            return Err(io::Error::other("the medium failed"));
        }
        Ok(state)
    }
}

impl Storage for Medium {
    fn len(&mut self) -> io::Result<u64> {
        self.state().file.len()
    }
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.spend()?;
        state.read += buffer.len() as u64;
        state.file.read_at(offset, buffer)
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.spend()?.file.write_at(offset, data)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.spend()?.file.flush()
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.spend()?.file.set_len(len)
    }
    fn zero(&mut self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        self.spend()?.file.zero(offset, len, keep)
    }
    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.spend()?.file.reserve(offset, len)
    }
    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        self.spend()?.file.next_data(offset)
    }
    fn next_hole(&mut self, offset: u64) -> io::Result<u64> {
        // The next page that is not there; the file's end counts as one.
        let mut state = self.spend()?;
        let len = state.file.len()?;
        let mut at = offset;
        while at < len && state.file.next_data(at)? == Some(at) {
            at = (at / 4096 + 1) * 4096;
        }
        Ok(at)
    }
}

/// An empty image with blocks of 1 MiB.
pub(crate) fn new_image(size: u64, fixed: bool) -> MemoryStorage {
    let mut storage = MemoryStorage::new();
    let mut random = random_bits;
    let mut options = CreateOptions::new(size, &mut random);
    options.block_size = Some(MIB as u32);
    options.fixed = fixed;
    create(&mut storage, options).unwrap();
    storage
}

/// The same, in some format.
pub(crate) fn opened(medium: &Medium, format: ImageFormat) -> vdisk::Result<Disk> {
    let mut storage = medium.clone();
    let engine = open_engine(
        &mut storage,
        format,
        &OpenOptions::default(),
        &mut random_bits,
    )?;
    Ok(Disk::new(Box::new(storage), engine))
}

/// The disk in the file.
pub(crate) fn vhdx(medium: &Medium) -> Disk {
    opened(medium, ImageFormat::Vhdx).unwrap()
}

/// What the file says now.
pub(crate) fn structures(medium: &Medium) -> Image {
    let mut image = medium.state().file.live().clone();
    let options = LoadOptions {
        writable: false,
        scan_bat: true,
        admit: Admit::default(),
        random: &mut random_bits,
    };
    load(&mut image, options).unwrap()
}

/// Some bytes of a disk.
pub(crate) fn read(disk: &mut Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; len];
    disk.read_at(offset, &mut bytes).unwrap();
    bytes
}

/// Nothing is wrong with the image.
pub(crate) fn assert_sound(image: &mut dyn Storage) {
    let report = check(image).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}
