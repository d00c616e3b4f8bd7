//! A machine's process is confined to its own files, and says how.

use std::fs;

use super::guest::{ask, describe, start, until, without_kvm};
use super::process::Running;
use crate::run::{diskferry, folder};

#[test]
fn a_machine_opens_files_outside_of_its_folders_only_where_it_was_allowed_to() {
    if without_kvm() {
        return;
    }
    let (here, elsewhere) = (folder(), folder());
    let (here, elsewhere) = (here.path(), elsewhere.path());
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=ledger", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    let state = ask(here, "status", "vm.toml").ok().json();
    assert_eq!(state["confinement"]["system_calls"], "kill");
    assert!(state["confinement"]["landlock"].is_number());
    let outside = elsewhere.join("b.vhdx");
    let outside = outside.to_str().unwrap();
    let refused = diskferry(here, &["snapshot", "a.vhdx", outside]).fails(1);
    assert!(
        refused.stderr.contains("confine.paths"),
        "{}",
        refused.stderr
    );
    // The disk goes on all the same, and within its folder.
    until(here, "vm.toml", ("ledger", 4));
    diskferry(here, &["snapshot", "a.vhdx", "b.vhdx"]).ok();
    running.end();

    diskferry(here, &["create", "c.vhdx", "1G"]).ok();
    describe(here, "two.toml", ("do=ledger", &["c.vhdx"]));
    let allowed = format!("confine.paths = [{:?}]\n", elsewhere.display().to_string());
    let text = fs::read_to_string(here.join("two.toml")).unwrap();
    fs::write(here.join("two.toml"), allowed + &text).unwrap();
    let running = start(here, "two.toml");
    until(here, "two.toml", ("ledger", 4));
    diskferry(here, &["snapshot", "c.vhdx", outside]).ok();
    running.end();
    diskferry(here, &["check", "c.vhdx"]).ok();
}

#[test]
fn a_machine_that_is_not_to_be_confined_is_not_and_says_so() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=spin", &[]));
    for (how, filters) in [("off", 0), ("log", 2)] {
        let mut running = Running::start(here, &["run", "vm.toml", "--confine", how]);
        let pid = running.says("running")["pid"].as_u64().unwrap();
        let state = ask(here, "status", "vm.toml").ok().json();
        assert_eq!(state["confinement"]["system_calls"], how);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mode = status.lines().find(|line| line.starts_with("Seccomp:"));
        assert_eq!(mode, Some(format!("Seccomp:\t{filters}").as_str()));
        running.end();
    }
}
