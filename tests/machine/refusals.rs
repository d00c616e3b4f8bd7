//! What is no machine, and how that is said.

use std::fs;

use super::guest::{describe, start, without_kvm};
use crate::run::{diskferry, folder};

#[test]
fn what_describes_no_machine_is_refused_with_its_place() {
    let here = folder();
    let here = here.path();
    for (text, named) in [
        ("memory = \"64M\"", "boot"),
        (
            "memory = \"64M\"\nboot.kernel = \"built-in\"\ncpus = 2",
            "cpus",
        ),
        ("memory = 64", "memory"),
        ("memory = \"64M\"\nboot.kernel = \"none\"", "none"),
        ("memory = \"64M\"\nboot.kernel = \"vm.toml\"", "vm.toml"),
    ] {
        fs::write(here.join("vm.toml"), text).unwrap();
        let ran = diskferry(here, &["run", "vm.toml"]);
        assert!(
            ran.code != 0 && ran.stderr.contains(named),
            "{named}: {}",
            ran.stderr
        );
    }
    diskferry(here, &["run", "nothing.toml"]).fails(1);
    diskferry(here, &["machine", "pause", "vm.toml"]).fails(2);
}

#[test]
fn a_disk_of_a_machine_is_nobody_elses() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=spin", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    describe(here, "two.toml", ("do=spin", &["a.vhdx"]));
    diskferry(here, &["run", "two.toml"]).fails(5);
    diskferry(here, &["serve", "a.vhdx", "--listen", "unix:u"]).fails(5);
    running.end();
}
