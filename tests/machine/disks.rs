//! What a guest writes is what other programs read, and the other way round.

use super::guest::{
    assert_kept, describe, events, flushed, run_to_its_end, start, until, without_kvm,
};
use crate::run::{diskferry, folder, program};

#[test]
fn what_a_guest_wrote_is_there_for_the_next_machine_and_for_other_programs() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "8T", "--block-size", "1M"]).ok();
    diskferry(here, &["create", "b.img", "64M"]).ok();
    let write = "seed=7 length=24M do=verify disk=0 from=4T do=verify disk=1 pieces=4";
    run_to_its_end(here, write, &["a.vhdx", "b.img"]);
    diskferry(here, &["check", "a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "-q", "a.vhdx"]).ok();
    let read = "seed=7 length=24M only=read do=verify disk=0 from=4T do=verify disk=1 indirect=1";
    run_to_its_end(here, read, &["a.vhdx", "b.img"]);
    let map = diskferry(here, &["map", "a.vhdx", "--json"]).ok();
    let allocated: u64 = map
        .json_lines()
        .iter()
        .filter(|line| line["allocated"] == true)
        .filter_map(|line| line["length"].as_u64())
        .sum();
    assert!((24 << 20..32 << 20).contains(&allocated), "{allocated}");
}

#[test]
fn what_a_guest_gives_back_goes_to_the_host() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G", "--block-size", "1M"]).ok();
    run_to_its_end(
        here,
        "length=64M do=verify do=discard zero=1 do=zeroes unmap=1",
        &["a.vhdx"],
    );
    let map = diskferry(here, &["map", "a.vhdx", "--json"]).ok();
    assert!(
        map.json_lines()
            .iter()
            .all(|line| line["allocated"] != true)
    );
    diskferry(here, &["check", "a.vhdx"]).ok();
}

#[test]
fn a_machine_that_is_killed_loses_nothing_that_its_guest_flushed() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1T", "--block-size", "1M"]).ok();
    describe(here, "vm.toml", ("do=ledger", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    until(here, "vm.toml", ("ledger", 40));
    running.kill();
    assert_kept(here, "a.vhdx", &flushed(here, "vm.toml"));
}

#[test]
fn a_guest_learns_that_its_disk_became_larger_and_uses_it() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    let line = "do=resize-watch changes=1 do=verify from=2G length=1M";
    describe(here, "vm.toml", (line, &["a.vhdx"]));
    let mut running = start(here, "vm.toml");
    until(here, "vm.toml", ("capacity", 1));
    diskferry(here, &["resize", "a.vhdx", "3G"]).ok();
    let summary = running.says("summary");
    assert_eq!(
        (&summary["end"], &summary["code"]),
        (&"power_off".into(), &0.into())
    );
    assert_eq!(events(here, "vm.toml", "resized").len(), 1);
}
