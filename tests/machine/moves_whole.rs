//! A machine moves to another host with its disks: one commit for all of it, whatever breaks in between.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::guest::{assert_kept, describe, flushed, start, until, without_kvm};
use super::process::Running;
use crate::run::{Ran, diskferry, folder};

/// Two hosts: a folder each, with the description of the same machine.
struct Hosts {
    _folder: tempfile::TempDir,
    a: PathBuf,
    b: PathBuf,
}

const DISKS: [&str; 2] = ["one.vhdx", "two.vhdx"];

impl Hosts {
    fn new() -> Self {
        let root = folder();
        let [a, b] = ["a", "b"].map(|name| root.path().join(name));
        for host in [&a, &b] {
            fs::create_dir(host).unwrap();
            describe(host, "vm.toml", ("do=ledger", &DISKS));
        }
        for disk in DISKS {
            diskferry(&a, &["create", disk, "1T", "--block-size", "1M"]).ok();
        }
        Self {
            _folder: root,
            a,
            b,
        }
    }
}

/// Waits at `host` for the machine; where.
fn receive(host: &Path) -> (Running, String) {
    let words = ["run", "vm.toml", "--receive", "tcp:127.0.0.1:0"];
    let mut receiving = Running::start(host, &words);
    let listen = receiving.says("receiving")["listen"].clone();
    (receiving, listen.as_str().unwrap().to_owned())
}

fn move_to(host: &Path, to: &str) -> Ran {
    diskferry(host, &["machine", "move", "vm.toml", "--to", to, "--json"])
}

/// What a guest said that did not begin anew, but for the rest of the line that it was in.
fn later(host: &Path, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(host.join("vm.toml.console")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|said| said["event"] == event).collect()
}

#[track_caller]
fn goes_on(host: &Path, count: usize) {
    let since = std::time::Instant::now();
    let before = later(host, "ledger").len();
    loop {
        let said = later(host, "ledger");
        assert!(
            said.iter()
                .all(|said| said["wrong"] == 0 && said["errors"] == 0),
            "{said:?}"
        );
        if said.len() >= before + count {
            return;
        }
        assert!(since.elapsed() < super::process::STUCK, "{said:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_machine_moves_with_its_disks_and_goes_on_where_it_was() {
    if without_kvm() {
        return;
    }
    let hosts = Hosts::new();
    let mut running = start(&hosts.a, "vm.toml");
    until(&hosts.a, "vm.toml", ("ledger", 20));
    let (mut receiving, to) = receive(&hosts.b);
    let lines = move_to(&hosts.a, &to).ok().json_lines();
    let moved = lines.last().unwrap();
    println!("{moved}");
    assert_eq!(moved["type"], "moved");
    assert_eq!(running.says("summary")["end"], "moved");
    assert_eq!(running.says("moved")["id"], moved["id"]);
    receiving.says("running");
    let before = flushed(&hosts.a, "vm.toml");
    goes_on(&hosts.b, 20);
    // Here it may not run any more.
    let refused = diskferry(&hosts.a, &["serve", "one.vhdx", "--listen", "unix:s"]).fails(5);
    assert!(
        refused.stderr.contains("with its machine"),
        "{}",
        refused.stderr
    );
    receiving.end();
    assert_kept(&hosts.b, "one.vhdx", &before);
    for disk in DISKS {
        diskferry(&hosts.b, &["check", disk]).ok();
    }
}
