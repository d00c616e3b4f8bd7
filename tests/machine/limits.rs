//! Disks of machines with limits.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::guest::{ask, describe, events, start, until, without_kvm};
use super::process::{Running, STUCK};
use crate::run::{diskferry, folder};

/// A machine whose guest writes to a disk of which it may ask one request a second.
fn slow(here: &Path, line: &str) -> Running {
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", (line, &["a.vhdx"]));
    let text = fs::read_to_string(here.join("vm.toml")).unwrap();
    let limits = "limits = { iops = 1, iops_burst = 4, bandwidth = '1G' }";
    fs::write(here.join("vm.toml"), format!("{text}\n{limits}\n")).unwrap();
    start(here, "vm.toml")
}

fn limit(here: &Path, words: &[&str]) -> Value {
    let mut all = vec!["limit", "a.vhdx", "--json"];
    all.extend(words);
    diskferry(here, &all).ok().json()
}

#[test]
fn a_guest_waits_under_its_limits_and_goes_on_when_they_are_lifted() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let mut running = slow(here, "do=hello do=load ops=500 write=100 depth=16");
    until(here, "vm.toml", ("hello", 1));
    std::thread::sleep(Duration::from_millis(300));
    // A quarter of an hour lies between what it may do at once and the end.
    assert_eq!(events(here, "vm.toml", "load"), Vec::<Value>::new());
    let limits = limit(here, &[])["limits"].clone();
    assert_eq!(limits["iops"], 1);
    assert_eq!(limits["iops_burst"], 4);
    assert_eq!(limits["bandwidth"], 1 << 30);
    // Nobody who wants the machine to stand still waits for it.
    assert_eq!(ask(here, "pause", "vm.toml").ok().json()["state"], "paused");
    ask(here, "resume", "vm.toml").ok();
    assert_eq!(
        limit(here, &["--iops", "2"])["limits"],
        serde_json::json!({"iops": 2, "iops_burst": 1})
    );
    assert_eq!(limit(here, &["--none"])["limits"], serde_json::json!({}));
    assert_eq!(running.says("summary")["end"], "power_off");
    for load in events(here, "vm.toml", "load") {
        assert_eq!((&load["writes"], &load["errors"]), (&500.into(), &0.into()));
    }
}

#[test]
fn nothing_waits_for_requests_that_wait_for_their_turn() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    let mut running = slow(here, "do=hello do=load ops=500 write=100 depth=16");
    // One more than it may do at once: a second later, when all it asks for at a time has long been there.
    let written = || ask(here, "stats", "vm.toml").ok().json()["disks"][0]["write"].clone();
    let since = Instant::now();
    while written()["requests"].as_u64() < Some(5) {
        assert!(since.elapsed() < STUCK, "{}", written());
        std::thread::sleep(Duration::from_millis(20));
    }
    let taken = ["machine", "snapshot", "vm.toml", "--into", "one", "--json"];
    diskferry(here, &taken).ok();
    let stats = ask(here, "stats", "vm.toml").ok().json();
    let disk = &stats["disks"][0];
    assert_eq!(disk["limits"]["iops"], 1, "{stats}");
    assert!(disk["write"]["requests"].as_u64().unwrap() >= 16, "{disk}");
    let remove = ["machine", "remove-disk", "vm.toml", "a", "--force"];
    diskferry(here, &remove).ok();
    diskferry(here, &["check", "--chain", "a.vhdx"]).ok();
    ask(here, "power-off", "vm.toml").ok();
    assert_eq!(running.says("summary")["end"], "stopped");
}
