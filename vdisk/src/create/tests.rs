//! Promises of a new image: sound, small, complete at the last write, and clear about what cannot be.

use super::*;
use crate::check::check;
use crate::info::info;
use crate::open::{Admit, LoadOptions, load};
use crate::storage::{CrashStorage, MemoryStorage};

const TIB: u64 = 1 << 40;

/// Random bits that are the same in every run.
pub(crate) fn counter() -> impl FnMut() -> u128 {
    let mut next = 0;
    move || {
        next += 1;
        next
    }
}

pub(crate) fn made(
    change: impl FnOnce(&mut CreateOptions<'_>),
    size: u64,
) -> Result<MemoryStorage> {
    let mut storage = MemoryStorage::new();
    let mut random = counter();
    let mut options = CreateOptions::new(size, &mut random);
    change(&mut options);
    create(&mut storage, options)?;
    Ok(storage)
}

fn refusal(change: impl FnOnce(&mut CreateOptions<'_>), size: u64, words: &str) {
    let error = made(change, size).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn every_size_and_block_size_is_sound() {
    let sizes = [
        512,
        4096,
        (1 << 20) + 512,
        5 << 30,
        100 << 30,
        TIB,
        16 * TIB,
        64 * TIB,
    ];
    for size in sizes {
        for block in [None, Some(1 << 20), Some(32 << 20), Some(256 << 20)] {
            let mut storage = made(|options| options.block_size = block, size).unwrap();
            let report = check(&mut storage).unwrap();
            assert!(
                report.is_sound() && report.findings.is_empty(),
                "{report:?}"
            );
            assert_eq!(report.leaked_mib, 0);
            let blocks = size.div_ceil(u64::from(block.unwrap_or(default_block_size(size))));
            assert_eq!(report.blocks.not_present, blocks);
        }
    }
}

#[test]
fn the_largest_disk_with_the_smallest_blocks_takes_next_to_no_space() {
    let storage = made(|options| options.block_size = Some(1 << 20), 64 * TIB).unwrap();
    assert!(storage.allocated() < 256 << 10, "{}", storage.allocated());
    assert_eq!(storage.length(), (1 + 64 + 1 + 513) * MIB);
}

#[test]
fn a_fixed_disk_has_every_block_in_order() {
    for size in [512, 5 << 30, (5 << 30) + (1 << 20)] {
        let mut storage = made(
            |options| {
                options.fixed = true;
                options.block_size = Some(1 << 20);
            },
            size,
        )
        .unwrap();
        let report = check(&mut storage).unwrap();
        assert!(
            report.is_sound() && report.findings.is_empty(),
            "{report:?}"
        );
        assert_eq!(report.blocks.fully_present, size.div_ceil(1 << 20));
        assert_eq!(report.blocks.not_present, 0);
        assert_eq!(report.allocated, report.file_len);
        assert_eq!(info(&mut storage).unwrap().kind, "fixed");
    }
}

#[test]
fn what_was_asked_for_is_what_it_says() {
    let id = Guid::from_random(77);
    let mut storage = made(
        |options| {
            options.logical_sector = 4096;
            options.physical_sector = 512;
            options.disk_id = Some(id);
            options.block_size = Some(4 << 20);
        },
        TIB,
    )
    .unwrap();
    let info = info(&mut storage).unwrap();
    assert_eq!((info.virtual_size, info.block_size), (TIB, 4 << 20));
    assert_eq!((info.logical_sector, info.physical_sector), (4096, 512));
    assert_eq!((info.ids.disk, info.kind, info.mark), (id, "dynamic", None));
    assert!(info.creator.starts_with("Diskferry "), "{}", info.creator);
    assert!(!info.log.dirty && info.warnings.is_empty());
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["ids"]["disk"], id.to_string());
}

#[test]
fn sizes_that_cannot_be_are_refused_with_what_can() {
    refusal(|_| (), 0, "empty");
    refusal(|_| (), 65 * TIB, "at most 64 TiB");
    refusal(|_| (), u64::MAX, "at most 64 TiB");
    refusal(|_| (), 1000, "1024 would be");
    refusal(
        |options| options.logical_sector = 4096,
        4608,
        "8192 would be",
    );
    refusal(
        |options| options.logical_sector = 520,
        TIB,
        "logical sector",
    );
    refusal(
        |options| options.physical_sector = 0,
        TIB,
        "physical sector",
    );
    refusal(|options| options.block_size = Some(3 << 20), TIB, "block");
    refusal(|options| options.block_size = Some(512 << 20), TIB, "block");
    refusal(|options| options.block_size = Some(0), TIB, "block");
}

#[test]
fn a_file_that_holds_something_is_left_alone() {
    let mut storage = MemoryStorage::from_bytes(b"precious");
    let mut random = counter();
    let error = create(&mut storage, CreateOptions::new(TIB, &mut random)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!(storage.length(), 8);
}

#[test]
fn default_block_sizes_and_logs_follow_the_size() {
    let gib = 1 << 30;
    for (size, block, log) in [
        (gib, 2, 4),
        (64 * gib, 2, 4),
        (64 * gib + 512, 8, 4),
        (TIB, 8, 4),
        (16 * TIB, 32, 16),
        (64 * TIB, 32, 64),
    ] {
        assert_eq!(default_block_size(size), block << 20, "{size}");
        let geometry = Geometry::new(block << 20, 512, size, false).unwrap();
        assert_eq!(default_log_len(&geometry), log * MIB, "{size}");
    }
}

#[test]
fn a_marked_image_opens_only_when_told() {
    for mark in [Mark::Incomplete, Mark::HandedOver] {
        let mut storage = made(|options| options.mark = Some(mark), TIB).unwrap();
        let mut random = counter();
        let mut open = |allow_marked| {
            load(
                &mut storage,
                LoadOptions {
                    writable: true,
                    scan_bat: true,
                    admit: Admit {
                        marked: allow_marked,
                        parent: false,
                    },
                    random: &mut random,
                },
            )
        };
        assert_eq!(open(false).unwrap_err().kind(), ErrorKind::NotOwned);
        assert_eq!(open(true).unwrap().metadata.mark, Some(mark));
        assert!(info(&mut storage).unwrap().mark.is_some());
        let report = check(&mut storage).unwrap();
        assert!(
            report.is_sound() && report.findings.len() == 1,
            "{report:?}"
        );
    }
}

/// Numbers below a bound, the same for the same seed.
pub(crate) fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed + 1;
    move |bound| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99);
        (state >> 33) % bound.max(1)
    }
}

/// A storage that remembers flushes and whose power is cut after so many operations.
pub(crate) struct Cut {
    pub(crate) storage: CrashStorage,
    /// How many changes and flushes still succeed.
    pub(crate) left: usize,
}

impl Cut {
    fn step(&mut self) -> std::io::Result<()> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| std::io::Error::other("power cut"))?;
        Ok(())
    }
}

impl Storage for Cut {
    fn len(&mut self) -> std::io::Result<u64> {
        self.storage.len()
    }
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.storage.read_at(offset, buffer)
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.step()?;
        self.storage.write_at(offset, data)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.step()?;
        self.storage.flush()
    }
    fn set_len(&mut self, len: u64) -> std::io::Result<()> {
        self.step()?;
        self.storage.set_len(len)
    }
    fn zero(&mut self, offset: u64, len: u64, keep: bool) -> std::io::Result<()> {
        self.step()?;
        self.storage.zero(offset, len, keep)
    }
    fn reserve(&mut self, offset: u64, len: u64) -> std::io::Result<()> {
        self.storage.reserve(offset, len)
    }
    fn next_data(&mut self, offset: u64) -> std::io::Result<Option<u64>> {
        self.storage.next_data(offset)
    }
}

#[test]
fn a_creation_cut_short_leaves_nothing_or_a_whole_image() {
    let (mut nothing, mut whole) = (0, 0);
    for left in 0..12 {
        for seed in 0..50_u64 {
            let mut cut = Cut {
                storage: CrashStorage::new(MemoryStorage::new()),
                left,
            };
            let mut random = counter();
            let mut options = CreateOptions::new(3 << 20, &mut random);
            options.fixed = true;
            let done = create(&mut cut, options).is_ok();
            let mut image = cut.storage.cut(&[], &mut dice(seed));
            let mut signature = [0; 8];
            image.get(0, &mut signature);
            if signature == *b"vhdxfile" {
                let report = check(&mut image).unwrap();
                assert!(
                    report.is_sound(),
                    "{left} operations, seed {seed}: {report:?}"
                );
                whole += 1;
            } else {
                assert!(!done, "{left} operations, seed {seed}");
                nothing += 1;
            }
        }
    }
    assert!(nothing > 0 && whole > 0);
}
