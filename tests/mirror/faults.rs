//! Processes that are killed and links that are cut while a disk moves.

use std::thread;
use std::time::{Duration, Instant};

use mirror::record::State;

use super::ledger::{Ledger, Promise, Random};
use super::load::{Area, Load, verify};
use super::process::{STUCK, last_json};
use super::relay::Relay;
use super::site::{Sites, writable};
use crate::run::{command, program};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// Where no load writes.
const ASIDE: u64 = GIB - MIB;

pub(crate) fn seed() -> u64 {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("SEED={seed}");
    seed
}

fn area(seed: u64) -> Area {
    Area {
        seed,
        disk: GIB,
        regions: 3,
        length: 16 * MIB,
        rate: 800,
    }
}

/// Sites with a disk in which there is something to copy, and a client.
fn busy(seed: u64) -> (Sites, Load) {
    busy_with(seed, None)
}

/// The same; they know an arbiter, if there is one.
fn busy_with(seed: u64, arbiter: Option<&str>) -> (Sites, Load) {
    let mut sites = Sites::new("a.vhdx", &["1G", "--block-size", "1M"]);
    sites.arbiter = arbiter.map(str::to_owned);
    sites.serve();
    sites.receive();
    let load = Load::start(&sites.at_source(), area(seed), Ledger::default());
    load.goes_on(200);
    (sites, load)
}

fn pause(random: &mut Random, most: u64) {
    thread::sleep(Duration::from_millis(random.below(most)));
}

#[test]
fn a_target_that_is_killed_goes_on_where_it_was() {
    let (mut sites, load) = busy(seed());
    sites.start(&["--manual"]).ends(0);
    for wait in [100, 700] {
        thread::sleep(Duration::from_millis(wait));
        sites.target.take().expect("it runs").kill();
        load.goes_on(100);
        sites.receive();
    }
    sites.until("in step", |status| status["stage"] == "synced");
    sites.mirror("cutover").ends(0);
    sites.moved();
    load.goes_on(200);
    let ledger = load.well();
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    sites.end();
    program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]).ends(0);
}

#[test]
fn a_source_that_is_killed_owns_the_disk_again_and_its_move_goes_on() {
    let (mut sites, load) = busy(seed());
    sites.start(&["--manual"]).ends(0);
    thread::sleep(Duration::from_millis(300));
    sites.source.take().expect("it runs").kill();
    let ledger = load.died();
    sites.serve();
    verify(&sites.at_source(), &ledger, Promise::Flushed);
    let load = Load::start(&sites.at_source(), area(1), ledger);
    let ran = sites.start(&[]).ends(5);
    assert!(ran.stderr.contains("being moved"), "{}", ran.stderr);
    sites.mirror("cutover").ends(0);
    sites.moved();
    load.goes_on(200);
    let ledger = load.well();
    verify(&sites.at_target(), &ledger, Promise::Flushed);
    sites.end();
    program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]).ends(0);
}

#[test]
fn a_move_that_was_cancelled_does_not_come_back() {
    let (mut sites, load) = busy(seed());
    sites.start(&["--manual"]).ends(0);
    sites.until("kept", |_| sites.here().join("a.vhdx.mirror").exists());
    sites.mirror("cancel").ends(0);
    sites.until("ended", |status| status["ended"] == true);
    assert!(!sites.here().join("a.vhdx.mirror").exists());
    sites.source.take().expect("it runs").kill();
    let (mut ledger, _) = load.finish();
    ledger.crashed();
    sites.serve();
    let ran = sites.mirror("status").ends(2);
    assert!(ran.stderr.contains("not being moved"), "{}", ran.stderr);
    verify(&sites.at_source(), &ledger, Promise::Flushed);
}

#[test]
fn a_server_that_was_killed_after_its_word_repeats_it() {
    // The target is gone when the source comes back, so nothing can be forwarded at first.
    let (mut sites, load) = busy(seed());
    sites.start(&["--wait"]).ends(0);
    load.goes_on(100);
    let ledger = load.well();
    sites.source.take().expect("it runs").kill();
    sites.target.take().expect("it runs").end();
    sites.serve();
    assert!(
        !writable(&sites.at_source(), ASIDE),
        "nobody can have taken that write"
    );
    sites.receive();
    let since = Instant::now();
    while !writable(&sites.at_source(), ASIDE) {
        assert!(since.elapsed() < STUCK, "it is never forwarded");
    }
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    sites.end();
}

#[test]
fn a_server_without_its_target_ends_when_told() {
    let (mut sites, load) = busy(seed());
    sites.start(&["--wait"]).ends(0);
    load.well();
    sites.target.take().expect("it runs").end();
    // A request that nobody answers is under way.
    assert!(!writable(&sites.at_source(), ASIDE));
    sites.source.take().expect("it runs").end();
    // The same for one that has nothing but its record.
    sites.serve();
    assert!(!writable(&sites.at_source(), ASIDE));
    sites.source.take().expect("it runs").end();
}

#[test]
fn a_link_that_is_cut_now_and_then_loses_nothing() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut sites, load) = busy(seed);
    let relay = Relay::start(format!("127.0.0.1:{}", sites.port));
    let to = format!("tcp:{}", relay.address);
    sites
        .run(&["mirror", "start", "a.vhdx", "--to", &to])
        .ends(0);
    for round in 0..6 {
        pause(&mut random, 400);
        relay.cut(
            round % 2 == 0,
            Duration::from_millis(200 + random.below(1200)),
        );
    }
    sites.moved();
    load.goes_on(200);
    let ledger = load.well();
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    sites.end();
    program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]).ends(0);
}

/// Who owns the disk, once both run and have talked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Source,
    Target,
}

/// Waits until the records name one owner for good.
fn settled(sites: &Sites) -> Owner {
    let since = Instant::now();
    loop {
        let (source, target) = sites.records();
        match (&source, &target) {
            (Some(State::Released { .. }), Some(State::Owner { .. })) => return Owner::Target,
            // It may have been taken since the first of the two was read.
            (Some(State::Owner { .. }) | None, Some(State::Owner { .. }))
                if sites.records().0 == source =>
            {
                panic!("two owners: {source:?} and {target:?}")
            }
            (Some(State::Owner { .. }) | None, _) => {
                // A session that still runs may yet hand the disk over.
                let status = sites.mirror("status");
                let ended = status.code != 0 || last_json(&status)["ended"] == true;
                // It may have done so between the records and the status; after its end they are final.
                if ended && sites.records() == (source.clone(), target.clone()) {
                    return Owner::Source;
                }
            }
            _ => {}
        }
        assert!(
            since.elapsed() < STUCK,
            "no owner: {source:?} and {target:?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// One move with a kill somewhere around the switchover; who had the disk in the end.
fn round(random: &mut Random, seed: u64, arbiter: Option<&str>) -> (bool, Owner) {
    let (mut sites, load) = busy_with(seed, arbiter);
    let fast = arbiter.map(|arbiter| ["--manual", "--switchover", "fast", "--arbiter", arbiter]);
    let words = fast.as_ref().map_or(&["--manual"][..], |words| words);
    sites.start(words).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    let kill_source = random.below(2) == 0;
    let mut cutover = command(sites.here(), "diskferry", &["mirror", "cutover", "a.vhdx"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    pause(random, 60);
    if kill_source {
        sites.source.take().expect("it runs").kill();
    } else {
        sites.target.take().expect("it runs").kill();
    }
    cutover.wait().unwrap();
    pause(random, 300);
    if kill_source {
        sites.serve();
        // What was kept goes on, and its user may not want that any more.
        let verb = ["cancel", "cutover"][random.below(2) as usize];
        sites.mirror(verb);
    } else {
        sites.receive();
    }
    let owner = settled(&sites);
    if !kill_source {
        load.goes_on(50);
    }
    let (mut ledger, result) = load.finish();
    assert_eq!(result.is_err(), kill_source, "{result:?}");
    ledger.crashed();
    verify(&sites.at_source(), &ledger, Promise::Flushed);
    assert!(
        writable(&sites.at_source(), ASIDE),
        "the owner is not reached"
    );
    if owner == Owner::Target {
        verify(&sites.at_target(), &ledger, Promise::Flushed);
    }
    assert_eq!(writable(&sites.at_target(), ASIDE), owner == Owner::Target);
    sites.end();
    let image = match owner {
        Owner::Source => "a.vhdx",
        Owner::Target => "in/a.vhdx",
    };
    program(sites.here(), "qemu-img", &["check", image]).ends(0);
    (kill_source, owner)
}

#[test]
fn whoever_is_killed_at_the_switchover_there_is_one_owner_with_everything_flushed() {
    let seed = seed();
    let mut random = Random::new(seed);
    for number in 0..12 {
        let (kill_source, owner) = round(&mut random, seed + number, None);
        println!("round {number}: source killed: {kill_source}, owner: {owner:?}");
    }
}

#[test]
fn whoever_is_killed_at_a_fast_switchover_there_is_one_owner_with_everything_flushed() {
    let seed = seed();
    let mut random = Random::new(seed);
    let third = tempfile::tempdir().expect("a folder");
    let arbiter = format!("file:{}", third.path().display());
    crate::run::diskferry(third.path(), &["arbiter", "new", &arbiter]).ends(0);
    for number in 0..12 {
        let (kill_source, owner) = round(&mut random, seed + number, Some(&arbiter));
        println!("round {number}: source killed: {kill_source}, owner: {owner:?}");
    }
    let list = ["arbiter", "list", &arbiter, "--json"];
    let listed = last_json(&crate::run::diskferry(third.path(), &list).ends(0));
    println!("{listed}");
    let decided = listed["decided"].as_array().expect("a list").len();
    assert!(decided > 0, "nothing was ever offered");
}
