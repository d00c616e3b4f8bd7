//! A machine with the guest that is built in, in a folder of its own.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::process::{Running, STUCK};
use crate::run::{Ran, diskferry};

/// Whether this host is known not to have KVM.
pub(crate) fn without_kvm() -> bool {
    let without = std::env::var_os("DISKFERRY_NO_KVM").is_some_and(|value| value == "1");
    if without {
        println!("skipped: DISKFERRY_NO_KVM=1");
    }
    without
}

/// Describes a machine of two processors with these disks, which does what `line` says. It may use this folder.
pub(crate) fn describe(here: &Path, name: &str, (line, disks): (&str, &[&str])) {
    let mut text = format!(
        "vcpus = 2\nmemory = \"64M\"\nboot.kernel = \"built-in\"\nboot.command_line = \"{line}\"\n\
         console.to = \"file:{name}.console\"\n"
    );
    if disks.is_empty() {
        // Without disks there is no folder that is its own; snapshots and disks that come go here.
        text.push_str("confine.paths = [\".\"]\n");
    }
    for disk in disks {
        write!(text, "[[disk]]\npath = \"{disk}\"\n").unwrap();
    }
    fs::write(here.join(name), text).unwrap();
}

/// What the guest has said.
pub(crate) fn events(here: &Path, name: &str, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(here.join(format!("{name}.console"))).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .filter(|said: &Value| said["event"] == event)
        .collect()
}

/// Waits until it has said something so often.
#[track_caller]
pub(crate) fn until(here: &Path, name: &str, (event, count): (&str, usize)) -> Vec<Value> {
    let since = Instant::now();
    loop {
        let said = events(here, name, event);
        if said.len() >= count {
            return said;
        }
        assert!(
            since.elapsed() < STUCK,
            "{event} was said {} times",
            said.len()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a machine to its end, which must be a good one.
#[track_caller]
pub(crate) fn run_to_its_end(here: &Path, line: &str, disks: &[&str]) -> Vec<Value> {
    describe(here, "once.toml", (line, disks));
    let ran = diskferry(here, &["run", "once.toml", "--json"]);
    let console = fs::read_to_string(here.join("once.toml.console")).unwrap_or_default();
    assert_eq!(ran.code, 0, "{}{console}", ran.stderr);
    let said = console
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    said.collect()
}

/// Starts a machine, and waits until it runs.
pub(crate) fn start(here: &Path, name: &str) -> Running {
    let mut running = Running::start(here, &["run", name]);
    running.says("running");
    running
}

/// `diskferry machine VERB NAME`.
pub(crate) fn ask(here: &Path, verb: &str, name: &str) -> Ran {
    diskferry(here, &["machine", verb, name, "--json"])
}

/// The highest number of a ledger of each processor that was flushed, as the guest said.
pub(crate) fn flushed(here: &Path, name: &str) -> Vec<u64> {
    let mut highest = vec![0; 2];
    for said in events(here, name, "ledger") {
        let vcpu = said["vcpu"].as_u64().unwrap() as usize;
        assert_eq!(said["wrong"], 0, "{said}");
        highest[vcpu] = said["flushed"].as_u64().unwrap().max(highest[vcpu]);
    }
    highest
}

/// What the ledgers on a disk prove: nothing that was flushed is missing.
#[track_caller]
pub(crate) fn assert_kept(here: &Path, disk: &str, flushed: &[u64]) {
    let said = run_to_its_end(here, "do=ledger-check ledgers=2", &[disk]);
    let ledgers = said.iter().filter(|said| said["event"] == "ledger-check");
    let mut seen = 0;
    for ledger in ledgers {
        let whose = ledger["ledger"].as_u64().unwrap() as usize;
        let holds = ledger["holds"].as_u64().unwrap();
        assert!(holds >= flushed[whose], "{ledger}, flushed {flushed:?}");
        seen += 1;
    }
    assert_eq!(seen, 2, "{said:?}");
}
