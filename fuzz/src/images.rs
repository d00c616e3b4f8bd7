//! Sound images for the targets to spoil, made once for the process.

use std::sync::OnceLock;

use arbitrary::Arbitrary;
use vdisk::create::{CreateOptions, create};
use vdisk::disk::{Disk, OpenOptions, open_child_engine_with};
use vdisk::engine::{Engine, EngineOptions, Mark};
use vdisk::format::{Guid, ParentLocator};
use vdisk::storage::MemoryStorage;

use crate::file::SharedFile;

pub(crate) const MIB: u64 = 1 << 20;

/// In every image made here, where its structures are.
pub(crate) const LOG_AT: u64 = MIB;
pub(crate) const METADATA_AT: u64 = 2 * MIB;
pub(crate) const BAT_AT: u64 = 3 * MIB;

/// Bytes of the disk that [`Base::Child`] and its like are built on.
const PARENT_LEN: u64 = 20 * MIB + 4096;

/// Which image.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    Dynamic,
    DirtyDynamic,
    Fixed,
    DirtyFixed,
    Child,
    DirtyChild,
    LargeSectors,
    Marked,
}

const ALL: [Base; 8] = [
    Base::Dynamic,
    Base::DirtyDynamic,
    Base::Fixed,
    Base::DirtyFixed,
    Base::Child,
    Base::DirtyChild,
    Base::LargeSectors,
    Base::Marked,
];

impl Base {
    pub(crate) fn is_child(self) -> bool {
        matches!(self, Self::Child | Self::DirtyChild)
    }

    fn is_dirty(self) -> bool {
        matches!(
            self,
            Self::DirtyDynamic | Self::DirtyFixed | Self::DirtyChild
        )
    }

    /// The image, which shares its pages with all others made of the same base.
    pub(crate) fn image(self) -> MemoryStorage {
        static MADE: OnceLock<Vec<MemoryStorage>> = OnceLock::new();
        let made = MADE.get_or_init(|| ALL.into_iter().map(make).collect());
        let place = ALL.iter().position(|base| *base == self);
        made[place.expect("all are there")].clone()
    }
}

/// Bits that are the same in each run, and different at each call.
pub(crate) fn bits(seed: u64) -> impl FnMut() -> u128 {
    let mut last = u128::from(seed) << 64 | 0x2545_F491_4F6C_DD1D;
    move || {
        last = last
            .wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645)
            .wrapping_add(1);
        last ^ last >> 64
    }
}

/// A disk for the children to be built on: every block holds something.
fn parent() -> Disk {
    let mut file = MemoryStorage::new();
    file.resize(PARENT_LEN);
    for block in 0..20 {
        file.put(block * MIB, &[0xA0 + block as u8; 3 * 4096]);
    }
    Disk::new(Box::new(file), Engine::raw(PARENT_LEN, 1, true))
}

/// Open an image, and the parent of one that has one.
pub(crate) fn open(file: &SharedFile, options: &OpenOptions, child: bool) -> vdisk::Result<Disk> {
    let mut storage = file.clone();
    let tune = |options: EngineOptions| EngineOptions {
        log_len: Some(MIB as u32),
        ..options
    };
    let (engine, lineage) = open_child_engine_with(&mut storage, options, &mut bits(7), tune)?;
    let disk = Disk::new(Box::new(storage), engine);
    // Harm can make a child of what was none, and the reverse.
    Ok(if child || lineage.parent.is_some() {
        disk.over(parent())
    } else {
        disk
    })
}

fn make(base: Base) -> MemoryStorage {
    let mut file = MemoryStorage::new();
    let mut bits = bits(base as u64);
    let size = match base {
        Base::Fixed | Base::DirtyFixed => 6 * MIB,
        Base::DirtyDynamic => 1100 * MIB,
        _ => 40 * MIB + 4096,
    };
    let mut options = CreateOptions::new(size, &mut bits);
    options.block_size = Some(MIB as u32);
    options.log_len = Some(MIB as u32);
    options.fixed = matches!(base, Base::Fixed | Base::DirtyFixed);
    if base == Base::LargeSectors {
        options.logical_sector = 4096;
    }
    if base == Base::Marked {
        options.mark = Some(Mark::Incomplete);
    }
    if base.is_child() {
        let linkage = Guid::from_random(1);
        options.parent = Some(ParentLocator::new(linkage, "folder/parent.vhdx"));
    }
    create(&mut file, options).expect("an image is created");
    let shared = SharedFile::new(file);
    let open_options = OpenOptions {
        allow_marked: true,
        ..OpenOptions::default()
    };
    let mut disk = open(&shared, &open_options, base.is_child()).expect("it opens");
    for (number, block) in [0, 3, 5].into_iter().enumerate() {
        let data = [number as u8 + 1; 2 * 4096];
        disk.write_at(block * MIB + 512 * 8, &data)
            .expect("written");
        disk.flush().expect("flushed");
    }
    if base.is_child() {
        // A block that is its own in whole.
        let whole = vec![0x77; MIB as usize];
        disk.write_at(MIB, &whole).expect("written");
    }
    disk.zero(2 * MIB, MIB).expect("zeroed");
    disk.discard(5 * MIB, MIB).expect("discarded");
    disk.flush().expect("flushed");
    if base.is_dirty() {
        drop(disk);
    } else {
        disk.close().expect("closed");
    }
    shared.content()
}
