//! Promises about disks that get another size: what they hold then, what is refused, and what a
//! failure or a power cut at each of the steps leaves.

mod medium;

use medium::{MIB, Medium, assert_sound, new_image, opened, read, structures, vhdx};
use vdisk::ErrorKind;
use vdisk::check::check;
use vdisk::disk::{Disk, ImageFormat};
use vdisk::info::info;
use vdisk::storage::{MemoryStorage, Storage};

/// The disk ends inside a block.
const SIZE: u64 = 4200 * MIB + 100 * 512;
/// Too much for the table of a disk of `SIZE`, whose region has 1 MiB.
const LARGE: u64 = 150_000 * MIB;

/// A closed image of a disk with data at its beginning, in the middle and at its end.
fn written() -> MemoryStorage {
    let medium = Medium::new(new_image(SIZE, false));
    let mut disk = vhdx(&medium);
    for at in [0, 2000 * MIB + 4096, SIZE - 512] {
        disk.write_at(at, &[7; 512]).unwrap();
    }
    disk.close().unwrap();
    medium.state().file.live().clone()
}

/// What [`written`] wrote is there, as far as the disk goes.
fn assert_written(disk: &mut Disk) {
    for at in [0, 2000 * MIB + 4096, SIZE - 512] {
        if at < disk.size() {
            assert_eq!(read(disk, at, 512), [7; 512], "at {at}");
        }
    }
}

#[test]
fn a_disk_that_grows_holds_what_it_held_and_zeros_behind() {
    // With room in the table; with a table that moves, once and twice; to the largest disk.
    for size in [SIZE + 512, LARGE, 900_000 * MIB, 64 << 40] {
        let medium = Medium::new(written());
        let place = structures(&medium).bat();
        let mut disk = vhdx(&medium);
        disk.resize(LARGE.min(size), false).unwrap();
        disk.resize(size, false).unwrap();
        assert_eq!(disk.size(), size);
        assert_eq!(read(&mut disk, SIZE, 512), [0; 512]);
        disk.write_at(size - 512, &[9; 512]).unwrap();
        disk.close().unwrap();
        assert_eq!(structures(&medium).bat() == place, size < LARGE);
        let mut disk = vhdx(&medium);
        assert_eq!(disk.size(), size);
        assert_written(&mut disk);
        assert_eq!(read(&mut disk, size - 512, 512), [9; 512]);
        let mut file = medium.state().file.live().clone();
        assert_eq!(info(&mut file).unwrap().virtual_size, size);
        assert_sound(&mut file);
        assert!(file.allocated() < 8 * MIB, "{} bytes", file.allocated());
    }
}

#[test]
fn what_stood_behind_the_end_of_an_image_is_not_seen_when_it_grows() {
    for size in [SIZE + 3000 * MIB, LARGE] {
        let mut image = written();
        let place = structures(&Medium::new(image.clone()));
        let entry = |block: u64| place.bat().at.0 + (block + block / 4096) * 8;
        let mut last = [0; 8];
        image.get(entry(4200), &mut last);
        let last = u64::from_le_bytes(last) & !0xF_FFFF;
        image.put(last + 100 * 512, &[0xAB; 4096]);
        image.put(last + MIB - 512, &[0xAB; 512]);
        for block in [4201, 4202, 4607, 4608, 7000] {
            image.put(entry(block), &((2 * MIB) | 6).to_le_bytes());
        }
        let medium = Medium::new(image);
        let mut disk = vhdx(&medium);
        disk.resize(size, false).unwrap();
        assert_eq!(
            read(&mut disk, SIZE, 3 * MIB as usize),
            vec![0; 3 * MIB as usize]
        );
        assert_eq!(read(&mut disk, 7000 * MIB, 4096), [0; 4096]);
        disk.close().unwrap();
        let mut file = medium.state().file.live().clone();
        assert_sound(&mut file);
        assert_written(&mut vhdx(&medium));
    }
}

#[test]
fn a_size_that_cuts_off_data_is_refused_with_its_first_byte_and_changes_nothing() {
    for size in [SIZE - 512, 4200 * MIB, 2001 * MIB, 2000 * MIB + 4096, 512] {
        let medium = Medium::new(written());
        let before = medium.state().file.clone();
        let mut disk = vhdx(&medium);
        let error = disk.resize(size, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        // Told to the page, as the file system knows it.
        let first = match size {
            512 => 512,
            size if size > 2000 * MIB + 4096 => 4200 * MIB + 12 * 4096,
            _ => 2000 * MIB + 4096,
        };
        let first = format!("data at byte {},", first.max(size));
        assert!(error.to_string().contains(&first), "{error}, not {first}");
        assert_eq!(disk.size(), SIZE);
        drop(disk);
        let now = medium.state().file.clone();
        let (mut now, mut before) = (now, before);
        let (mut a, mut b) = (vec![0; 8 << 20], vec![0; 8 << 20]);
        now.read_at(0, &mut a).unwrap();
        before.read_at(0, &mut b).unwrap();
        assert!(a == b, "the image was changed");
    }
}

#[test]
fn a_size_that_cuts_off_nothing_but_zeros_needs_no_leave() {
    let medium = Medium::new(written());
    let mut disk = vhdx(&medium);
    disk.zero(4200 * MIB, 100 * 512).unwrap();
    disk.discard(2000 * MIB, MIB).unwrap();
    disk.flush().unwrap();
    disk.resize(1000 * MIB, false).unwrap();
    assert!(disk.write_at(1000 * MIB, &[1; 512]).is_err());
    assert!(disk.write_at(1000 * MIB - 512, &[1; 1024]).is_err());
    disk.resize(SIZE, false).unwrap();
    assert_eq!(read(&mut disk, 2000 * MIB, 8192), [0; 8192]);
    assert_eq!(read(&mut disk, 1000 * MIB - 512, 1024), [0; 1024]);
}

#[test]
fn a_disk_that_became_smaller_gives_its_space_back_and_grows_with_zeros() {
    let medium = Medium::new(written());
    let mut disk = vhdx(&medium);
    for block in 100..200 {
        disk.write_at(block * MIB, &vec![block as u8; MIB as usize])
            .unwrap();
    }
    disk.flush().unwrap();
    disk.resize(150 * MIB + 4096, true).unwrap();
    disk.close().unwrap();
    let image = structures(&medium);
    assert!(
        image.file_len <= image.end_of_used && image.file_len < 70 * MIB,
        "{} bytes",
        image.file_len
    );
    let mut disk = vhdx(&medium);
    disk.resize(SIZE, false).unwrap();
    assert_eq!(read(&mut disk, 150 * MIB, 4096), [150; 4096]);
    for at in [150 * MIB + 4096, 160 * MIB, 199 * MIB, SIZE - 4096] {
        assert_eq!(read(&mut disk, at, 4096), [0; 4096], "at {at}");
    }
    assert_sound(&mut medium.state().file.live().clone());
}

#[test]
fn sizes_that_cannot_be_are_refused_with_what_could() {
    let medium = Medium::new(written());
    let mut disk = vhdx(&medium);
    for (size, says) in [
        (0, "empty"),
        (SIZE + 1, "whole sectors"),
        ((64 << 40) + 512, "64 TiB"),
        (u64::MAX, "64 TiB"),
    ] {
        let error = disk.resize(size, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(says), "{error}");
    }
    disk.resize(SIZE, false).unwrap();
}

#[test]
fn a_fixed_disk_grows_by_blocks_that_are_there() {
    for size in [260 * MIB, LARGE] {
        let medium = Medium::new(new_image(200 * MIB, true));
        let mut disk = vhdx(&medium);
        disk.resize(size, false).unwrap();
        disk.write_at(size - 512, &[5; 512]).unwrap();
        disk.close().unwrap();
        let mut file = medium.state().file.live().clone();
        let report = check(&mut file).unwrap();
        assert!(report.is_sound(), "{:?}", report.findings);
        assert_eq!(report.blocks.fully_present, size / MIB);
        // Blocks that were never written are holes of the file: nothing is lost with them.
        let mut disk = vhdx(&medium);
        disk.resize(size - MIB, false).unwrap_err();
        disk.zero(size - 512, 512).unwrap();
        disk.resize(220 * MIB, true).unwrap();
        disk.resize(210 * MIB, false).unwrap();
    }
}

#[test]
fn a_raw_disk_is_as_long_as_its_file() {
    let medium = Medium::new(MemoryStorage::new());
    medium.state().file.set_len(10 * MIB).unwrap();
    let mut disk = opened(&medium, ImageFormat::Raw).unwrap();
    disk.write_at(5 * MIB, &[3; 4096]).unwrap();
    disk.resize(100 * MIB, false).unwrap();
    assert_eq!(
        (disk.size(), medium.state().file.len().unwrap()),
        (100 * MIB, 100 * MIB)
    );
    assert_eq!(read(&mut disk, 99 * MIB, 512), [0; 512]);
    let error = disk.resize(4 * MIB, false).unwrap_err();
    assert!(
        error.to_string().contains(&format!("byte {},", 5 * MIB)),
        "{error}"
    );
    disk.resize(6 * MIB, false).unwrap();
    disk.resize(5 * MIB, true).unwrap();
    assert!(disk.write_at(5 * MIB, &[1]).is_err());
    disk.resize(10 * MIB, false).unwrap();
    assert_eq!(read(&mut disk, 5 * MIB, 4096), [0; 4096]);
}

/// What is done to the disk of [`written`] in each of the tests below: other sizes, with changes
/// before and after.
fn resizes(disk: &mut Disk, sizes: &[u64]) -> vdisk::Result<()> {
    for size in sizes {
        disk.write_at(0, &[7; 512])?;
        disk.zero(3 * MIB, 2 * MIB)?;
        disk.write_at(4 * MIB, &[8; 512])?;
        disk.resize(*size, true)?;
    }
    disk.flush()
}

const COURSES: [&[u64]; 4] = [
    &[5000 * MIB],
    &[LARGE],
    &[2001 * MIB],
    &[LARGE, 2001 * MIB, SIZE],
];

/// However it ended, the disk has one of the sizes and what was written long before.
fn assert_whole(left: MemoryStorage, sizes: &[u64], what: &str) {
    let medium = Medium::new(left);
    let mut disk = opened(&medium, ImageFormat::Vhdx).unwrap_or_else(|e| panic!("{what}: {e}"));
    let size = disk.size();
    assert!(
        size == SIZE || sizes.contains(&size),
        "{what}: {size} bytes"
    );
    assert_eq!(read(&mut disk, 0, 512), [7; 512], "{what}");
    assert_eq!(read(&mut disk, 2000 * MIB + 4096, 512), [7; 512], "{what}");
    if !sizes.contains(&(2001 * MIB)) {
        assert_written(&mut disk);
    } else if size == SIZE {
        let end = read(&mut disk, SIZE - 512, 512);
        assert!(end == [0; 512] || end == [7; 512], "{what}");
    }
    assert_sound(&mut medium.state().file.live().clone());
    // It goes on as if nothing had been.
    disk.resize(6000 * MIB, false).unwrap();
    disk.write_at(5999 * MIB, &[1; 512]).unwrap();
    disk.close().unwrap();
    assert_sound(&mut medium.state().file.live().clone());
}

#[test]
fn whichever_operation_of_a_resize_fails_the_disk_has_one_of_the_sizes_and_all_its_data() {
    let image = written();
    for (course, sizes) in COURSES.into_iter().enumerate() {
        for for_good in [false, true] {
            for fails in 0.. {
                let medium = Medium::new(image.clone());
                let mut disk = vhdx(&medium);
                let begun = medium.state().done;
                medium.state().fails = begun + fails;
                medium.state().for_good = for_good;
                let ended = resizes(&mut disk, sizes);
                if medium.state().done <= begun + fails {
                    assert!(fails > 20, "the course has more steps than {fails}");
                    ended.unwrap();
                    break;
                }
                let size = disk.size();
                assert!(size == SIZE || sizes.contains(&size), "{size} bytes");
                drop(disk);
                let left = medium.cut(fails);
                assert_whole(left, sizes, &format!("course {course}, operation {fails}"));
            }
        }
    }
}
