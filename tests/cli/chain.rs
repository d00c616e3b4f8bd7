//! Snapshots, and merging them again.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::run::{diskferry, folder, program};

const MIB: u64 = 1 << 20;

/// A raw file of 64 MiB with `value` in some places that depend on it, over what it held.
fn scribble(path: &Path, value: u8) {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .unwrap();
    file.set_len(64 * MIB).unwrap();
    for place in 0..40_u64 {
        let at = (place * 37 * u64::from(value)) % 63 * MIB + place * 512;
        file.seek(SeekFrom::Start(at)).unwrap();
        let len = 3000 * (1 + place as usize % 30);
        let byte = if place % 5 == 4 { 0 } else { value };
        file.write_all(&vec![byte; len]).unwrap();
    }
}

/// A base and a child, and what the child reads as, in `child.img`.
pub(super) fn chain(here: &Path) {
    scribble(&here.join("base.img"), 1);
    let words = ["convert", "base.img", "base.vhdx", "--block-size", "1M"];
    diskferry(here, &words).ok();
    let taken = diskferry(here, &["--json", "snapshot", "base.vhdx", "child.vhdx"]).ok();
    assert_eq!(taken.json()["type"], "snapshot");
    fs::copy(here.join("base.img"), here.join("child.img")).unwrap();
    scribble(&here.join("child.img"), 2);
    // Over NBD, so that zeros are written as zeros.
    let socket = here.join("s");
    let listen = format!("unix:{}", socket.display());
    let serving = super::serving::Serving::start(here, &["child.vhdx", "--listen", &listen]);
    program(here, "nbdcopy", &["--flush", "child.img", &serving.uri()]).ok();
    serving.end();
}

pub(super) fn reads_as(here: &Path, disk: &str, raw: &str) {
    let _ = fs::remove_file(here.join("read.img"));
    diskferry(here, &["convert", disk, "read.img"]).ok();
    let same = fs::read(here.join("read.img")).unwrap() == fs::read(here.join(raw)).unwrap();
    assert!(same, "{disk} does not read as {raw}");
}

#[test]
fn a_child_that_is_merged_leaves_its_parent_reading_as_it_did() {
    let here = folder();
    let here = here.path();
    chain(here);
    reads_as(here, "child.vhdx", "child.img");
    reads_as(here, "base.vhdx", "base.img");
    diskferry(here, &["commit", "child.vhdx"]).ok();
    for disk in ["child.vhdx", "base.vhdx"] {
        reads_as(here, disk, "child.img");
        diskferry(here, &["check", disk]).ok();
    }
    let protected = |name: &str| {
        fs::metadata(here.join(name))
            .unwrap()
            .permissions()
            .readonly()
    };
    assert!(protected("base.vhdx"));
    let lines = diskferry(here, &["--json", "commit", "child.vhdx", "--delete"])
        .ok()
        .json_lines();
    let line = lines.last().expect("a summary");
    assert_eq!(line["deleted"], true);
    assert!(!here.join("child.vhdx").exists() && !protected("base.vhdx"));
    reads_as(here, "base.vhdx", "child.img");
    program(here, "qemu-img", &["compare", "child.img", "base.vhdx"]).ok();
}

#[test]
fn a_parent_of_several_is_not_merged_into() {
    let here = folder();
    let here = here.path();
    chain(here);
    diskferry(here, &["create", "other.vhdx", "--parent", "base.vhdx"]).ok();
    let refused = diskferry(here, &["commit", "child.vhdx"]).fails(5);
    assert!(refused.stderr.contains("other.vhdx"), "{}", refused.stderr);
    reads_as(here, "other.vhdx", "base.img");
    reads_as(here, "child.vhdx", "child.img");
}

/// Merges the child into its base, killed again and again before that; both read as `child.img` then.
fn merge_with_kills(here: &Path) {
    for turn in 0..12_u64 {
        let mut merging = Command::new(env!("CARGO_BIN_EXE_diskferry"))
            .args(["commit", "child.vhdx"])
            .current_dir(here)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(turn * 9));
        merging.kill().unwrap();
        merging.wait().unwrap();
        reads_as(here, "child.vhdx", "child.img");
    }
    diskferry(here, &["commit", "child.vhdx"]).ok();
    reads_as(here, "base.vhdx", "child.img");
    reads_as(here, "child.vhdx", "child.img");
    diskferry(here, &["check", "base.vhdx"]).ok();
}

#[test]
fn a_merge_that_is_killed_changes_nothing_that_is_read_and_goes_on() {
    let here = folder();
    let here = here.path();
    chain(here);
    merge_with_kills(here);
}

#[test]
fn a_merged_parent_gets_the_size_of_its_child() {
    for (size, bytes) in [("100M", 100 * MIB), ("41M", 41 * MIB)] {
        let here = folder();
        let here = here.path();
        chain(here);
        diskferry(here, &["resize", "child.vhdx", size, "--discard-data"]).ok();
        let twin = fs::OpenOptions::new()
            .write(true)
            .open(here.join("child.img"));
        twin.unwrap().set_len(bytes).unwrap();
        merge_with_kills(here);
        program(here, "qemu-img", &["compare", "base.vhdx", "child.img"]).ok();
    }
}

#[test]
fn a_child_reads_the_same_on_another_parent() {
    let here = folder();
    let here = here.path();
    chain(here);
    // Another disk that shares some of what the base holds.
    fs::copy(here.join("base.img"), here.join("new.img")).unwrap();
    scribble(&here.join("new.img"), 3);
    diskferry(here, &["convert", "new.img", "new.vhdx"]).ok();
    diskferry(here, &["snapshot", "base.vhdx", "thin.vhdx"]).ok();
    diskferry(here, &["create", "grand.vhdx", "--parent", "thin.vhdx"]).ok();
    for disk in ["child.vhdx", "thin.vhdx"] {
        diskferry(here, &["rebase", disk, "--onto", "new.vhdx"]).ok();
    }
    fs::remove_file(here.join("base.vhdx")).unwrap();
    for (disk, raw) in [
        ("child.vhdx", "child.img"),
        ("thin.vhdx", "base.img"),
        ("grand.vhdx", "base.img"),
    ] {
        reads_as(here, disk, raw);
        diskferry(here, &["check", disk]).ok();
    }
}

#[test]
fn a_parent_that_has_moved_is_named_anew_without_copying() {
    let here = folder();
    let here = here.path();
    chain(here);
    fs::create_dir(here.join("moved")).unwrap();
    fs::rename(here.join("base.vhdx"), here.join("moved/base.vhdx")).unwrap();
    let refused = diskferry(here, &["convert", "child.vhdx", "read.img"]).fails(1);
    assert!(refused.stderr.contains("--parent"), "{}", refused.stderr);
    let words = [
        "--json",
        "rebase",
        "child.vhdx",
        "--onto",
        "moved/base.vhdx",
    ];
    let lines = diskferry(here, &words).ok().json_lines();
    assert_eq!(lines.last().expect("a summary")["copied_bytes"], 0);
    reads_as(here, "child.vhdx", "child.img");
}
