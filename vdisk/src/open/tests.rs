//! Promises of an open image: every rule of the validation list of `docs/vhdx.md` refuses or warns,
//! a replay survives a power cut anywhere, a refused image is not changed, nothing panics.

use proptest::prelude::*;

use super::*;
use crate::check::check;
use crate::create::tests::{Cut, counter, dice, made};
use crate::format::log::{EntryPlan, encode_entry};
use crate::format::{BatEntry, Guid, PAGE_BYTES, checksum};
use crate::info::info;
use crate::storage::{CrashStorage, MemoryStorage};
use crate::units::{BlockIndex, FileOffset};

mod detaching;
mod parents;

const GIB: u64 = 1 << 30;

fn options(writable: bool, random: &mut dyn FnMut() -> u128) -> LoadOptions<'_> {
    LoadOptions {
        writable,
        scan_bat: true,
        admit: Admit {
            marked: false,
            parent: false,
        },
        random,
    }
}

fn opened(storage: &mut dyn Storage, writable: bool) -> Result<Image> {
    load(storage, options(writable, &mut counter()))
}

/// A disk of 20 GiB with blocks of 1 MiB, the file long enough for ten blocks behind the BAT.
struct Sample {
    storage: MemoryStorage,
    image: Image,
}

impl Sample {
    fn new() -> Self {
        Self::of(&mut |_| ())
    }

    fn of(change: &mut dyn FnMut(&mut crate::create::CreateOptions<'_>)) -> Self {
        let mut storage = made(
            |options| {
                options.block_size = Some(1 << 20);
                change(options);
            },
            20 * GIB,
        )
        .unwrap();
        let image = load(
            &mut storage,
            LoadOptions {
                admit: Admit {
                    marked: true,
                    parent: false,
                },
                ..options(false, &mut counter())
            },
        )
        .unwrap();
        storage.resize(image.file_len + 10 * MIB);
        Self { storage, image }
    }

    /// Where the first block behind the BAT would lie.
    fn free(&self) -> u64 {
        self.image.file_len
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> &mut Self {
        self.storage.put(at, bytes);
        self
    }

    fn entry(&mut self, block: u64, entry: u64) -> &mut Self {
        let index = self.image.geometry.bat_index(BlockIndex(block));
        self.put(self.image.bat().at.0 + index.0 * 8, &entry.to_le_bytes())
    }

    /// Both headers anew, changed by `change`.
    fn header(&mut self, change: impl Fn(&mut Header)) -> &mut Self {
        for slot in [self.image.slot.other(), self.image.slot] {
            let mut header = self.image.header.next().unwrap();
            change(&mut header);
            self.put(slot.at().0, &header.encode());
            self.image.header = header;
        }
        self
    }

    /// One entry at the start of the log, and headers that name the log.
    fn log(&mut self, pages: &[(FileOffset, Bytes)], (flushed, last): (u64, u64)) -> &mut Self {
        let log_guid = Guid::from_random(1234);
        let entry = encode_entry(&EntryPlan {
            log_guid,
            sequence: 5,
            tail: 0,
            flushed_file_offset: flushed,
            last_file_offset: last,
            pages,
        });
        self.put(self.image.header.log_at.0, &entry);
        self.header(|header| header.log_guid = log_guid)
    }

    /// The first page of the BAT with these entries.
    fn bat_page(&self, entries: &[(usize, u64)]) -> (FileOffset, Bytes) {
        let mut page = vec![0; PAGE];
        for (slot, entry) in entries {
            page[slot * 8..slot * 8 + 8].copy_from_slice(&entry.to_le_bytes());
        }
        (self.image.bat().at, Bytes::from(page))
    }

    fn open(&mut self) -> Result<Image> {
        opened(&mut self.storage, false)
    }

    /// The error of both kinds of open, and that the writable one left the file alone.
    fn refused(&mut self, kind: ErrorKind, words: &str) -> Error {
        let before = self.storage.clone();
        for writable in [false, true] {
            let error = opened(&mut self.storage, writable).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        assert!(same(&before, &self.storage), "a refused image was changed");
        let error = self.open().unwrap_err();
        let report = check(&mut self.storage).unwrap();
        let told = report.errors() > 0 || kind == ErrorKind::NotOwned || words.contains("parent");
        assert!(told || kind == ErrorKind::Unsupported, "{report:?}");
        error
    }

    fn warned(&mut self, words: &str) {
        let image = self.open().unwrap();
        let told = image.warnings.iter().any(|f| f.message.contains(words));
        assert!(told, "{:?}", image.warnings);
    }
}

fn same(a: &MemoryStorage, b: &MemoryStorage) -> bool {
    let len = a.length().max(b.length());
    let (mut x, mut y) = (vec![0; len as usize], vec![0; len as usize]);
    a.get(0, &mut x);
    b.get(0, &mut y);
    a.length() == b.length() && x == y
}

fn present(at: u64) -> u64 {
    BatEntry::fully_present(FileOffset(at)).encode()
}

fn table(bat: Region, metadata: Region) -> Vec<u8> {
    RegionTable::new(bat, metadata).encode()
}

#[test]
fn rule_1_and_2_a_short_file_and_a_foreign_one_are_refused() {
    let mut sample = Sample::new();
    sample.storage.resize(MIB - 1);
    sample.refused(ErrorKind::Corrupt, "cut short");
    let mut sample = Sample::new();
    sample
        .put(0, b"conectix")
        .refused(ErrorKind::Corrupt, "not a VHDX image");
    assert!(opened(&mut MemoryStorage::new(), false).is_err());
}

#[test]
fn rule_3_to_5_headers_are_chosen_and_judged() {
    let mut sample = Sample::new();
    sample.put(64 << 10, &[0; 8]).warned("header signature");
    sample.put(128 << 10, &[0; 8]);
    sample.refused(ErrorKind::Corrupt, "no valid header");
    let mut sample = Sample::new();
    sample.header(|header| header.version = 3);
    sample.refused(ErrorKind::Unsupported, "Version is 3");
    let mut sample = Sample::new();
    sample.header(|header| {
        header.log_version = 1;
        header.log_guid = Guid::from_random(1);
    });
    sample.refused(ErrorKind::Unsupported, "LogVersion");
}

#[test]
fn rule_6_the_log_must_lie_in_the_file_on_its_own() {
    for (words, change) in [
        ("LogLength", (|h| h.log_len += 4096) as fn(&mut Header)),
        ("LogLength", |h| {
            h.log_len = 0;
            h.log_guid = Guid::from_random(1);
        }),
        ("LogOffset", |h| h.log_at.0 += 4096),
        ("LogOffset", |h| h.log_at.0 = 0),
        ("beyond the end", |h| h.log_len = 0xFFF0_0000),
        ("beyond the end", |h| h.log_at.0 = !(MIB - 1)),
        ("overlaps", |h| h.log_len += MIB as u32),
    ] {
        let mut sample = Sample::new();
        sample.header(change).refused(ErrorKind::Corrupt, words);
    }
    let mut sample = Sample::new();
    sample.header(|header| header.log_len = 0).warned("no log");
    let error = opened(&mut sample.storage, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn rule_7_a_log_that_is_named_needs_entries_or_none_at_all() {
    // None of its GUID: its writer stopped before the first. Nothing is lost.
    let mut sample = Sample::new();
    sample.header(|header| header.log_guid = Guid::from_random(8));
    sample.warned("no entry");
    assert!(sample.open().unwrap().dirty);
    let image = opened(&mut sample.storage, true).unwrap();
    assert!(image.header.log_guid.is_zero() && !image.dirty);
    assert!(sample.open().unwrap().warnings.is_empty());
    // One of its GUID, and torn: the log may be damaged.
    let mut sample = Sample::new();
    let page = sample.bat_page(&[(0, present(sample.free()))]);
    let end = sample.storage.length();
    sample.log(&[page], (end, end));
    let sector = sample.image.header.log_at.0 + PAGE_BYTES + 50;
    sample.put(sector, &[0xEE]);
    sample.refused(ErrorKind::NeedsRepair, "checksum");
}

#[test]
fn rule_8_a_file_shorter_than_the_log_knows_is_refused() {
    let mut sample = Sample::new();
    let end = sample.storage.length();
    sample.log(&[], (end + MIB, end + MIB));
    sample.refused(ErrorKind::Corrupt, "FlushedFileOffset");
    let mut sample = Sample::new();
    sample.log(&[], (end, !(MIB - 1)));
    sample.refused(ErrorKind::Corrupt, "LastFileOffset");
}

#[test]
fn rule_9_the_log_comes_before_everything_it_changes() {
    // Region tables and metadata in the file are rubbish; the log has the good ones.
    let mut sample = Sample::new();
    let (tables, metadata) = (192 << 10, sample.image.metadata_region().at.0);
    let mut pages = Vec::new();
    for start in [tables, metadata] {
        for at in (start..start + (128 << 10)).step_by(PAGE) {
            let mut page = vec![0; PAGE];
            sample.storage.get(at, &mut page);
            pages.push((FileOffset(at), Bytes::from(page)));
        }
    }
    let free = sample.free();
    pages.push(sample.bat_page(&[(7, present(free))]));
    let end = sample.storage.length();
    sample.put(tables, &vec![0x11; 128 << 10]);
    sample.put(metadata, &vec![0x22; 128 << 10]);
    assert!(sample.open().is_err());
    sample.log(&pages, (end, end));
    let image = sample.open().unwrap();
    assert!(image.dirty && image.used.is_used(free / MIB));
    assert_eq!(image.overlay.len(), 65);
    let told = info(&mut sample.storage).unwrap();
    assert!(told.log.dirty);
    let image = opened(&mut sample.storage, true).unwrap();
    assert!(!image.dirty && image.overlay.is_empty());
    assert_eq!(image.header.data_write, sample.image.header.data_write);
    assert_ne!(image.header.file_write, sample.image.header.file_write);
    let report = check(&mut sample.storage).unwrap();
    assert!(report.is_sound() && !report.dirty);
    assert_eq!(report.blocks.fully_present, 1);
}

#[test]
fn rule_10_a_damaged_region_table_is_served_by_the_other_and_mended() {
    for copy in [region::COPY_ONE, region::COPY_TWO] {
        let mut sample = Sample::new();
        sample.put(copy.0 + 20, &[0xFF]).warned("checksum");
        let image = opened(&mut sample.storage, true).unwrap();
        assert!(image.warnings.is_empty(), "{:?}", image.warnings);
        assert!(image.header.log_guid.is_zero());
        let report = check(&mut sample.storage).unwrap();
        assert_eq!(report.errors(), 0);
        assert!(
            report.findings.iter().all(|f| f.severity == Severity::Leak),
            "{report:?}"
        );
    }
    let mut sample = Sample::new();
    for copy in [region::COPY_ONE, region::COPY_TWO] {
        sample.put(copy.0 + 20, &[0xFF]);
    }
    sample.refused(ErrorKind::Corrupt, "both region tables");
}

#[test]
fn rule_11_regions_keep_to_themselves() {
    let sample = Sample::new();
    let (bat, metadata) = (sample.image.bat(), sample.image.metadata_region());
    let far = |at: u64| Region {
        at: FileOffset(at),
        ..bat
    };
    let end = sample.storage.length();
    for (words, table) in [
        (
            "overlaps",
            table(far(sample.image.header.log_at.0), metadata),
        ),
        ("beyond the end", table(far(end), metadata)),
        ("FileOffset", table(far(!(MIB - 1)), metadata)),
    ] {
        let mut sample = Sample::new();
        for copy in [region::COPY_ONE, region::COPY_TWO] {
            sample.put(copy.0, &table);
        }
        sample.refused(ErrorKind::Corrupt, words);
    }
}

#[test]
fn rule_12_to_14_metadata_errors_name_their_place_in_the_file() {
    let mut sample = Sample::new();
    let at = sample.image.metadata_region().at.0;
    sample.put(at, b"metadatA");
    assert_eq!(
        sample.refused(ErrorKind::Corrupt, "signature").offset(),
        Some(at)
    );
    let mut sample = Sample::new();
    sample.put(at + 32 + 24, &[8]);
    let error = sample.refused(ErrorKind::Corrupt, "reserved flags");
    assert_eq!(error.offset(), Some(at + 32));
}

#[test]
fn rule_15_the_bat_region_must_hold_the_disk() {
    let mut sample = Sample::new();
    let size_item = sample.image.metadata_region().at.0 + (64 << 10) + 8;
    sample.put(size_item, &(1_u64 << 40).to_le_bytes());
    sample.refused(ErrorKind::Corrupt, "the disk needs");
}

#[test]
fn rule_16_every_bat_entry_is_judged() {
    let sample = Sample::new();
    let (free, end, bat) = (
        sample.free(),
        sample.storage.length(),
        sample.image.bat().at.0,
    );
    for (words, entries) in [
        ("reserved state 4", vec![(3, 4)]),
        ("reserved state 5", vec![(3, 5)]),
        ("reserved bits", vec![(3, present(free) | 8)]),
        ("reserved bits", vec![(3, present(free) | 1 << 19)]),
        ("at no place", vec![(3, 6)]),
        ("overlaps", vec![(3, present(MIB))]),
        ("overlaps", vec![(3, present(bat))]),
        ("overlaps", vec![(3, present(free)), (9000, present(free))]),
        ("overlaps", vec![(3, present(free)), (4, free | 3)]),
        ("beyond the end", vec![(3, present(end))]),
        ("beyond 128 TiB", vec![(3, !0 << 20 | 6)]),
        ("partially present", vec![(3, free | 7)]),
    ] {
        let mut sample = Sample::new();
        for (block, entry) in &entries {
            sample.entry(*block, *entry);
        }
        let error = sample.refused(ErrorKind::Corrupt, words);
        let (block, _) = entries[entries.len() - 1];
        let index = sample.image.geometry.bat_index(BlockIndex(block));
        assert_eq!(error.offset(), Some(bat + index.0 * 8), "{words}");
    }
}

#[test]
fn rule_16_states_that_need_no_place_are_fine() {
    let mut sample = Sample::new();
    let free = sample.free();
    sample
        .entry(1, 1)
        .entry(2, 2)
        .entry(3, 3)
        .entry(4, free | 3);
    sample
        .entry(5, 1 | free)
        .entry(6, 2 | free)
        .entry(5000, present(free + MIB));
    let image = sample.open().unwrap();
    let used = image.used;
    assert!(used.is_used(free / MIB) && used.is_used(free / MIB + 1));
    assert_eq!(image.end_of_used, free + 2 * MIB);
    let report = check(&mut sample.storage).unwrap();
    assert!(report.is_sound());
    let counts = report.blocks;
    assert_eq!((counts.undefined, counts.zero), (2, 2));
    assert_eq!((counts.unmapped, counts.fully_present), (2, 1));
    assert_eq!(counts.not_present, 20 * 1024 - 7);
}

#[test]
fn rule_16_the_last_block_may_end_with_the_file() {
    let mut storage = made(|options| options.block_size = Some(2 << 20), 3 * MIB).unwrap();
    let image = opened(&mut storage, false).unwrap();
    let end = image.file_len;
    storage.resize(end + MIB);
    storage.put(image.bat().at.0 + 8, &present(end).to_le_bytes());
    assert_eq!(
        opened(&mut storage, false).unwrap().end_of_used,
        end + 2 * MIB
    );
    storage.put(image.bat().at.0, &present(end).to_le_bytes());
    assert!(opened(&mut storage, false).is_err());
}

#[test]
fn rule_17_bitmap_entries_without_a_parent_are_ignored_with_a_warning() {
    let mut sample = Sample::new();
    let at = sample.image.bat().at.0 + sample.image.geometry.bitmap_index(0).0 * 8;
    sample.put(at, &[0xFF; 8]).warned("bitmap entries");
}

#[test]
fn rule_20_what_is_reserved_is_ignored() {
    let mut sample = Sample::new();
    let mut page = sample.image.header.next().unwrap().encode();
    page[200..4000].fill(0x77);
    let crc = checksum(&page, 4);
    page[4..8].copy_from_slice(&crc.to_le_bytes());
    sample.put(sample.image.slot.other().at().0, &page);
    sample.put(8, &[0xD8; 512]).put(400 << 10, &[1; 4096]);
    assert!(sample.open().unwrap().warnings.is_empty());
}

/// A log may name space that the file does not have yet: its first open succeeds, in either way.
#[test]
fn a_file_shorter_than_last_file_offset_opens_the_first_time() {
    for writable in [false, true] {
        let mut sample = Sample::new();
        let end = sample.storage.length();
        let page = sample.bat_page(&[(0, present(end)), (1, present(end + MIB))]);
        sample.log(&[page], (end, end + 2 * MIB));
        let report = check(&mut sample.storage).unwrap();
        assert!(report.is_sound(), "{report:?}");
        let image = opened(&mut sample.storage, writable).unwrap();
        assert_eq!(image.file_len, end + 2 * MIB);
        assert_eq!(image.end_of_used, end + 2 * MIB);
        let len = if writable { end + 2 * MIB } else { end };
        assert_eq!(sample.storage.length(), len);
    }
}

#[test]
fn a_marked_image_with_a_log_is_not_even_replayed() {
    let mut sample = Sample::of(&mut |options| options.mark = Some(Mark::HandedOver));
    let page = sample.bat_page(&[(0, present(sample.free()))]);
    let end = sample.storage.length();
    sample.log(&[page], (end, end));
    sample.refused(ErrorKind::NotOwned, "handed over");
}

#[test]
fn an_image_whose_table_is_refused_is_neither_replayed_nor_mended() {
    let mut sample = Sample::new();
    let page = sample.bat_page(&[(0, 4)]);
    let end = sample.storage.length();
    sample.log(&[page], (end, end));
    sample.refused(ErrorKind::Corrupt, "reserved state 4");
    let mut sample = Sample::new();
    sample.put(region::COPY_ONE.0 + 20, &[0xFF]).entry(3, 4);
    sample.refused(ErrorKind::Corrupt, "reserved state 4");
}

#[test]
fn a_disk_whose_short_table_is_refused_is_neither_replayed_nor_mended() {
    use crate::disk::{ImageFormat, OpenOptions, open_engine};
    let mut sample = Sample::new();
    let page = sample.bat_page(&[(0, 4)]);
    let end = sample.storage.length();
    sample.log(&[page], (end, end));
    let before = sample.storage.clone();
    let (options, random) = (OpenOptions::default(), &mut counter());
    let opened = open_engine(&mut sample.storage, ImageFormat::Vhdx, &options, random);
    let error = opened.expect_err("state 4 is reserved");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(same(&before, &sample.storage), "it was changed");
}

/// A replay, and the mending of a table, cut anywhere, any subset of what was not flushed lost:
/// the next open brings the same disk.
#[test]
fn a_power_cut_during_a_replay_changes_nothing_of_the_outcome() {
    let mut sample = Sample::new();
    let free = sample.free();
    let end = sample.storage.length();
    let page = sample.bat_page(&[(0, present(free)), (1, present(end))]);
    sample.log(&[page], (end, end + MIB));
    sample.put(region::COPY_ONE.0 + 20, &[0xFF]);
    let mut cuts = 0;
    for left in 0.. {
        let mut whole = false;
        for seed in 0..20 {
            let mut cut = Cut {
                storage: CrashStorage::new(sample.storage.clone()),
                left,
            };
            whole = opened(&mut cut, true).is_ok();
            let mut image = cut.storage.cut(&[], &mut dice(seed));
            for writable in [false, true] {
                let seen = opened(&mut image, writable);
                let seen = seen.unwrap_or_else(|e| panic!("{left} operations, seed {seed}: {e}"));
                assert_eq!(
                    seen.end_of_used,
                    end + MIB,
                    "{left} operations, seed {seed}"
                );
                assert_eq!(seen.header.data_write, sample.image.header.data_write);
            }
            assert!(check(&mut image).unwrap().is_sound());
            cuts += 1;
        }
        if whole {
            break;
        }
    }
    assert!(cuts > 300, "{cuts}");
}

proptest! {
    /// Bytes of the structures overwritten at random, checksums put right or not.
    #[test]
    fn a_damaged_image_gives_an_error_or_an_image(
        damage in prop::collection::vec((0..8_usize, any::<u16>(), any::<[u8; 8]>()), 1..8),
        right in any::<bool>(), dirty in any::<bool>(),
    ) {
        let mut sample = Sample::new();
        let page = sample.bat_page(&[(0, present(sample.free()))]);
        let end = sample.storage.length();
        if dirty {
            sample.log(&[page], (end, end));
        }
        let image = &sample.image;
        let (log, metadata) = (image.header.log_at.0, image.metadata_region().at.0);
        let places = [64 << 10, 128 << 10, 192 << 10, 256 << 10, log, metadata, metadata + (64 << 10), image.bat().at.0];
        for (place, at, bytes) in damage {
            let within = u64::from(at) % if place == 5 { 400 } else { 120 };
            sample.put(places[place] + within, &bytes);
        }
        if right {
            for (at, len) in [(64 << 10, PAGE), (128 << 10, PAGE), (192 << 10, PAGE * 16), (256 << 10, PAGE * 16), (log, PAGE * 2)] {
                let mut bytes = vec![0; len];
                sample.storage.get(at, &mut bytes);
                let crc = checksum(&bytes, 4);
                sample.put(at + 4, &crc.to_le_bytes());
            }
        }
        let _ = check(&mut sample.storage);
        let _ = info(&mut sample.storage);
        let _ = sample.open();
        if let Ok(first) = opened(&mut sample.storage, true) {
            let second = opened(&mut sample.storage, true).unwrap();
            prop_assert_eq!(first.end_of_used, second.end_of_used);
        }
    }
}
