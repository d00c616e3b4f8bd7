//! Promises about images with long tables, which are opened without reading them: what is taken is
//! found out while the disk is in use, and until then nothing can be lost.

#[expect(dead_code, reason = "a test binary uses a part")]
mod medium;

use medium::{MIB, Medium, assert_sound, new_image, opened, read, structures, vhdx};
use vdisk::ErrorKind;
use vdisk::disk::{Disk, ImageFormat};
use vdisk::storage::MemoryStorage;

/// A disk whose table has 16 MiB.
const SIZE: u64 = 2 << 40;

/// An image of which the first block lies behind free space, and the last two behind it.
fn with_a_hole() -> MemoryStorage {
    let medium = Medium::new(new_image(SIZE, false));
    let mut disk = vhdx(&medium);
    for block in [9, 1, 1_000_000, 2_000_000] {
        disk.write_at(block * MIB, &[block as u8 | 1; 4096])
            .unwrap();
    }
    disk.flush().unwrap();
    disk.discard(9 * MIB, MIB).unwrap();
    disk.close().unwrap();
    medium.state().file.live().clone()
}

/// Where the entry of a block is in the file.
fn entry_at(medium: &Medium, block: u64) -> u64 {
    let ratio = structures(medium).geometry.chunk_ratio();
    structures(medium).bat().at.0 + (block + block / ratio) * 8
}

fn entry(medium: &Medium, block: u64) -> u64 {
    let mut raw = [0; 8];
    let at = entry_at(medium, block);
    medium.state().file.live().get(at, &mut raw);
    u64::from_le_bytes(raw)
}

fn write(disk: &mut Disk, block: u64) -> vdisk::Result<()> {
    disk.write_at(block * MIB, &[block as u8 | 1; 4096])
}

#[test]
fn opening_an_image_reads_nothing_of_its_table() {
    let medium = Medium::new(with_a_hole());
    let mut disk = vhdx(&medium);
    let opened = medium.state().read;
    assert!(opened < 4 * MIB, "{opened} bytes");
    assert_eq!(read(&mut disk, MIB, 4096), [1; 4096]);
    let page = medium.state().read - opened;
    assert!(page <= 3 * 4096, "{page} bytes for one block");
    // Nor does looking for what is taken, where the table is a hole of the file.
    write(&mut disk, 5).unwrap();
    disk.flush().unwrap();
    assert!(medium.state().read < opened + MIB);
}

#[test]
fn new_blocks_go_behind_all_others_until_it_is_known_what_is_taken() {
    let medium = Medium::new(with_a_hole());
    let end = structures(&medium).end_of_used;
    let mut disk = vhdx(&medium);
    write(&mut disk, 5).unwrap();
    for block in 6..9 {
        write(&mut disk, block).unwrap();
        disk.flush().unwrap();
    }
    disk.close().unwrap();
    let place = |block| entry(&medium, block) & !0xF_FFFF;
    assert_eq!(place(5), end);
    let reused = (6..9).any(|block| place(block) < end);
    assert!(reused, "the hole before {end} was not used");
    assert_sound(&mut medium.state().file.live().clone());
}

#[test]
fn a_table_that_gives_one_space_to_two_blocks_ends_all_changes_and_neither_is_overwritten() {
    for (block, with) in [(3, 2_000_000), (1_999_999, 1)] {
        let mut image = with_a_hole();
        let medium = Medium::new(image.clone());
        let (at, same) = (entry_at(&medium, with), entry(&medium, with));
        image.put(entry_at(&medium, block), &same.to_le_bytes());
        let medium = Medium::new(image);
        let mut disk = vhdx(&medium);
        // What runs when it is found may still succeed; nothing after it does.
        let _ = write(&mut disk, 5);
        let error = disk.flush().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed);
        let error = write(&mut disk, 6).unwrap_err();
        assert!(error.to_string().contains("overlaps"), "{error}");
        assert_eq!(read(&mut disk, with * MIB, 4096), [with as u8 | 1; 4096]);
        drop(disk);
        let mut now = [0; 8];
        medium.state().file.live().get(at, &mut now);
        assert_eq!(u64::from_le_bytes(now), same);
        let mut block = [0; 4096];
        medium.state().file.live().get(same & !0xF_FFFF, &mut block);
        assert_eq!(block, [with as u8 | 1; 4096]);
    }
}

#[test]
fn a_block_beyond_the_file_is_a_fault_wherever_it_is_met() {
    let mut image = with_a_hole();
    let medium = Medium::new(image.clone());
    image.put(
        entry_at(&medium, 1_500_000),
        &((4 << 40) | 6_u64).to_le_bytes(),
    );
    let medium = Medium::new(image);
    let mut disk = vhdx(&medium);
    assert!(disk.read_at(1_500_000 * MIB, &mut [0; 512]).is_err());
    let _ = write(&mut disk, 5);
    assert!(disk.flush().is_err());
}

#[test]
fn whichever_operation_of_the_search_fails_the_disk_goes_on_or_takes_no_more_changes() {
    let image = with_a_hole();
    for fails in 0.. {
        let medium = Medium::new(image.clone());
        let mut disk = vhdx(&medium);
        let begun = medium.state().done;
        medium.state().fails = begun + fails;
        let ended = write(&mut disk, 5).and_then(|()| disk.flush());
        if medium.state().done <= begun + fails {
            ended.unwrap();
            assert!(fails > 10, "there are more steps than {fails}");
            break;
        }
        // Either it went on without that operation, or it says so.
        let then = write(&mut disk, 6).and_then(|()| disk.flush());
        let written = ended.is_ok();
        drop(disk);
        let left = Medium::new(medium.state().file.live().clone());
        let mut disk = opened(&left, ImageFormat::Vhdx).unwrap();
        for block in [1, 1_000_000, 2_000_000] {
            let there = read(&mut disk, block * MIB, 4096);
            assert_eq!(there, [block as u8 | 1; 4096], "operation {fails}");
        }
        if written {
            assert_eq!(read(&mut disk, 5 * MIB, 4096), [5; 4096]);
        }
        if then.is_ok() {
            assert_eq!(read(&mut disk, 6 * MIB, 4096), [7; 4096]);
        }
        assert_sound(&mut left.state().file.live().clone());
    }
}
