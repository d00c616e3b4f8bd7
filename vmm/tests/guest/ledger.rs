//! The guest's ledger: what it says is flushed is there, and what is missing is seen.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use serde_json::Value;

use crate::disks::raw_disk;
use crate::qemu::Qemu;

/// Bytes of a block of a ledger.
const BLOCK: u64 = 4096;

fn number(event: &Value, name: &str) -> u64 {
    event[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no {name} in {event}"))
}

#[test]
fn a_ledger_holds_what_it_says() {
    for ways in ["", "indirect=1 events=1 depth=128", "depth=1"] {
        let (_folder, path) = raw_disk();
        let words = format!(
            "from=8M blocks=100 batch=33 {ways} do=ledger rounds=7 every=3 do=ledger-check"
        );
        let ran = Qemu::new("q35").disk(&path, "raw", "").run(&words).good();
        let rounds: Vec<u64> = ran
            .all("ledger")
            .map(|event| number(event, "round"))
            .collect();
        assert_eq!(rounds, [3, 6, 7], "{ways}");
        let said = ran.all("ledger").last().expect("a line");
        assert_eq!(
            (number(said, "flushed"), number(said, "wrong")),
            (231, 0),
            "{ways}"
        );
        assert_eq!(number(said, "errors"), 0, "{ways}");
        let found = ran.event("ledger-check");
        assert_eq!(
            (number(found, "holds"), number(found, "highest")),
            (231, 231),
            "{ways}"
        );
        assert_eq!(number(found, "torn"), 0, "{ways}");
    }
}

#[test]
fn a_ledger_keeps_to_its_pace_and_says_how_long_its_requests_took() {
    let (_folder, path) = raw_disk();
    let words = "do=hello do=ledger rounds=5 pace=16M do=hello";
    let ran = Qemu::new("q35").disk(&path, "raw", "").run(words).good();
    let tsc: Vec<u64> = ran.all("hello").map(|event| number(event, "tsc")).collect();
    let took = tsc[1] - tsc[0];
    assert!(took >= 5 * (16 << 20), "{took}");
    for said in ran.all("ledger") {
        assert!((1..took).contains(&number(said, "longest")), "{said}");
    }
}

#[test]
fn each_processor_keeps_a_ledger_of_its_own() {
    let (_folder, path) = raw_disk();
    let disk = || Qemu::new("q35").disk(&path, "raw", "num-queues=2");
    let words = "do=ledger rounds=3 batch=10 blocks=64 do=ledger-check blocks=64";
    let ran = disk().with(&["-smp", "2"]).run(words).good();
    assert_eq!(ran.all("ledger").count(), 6);
    assert!(
        ran.all("ledger-check")
            .all(|check| number(check, "holds") == 30)
    );
    // One processor reads those of both.
    let ran = disk().run("do=ledger-check blocks=64 ledgers=2").good();
    let holds: Vec<u64> = ran
        .all("ledger-check")
        .map(|event| number(event, "holds"))
        .collect();
    assert_eq!(holds, [30, 30]);
}

#[test]
fn a_machine_that_is_killed_has_lost_nothing_that_was_flushed() {
    let (folder, path) = raw_disk();
    let machine = Qemu::new("pc").disk(&path, "raw", "");
    let words = "do=ledger blocks=500 batch=50";
    let machine = machine.start(words, &folder.path().join("monitor"));
    let mut said = machine.next();
    while number(&said, "round") < 20 {
        said = machine.next();
    }
    machine.kill();
    let flushed = number(&said, "flushed");
    let check = Qemu::new("pc").disk(&path, "raw", "");
    let ran = check.run("do=ledger-check blocks=500").good();
    let found = ran.event("ledger-check");
    assert!(number(found, "holds") >= flushed, "{found} after {said}");
}

#[test]
fn a_block_that_is_lost_or_torn_is_seen() {
    let (_folder, path) = raw_disk();
    let disk = || Qemu::new("q35").disk(&path, "raw", "");
    disk().run("do=ledger rounds=4 batch=25 blocks=64").good();
    let file = OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("the disk");
    let check = || {
        let ran = disk().run("do=ledger-check blocks=64").good();
        let found = ran.event("ledger-check");
        (number(found, "holds"), number(found, "torn"))
    };
    assert_eq!(check(), (100, 0));
    // All of block 50, whose place no later one took.
    file.write_all_at(&[0; BLOCK as usize], 50 * BLOCK)
        .expect("a write");
    assert_eq!(check(), (49, 0));
    // A sector of block 90, and with it of block 26, which had that place before.
    file.write_all_at(&[0; 512], 90 % 64 * BLOCK + 512)
        .expect("a write");
    assert_eq!(check(), (25, 1));
}

#[test]
fn a_ledger_of_another_seed_or_owner_counts_for_nothing() {
    let (_folder, path) = raw_disk();
    let words =
        "blocks=64 batch=8 do=ledger rounds=2 do=ledger-check ledgers=3 do=ledger-check seed=2";
    let ran = Qemu::new("q35").disk(&path, "raw", "").run(words).good();
    let holds: Vec<u64> = ran
        .all("ledger-check")
        .map(|event| number(event, "holds"))
        .collect();
    assert_eq!(holds, [16, 0, 0, 0]);
}

#[test]
fn a_write_or_flush_that_fails_is_done_again_before_anything_is_promised() {
    let (_folder, path) = raw_disk();
    let file = path.to_str().expect("UTF-8");
    let faults = [("write_aio", "write"), ("flush_to_disk", "flush")];
    for (event, iotype) in faults {
        let fault = "file.inject-error.0";
        let drive = format!(
            "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={file},\
            {fault}.event={event},{fault}.iotype={iotype},{fault}.errno=5,{fault}.once=on"
        );
        let words = "blocks=64 batch=8 do=ledger rounds=3 do=ledger-check";
        let ran = Qemu::new("q35").drive(&drive, "").run(words).good();
        let said = ran.all("ledger").last().expect("a line");
        // QEMU makes one request of neighbours.
        assert!(
            (1..=8).contains(&number(said, "errors")),
            "{iotype}: {said}"
        );
        assert_eq!(number(ran.event("ledger-check"), "holds"), 24, "{iotype}");
    }
}
