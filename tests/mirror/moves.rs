//! Disks that move while a client writes to them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use mirror::record::State;
use serde_json::Value;

use super::ledger::{Ledger, Promise};
use super::load::{Area, Load, verify};
use super::process::sparse;
use super::site::{Sites, writable};
use crate::run::program;

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;

fn area(disk: u64, regions: u64) -> Area {
    Area {
        seed: 11,
        disk,
        regions,
        length: 4 * MIB,
        rate: 1000,
    }
}

/// A busy disk of 16 TiB moves, and everything that was promised about it is looked at.
fn move_16_tib(block_size: &str, regions: u64) {
    let area = area(16 * TIB, regions);
    let mut sites = Sites::running("a.vhdx", &["16T", "--block-size", block_size]);
    let load = Load::start(&sites.at_source(), area, Ledger::default());
    load.goes_on(1000);
    sites.start(&["--wait"]).ends(0);
    let status = sites.moved();
    println!("{block_size}: {status}");
    load.goes_on(500);
    let ledger = load.well();
    assert!(ledger.flushes > 10);
    // A client that comes now to the source finds the target.
    let load = Load::start(&sites.at_source(), area, ledger);
    load.goes_on(200);
    let ledger = load.well();
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    let (source, target) = sites.records();
    assert!(matches!(source, Some(State::Released { epoch: 2, .. })));
    assert!(matches!(target, Some(State::Owner { epoch: 2, .. })));
    sites.source.take().expect("it runs").end();
    handed_over_is_refused(&sites);
    // A server of the disk that was handed over forwards to its owner.
    sites.serve();
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
    let load = Load::start(&sites.at_source(), area, ledger);
    load.goes_on(100);
    let ledger = load.well();
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    sites.end();
    let image = sites.arriving();
    let image = image.to_str().expect("UTF-8");
    program(sites.here(), "qemu-img", &["check", image]).ends(0);
    program(sites.here(), "vhdiinfo", &[image]).ends(0);
    sites.run(&["check", image]).ends(0);
    handed_over_is_refused(&sites);
}

/// Nobody takes the source's image for a disk.
fn handed_over_is_refused(sites: &Sites) {
    for (program, words) in [
        ("qemu-img", &["info", "a.vhdx"][..]),
        ("vhdiinfo", &["a.vhdx"]),
    ] {
        let ran = crate::run::program(sites.here(), program, words);
        assert_ne!(ran.code, 0, "{program}: {}", ran.stdout);
    }
    let ran = sites.run(&["convert", "a.vhdx", "copy.img"]);
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    assert!(!sites.here().join("copy.img").exists());
}

#[test]
fn a_busy_disk_with_small_blocks_moves_and_its_client_never_notices() {
    move_16_tib("1M", 24);
}

#[test]
fn a_busy_disk_with_large_blocks_moves_and_its_client_never_notices() {
    move_16_tib("32M", 4);
}

#[test]
fn a_move_by_hand_stays_in_step_until_told() {
    let mut sites = Sites::running("a.vhdx", &["1T", "--block-size", "1M"]);
    let load = Load::start(&sites.at_source(), area(TIB, 8), Ledger::default());
    load.goes_on(300);
    sites.start(&["--manual"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    load.goes_on(500);
    assert!(
        !writable(&sites.at_target(), TIB - MIB),
        "the target serves writes too early"
    );
    // A second one is refused while this one runs.
    let ran = sites.start(&[]).ends(5);
    assert!(ran.stderr.contains("being moved"), "{}", ran.stderr);
    sites.mirror("cutover").ends(0);
    sites.moved();
    load.goes_on(200);
    let ledger = load.well();
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    let ran = sites.start(&[]).ends(5);
    assert!(ran.stderr.contains("has moved"), "{}", ran.stderr);
    sites.end();
    sites.run(&["check", "in/a.vhdx"]).ends(0);
}

#[test]
fn a_cancelled_move_leaves_the_source_as_it_was_and_can_begin_again() {
    let mut sites = Sites::running("a.vhdx", &["1T", "--block-size", "1M"]);
    let load = Load::start(&sites.at_source(), area(TIB, 8), Ledger::default());
    load.goes_on(300);
    sites.start(&["--manual"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    sites.mirror("cancel").ends(0);
    let status = sites.until("ended", |status| status["ended"] == true);
    assert!(status["error"].is_string(), "{status}");
    load.goes_on(300);
    let (source, target) = sites.records();
    assert!(
        matches!(source, Some(State::Owner { epoch: 1, .. })),
        "{source:?}"
    );
    assert!(!matches!(target, Some(State::Owner { .. })), "{target:?}");
    assert!(!writable(&sites.at_target(), TIB - MIB));
    // What is left at the target can be moved to again.
    sites.start(&["--wait"]).ends(0);
    load.goes_on(200);
    let ledger = load.well();
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    sites.end();
    program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]).ends(0);
}

#[test]
fn a_cancelled_move_leaves_no_mark() {
    let mut sites = Sites::running("a.vhdx", &["1G", "--block-size", "1M"]);
    sites.start(&["--manual"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    sites.mirror("cancel").ends(0);
    sites.until("ended", |status| status["ended"] == true);
    sites.end();
    program(sites.here(), "qemu-img", &["check", "a.vhdx"]).ends(0);
    program(sites.here(), "vhdiinfo", &["a.vhdx"]).ends(0);
    let refused = program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]);
    assert_ne!(refused.code, 0, "{}", refused.stdout);
    sites.serve();
}

#[test]
fn a_disk_moves_to_another_path_of_its_host() {
    let mut sites = Sites::new("a.vhdx", &["1T", "--block-size", "1M"]);
    sites.serve();
    let load = Load::start(&sites.at_source(), area(TIB, 8), Ledger::default());
    load.goes_on(500);
    let start = ["mirror", "start", "a.vhdx", "--to", "in/b.vhdx", "--wait"];
    sites.run(&start).ends(0);
    assert_eq!(sites.moved()["error"], Value::Null);
    load.goes_on(300);
    let ledger = load.well();
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
    sites.source.take().expect("it runs").end();
    handed_over_is_refused(&sites);
    program(sites.here(), "qemu-img", &["check", "in/b.vhdx"]).ends(0);
    // The old path leads to the new one, whoever serves it.
    sites.serve();
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
    let load = Load::start(&sites.at_source(), area(TIB, 8), ledger);
    load.goes_on(100);
    let ledger = load.well();
    sites.source.take().expect("it runs").end();
    sites.disk = "in/b.vhdx".into();
    sites.serve();
    sites.disk = "b.vhdx".into();
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
}

#[test]
fn a_raw_disk_moves() {
    let mut sites = Sites::new("a.img", &["8G"]);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    sparse(&sites.here().join("a.img"), 8 << 30, &bytes);
    let copy = ["--sparse=always", "a.img", "before.img"];
    program(sites.here(), "cp", &copy).ends(0);
    sites.serve();
    sites.receive();
    sites.start(&["--wait"]).ends(0);
    sites.moved();
    let there = sites.at_target();
    let compare = ["compare", "-f", "raw", "-F", "raw", "before.img", &there];
    program(sites.here(), "qemu-img", &compare).ends(0);
    // A raw image can carry no mark; its record speaks, whatever name it is called by.
    sites.source.take().expect("it runs").end();
    std::os::unix::fs::symlink("a.img", sites.here().join("link.img")).unwrap();
    let mut serve = super::process::Running::start(
        sites.here(),
        &["serve", "a=link.img", "--listen", "unix:s"],
    );
    serve.says("serving");
    assert!(writable(&sites.at_source(), 4096));
    let owned = File::open(sites.here().join("in/a.img")).unwrap();
    let mut byte = [0];
    owned.read_exact_at(&mut byte, 4096).unwrap();
    assert_eq!(byte, [0x77], "the write did not reach the owner");
    drop(serve);
    sites.target.take().expect("it runs").end();
}

#[test]
fn two_disks_move_to_one_site_at_once() {
    let mut sites = Sites::running("a.vhdx", &["1T", "--block-size", "1M"]);
    let mut other = Sites::new("b.vhdx", &["2T", "--block-size", "2M"]);
    other.serve();
    other.port = sites.port;
    let loads = [
        Load::start(&sites.at_source(), area(TIB, 8), Ledger::default()),
        Load::start(&other.at_source(), area(2 * TIB, 8), Ledger::default()),
    ];
    for load in &loads {
        load.goes_on(300);
    }
    sites.start(&[]).ends(0);
    other.start(&[]).ends(0);
    sites.moved();
    other.moved();
    let at = sites.at_target();
    for (load, name) in loads.into_iter().zip(["a", "b"]) {
        load.goes_on(200);
        let at = at.replace("///a?", &format!("///{name}?"));
        verify(&at, &load.well(), Promise::Acknowledged);
    }
    other.source.take().expect("it runs").end();
    sites.end();
    for name in ["a", "b"] {
        let image = Path::new("in").join(format!("{name}.vhdx"));
        let words = ["check", image.to_str().expect("UTF-8")];
        program(sites.here(), "qemu-img", &words).ends(0);
    }
}
