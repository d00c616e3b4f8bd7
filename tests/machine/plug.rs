//! Disks come to a machine that runs, and go.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::guest::{ask, describe, events, start, until, without_kvm};
use crate::run::{Ran, diskferry, folder};

fn tell(here: &Path, words: &[&str]) -> Ran {
    let mut all = vec!["machine", words[0], "vm.toml", "--json"];
    all.extend(&words[1..]);
    diskferry(here, &all)
}

/// How many files the machine's process has open.
fn open_files(here: &Path) -> usize {
    let pid = ask(here, "status", "vm.toml").ok().json()["pid"].clone();
    let folder = format!("/proc/{pid}/fd");
    fs::read_dir(folder).expect("the process runs").count()
}

#[track_caller]
fn sound(said: &[Value]) {
    for came in said {
        assert_eq!((&came["errors"], &came["wrong"]), (&0.into(), &0.into()));
    }
}

#[test]
fn a_disk_comes_is_used_and_goes_and_leaves_nothing_behind() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    for disk in ["a.vhdx", "b.vhdx"] {
        diskferry(here, &["create", disk, "1G"]).ok();
    }
    describe(here, "vm.toml", ("do=plug-watch rounds=4", &["a.vhdx"]));
    let mut running = start(here, "vm.toml");
    until(here, "vm.toml", ("plug-watch", 1));
    tell(here, &["add-disk", "b.vhdx"]).ok();
    until(here, "vm.toml", ("came", 1));
    tell(here, &["add-disk", "b.vhdx", "--name", "again"]).fails(5);
    tell(here, &["remove-disk", "b"]).ok();
    // The first time some things are made that stay: threads, and what they have open.
    let before = open_files(here);
    for round in 2..=3 {
        let added = tell(here, &["add-disk", "b.vhdx"]).ok().json();
        assert_eq!((&added["name"], &added["slot"]), (&"b".into(), &3.into()));
        let came = until(here, "vm.toml", ("came", round));
        sound(&came);
        diskferry(here, &["info", "b.vhdx"]).fails(5);
        if round == 2 {
            let size = ["resize-disk", "b", "+1G"];
            assert_eq!(tell(here, &size).ok().json()["virtual_size"], 2_u64 << 30);
        } else {
            assert_eq!(came[2]["capacity"], 2_u64 << 30);
            // It is one of the process's own disks: whoever looks for it by its file finds it.
            let bigger = ["resize", "b.vhdx", "3G", "--json"];
            assert_eq!(diskferry(here, &bigger).ok().json()["online"], true);
        }
        tell(here, &["remove-disk", "b"]).ok();
        diskferry(here, &["check", "b.vhdx"]).ok();
        assert!(open_files(here) <= before, "something stays open");
        if round == 2 {
            tell(here, &["remove-disk", "b"]).fails(2);
        }
    }
    diskferry(here, &["machine", "shutdown", "vm.toml", "--wait"]).ok();
    assert_eq!(running.says("summary")["end"], "power_off");
    let sockets = fs::read_dir(here.join("run")).unwrap().count();
    assert_eq!(sockets, 0, "sockets are left");
    for disk in ["a.vhdx", "b.vhdx"] {
        diskferry(here, &["check", disk]).ok();
    }
}

#[test]
fn a_guest_that_keeps_a_disk_loses_it_by_force_and_by_a_reset_does_not() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "b.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=plug-watch deaf=1", &[]));
    let mut running = start(here, "vm.toml");
    until(here, "vm.toml", ("plug-watch", 1));
    tell(here, &["add-disk", "b.vhdx", "--queues", "1"]).ok();
    until(here, "vm.toml", ("came", 1));
    let refused = tell(here, &["remove-disk", "b", "--timeout", "1"]).fails(1);
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    let state = ask(here, "reset", "vm.toml").ok().json();
    assert_eq!(state["state"], "running");
    until(here, "vm.toml", ("plug-watch", 2));
    let counted = ask(here, "stats", "vm.toml").ok().json();
    assert_eq!(
        (&counted["resets"], &counted["disks"][0]["name"]),
        (&1.into(), &"b".into())
    );
    tell(here, &["remove-disk", "b", "--force"]).ok();
    diskferry(here, &["check", "b.vhdx"]).ok();
    tell(here, &["add-disk", "b.vhdx"]).ok();
    let came = until(here, "vm.toml", ("came", 2));
    sound(&came);
    ask(here, "pause", "vm.toml").ok();
    tell(here, &["remove-disk", "b"]).fails(2);
    ask(here, "shutdown", "vm.toml").fails(2);
    tell(here, &["remove-disk", "b", "--force"]).ok();
    ask(here, "resume", "vm.toml").ok();
    assert_eq!(running.says("summary")["resets"], 1);
    assert_eq!(events(here, "vm.toml", "left").len(), 1);
    diskferry(here, &["check", "b.vhdx"]).ok();
}

#[test]
fn a_disk_that_came_later_moves_like_any_other_and_stays_while_it_does() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "b.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=plug-watch", &[]));
    let mut running = start(here, "vm.toml");
    until(here, "vm.toml", ("plug-watch", 1));
    tell(here, &["add-disk", "b.vhdx"]).ok();
    until(here, "vm.toml", ("came", 1));
    let moved = here.join("moved.vhdx");
    let moved = moved.to_str().unwrap();
    diskferry(
        here,
        &["mirror", "start", "b.vhdx", "--to", moved, "--manual"],
    )
    .ok();
    tell(here, &["remove-disk", "b"]).fails(5);
    tell(here, &["remove-disk", "b", "--force"]).fails(5);
    diskferry(here, &["mirror", "cutover", "b.vhdx", "--wait"]).ok();
    tell(here, &["remove-disk", "b"]).ok();
    assert_eq!(running.says("summary")["end"], "power_off");
    diskferry(here, &["check", "moved.vhdx"]).ok();
}
