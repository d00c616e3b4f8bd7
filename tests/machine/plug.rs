//! Disks come to a machine that runs, and go.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::guest::{ask, describe, events, start, until, without_kvm};
use super::process::{Running, STUCK};
use crate::run::{Ran, diskferry, folder};

fn tell(here: &Path, words: &[&str]) -> Ran {
    let mut all = vec!["machine", words[0], "vm.toml", "--json"];
    all.extend(&words[1..]);
    diskferry(here, &all)
}

/// What the machine's process has open.
fn open_files(here: &Path) -> Vec<String> {
    let pid = ask(here, "status", "vm.toml").ok().json()["pid"].clone();
    let folder = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    // What is closed meanwhile has no target any more.
    let targets = folder.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let mut targets: Vec<String> = targets.map(|target| target.display().to_string()).collect();
    targets.sort();
    targets
}

/// Waits until no more is open than `before`: the connections of those who asked are closed in their own time.
#[track_caller]
fn closed_again(here: &Path, before: &[String]) {
    let since = Instant::now();
    loop {
        let now = open_files(here);
        if now.len() <= before.len() {
            return;
        }
        let late = since.elapsed() > STUCK;
        assert!(!late, "something stays open: {now:#?}, before {before:#?}");
        thread::sleep(Duration::from_millis(20));
    }
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
    diskferry(here, &["create", "c.vhdx", "1G"]).ok();
    let taken = tell(here, &["add-disk", "c.vhdx", "--name", "b"]).fails(2);
    assert!(taken.stderr.contains("--name"), "{}", taken.stderr);
    diskferry(here, &["check", "c.vhdx"]).ok();
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
        closed_again(here, &before);
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

#[test]
fn a_disk_that_the_machine_began_with_goes_and_others_may_use_it() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=plug-watch", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    until(here, "vm.toml", ("plug-watch", 1));
    tell(here, &["remove-disk", "a", "--force"]).ok();
    let resized = ["resize", "a.vhdx", "2G", "--json"];
    assert_eq!(diskferry(here, &resized).ok().json()["online"], false);
    let words = ["serve", "a.vhdx", "--listen", "unix:s"];
    let mut serving = Running::start(here, &words);
    serving.says("serving");
    serving.end();
    tell(here, &["add-disk", "a.vhdx"]).ok();
    let resized = ["resize", "a.vhdx", "3G", "--json"];
    assert_eq!(diskferry(here, &resized).ok().json()["online"], true);
    running.end();
}

#[test]
fn a_disk_is_told_of_by_the_file_that_it_is_in_now() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path().canonicalize().unwrap();
    let here = here.as_path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=plug-watch", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    diskferry(here, &["snapshot", "a.vhdx", "child.avhdx"]).ok();
    let removed = tell(here, &["remove-disk", "a", "--force"]).ok().json();
    assert_eq!(removed["path"], here.join("child.avhdx").to_str().unwrap());
    running.end();
}
