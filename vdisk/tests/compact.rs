//! Promises about files that are made as short as they can be: what the disk reads as then, how short
//! they are, and what a failure or a power cut at each of the steps leaves.

mod medium;

use medium::{MIB, Medium, assert_sound, new_image, opened, read, structures, vhdx};
use vdisk::ErrorKind;
use vdisk::create::{CreateOptions, create};
use vdisk::disk::{
    Disk, ImageFormat, OpenOptions, open_child_engine_with, open_engine, random_bits,
};
use vdisk::engine::{Compacted, EngineOptions};
use vdisk::format::{Guid, ParentLocator};
use vdisk::storage::{MemoryStorage, Storage};

const SIZE: u64 = 4200 * MIB;

/// Bytes of headers, regions and the log (of 4 MiB) of an image of `SIZE`.
const STRUCTURES: u64 = 7 * MIB;

/// Compacts in small steps to the end.
fn compact(disk: &mut Disk, defragment: bool) -> vdisk::Result<Compacted> {
    loop {
        let how_far = disk.compact(defragment, 3 * MIB)?;
        if how_far.done {
            return Ok(how_far);
        }
    }
}

/// Which blocks of the disk hold what byte.
type Content = Vec<(u64, u8)>;

fn fill(disk: &mut Disk, content: &Content) {
    for (block, byte) in content {
        disk.write_at(block * MIB + 4096, &vec![*byte; 70_000])
            .unwrap();
    }
}

#[track_caller]
fn assert_holds(disk: &mut Disk, content: &Content) {
    for (block, byte) in content {
        let found = read(disk, block * MIB, 80_000);
        assert!(found[..4096].iter().all(|b| *b == 0), "block {block}");
        assert!(
            found[4096..74_096].iter().all(|b| b == byte),
            "block {block} holds {} where {byte} was written",
            found[4096]
        );
        assert!(found[74_096..].iter().all(|b| *b == 0), "block {block}");
    }
}

/// A closed image whose blocks were written from the last to the first, and every other one of which
/// was discarded; and what it holds.
fn scattered() -> (MemoryStorage, Content) {
    let medium = Medium::new(new_image(SIZE, false));
    let mut disk = vhdx(&medium);
    let place = |number: u64| (number * 37 + 11) % 200 * 20;
    let all: Content = (0..40).map(|n| (place(n), n as u8 + 1)).collect();
    fill(&mut disk, &all);
    disk.flush().unwrap();
    for (block, _) in all.iter().step_by(2) {
        disk.discard(block * MIB, MIB).unwrap();
    }
    disk.close().unwrap();
    let left = all.into_iter().skip(1).step_by(2).collect();
    let image = medium.state().file.live().clone();
    (image, left)
}

/// Places of the blocks in the file, in the order of the disk.
fn places(medium: &Medium) -> Vec<u64> {
    let image = structures(medium);
    let mut file = medium.state().file.live().clone();
    let bat = image.bat();
    let mut table = vec![0; bat.len as usize];
    file.read_at(bat.at.0, &mut table).unwrap();
    let entries = table.chunks_exact(8).map(|raw| {
        let raw: [u8; 8] = raw.try_into().unwrap();
        u64::from_le_bytes(raw)
    });
    let present = entries.filter(|entry| entry & 7 == 6);
    present.map(|entry| entry & !0xF_FFFF).collect()
}

#[test]
fn the_space_of_discarded_blocks_goes_back_to_the_host_and_the_rest_reads_the_same() {
    for defragment in [false, true] {
        let (image, content) = scattered();
        let before = image.clone().len().unwrap();
        let medium = Medium::new(image);
        let mut disk = vhdx(&medium);
        let compacted = compact(&mut disk, defragment).unwrap();
        let blocks = content.len() as u64;
        let structures = structures(&medium).end_of_used - blocks * MIB;
        assert!(structures <= STRUCTURES, "{structures}");
        assert_eq!(compacted.end, structures + blocks * MIB);
        assert_eq!(medium.state().file.len().unwrap(), compacted.end);
        assert!(compacted.end < before && compacted.moved > 0);
        assert_holds(&mut disk, &content);
        fill(&mut disk, &vec![(7, 7)]);
        disk.close().unwrap();
        assert_sound(&mut medium.state().file.live().clone());
        let mut disk = vhdx(&medium);
        assert_holds(&mut disk, &content);
        assert_holds(&mut disk, &vec![(7, 7), (8, 0)]);
    }
}

#[test]
fn defragmented_blocks_lie_in_the_order_of_the_disk_and_are_not_moved_again() {
    let (image, content) = scattered();
    let medium = Medium::new(image);
    let mut disk = vhdx(&medium);
    // As a compaction without it leaves them.
    compact(&mut disk, false).unwrap();
    compact(&mut disk, true).unwrap();
    let there = places(&medium);
    println!(
        "{:?} {:?}",
        there.iter().map(|a| a / MIB).collect::<Vec<_>>(),
        structures(&medium).header
    );
    assert!(there.is_sorted(), "{there:?}");
    assert_eq!(
        there.last().unwrap() - there[0],
        (content.len() as u64 - 1) * MIB
    );
    let again = compact(&mut disk, true).unwrap();
    assert_eq!(again.moved, 0);
    disk.close().unwrap();
    assert_eq!(compact(&mut vhdx(&medium), true).unwrap().moved, 0);
    assert_holds(&mut vhdx(&medium), &content);
}

#[test]
fn blocks_that_the_host_holds_nothing_of_are_dropped() {
    let medium = Medium::new(new_image(SIZE, false));
    let mut disk = vhdx(&medium);
    for block in 0..10 {
        disk.write_at(block * MIB, &[block as u8 + 1; 4096])
            .unwrap();
    }
    for block in (0..10).filter(|block| block % 3 != 0) {
        // Not the whole block, so it stays, as a hole of the file.
        disk.zero(block * MIB, MIB - 512).unwrap();
    }
    disk.flush().unwrap();
    let compacted = compact(&mut disk, false).unwrap();
    assert_eq!(compacted.dropped, 6 * MIB);
    disk.close().unwrap();
    assert_eq!(places(&medium).len(), 4);
    let mut disk = vhdx(&medium);
    for block in 0..10 {
        let byte = if block % 3 == 0 { block as u8 + 1 } else { 0 };
        assert_eq!(read(&mut disk, block * MIB, 4096), [byte; 4096]);
    }
}

#[test]
fn a_fixed_disk_keeps_all_of_its_blocks() {
    let medium = Medium::new(new_image(40 * MIB, true));
    let mut disk = vhdx(&medium);
    disk.write_at(5 * MIB, &[5; 4096]).unwrap();
    let compacted = compact(&mut disk, false).unwrap();
    assert_eq!(compacted.dropped, 0);
    disk.close().unwrap();
    assert_eq!(places(&medium).len(), 40);
    assert_eq!(read(&mut vhdx(&medium), 5 * MIB, 4096), [5; 4096]);
    assert_sound(&mut medium.state().file.live().clone());
}

#[test]
fn disks_built_on_a_compacted_one_stay_valid_if_nothing_else_was_done_to_it() {
    let (image, content) = scattered();
    let medium = Medium::new(image);
    let version = structures(&medium).header.data_write;
    let options = OpenOptions {
        same_content: true,
        ..OpenOptions::default()
    };
    let mut storage = medium.clone();
    let engine = open_engine(&mut storage, ImageFormat::Vhdx, &options, &mut random_bits);
    let mut disk = Disk::new(Box::new(storage), engine.unwrap());
    compact(&mut disk, true).unwrap();
    disk.close().unwrap();
    let now = structures(&medium);
    assert_eq!(now.header.data_write, version);
    assert_holds(&mut vhdx(&medium), &content);
}

#[test]
fn what_cannot_be_compacted_is_refused() {
    let medium = Medium::new(MemoryStorage::new());
    medium.state().file.set_len(10 * MIB).unwrap();
    let mut disk = opened(&medium, ImageFormat::Raw).unwrap();
    let error = disk.compact(false, MIB).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let medium = Medium::new(new_image(SIZE, false));
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let mut storage = medium.clone();
    let engine = open_engine(&mut storage, ImageFormat::Vhdx, &options, &mut random_bits);
    let mut disk = Disk::new(Box::new(storage), engine.unwrap());
    let error = disk.compact(false, MIB).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

/// However it ended, all that was there before is there, and it goes on.
fn assert_whole(left: MemoryStorage, content: &Content, what: &str) {
    let medium = Medium::new(left);
    let mut disk = opened(&medium, ImageFormat::Vhdx).unwrap_or_else(|e| panic!("{what}: {e}"));
    println!("{what}");
    assert_holds(&mut disk, content);
    disk.flush().unwrap();
    let compacted = compact(&mut disk, false).unwrap();
    assert_holds(&mut disk, content);
    disk.close().unwrap();
    assert_sound(&mut medium.state().file.live().clone());
    let end = structures(&medium).end_of_used;
    assert_eq!(compacted.end, end, "{what}");
    assert!(
        end <= (content.len() as u64 + 1) * MIB + STRUCTURES,
        "{what}: {end}"
    );
}

#[test]
fn whichever_operation_of_a_compaction_fails_the_disk_holds_what_it_held() {
    let (image, mut content) = scattered();
    content.push((4100, 99));
    for (defragment, for_good) in [(false, false), (true, false), (false, true), (true, true)] {
        for fails in 0.. {
            let medium = Medium::new(image.clone());
            let mut disk = vhdx(&medium);
            fill(&mut disk, &vec![(4100, 99)]);
            disk.flush().unwrap();
            let begun = medium.state().done;
            medium.state().fails = begun + fails;
            medium.state().for_good = for_good;
            let ended = compact(&mut disk, defragment);
            if medium.state().done <= begun + fails {
                assert!(fails > 40, "there are more steps than {fails}");
                ended.unwrap();
                break;
            }
            if !for_good {
                assert_holds(&mut disk, &content);
            }
            drop(disk);
            let left = medium.cut(fails);
            assert_whole(left, &content, &format!("operation {fails}, {defragment}"));
        }
    }
}

/// A disk over a parent that holds 0xAA; entries of its log have one page each.
fn child(medium: &Medium) -> Disk {
    let options = OpenOptions::default();
    let tune = |options: EngineOptions| EngineOptions {
        log_len: Some(MIB as u32),
        entry_pages: 1,
        ..options
    };
    let mut storage = medium.clone();
    let opened = open_child_engine_with(&mut storage, &options, &mut random_bits, tune);
    let mut parent = MemoryStorage::from_bytes(&[0xAA; 4096].repeat(2560));
    let raw = open_engine(&mut parent, ImageFormat::Raw, &options, &mut random_bits);
    let parent = Disk::new(Box::new(parent), raw.unwrap());
    Disk::new(Box::new(storage), opened.unwrap().0).over(parent)
}

#[test]
fn what_is_written_to_a_moved_block_of_a_child_is_there_after_a_power_cut_or_its_parent_is() {
    let mut image = MemoryStorage::new();
    let mut random = random_bits;
    let mut options = CreateOptions::new(10 * MIB, &mut random);
    options.block_size = Some(MIB as u32);
    options.log_len = Some(MIB as u32);
    options.parent = Some(ParentLocator::new(Guid::from_random(1), "parent.raw"));
    create(&mut image, options).unwrap();
    let place = 5 * MIB + (32 << 10);
    for fails in 0.. {
        let medium = Medium::new(image.clone());
        let mut disk = child(&medium);
        disk.write_at(0, &[1; 4096].repeat(256)).unwrap();
        disk.write_at(5 * MIB, &[5; 4096]).unwrap();
        disk.flush().unwrap();
        disk.discard(0, MIB).unwrap();
        disk.flush().unwrap();
        while disk.compact(false, 1).unwrap().moved == 0 {}
        disk.write_at(place, &[6; 4096]).unwrap();
        let begun = medium.state().done;
        medium.state().fails = begun + fails;
        medium.state().for_good = true;
        let flushed = disk.flush().is_ok();
        drop(disk);
        for number in 0..50 {
            let left = medium.cut(50 * fails + number);
            let mut disk = child(&Medium::new(left));
            assert_eq!(read(&mut disk, 5 * MIB, 4096), [5; 4096]);
            for sector in read(&mut disk, place, 4096).chunks(512) {
                let holds = sector == [6; 512] || !flushed && sector == [0xAA; 512];
                assert!(holds, "{} after operation {fails}", sector[0]);
            }
        }
        if flushed {
            assert!(fails > 2, "a flush has more operations than {fails}");
            break;
        }
    }
}
