//! A machine is paused, runs on, is told of, and is ended.

use std::time::Duration;

use super::guest::{ask, describe, events, start, until, without_kvm};
use crate::run::{diskferry, folder};

#[test]
fn a_machine_stands_still_while_it_is_paused_and_runs_on_as_if_nothing_was() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=ledger blocks=256", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    assert_eq!(
        ask(here, "status", "vm.toml").ok().json()["state"],
        "running"
    );
    until(here, "vm.toml", ("ledger", 20));
    assert_eq!(ask(here, "pause", "vm.toml").ok().json()["state"], "paused");
    let said = events(here, "vm.toml", "ledger").len();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(events(here, "vm.toml", "ledger").len(), said);
    assert_eq!(
        ask(here, "status", "vm.toml").ok().json()["state"],
        "paused"
    );
    assert_eq!(
        ask(here, "resume", "vm.toml").ok().json()["state"],
        "running"
    );
    let after = until(here, "vm.toml", ("ledger", said + 20));
    assert!(
        after
            .iter()
            .all(|said| said["wrong"] == 0 && said["errors"] == 0)
    );
    running.end();
    ask(here, "status", "vm.toml").fails(2);
    diskferry(here, &["check", "a.vhdx"]).ok();
}

#[test]
fn a_machine_that_is_powered_off_ends_and_its_disk_is_closed() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=ledger", &["a.vhdx"]));
    let mut running = start(here, "vm.toml");
    until(here, "vm.toml", ("ledger", 4));
    diskferry(here, &["info", "a.vhdx"]).fails(5);
    ask(here, "power-off", "vm.toml").ok();
    assert_eq!(running.says("summary")["end"], "stopped");
    diskferry(here, &["check", "a.vhdx"]).ok();
}

#[test]
fn a_guest_that_crashes_ends_the_machine_with_the_reason() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=crash", &[]));
    let ran = diskferry(here, &["run", "vm.toml"]).fails(1);
    assert!(ran.stderr.contains("crashed"), "{}", ran.stderr);
}

#[test]
fn with_json_every_line_on_stdout_is_json_and_the_console_is_on_stderr() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=hello", &[]));
    let text = std::fs::read_to_string(here.join("vm.toml")).unwrap();
    let stdio = text.replace("console.to = \"file:vm.toml.console\"\n", "");
    assert_ne!(stdio, text);
    std::fs::write(here.join("vm.toml"), stdio).unwrap();
    let ran = diskferry(here, &["run", "vm.toml", "--json"]).ok();
    let kinds: Vec<_> = ran
        .json_lines()
        .iter()
        .map(|line| line["type"].clone())
        .collect();
    assert_eq!(kinds, ["running", "summary"]);
    assert!(ran.stderr.contains("\"event\":\"hello\""), "{}", ran.stderr);
    let ran = diskferry(here, &["run", "vm.toml"]).ok();
    assert!(ran.stdout.contains("\"event\":\"hello\""), "{}", ran.stdout);
}
