//! Disks turned into one another: the same bytes, the same holes, nothing half-made.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use super::run::{diskferry, folder, on_disk, program};

const SIZE: u64 = 300 << 20;

/// A sparse raw disk with data here and there, zeros written out in between, and an odd end.
fn raw(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for offset in [0, 33 << 20, (64 << 20) - 1000, 299 << 20] {
        let len = bytes.len().min((SIZE - offset) as usize);
        file.write_all_at(&bytes[..len], offset).unwrap();
    }
    file.write_all_at(&vec![0; 8 << 20], 200 << 20).unwrap();
}

#[track_caller]
fn same(here: &Path, one: &str, two: &str) {
    program(here, "qemu-img", &["compare", one, two]).ok();
}

#[test]
fn a_disk_survives_every_conversion() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    for flags in [&[][..], &["--block-size", "1M"], &["--fixed"]] {
        let words = [&["convert", "a.img", "b.vhdx", "--force"], flags].concat();
        diskferry(here, &words).ok();
        diskferry(here, &["check", "b.vhdx"]).ok();
        program(here, "qemu-img", &["check", "b.vhdx"]).ok();
        program(here, "vhdiinfo", &["b.vhdx"]).ok();
        same(here, "a.img", "b.vhdx");
        diskferry(here, &["convert", "b.vhdx", "c.img", "--force"]).ok();
        same(here, "a.img", "c.img");
        assert_eq!(std::fs::metadata(here.join("c.img")).unwrap().len(), SIZE);
        // Four pieces of 3 MB at most; the zeros that were written out are holes now.
        assert!(on_disk(&here.join("c.img")) < 14 << 20);
    }
    diskferry(here, &["convert", "b.vhdx", "d.vhdx", "--block-size", "2M"]).ok();
    same(here, "a.img", "d.vhdx");
}

#[test]
fn others_read_what_is_converted_and_the_other_way_round() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    program(
        here,
        "qemu-img",
        &["convert", "-O", "vhdx", "a.img", "q.vhdx"],
    )
    .ok();
    diskferry(here, &["check", "q.vhdx"]).ok();
    diskferry(here, &["convert", "q.vhdx", "b.img"]).ok();
    same(here, "a.img", "b.img");
    diskferry(here, &["convert", "q.vhdx", "c.vhdx"]).ok();
    program(
        here,
        "qemu-img",
        &["convert", "-O", "raw", "c.vhdx", "d.img"],
    )
    .ok();
    same(here, "a.img", "d.img");
}

#[test]
fn a_summary_says_how_much_was_copied() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    let lines = diskferry(here, &["--json", "convert", "a.img", "b.vhdx"])
        .ok()
        .json_lines();
    let summary = lines.last().unwrap();
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["virtual_size"], SIZE);
    let copied = summary["copied_bytes"].as_u64().unwrap();
    assert!((9_000_000..13_000_000).contains(&copied), "{copied}");
    assert!(
        lines.iter().any(|line| line["type"] == "progress"),
        "{lines:?}"
    );
    // Progress never runs backwards and ends at the whole.
    let done = lines.iter().filter_map(|line| line["done_bytes"].as_u64());
    let done: Vec<u64> = done.collect();
    assert!(done.is_sorted() && done.last() == Some(&SIZE), "{done:?}");
}

#[test]
fn nothing_half_made_is_left() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    let names = || {
        let entries = std::fs::read_dir(here).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    // The target's own name is not touched before the end.
    std::fs::write(here.join("b.vhdx"), "precious").unwrap();
    diskferry(here, &["convert", "a.img", "b.vhdx"]).fails(1);
    // The file may not grow beyond 4 MiB, so the host says that there is no room.
    let script = "ulimit -f 4096; trap '' XFSZ; exec \"$0\" convert --force a.img b.vhdx";
    let ran = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_diskferry")])
        .current_dir(here)
        .output()
        .unwrap();
    assert_eq!(
        ran.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    assert_eq!(names(), ["a.img", "b.vhdx"]);
    assert_eq!(std::fs::read(here.join("b.vhdx")).unwrap(), b"precious");
    diskferry(here, &["convert", "a.img", "a.img", "--force"]).fails(2);
    diskferry(here, &["convert", "none.img", "c.vhdx"]).fails(1);
    diskferry(here, &["convert", "a.img", "/dev/null", "--force"]).fails(9);
    assert_eq!(names(), ["a.img", "b.vhdx"]);
}

#[test]
fn a_map_tells_data_from_holes() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    diskferry(here, &["convert", "a.img", "b.vhdx", "--block-size", "1M"]).ok();
    for name in ["a.img", "b.vhdx"] {
        let lines = diskferry(here, &["--json", "map", name]).ok().json_lines();
        let extents: Vec<_> = lines
            .iter()
            .filter(|line| line["type"] == "extent")
            .collect();
        let number = |line: &serde_json::Value, field: &str| line[field].as_u64().unwrap();
        let mut at = 0;
        for extent in &extents {
            assert_eq!(number(extent, "offset"), at);
            at += number(extent, "length");
        }
        assert_eq!(at, SIZE, "{name}");
        let summary = lines.last().unwrap();
        let allocated = number(summary, "allocated_bytes");
        assert!(
            (9 << 20..24 << 20).contains(&allocated),
            "{name}: {allocated}"
        );
    }
    let part = diskferry(
        here,
        &["map", "b.vhdx", "--offset", "100M", "--length", "1M"],
    )
    .ok()
    .stdout;
    assert!(part.contains("100M") && part.contains("hole"), "{part}");
    diskferry(here, &["map", "b.vhdx", "--offset", "300M"]).fails(2);
}
