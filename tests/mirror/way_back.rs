//! Disks that were received are controlled as others are, and go back to where they came from.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use mirror::record::State;
use serde_json::Value;

use super::faults::seed;
use super::ledger::{Ledger, Promise, Random};
use super::load::{Area, Load, verify};
use super::pairing::{acquainted, receive_as, serve_as};
use super::process::{STUCK, last_json};
use super::site::Sites;
use crate::run::program;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn area(seed: u64) -> Area {
    Area {
        seed,
        disk: GIB,
        regions: 3,
        length: 8 * MIB,
        rate: 800,
    }
}

/// A disk that has moved and may go back, and a client that has been connected to its first server all the time.
fn moved_with_a_way_back(seed: u64) -> (Sites, Load) {
    let sites = Sites::running("a.vhdx", &["1G", "--block-size", "1M"]);
    let load = Load::start(&sites.at_source(), area(seed), Ledger::default());
    load.goes_on(200);
    sites
        .start(&["--way-back", "tcp:127.0.0.1:0", "--wait"])
        .ends(0);
    load.goes_on(100);
    (sites, load)
}

/// How the target's disk stands.
fn there(sites: &Sites) -> Option<Value> {
    let disk = sites.arriving();
    let disk = disk.to_str().expect("UTF-8");
    let ran = sites.run(&["mirror", "status", disk, "--json"]);
    (ran.code == 0).then(|| last_json(&ran))
}

/// Waits until the copy that was left behind is in step again, or the disk is home.
fn in_step(sites: &Sites) {
    let since = Instant::now();
    while !is_home(sites) {
        let status = there(sites);
        if status
            .as_ref()
            .is_some_and(|status| status["stage"] == "synced")
        {
            return;
        }
        assert!(since.elapsed() < STUCK, "never in step: {status:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn rollback(sites: &Sites, words: &[&str]) -> i32 {
    let disk = sites.arriving();
    let disk = disk.to_str().expect("UTF-8");
    let ran = sites.run(&[&["mirror", "rollback", disk][..], words].concat());
    ran.code
}

fn is_home(sites: &Sites) -> bool {
    let (source, target) = sites.records();
    matches!(source, Some(State::Owner { epoch: 3, .. }))
        && matches!(target, Some(State::Released { epoch: 3, .. }))
}

/// The disk is back, has everything, and the other host sends its clients there.
fn is_well(mut sites: Sites, ledger: Ledger, promise: Promise) {
    assert!(is_home(&sites), "{:?}", sites.records());
    verify(&sites.at_source(), &ledger, promise);
    verify(&sites.at_target(), &ledger, promise);
    let load = Load::start(&sites.at_target(), area(7), ledger);
    load.goes_on(100);
    let ledger = load.well();
    verify(&sites.at_source(), &ledger, promise);
    sites.end();
    program(sites.here(), "qemu-img", &["check", "a.vhdx"]).ends(0);
    let left = sites.arriving();
    let left = left.to_str().expect("UTF-8");
    let refused = program(sites.here(), "qemu-img", &["check", left]);
    assert_ne!(refused.code, 0, "{}", refused.stdout);
    sites.serve();
    verify(&sites.at_source(), &ledger, promise);
}

#[test]
fn a_disk_that_was_received_is_controlled_there_and_moves_on() {
    let mut sites = Sites::running("a.vhdx", &["1G", "--block-size", "1M"]);
    let mut third = Sites::new("b.vhdx", &["1M"]);
    third.receive();
    third.disk = "a.vhdx".into();
    let load = Load::start(&sites.at_source(), area(3), Ledger::default());
    load.goes_on(200);
    sites.start(&["--wait"]).ends(0);
    sites.run(&["limit", "in/a.vhdx", "--iops", "5000"]).ends(0);
    let refused = sites.run(&["snapshot", "in/a.vhdx", "in/c.vhdx"]);
    assert_ne!(refused.code, 0, "a restart would serve its parent");
    let to = third.to();
    sites
        .run(&["mirror", "start", "in/a.vhdx", "--to", &to, "--wait"])
        .ends(0);
    load.goes_on(200);
    let ledger = load.well();
    for at in [sites.at_source(), sites.at_target(), third.at_target()] {
        verify(&at, &ledger, Promise::Acknowledged);
    }
    assert!(matches!(
        sites.records().1,
        Some(State::Released { epoch: 3, .. })
    ));
    // What was handed on is forwarded after a restart too.
    sites.target.take().expect("it runs").end();
    sites.receive();
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    let load = Load::start(&sites.at_source(), area(4), ledger);
    load.goes_on(100);
    verify(&third.at_target(), &load.well(), Promise::Acknowledged);
    third.target.take().expect("it runs").end();
    sites.end();
}

#[test]
fn a_site_that_received_a_disk_and_is_killed_while_it_comes_back_sends_its_clients_on_and_waits() {
    let mut sites = Sites::running("a.vhdx", &["1G", "--block-size", "1M"]);
    let mut third = Sites::new("b.vhdx", &["1M"]);
    third.receive();
    third.disk = "a.vhdx".into();
    sites.start(&["--wait"]).ends(0);
    let (to, back) = (third.to(), "tcp:127.0.0.1:0");
    let start = ["mirror", "start", "in/a.vhdx", "--to", &to];
    sites
        .run(&[&start[..], &["--way-back", back, "--wait"]].concat())
        .ends(0);
    in_step(&third);
    let since = Instant::now();
    while !matches!(sites.records().1, Some(State::Following { .. })) {
        assert!(since.elapsed() < STUCK, "{:?}", sites.records());
        thread::sleep(Duration::from_millis(50));
    }
    sites.target.take().expect("it runs").kill();
    sites.receive();
    let load = Load::start(&sites.at_target(), area(9), Ledger::default());
    load.goes_on(100);
    in_step(&third);
    let home = |sites: &Sites| matches!(sites.records().1, Some(State::Owner { epoch: 4, .. }));
    let since = Instant::now();
    while !home(&sites) {
        rollback(&third, &[]);
        assert!(since.elapsed() < STUCK, "{:?}", sites.records());
        thread::sleep(Duration::from_millis(200));
    }
    load.goes_on(100);
    let ledger = load.well();
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    verify(&third.at_target(), &ledger, Promise::Acknowledged);
    third.target.take().expect("it runs").end();
    sites.end();
}

#[test]
fn a_disk_goes_back_and_its_client_never_notices() {
    let (sites, load) = moved_with_a_way_back(seed());
    in_step(&sites);
    // Only what was changed since was looked at.
    let status = there(&sites).expect("it is controlled");
    for field in ["found", "same"] {
        assert_eq!(status[field], 0, "{field}: {status}");
    }
    load.goes_on(300);
    assert_eq!(rollback(&sites, &["--wait"]), 0);
    load.goes_on(300);
    is_well(sites, load.well(), Promise::Acknowledged);
}

#[test]
fn a_disk_that_went_back_moves_and_goes_back_again() {
    let (sites, load) = moved_with_a_way_back(seed());
    in_step(&sites);
    assert_eq!(rollback(&sites, &["--wait"]), 0);
    load.goes_on(200);
    sites
        .start(&["--way-back", "tcp:127.0.0.1:0", "--wait"])
        .ends(0);
    load.goes_on(200);
    in_step(&sites);
    assert_eq!(rollback(&sites, &["--wait"]), 0);
    load.goes_on(200);
    let ledger = load.well();
    let (source, target) = sites.records();
    assert!(matches!(source, Some(State::Owner { epoch: 5, .. })));
    assert!(matches!(target, Some(State::Released { epoch: 5, .. })));
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
}

#[test]
fn there_is_no_way_back_unless_one_was_asked_for_or_once_its_time_is_over() {
    let sites = Sites::running("a.vhdx", &["1G", "--block-size", "1M"]);
    sites.start(&["--wait"]).ends(0);
    assert_ne!(rollback(&sites, &[]), 0);
    let sites = Sites::running("a.vhdx", &["1G", "--block-size", "1M"]);
    let load = Load::start(&sites.at_source(), area(5), Ledger::default());
    let words = ["--way-back", "tcp:127.0.0.1:0", "--way-back-for", "3s"];
    sites.start(&[&words[..], &["--wait"]].concat()).ends(0);
    let since = Instant::now();
    let kept = sites.here().join("in/a.vhdx.way-back");
    while kept.exists() {
        assert!(since.elapsed() < STUCK, "the window is never over");
        thread::sleep(Duration::from_millis(100));
    }
    assert_ne!(rollback(&sites, &[]), 0);
    load.goes_on(100);
    let ledger = load.well();
    assert!(matches!(
        sites.records().1,
        Some(State::Owner { epoch: 2, .. })
    ));
    // Its first server goes on sending clients on, also after a restart.
    let mut sites = sites;
    sites.source.take().expect("it runs").end();
    sites.serve();
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
}

#[test]
fn a_disk_goes_back_encrypted_and_who_does_not_encrypt_is_refused() {
    let mut sites = acquainted();
    sites.source = Some(serve_as(&sites, "here"));
    let load = Load::start(&sites.at_source(), area(6), Ledger::default());
    load.goes_on(200);
    let (receive, at) = receive_as(&sites, "there", "tls:127.0.0.1:0");
    sites.target = Some(receive);
    let start = &["mirror", "start", "a.vhdx", "--to", &at][..];
    let back = &["--way-back", "tls:127.0.0.1:0", "--wait"][..];
    sites.run(&[start, back].concat()).ends(0);
    let waits = sites.until("waits", |status| status["way_back"]["waits"] == true);
    let waits = waits["way_back"]["waits_at"].as_str().expect("an address");
    // A client in the clear gets nothing but a refusal.
    let mut stranger = TcpStream::connect(&waits[4..]).expect("somebody listens");
    stranger
        .write_all(b"anything that is no TLS")
        .expect("it is taken");
    let mut heard = Vec::new();
    let _ = stranger.read_to_end(&mut heard);
    assert!(String::from_utf8_lossy(&heard).contains("encrypted connections only"));
    in_step(&sites);
    assert_eq!(rollback(&sites, &["--wait"]), 0);
    load.goes_on(200);
    let ledger = load.well();
    assert!(is_home(&sites), "{:?}", sites.records());
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    sites.end();
}

/// Says it until the disk is home.
fn until_home(sites: &Sites) {
    let since = Instant::now();
    while !is_home(sites) {
        // It may be in the middle of it, or not in step yet.
        let _ = rollback(sites, &[]);
        thread::sleep(Duration::from_millis(100));
        assert!(
            since.elapsed() < STUCK,
            "it never goes back: {:?}, {:?}",
            there(sites),
            sites.records()
        );
    }
}

#[test]
fn a_disk_goes_back_although_who_owns_it_is_killed_in_the_middle() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut sites, load) = moved_with_a_way_back(seed);
    for _ in 0..3 {
        if random.below(2) == 0 {
            in_step(&sites);
            let _ = rollback(&sites, &[]);
        }
        thread::sleep(Duration::from_millis(random.below(400)));
        sites.target.take().expect("it runs").kill();
        thread::sleep(Duration::from_millis(random.below(300)));
        sites.receive();
    }
    until_home(&sites);
    // Who was connected all the time still is, and lost nothing.
    load.goes_on(200);
    is_well(sites, load.well(), Promise::Acknowledged);
}

#[test]
fn a_disk_goes_back_although_who_waits_for_it_is_killed_in_the_middle() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut sites, mut load) = moved_with_a_way_back(seed);
    for round in 0..3 {
        if random.below(2) == 0 {
            in_step(&sites);
            let _ = rollback(&sites, &[]);
        }
        thread::sleep(Duration::from_millis(random.below(400)));
        sites.source.take().expect("it runs").kill();
        let (mut ledger, result) = load.finish();
        assert!(result.is_err(), "the client must see that its server died");
        // It may have been home already.
        ledger.crashed();
        sites.serve();
        load = Load::start(&sites.at_source(), area(round), ledger);
    }
    until_home(&sites);
    load.goes_on(200);
    is_well(sites, load.well(), Promise::Flushed);
}
