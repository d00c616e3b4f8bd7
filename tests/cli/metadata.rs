//! Metadata items: what programs keep in a disk's file stays there and goes where the disk goes.

use std::fs;
use std::path::Path;

use super::run::{diskferry, folder, program};

const OWNER: &str = "6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01";
const OTHER: &str = "11111111-2222-4333-8444-555555555555";

fn verb(here: &Path, words: &[&str]) -> super::run::Ran {
    diskferry(here, &[&["metadata"], words].concat())
}

/// Text of a user's item, by what the command prints.
fn text(here: &Path, disk: &str, id: &str) -> String {
    verb(here, &["get", disk, id]).ok().stdout
}

#[test]
fn an_item_is_set_listed_read_and_removed_and_others_read_the_disk() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "64M"]).ok();
    let before = diskferry(here, &["--json", "info", "a.vhdx"]).ok().json();
    let line = verb(here, &["--json", "set", "a.vhdx", OWNER, "--text", "mail"])
        .ok()
        .json();
    assert_eq!(
        (&line["type"], &line["len"]),
        (&"metadata-set".into(), &4.into())
    );
    let large: Vec<u8> = (0..1_u32 << 20).map(|at| (at * 7 % 251) as u8).collect();
    fs::write(here.join("large"), &large).unwrap();
    verb(here, &["set", "a.vhdx", OTHER, "--file", "large"]).ok();
    assert_eq!(text(here, "a.vhdx", OWNER), "mail");
    verb(here, &["get", "a.vhdx", OTHER, "--file", "back"]).ok();
    assert!(fs::read(here.join("back")).unwrap() == large);
    verb(here, &["get", "a.vhdx", OTHER, "--file", "back"]).fails(1);
    let lines = verb(here, &["--json", "list", "a.vhdx"]).ok().json_lines();
    assert_eq!(lines.len(), 7);
    assert_eq!(lines[0]["name"], "file parameters");
    assert!(
        lines
            .iter()
            .any(|line| line["id"] == OTHER && line["len"] == 1 << 20)
    );
    let got = verb(here, &["--json", "get", "a.vhdx", OWNER]).ok().json();
    assert_eq!(
        (&got["hex"], &got["text"]),
        (&"6d61696c".into(), &"mail".into())
    );
    let after = diskferry(here, &["--json", "info", "a.vhdx"]).ok().json();
    assert_eq!(before["ids"]["data_write"], after["ids"]["data_write"]);
    assert_ne!(before["ids"]["file_write"], after["ids"]["file_write"]);
    diskferry(here, &["check", "a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "-q", "a.vhdx"]).ok();
    program(here, "vhdiinfo", &["a.vhdx"]).ok();
    // A program that knows nothing of the items writes to the disk and they stay.
    program(
        here,
        "qemu-io",
        &["-f", "vhdx", "-c", "write -P 5 1M 2M", "a.vhdx"],
    )
    .ok();
    assert_eq!(text(here, "a.vhdx", OWNER), "mail");
    verb(here, &["remove", "a.vhdx", OWNER]).ok();
    let gone = verb(here, &["get", "a.vhdx", OWNER]).fails(1);
    assert!(gone.stderr.contains("metadata list"), "{}", gone.stderr);
    verb(here, &["remove", "a.vhdx", OWNER]).fails(1);
}

#[test]
fn what_is_no_item_is_refused() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "64M"]).ok();
    diskferry(here, &["create", "a.img", "64M"]).ok();
    verb(here, &["set", "a.vhdx", "owner", "--text", "a"]).fails(2);
    verb(here, &["set", "a.vhdx", OWNER]).ends(2);
    verb(here, &["list", "a.img"]).fails(2);
    fs::write(here.join("large"), vec![1; (1 << 20) + 1]).unwrap();
    let refused = verb(here, &["set", "a.vhdx", OWNER, "--file", "large"]).fails(2);
    assert!(
        refused.stderr.contains("at most 1 MiB"),
        "{}",
        refused.stderr
    );
    // The identity of the disk is the format's.
    let id = "beca12ab-b2e6-4523-93ef-c309e000c746";
    verb(here, &["get", "a.vhdx", id]).fails(1);
}

#[test]
fn items_of_the_disk_go_with_it_into_its_snapshot_and_back() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "base.vhdx", "64M"]).ok();
    verb(
        here,
        &["set", "base.vhdx", OWNER, "--text", "mail", "--of-disk"],
    )
    .ok();
    verb(here, &["set", "base.vhdx", OTHER, "--text", "of the file"]).ok();
    diskferry(here, &["snapshot", "base.vhdx", "child.vhdx"]).ok();
    assert_eq!(text(here, "child.vhdx", OWNER), "mail");
    verb(here, &["get", "child.vhdx", OTHER]).fails(1);
    verb(here, &["set", "child.vhdx", OWNER, "--text", "news"]).ok();
    verb(
        here,
        &["set", "child.vhdx", OTHER, "--text", "of the child"],
    )
    .ok();
    diskferry(here, &["check", "child.vhdx"]).ok();
    // The child would not be what it is any more.
    program(here, "chmod", &["u+w", "base.vhdx"]).ok();
    let refused = verb(here, &["set", "base.vhdx", OWNER, "--text", "lost"]).fails(5);
    assert!(refused.stderr.contains("child.vhdx"), "{}", refused.stderr);
    verb(
        here,
        &["set", "base.vhdx", OTHER, "--text", "still of the file"],
    )
    .ok();
    diskferry(here, &["commit", "child.vhdx"]).ok();
    assert_eq!(text(here, "base.vhdx", OWNER), "news");
    assert_eq!(text(here, "base.vhdx", OTHER), "still of the file");
    diskferry(here, &["map", "child.vhdx"]).ok();
    diskferry(here, &["check", "base.vhdx"]).ok();
    // Merging what is merged changes nothing.
    diskferry(here, &["commit", "child.vhdx", "--delete"]).ok();
    assert_eq!(text(here, "base.vhdx", OWNER), "news");
}
