//! Our images and those of other programs, both ways: qemu-img, qemu-io, vhdiinfo.

mod programs;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use programs::{run, succeed, switched_off};
use tempfile::TempDir;
use vdisk::check::{CheckReport, Finding, check};
use vdisk::create::{CreateOptions, create};
use vdisk::engine::Mark;
use vdisk::format::header::{Slot, choose_current};
use vdisk::format::log::{EntryPlan, encode_entry};
use vdisk::format::metadata::set_mark;
use vdisk::format::{BatEntry, Guid, Header, PAGE, PAGE_BYTES};
use vdisk::info::{Info, info};
use vdisk::open::{Admit, Image, LoadOptions, load};
use vdisk::storage::{FileStorage, Storage};
use vdisk::units::{BlockIndex, FileOffset, MIB};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// The test's folder, and whether it may run at all.
fn folder() -> Option<TempDir> {
    (!switched_off()).then(|| TempDir::new().unwrap())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn seeded(mut state: u128) -> impl FnMut() -> u128 {
    move || {
        state = state.wrapping_mul(0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645);
        state ^= state >> 61;
        state
    }
}

/// Makes an image of ours.
fn make(
    folder: &TempDir,
    name: &str,
    size: u64,
    change: impl Fn(&mut CreateOptions<'_>),
) -> PathBuf {
    let path = folder.path().join(name);
    let mut storage = FileStorage::create(&path).unwrap();
    let mut random = seeded(7);
    let mut options = CreateOptions::new(size, &mut random);
    change(&mut options);
    create(&mut storage, options).unwrap();
    path
}

fn open(path: &Path, writable: bool) -> (FileStorage, vdisk::Result<Image>) {
    let mut storage = FileStorage::open(path, writable).unwrap();
    let mut random = seeded(11);
    let image = load(
        &mut storage,
        LoadOptions {
            writable,
            scan_bat: true,
            admit: Admit {
                marked: false,
                parent: false,
            },
            random: &mut random,
        },
    );
    (storage, image)
}

fn examined(path: &Path) -> CheckReport {
    check(&mut FileStorage::open(path, false).unwrap()).unwrap()
}

fn described(path: &Path) -> Info {
    info(&mut FileStorage::open(path, false).unwrap()).unwrap()
}

fn qemu_info(path: &Path) -> serde_json::Value {
    let json = succeed("qemu-img", &["info", "--output=json", text(path)]);
    serde_json::from_str(&json).unwrap()
}

#[test]
fn other_programs_accept_our_images() {
    let Some(folder) = folder() else { return };
    let sizes = [
        512,
        3 * MIB,
        5 * GIB + 512,
        100 * GIB,
        TIB,
        16 * TIB,
        64 * TIB,
    ];
    for (number, size) in sizes.into_iter().enumerate() {
        for block in [None, Some(1 << 20), Some(32 << 20), Some(256 << 20)] {
            let name = format!("{number}-{}.vhdx", block.unwrap_or(0));
            let path = make(&folder, &name, size, |options| options.block_size = block);
            succeed("qemu-img", &["check", text(&path)]);
            let seen = qemu_info(&path);
            assert_eq!(seen["virtual-size"], size, "{name}");
            assert_eq!(seen["format"], "vhdx", "{name}");
            let seen = succeed("vhdiinfo", &[text(&path)]);
            assert!(
                seen.contains(&format!("({size} bytes)")) || size < 1024,
                "{name}: {seen}"
            );
            assert_eq!(described(&path).virtual_size, size);
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn other_programs_accept_our_fixed_images() {
    let Some(folder) = folder() else { return };
    for (size, block) in [
        (5 * MIB, 1 << 20),
        (6 * GIB + 512, 1 << 20),
        (40 * GIB, 32 << 20),
    ] {
        let path = make(&folder, "fixed.vhdx", size, |options| {
            options.fixed = true;
            options.block_size = Some(block);
        });
        succeed("qemu-img", &["check", text(&path)]);
        assert_eq!(qemu_info(&path)["virtual-size"], size);
        let seen = succeed("vhdiinfo", &[text(&path)]);
        assert!(seen.contains("Fixed"), "{seen}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn sectors_of_4096_bytes_are_accepted_by_those_who_know_them() {
    let Some(folder) = folder() else { return };
    let path = make(&folder, "4k.vhdx", 40 * GIB, |options| {
        options.logical_sector = 4096;
    });
    let seen = succeed("vhdiinfo", &[text(&path)]);
    assert!(seen.contains("4096"), "{seen}");
}

#[test]
fn what_qemu_writes_into_our_image_is_in_order() {
    let Some(folder) = folder() else { return };
    let path = make(&folder, "ours.vhdx", 20 * GIB, |options| {
        options.block_size = Some(1 << 20);
    });
    let writes = [
        "write -P 1 0 4k",
        "write -P 2 4095M 2M",
        "write -P 3 19G 64k",
    ];
    for write in writes {
        succeed("qemu-io", &["-f", "vhdx", "-c", write, text(&path)]);
    }
    let report = examined(&path);
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.blocks.fully_present, 4);
    assert_eq!(report.leaked_mib, 0);
    let (mut storage, image) = open(&path, false);
    let image = image.unwrap();
    // Block 4096 is the first one behind a bitmap entry.
    for (block, byte) in [(0, 1), (4095, 2), (4096, 2), (19 * 1024, 3)] {
        assert_eq!(
            first_byte(&mut storage, &image, block),
            byte,
            "block {block}"
        );
    }
}

/// The first byte of a block that is present.
fn first_byte(storage: &mut FileStorage, image: &Image, block: u64) -> u8 {
    let index = image.geometry.bat_index(BlockIndex(block));
    let mut entry = [0; 8];
    storage
        .read_at(image.bat().at.0 + index.0 * 8, &mut entry)
        .unwrap();
    let entry = BatEntry::decode(u64::from_le_bytes(entry)).unwrap();
    let mut byte = [0];
    storage
        .read_at(entry.space().unwrap().0, &mut byte)
        .unwrap();
    byte[0]
}

#[test]
fn images_of_qemu_are_read_and_found_sound() {
    let Some(folder) = folder() else { return };
    let path = folder.path().join("theirs.vhdx");
    for (size, options, kind) in [
        ("1G", "subformat=dynamic", "dynamic"),
        ("16T", "subformat=dynamic", "dynamic"),
        ("20G", "block_size=1M", "dynamic"),
        ("20G", "block_size=256M,log_size=64M", "dynamic"),
        ("20G", "block_size=2M,block_state_zero=off", "dynamic"),
        ("64M", "subformat=fixed", "fixed"),
    ] {
        succeed(
            "qemu-img",
            &["create", "-f", "vhdx", "-o", options, text(&path), size],
        );
        for write in ["write -P 5 0 4k", "write -P 6 60M 3M"] {
            succeed("qemu-io", &["-f", "vhdx", "-c", write, text(&path)]);
        }
        let report = examined(&path);
        assert!(report.is_sound(), "{size} {options}: {report:?}");
        assert!(!report.dirty, "{size} {options}");
        let ours = described(&path);
        assert_eq!(ours.kind, kind);
        assert!(ours.creator.starts_with("QEMU"), "{}", ours.creator);
        assert_eq!(qemu_info(&path)["virtual-size"], ours.virtual_size);
        let (mut storage, image) = open(&path, true);
        let image = image.unwrap();
        assert_eq!(first_byte(&mut storage, &image, 0), 5);
        drop(storage);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_marked_image_is_refused_by_other_programs_until_the_mark_is_gone() {
    let Some(folder) = folder() else { return };
    for mark in [Mark::Incomplete, Mark::HandedOver] {
        let path = make(&folder, "marked.vhdx", TIB, |options| {
            options.mark = Some(mark);
        });
        for (program, arguments) in [
            ("qemu-img", &["info", text(&path)][..]),
            ("qemu-img", &["check", text(&path)]),
            ("qemu-io", &["-f", "vhdx", "-c", "write 0 4k", text(&path)]),
            ("vhdiinfo", &[text(&path)]),
        ] {
            let output = run(program, arguments);
            assert!(!output.status.success(), "{program} opened a marked image");
        }
        assert_eq!(
            open(&path, true).1.unwrap_err().kind(),
            vdisk::ErrorKind::NotOwned
        );
        change_mark(&path, None);
        succeed("qemu-img", &["check", text(&path)]);
        succeed("vhdiinfo", &[text(&path)]);
        change_mark(&path, Some(mark));
        assert!(!run("qemu-img", &["check", text(&path)]).status.success());
        std::fs::remove_file(path).unwrap();
    }
}

/// Puts another mark into the first page of the metadata region.
fn change_mark(path: &Path, mark: Option<Mark>) {
    let mut storage = FileStorage::open(path, true).unwrap();
    let mut random = seeded(3);
    let options = LoadOptions {
        writable: true,
        scan_bat: false,
        admit: Admit {
            marked: true,
            parent: false,
        },
        random: &mut random,
    };
    let at = load(&mut storage, options).unwrap().metadata_region().at.0;
    let mut page = vec![0; PAGE];
    storage.read_at(at, &mut page).unwrap();
    storage
        .write_at(at, &set_mark(&page, mark).unwrap())
        .unwrap();
}

/// The current header and the log of an image.
fn header_of(path: &Path) -> Header {
    let file = OpenOptions::new().read(true).open(path).unwrap();
    let mut slots = [[0; PAGE]; 2];
    for (slot, page) in [Slot::One, Slot::Two].into_iter().zip(&mut slots) {
        file.read_exact_at(page, slot.at().0).unwrap();
    }
    choose_current(&slots[0], &slots[1]).unwrap().0
}

/// Leaves in an image what a crash leaves: log entries that name new blocks, not yet applied.
///
/// Two entries, the first of them below the tail of the second, which wraps round the end of the
/// log. The file has the space of both blocks: qemu-img 10.0.2 does not grow it to `LastFileOffset`.
fn make_dirty(path: &Path) {
    let (mut storage, image) = open(path, true);
    let image = image.unwrap();
    let header = header_of(path);
    let log_guid = Guid::from_random(99);
    let end = image.file_len;
    storage
        .write_at(end, &vec![0xAA; 2 * MIB as usize])
        .unwrap();
    let page = |number: u64, entries: &[(usize, u64)]| {
        let mut page = vec![0; PAGE];
        storage
            .read_at(image.bat().at.0 + number * PAGE_BYTES, &mut page)
            .unwrap();
        for (slot, entry) in entries {
            page[slot * 8..slot * 8 + 8].copy_from_slice(&entry.to_le_bytes());
        }
        let at = FileOffset(image.bat().at.0 + number * PAGE_BYTES);
        (at, Bytes::from(page))
    };
    let present = |at: u64| BatEntry::fully_present(FileOffset(at)).encode();
    let mut entries = Vec::new();
    let log_len = u64::from(header.log_len);
    let first = log_len - 3 * PAGE_BYTES;
    let second = log_len - PAGE_BYTES;
    let mut page = page;
    for (sequence, tail, file_len, pages) in [
        (41, first, end, vec![page(0, &[(3, present(end))])]),
        (
            42,
            second,
            end + 2 * MIB,
            vec![
                page(0, &[(3, present(end)), (4, present(end + MIB))]),
                page(1, &[]),
            ],
        ),
    ] {
        entries.push(encode_entry(&EntryPlan {
            log_guid,
            sequence,
            tail: tail as u32,
            flushed_file_offset: end,
            last_file_offset: file_len,
            pages: &pages,
        }));
    }
    let mut at = first;
    for sector in entries.concat().chunks(PAGE) {
        storage
            .write_at(header.log_at.0 + at % log_len, sector)
            .unwrap();
        at += PAGE_BYTES;
    }
    storage.flush().unwrap();
    let mut live = Header { log_guid, ..header };
    for slot in [image.slot.other(), image.slot] {
        live = live.next().unwrap();
        storage.write_at(slot.at().0, &live.encode()).unwrap();
    }
    storage.flush().unwrap();
}

/// Everything from the region tables on, but not the log, and as long as `len`.
fn content(path: &Path, len: u64) -> Vec<u8> {
    let header = header_of(path);
    let mut storage = FileStorage::open(path, false).unwrap();
    let mut bytes = vec![0; len as usize];
    storage.read_at(0, &mut bytes).unwrap();
    bytes[..192 << 10].fill(0);
    let log = header.log_at.0 as usize..header.log_at.0 as usize + header.log_len as usize;
    bytes[log].fill(0);
    bytes
}

#[test]
fn a_dirty_image_is_replayed_as_qemu_does_it() {
    let Some(folder) = folder() else { return };
    let path = make(&folder, "dirty.vhdx", 4 * GIB, |options| {
        options.block_size = Some(1 << 20);
    });
    make_dirty(&path);
    let theirs = folder.path().join("theirs.vhdx");
    std::fs::copy(&path, &theirs).unwrap();

    // Read-only: both changes are seen in memory, the file stays as it is.
    let before = std::fs::read(&path).unwrap();
    let (_, image) = open(&path, false);
    let image = image.unwrap();
    assert!(image.dirty);
    assert_eq!(image.overlay.len(), 2);
    assert_eq!(image.file_len, before.len() as u64);
    let report = examined(&path);
    assert!(report.is_sound() && report.dirty, "{report:?}");
    assert_eq!(report.blocks.fully_present, 2);
    assert!(described(&path).log.dirty);
    assert_eq!(std::fs::read(&path).unwrap(), before);

    // Writable: replayed for good, with new file-write GUID and the same data-write GUID.
    let old = header_of(&path);
    let (_, image) = open(&path, true);
    let image = image.unwrap();
    assert!(!image.dirty && image.overlay.is_empty());
    assert_eq!(image.file_len, before.len() as u64);
    let new = header_of(&path);
    assert!(new.log_guid.is_zero());
    assert_ne!(new.file_write, old.file_write);
    assert_eq!(new.data_write, old.data_write);
    succeed("qemu-img", &["check", text(&path)]);

    succeed("qemu-img", &["check", "-r", "all", text(&theirs)]);
    assert!(header_of(&theirs).log_guid.is_zero());
    let len = image.file_len;
    assert!(
        content(&path, len) == content(&theirs, len),
        "the replays differ"
    );
    succeed("qemu-img", &["compare", text(&path), text(&theirs)]);
}

#[test]
fn what_a_killed_qemu_leaves_is_read_like_what_qemu_makes_of_it() {
    let Some(folder) = folder() else { return };
    let path = folder.path().join("killed.vhdx");
    let theirs = folder.path().join("theirs.vhdx");
    let (mut dirty, mut torn_logs) = (0, 0);
    for round in 0..12 {
        let arguments = [
            "create",
            "-f",
            "vhdx",
            "-o",
            "block_size=1M",
            text(&path),
            "4G",
        ];
        succeed("qemu-img", &arguments);
        kill_while_writing(&path, 20 + round * 7);
        std::fs::copy(&path, &theirs).unwrap();
        let report = examined(&path);
        dirty += u32::from(report.dirty);
        let torn = |finding: &Finding| finding.message.contains("has no valid sequence");
        if report.findings.iter().any(torn) {
            // Killed inside its first log entry: whether the log is damaged cannot be told.
            torn_logs += 1;
            let refusal = open(&path, true).1.unwrap_err();
            assert_eq!(refusal.kind(), vdisk::ErrorKind::NeedsRepair);
            std::fs::remove_file(&path).unwrap();
            continue;
        }
        assert!(report.is_sound(), "round {round}: {report:?}");
        let (_, image) = open(&path, true);
        let image = image.unwrap();
        // Their repair may loop on a legal image: then there is nothing to compare with.
        let repaired = run("qemu-img", &["check", "-r", "all", text(&theirs)]);
        if repaired.status.success() {
            let len = image.file_len;
            let same = content(&path, len) == content(&theirs, len);
            assert!(same, "round {round}: the replays differ");
        }
        std::fs::remove_file(&path).unwrap();
    }
    println!("of 12 images {dirty} were dirty, {torn_logs} with a torn log");
}

/// Lets qemu-io allocate a block with every write, and kills it in the middle.
fn kill_while_writing(path: &Path, after_blocks: u64) {
    let commands: Vec<String> = (0..2000)
        .map(|block| format!("write -P 9 {block}M 4k"))
        .collect();
    let mut writer = Command::new("qemu-io");
    writer.args(["-f", "vhdx"]).stdout(Stdio::null());
    for command in &commands {
        writer.args(["-c", command]);
    }
    let start = std::fs::metadata(path).unwrap().len();
    let child = writer.arg(path).spawn().unwrap();
    let mut child = Killed(child);
    while std::fs::metadata(path).unwrap().len() < start + after_blocks * MIB {
        assert!(
            child.0.try_wait().unwrap().is_none(),
            "qemu-io ended by itself"
        );
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
}

/// Does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
