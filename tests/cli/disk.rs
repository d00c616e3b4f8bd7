//! Looking at disks: sound ones, others' ones, broken ones, missing ones.

use std::os::unix::fs::FileExt as _;

use super::run::{diskferry, folder, program};

#[test]
fn a_disk_that_qemu_made_is_read() {
    let here = folder();
    program(
        here.path(),
        "qemu-img",
        &["create", "-q", "-f", "vhdx", "q.vhdx", "5G"],
    )
    .ok();
    let line = diskferry(here.path(), &["info", "--json", "q.vhdx"])
        .ok()
        .json();
    assert_eq!(line["virtual_size"], 5_u64 << 30);
    assert!(
        line["creator"].as_str().unwrap().starts_with("QEMU"),
        "{line}"
    );
    let checked = diskferry(here.path(), &["check", "--json", "q.vhdx"])
        .ok()
        .json();
    assert_eq!(checked["sound"], true);
}

#[test]
fn people_are_told_what_a_disk_is() {
    let here = folder();
    diskferry(here.path(), &["create", "a.vhdx", "16T"]).ok();
    let text = diskferry(here.path(), &["info", "a.vhdx"]).ok().stdout;
    for word in [
        "16 TiB (17592186044416 bytes)",
        "VHDX, dynamic",
        "32 MiB",
        "empty",
    ] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
}

#[test]
fn a_corrupt_disk_has_its_own_exit_code_and_names_the_place() {
    let here = folder();
    diskferry(here.path(), &["create", "a.vhdx", "1G"]).ok();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(here.path().join("a.vhdx"))
        .unwrap();
    // Both copies of the region table.
    file.write_all_at(b"rubbish", 192 << 10).unwrap();
    file.write_all_at(b"rubbish", 256 << 10).unwrap();
    let ran = diskferry(here.path(), &["check", "a.vhdx"]).fails(3);
    assert!(ran.stdout.contains("region table"), "{}", ran.stdout);
    let ran = diskferry(here.path(), &["--json", "info", "a.vhdx"]).fails(3);
    assert_eq!(ran.json()["exit_code"], 3);
    // Not even a file of the kind.
    std::fs::write(here.path().join("b.vhdx"), [7; 4096]).unwrap();
    diskferry(here.path(), &["check", "b.vhdx"]).fails(3);
}

#[test]
fn a_disk_that_is_missing_or_no_disk_says_so() {
    let here = folder();
    for verb in ["info", "check"] {
        let ran = diskferry(here.path(), &[verb, "none.vhdx"]).fails(1);
        assert!(ran.stderr.contains("none.vhdx"), "{}", ran.stderr);
        diskferry(here.path(), &[verb, ".", "--format", "vhdx"]).fails(2);
    }
    diskferry(here.path(), &["create", "a.img", "1G"]).ok();
    diskferry(here.path(), &["check", "a.img"]).fails(9);
}

#[test]
fn a_disk_that_another_process_writes_is_refused() {
    let here = folder();
    diskferry(here.path(), &["create", "a.vhdx", "1G"]).ok();
    let file = std::fs::File::open(here.path().join("a.vhdx")).unwrap();
    file.lock().unwrap();
    let ran = diskferry(here.path(), &["info", "a.vhdx"]).fails(5);
    assert!(ran.stderr.contains("in use"), "{}", ran.stderr);
}
