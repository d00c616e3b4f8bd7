//! Promises about what is noted of changes: what changed is listed, what another program wrote is not
//! missed, and an image whose changes are not tracked is left as it is.

#[expect(dead_code, reason = "each test uses a part")]
mod medium;

use std::process::Command;

use medium::{MIB, Medium, assert_sound, new_image, opened, structures, vhdx};
use vdisk::ErrorKind;
use vdisk::disk::{Disk, ImageFormat, random_bits};
use vdisk::format::track::CheckpointName;
use vdisk::storage::{FileStorage, MemoryStorage, Storage};
use vdisk::track::{Changed, Since, changed, disable, enable, remove_checkpoint, status};

const SIZE: u64 = 4200 * MIB;
const GRANULE: u64 = 64 << 10;

fn tracked() -> Medium {
    let mut image = new_image(SIZE, false);
    enable(&mut image, Some(GRANULE as u32), &mut random_bits).unwrap();
    Medium::new(image)
}

fn file(medium: &Medium) -> MemoryStorage {
    medium.state().file.live().clone()
}

fn take(disk: &mut Disk, name: &str) {
    disk.checkpoint(CheckpointName::new(name).unwrap(), 5)
        .unwrap();
}

/// What is listed, as granules, and what is said of it.
fn since(image: &mut dyn Storage, checkpoint: &str, until: Option<&str>) -> (Vec<u64>, Changed) {
    let mut granules = Vec::new();
    let told = changed(image, Since { checkpoint, until }, &mut |offset, len| {
        granules.extend(offset / GRANULE..(offset + len).div_ceil(GRANULE));
        Ok(())
    });
    (granules, told.unwrap())
}

#[test]
fn exactly_what_was_written_between_two_checkpoints_is_listed_for_them() {
    let medium = tracked();
    let mut disk = vhdx(&medium);
    disk.write_at(0, &[1; 4096]).unwrap();
    take(&mut disk, "one");
    disk.write_at(10 * GRANULE - 1, &[1; 2]).unwrap();
    disk.zero(MIB * 100, MIB).unwrap();
    take(&mut disk, "two");
    disk.write_at(10 * GRANULE, &[2; 4096]).unwrap();
    disk.discard(0, MIB).unwrap();
    disk.close().unwrap();
    let mut image = file(&medium);
    // To make zeros of what was never there changes nothing that anyone could see.
    let between = since(&mut image, "one", Some("two"));
    assert_eq!(between.0, [9, 10]);
    let (all, told) = since(&mut image, "one", None);
    let block: Vec<u64> = (0..16).collect();
    assert_eq!(all, block);
    assert!(told.known && !told.rough && told.extents == 1);
    assert_eq!(since(&mut image, "two", None).0, block);
    assert!(
        changed(
            &mut image,
            Since {
                checkpoint: "two",
                until: Some("one")
            },
            &mut |_, _| Ok(())
        )
        .is_err()
    );
    assert_sound(&mut image);

    remove_checkpoint(&mut image, "two", &mut random_bits).unwrap();
    assert_eq!(since(&mut image, "one", None).0, block);
    remove_checkpoint(&mut image, "one", &mut random_bits).unwrap();
    let told = status(&mut image).unwrap().unwrap();
    assert!(told.checkpoints.is_empty() && told.state == "complete");
}

#[test]
fn a_disk_that_was_cut_off_lists_all_that_changed_and_says_that_it_may_be_more() {
    let medium = tracked();
    let mut disk = vhdx(&medium);
    take(&mut disk, "one");
    disk.write_at(77 * GRANULE, &[1; 4096]).unwrap();
    disk.flush().unwrap();
    // Nothing is parked: as after a power cut that loses nothing.
    drop(disk);
    let mut image = file(&medium);
    let (granules, told) = since(&mut image, "one", None);
    assert!(told.known && told.rough && granules.contains(&77));
    assert_eq!(status(&mut image).unwrap().unwrap().state, "interrupted");
    let mut disk = vhdx(&medium);
    disk.write_at(5000 * GRANULE, &[1; 4096]).unwrap();
    disk.close().unwrap();
    let (granules, told) = since(&mut file(&medium), "one", None);
    assert!(told.known && !told.rough);
    assert!(granules.contains(&77) && granules.contains(&5000));
    assert!(
        (granules.len() as u64) < SIZE / GRANULE / 10,
        "{}",
        granules.len()
    );
}

#[test]
fn tracking_and_its_checkpoints_outlive_another_size_and_a_compaction() {
    let medium = tracked();
    let mut disk = vhdx(&medium);
    for block in 0..20 {
        disk.write_at(block * 20 * MIB, &[3; 4096]).unwrap();
    }
    take(&mut disk, "one");
    for block in 0..10 {
        disk.discard(block * 20 * MIB, MIB).unwrap();
    }
    disk.flush().unwrap();
    while !disk.compact(true, 3 * MIB).unwrap().done {}
    disk.write_at(19 * 20 * MIB, &[4; 4096]).unwrap();
    disk.resize(SIZE + 100 * MIB, false).unwrap();
    disk.write_at(SIZE + 50 * MIB, &[4; 4096]).unwrap();
    disk.resize(150_000 * MIB, false).unwrap();
    while !disk.compact(false, 3 * MIB).unwrap().done {}
    disk.close().unwrap();
    let mut image = file(&medium);
    assert_sound(&mut image);
    let (granules, told) = since(&mut image, "one", None);
    assert!(told.known, "{told:?}");
    for block in 0..10 {
        assert!(granules.contains(&(block * 20 * MIB / GRANULE)));
    }
    assert!(granules.contains(&(19 * 20 * MIB / GRANULE)));
    assert!(granules.contains(&((SIZE + 50 * MIB) / GRANULE)));
    // A block that only moved did not change.
    assert!(!granules.contains(&(15 * 20 * MIB / GRANULE)));
}

#[test]
fn what_qemu_wrote_is_noticed_and_everything_counts_as_changed() {
    if std::env::var_os("DISKFERRY_NO_INTEROP").is_some_and(|value| value == "1") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    let mut image = FileStorage::create(&path).unwrap();
    let mut random = random_bits;
    let options = vdisk::create::CreateOptions::new(SIZE, &mut random);
    vdisk::create::create(&mut image, options).unwrap();
    enable(&mut image, None, &mut random_bits).unwrap();
    drop(image);
    let mut disk = Disk::open(&path, &vdisk::disk::OpenOptions::default()).unwrap();
    take(&mut disk, "one");
    disk.close().unwrap();
    let qemu = |command: &str| {
        let words = ["-f", "vhdx", "-c", command];
        let ran = Command::new("qemu-io").args(words).arg(&path).output();
        let ran = ran.expect("qemu-io (package qemu-utils) is there");
        assert!(ran.status.success(), "{ran:?}");
    };
    let storage = || FileStorage::open(&path, false).unwrap();
    qemu("read 0 4096");
    assert_eq!(since(&mut storage(), "one", None).0, [0; 0]);
    qemu("write -P 9 1M 4096");
    let (granules, told) = since(&mut storage(), "one", None);
    assert!(!told.known && told.bytes == SIZE && granules.len() as u64 == SIZE / GRANULE);
    assert_eq!(status(&mut storage()).unwrap().unwrap().state, "foreign");
    // Checkpoints that are taken from then on are worth something again; that one never is.
    let mut disk = Disk::open(&path, &vdisk::disk::OpenOptions::default()).unwrap();
    take(&mut disk, "two");
    disk.write_at(0, &[1; 512]).unwrap();
    disk.close().unwrap();
    assert_eq!(since(&mut storage(), "two", None).0, [0]);
    assert!(!since(&mut storage(), "one", None).1.known);
}

#[test]
fn tracking_is_turned_on_and_off_without_a_trace_on_the_disk() {
    let mut image = new_image(SIZE, false);
    let before = image.clone();
    assert_eq!(status(&mut image).unwrap(), None);
    let shape = enable(&mut image, None, &mut random_bits).unwrap();
    assert_eq!(u64::from(shape.granularity), GRANULE);
    let version = structures(&Medium::new(image.clone())).header.data_write;
    assert_eq!(structures(&Medium::new(before)).header.data_write, version);
    let again = enable(&mut image, None, &mut random_bits).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::InvalidArgument);
    assert_sound(&mut image);
    disable(&mut image, &mut random_bits).unwrap();
    assert_sound(&mut image);
    assert_eq!(status(&mut image).unwrap(), None);
    let off = disable(&mut image, &mut random_bits).unwrap_err();
    assert_eq!(off.kind(), ErrorKind::Unsupported);
    for granularity in [0, 512, 4097, 2 << 20] {
        assert!(enable(&mut image, Some(granularity), &mut random_bits).is_err());
    }
}

#[test]
fn checkpoints_that_cannot_be_are_refused() {
    let medium = tracked();
    let mut disk = vhdx(&medium);
    take(&mut disk, "one");
    let twice = disk.checkpoint(CheckpointName::new("one").unwrap(), 5);
    assert_eq!(twice.unwrap_err().kind(), ErrorKind::InvalidArgument);
    for number in 2..=16 {
        take(&mut disk, &number.to_string());
    }
    let full = disk.checkpoint(CheckpointName::new("more").unwrap(), 5);
    assert_eq!(full.unwrap_err().kind(), ErrorKind::NoSpace);
    disk.write_at(0, &[1; 512]).unwrap();
    disk.close().unwrap();
    assert_eq!(since(&mut file(&medium), "one", None).0, [0]);
    let none = remove_checkpoint(&mut file(&medium), "more", &mut random_bits);
    assert_eq!(none.unwrap_err().kind(), ErrorKind::InvalidArgument);
    for name in ["", "a\nb", &"x".repeat(65)] {
        assert!(CheckpointName::new(name).is_err());
    }
    let plain = Medium::new(new_image(SIZE, false));
    let refused = vhdx(&plain).checkpoint(CheckpointName::new("one").unwrap(), 5);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Whichever operation fails or is the last one, tracking is on or off, and the disk is whole.
#[test]
fn a_power_cut_while_tracking_is_turned_on_or_off_leaves_it_on_or_off() {
    for on in [true, false] {
        let mut image = new_image(SIZE, false);
        if !on {
            enable(&mut image, None, &mut random_bits).unwrap();
        }
        for fails in 0.. {
            let mut medium = Medium::new(image.clone());
            medium.state().fails = fails;
            medium.state().for_good = true;
            let ended = if on {
                enable(&mut medium, None, &mut random_bits).map(drop)
            } else {
                disable(&mut medium, &mut random_bits)
            };
            for number in 0..8 {
                let mut left = medium.cut(8 * fails + number);
                let told = status(&mut left).unwrap();
                assert!(ended.is_err() || told.is_some() == on);
                assert_sound(&mut left);
                let mut disk = vhdx(&Medium::new(left));
                disk.write_at(0, &[1; 512]).unwrap();
                disk.close().unwrap();
            }
            if medium.state().done <= fails {
                ended.unwrap();
                assert!(fails > 10);
                break;
            }
        }
    }
}

/// Whichever two operations are the last ones of two sessions in a row, nobody is taken for another
/// program, and what was written before is listed.
#[test]
fn two_sessions_cut_off_one_after_the_other_are_not_taken_for_another_program() {
    let mut image = new_image(SIZE, false);
    enable(&mut image, Some(GRANULE as u32), &mut random_bits).unwrap();
    let medium = Medium::new(image);
    let mut disk = vhdx(&medium);
    take(&mut disk, "one");
    disk.write_at(77 * GRANULE, &[1; 4096]).unwrap();
    disk.close().unwrap();
    // The image that is left, and whether anything failed.
    let cut_off = |image: MemoryStorage, fails: u64| {
        let medium = Medium::new(image);
        medium.state().fails = fails;
        medium.state().for_good = true;
        if let Ok(mut disk) = opened(&medium, ImageFormat::Vhdx) {
            let _ = disk.write_at(5000 * GRANULE, &[1; 4096]);
            let _ = disk.close();
        }
        let failed = medium.state().done > fails;
        (file(&medium), failed)
    };
    let mut pairs = 0;
    for first in 0.. {
        let (once, failed) = cut_off(file(&medium), first);
        if !failed {
            break;
        }
        for second in 0.. {
            let (mut twice, failed) = cut_off(once.clone(), second);
            let state = status(&mut twice).unwrap().unwrap().state;
            assert_ne!(state, "foreign", "cut at {first}, then at {second}");
            assert!(since(&mut twice, "one", None).0.contains(&77));
            pairs += 1;
            if !failed {
                break;
            }
        }
    }
    assert!(pairs > 200, "{pairs}");
}
