//! Promises about disks built on others that get another size: the parent never shows behind an old
//! end, what counts as data then, and what a failure or a power cut at each of the steps leaves.

#[expect(dead_code, reason = "a test binary uses a part")]
mod medium;

use medium::{MIB, Medium, assert_sound, opened, read};
use vdisk::ErrorKind;
use vdisk::create::{CreateOptions, create};
use vdisk::disk::{Disk, ImageFormat, OpenOptions, open_child_engine_with, random_bits};
use vdisk::format::{Guid, ParentLocator};
use vdisk::storage::{MemoryStorage, Storage};

/// Bytes of the parent, which ends inside a block.
const PARENT: u64 = 60 * MIB + 300 * 512;
/// Too much for the table of a new disk.
const LARGE: u64 = 150_000 * MIB;
/// Places in each block that are looked at; the parent holds data in the first, second and last.
const PLACES: [u64; 5] = [0, 4096, MIB / 2, 60 * 512, MIB - 512];

fn parent_holds(at: u64) -> bool {
    let within = at % MIB;
    at < PARENT && !(8192..MIB - 4096).contains(&within)
}

fn parent() -> Medium {
    let mut file = MemoryStorage::new();
    file.set_len(PARENT).unwrap();
    for block in 0..61 {
        file.put(block * MIB, &[0x55; 8192]);
        if block < 60 {
            file.put((block + 1) * MIB - 4096, &[0x55; 4096]);
        }
    }
    Medium::new(file)
}

fn new_child(size: u64, block: u64, sector: u32) -> Medium {
    let mut storage = MemoryStorage::new();
    let mut random = random_bits;
    let mut options = CreateOptions::new(size, &mut random);
    options.block_size = Some((block * MIB) as u32);
    options.logical_sector = sector;
    options.parent = Some(ParentLocator::new(Guid::from_random(1), "parent.vhdx"));
    create(&mut storage, options).unwrap();
    Medium::new(storage)
}

fn child(medium: &Medium) -> Disk {
    let mut storage = medium.clone();
    let options = OpenOptions::default();
    let (engine, _) =
        open_child_engine_with(&mut storage, &options, &mut random_bits, |tuned| tuned).unwrap();
    let parent = opened(&parent(), ImageFormat::Raw).unwrap();
    Disk::new(Box::new(storage), engine).over(parent)
}

/// The byte that fills the sector at `at`.
fn byte(disk: &mut Disk, at: u64) -> u8 {
    let bytes = read(disk, at, 512);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "at {at}");
    bytes[0]
}

/// The disk shows its parent before `end`, but for `written`, and zeros from there on.
fn assert_shows(disk: &mut Disk, end: u64, written: &[(u64, u8)]) {
    for at in (0..110).flat_map(|block| PLACES.map(|place| block * MIB + place)) {
        if at + 512 > disk.size() {
            return;
        }
        let own = written.iter().find(|(place, _)| *place == at);
        let expected = match own {
            Some((_, own)) => *own,
            None if at < end && parent_holds(at) => 0x55,
            None => 0,
        };
        assert_eq!(byte(disk, at), expected, "at {at}, the old end is {end}");
    }
}

#[test]
fn a_child_that_grows_over_a_longer_parent_shows_zeros_behind_its_old_end() {
    let before = 20 * MIB + 8 * 4096;
    for (block, sector) in [(1, 512), (2, 4096), (32, 512)] {
        for size in [
            before + 4096,
            20 * MIB + 200 * 4096,
            50 * MIB,
            100 * MIB,
            LARGE,
        ] {
            // The last block is absent; present in part; zero.
            for last in 0..3 {
                let medium = new_child(before, block, sector);
                let mut disk = child(&medium);
                let mut written = vec![(3 * MIB, 3)];
                disk.write_at(3 * MIB, &[3; 4096]).unwrap();
                match last {
                    1 => {
                        disk.write_at(20 * MIB, &[4; 4096]).unwrap();
                        written.push((20 * MIB, 4));
                    }
                    2 if block == 1 => {
                        disk.discard(20 * MIB, before - 20 * MIB).unwrap();
                        written.extend([(20 * MIB, 0), (20 * MIB + 4096, 0)]);
                    }
                    _ => {}
                }
                disk.resize(size, false).unwrap();
                assert_shows(&mut disk, before, &written);
                disk.write_at(size - 4096, &[9; 4096]).unwrap();
                disk.close().unwrap();
                let mut disk = child(&medium);
                assert_eq!((disk.size(), byte(&mut disk, size - 512)), (size, 9));
                disk.zero(size - 4096, 4096).unwrap();
                assert_shows(&mut disk, before, &written);
                assert_sound(&mut medium.state().file.live().clone());
            }
        }
    }
}

#[test]
fn a_child_that_grows_over_nothing_needs_no_entries() {
    let medium = new_child(100 * MIB, 1, 512);
    let mut disk = child(&medium);
    disk.resize(64 << 40, false).unwrap();
    assert_shows(&mut disk, 100 * MIB, &[]);
    disk.close().unwrap();
    let file = medium.state().file.live().clone();
    assert!(file.allocated() < 4 * MIB, "{} bytes", file.allocated());
}

#[test]
fn what_a_child_shows_of_its_parent_is_data_that_a_smaller_size_cuts_off() {
    let medium = new_child(100 * MIB, 1, 512);
    let mut disk = child(&medium);
    disk.write_at(90 * MIB, &[7; 512]).unwrap();
    disk.write_at(30 * MIB + 4096, &[8; 512]).unwrap();
    let refused = |disk: &mut Disk, size: u64, first: u64| {
        let error = disk.resize(size, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let first = format!("data at byte {first},");
        assert!(error.to_string().contains(&first), "{error}, not {first}");
        assert_eq!(disk.size(), 100 * MIB);
    };
    refused(&mut disk, 70 * MIB, 90 * MIB);
    disk.zero(90 * MIB, 512).unwrap();
    disk.discard(90 * MIB, MIB).unwrap();
    refused(&mut disk, 60 * MIB, 60 * MIB);
    refused(&mut disk, 40 * MIB + 512 * 1024, 41 * MIB - 4096);
    refused(&mut disk, 30 * MIB + 4096, 30 * MIB + 4096);
    disk.resize(70 * MIB, false).unwrap();
    // Nothing but the parent lies there, and it is hidden.
    disk.discard(40 * MIB, 30 * MIB).unwrap();
    disk.zero(40 * MIB, 30 * MIB).unwrap();
    disk.resize(40 * MIB, false).unwrap();
    disk.resize(100 * MIB, false).unwrap();
    assert_shows(&mut disk, 40 * MIB, &[(30 * MIB + 4096, 8)]);
}

#[test]
fn a_child_that_became_smaller_shows_zeros_when_it_grows_and_gives_its_space_back() {
    for size in [5 * MIB, 20 * MIB + 8 * 512, 31 * MIB + 4096 + 512] {
        let medium = new_child(9000 * MIB, 1, 512);
        let mut disk = child(&medium);
        disk.write_at(31 * MIB, &vec![6; MIB as usize]).unwrap();
        for block in (0..100).step_by(2).chain(4100..4130) {
            disk.write_at(block * MIB + MIB / 2, &[7; 512]).unwrap();
        }
        disk.flush().unwrap();
        disk.resize(size, true).unwrap();
        disk.close().unwrap();
        let mut file = medium.state().file.live().clone();
        assert_sound(&mut file);
        let blocks = size.div_ceil(2 * MIB);
        let room = file.allocated();
        assert!(room < (blocks + 6) * MIB, "{room} bytes");
        let mut disk = child(&medium);
        // The place of a bitmap is given back by the next session.
        disk.write_at(0, &[0x55; 512]).unwrap();
        disk.close().unwrap();
        let len = medium.state().file.len().unwrap();
        assert!(len < (blocks + 16) * MIB, "{size}: {len} bytes");
        let mut disk = child(&medium);
        disk.resize(110 * MIB, false).unwrap();
        disk.resize(9000 * MIB, false).unwrap();
        let mut written: Vec<(u64, u8)> = (0..100)
            .step_by(2)
            .map(|block| (block * MIB + MIB / 2, 7))
            .collect();
        written.extend(PLACES.map(|place| (31 * MIB + place, 6)));
        written.retain(|(at, _)| *at < size);
        assert_shows(&mut disk, size, &written);
        assert_eq!(byte(&mut disk, 4100 * MIB + MIB / 2), 0);
        assert_sound(&mut medium.state().file.live().clone());
    }
}

const SIZE: u64 = 40 * MIB + 8 * 4096;

/// What is done to the disk of 40 MiB and a bit in the test below.
fn resizes(disk: &mut Disk, sizes: &[u64]) -> vdisk::Result<()> {
    for size in sizes {
        disk.write_at(0, &[7; 512])?;
        disk.zero(3 * MIB, 2 * MIB)?;
        disk.resize(*size, true)?;
    }
    disk.flush()
}

/// However it ended, the disk has one of the sizes, what was written long before, and no byte of its
/// parent where it had data of its own or nothing.
fn assert_whole(left: MemoryStorage, sizes: &[u64], what: &str) {
    let medium = Medium::new(left);
    let mut disk = child(&medium);
    let size = disk.size();
    assert!(size == SIZE || sizes.contains(&size), "{what}: {size}");
    assert_sound(&mut medium.state().file.live().clone());
    let least = *sizes.iter().min().unwrap();
    disk.resize(100 * MIB, true).unwrap();
    for at in (5..100).flat_map(|block| PLACES.map(|place| block * MIB + place)) {
        let found = byte(&mut disk, at);
        let own = [10, 30, 40].contains(&(at / MIB)) && at % MIB == 4096;
        let held = match at {
            _ if at >= SIZE => 0,
            _ if own => 8,
            _ if parent_holds(at) => 0x55,
            _ => 0,
        };
        let cut = at >= least && found == 0;
        assert!(found == held || cut, "{what}: {found:#x} at {at}");
    }
    disk.close().unwrap();
    assert_sound(&mut medium.state().file.live().clone());
}

#[test]
fn whichever_operation_of_a_childs_resize_fails_its_parent_shows_nowhere_it_did_not() {
    let medium = new_child(SIZE, 1, 512);
    let mut disk = child(&medium);
    for block in [10, 30, 40] {
        disk.write_at(block * MIB + 4096, &[8; 512]).unwrap();
    }
    disk.close().unwrap();
    let image = medium.state().file.live().clone();
    let courses: [&[u64]; 4] = [
        &[50 * MIB],
        &[LARGE],
        &[20 * MIB + 512],
        &[LARGE, 20 * MIB + 512, SIZE],
    ];
    for (course, sizes) in courses.into_iter().enumerate() {
        for for_good in [false, true] {
            for fails in 0.. {
                let medium = Medium::new(image.clone());
                let mut disk = child(&medium);
                let begun = medium.state().done;
                medium.state().fails = begun + fails;
                medium.state().for_good = for_good;
                let ended = resizes(&mut disk, sizes);
                if medium.state().done <= begun + fails {
                    assert!(fails > 20, "the course has more steps than {fails}");
                    ended.unwrap();
                    break;
                }
                drop(disk);
                let left = medium.cut(fails);
                assert_whole(left, sizes, &format!("course {course}, operation {fails}"));
            }
        }
    }
}
