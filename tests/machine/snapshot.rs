//! Machines are saved with their disks, go on, and come back; whatever breaks in between.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::Value;

use super::guest::{assert_kept, describe, flushed, start, until, without_kvm};
use super::process::Running;
use crate::run::{Ran, diskferry, folder};

/// `diskferry machine snapshot vm.toml --into INTO`.
fn snapshot(here: &Path, into: &str, more: &[&str]) -> Ran {
    let mut words = vec!["machine", "snapshot", "vm.toml", "--into", into, "--json"];
    words.extend(more);
    diskferry(here, &words)
}

/// A machine with a ledger on one disk, that has written some of it.
fn with_ledger(here: &Path) -> Running {
    diskferry(here, &["create", "a.vhdx", "1T", "--block-size", "1M"]).ok();
    describe(here, "vm.toml", ("do=ledger", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    until(here, "vm.toml", ("ledger", 20));
    running
}

/// Goes on from a snapshot. Its console is another file: it begins in the middle of a line.
fn restore(here: &Path, from: &str, more: &[&str]) -> (Running, Value) {
    let mut words = vec!["run", "vm.toml", "--restore", from];
    words.extend(more);
    let mut running = Running::start(here, &words);
    let restored = running.says("restored");
    println!("restored: {restored}");
    (running, restored)
}

/// What a restored guest said since, but for the rest of the line that it was in.
fn later(here: &Path, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(here.join("vm.toml.console")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|said| said["event"] == event).collect()
}

#[track_caller]
fn until_later(here: &Path, (event, count): (&str, usize)) -> Vec<Value> {
    let since = std::time::Instant::now();
    loop {
        let said = later(here, event);
        if said.len() >= count {
            return said;
        }
        assert!(since.elapsed() < super::process::STUCK, "{event}: {said:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[track_caller]
fn all_is_right(said: &[Value]) {
    assert!(
        said.iter()
            .all(|said| said["wrong"] == 0 && said["errors"] == 0),
        "{said:?}"
    );
}

fn highest(said: &[Value], field: &str) -> u64 {
    let numbers = said.iter().filter_map(|said| said[field].as_u64());
    numbers.max().unwrap()
}

#[test]
fn a_machine_goes_on_after_its_snapshot_and_another_goes_on_from_it_twice() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let running = with_ledger(here);
    let taken = snapshot(here, "one", &[]).ok().json();
    println!("taken: {taken}");
    assert_eq!(taken["stopped"], false);
    let at = highest(&later(here, "ledger"), "flushed");
    let said = until(here, "vm.toml", ("ledger", 60));
    all_is_right(&said);
    running.end();
    assert_kept(here, "a.vhdx", &flushed(here, "vm.toml"));
    diskferry(here, &["check", "a.vhdx"]).ok();
    // What was written since is in the way.
    let refused = diskferry(here, &["run", "vm.toml", "--restore", "one"]).fails(2);
    assert!(
        refused.stderr.contains("--discard-disks"),
        "{}",
        refused.stderr
    );
    for number in 1..=2 {
        let (running, restored) = restore(here, "one", &["--discard-disks"]);
        let aside = format!("a.set-aside-{number}.vhdx");
        let told = restored["set_aside"][0].as_str().unwrap();
        assert!(told.ends_with(&aside), "{restored}");
        let said = until_later(here, ("ledger", 30));
        all_is_right(&said);
        // It goes on from the instant, not from the beginning and not from what came after.
        let first = said[0]["flushed"].as_u64().unwrap();
        assert!(
            first > 0 && first <= at + 32 * 8,
            "{first}, snapshot at {at}"
        );
        running.end();
        diskferry(here, &["check", "a.vhdx"]).ok();
        diskferry(here, &["check", &aside]).ok();
    }
}

#[test]
fn what_is_only_in_memory_goes_on() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=spin every=10M", &[]));
    let running = start(here, "vm.toml");
    until(here, "vm.toml", ("spin", 20));
    snapshot(here, "asleep", &["--stop"]).ok();
    drop(running);
    let rounds = highest(&later(here, "spin"), "round");
    let (running, _) = restore(here, "asleep", &[]);
    let said = until_later(here, ("spin", 10));
    assert!(said.iter().all(|said| said["round"].as_u64().unwrap() >= 5));
    assert!(highest(&said, "round") > rounds, "{rounds}: {said:?}");
    running.end();
}

#[test]
fn every_word_of_memory_is_as_it_was() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let line = "do=fill do=spin every=10M rounds=400 do=fill-check";
    describe(here, "vm.toml", (line, &[]));
    let running = start(here, "vm.toml");
    until(here, "vm.toml", ("spin", 1));
    let taken = snapshot(here, "asleep", &["--stop"]).ok().json();
    drop(running);
    let filled = highest(&later(here, "fill"), "bytes");
    for (path, mode) in [("asleep", 0o700), ("asleep/memory", 0o600)] {
        let mode_of = fs::metadata(here.join(path)).unwrap().permissions().mode();
        assert_eq!(
            mode_of & 0o777,
            mode,
            "{path}: its guest's secrets are in it"
        );
    }
    assert!(taken["memory_bytes"].as_u64().unwrap() >= filled, "{taken}");
    let (mut running, _) = restore(here, "asleep", &[]);
    assert_eq!(running.says("summary")["end"], "power_off");
    let checked = &later(here, "fill-check")[0];
    assert_eq!(checked["wrong"], 0);
    assert_eq!(checked["bytes"], filled);
}

#[test]
fn a_machine_that_was_stopped_by_its_snapshot_goes_on_from_its_own_disks() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let mut running = with_ledger(here);
    assert_eq!(
        snapshot(here, "asleep", &["--stop"]).ok().json()["stopped"],
        true
    );
    assert_eq!(running.says("summary")["end"], "stopped");
    drop(running);
    let before = flushed(here, "vm.toml");
    let (running, restored) = restore(here, "asleep", &[]);
    assert_eq!(restored["set_aside"], serde_json::json!([]));
    all_is_right(&until_later(here, ("ledger", 20)));
    running.end();
    assert_kept(here, "a.vhdx", &before);
}

#[test]
fn a_kill_in_a_snapshot_leaves_a_machine_that_runs_and_no_snapshot() {
    if without_kvm() {
        return;
    }
    for after_ms in [0, 6, 12, 15, 18, 21, 24, 27, 30, 35, 40, 60] {
        println!("killed {after_ms} ms after the snapshot was asked for");
        let here = folder();
        let here = here.path();
        let running = with_ledger(here);
        let asked = here.to_owned();
        let asking = std::thread::spawn(move || snapshot(&asked, "one", &[]).code);
        std::thread::sleep(std::time::Duration::from_millis(after_ms));
        let before = flushed(here, "vm.toml");
        running.kill();
        let code = asking.join().unwrap();
        println!("the snapshot ended with {code}");
        assert_kept(here, "a.vhdx", &before);
        diskferry(here, &["check", "a.vhdx"]).ok();
        if here.join("one").exists() {
            let (running, _) = restore(here, "one", &["--discard-disks"]);
            all_is_right(&until_later(here, ("ledger", 5)));
            running.end();
        } else {
            assert_ne!(code, 0);
            diskferry(here, &["run", "vm.toml", "--restore", "one"]).fails(2);
        }
    }
}

#[test]
fn damage_and_other_disks_are_refused_before_anything_is_touched() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let running = with_ledger(here);
    snapshot(here, "one", &["--stop"]).ok();
    drop(running);
    let again = |code: i32| diskferry(here, &["run", "vm.toml", "--restore", "one"]).fails(code);
    let swap = |path: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = here.join(path);
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        change(&mut changed);
        fs::write(&path, changed).unwrap();
        (path, whole)
    };
    for (file, code) in [("machine.state", 3), ("memory", 3)] {
        let (path, whole) = swap(&format!("one/{file}"), &|bytes| {
            bytes.truncate(bytes.len() - 1);
        });
        again(code);
        fs::write(path, whole).unwrap();
    }
    fs::rename(here.join("one/snapshot.json"), here.join("one/away")).unwrap();
    again(2);
    fs::rename(here.join("one/away"), here.join("one/snapshot.json")).unwrap();
    // Another disk under the name of the frozen one.
    fs::rename(here.join("a.one.vhdx"), here.join("kept.vhdx")).unwrap();
    again(1);
    diskferry(here, &["create", "a.one.vhdx", "1T"]).ok();
    again(6);
    fs::remove_file(here.join("a.one.vhdx")).unwrap();
    fs::rename(here.join("kept.vhdx"), here.join("a.one.vhdx")).unwrap();
    // Another machine.
    let text = fs::read_to_string(here.join("vm.toml")).unwrap();
    fs::write(here.join("vm.toml"), text.replace("64M", "65M")).unwrap();
    again(6);
    fs::write(here.join("vm.toml"), text).unwrap();
    let (running, _) = restore(here, "one", &[]);
    all_is_right(&until_later(here, ("ledger", 5)));
    running.end();
}

#[test]
fn pages_that_are_damaged_end_the_machine_with_the_reason() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let running = with_ledger(here);
    snapshot(here, "one", &["--stop"]).ok();
    drop(running);
    let memory = fs::OpenOptions::new()
        .write(true)
        .open(here.join("one/memory"))
        .unwrap();
    let pages = memory.metadata().unwrap().len() / 4096 - 1;
    for page in 1..pages {
        memory.write_all_at(&[0xEE; 8], page * 4096 + 64).unwrap();
    }
    let ran = diskferry(here, &["run", "vm.toml", "--restore", "one"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("damaged in the file"), "{}", ran.stderr);
    diskferry(here, &["check", "a.vhdx"]).ok();
}

#[test]
fn disks_that_cannot_be_frozen_are_refused_and_the_machine_goes_on() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    diskferry(here, &["create", "b.img", "64M"]).ok();
    describe(here, "vm.toml", ("do=ledger", &["a.vhdx", "b.img"]));
    let running = start(here, "vm.toml");
    let refused = snapshot(here, "one", &[]).fails(2);
    assert!(refused.stderr.contains("convert"), "{}", refused.stderr);
    assert!(!here.join("one").exists() && !here.join("a.one.vhdx").exists());
    let said = until(here, "vm.toml", ("ledger", 1)).len();
    all_is_right(&until(here, "vm.toml", ("ledger", said + 10)));
    running.end();
}

#[test]
fn a_step_that_fails_is_undone_and_the_machine_goes_on() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    let second = format!("{}.vhdx", "b".repeat(160));
    diskferry(here, &["create", &second, "1G"]).ok();
    describe(here, "vm.toml", ("do=ledger", &["a.vhdx", &second]));
    let running = start(here, "vm.toml");
    until(here, "vm.toml", ("ledger", 10));
    // What the second disk holds would get a name that is too long: by then the first one is frozen.
    let name = "n".repeat(100);
    let failed = snapshot(here, &name, &[]).fails(1);
    assert!(failed.stderr.contains(".nnn"), "{}", failed.stderr);
    assert!(
        !fs::metadata(here.join("a.vhdx"))
            .unwrap()
            .permissions()
            .readonly()
    );
    let said = until(here, "vm.toml", ("ledger", 1)).len();
    all_is_right(&until(here, "vm.toml", ("ledger", said + 10)));
    let names: Vec<_> = fs::read_dir(here)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("nnn") || name.contains("partial"))
        .collect();
    assert_eq!(names, Vec::<String>::new());
    // It can be done again.
    snapshot(here, "short", &[]).ok();
    let said = until(here, "vm.toml", ("ledger", 1)).len();
    all_is_right(&until(here, "vm.toml", ("ledger", said + 10)));
    running.end();
    assert_kept(here, "a.vhdx", &flushed(here, "vm.toml"));
}

#[test]
fn a_large_machine_that_is_hardly_used_is_saved_small_and_starts_at_once() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=spin every=10M", &[]));
    let text = fs::read_to_string(here.join("vm.toml")).unwrap();
    fs::write(here.join("vm.toml"), text.replace("64M", "64G")).unwrap();
    let running = start(here, "vm.toml");
    until(here, "vm.toml", ("spin", 4));
    let taken = snapshot(here, "large", &["--stop"]).ok().json();
    println!("taken: {taken}");
    assert!(
        taken["memory_bytes"].as_u64().unwrap() < 64 << 20,
        "{taken}"
    );
    drop(running);
    let (running, restored) = restore(here, "large", &[]);
    assert_eq!(restored["lazy"], true, "these tests need userfaultfd");
    until_later(here, ("spin", 4));
    running.end();
}
