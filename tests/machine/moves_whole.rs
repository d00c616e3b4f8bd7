//! A machine moves to another host with its disks: one commit for all of it, whatever breaks in between.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::guest::{assert_kept, describe, flushed, start, until, without_kvm};
use super::process::Running;
use crate::run::{Ran, diskferry, folder, program};

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
    let running = start(&hosts.a, "vm.toml");
    let receiving = receive(&hosts.b);
    moves_and_goes_on(&hosts, running, receiving);
}

#[test]
fn a_machine_moves_encrypted_between_processes_that_are_confined() {
    if without_kvm() {
        return;
    }
    let hosts = Hosts::new();
    let pair = |host: &Path, words: &[&str]| {
        let all = [&["pair"], words, &["--identity", "id"]].concat();
        diskferry(host, &all).ok();
    };
    for host in [&hosts.a, &hosts.b] {
        pair(host, &["new"]);
    }
    pair(&hosts.a, &["trust", "../b/id/cert.pem", "--as", "b"]);
    pair(&hosts.b, &["trust", "../a/id/cert.pem", "--as", "a"]);
    let mut running = Running::start(&hosts.a, &["run", "vm.toml", "--identity", "id"]);
    running.says("running");
    let words = [
        "run",
        "vm.toml",
        "--identity",
        "id",
        "--receive",
        "tls:127.0.0.1:0",
    ];
    let mut receiving = Running::start(&hosts.b, &words);
    let listen = receiving.says("receiving")["listen"].clone();
    let to = listen.as_str().unwrap().to_owned();
    assert!(to.starts_with("tls:"), "{to}");
    moves_and_goes_on(&hosts, running, (receiving, to));
}

fn moves_and_goes_on(hosts: &Hosts, mut running: Running, (mut receiving, to): (Running, String)) {
    until(&hosts.a, "vm.toml", ("ledger", 20));
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

/// Moves it while the process at one host ends by itself at a step; how the move ended.
struct Killed {
    hosts: Hosts,
    source: Running,
    target: Running,
    to: String,
    /// What had been flushed.
    before: Vec<u64>,
}

fn dying(host: &Path, words: &[&str], step: Option<&str>) -> Running {
    Running::start_with(host, words, step.map(|step| ("DISKFERRY_DIE_AT", step)))
}

/// Steps of the target after which the machine's memory is gone, as by a power cut.
const BEGINS_ANEW: [&str; 2] = ["used", "runs"];

/// What ends a process at its step.
const SIGABRT: i32 = 6;

#[track_caller]
fn was_killed(process: &mut Running) {
    let status = process.ended();
    assert_eq!(
        status.signal(),
        Some(SIGABRT),
        "{status}: {}",
        process.log()
    );
}

/// A move in which the process at the source, or at the target, dies at that step.
fn killed((at_source, at_target): (Option<&str>, Option<&str>)) -> Killed {
    let hosts = Hosts::new();
    let mut source = dying(&hosts.a, &["run", "vm.toml"], at_source);
    source.says("running");
    until(&hosts.a, "vm.toml", ("ledger", 10));
    let words = ["run", "vm.toml", "--receive", "tcp:127.0.0.1:0"];
    let mut target = dying(&hosts.b, &words, at_target);
    let to = target.says("receiving")["listen"]
        .as_str()
        .unwrap()
        .to_owned();
    let asked = (hosts.a.clone(), to.clone());
    let asking = std::thread::spawn(move || move_to(&asked.0, &asked.1));
    let dead = if at_source.is_some() {
        &mut source
    } else {
        &mut target
    };
    was_killed(dead);
    let before = flushed(&hosts.a, "vm.toml");
    let again = at_target.map(|step| {
        if BEGINS_ANEW.contains(&step) {
            // A guest that begins anew writes its ledger anew.
            assert_kept(&hosts.b, "one.vhdx", &before);
        }
        let mut again = dying(&hosts.b, &["run", "vm.toml", "--receive", &to], None);
        again.says("receiving");
        again
    });
    let ran = asking.join().unwrap();
    println!("the move ended with {}: {}", ran.code, ran.stderr);
    Killed {
        hosts,
        source,
        target: again.unwrap_or(target),
        to,
        before,
    }
}

#[test]
fn a_source_that_is_killed_before_the_decision_runs_the_machine_again() {
    if without_kvm() {
        return;
    }
    for step in ["stop", "stopped", "binding", "bound"] {
        println!("the source is killed at `{step}`");
        let killed = killed((Some(step), None));
        drop(killed.target);
        // Nobody but the source may run it.
        let refused = diskferry(&killed.hosts.b, &["run", "vm.toml"]).fails(5);
        assert!(
            refused.stderr.contains("not arrived whole"),
            "{}",
            refused.stderr
        );
        drop(killed.source);
        assert_kept(&killed.hosts.a, "one.vhdx", &killed.before);
        let running = start(&killed.hosts.a, "vm.toml");
        goes_on(&killed.hosts.a, 5);
        running.end();
        for disk in DISKS {
            diskferry(&killed.hosts.a, &["check", disk]).ok();
        }
    }
}

#[test]
fn a_source_that_is_killed_after_the_decision_tells_the_target_when_it_is_back() {
    if without_kvm() {
        return;
    }
    for step in ["decided", "granting"] {
        println!("the source is killed at `{step}`");
        let mut killed = killed((Some(step), None));
        // Whatever serves its disks alone says where they are.
        let refused = diskferry(
            &killed.hosts.a,
            &["serve", "one.vhdx", "--listen", "unix:s"],
        );
        assert_eq!(refused.code, 5, "{}", refused.stderr);
        drop(killed.source);
        let told = diskferry(&killed.hosts.a, &["run", "vm.toml", "--json"]).ok();
        assert!(told.stderr.contains(&killed.to), "{}", told.stderr);
        let lines = told.json_lines();
        assert_eq!(lines.last().unwrap()["end"], "moved");
        // With all that was in its memory.
        killed.target.says("restored");
        goes_on(&killed.hosts.b, 10);
        killed.target.end();
        assert_kept(&killed.hosts.b, "one.vhdx", &killed.before);
    }
}

#[test]
fn a_target_that_is_killed_is_started_again_by_the_same_command() {
    if without_kvm() {
        return;
    }
    for step in [
        "create",
        "state",
        "own-disk",
        "own-state",
        "own",
        "restored",
        "used",
        "runs",
    ] {
        let restored = !BEGINS_ANEW.contains(&step);
        println!("the target is killed at `{step}`");
        let mut killed = killed((None, Some(step)));
        killed.target.says("running");
        if restored {
            killed.target.says("restored");
        }
        killed.source.says("moved");
        goes_on(&killed.hosts.b, 10);
        // The source knows that it went.
        drop(killed.source);
        let refused = diskferry(
            &killed.hosts.a,
            &["serve", "one.vhdx", "--listen", "unix:s"],
        );
        assert_eq!(refused.code, 5, "{}", refused.stderr);
        killed.target.end();
        if restored {
            assert_kept(&killed.hosts.b, "one.vhdx", &killed.before);
        }
        for disk in DISKS {
            diskferry(&killed.hosts.b, &["check", disk]).ok();
        }
    }
}

#[test]
fn a_machine_that_does_not_fit_there_is_refused_before_it_stands_still() {
    if without_kvm() {
        return;
    }
    let hosts = Hosts::new();
    let running = start(&hosts.a, "vm.toml");
    until(&hosts.a, "vm.toml", ("ledger", 5));
    let refused = diskferry(
        &hosts.a,
        &["machine", "move", "vm.toml", "--to", "tcp:127.0.0.1:9"],
    );
    assert_eq!(refused.code, 7, "{}", refused.stderr);
    let text = fs::read_to_string(hosts.b.join("vm.toml")).unwrap();
    fs::write(hosts.b.join("vm.toml"), text.replace("64M", "65M")).unwrap();
    let (receiving, to) = receive(&hosts.b);
    let refused = move_to(&hosts.a, &to);
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("67108864 bytes"),
        "{}",
        refused.stderr
    );
    drop(receiving);
    fs::write(hosts.b.join("vm.toml"), text).unwrap();
    fs::write(hosts.b.join("one.vhdx"), "somebody's").unwrap();
    let (receiving, to) = receive(&hosts.b);
    let refused = move_to(&hosts.a, &to);
    assert_eq!(refused.code, 6, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("is there already"),
        "{}",
        refused.stderr
    );
    drop(receiving);
    goes_on(&hosts.a, 5);
    running.end();
    assert!(
        !hosts.a.join("vm.toml.ownership").exists(),
        "nothing was begun"
    );
}

#[test]
fn a_target_that_is_gone_leaves_the_machine_where_it_is_and_it_can_be_moved_again() {
    if without_kvm() {
        return;
    }
    let hosts = Hosts::new();
    let mut running = start(&hosts.a, "vm.toml");
    until(&hosts.a, "vm.toml", ("ledger", 10));
    let words = ["run", "vm.toml", "--receive", "tcp:127.0.0.1:0"];
    let mut target = dying(&hosts.b, &words, Some("state"));
    let to = target.says("receiving")["listen"]
        .as_str()
        .unwrap()
        .to_owned();
    let asked = hosts.a.clone();
    let given_up = std::thread::spawn(move || move_to(&asked, &to));
    was_killed(&mut target);
    drop(target);
    // It stands still, and nobody comes: it goes on here.
    let ran = given_up.join().unwrap();
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert!(ran.stderr.contains("stays here"), "{}", ran.stderr);
    goes_on(&hosts.a, 20);
    let (mut receiving, to) = receive(&hosts.b);
    move_to(&hosts.a, &to).ok();
    assert_eq!(running.says("summary")["end"], "moved");
    receiving.says("restored");
    let before = flushed(&hosts.a, "vm.toml");
    goes_on(&hosts.b, 10);
    receiving.end();
    assert_kept(&hosts.b, "one.vhdx", &before);
}

#[test]
fn a_move_that_is_cancelled_leaves_nothing_changed() {
    if without_kvm() {
        return;
    }
    let hosts = Hosts::new();
    let running = start(&hosts.a, "vm.toml");
    until(&hosts.a, "vm.toml", ("ledger", 10));
    let words = ["run", "vm.toml", "--receive", "tcp:127.0.0.1:0"];
    // Its target is gone while disks are copied, so that it lasts.
    let mut target = dying(&hosts.b, &words, Some("create"));
    let to = target.says("receiving")["listen"]
        .as_str()
        .unwrap()
        .to_owned();
    let words = ["machine", "move", "vm.toml", "--to", &to];
    let moving = Running::start(&hosts.a, &words);
    was_killed(&mut target);
    let pid = moving.pid().to_string();
    let told = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status();
    assert!(told.unwrap().success());
    let mut moving = moving;
    assert_eq!(moving.ended().code(), Some(130), "{}", moving.log());
    assert!(moving.log().contains("stays here"), "{}", moving.log());
    goes_on(&hosts.a, 20);
    running.end();
    // It is this host's own, whatever starts it.
    assert_kept(&hosts.a, "one.vhdx", &flushed(&hosts.a, "vm.toml"));
    start(&hosts.a, "vm.toml").end();
}

#[test]
fn a_state_that_arrived_is_used_by_a_plain_run_unless_a_disk_was_written_since() {
    if without_kvm() {
        return;
    }
    for written in [false, true] {
        println!("disk written: {written}");
        let hosts = Hosts::new();
        let running = start(&hosts.a, "vm.toml");
        until(&hosts.a, "vm.toml", ("ledger", 10));
        let words = ["run", "vm.toml", "--receive", "tcp:127.0.0.1:0"];
        let mut target = dying(&hosts.b, &words, Some("restored"));
        let to = target.says("receiving")["listen"]
            .as_str()
            .unwrap()
            .to_owned();
        let asked = hosts.a.clone();
        let asking = std::thread::spawn(move || move_to(&asked, &to));
        was_killed(&mut target);
        drop(running);
        drop(target);
        asking.join().unwrap();
        let before = flushed(&hosts.a, "vm.toml");
        if written {
            let write = ["-f", "vhdx", "-c", "write 900G 4k", "one.vhdx"];
            program(&hosts.b, "qemu-io", &write).ok();
            let refused = diskferry(&hosts.b, &["run", "vm.toml"]).fails(6);
            assert!(
                refused.stderr.contains("were written since"),
                "{}",
                refused.stderr
            );
            fs::remove_file(hosts.b.join("vm.toml.state")).unwrap();
        }
        let mut running = Running::start(&hosts.b, &["run", "vm.toml"]);
        running.says("running");
        if !written {
            running.says("restored");
        }
        goes_on(&hosts.b, 10);
        running.end();
        if !written {
            assert_kept(&hosts.b, "one.vhdx", &before);
        }
    }
}

#[test]
fn every_word_of_memory_is_as_it_was_after_a_move() {
    if without_kvm() {
        return;
    }
    let root = folder();
    let [a, b] = ["a", "b"].map(|name| root.path().join(name));
    let line = "do=fill do=spin every=10M rounds=400 do=fill-check";
    for host in [&a, &b] {
        fs::create_dir(host).unwrap();
        describe(host, "vm.toml", (line, &[]));
    }
    let running = start(&a, "vm.toml");
    until(&a, "vm.toml", ("spin", 1));
    let (mut receiving, to) = receive(&b);
    let moved = move_to(&a, &to).ok().json_lines();
    let moved = moved.last().unwrap();
    drop(running);
    let filled = later(&a, "fill");
    let filled = filled
        .iter()
        .filter_map(|said| said["bytes"].as_u64())
        .max();
    let filled = filled.unwrap();
    assert!(moved["memory_bytes"].as_u64().unwrap() >= filled, "{moved}");
    assert_eq!(receiving.says("summary")["end"], "power_off");
    let checked = &later(&b, "fill-check")[0];
    assert_eq!(checked["wrong"], 0);
    assert_eq!(checked["bytes"], filled);
    assert!(!b.join("vm.toml.state").exists());
}
