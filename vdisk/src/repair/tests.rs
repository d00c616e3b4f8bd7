//! Promises of a repair: the power may fail at every moment of it; the image is then as it was or
//! better, reads the same, and the same repair goes on. What an image in use needs is not released.

use std::collections::BTreeSet;

use super::*;
use crate::check::check;
use crate::check::tests::codes::repaired;
use crate::check::tests::sample::{Kind, Sample, content, same_files};
use crate::create::tests::{Cut, counter, dice};
use crate::format::log::{EntryPlan, encode_entry};
use crate::storage::{CrashStorage, MemoryStorage};

/// What an update that is cut off may leave by itself, besides what was there.
const OF_A_CUT: [Code; 6] = [
    Code::HeaderDamaged,
    Code::HeadersDiffer,
    Code::LogToReplay,
    Code::RegionCopyDamaged,
    Code::RegionCopiesDiffer,
    Code::Leak,
];

/// Everything that a repair mends, at once, on many pages of the BAT; with a log to be replayed or not,
/// with entries for which the image is refused or not.
fn damaged(kind: Kind, log: bool, refused: bool) -> Sample {
    let mut sample = Sample::new(kind);
    let end = sample.storage.length();
    sample.storage.resize(end + 9 * MIB);
    sample.entry(7000, (end + 3 * MIB) | 6);
    sample.put(end + 3 * MIB, &[4; 9000]);
    for at in [end + MIB, end + 2 * MIB, end + 7 * MIB] {
        sample.put(at, &vec![3; 70_000]);
    }
    for block in (10..20_000).step_by(600) {
        sample.entry(block, (block << 20) | 2);
        if refused {
            sample.entry(block + 1, 1 << 9);
        }
        let behind = sample.entry_at(20 * 1024 + 8 + block);
        sample.put(behind, &[0x71; 8]);
    }
    if kind == Kind::Child {
        let free = sample.free();
        sample.put(free, &[0xFF; 256]);
    } else {
        let stray = sample.bitmap_entry(1);
        sample.put(stray, &[0xFF; 8]);
    }
    sample.put((192 << 10) + 40, &[1]);
    if log {
        replayable(&mut sample);
    } else {
        let other = sample.image.slot.other().at().0;
        sample.put(other + 3000, &[1]);
    }
    sample
}

/// A log that brings one more block, at the end of the file and beyond it.
fn replayable(sample: &mut Sample) {
    let (bat, len) = (sample.image.bat().at, sample.storage.length());
    let mut page = sample.bytes(bat.0, PAGE);
    page[400..408].copy_from_slice(&(len | 6).to_le_bytes());
    let log_guid = Guid::from_random(1234);
    let entry = encode_entry(&EntryPlan {
        log_guid,
        sequence: 5,
        tail: 0,
        flushed_file_offset: len,
        last_file_offset: len + MIB,
        pages: &[(bat, Bytes::from(page))],
    });
    let log = sample.image.header.log_at.0;
    sample.put(log, &entry);
    sample.header(|header| header.log_guid = log_guid);
}

fn codes(storage: &MemoryStorage) -> BTreeSet<Code> {
    let report = check(&mut storage.clone()).unwrap();
    assert!(report.complete, "{report:?}");
    report.codes.into_keys().collect()
}

/// Cuts the power at every change and flush of a repair, many times each.
fn cut_everywhere(kind: Kind, log: bool, refused: bool) {
    let sample = damaged(kind, log, refused);
    let data_write = sample.image.header.data_write;
    let found = codes(&sample.storage);
    let mut whole = sample.storage.clone();
    let told = repaired(&mut whole, false).unwrap();
    assert!(told.after.is_sound(), "{told:?}");
    let reads = content(&whole).expect("a repaired image opens");
    let before = content(&sample.storage);
    assert_eq!(before.is_none(), refused);
    assert!(before.is_none_or(|before| before == reads));
    let left_over = codes(&whole);
    let (mut cuts, mut better) = (0, 0);
    for left in 0.. {
        let mut ended = false;
        for seed in 0..2 {
            let mut cut = Cut {
                storage: CrashStorage::new(sample.storage.clone()),
                left,
            };
            let random = &mut counter();
            let dry_run = false;
            ended = repair(&mut cut, RepairOptions { dry_run, random }).is_ok();
            let mut image = cut.storage.cut(&[], &mut dice(seed));
            let place = format!("{kind:?}, {left} operations, seed {seed}");
            let now = codes(&image);
            let allowed = |code: &&Code| found.contains(code) || OF_A_CUT.contains(code);
            assert!(now.iter().all(|code| allowed(&code)), "{place}: {now:?}");
            better += u32::from(!found.is_subset(&now));
            match content(&image) {
                Some(seen) => assert!(seen == reads, "{place}: reads otherwise"),
                None => assert!(refused, "{place}: does not open any more"),
            }
            let again = repaired(&mut image, false).unwrap();
            assert!(again.after.is_sound(), "{place}");
            assert_eq!(codes(&image), left_over, "{place}");
            assert!(content(&image).unwrap() == reads, "{place}");
            let opening = crate::open::Opening::read(&mut image, &mut Strict::default());
            assert_eq!(opening.unwrap().header.data_write, data_write, "{place}");
            assert!(repaired(&mut image, false).unwrap().done.is_empty());
            cuts += 1;
        }
        if ended {
            break;
        }
    }
    println!("{kind:?}: {cuts} cuts, {better} of them better than before");
    assert!(cuts > 50 && better > 15, "{cuts} cuts, {better} better");
}

#[test]
fn a_power_cut_at_any_moment_of_a_repair_leaves_the_image_as_it_was_or_better() {
    cut_everywhere(Kind::Dynamic, false, true);
    cut_everywhere(Kind::Dynamic, true, false);
}

#[test]
fn a_power_cut_at_any_moment_of_the_repair_of_a_child_leaves_it_as_it_was_or_better() {
    cut_everywhere(Kind::Child, true, true);
    cut_everywhere(Kind::Child, false, false);
}

/// Host errors instead of power cuts: whichever operation fails, the next repair ends it.
#[test]
fn a_repair_that_fails_is_gone_on_with() {
    let sample = damaged(Kind::Dynamic, true, true);
    for left in 0.. {
        let mut cut = Cut {
            storage: CrashStorage::new(sample.storage.clone()),
            left,
        };
        let random = &mut counter();
        let dry_run = false;
        let ended = repair(&mut cut, RepairOptions { dry_run, random }).is_ok();
        let mut image = cut.storage.live().clone();
        assert!(repaired(&mut image, false).unwrap().after.is_sound());
        if ended {
            break;
        }
    }
}

#[test]
fn a_table_with_more_changes_than_the_log_holds_is_mended_in_several_entries() {
    let mut sample = Sample::new(Kind::Dynamic);
    // 41 pages of the table; the log is made to hold ten.
    sample.header(|header| header.log_len = 1 << 20);
    for block in 100..20 * 1024 {
        sample.entry(block, (block << 20) | 2);
    }
    let reads = content(&sample.storage);
    let (mut examined, random) = (
        examine(&mut sample.storage).unwrap().1.unwrap(),
        &mut counter(),
    );
    examined.opening.header.log_len = 13 * 4096;
    let mut mender = Mender {
        current: (examined.opening.header.clone(), examined.opening.slot),
        view_len: None,
        storage: &mut sample.storage,
        overlay: BTreeMap::new(),
        found: &examined,
        random,
        dry_run: false,
        renewed: false,
    };
    assert!(mender.pages_at_once() < 12);
    let what = mender.apply(Remedy::ClearEntries).unwrap().unwrap();
    assert_eq!(what, "20380 entries lost what meant nothing");
    // The short log was only said to be one.
    sample.image.header = mender.current.0.clone();
    sample.header(|header| header.log_len = 1 << 20);
    assert!(check(&mut sample.storage).unwrap().is_sound());
    assert_eq!(content(&sample.storage), reads);
}

#[test]
fn space_that_the_entries_of_damaged_blocks_may_name_is_not_released() {
    let mut sample = damaged(Kind::Dynamic, false, false);
    sample.entry(30, 5);
    let told = repaired(&mut sample.storage, false).unwrap();
    assert!(!told.after.is_sound());
    let tidied = told.done.iter().any(|done| done.remedy.needs_sound_image());
    assert!(!tidied, "{:?}", told.done);
    let withheld = |remedy| told.withheld.iter().any(|held| held.remedy == remedy);
    assert!(withheld(Remedy::ReleaseSpace) && withheld(Remedy::ClearEntries));
    assert!(told.after.leaked_mib > 0);
}

#[test]
fn a_copy_holds_what_the_original_does_and_its_holes() {
    let mut sample = damaged(Kind::Child, true, true);
    let mut copy = MemoryStorage::new();
    let mut last = 0;
    let moved = copy_sparse(&mut sample.storage, &mut copy, &mut |at, _| {
        assert!(at >= last);
        last = at;
        Ok(())
    });
    let moved = moved.unwrap();
    assert!(moved < 8 * MIB, "{moved}");
    assert!(same_files(&sample.storage, &copy));
    assert_eq!(last, sample.storage.length());
    let stopped = copy_sparse(
        &mut sample.storage,
        &mut MemoryStorage::new(),
        &mut |_, _| Err(Error::invalid("stop")),
    );
    assert!(stopped.is_err());
}
