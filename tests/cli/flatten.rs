//! A disk of a chain becomes one of its own, in its file.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::chain::{chain, reads_as};
use super::run::{diskferry, folder, program};

fn versions(here: &Path, disk: &str) -> serde_json::Value {
    let info = diskferry(here, &["--json", "info", disk]).ok().json();
    info["ids"]["data_write"].clone()
}

/// What other programs read from the disk, which has no parent any more.
fn others_read(here: &Path, disk: &str, raw: &str) {
    program(here, "qemu-img", &["compare", "-q", raw, disk]).ok();
    let script = "import pyvhdi, sys
f = pyvhdi.file(); f.open(sys.argv[1])
sys.exit(0 if f.read_buffer(f.get_media_size()) == open(sys.argv[2], 'rb').read() else 1)";
    program(here, "/usr/bin/python3", &["-c", script, disk, raw]).ok();
}

#[test]
fn a_disk_that_is_flattened_reads_as_before_without_its_parents() {
    let here = folder();
    let here = here.path();
    chain(here);
    diskferry(here, &["snapshot", "child.vhdx", "grand.vhdx"]).ok();
    let before = versions(here, "child.vhdx");
    let line = diskferry(here, &["--json", "flatten", "child.vhdx"])
        .ok()
        .json_lines();
    let line = line.last().expect("a summary");
    assert_eq!(
        (&line["type"], &line["had_parent"]),
        (&"summary".into(), &true.into())
    );
    assert_eq!(versions(here, "child.vhdx"), before);
    let held = fs::metadata(here.join("child.vhdx")).unwrap().permissions();
    assert!(held.readonly(), "what others are built on stays protected");
    fs::remove_file(here.join("base.vhdx")).unwrap();
    let info = diskferry(here, &["--json", "info", "child.vhdx"])
        .ok()
        .json();
    assert_eq!(
        (&info["kind"], &info["parent"]),
        (&"dynamic".into(), &().into())
    );
    reads_as(here, "child.vhdx", "child.img");
    others_read(here, "child.vhdx", "child.img");
    let checked = diskferry(here, &["--json", "check", "child.vhdx"])
        .ok()
        .json();
    let findings = checked["findings"].as_array().expect("a list");
    assert!(
        findings.iter().all(|one| one["severity"] == "leak"),
        "{checked}"
    );
    reads_as(here, "grand.vhdx", "child.img");
    // The rest of the chain can follow, and a disk without a parent is left as it is.
    diskferry(here, &["flatten", "grand.vhdx"]).ok();
    fs::remove_file(here.join("child.vhdx")).unwrap();
    reads_as(here, "grand.vhdx", "child.img");
    let again = diskferry(here, &["--json", "flatten", "grand.vhdx"])
        .ok()
        .json_lines();
    assert_eq!(again.last().expect("a summary")["had_parent"], false);
    diskferry(here, &["resize", "grand.vhdx", "+64M"]).ok();
    diskferry(here, &["flatten", "child.img"]).fails(2);
}

#[test]
fn a_flatten_that_is_killed_changes_nothing_that_is_read_and_goes_on() {
    let here = folder();
    let here = here.path();
    chain(here);
    for turn in 0..12_u64 {
        let mut flattening = Command::new(env!("CARGO_BIN_EXE_diskferry"))
            .args(["flatten", "child.vhdx"])
            .current_dir(here)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(turn * 9));
        flattening.kill().unwrap();
        flattening.wait().unwrap();
        reads_as(here, "child.vhdx", "child.img");
        diskferry(here, &["--quiet", "map", "child.vhdx"]).ok();
    }
    diskferry(here, &["flatten", "child.vhdx"]).ok();
    fs::remove_file(here.join("base.vhdx")).unwrap();
    reads_as(here, "child.vhdx", "child.img");
    others_read(here, "child.vhdx", "child.img");
    diskferry(here, &["check", "child.vhdx"]).ok();
}
