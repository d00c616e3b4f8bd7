//! A machine that runs is shut down, reset and counted.

use std::fs;
use std::time::{Duration, Instant};

use super::guest::{ask, describe, start, until, without_kvm};
use super::process::STUCK;
use crate::run::{diskferry, folder};

#[test]
fn a_guest_is_asked_to_shut_down_and_a_guest_that_does_not_is_told_of() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=plug-watch", &[]));
    let mut running = start(here, "vm.toml");
    until(here, "vm.toml", ("plug-watch", 1));
    let words = ["machine", "shutdown", "vm.toml", "--wait", "--json"];
    assert_eq!(diskferry(here, &words).ok().json()["ended"], true);
    assert_eq!(running.says("summary")["end"], "power_off");
    describe(here, "vm.toml", ("do=spin every=1M", &[]));
    let running = start(here, "vm.toml");
    let words = ["machine", "shutdown", "vm.toml", "--wait", "--timeout", "1"];
    let refused = diskferry(here, &words).fails(1);
    assert!(refused.stderr.contains("power-off"), "{}", refused.stderr);
    assert_eq!(
        ask(here, "shutdown", "vm.toml").ok().json()["ended"],
        false,
        "nobody waited"
    );
    running.end();
}

#[test]
fn a_machine_that_is_reset_begins_anew_also_from_a_pause() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=hello do=ledger", &["a.vhdx"]));
    let mut running = start(here, "vm.toml");
    // A reset may cut a line in two, so lines are not looked at.
    let said = |word: &str, count: usize| {
        let since = Instant::now();
        loop {
            let text = fs::read_to_string(here.join("vm.toml.console")).unwrap_or_default();
            let begun = text.rsplit("hello").next().unwrap_or_default();
            if text.matches("hello").count() >= count && begun.contains(word) {
                return;
            }
            assert!(since.elapsed() < STUCK, "{text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    for round in 1..=3 {
        said("flushed", round * 2);
        if round == 2 {
            ask(here, "pause", "vm.toml").ok();
        }
        let state = ask(here, "reset", "vm.toml").ok().json();
        assert_eq!(state["state"], "running");
    }
    said("flushed", 8);
    ask(here, "power-off", "vm.toml").ok();
    assert_eq!(running.says("summary")["resets"], 3);
    diskferry(here, &["check", "a.vhdx"]).ok();
}

#[test]
fn what_a_machine_and_its_disks_did_is_counted() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    let line = "do=verify length=4M do=spin every=1M";
    describe(here, "vm.toml", (line, &["a.vhdx"]));
    let running = start(here, "vm.toml");
    until(here, "vm.toml", ("spin", 1));
    let stats = ask(here, "stats", "vm.toml").ok().json();
    let disk = &stats["disks"][0];
    for kind in ["read", "write"] {
        assert_eq!(disk[kind]["requests"], 1024, "{kind}");
        assert_eq!(disk[kind]["bytes"], 4 << 20, "{kind}");
        assert_eq!(disk[kind]["errors"], 0, "{kind}");
    }
    assert!(disk["flush"]["requests"].as_u64() > Some(0), "{disk}");
    assert_eq!(stats["vcpus"].as_array().map(Vec::len), Some(2));
    assert_eq!(stats["vcpus"][0]["state"], "running");
    assert!(stats["guest_resident_bytes"].as_u64() > Some(0), "{stats}");
    assert!(stats["resident_bytes"].as_u64() > stats["guest_resident_bytes"].as_u64());
    let table = diskferry(here, &["machine", "stats", "vm.toml"])
        .ok()
        .stdout;
    for word in ["processor", "running", "writes", "4 MiB"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    running.end();
}

#[test]
fn a_machine_that_cannot_begin_anew_ends_and_says_so_to_all() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    fs::write(here.join("kernel"), vmm::guest::IMAGE).unwrap();
    let text = "memory = \"64M\"\nboot.kernel = \"kernel\"\nboot.command_line = \"do=hello do=echo\"\n\
                console.to = \"file:vm.toml.console\"\n";
    fs::write(here.join("vm.toml"), text).unwrap();
    let mut running = start(here, "vm.toml");
    until(here, "vm.toml", ("listening", 1));
    fs::write(here.join("kernel"), "no kernel of any kind").unwrap();
    let reset = ask(here, "reset", "vm.toml").fails(1);
    assert!(reset.stderr.contains("anew"), "{}", reset.stderr);
    assert_eq!(running.says("summary")["end"], "reset_failed");
    assert_eq!(running.says("error")["exit_code"], 1);
}
