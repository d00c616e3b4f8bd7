//! Disks examined and repaired: exit codes, what is told, and that QEMU finds a repaired disk sound.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::run::{diskferry, folder, program};
use super::serving::Serving;

const MIB: u64 = 1 << 20;

/// A disk with some data, its raw twin beside it.
fn written(here: &Path) {
    diskferry(here, &["create", "a.vhdx", "1G", "--block-size", "1M"]).ok();
    let writes = ["write -P 7 3M 100k", "write -P 8 700M 2M"];
    let commands = writes.iter().flat_map(|write| ["-c", *write]);
    let words: Vec<&str> = ["-f", "vhdx", "a.vhdx"]
        .into_iter()
        .chain(commands)
        .collect();
    program(here, "qemu-io", &words).ok();
    let twin = ["convert", "-f", "vhdx", "-O", "raw", "a.vhdx", "twin.img"];
    program(here, "qemu-img", &twin).ok();
}

fn put(here: &Path, at: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(here.join("a.vhdx"));
    file.unwrap().write_all_at(bytes, at).unwrap();
}

/// One copy of the region table spoiled, one header too, and space at the end that nothing names.
fn damaged(here: &Path) {
    written(here);
    put(here, (192 << 10) + 40, &[0x55; 8]);
    put(here, 64 << 10, &[0x55; 8]);
    let len = fs::metadata(here.join("a.vhdx")).unwrap().len();
    put(here, len + 5 * MIB - 1, &[0x55]);
}

/// The same with an entry of the table that has reserved bits: the disk is refused.
fn refused(here: &Path) {
    damaged(here);
    let file = fs::read(here.join("a.vhdx")).unwrap();
    // How the GUID of the BAT region begins in a file.
    let id = [0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42];
    let table = &file[256 << 10..320 << 10];
    let at = table.windows(8).position(|bytes| bytes == id).unwrap() + 16;
    let place = u64::from_le_bytes(table[at..at + 8].try_into().unwrap());
    put(here, place + 50 * 8, &(1_u64 << 9).to_le_bytes());
}

fn codes(line: &serde_json::Value) -> Vec<&str> {
    let findings = line["findings"].as_array().expect("a list");
    let code = |finding: &serde_json::Value| finding["code"].is_string();
    assert!(findings.iter().all(code));
    findings.iter().filter_map(|f| f["code"].as_str()).collect()
}

fn as_before(here: &Path, disk: &str) {
    diskferry(here, &["check", disk]).ok();
    program(here, "qemu-img", &["check", disk]).ok();
    program(here, "qemu-img", &["compare", disk, "twin.img"]).ok();
}

#[test]
fn what_a_repair_mends_is_sound_for_qemu_and_reads_as_before() {
    for (damage, before) in [(damaged as fn(&Path), 0), (refused, 4)] {
        let here = folder();
        let here = here.path();
        damage(here);
        let told = diskferry(here, &["check", "a.vhdx", "--json"]).ends(before);
        let line = told.json_lines().remove(0);
        for code in ["header-damaged", "region-copy-damaged", "leak"] {
            assert!(codes(&line).contains(&code), "{line}");
        }
        let image = fs::read(here.join("a.vhdx")).unwrap();
        let unchanged = || fs::read(here.join("a.vhdx")).unwrap() == image;
        let told = diskferry(here, &["check", "a.vhdx", "--repair", "--dry-run"]).ends(before);
        assert!(told.stdout.contains("would do"), "{}", told.stdout);
        assert!(unchanged(), "a dry run wrote");
        let words = ["check", "a.vhdx", "--repair", "--to", "copy.vhdx", "--json"];
        let line = diskferry(here, &words).ok().json();
        assert_eq!(
            (&line["type"], &line["sound"]),
            (&"repair".into(), &true.into())
        );
        assert!(unchanged(), "the original was written");
        as_before(here, "copy.vhdx");
        diskferry(here, &["check", "a.vhdx", "--repair"]).ok();
        as_before(here, "a.vhdx");
        let line = diskferry(here, &["check", "a.vhdx", "--json"]).ok().json();
        assert!(codes(&line).is_empty(), "{line}");
        let told = diskferry(here, &["check", "a.vhdx", "--repair"]).ok();
        assert!(told.stdout.contains("nothing to repair"), "{}", told.stdout);
    }
}

#[test]
fn a_disk_that_no_repair_makes_sound_is_left_byte_for_byte() {
    let here = folder();
    let here = here.path();
    written(here);
    for table in [192_u64, 256] {
        put(here, (table << 10) + 40, &[0x55; 8]);
    }
    let image = fs::read(here.join("a.vhdx")).unwrap();
    for words in [&["check", "a.vhdx"][..], &["check", "a.vhdx", "--repair"]] {
        diskferry(here, words).fails(3);
        assert!(fs::read(here.join("a.vhdx")).unwrap() == image, "{words:?}");
    }
}

#[test]
fn a_disk_in_use_is_not_repaired() {
    let here = folder();
    let here = here.path();
    written(here);
    let serving = Serving::start(here, &["a.vhdx", "--listen", "unix:s"]);
    diskferry(here, &["check", "a.vhdx", "--repair"]).fails(5);
    serving.end();
    diskferry(here, &["check", "a.vhdx", "--repair"]).ok();
}

#[test]
fn the_disks_of_a_chain_are_each_examined() {
    let here = folder();
    let here = here.path();
    written(here);
    diskferry(here, &["snapshot", "a.vhdx", "child.vhdx"]).ok();
    let words = ["check", "--chain", "child.vhdx", "--json"];
    let lines = diskferry(here, &words).ok().json_lines();
    assert_eq!(lines.len(), 2);
    let path = lines[1]["path"].as_str().unwrap();
    assert!(path.ends_with("a.vhdx"), "{path}");
    fs::rename(here.join("a.vhdx"), here.join("b.vhdx")).unwrap();
    let line = diskferry(here, &words).ok().json();
    assert!(codes(&line).contains(&"parent-not-found"), "{line}");
}
