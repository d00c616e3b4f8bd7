//! Every kind of finding: exactly that damage is made, seen with its code at its place, and repaired if
//! that needs no guess. A repair never changes what a disk reads as, and a second one does nothing.

use super::sample::{Kind, Sample, content, same_files};
use super::*;
use crate::create::tests::counter;
use crate::format::log::{EntryPlan, encode_entry};
use crate::format::{Guid, PAGE, Region, RegionTable, metadata};
use crate::repair::{RepairOptions, RepairReport, repair};

/// One kind of damage: to what disk, done how (it answers where it is to be seen).
type Case = (Code, Kind, fn(&mut Sample) -> u64);

const ONE: u64 = 64 << 10;
const TWO: u64 = 128 << 10;
const REGIONS: u64 = 192 << 10;
const ITEMS: u64 = 64 << 10;

fn metadata_at(sample: &Sample) -> u64 {
    sample.image.metadata_region().at.0
}

/// Another entry of the metadata table: its offset in the file.
fn another_item(sample: &mut Sample, id: u128, (offset, len, flags): (u32, u32, u32)) -> u64 {
    let table = metadata_at(sample);
    let count = sample.bytes(table + 10, 1)[0];
    let at = table + 32 + 32 * u64::from(count);
    let mut entry = [0; 32];
    entry[..16].copy_from_slice(&Guid::known(id).0);
    entry[16..20].copy_from_slice(&offset.to_le_bytes());
    entry[20..24].copy_from_slice(&len.to_le_bytes());
    entry[24..28].copy_from_slice(&flags.to_le_bytes());
    sample.put(at, &entry).put(table + 10, &[count + 1]);
    at
}

/// A log with one entry of one page, and headers that name it.
fn log_entry(sample: &mut Sample, flushed: u64, last: u64) -> u64 {
    let at = sample.image.bat().at;
    let page = bytes::Bytes::from(sample.bytes(at.0, PAGE));
    let log_guid = Guid::from_random(1234);
    let entry = encode_entry(&EntryPlan {
        log_guid,
        sequence: 5,
        tail: 0,
        flushed_file_offset: flushed,
        last_file_offset: last,
        pages: &[(at, page)],
    });
    let log = sample.image.header.log_at.0;
    sample
        .put(log, &entry)
        .header(|header| header.log_guid = log_guid);
    log
}

const FILE: &[Case] = &[
    (Code::FileTooShort, Kind::Dynamic, |s| {
        s.storage.resize(MIB - 1);
        0
    }),
    (Code::NotVhdx, Kind::Dynamic, |s| {
        s.put(0, b"conectix");
        0
    }),
    (Code::Leak, Kind::Dynamic, |s| {
        let end = s.storage.length();
        s.storage.resize(end + 3 * MIB);
        s.put(end + MIB, &[3; 100]);
        end
    }),
    (Code::StructureOverlap, Kind::Dynamic, |s| {
        s.header(|header| header.log_len += MIB as u32);
        metadata_at(s)
    }),
    (Code::StructureBeyondEnd, Kind::Dynamic, |s| {
        let end = s.storage.length();
        let another = Region {
            at: FileOffset(end),
            len: MIB,
        };
        let mut table = RegionTable::new(s.image.bat(), s.image.metadata_region());
        table.entries.push(crate::format::region::RegionEntry {
            id: Guid::known(5),
            place: another,
            required: false,
        });
        let table = table.encode();
        s.put(REGIONS, &table).put(REGIONS + (64 << 10), &table);
        end
    }),
];

const HEADERS: &[Case] = &[
    (Code::NoValidHeader, Kind::Dynamic, |s| {
        s.put(ONE + 100, &[1]).put(TWO + 100, &[1]);
        ONE
    }),
    (Code::HeadersAmbiguous, Kind::Dynamic, |s| {
        let mut other = s.image.header.clone();
        other.file_write = Guid::from_random(77);
        let at = s.image.slot.other().at().0;
        s.put(at, &other.encode());
        ONE
    }),
    (Code::HeaderDamaged, Kind::Dynamic, |s| {
        let at = s.image.slot.other().at().0;
        s.put(at + 3000, &[1]);
        at
    }),
    (Code::HeaderStale, Kind::Dynamic, |s| {
        let mut old = s.image.header.clone();
        old.sequence -= 2;
        let at = s.image.slot.other().at().0;
        s.header(|_| ()).put(at, &old.encode());
        at
    }),
    (Code::HeadersEqual, Kind::Dynamic, |s| {
        let header = s.image.header.encode();
        s.put(ONE, &header).put(TWO, &header);
        TWO
    }),
    (Code::DataWriteDiffers, Kind::Dynamic, |s| {
        let mut header = s.image.header.next().unwrap();
        header.data_write = Guid::from_random(99);
        let at = s.image.slot.other().at().0;
        s.put(at, &header.encode());
        s.image.slot.at().0
    }),
    (Code::HeadersDiffer, Kind::Dynamic, |s| {
        let mut header = s.image.header.next().unwrap();
        header.file_write = Guid::from_random(99);
        let at = s.image.slot.other().at().0;
        s.put(at, &header.encode());
        s.image.slot.at().0
    }),
    (Code::HeaderReserved, Kind::Dynamic, |s| {
        let at = s.image.slot.at().0;
        s.put(at + 80, &[1]).sign(at, PAGE);
        at
    }),
    (Code::SequenceAtEnd, Kind::Dynamic, |s| {
        s.image.header.sequence = u64::MAX - 4;
        s.header(|_| ());
        s.image.slot.at().0
    }),
    (Code::HeaderVersion, Kind::Dynamic, |s| {
        s.header(|header| header.version = 2);
        s.image.slot.at().0
    }),
    (Code::LogVersion, Kind::Dynamic, |s| {
        s.header(|header| {
            header.log_version = 1;
            header.log_guid = Guid::from_random(1);
        });
        s.image.slot.at().0
    }),
    (Code::LogAbsent, Kind::Dynamic, |s| {
        s.header(|header| header.log_len = 0);
        s.image.slot.at().0
    }),
    (Code::LogPlace, Kind::Dynamic, |s| {
        s.header(|header| header.log_at.0 += 4096);
        s.image.slot.at().0
    }),
];

const LOG: &[Case] = &[
    (Code::LogToReplay, Kind::Dynamic, |s| {
        let len = s.storage.length();
        log_entry(s, len, len)
    }),
    (Code::LogNeverWritten, Kind::Dynamic, |s| {
        s.header(|header| header.log_guid = Guid::from_random(8));
        s.image.header.log_at.0
    }),
    (Code::LogDamaged, Kind::Dynamic, |s| {
        let len = s.storage.length();
        let at = log_entry(s, len, len);
        s.put(at + 5000, &[0xEE]);
        at
    }),
    (Code::LogTooLarge, Kind::Dynamic, |s| {
        s.storage.resize(2 << 30);
        s.header(|header| {
            header.log_at.0 = 512 << 20;
            header.log_len = 512 << 20;
            header.log_guid = Guid::from_random(8);
        });
        512 << 20
    }),
    (Code::FileCutShort, Kind::Dynamic, |s| {
        let len = s.storage.length() + MIB;
        log_entry(s, len, len)
    }),
];

const TABLES: &[Case] = &[
    (Code::RegionCopyDamaged, Kind::Dynamic, |s| {
        s.put(REGIONS + 40, &[1]);
        REGIONS
    }),
    (Code::RegionCopiesDiffer, Kind::Dynamic, |s| {
        let two = REGIONS + (64 << 10);
        // Another flag of a region, and a good checksum.
        s.put(two + 16 + 28, &[0]).sign(two, 64 << 10);
        two
    }),
    (Code::RegionTablesDamaged, Kind::Dynamic, |s| {
        s.put(REGIONS, b"x").put(REGIONS + (64 << 10), b"x");
        REGIONS
    }),
    (Code::RegionInvalid, Kind::Dynamic, |s| {
        s.regions(16 + 24, &[0, 0, 8, 0]);
        REGIONS + 16
    }),
    (Code::RegionTwice, Kind::Dynamic, |s| {
        let entry = s.bytes(REGIONS + 16, 32);
        s.regions(8, &[3]).regions(16 + 64, &entry);
        REGIONS
    }),
    (Code::RegionMissing, Kind::Dynamic, |s| {
        s.regions(8, &[1]);
        REGIONS
    }),
    (Code::RegionUnknown, Kind::Dynamic, |s| {
        s.regions(16, &[0xAA]);
        REGIONS + 16
    }),
    (Code::RegionNotRequired, Kind::Dynamic, |s| {
        s.regions(16 + 28, &[0]);
        REGIONS
    }),
    (Code::RegionReserved, Kind::Dynamic, |s| {
        s.regions(12, &[1]);
        REGIONS
    }),
    (Code::TrackingDamaged, Kind::Dynamic, |s| {
        crate::track::enable(&mut s.storage, None, &mut counter()).unwrap();
        let table = s.bytes(REGIONS, 16 + 3 * 32);
        let at = u64::from_le_bytes(table[16 + 2 * 32 + 16..][..8].try_into().unwrap());
        s.put(at, &[0x55; 128 << 10]);
        at
    }),
];

const METADATA: &[Case] = &[
    (Code::MetadataTable, Kind::Dynamic, |s| {
        let at = metadata_at(s);
        s.put(at, b"metadatA");
        at
    }),
    (Code::MetadataItem, Kind::Dynamic, |s| {
        another_item(s, 9, (100, 8, 1))
    }),
    (Code::MetadataTwice, Kind::Dynamic, |s| {
        another_item(s, 9, (70_000, 8, 1));
        another_item(s, 9, (80_000, 8, 1));
        metadata_at(s)
    }),
    (Code::MetadataOverlap, Kind::Dynamic, |s| {
        another_item(s, 9, (70_000, 8, 1));
        another_item(s, 8, (70_004, 8, 1));
        metadata_at(s) + 70_004
    }),
    (Code::MetadataUnknown, Kind::Dynamic, |s| {
        another_item(s, 9, (70_000, 8, 4))
    }),
    (Code::MetadataReserved, Kind::Dynamic, |s| {
        let at = metadata_at(s);
        s.put(at + 14, &[1]);
        at
    }),
    (Code::MetadataMissing, Kind::Dynamic, |s| {
        let at = metadata_at(s);
        s.put(at + 10, &[4]);
        at
    }),
    (Code::MetadataValue, Kind::Dynamic, |s| {
        let at = metadata_at(s);
        s.put(at + ITEMS, &3_u32.to_le_bytes());
        at
    }),
    (Code::LocatorInvalid, Kind::Child, |s| {
        let entry = s.bytes(metadata_at(s) + 32 + 5 * 32 + 16, 4);
        let item = u64::from(u32::from_le_bytes(entry.try_into().unwrap()));
        let at = metadata_at(s) + item;
        s.put(at + 18, &[0xFF, 0xFF]);
        at + 18
    }),
    (Code::LocatorStray, Kind::Dynamic, |s| {
        another_item(s, 0, (70_000, 20, 4));
        let at = metadata_at(s);
        s.put(at + 32 + 5 * 32, &metadata::PARENT_LOCATOR.0);
        at
    }),
    (Code::Marked, Kind::Dynamic, |s| {
        another_item(s, 0, (0, 0, 4));
        let at = metadata_at(s);
        s.put(at + 32 + 5 * 32, &metadata::MARK_INCOMPLETE.0);
        at
    }),
    (Code::HasParent, Kind::Child, |s| metadata_at(s)),
    (Code::BatTooSmall, Kind::Dynamic, |s| {
        let at = metadata_at(s) + ITEMS + 8;
        s.put(at, &(1_u64 << 40).to_le_bytes());
        s.image.bat().at.0
    }),
];

const BLOCKS: &[Case] = &[
    (Code::EntryState, Kind::Dynamic, |s| {
        s.entry(3, 5);
        s.entry_at(3)
    }),
    (Code::EntryReserved, Kind::Dynamic, |s| {
        let free = s.free();
        s.entry(0, free | 6 | 1 << 10);
        s.entry_at(0)
    }),
    (Code::EntryIdleReserved, Kind::Dynamic, |s| {
        s.entry(9000, 1 << 10 | 2);
        s.entry_at(9000)
    }),
    (Code::EntryIdlePlace, Kind::Dynamic, |s| {
        s.entry(3, (77 * MIB) | 2);
        s.entry_at(3)
    }),
    (Code::EntryNoPlace, Kind::Dynamic, |s| {
        s.entry(3, 6);
        s.entry_at(3)
    }),
    (Code::BlockBeyondEnd, Kind::Dynamic, |s| {
        let end = s.storage.length();
        s.entry(3, end | 6);
        s.entry_at(3)
    }),
    (Code::BlockOverlap, Kind::Dynamic, |s| {
        let free = s.free();
        s.entry(9000, free | 6);
        s.entry_at(9000)
    }),
    (Code::LastBlockCut, Kind::Dynamic, |s| {
        let end = s.storage.length();
        s.storage.resize(end + 4096);
        s.entry(20 * 1024 - 1, end | 6).put(end, &[5; 100]);
        s.entry_at(20 * 1024 - 1)
    }),
    (Code::PartialWithoutParent, Kind::Dynamic, |s| {
        let free = s.free();
        s.entry(0, free | 7);
        s.entry_at(0)
    }),
    (Code::PartialWithoutBitmap, Kind::Child, |s| {
        let end = s.storage.length();
        s.storage.resize(end + MIB);
        s.entry(9000, end | 7);
        s.entry_at(9000)
    }),
    (Code::BitmapWithoutParent, Kind::Dynamic, |s| {
        let at = s.bitmap_entry(0);
        s.put(at, &[0xFF; 8]);
        at
    }),
    (Code::EntriesBehindEnd, Kind::Dynamic, |s| {
        let at = s.entry_at(20 * 1024 + 8);
        s.put(at, &[0x77; 8]);
        at
    }),
    (Code::EntryOrphan, Kind::Dynamic, |s| {
        let end = s.storage.length();
        s.storage.resize(end + MIB);
        let at = s.entry_at(20 * 1024 + 8);
        s.put(at, &(end | 6).to_le_bytes());
        at
    }),
    (Code::FixedNotAllocated, Kind::Fixed, |s| {
        s.entry(3, 0);
        s.image.bat().at.0
    }),
    (Code::PartialWhole, Kind::Child, |s| {
        let free = s.free();
        s.put(free, &[0xFF; 256]);
        s.entry_at(0)
    }),
    (Code::PartialEmpty, Kind::Child, |s| {
        let free = s.free();
        s.put(free, &[0; 256]);
        s.entry_at(0)
    }),
    (Code::BitsWithoutBlock, Kind::Child, |s| {
        let free = s.free();
        s.put(free + 3 * 256, &[1]);
        s.entry_at(3)
    }),
];

fn cases() -> impl Iterator<Item = &'static Case> {
    [FILE, HEADERS, LOG, TABLES, METADATA, BLOCKS]
        .into_iter()
        .flatten()
}

pub(crate) fn repaired(storage: &mut MemoryStorage, dry_run: bool) -> Result<RepairReport> {
    let random = &mut counter();
    repair(storage, RepairOptions { dry_run, random })
}

/// The damage is seen where it is; a dry run changes nothing; a repair ends it, if it may.
fn one_case((code, kind, damage): &Case) {
    let mut sample = Sample::new(*kind);
    let at = damage(&mut sample);
    let storage = &mut sample.storage;
    let report = check(storage).unwrap();
    let seen = report.findings.iter().find(|found| found.code == *code);
    let seen = seen.unwrap_or_else(|| panic!("{code} is not seen: {:?}", report.findings));
    assert!(
        seen.offset == Some(at) || seen.offset.is_none() && at == 0,
        "{code}: {seen:?}, {at:#x}"
    );
    assert_eq!(seen.repair.is_some(), code.remedy().is_some());
    let (before, reads) = (storage.clone(), content(storage));
    if *code == Code::Marked {
        let error = repaired(storage, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotOwned);
        assert!(same_files(&before, storage));
        return;
    }
    let would = repaired(storage, true).unwrap();
    assert!(
        same_files(&before, storage),
        "{code}: a dry run changed the file"
    );
    let told = repaired(storage, false).unwrap();
    let words = |report: &RepairReport| {
        report
            .done
            .iter()
            .map(|done| done.what.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(words(&would), words(&told), "{code}");
    if let Some(remedy) = code.remedy() {
        assert!(
            told.done.iter().any(|done| done.remedy == remedy),
            "{code}: {told:?}"
        );
        assert!(!told.after.has(*code), "{code}: {:?}", told.after.findings);
        assert!(told.after.is_sound());
    } else {
        assert!(told.after.has(*code), "{code}: {told:?}");
    }
    if told.done.is_empty() {
        assert!(same_files(&before, storage), "{code}");
    }
    if reads.is_some() {
        assert_eq!(content(storage), reads, "{code}: it reads otherwise now");
    }
    assert_eq!(check(storage).unwrap(), told.after);
    let first = storage.clone();
    let second = repaired(storage, false).unwrap();
    assert!(second.done.is_empty(), "{code}: {:?}", second.done);
    assert!(
        same_files(&first, storage),
        "{code}: a second repair changed the file"
    );
}

#[test]
fn damage_to_the_file_and_its_headers_is_seen_and_mended_where_no_guess_is_needed() {
    FILE.iter().chain(HEADERS).for_each(one_case);
}

#[test]
fn damage_to_log_and_region_tables_is_seen_and_mended_where_no_guess_is_needed() {
    LOG.iter().chain(TABLES).for_each(one_case);
}

#[test]
fn damage_to_metadata_is_seen_and_left() {
    METADATA.iter().for_each(one_case);
}

#[test]
fn damage_to_blocks_is_seen_and_mended_where_no_guess_is_needed() {
    BLOCKS.iter().for_each(one_case);
}

#[test]
fn every_code_has_its_case() {
    // Those about parents are in `tests/chain.rs`.
    for code in Code::ALL
        .iter()
        .filter(|code| **code < Code::ParentNotFound)
    {
        assert!(cases().any(|case| case.0 == *code), "{code}");
    }
}
