//! Disks that travel as packages of volumes: written, cut off, harmed, and made into disks again.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use super::run::{Ran, command, diskferry, folder, program};

const MIB: u64 = 1 << 20;

/// Bytes that do not shrink.
pub(crate) fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len / 8).flat_map(|_| next().to_le_bytes()).collect()
}

/// A raw disk of 200 MiB and some bytes, with holes, zeros, text and noise.
fn raw_disk(here: &Path) {
    use std::os::unix::fs::FileExt as _;
    let disk = fs::File::create(here.join("a.img")).unwrap();
    disk.set_len(200 * MIB + 512).unwrap();
    disk.write_all_at(&noise(9 * MIB, 7), 3 * MIB + 4096)
        .unwrap();
    disk.write_all_at(&vec![b'x'; 5 << 20], 50 * MIB).unwrap();
    disk.write_all_at(&vec![0; 5 << 20], 60 * MIB).unwrap();
    disk.write_all_at(b"the end", 200 * MIB + 500).unwrap();
}

fn same(here: &Path, (format, disk): (&str, &str), (other_format, other): (&str, &str)) {
    let words = ["compare", "-f", format, "-F", other_format, disk, other];
    program(here, "qemu-img", &words).ok();
}

#[track_caller]
fn says(ran: &Ran, words: &[&str]) {
    for word in words {
        assert!(
            ran.stderr.contains(word),
            "{word} is missing in: {}",
            ran.stderr
        );
    }
}

#[test]
fn a_disk_of_any_format_comes_out_as_it_went_in_and_no_volume_is_larger_than_asked() {
    let here = folder();
    let here = here.path();
    raw_disk(here);
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "a.img", "a.qcow2"];
    program(here, "qemu-img", &convert).ok();
    diskferry(here, &["convert", "a.img", "a.vhdx"]).ok();
    for (format, disk) in [("raw", "a.img"), ("qcow2", "a.qcow2"), ("vhdx", "a.vhdx")] {
        let words = [
            "export",
            disk,
            "--to",
            format,
            "--volume-size",
            "3M",
            "--verify",
            "--json",
        ];
        let lines = diskferry(here, &words).ok().json_lines();
        let summary = lines.last().unwrap();
        let volumes = summary["volumes"].as_u64().unwrap();
        assert!((4..9).contains(&volumes), "{summary}");
        assert!(
            summary["stored_bytes"].as_u64().unwrap() < 10 * MIB,
            "{summary}"
        );
        for file in fs::read_dir(here.join(format)).unwrap() {
            let file = file.unwrap();
            assert!(file.metadata().unwrap().len() <= 3 * MIB, "{file:?}");
        }
        for (made_as, made) in [("vhdx", "b.vhdx"), ("raw", "b.img")] {
            diskferry(here, &["import", made, "--from", format, "--force"]).ok();
            same(here, (format, disk), (made_as, made));
        }
        program(here, "qemu-img", &["check", "b.vhdx"]).ok();
    }
    // What is there is not replaced unasked.
    diskferry(here, &["import", "b.vhdx", "--from", "raw"]).fails(1);
    diskferry(here, &["export", "a.img", "--to", "raw"]).fails(1);
}

#[test]
fn an_empty_disk_travels_too() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "16T"]).ok();
    diskferry(here, &["export", "a.vhdx", "--to", "p"]).ok();
    diskferry(here, &["import", "b.vhdx", "--from", "p"]).ok();
    let info = diskferry(here, &["info", "b.vhdx", "--json"]).ok().json();
    assert_eq!(info["virtual_size"], 16_u64 << 40);
    let checked = diskferry(here, &["import", "--check", "--from", "p", "--json"]).ok();
    let lines = checked.json_lines();
    let package = &lines.last().unwrap()["package"];
    assert_eq!(
        info["ids"]["data_write"], *package,
        "the disk says what it holds"
    );
}

/// Number and inode of each whole volume.
fn whole_volumes(folder: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder).into_iter().flatten() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        let number = name.strip_prefix("a.").unwrap_or_default();
        if number.bytes().all(|byte| byte.is_ascii_digit()) {
            found.push((name, file.metadata().unwrap().ino()));
        }
    }
    found.sort();
    found
}

#[test]
fn an_export_that_was_killed_goes_on_and_leaves_whole_volumes_as_they_are() {
    let here = folder();
    let here = here.path();
    fs::write(here.join("a.img"), noise(120 * MIB, 3)).unwrap();
    let words = ["export", "a.img", "--to", "p", "--volume-size", "2M"];
    let mut child = command(here, "diskferry", &words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let journal = here.join("p/a.export.json");
    while whole_volumes(&here.join("p")).len() < 5 {
        assert!(child.try_wait().unwrap().is_none(), "it was too fast");
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(journal.exists());
    let before = whole_volumes(&here.join("p"));
    // Half a package is none.
    let refused = diskferry(here, &["import", "b.img", "--from", "p"]).fails(1);
    says(&refused, &["no manifest"]);
    let lines = diskferry(here, &[&words[..], &["--json"]].concat())
        .ok()
        .json_lines();
    let resumed = lines.last().unwrap()["resumed_volumes"].as_u64().unwrap() as usize;
    assert!(resumed >= 4, "{lines:?}");
    let after = whole_volumes(&here.join("p"));
    assert_eq!(before[..resumed], after[..resumed]);
    assert!(!journal.exists());
    diskferry(here, &["import", "b.img", "--from", "p"]).ok();
    same(here, ("raw", "a.img"), ("raw", "b.img"));
}

#[test]
fn an_export_is_not_gone_on_with_from_a_disk_that_changed() {
    use std::os::unix::fs::FileExt as _;
    let here = folder();
    let here = here.path();
    fs::write(here.join("a.img"), noise(16 * MIB, 3)).unwrap();
    let words = ["export", "a.img", "--to", "p", "--volume-size", "2M"];
    // Something in the way of the third volume ends it.
    fs::create_dir_all(here.join("p/a.003")).unwrap();
    diskferry(here, &words).fails(1);
    fs::remove_dir(here.join("p/a.003")).unwrap();
    let disk = fs::OpenOptions::new()
        .write(true)
        .open(here.join("a.img"))
        .unwrap();
    disk.write_all_at(b"new", 15 * MIB).unwrap();
    says(
        &diskferry(here, &words).fails(1),
        &["was changed", "--restart"],
    );
    diskferry(here, &[&words[..], &["--restart"]].concat()).ok();
    diskferry(here, &["import", "b.img", "--from", "p"]).ok();
    same(here, ("raw", "a.img"), ("raw", "b.img"));
}

/// A package of at least four volumes in `p`.
fn package(here: &Path) {
    fs::write(here.join("a.img"), noise(8 * MIB, 5)).unwrap();
    diskferry(
        here,
        &["export", "a.img", "--to", "p", "--volume-size", "3M"],
    )
    .ok();
}

#[test]
fn damaged_missing_and_exchanged_volumes_are_named_and_nothing_is_installed() {
    let here = folder();
    let here = here.path();
    package(here);
    let volume = |number: u32| here.join(format!("p/a.{number:03}"));
    let refused = |words: &[&str]| {
        let ran = diskferry(here, &["import", "b.vhdx", "--from", "p"]).fails(3);
        says(&ran, words);
        let checked = diskferry(here, &["import", "--check", "--from", "p", "--json"]).fails(3);
        says(&checked, words);
        assert!(!here.join("b.vhdx").exists());
    };
    let sound = fs::read(volume(2)).unwrap();
    let mut harmed = sound.clone();
    harmed[1_500_000] ^= 1;
    fs::write(volume(2), &harmed).unwrap();
    refused(&["a.002 (bytes 2097152 to 4194304", "is damaged"]);
    fs::write(volume(2), &sound[..sound.len() - 1]).unwrap();
    refused(&["a.002", "is damaged"]);
    let third = fs::read(volume(3)).unwrap();
    fs::write(volume(2), &third).unwrap();
    fs::write(volume(3), &sound).unwrap();
    refused(&["a.002", "is volume 3 of its package"]);
    fs::remove_file(volume(2)).unwrap();
    fs::remove_file(volume(3)).unwrap();
    refused(&["a.002", "bytes 2097152 to 4194304", "a.003", "is missing"]);
    // The rest may come from elsewhere, and what was imported meanwhile is gone on with.
    fs::create_dir(here.join("q")).unwrap();
    fs::write(here.join("q/a.002"), &sound).unwrap();
    fs::write(here.join("q/a.003"), &third).unwrap();
    diskferry(here, &["import", "b.vhdx", "--from", "p", "--from", "q"]).ok();
    same(here, ("raw", "a.img"), ("vhdx", "b.vhdx"));
}

#[test]
fn media_may_come_one_after_another() {
    let here = folder();
    let here = here.path();
    package(here);
    let away = |number: u32| here.join(format!("away.{number}"));
    let there = |number: u32| here.join(format!("p/a.{number:03}"));
    let count = whole_volumes(&here.join("p")).len() as u32;
    for number in 1..=count {
        fs::rename(there(number), away(number)).unwrap();
    }
    let import = ["import", "b.vhdx", "--from", "p"];
    says(
        &diskferry(here, &import).fails(3),
        &["a.001", "a.002", "is missing"],
    );
    for number in 1..=count {
        assert!(!here.join("b.vhdx").exists());
        fs::rename(away(number), there(number)).unwrap();
        let ran = diskferry(here, &import);
        if number < count {
            let next = format!("a.{:03}", number + 1);
            says(&ran.fails(3), &[&next, "is missing", "are kept"]);
        } else {
            ran.ok();
        }
        fs::remove_file(there(number)).unwrap();
    }
    same(here, ("raw", "a.img"), ("vhdx", "b.vhdx"));
}

#[test]
fn a_manifest_that_was_changed_is_refused() {
    let here = folder();
    let here = here.path();
    package(here);
    let path = here.join("p/a.manifest");
    let text = fs::read_to_string(&path).unwrap();
    let harmed = text.replace("\"sector\": 512", "\"sector\": 999");
    assert_ne!(text, harmed);
    fs::write(&path, harmed).unwrap();
    says(
        &diskferry(here, &["import", "b.vhdx", "--from", "p"]).fails(3),
        &["a.manifest"],
    );
    fs::write(&path, &text).unwrap();
    let fingerprint = text.lines().next().unwrap().rsplit(' ').next().unwrap();
    let other = fingerprint.replace(|c: char| c != '0', "0");
    let words = |expected| ["import", "b.vhdx", "--from", "p", "--expect", expected];
    diskferry(here, &words(&other)).fails(6);
    diskferry(here, &words(fingerprint)).ok();
}

#[test]
fn an_import_that_was_killed_goes_on() {
    let here = folder();
    let here = here.path();
    fs::write(here.join("a.img"), noise(160 * MIB, 9)).unwrap();
    diskferry(
        here,
        &["export", "a.img", "--to", "p", "--volume-size", "8M"],
    )
    .ok();
    let words = ["import", "b.vhdx", "--from", "p"];
    for _ in 0..8 {
        let mut child = command(here, "diskferry", &words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(60));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    if !here.join("b.vhdx").exists() {
        diskferry(here, &words).ok();
    }
    same(here, ("raw", "a.img"), ("vhdx", "b.vhdx"));
    let left: Vec<_> = fs::read_dir(here)
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    assert!(
        !left
            .iter()
            .any(|name| name.to_string_lossy().contains("partial")),
        "{left:?}"
    );
}

/// A small file system in memory, taken away with the value.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    /// `None`, and said so, where one may not mount.
    fn mount(at: &'a Path, size: &str) -> Option<Self> {
        if program(Path::new("/"), "id", &["-u"]).ok().stdout != "0\n" {
            println!("skipped: only root may mount a small file system");
            return None;
        }
        fs::create_dir(at).unwrap();
        let options = format!("size={size}");
        let words = ["-t", "tmpfs", "-o", &options, "tmpfs", at.to_str().unwrap()];
        program(Path::new("/"), "mount", &words).ok();
        Some(Self(at))
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = command(Path::new("/"), "umount", &[Path::new("-l"), self.0]).status();
    }
}

#[test]
fn what_a_folder_has_no_room_for_goes_into_the_next_also_when_it_is_named_later() {
    let here = folder();
    let here = here.path();
    fs::write(here.join("a.img"), noise(20 * MIB, 17)).unwrap();
    let p = here.join("p");
    let Some(_small) = Small::mount(&p, "9M") else {
        return;
    };
    let words = [
        "export",
        "a.img",
        "--volume-size",
        "3M",
        "--json",
        "--to",
        "p",
    ];
    let refused = diskferry(here, &words).fails(1);
    says(&refused, &["No space", "--to"]);
    let words = [&words[..], &["--to", "q"]].concat();
    let lines = diskferry(here, &words).ok().json_lines();
    let summary = lines.last().unwrap();
    assert!(
        summary["resumed_volumes"].as_u64().unwrap() >= 1,
        "{summary}"
    );
    let (first, second) = (whole_volumes(&p), whole_volumes(&here.join("q")));
    assert!(
        !first.is_empty() && second.len() > 3,
        "{first:?} {second:?}"
    );
    diskferry(here, &["import", "b.img", "--from", "q"]).fails(3);
    diskferry(here, &["import", "b.img", "--from", "p", "--from", "q"]).ok();
    same(here, ("raw", "a.img"), ("raw", "b.img"));
}

#[test]
fn several_packages_in_a_folder_are_told_apart_by_their_name() {
    let here = folder();
    let here = here.path();
    package(here);
    diskferry(here, &["export", "a.img", "--to", "p", "--name", "other"]).ok();
    diskferry(here, &["import", "c.img", "--from", "p"]).fails(2);
    diskferry(here, &["import", "c.img", "--from", "p", "--name", "other"]).ok();
    same(here, ("raw", "a.img"), ("raw", "c.img"));
}
