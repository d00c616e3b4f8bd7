//! The disk of a machine moves while it runs.

use super::guest::{assert_kept, describe, flushed, start, until, without_kvm};
use super::process::Running;
use crate::run::{diskferry, folder};

#[test]
fn a_disk_moves_under_a_running_machine_and_nothing_flushed_is_lost() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    std::fs::create_dir(here.join("in")).unwrap();
    diskferry(here, &["create", "a.vhdx", "1T", "--block-size", "1M"]).ok();
    describe(here, "vm.toml", ("do=ledger", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    let words = [
        "receive",
        "--listen",
        "tcp:127.0.0.1:0",
        "--into",
        "in",
        "--serve",
        "unix:t",
    ];
    let mut receive = Running::start(here, &words);
    let to = receive.says("receiving")["listen"]
        .as_str()
        .unwrap()
        .to_owned();
    let to = if to.starts_with("tcp:") {
        to
    } else {
        format!("tcp:{to}")
    };
    until(here, "vm.toml", ("ledger", 20));
    diskferry(here, &["mirror", "start", "a.vhdx", "--to", &to, "--wait"]).ok();
    // Its clients are at the other site now, and go on.
    let moved = until(here, "vm.toml", ("ledger", 1)).len();
    let said = until(here, "vm.toml", ("ledger", moved + 20));
    assert!(
        said.iter()
            .all(|said| said["wrong"] == 0 && said["errors"] == 0)
    );
    running.end();
    receive.end();
    let flushed = flushed(here, "vm.toml");
    assert_kept(here, "in/a.vhdx", &flushed);
    diskferry(here, &["check", "in/a.vhdx"]).ok();
}
