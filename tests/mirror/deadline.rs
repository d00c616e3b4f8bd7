//! A client that writes faster than the line carries: its disk arrives by the deadline that was set.

use std::time::Duration;

use testlink::{Shape, inside};

use super::faults::seed;
use super::ledger::{Ledger, Promise};
use super::load::{Area, Load, verify};
use super::wan::Line;
use crate::run::program;

const MIB: u64 = 1 << 20;

#[test]
fn a_client_that_the_line_cannot_follow_is_slowed_down_until_its_disk_has_moved() {
    if !inside(
        "mirror::deadline::a_client_that_the_line_cannot_follow_is_slowed_down_until_its_disk_has_moved",
    ) {
        return;
    }
    let seed = seed();
    let line = Line::with(seed, Shape::new(30_000_000, Duration::from_millis(1)));
    let mut sites = line.sites();
    let area = Area {
        seed,
        disk: 1024 * MIB,
        regions: 3,
        length: 16 * MIB,
        // As fast as it can.
        rate: 1_000_000,
    };
    let load = Load::start(&sites.at_source(), area, Ledger::default());
    load.goes_on(10_000);
    // What cannot be is said, and holds nobody once the move is over.
    sites.start(&["--manual", "--deadline", "2s"]).ends(0);
    let status = sites.until("told that it cannot be", |status| {
        status["unmet"].is_string()
    });
    let unmet = status["unmet"].as_str().expect("a reason");
    assert!(unmet.contains("deadline"), "{status}");
    sites.tell("deadline", "none").ends(0);
    sites.until("let go", |status| {
        status["unmet"].is_null() && status["brake"].is_null()
    });
    sites.tell("deadline", "2s").ends(0);
    sites.until("told again", |status| status["unmet"].is_string());
    sites.mirror("cancel").ends(0);
    let status = sites.until("ended", |status| status["ended"] == true);
    assert!(status["brake"].is_null(), "{status}");
    sites.start(&["--deadline", "1000000h"]).ends(0);
    sites.tell("deadline", "40s").ends(0);
    let status = sites.until("held back", |status| {
        status["brake"].is_u64() || status["ended"] == true
    });
    println!("held back: {status}");
    assert!(status["brake"].is_u64(), "it moved all the same: {status}");
    let status = sites.moved();
    println!("moved: {status}");
    assert!(status["brake"].is_null(), "{status}");
    load.goes_on(100);
    let ledger = load.well();
    line.at_target(|| verify(&sites.at_target(), &ledger, Promise::Acknowledged));
    sites.end();
    program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]).ends(0);
}
