//! The host's limits: how much room a new disk takes, and what is said when there is not enough.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::run::{Ran, command, diskferry, folder, on_disk, program};

const MIB: u64 = 1 << 20;

/// A mounted file system, taken away with the value.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// `None`, and said so, where it may not be mounted.
    fn new(at: &'a Path, words: &[&str]) -> Option<Self> {
        fs::create_dir(at).expect("made");
        let mounted = Command::new("mount").args(words).arg(at).output();
        let mounted = mounted.expect("mount can be run");
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr);
            println!("skipped: this host mounts nothing here: {why}");
            return None;
        }
        Some(Self(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Runs the program with files of at most `most` bytes, the signal as it is by default.
fn limited(here: &Path, most: u64, words: &[&str]) -> Ran {
    let most = format!("--fsize={most}");
    let binary = env!("CARGO_BIN_EXE_diskferry");
    program(here, "prlimit", &[&[&most, binary], words].concat())
}

fn names(here: &Path) -> Vec<String> {
    let entries = fs::read_dir(here).expect("a folder");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_new_disk_takes_as_much_room_as_it_was_told_to() {
    let here = folder();
    let here = here.path();
    for (mode, shape) in [("a.vhdx", &["--fixed"][..]), ("a.img", &[])] {
        for (how, least, most) in [
            ("off", 0, 8 * MIB),
            ("falloc", 64 * MIB, 80 * MIB),
            ("full", 64 * MIB, 80 * MIB),
        ] {
            let words = [
                "--json",
                "create",
                mode,
                "64M",
                "--force",
                "--preallocation",
                how,
            ];
            let lines = diskferry(here, &[&words, shape].concat()).ok().json_lines();
            let line = lines.last().expect("a result");
            assert_eq!(line["type"], "created");
            let taken = on_disk(&here.join(mode));
            assert!((least..most).contains(&taken), "{mode} {how}: {taken}");
            assert_eq!(line["size_on_disk"], taken);
            diskferry(here, &["check", mode]).ends(if mode == "a.vhdx" { 0 } else { 9 });
            program(here, "qemu-img", &["info", mode]).ok();
            fs::remove_file(here.join(mode)).unwrap();
        }
    }
    // As it was: a fixed disk has its room, a dynamic one takes it as it is written.
    diskferry(here, &["create", "b.vhdx", "64M", "--fixed"]).ok();
    assert!(on_disk(&here.join("b.vhdx")) >= 64 * MIB);
    let refused = ["create", "c.vhdx", "64M", "--preallocation", "falloc"];
    let refused = diskferry(here, &refused).fails(2);
    assert!(refused.stderr.contains("--fixed"), "{}", refused.stderr);
    assert_eq!(names(here), ["b.vhdx"]);
}

#[test]
fn a_disk_for_which_files_may_not_be_large_enough_is_not_begun() {
    let here = folder();
    let here = here.path();
    for words in [
        &["a.vhdx", "64M", "--fixed"][..],
        &["a.vhdx", "64M", "--fixed", "--preallocation", "off"],
        &["a.vhdx", "64M", "--fixed", "--preallocation", "full"],
        &["a.img", "64M"],
        &["a.img", "64M", "--preallocation", "full"],
    ] {
        let refused = limited(here, 20 * MIB, &[&["create"], words].concat()).fails(1);
        assert!(refused.stderr.contains("ulimit -f"), "{}", refused.stderr);
        assert!(names(here).is_empty(), "{words:?}: {:?}", names(here));
    }
    // A dynamic disk can be had, with a word about what it cannot become.
    let made = limited(here, 20 * MIB, &["create", "b.vhdx", "64M"]).ok();
    assert!(made.stderr.contains("holds no file of"), "{}", made.stderr);
    let made = diskferry(here, &["create", "c.vhdx", "64M"]).ok();
    assert_eq!(made.stderr, "");
}

#[test]
fn a_disk_that_may_not_be_written_to_its_end_is_not_opened_for_writing() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "64M", "--fixed"]).ok();
    for words in [
        &["resize", "a.vhdx", "128M"][..],
        &[
            "metadata",
            "set",
            "a.vhdx",
            "6f1de1f2-5a3e-4c9b-8f0e-3d1d4ac12a01",
            "--text",
            "a",
        ],
        &["serve", "a.vhdx", "--listen", "unix:s"],
    ] {
        let before = fs::read(here.join("a.vhdx")).unwrap();
        let refused = limited(here, 20 * MIB, words).fails(1);
        assert!(refused.stderr.contains("ulimit -f"), "{}", refused.stderr);
        assert!(before == fs::read(here.join("a.vhdx")).unwrap());
    }
    limited(here, 20 * MIB, &["map", "a.vhdx"]).ok();
}

#[test]
fn a_disk_that_finds_no_room_to_become_larger_keeps_its_size() {
    let here = folder();
    let here = here.path();
    for (disk, shape) in [("a.vhdx", &["--fixed"][..]), ("a.img", &[])] {
        diskferry(here, &[&["create", disk, "64M"], shape].concat()).ok();
        let refused = limited(here, 100 * MIB, &["resize", disk, "300M"]).fails(1);
        assert!(refused.stderr.contains("ulimit -f"), "{}", refused.stderr);
        let info = diskferry(here, &["--json", "info", disk]).ok().json();
        assert_eq!(info["virtual_size"], 64 * MIB);
    }
    diskferry(here, &["check", "a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "-q", "a.vhdx"]).ok();
    // And so does one that is converted: nothing stands under its name, and what was copied so far is
    // kept to be gone on with where that makes sense.
    fs::write(here.join("b.img"), vec![7; 32 << 20]).unwrap();
    for target in ["c.vhdx", "c.img"] {
        let refused = limited(here, 20 * MIB, &["convert", "b.img", target]).fails(1);
        assert!(refused.stderr.contains("ulimit -f"), "{}", refused.stderr);
    }
    let left = [
        "a.img",
        "a.vhdx",
        "b.img",
        "c.vhdx.partial",
        "c.vhdx.partial.json",
    ];
    assert_eq!(names(here), left);
    diskferry(here, &["convert", "b.img", "c.vhdx"]).ok();
    diskferry(here, &["compare", "b.img", "c.vhdx"]).ok();
    assert_eq!(names(here), ["a.img", "a.vhdx", "b.img", "c.vhdx"]);
}

#[test]
fn a_host_without_room_is_told_before_anything_is_taken() {
    let here = folder();
    let here = here.path();
    let small = here.join("small");
    let words = ["-t", "tmpfs", "-o", "size=40m", "tmpfs"];
    let Some(mounted) = Mounted::new(&small, &words) else {
        return;
    };
    for words in [
        &["small/a.vhdx", "64M", "--fixed"][..],
        &["small/a.vhdx", "64M", "--fixed", "--preallocation", "full"],
        &["small/a.img", "64M", "--preallocation", "falloc"],
    ] {
        let refused = diskferry(here, &[&["create"], words].concat()).fails(1);
        assert!(refused.stderr.contains("MiB free"), "{}", refused.stderr);
        assert!(names(&small).is_empty());
    }
    let words = [
        "create",
        "small/a.vhdx",
        "64M",
        "--fixed",
        "--preallocation",
        "off",
    ];
    diskferry(here, &words).ok();
    diskferry(
        here,
        &["create", "small/b.img", "20M", "--preallocation", "full"],
    )
    .ok();
    drop(mounted);
}

#[test]
fn the_largest_file_of_ext4_is_known_before_it_is_reached() {
    let here = folder();
    let here = here.path();
    let image = fs::File::create(here.join("image")).unwrap();
    image.set_len(300 * MIB).unwrap();
    let path = command(here, "mkfs.ext4", &["-q", "-b", "4096", "image"])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .status();
    assert!(path.expect("e2fsprogs is installed").success());
    let ext4 = here.join("ext4");
    let image = here.join("image");
    let Some(mounted) = Mounted::new(&ext4, &["-o", "loop", image.to_str().unwrap()]) else {
        return;
    };
    let before = names(&ext4);
    let fixed = [
        "create",
        "ext4/a.vhdx",
        "20T",
        "--fixed",
        "--preallocation",
        "off",
    ];
    let refused = diskferry(here, &fixed).fails(1);
    assert!(
        refused.stderr.contains("cannot hold a file of"),
        "{}",
        refused.stderr
    );
    diskferry(here, &["create", "ext4/a.img", "17T"]).fails(1);
    assert_eq!(names(&ext4), before);
    let made = diskferry(here, &["create", "ext4/a.vhdx", "64T"]).ok();
    assert!(made.stderr.contains("holds no file of"), "{}", made.stderr);
    let made = diskferry(here, &["create", "ext4/b.vhdx", "15T"]).ok();
    assert_eq!(made.stderr, "");
    diskferry(here, &["create", "ext4/c.img", "15T"]).ok();
    diskferry(here, &["resize", "ext4/c.img", "17T"]).fails(1);
    let info = diskferry(here, &["--json", "info", "ext4/c.img"])
        .ok()
        .json();
    assert_eq!(info["virtual_size"], 15_u64 << 40);
    drop(mounted);
}
