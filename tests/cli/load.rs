//! Measuring, and the ledger by which the demo and other tests know what was lost.

use std::os::unix::fs::FileExt as _;

use super::run::{diskferry, folder};

#[test]
fn a_disk_is_measured() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    for pattern in [
        "random-write",
        "sequential-write",
        "random-read",
        "sequential-read",
    ] {
        let words = [
            "bench",
            "a.vhdx",
            "--json",
            "--ops",
            "500",
            "--destroy-data",
            "--pattern",
        ];
        let mut words = words.to_vec();
        words.push(pattern);
        if pattern.ends_with("write") {
            words.extend(["--flush-every", "100", "--prepare", "--length", "8M"]);
        }
        let line = diskferry(here, &words).ok().json();
        assert_eq!(
            (&line["type"], &line["ops"]),
            (&"bench".into(), &500.into())
        );
        assert_eq!(line["pattern"], pattern);
        assert_eq!(line["latency"]["count"], 500);
        if pattern.ends_with("write") {
            assert_eq!(line["flush_latency"]["count"], 5);
        }
    }
    diskferry(here, &["check", "a.vhdx"]).ok();
}

#[test]
fn a_disk_is_not_overwritten_unasked() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    let ran = diskferry(here, &["bench", "a.vhdx", "--pattern", "random-write"]).fails(2);
    assert!(ran.stderr.contains("--destroy-data"), "{}", ran.stderr);
}

#[test]
fn a_server_that_is_not_there_is_a_failure_of_the_network() {
    let here = folder();
    let ran = diskferry(here.path(), &["bench", "unix:none.sock"]).fails(7);
    assert!(ran.stderr.contains("none.sock"), "{}", ran.stderr);
}

#[test]
fn a_ledger_finds_a_lost_write() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    let words = [
        "--ledger", "l", "--rate", "2000", "--length", "1M", "--offset", "100M",
    ];
    let load = [
        &["load", "run", "a.vhdx", "--json", "--duration", "300ms"][..],
        &words,
    ]
    .concat();
    let first = diskferry(here, &load).ok().json();
    assert_eq!(first["phases"][0]["phase"], "all");
    assert!(first["writes"].as_u64().unwrap() > 0, "{first}");
    // It is continued, and every write of both runs is known.
    let second = diskferry(here, &load).ok().json();
    let verify = ["load", "verify", "a.vhdx", "--ledger", "l", "--json"];
    let line = diskferry(here, &verify).ok().json();
    let total = first["writes"].as_u64().unwrap() + second["writes"].as_u64().unwrap();
    assert_eq!(line["writes_acknowledged"], total);
    assert_eq!(line["wrong"], 0);

    // One byte of one block goes wrong.
    diskferry(here, &["convert", "a.vhdx", "a.img"]).ok();
    let ledger = std::fs::read_to_string(here.join("l")).unwrap();
    let index: u64 = ledger
        .lines()
        .find_map(|l| l.strip_prefix("i 1 "))
        .unwrap()
        .parse()
        .unwrap();
    let offset = (100 << 20) + index * 4096;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(here.join("a.img"))
        .unwrap();
    file.write_all_at(&[0xEE], offset + 1000).unwrap();
    let mut verify = verify.to_vec();
    verify[2] = "a.img";
    let ran = diskferry(here, &verify).fails(6);
    assert_eq!(ran.json_lines()[0]["wrong_offsets"][0], offset);

    // Nothing of it was written to another disk.
    diskferry(here, &["create", "b.vhdx", "1G"]).ok();
    verify[2] = "b.vhdx";
    diskferry(here, &verify).fails(6);
}
