//! Packages of what changed: onto what an earlier package left, and onto nothing else.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use blockserver::nbd::blocking_client::BlockingClient;
use serde_json::Value;

use super::packages::noise;
use super::run::{command, diskferry, folder, program};
use super::serving::Serving;

const MIB: u64 = 1 << 20;

/// Writes to the disk while it is served.
pub(crate) fn served(here: &Path, disk: &str, write: impl FnOnce(&mut BlockingClient)) {
    let listen = format!("unix:{}/s", here.display());
    let serving = Serving::start(here, &[disk, "--listen", &listen]);
    let mut client = BlockingClient::connect(&serving.uri().parse().unwrap()).unwrap();
    write(&mut client);
    drop(client);
    serving.end();
}

pub(crate) fn write_noise(client: &mut BlockingClient, offset: u64, len: u64) {
    for (number, piece) in noise(len, offset + 1).chunks(1 << 20).enumerate() {
        client
            .write(offset + number as u64 * MIB, piece, false)
            .unwrap();
    }
}

/// A disk whose changes are tracked, with `len` bytes of noise.
pub(crate) fn tracked(here: &Path, len: u64) {
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    diskferry(here, &["track", "on", "a.vhdx", "--granularity", "4K"]).ok();
    served(here, "a.vhdx", |client| write_noise(client, 10 * MIB, len));
}

fn export(here: &Path, words: &[&str]) -> Value {
    let words = [
        &["export", "a.vhdx", "--json", "--volume-size", "3M"],
        words,
    ]
    .concat();
    let lines = diskferry(here, &words).ok().json_lines();
    lines.last().unwrap().clone()
}

fn import(here: &Path, package: &str) -> Value {
    let words = ["import", "b.vhdx", "--from", package, "--json"];
    diskferry(here, &words)
        .ok()
        .json_lines()
        .last()
        .unwrap()
        .clone()
}

pub(crate) fn same(here: &Path) {
    let words = ["compare", "-f", "vhdx", "-F", "vhdx", "a.vhdx", "b.vhdx"];
    program(here, "qemu-img", &words).ok();
    program(here, "qemu-img", &["check", "b.vhdx"]).ok();
}

/// Three packages: all, and twice what changed; the disk has the last.
fn three_packages(here: &Path) {
    tracked(here, 16 * MIB);
    export(here, &["--to", "one"]);
    served(here, "a.vhdx", |client| {
        write_noise(client, 100 * MIB, 4 * MIB);
        client.write(11 * MIB, &[0; 4096], false).unwrap();
        client.write(900 * MIB, &[3; 512], false).unwrap();
    });
    let two = export(here, &["--to", "two", "--since", "last"]);
    let stored = two["stored_bytes"].as_u64().unwrap();
    assert!((4 * MIB..5 * MIB).contains(&stored), "{two}");
    served(here, "a.vhdx", |client| {
        client.write(100 * MIB, &[9; 8192], false).unwrap();
    });
    let three = export(here, &["--to", "three", "--since", "last"]);
    assert_eq!(three["builds_on"], two["package"]);
}

#[test]
fn changes_are_applied_upon_what_they_build_and_twice_is_harmless() {
    let here = folder();
    let here = here.path();
    three_packages(here);
    import(here, "one");
    // One in between is missing.
    let refused = diskferry(here, &["import", "b.vhdx", "--from", "three"]).fails(6);
    assert!(
        refused.stderr.contains("is not what package"),
        "{}",
        refused.stderr
    );
    for package in ["two", "three"] {
        assert_eq!(import(here, package)["already"], false);
        assert_eq!(import(here, package)["already"], true);
    }
    same(here);
    // An older one is not applied either.
    diskferry(here, &["import", "b.vhdx", "--from", "two"]).fails(6);
    same(here);
    diskferry(here, &["import", "new.vhdx", "--from", "two"]).fails(1);
    diskferry(here, &["import", "b.img", "--from", "two"]).fails(9);
}

#[test]
fn a_disk_that_was_written_since_is_refused_whoever_wrote_it() {
    let here = folder();
    let here = here.path();
    three_packages(here);
    import(here, "one");
    program(here, "qemu-io", &["-c", "write -P 1 0 512", "b.vhdx"]).ok();
    diskferry(here, &["import", "b.vhdx", "--from", "two"]).fails(6);
    diskferry(here, &["import", "b.vhdx", "--from", "one", "--force"]).ok();
    served(here, "b.vhdx", |client| {
        client.write(0, &[1; 512], true).unwrap();
    });
    diskferry(here, &["import", "b.vhdx", "--from", "two"]).fails(6);
    diskferry(here, &["import", "b.vhdx", "--from", "one", "--force"]).ok();
    // What changes only how it is kept does no harm.
    diskferry(here, &["compact", "b.vhdx"]).ok();
    served(here, "b.vhdx", |client| {
        client.read(0, &mut [0; 512]).unwrap();
    });
    import(here, "two");
    import(here, "three");
    same(here);
}

#[test]
fn a_package_of_changes_that_is_damaged_leaves_the_disk_as_it_was() {
    let here = folder();
    let here = here.path();
    three_packages(here);
    import(here, "one");
    let volume = here.join("two/a.002");
    let sound = fs::read(&volume).unwrap();
    let mut harmed = sound.clone();
    harmed[1_000_000] ^= 1;
    fs::write(&volume, harmed).unwrap();
    let before = fs::read(here.join("b.vhdx")).unwrap();
    let refused = diskferry(here, &["import", "b.vhdx", "--from", "two"]).fails(3);
    assert!(refused.stderr.contains("a.002"), "{}", refused.stderr);
    assert!(
        before == fs::read(here.join("b.vhdx")).unwrap(),
        "it was written to"
    );
    fs::write(&volume, sound).unwrap();
    import(here, "two");
    import(here, "three");
    same(here);
}

#[test]
fn an_import_of_changes_that_was_killed_is_never_half_a_disk_and_goes_on() {
    let here = folder();
    let here = here.path();
    tracked(here, 4 * MIB);
    export(here, &["--to", "one"]);
    import(here, "one");
    served(here, "a.vhdx", |client| {
        write_noise(client, 100 * MIB, 80 * MIB);
    });
    let two = export(here, &["--to", "two", "--since", "last"]);
    let version = || {
        let info = diskferry(here, &["info", "b.vhdx", "--json"]).ok().json();
        (info["ids"]["data_write"].clone(), info["mark"].clone())
    };
    served(here, "a.vhdx", |client| {
        client.write(100 * MIB, &[9; 8192], false).unwrap();
    });
    export(here, &["--to", "three", "--since", "last"]);
    let (base, _) = version();
    let applying = package::applying(two["package"].as_str().unwrap().parse().unwrap());
    let words = ["import", "b.vhdx", "--from", "two"];
    let mut incomplete = 0;
    for wait in 0..40 {
        let mut child = command(here, "diskferry", &words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(wait * 12));
        child.kill().unwrap();
        child.wait().unwrap();
        let (now, mark) = version();
        if mark == "incomplete" {
            incomplete += 1;
            let refused = diskferry(here, &["serve", "b.vhdx", "--listen", "unix:u"]).fails(5);
            assert!(refused.stderr.contains("incomplete"), "{}", refused.stderr);
            // Half of one is nothing that the next builds upon.
            diskferry(here, &["import", "b.vhdx", "--from", "three"]).fails(6);
        } else {
            let known = [&base, &two["package"], &applying.to_string().into()];
            assert!(known.contains(&&now), "{now}");
        }
    }
    println!("{incomplete} of 40 were cut off in the middle");
    import(here, "two");
    import(here, "three");
    same(here);
}

#[test]
fn a_disk_that_changed_its_size_does_so_at_the_other_site() {
    let here = folder();
    let here = here.path();
    tracked(here, 4 * MIB);
    export(here, &["--to", "one"]);
    import(here, "one");
    for (number, size) in ["2G", "512M", "768M"].iter().enumerate() {
        diskferry(here, &["resize", "a.vhdx", size, "--discard-data"]).ok();
        served(here, "a.vhdx", |client| {
            client.write(500 * MIB, &[7; 4096], false).unwrap();
        });
        let folder = format!("p{number}");
        export(here, &["--to", &folder, "--since", "last"]);
        import(here, &folder);
        assert_eq!(import(here, &folder)["already"], true);
        same(here);
    }
}

#[test]
fn only_a_checkpoint_that_an_export_took_can_be_built_upon() {
    let here = folder();
    let here = here.path();
    tracked(here, MIB);
    diskferry(here, &["checkpoint", "add", "a.vhdx", "monday"]).ok();
    let since = |name| ["export", "a.vhdx", "--to", "p", "--since", name];
    diskferry(here, &since("monday")).fails(2);
    diskferry(here, &since("last")).fails(2);
    let none = export(here, &["--to", "none", "--no-checkpoint"]);
    assert!(none["checkpoint"].is_null(), "{none}");
    diskferry(here, &since("last")).fails(2);
    let one = export(here, &["--to", "one"]);
    let name = one["checkpoint"].as_str().unwrap().to_owned();
    assert_eq!(
        export(here, &since(&name)[2..])["builds_on"],
        one["package"]
    );
    diskferry(here, &["create", "b.vhdx", "1G"]).ok();
    diskferry(here, &["export", "b.vhdx", "--to", "q", "--since", "last"]).fails(9);
}

#[test]
fn a_disk_in_use_is_refused_and_a_moment_of_it_is_exported() {
    let here = folder();
    let here = here.path();
    tracked(here, 4 * MIB);
    let listen = format!("unix:{}/s", here.display());
    let serving = Serving::start(here, &["a.vhdx", "--listen", &listen]);
    let mut client = BlockingClient::connect(&serving.uri().parse().unwrap()).unwrap();
    let refused = diskferry(here, &["export", "a.vhdx", "--to", "p"]).fails(5);
    assert!(
        refused.stderr.contains("diskferry snapshot"),
        "{}",
        refused.stderr
    );
    diskferry(here, &["snapshot", "a.vhdx", "now.vhdx"]).ok();
    client.write(10 * MIB, &[1; 4096], true).unwrap();
    export(here, &["--to", "p", "--no-checkpoint"]);
    client.write(12 * MIB, &[1; 4096], true).unwrap();
    drop(client);
    serving.end();
    import(here, "p");
    same(here);
}

#[test]
fn an_export_that_starts_over_leaves_no_checkpoint_of_its_first_try() {
    let here = folder();
    let here = here.path();
    tracked(here, 16 * MIB);
    // Something in the way of the third volume ends it.
    fs::create_dir_all(here.join("p/a.003")).unwrap();
    let words = ["export", "a.vhdx", "--to", "p", "--volume-size", "3M"];
    diskferry(here, &words).fails(1);
    fs::remove_dir(here.join("p/a.003")).unwrap();
    let one = export(here, &["--to", "p", "--restart"]);
    let list = ["checkpoint", "list", "a.vhdx", "--json"];
    let listed = diskferry(here, &list).ok().json_lines();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["name"], one["checkpoint"]);
}
