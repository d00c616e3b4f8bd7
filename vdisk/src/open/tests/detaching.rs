//! The rules about images that are being made disks of their own.

use super::*;
use crate::create::{CreateOptions, create};
use crate::format::ParentLocator;

/// Not whole blocks, and the last chunk not full.
const SIZE: u64 = 20 * GIB - 5 * 512;
const VERSION_OF_PARENT: Guid = Guid::known(7);

/// A child in blocks of 1 MiB, its first free mebibyte, and where its table lies.
struct Child {
    storage: MemoryStorage,
    free: u64,
    image: Image,
}

fn load_any(storage: &mut dyn Storage, writable: bool) -> Image {
    let admit = Admit {
        parent: true,
        marked: false,
    };
    let mut random = counter();
    let options = LoadOptions {
        admit,
        ..options(writable, &mut random)
    };
    load(storage, options).unwrap()
}

impl Child {
    fn new(size: u64) -> Self {
        let mut storage = MemoryStorage::new();
        let mut random = counter();
        let options = CreateOptions {
            block_size: Some(1 << 20),
            log_len: Some(1 << 20),
            parent: Some(ParentLocator::new(VERSION_OF_PARENT, "parent.vhdx")),
            ..CreateOptions::new(size, &mut random)
        };
        create(&mut storage, options).unwrap();
        let image = load_any(&mut storage, false);
        let free = image.file_len;
        Self {
            storage,
            free,
            image,
        }
    }

    /// Space for another object.
    fn take(&mut self) -> u64 {
        self.free += MIB;
        self.storage.resize(self.free);
        self.free - MIB
    }

    fn put(&mut self, index: u64, entry: u64) {
        self.storage
            .put(self.image.bat().at.0 + index * 8, &entry.to_le_bytes());
    }

    fn block(&mut self, block: u64, state: u64) -> u64 {
        let at = if state > 5 { self.take() } else { 0 };
        self.put(block + block / 4096, at | state);
        at
    }

    fn bitmap(&mut self, chunk: u64) -> u64 {
        let at = self.take();
        self.put(chunk * 4097 + 4096, at | 6);
        at
    }

    /// Sets the bits of the first sectors of a block in the bitmap at `bitmap`.
    fn own(&mut self, bitmap: u64, block: u64, sectors: usize) {
        let mut bits = vec![0xFF; sectors / 8];
        if !sectors.is_multiple_of(8) {
            bits.push((1 << (sectors % 8)) - 1);
        }
        self.storage.put(bitmap + block % 4096 * 256, &bits);
    }
}

/// A child of which nothing is the parent's but absent blocks.
fn ready() -> Child {
    let mut child = Child::new(SIZE);
    let last = SIZE / MIB;
    for (chunk, block, sectors) in [(0, 3, 2048), (last / 4096, last, 2043)] {
        let bitmap = child.bitmap(chunk);
        child.block(block, 7);
        child.own(bitmap, block, sectors);
    }
    // A bitmap that no block needs, and blocks that need none.
    child.bitmap(2);
    for (block, state) in [(4, 6), (5, 2), (6, 3), (9000, 6)] {
        child.block(block, state);
    }
    child
}

/// Where each block's bytes are; states that read alike are alike.
fn places(storage: &mut MemoryStorage, writable: bool) -> (bool, Vec<u64>) {
    let image = load_any(storage, writable);
    let mut view = View {
        overlay: image.overlay.clone(),
        len: image.file_len,
        storage,
    };
    let table = view.read(image.bat().at.0, 8 * (20480 + 4), "BAT").unwrap();
    let entry = |block: usize| {
        let at = (block + block / 4096) * 8;
        u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
    };
    let place = |entry: u64| if entry & 7 > 5 { entry & !7 } else { 0 };
    let places = (0..20480).map(|block| place(entry(block))).collect();
    if let Some(locator) = &image.metadata.parent {
        assert_eq!(locator.linkages().unwrap(), [VERSION_OF_PARENT]);
    }
    (image.metadata.parent.is_some(), places)
}

#[test]
fn a_power_cut_while_a_disk_becomes_one_of_its_own_changes_nothing_that_is_read() {
    let mut child = ready();
    let version = child.image.header.data_write;
    let before = places(&mut child.storage, false);
    assert_eq!(before.1.iter().filter(|place| **place != 0).count(), 4);
    let (mut alone, mut cuts) = (0, 0);
    for left in 0.. {
        let mut whole = false;
        for seed in 0..12 {
            let mut cut = Cut {
                storage: CrashStorage::new(child.storage.clone()),
                left,
            };
            whole = detach(&mut cut, version, &mut counter()).is_ok();
            let mut image = cut.storage.cut(&[], &mut dice(seed));
            for writable in [false, true] {
                let seen = places(&mut image, writable);
                assert!(seen.1 == before.1, "{left} operations, seed {seed}");
                assert!(!(whole && seen.0));
                alone += u32::from(!seen.0 && !whole);
            }
            assert!(check(&mut image).unwrap().is_sound());
            // And going on ends it.
            detach(&mut image, version, &mut counter()).unwrap();
            assert_eq!(places(&mut image, true), (false, before.1.clone()));
            let report = check(&mut image).unwrap();
            let harmless = |f: &Finding| matches!(f.severity, Severity::Leak | Severity::Info);
            assert!(report.findings.iter().all(harmless), "{report:?}");
            assert_eq!(info(&mut image).unwrap().ids.data_write, version);
            cuts += 1;
        }
        if whole {
            break;
        }
    }
    assert!(
        cuts > 400 && alone > 50,
        "{cuts} cuts, {alone} of them late"
    );
}

#[test]
fn a_disk_that_still_reads_from_its_parent_is_not_detached() {
    let version = ready().image.header.data_write;
    let refused = |child: &mut Child, version| {
        let error = detach(&mut child.storage, version, &mut counter()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked, "{error}");
        assert!(places(&mut child.storage, true).0);
    };
    refused(&mut ready(), Guid::known(3));
    for (block, sectors) in [(3, 2047), (SIZE / MIB, 2042)] {
        let mut child = ready();
        let bitmap = child.bitmap(block / 4096);
        child.own(bitmap, block, sectors);
        refused(&mut child, version);
    }
}

#[test]
fn more_pages_than_one_entry_of_the_log_holds_are_made_whole() {
    let mut child = Child::new(256 * GIB);
    for chunk in 0..64 {
        let bitmap = child.bitmap(chunk);
        for page in 0..8 {
            let block = chunk * 4096 + page * 512 + 3;
            child.block(block, 7);
            child.own(bitmap, block, 2048);
        }
    }
    let blocks = PartialBlocks::read(&mut child.storage, &mut counter()).unwrap();
    assert_eq!(
        (0..64 * 4096)
            .filter(|block| blocks.contains(*block))
            .count(),
        512
    );
    let version = child.image.header.data_write;
    assert!(detach(&mut child.storage, version, &mut counter()).unwrap());
    let counts = check(&mut child.storage).unwrap().blocks;
    assert_eq!((counts.fully_present, counts.partially_present), (512, 0));
}
