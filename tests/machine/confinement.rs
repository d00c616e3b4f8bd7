//! A machine's process is confined to its own files, and says how.

use std::fs;

use super::guest::{ask, describe, start, until, without_kvm};
use super::process::Running;
use crate::run::{diskferry, folder};

#[test]
fn a_machine_opens_files_outside_of_its_folders_only_where_it_was_allowed_to() {
    if without_kvm() {
        return;
    }
    let (here, elsewhere) = (folder(), folder());
    let (here, elsewhere) = (here.path(), elsewhere.path());
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=ledger", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    let state = ask(here, "status", "vm.toml").ok().json();
    assert_eq!(state["confinement"]["system_calls"], "kill");
    assert!(state["confinement"]["landlock"].is_number());
    let outside = elsewhere.join("b.vhdx");
    let outside = outside.to_str().unwrap();
    let refused = diskferry(here, &["snapshot", "a.vhdx", outside]).fails(1);
    assert!(
        refused.stderr.contains("confine.paths"),
        "{}",
        refused.stderr
    );
    // The disk goes on all the same, and within its folder.
    until(here, "vm.toml", ("ledger", 4));
    diskferry(here, &["snapshot", "a.vhdx", "b.vhdx"]).ok();
    running.end();

    diskferry(here, &["create", "c.vhdx", "1G"]).ok();
    describe(here, "two.toml", ("do=ledger", &["c.vhdx"]));
    let allowed = format!("confine.paths = [{:?}]\n", elsewhere.display().to_string());
    let text = fs::read_to_string(here.join("two.toml")).unwrap();
    fs::write(here.join("two.toml"), allowed + &text).unwrap();
    let running = start(here, "two.toml");
    until(here, "two.toml", ("ledger", 4));
    diskferry(here, &["snapshot", "c.vhdx", outside]).ok();
    running.end();
    diskferry(here, &["check", "c.vhdx"]).ok();
}

#[test]
fn a_machine_that_is_not_to_be_confined_is_not_and_says_so() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=spin", &[]));
    for (how, filters) in [("off", 0), ("log", 2)] {
        let mut running = Running::start(here, &["run", "vm.toml", "--confine", how]);
        let pid = running.says("running")["pid"].as_u64().unwrap();
        let state = ask(here, "status", "vm.toml").ok().json();
        assert_eq!(state["confinement"]["system_calls"], how);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mode = status.lines().find(|line| line.starts_with("Seccomp:"));
        assert_eq!(mode, Some(format!("Seccomp:\t{filters}").as_str()));
        running.end();
    }
}

#[test]
fn what_is_named_while_a_machine_runs_lies_in_its_folders_or_is_refused_with_the_key_to_add() {
    if without_kvm() {
        return;
    }
    let (here, elsewhere) = (folder(), folder());
    let (here, elsewhere) = (here.path(), elsewhere.path());
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    diskferry(elsewhere, &["create", "b.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=ledger", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    until(here, "vm.toml", ("ledger", 1));
    let outside = |name: &str| elsewhere.join(name).display().to_string();
    for words in [
        &["machine", "snapshot", "vm.toml", "--into", &outside("kept")][..],
        &["machine", "add-disk", "vm.toml", &outside("b.vhdx")],
    ] {
        let refused = diskferry(here, words).fails(1);
        assert!(
            refused.stderr.contains("confine.paths"),
            "{}",
            refused.stderr
        );
    }
    assert!(!elsewhere.join("kept").exists());
    diskferry(here, &["machine", "snapshot", "vm.toml", "--into", "kept"]).ok();
    let stats = diskferry(here, &["machine", "stats", "vm.toml", "--json"]).ok();
    assert!(stats.json()["resident_bytes"].as_u64().unwrap() > 0);
    running.end();
}

#[test]
fn a_path_that_is_allowed_and_not_there_is_told_of() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    describe(here, "vm.toml", ("do=spin", &[]));
    let text = fs::read_to_string(here.join("vm.toml")).unwrap();
    let text = text.replace("[\".\"]", "[\"nowhere\"]");
    fs::write(here.join("vm.toml"), text).unwrap();
    let refused = diskferry(here, &["run", "vm.toml"]).fails(1);
    assert!(refused.stderr.contains("nowhere"), "{}", refused.stderr);
}

/// The field of a thread's status.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().trim().to_owned()
}

#[test]
fn every_thread_of_a_machine_is_under_a_filter_and_what_a_guest_reaches_under_more() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    describe(here, "vm.toml", ("do=ledger", &["a.vhdx"]));
    let mut running = Running::start(here, &["run", "vm.toml"]);
    let pid = running.says("running")["pid"].as_u64().unwrap();
    until(here, "vm.toml", ("ledger", 1));
    let mut seen = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        // One that has ended meanwhile is of no interest.
        let Ok(status) = fs::read_to_string(thread.unwrap().path().join("status")) else {
            continue;
        };
        let name = field(&status, "Name:");
        assert_eq!(field(&status, "Seccomp:"), "2", "{name}");
        assert_eq!(field(&status, "NoNewPrivs:"), "1", "{name}");
        seen.push((name, field(&status, "Seccomp_filters:")));
    }
    let filters = |name: &str| {
        let all = seen.iter().filter(|(one, _)| one.starts_with(name));
        let least = all.map(|(_, filters)| filters.parse::<u32>().unwrap_or(9));
        least
            .min()
            .unwrap_or_else(|| panic!("no thread {name}: {seen:?}"))
    };
    let process = filters("diskferry");
    for name in ["vcpu-0", "vcpu-1", "blockserver-0", "console"] {
        assert!(filters(name) > process, "{name}: {seen:?}");
    }
    running.end();
}

#[test]
fn a_machine_that_is_received_is_confined_before_anything_listens_for_it() {
    if without_kvm() {
        return;
    }
    let (here, disks) = (folder(), folder());
    let (here, disks) = (here.path(), disks.path());
    let disk = disks.join("a.vhdx").display().to_string();
    let words = ["run", "vm.toml", "--receive", "tcp:127.0.0.1:0"];
    // What comes of it would lie beside the file that describes it.
    describe(here, "vm.toml", ("do=ledger", &[&disk]));
    let refused = diskferry(here, &words).fails(2);
    let told = &refused.stderr;
    assert!(told.contains("confine.paths"), "{told}");
    let text = fs::read_to_string(here.join("vm.toml")).unwrap();
    fs::write(
        here.join("vm.toml"),
        format!("confine.paths = [\".\"]\n{text}"),
    )
    .unwrap();
    let mut receiving = Running::start(here, &words);
    receiving.says("receiving");
    let mut names = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", receiving.pid())).unwrap() {
        let Ok(status) = fs::read_to_string(thread.unwrap().path().join("status")) else {
            continue;
        };
        let name = field(&status, "Name:");
        assert_eq!(field(&status, "Seccomp:"), "2", "{name}");
        names.push(name);
    }
    // Main, signals, workers, and who listens, which may not have its name yet.
    assert!(names.len() >= 4, "{names:?}");
}

#[test]
fn a_machine_whose_record_may_not_be_written_stays_and_names_the_key_to_add() {
    if without_kvm() {
        return;
    }
    let (here, disks, away) = (folder(), folder(), folder());
    let (here, disks, away) = (here.path(), disks.path(), away.path());
    diskferry(disks, &["create", "a.vhdx", "1G"]).ok();
    let disk = disks.join("a.vhdx").display().to_string();
    describe(here, "vm.toml", ("do=ledger", &[&disk]));
    describe(away, "vm.toml", ("do=ledger", &["a.vhdx"]));
    let running = start(here, "vm.toml");
    until(here, "vm.toml", ("ledger", 1));
    let words = ["run", "vm.toml", "--receive", "tcp:127.0.0.1:0"];
    let mut receiving = Running::start(away, &words);
    let to = receiving.says("receiving")["listen"].clone();
    let to = to.as_str().unwrap();
    let stayed = diskferry(here, &["machine", "move", "vm.toml", "--to", to]);
    assert_ne!(stayed.code, 0);
    assert!(stayed.stderr.contains("confine.paths"), "{}", stayed.stderr);
    let said = until(here, "vm.toml", ("ledger", 4));
    assert!(said.iter().all(|said| said["wrong"] == 0), "{said:?}");
    running.end();
}

#[test]
fn a_kernel_that_was_replaced_does_not_keep_a_machine_from_beginning_anew() {
    if without_kvm() {
        return;
    }
    let here = folder();
    let here = here.path();
    fs::write(here.join("kernel"), vmm::guest::IMAGE).unwrap();
    describe(here, "vm.toml", ("do=spin", &[]));
    let text = fs::read_to_string(here.join("vm.toml")).unwrap();
    let text = text.replace("\"built-in\"", "\"kernel\"");
    let text = text.replace("confine.paths = [\".\"]\n", "");
    fs::write(here.join("vm.toml"), text).unwrap();
    let running = start(here, "vm.toml");
    fs::write(here.join("new"), "no kernel at all").unwrap();
    fs::rename(here.join("new"), here.join("kernel")).unwrap();
    diskferry(here, &["machine", "reset", "vm.toml"]).ok();
    assert_eq!(
        ask(here, "status", "vm.toml").ok().json()["state"],
        "running"
    );
    running.end();
}
