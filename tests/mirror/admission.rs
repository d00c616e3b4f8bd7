//! A site takes what it was told to take.

use std::os::unix::fs::MetadataExt as _;

use super::site::{Sites, writable};

fn told(taking: &[&'static str]) -> Sites {
    let mut sites = Sites::new("a.vhdx", &["1G"]);
    sites.taking = taking.to_vec();
    sites.serve();
    sites.receive();
    sites
}

#[test]
fn a_site_takes_the_disks_that_it_was_told_to_expect_and_no_others() {
    let mut sites = told(&["--expect", "b.vhdx", "--expect", "c.vhdx"]);
    let ran = sites.start(&["--wait"]).ends(8);
    assert!(ran.stderr.contains("expects other disks"), "{}", ran.stderr);
    let left: Vec<_> = std::fs::read_dir(sites.here().join("in"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // Told anew, it takes it.
    sites.target.take().expect("it runs").end();
    sites.taking = vec!["--expect", "a.vhdx"];
    sites.receive();
    sites.start(&["--wait"]).ends(0);
    sites.end();
}

#[test]
fn a_site_takes_no_disk_that_is_larger_than_it_was_told() {
    let mut sites = told(&["--max-disk", "512M"]);
    let ran = sites.start(&["--wait"]).ends(8);
    assert!(ran.stderr.contains("1073741824 bytes"), "{}", ran.stderr);
    sites.end();
}

#[test]
fn a_move_that_would_go_beyond_the_quota_ends_and_the_source_stays_the_owner() {
    let mut sites = Sites::new("a.vhdx", &["1G"]);
    let content: Vec<u8> = (0..160_u32 << 20)
        .map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8)
        .collect();
    std::fs::write(sites.here().join("content.raw"), content).unwrap();
    sites
        .run(&["convert", "content.raw", "a.vhdx", "--force"])
        .ends(0);
    sites.taking = vec!["--quota", "40M"];
    sites.serve();
    sites.receive();
    let ran = sites.start(&["--wait"]).ends(8);
    assert!(ran.stderr.contains("--quota"), "{}", ran.stderr);
    let taken: u64 = std::fs::read_dir(sites.here().join("in"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512)
        .sum();
    // What is on the way when the last byte fits is not counted yet.
    assert!(taken < 140 << 20, "{taken}");
    assert!(
        writable(&sites.at_source(), 0),
        "the source stays the owner"
    );
    // With more room the same move goes on with what is there.
    sites.target.take().expect("it runs").end();
    sites.taking = vec!["--quota", "1G"];
    sites.receive();
    sites.start(&["--wait"]).ends(0);
    sites.end();
    sites.run(&["check", "in/a.vhdx"]).ends(0);
}
