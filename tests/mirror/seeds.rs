//! What the target has already does not travel again: a seed, what an earlier move left, what a disk left behind.

use std::thread;
use std::time::Duration;

use mirror::record::State;
use serde_json::Value;

use super::ledger::{Ledger, Promise};
use super::load::{Area, Load, verify};
use super::process::{Running, last_json};
use super::site::Sites;
use crate::run::program;

const MIB: u64 = 1 << 20;
/// Bytes of the disk that hold something, no two granules of them alike, from that place on. What clients write lies
/// elsewhere: their ledger knows of nothing else.
const FILLED: u64 = 56 * MIB;
const FROM: u64 = 128 * MIB;

/// A disk of 1 GiB with something in it; the same is in `content.raw`. Nothing runs yet.
fn filled() -> Sites {
    let sites = Sites::new("a.vhdx", &["1G", "--block-size", "1M"]);
    let mut bytes = vec![0; 1 << 30];
    let filled = FROM as usize..(FROM + FILLED) as usize;
    for (number, word) in bytes[filled].chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(number as u64 | 1 << 60).to_le_bytes());
    }
    std::fs::write(sites.here().join("content.raw"), bytes).expect("a file can be written");
    let words = ["convert", "content.raw", "a.vhdx", "--force"];
    sites.run(&words).ends(0);
    sites
}

/// The image of that name has what [`filled`] put into it, as QEMU reads it.
#[track_caller]
fn holds_the_content(sites: &Sites, image: &str) {
    let words = ["compare", "-f", "raw", "-F", "vhdx", "content.raw", image];
    program(sites.here(), "qemu-img", &words).ends(0);
    program(sites.here(), "qemu-img", &["check", image]).ends(0);
}

#[track_caller]
fn number(status: &Value, field: &str) -> u64 {
    let number = status[field].as_u64();
    number.unwrap_or_else(|| panic!("no {field} in {status}"))
}

/// A move found most of it and sent little.
#[track_caller]
fn sent_little(status: &Value, most: u64) {
    let (same, sent) = (number(status, "same"), number(status, "sent"));
    println!("{same} bytes were there, {sent} were sent");
    assert!(same > FILLED - 8 * MIB && sent < most, "{status}");
}

#[test]
fn a_seed_that_came_another_way_is_completed_with_what_is_different() {
    let mut sites = filled();
    sites.run(&["convert", "a.vhdx", "in/a.vhdx"]).ends(0);
    // It is older: it has something where the disk has something else by now, and where it has nothing.
    let old = ["write -P 7 132M 64k", "write -P 9 100M 3M"];
    for old in old {
        program(sites.here(), "qemu-io", &["-c", old, "in/a.vhdx"]).ends(0);
    }
    let planted = sites.run(&["receive", "--seed", "in/a.vhdx", "--json"]);
    assert_eq!(number(&last_json(&planted.ends(0)), "size"), 1 << 30);
    let refused = program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]);
    assert_ne!(refused.code, 0, "{}", refused.stdout);
    let refused = sites.run(&["serve", "in/a.vhdx", "--listen", "unix:u"]);
    let refused = refused.ends(5).stderr;
    assert!(refused.contains("incomplete"), "{refused}");
    sites.serve();
    sites.receive();
    sites.start(&["--wait"]).ends(0);
    sent_little(&sites.moved(), 2 * MIB);
    sites.end();
    holds_the_content(&sites, "in/a.vhdx");
    // It is an owned disk now, and no seed.
    let refused = sites.run(&["receive", "--seed", "in/a.vhdx"]).ends(5);
    assert!(refused.stderr.contains("record"), "{}", refused.stderr);
}

#[test]
fn what_images_of_the_target_s_site_have_at_the_same_place_is_not_sent() {
    let mut sites = filled();
    // One that ends early, and one that is older than the disk.
    let template = std::fs::File::options()
        .write(true)
        .create_new(true)
        .open(sites.here().join("short.raw"))
        .expect("a file can be made");
    template.set_len(130 * MIB).expect("it can be made longer");
    sites
        .run(&["convert", "content.raw", "golden.vhdx"])
        .ends(0);
    for newer in ["write -P 7 132M 64k", "write -P 9 100M 3M"] {
        program(sites.here(), "qemu-io", &["-c", newer, "a.vhdx"]).ends(0);
    }
    std::fs::remove_file(sites.here().join("content.raw")).expect("it is there");
    sites.run(&["convert", "a.vhdx", "content.raw"]).ends(0);
    let words = ["--template", "short.raw", "--template", "golden.vhdx"];
    sites.taking = words.into();
    sites.serve();
    sites.receive();
    sites.start(&["--wait"]).ends(0);
    sent_little(&sites.moved(), 4 * MIB);
    sites.end();
    holds_the_content(&sites, "in/a.vhdx");
    let missing = sites.run(&[
        "receive",
        "--listen",
        "tcp:127.0.0.1:0",
        "--into",
        "in",
        "--serve",
        "unix:u",
        "--template",
        "none.vhdx",
    ]);
    assert!(missing.ends(1).stderr.contains("none.vhdx"));
}

#[test]
fn a_disk_that_came_as_packages_is_a_seed_and_only_what_changed_since_is_sent() {
    let mut sites = filled();
    sites.run(&["track", "on", "a.vhdx"]).ends(0);
    let export = ["export", "a.vhdx", "--to", "drive", "--volume-size", "16M"];
    sites.run(&export).ends(0);
    sites
        .run(&["import", "in/a.vhdx", "--from", "drive"])
        .ends(0);
    holds_the_content(&sites, "in/a.vhdx");
    sites.run(&["receive", "--seed", "in/a.vhdx"]).ends(0);
    // It is a target of a move now, and no package may change it.
    let since = ["export", "a.vhdx", "--to", "more", "--since", "last"];
    sites.run(&since).ends(0);
    sites
        .run(&["import", "in/a.vhdx", "--from", "more"])
        .ends(5);
    sites.serve();
    sites.receive();
    sites.start(&["--wait"]).ends(0);
    sent_little(&sites.moved(), MIB);
    sites.end();
    holds_the_content(&sites, "in/a.vhdx");
}

#[test]
fn a_seed_that_is_not_wanted_becomes_a_disk_again() {
    let sites = filled();
    sites.run(&["receive", "--seed", "a.vhdx"]).ends(0);
    let words = ["serve", "a.vhdx", "--listen", "unix:s", "--take-over"];
    let mut serve = Running::start(sites.here(), &words);
    serve.says("serving");
    serve.end();
    let (source, _) = sites.records();
    assert!(matches!(source, Some(State::Owner { .. })), "{source:?}");
    holds_the_content(&sites, "a.vhdx");
}

#[test]
fn a_seed_that_became_a_disk_meanwhile_is_left_alone() {
    for how in [&["--wait"][..], &["--wait", "--fresh"]] {
        let mut sites = filled();
        sites.run(&["convert", "a.vhdx", "in/a.vhdx"]).ends(0);
        sites.run(&["receive", "--seed", "in/a.vhdx"]).ends(0);
        sites.serve();
        // It knows the seed from here on.
        sites.receive();
        let words = ["serve", "in/a.vhdx", "--listen", "unix:u", "--take-over"];
        let mut owner = Running::start(sites.here(), &words);
        owner.says("serving");
        owner.end();
        let ran = sites.start(how).ends(8);
        assert!(ran.stderr.contains("another process"), "{}", ran.stderr);
        let (_, target) = sites.records();
        assert!(matches!(target, Some(State::Owner { .. })), "{target:?}");
        // The site that left it alone does not keep it from its owner either.
        let mut owner = Running::start(sites.here(), &words[..4]);
        owner.says("serving");
        owner.end();
        sites.end();
        holds_the_content(&sites, "in/a.vhdx");
    }
}

/// A disk follows, its source is killed, and the move goes on; what was said of it at its end.
fn moved_after_a_kill(mut sites: Sites) -> Value {
    sites.serve();
    sites.receive();
    let area = Area {
        seed: 5,
        disk: 1 << 30,
        regions: 4,
        length: MIB,
        rate: 500,
    };
    let load = Load::start(&sites.at_source(), area, Ledger::default());
    load.goes_on(100);
    sites.start(&["--manual"]).ends(0);
    sites.until("following", |_| {
        matches!(sites.records().1, Some(State::Following { .. }))
    });
    // Long enough for the rest to be kept when it is small.
    load.goes_on(1200);
    sites.source.take().expect("it runs").kill();
    let (mut ledger, _) = load.finish();
    ledger.crashed();
    sites.serve();
    let load = Load::start(&sites.at_source(), area, ledger);
    load.goes_on(100);
    sites.mirror("cutover").ends(0);
    let status = sites.moved();
    let ledger = load.well();
    verify(&sites.at_target(), &ledger, Promise::Flushed);
    sites.end();
    program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]).ends(0);
    status
}

#[test]
fn a_move_goes_on_after_its_source_was_killed_by_comparing_the_disk() {
    let status = moved_after_a_kill(filled());
    sent_little(&status, 12 * MIB);
}

#[test]
fn a_move_goes_on_after_its_source_was_killed_by_comparing_little_where_changes_are_tracked() {
    let sites = filled();
    let track = ["track", "on", "a.vhdx", "--granularity", "4K"];
    sites.run(&track).ends(0);
    let status = moved_after_a_kill(sites);
    let (found, sent) = (number(&status, "found"), number(&status, "sent"));
    println!("{found} bytes were looked at, {sent} were sent");
    // What was being written when it was killed counts in parts of 2 MiB.
    assert!(found < 16 * MIB && sent < 12 * MIB, "{status}");
}

#[test]
fn a_move_is_held_back_and_let_go_by_its_rate() {
    let mut sites = filled();
    sites.serve();
    sites.receive();
    // All of it would take a quarter of an hour.
    sites.start(&["--manual", "--rate", "64K"]).ends(0);
    sites.until("copying", |status| number(status, "copied") > 0);
    thread::sleep(Duration::from_secs(1));
    let status = sites.until("looked at", |_| true);
    assert!(number(&status, "copied") < 8 * MIB, "{status}");
    assert_eq!(status["stage"], "copying");
    let refused = sites.run(&["mirror", "rate", "a.vhdx", "0"]).ends(2);
    assert!(refused.stderr.contains("4 KiB"), "{}", refused.stderr);
    sites.run(&["mirror", "rate", "a.vhdx", "none"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    sites.mirror("cutover").ends(0);
    sites.moved();
    sites.end();
    holds_the_content(&sites, "in/a.vhdx");
}

#[test]
fn the_rate_of_a_move_goes_by_the_time_of_day_also_after_a_crash() {
    let mut sites = filled();
    sites.serve();
    sites.receive();
    let table = "1T,00:00-24:00=64K";
    sites.start(&["--manual", "--rate", table]).ends(0);
    sites.until("held to the rate of now", |status| {
        status["limit"] == 64 << 10
    });
    let again = Duration::from_secs(3);
    thread::sleep(again);
    sites.source.take().expect("it runs").kill();
    sites.serve();
    sites.until("held to it again", |status| status["limit"] == 64 << 10);
    for refused in ["1T,8-18=5M", "5M,1M", "1T,mon@08:00-08:00=5M"] {
        let ran = sites.run(&["mirror", "rate", "a.vhdx", refused]).ends(2);
        assert!(
            ran.stderr.contains("mon-fri@08:00-18:00=5M"),
            "{}",
            ran.stderr
        );
    }
    sites
        .run(&["mirror", "rate", "a.vhdx", "64K,00:00-24:00=none"])
        .ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    sites.mirror("cutover").ends(0);
    sites.moved();
    sites.end();
    holds_the_content(&sites, "in/a.vhdx");
}

#[test]
fn a_disk_that_comes_back_finds_what_it_left_behind() {
    let mut sites = filled();
    sites.serve();
    sites.receive();
    sites.start(&["--wait"]).ends(0);
    sites.moved();
    sites.end();
    let away = ["serve", "in/a.vhdx", "--listen", "unix:u"];
    let mut away = Running::start(sites.here(), &away);
    away.says("serving");
    let words = ["receive", "--listen", "tcp:127.0.0.1:0", "--into", "."];
    let mut home = Running::start(sites.here(), &[&words[..], &["--serve", "unix:v"]].concat());
    let listens = home.says("receiving")["listen"].clone();
    let to = listens.as_str().expect("an address");
    let back = [
        "mirror",
        "start",
        "in/a.vhdx",
        "--to",
        to,
        "--wait",
        "--json",
    ];
    sent_little(&last_json(&sites.run(&back).ends(0)), MIB);
    away.end();
    home.end();
    holds_the_content(&sites, "a.vhdx");
}
