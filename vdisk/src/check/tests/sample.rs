//! Images to be damaged, and what their disks read as.

use std::collections::BTreeMap;

use crate::check::check;
use crate::create::tests::{counter, made};
use crate::format::bat::ENTRY_BYTES;
use crate::format::{BatEntry, BlockState, Guid, Header, ParentLocator};
use crate::open::{Admit, Image, LoadOptions, View, load};
use crate::storage::{MemoryStorage, Storage};
use crate::units::{BlockIndex, FileOffset, MIB};

pub(crate) const SIZE: u64 = 20 << 30;

/// What kind of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Dynamic,
    Fixed,
    Child,
}

/// A disk of 20 GiB (a fixed one: 4 MiB) with blocks of 1 MiB. A dynamic one has the blocks 0 and 5, a
/// child the bitmap of its first chunk, block 0 with some sectors of its own, block 1 whole.
pub(crate) struct Sample {
    pub(crate) storage: MemoryStorage,
    pub(crate) image: Image,
}

impl Sample {
    pub(crate) fn new(kind: Kind) -> Self {
        let size = if kind == Kind::Fixed { 4 * MIB } else { SIZE };
        let storage = made(
            |options| {
                options.block_size = Some(1 << 20);
                options.log_len = Some(1 << 20);
                options.fixed = kind == Kind::Fixed;
                if kind == Kind::Child {
                    options.parent = Some(ParentLocator::new(Guid::known(7), "parent.vhdx"));
                }
            },
            size,
        );
        let mut storage = storage.unwrap();
        let image = opened(&mut storage).unwrap();
        let mut sample = Self { storage, image };
        let free = sample.free();
        match kind {
            Kind::Fixed => {}
            Kind::Dynamic => {
                sample.storage.resize(free + 2 * MIB);
                sample.entry(0, free | 6).entry(5, (free + MIB) | 6);
                sample
                    .put(free, &[7; 5000])
                    .put(free + MIB + 4096, &[8; 5000]);
            }
            Kind::Child => {
                sample.storage.resize(free + 3 * MIB);
                let bitmap = sample.bitmap_entry(0);
                sample.put(bitmap, &(free | 6).to_le_bytes());
                sample
                    .entry(0, (free + MIB) | 7)
                    .entry(1, (free + 2 * MIB) | 6);
                sample.put(free, &[0xFF, 0x0F]);
                sample.put(free + MIB, &[7; 12 * 512]);
                sample.put(free + 2 * MIB, &[9; 5000]);
            }
        }
        sample
    }

    /// Where the first block behind the BAT lies.
    pub(crate) fn free(&self) -> u64 {
        self.image.bat().end()
    }

    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) -> &mut Self {
        self.storage.put(at, bytes);
        self
    }

    /// Where the entry of a block lies.
    pub(crate) fn entry_at(&self, block: u64) -> u64 {
        let index = self.image.geometry.bat_index(BlockIndex(block));
        self.image.bat().at.0 + index.0 * ENTRY_BYTES
    }

    /// Where the entry of a chunk's bitmap lies.
    pub(crate) fn bitmap_entry(&self, chunk: u64) -> u64 {
        let index = self.image.geometry.bitmap_index(chunk);
        self.image.bat().at.0 + index.0 * ENTRY_BYTES
    }

    pub(crate) fn entry(&mut self, block: u64, entry: u64) -> &mut Self {
        let at = self.entry_at(block);
        self.put(at, &entry.to_le_bytes())
    }

    /// Both headers anew, changed by `change`.
    pub(crate) fn header(&mut self, change: impl Fn(&mut Header)) -> &mut Self {
        for slot in [self.image.slot.other(), self.image.slot] {
            let mut header = self.image.header.next().unwrap();
            change(&mut header);
            self.put(slot.at().0, &header.encode());
            self.image.header = header;
        }
        self
    }

    /// The bytes of a range.
    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.storage.get(at, &mut bytes);
        bytes
    }

    /// Makes the checksum of a structure right that has it at its byte 4.
    pub(crate) fn sign(&mut self, at: u64, len: usize) -> &mut Self {
        let crc = crate::format::checksum(&self.bytes(at, len), 4);
        self.put(at + 4, &crc.to_le_bytes())
    }

    /// Both copies of the region table, changed alike.
    pub(crate) fn regions(&mut self, within: u64, bytes: &[u8]) -> &mut Self {
        for copy in [192 << 10, 256 << 10] {
            self.put(copy + within, bytes).sign(copy, 64 << 10);
        }
        self
    }
}

pub(crate) fn opened(storage: &mut dyn Storage) -> crate::Result<Image> {
    let options = LoadOptions {
        writable: false,
        scan_bat: true,
        admit: Admit {
            marked: true,
            parent: true,
        },
        random: &mut counter(),
    };
    load(storage, options)
}

/// What a disk reads as, of what its file says: every sector that is its own and not zero, and where
/// there is a parent also those that are. `None` if it cannot be opened.
pub(crate) fn content(storage: &MemoryStorage) -> Option<BTreeMap<(u64, u64), u32>> {
    let mut storage = storage.clone();
    let image = opened(&mut storage).ok()?;
    let mut view = View {
        overlay: image.overlay.clone(),
        len: image.file_len,
        storage: &mut storage,
    };
    let geometry = image.geometry;
    let has_parent = geometry.differencing();
    let mut read = |at: u64, len: usize| view.read(at, len, "test").unwrap();
    let mut content = BTreeMap::new();
    let table = read(image.bat().at.0, geometry.bat_len() as usize);
    let entry = |index: u64| {
        let at = index as usize * 8;
        BatEntry::decode(u64::from_le_bytes(table[at..at + 8].try_into().unwrap())).unwrap()
    };
    for block in 0..geometry.payload_blocks() {
        let found = entry(geometry.bat_index(BlockIndex(block)).0);
        let own: Box<dyn Fn(usize) -> bool> = match found.state {
            BlockState::NotPresent => continue,
            BlockState::PartiallyPresent => {
                let bitmap = entry(geometry.bitmap_index(block / geometry.chunk_ratio()).0);
                let bits = read(bitmap.offset.0 + block % geometry.chunk_ratio() * 256, 256);
                Box::new(move |sector| bits[sector / 8] & (1 << (sector % 8)) != 0)
            }
            _ => Box::new(|_| true),
        };
        let data = match found.state {
            state if state.is_present() => read(found.offset.0, 1 << 20),
            _ => vec![0; 1 << 20],
        };
        for (number, sector) in data.chunks(512).enumerate() {
            let matters = has_parent || sector.iter().any(|byte| *byte != 0);
            if own(number) && matters {
                content.insert((block, number as u64), crc32c::crc32c(sector));
            }
        }
    }
    Some(content)
}

/// Everything that is in a file.
pub(crate) fn same_files(a: &MemoryStorage, b: &MemoryStorage) -> bool {
    let (mut a, mut b) = (a.clone(), b.clone());
    let len = a.length();
    if len != b.length() {
        return false;
    }
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let next = [a.next_data(at).unwrap(), b.next_data(at).unwrap()];
        let Some(data) = next.into_iter().flatten().min().filter(|at| *at < len) else {
            return true;
        };
        at = data / MIB * MIB;
        a.get(at, &mut x);
        b.get(at, &mut y);
        if x != y {
            return false;
        }
        at += MIB;
    }
}

#[test]
fn the_samples_are_sound() {
    for kind in [Kind::Dynamic, Kind::Fixed, Kind::Child] {
        let mut sample = Sample::new(kind);
        let report = check(&mut sample.storage).unwrap();
        let clean = report
            .findings
            .iter()
            .all(|found| found.message == "the image has a parent");
        assert!(report.is_sound() && clean, "{kind:?}: {report:?}");
        assert!(content(&sample.storage).is_some());
        let _ = FileOffset(0);
    }
}
