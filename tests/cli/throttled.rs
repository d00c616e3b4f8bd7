//! `diskferry limit`, and `serve` with limits.

use std::time::{Duration, Instant};

use serde_json::json;

use super::run::{diskferry, folder, program};
use super::serving::Serving;

#[test]
fn a_served_disk_is_limited_and_its_limits_are_changed_while_it_is_in_use() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    let words = [
        "a.vhdx",
        "--listen",
        "unix:a.sock",
        "--iops",
        "100",
        "--iops-burst",
        "1",
    ];
    let serving = Serving::start(here, &words);
    let said = diskferry(here, &["limit", "a.vhdx", "--json"]).ok().json();
    assert_eq!(said["type"], "limits");
    assert_eq!(said["limits"], json!({"iops": 100, "iops_burst": 1}));
    let began = Instant::now();
    let uri = serving.uri();
    let mut words = vec!["-f", "raw", &uri];
    words.extend(["-c", "write 0 512"].repeat(40));
    program(here, "qemu-io", &words).ok();
    // 40 requests, of which one may begin at once.
    assert!(began.elapsed() >= Duration::from_millis(380));
    let said = diskferry(here, &["limit", "a.vhdx"]).ok().stdout;
    assert!(
        said.contains("100 requests a second, 1 requests at once"),
        "{said}"
    );
    assert!(said.contains("have waited"), "{said}");
    let change = [
        "limit",
        "a.vhdx",
        "--bandwidth",
        "10M",
        "--bandwidth-burst",
        "64K",
        "--json",
    ];
    let said = diskferry(here, &change).ok().json();
    assert_eq!(
        said["limits"],
        json!({"bandwidth": 10 << 20, "bandwidth_burst": 64 << 10})
    );
    let said = diskferry(here, &["limit", "a.vhdx", "--none", "--json"])
        .ok()
        .json();
    assert_eq!(said["limits"], json!({}));
    assert!(
        said["throttled"]["requests"].as_u64().unwrap() > 0,
        "{said}"
    );
    serving.end();
}

#[test]
fn limits_that_cannot_be_are_refused() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    for (words, named) in [
        (["--iops", "0"], "would stop the disk"),
        (["--bandwidth", "much"], "much"),
        (["--iops-burst", "5"], "--iops"),
    ] {
        let mut all = vec!["limit", "a.vhdx"];
        all.extend(words);
        let ran = diskferry(here, &all).fails(2);
        assert!(ran.stderr.contains(named), "{named} in: {}", ran.stderr);
    }
    // Nobody serves it.
    diskferry(here, &["limit", "a.vhdx", "--iops", "5"]).fails(1);
}
