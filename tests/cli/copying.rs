//! Copies that go through streams and servers, that are interrupted and gone on with, and that go wrong.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use super::run::{command, diskferry, folder, on_disk, program};
use super::serving::Serving;

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32)
        .map(|i| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// A sparse raw disk of `size` bytes with data at its beginning and end.
fn raw(path: &Path, size: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(&bytes(3_000_000, 1), 5000).unwrap();
    file.write_all_at(&bytes(9000, 2), size - 9000).unwrap();
}

fn names(here: &Path) -> Vec<String> {
    let entries = fs::read_dir(here).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "run")
        .collect();
    names.sort();
    names
}

/// Runs the program with `input` on stdin; answers its exit code, stdout and stderr.
fn fed(here: &Path, words: &[&str], input: &[u8]) -> (Option<i32>, Vec<u8>, String) {
    let mut command = command(here, "diskferry", words);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = thread::scope(|scope| {
        // A program that wants no more ends the pipe.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), output.stdout, stderr)
}

#[test]
fn a_disk_goes_through_streams_both_ways() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"), 40 << 20);
    let whole = fs::read(here.join("a.img")).unwrap();
    for flags in [
        &[][..],
        &["--size", "40M"],
        &["--size", "40M", "--fixed"],
        &["--verify"],
    ] {
        for target in ["b.vhdx", "b.img"] {
            let words = [&["convert", "-", target, "--force"], flags].concat();
            let (code, _, stderr) = fed(here, &words, &whole);
            assert_eq!(code, Some(0), "{words:?}: {stderr}");
            diskferry(here, &["compare", "a.img", target]).ok();
            let info = diskferry(here, &["--json", "info", target]).ok().json();
            assert_eq!(info["virtual_size"], 40 << 20, "{words:?}");
            if !flags.contains(&"--fixed") {
                assert!(
                    on_disk(&here.join(target)) < 16 << 20,
                    "zeros of a stream are holes"
                );
            }
        }
        let (code, stdout, stderr) = fed(here, &["convert", "b.vhdx", "-"], &[]);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stdout == whole, "the stream is the disk");
    }
    let (code, stdout, stderr) = fed(here, &["convert", "-", "-"], &whole[..3_000_001]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout == whole[..3_000_001], "whatever its length is");
}

#[test]
fn a_stream_that_is_cut_off_or_too_long_makes_no_disk() {
    let here = folder();
    let here = here.path();
    let input = bytes(5_000_000, 3);
    for (words, input) in [
        (&["convert", "-", "b.vhdx", "--size", "5M"][..], &input[..]),
        (&["convert", "-", "b.vhdx", "--size", "4M"], &input),
        (&["convert", "-", "b.img", "--size", "4M"], &input),
        (&["convert", "-", "b.vhdx"], &[]),
    ] {
        let (code, _, stderr) = fed(here, words, input);
        assert_eq!(code, Some(1), "{words:?}: {stderr}");
        assert_eq!(names(here), [""; 0], "{words:?}");
    }
    let (code, stdout, _) = fed(here, &["convert", "-", "-", "--to", "vhdx"], &input);
    assert_eq!((code, stdout.len()), (Some(2), 0));
}

#[test]
fn an_export_of_a_server_is_a_source() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"), 40 << 20);
    diskferry(here, &["convert", "a.img", "a.vhdx"]).ok();
    let serving = Serving::start(here, &["a.vhdx", "--listen", "unix:nbd.socket"]);
    diskferry(here, &["convert", &serving.uri(), "b.vhdx", "--verify"]).ok();
    diskferry(here, &["compare", &serving.uri(), "b.vhdx"]).ok();
    drop(serving);
    diskferry(here, &["compare", "a.img", "b.vhdx"]).ok();
    assert_eq!(
        names(here)
            .iter()
            .filter(|name| name.contains("partial"))
            .count(),
        0
    );
}

/// Starts a copy of the disk `a.img` to `target` and stops it by `signal` when its journal tells of
/// something; answers how it ended.
fn interrupted(here: &Path, target: &str, signal: &str) -> Option<i32> {
    let words = ["convert", "a.img", target, "--verify"];
    let mut child: Child = command(here, "diskferry", &words)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let journal = here.join(format!("{target}.partial.json"));
    loop {
        let noted = fs::read(&journal).ok();
        let noted: Option<serde_json::Value> =
            noted.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if noted.is_some_and(|noted| noted["done"].as_u64() > Some(0)) {
            break;
        }
        let ended = child.try_wait().unwrap();
        assert_eq!(ended, None, "it ended before it noted anything");
        thread::sleep(Duration::from_millis(2));
    }
    program(here, "kill", &[signal, &child.id().to_string()]).ok();
    let status = child.wait().unwrap();
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();
    println!("{target} {signal}: {status}, {stderr}");
    assert!(!here.join(target).exists());
    status.code()
}

/// A disk of which more is copied than is noted at once.
fn large(path: &Path) -> u64 {
    let file = File::create(path).unwrap();
    let piece = bytes(1 << 20, 4);
    for at in 0..640 {
        file.write_all_at(&piece, at << 20).unwrap();
        file.write_all_at(&u64::to_le_bytes(at), at << 20).unwrap();
    }
    file.set_len(700 << 20).unwrap();
    700 << 20
}

#[test]
fn an_interrupted_copy_is_gone_on_with_and_is_the_same_in_the_end() {
    let here = folder();
    let here = here.path();
    large(&here.join("a.img"));
    for target in ["b.img", "b.vhdx"] {
        for (signal, code) in [("-INT", Some(130)), ("-KILL", None)] {
            let _ = fs::remove_file(here.join(target));
            assert_eq!(interrupted(here, target, signal), code);
            let partial = [
                format!("{target}.partial"),
                format!("{target}.partial.json"),
            ];
            assert!(
                partial.iter().all(|name| here.join(name).exists()),
                "{:?}",
                names(here)
            );
            let plan = diskferry(here, &["--json", "convert", "a.img", target, "--dry-run"]);
            let at = plan.ok().json()["resume_at"].as_u64().unwrap();
            assert!(at > 0);
            // Another disk is not made of it.
            diskferry(here, &["convert", "a.img", target, "--fixed"]).fails(1);
            let ran = diskferry(here, &["--json", "convert", "a.img", target, "--verify"]).ok();
            let summary = ran.json_lines().pop().unwrap();
            assert_eq!(summary["resumed_at"], at);
            assert!(
                summary["copied_bytes"].as_u64().unwrap() <= (640 << 20) - at,
                "{summary}"
            );
            assert!(
                partial.iter().all(|name| !here.join(name).exists()),
                "{:?}",
                names(here)
            );
            let format = target.rsplit('.').next().unwrap().replace("img", "raw");
            let words = ["compare", "-f", "raw", "-F", &format, "a.img", target];
            program(here, "qemu-img", &words).ok();
            if format == "vhdx" {
                diskferry(here, &["check", target]).ok();
            }
        }
    }
}

#[test]
fn a_copy_of_what_has_changed_meanwhile_is_not_gone_on_with() {
    let here = folder();
    let here = here.path();
    large(&here.join("a.img"));
    interrupted(here, "b.vhdx", "-KILL");
    let file = OpenOptions::new()
        .write(true)
        .open(here.join("a.img"))
        .unwrap();
    file.write_all_at(b"another", 12).unwrap();
    let refused = diskferry(here, &["convert", "a.img", "b.vhdx"]).fails(1);
    assert!(refused.stderr.contains("--restart"), "{}", refused.stderr);
    diskferry(here, &["convert", "a.img", "b.vhdx", "--restart"]).ok();
    diskferry(here, &["compare", "a.img", "b.vhdx"]).ok();
    // What is nobody's copy is not touched.
    fs::write(here.join("c.img.partial"), "precious").unwrap();
    diskferry(here, &["convert", "a.img", "c.img", "--restart"]).fails(1);
    assert_eq!(fs::read(here.join("c.img.partial")).unwrap(), b"precious");
}

#[test]
fn a_difference_is_found_and_told_where() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"), 40 << 20);
    diskferry(here, &["convert", "a.img", "b.vhdx"]).ok();
    let equal = diskferry(here, &["--json", "compare", "a.img", "b.vhdx"]).ok();
    let equal = equal.json_lines().pop().unwrap();
    assert_eq!(
        (&equal["equal"], equal["digest"].as_str().map(str::len)),
        (&true.into(), Some(64))
    );
    for at in [0, 4999, 5000, 2_000_000, 20 << 20, (40 << 20) - 1] {
        fs::copy(here.join("a.img"), here.join("c.img")).unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(here.join("c.img"))
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
        let ran = diskferry(here, &["--json", "compare", "b.vhdx", "c.img"]).fails(6);
        let found = ran.json_lines();
        let summary = found.iter().find(|line| line["type"] == "summary").unwrap();
        assert_eq!(summary["first_difference"], at);
        assert_eq!(summary["equal"], false);
    }
    // Zeros behind the end are no difference, and other bytes are.
    let file = OpenOptions::new()
        .write(true)
        .open(here.join("a.img"))
        .unwrap();
    file.set_len(50 << 20).unwrap();
    diskferry(here, &["compare", "a.img", "b.vhdx"]).ok();
    file.write_all_at(b"x", 45 << 20).unwrap();
    diskferry(here, &["compare", "b.vhdx", "a.img"]).fails(6);
    diskferry(here, &["compare", "a.img", "none.img"]).fails(1);
    diskferry(here, &["compare", "-", "a.img"]).fails(2);
}

/// Changes a byte of the only file whose name begins with `start`, as a bad disk would.
fn damage(here: &Path, start: &str, at: u64) -> bool {
    let found = names(here)
        .into_iter()
        .find(|name| name.starts_with(start) && !name.ends_with("json"));
    let Some(name) = found else { return false };
    let path = here.join(name);
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else {
        return false;
    };
    let mut byte = [0];
    // Once it is there, another write of it would be told by the journal.
    if file.read_exact_at(&mut byte, at).is_err() || byte == [0] {
        return false;
    }
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    true
}

#[test]
fn a_target_that_is_damaged_while_it_is_made_is_found_by_verify() {
    let here = folder();
    let here = here.path();
    let input = bytes(6 << 20, 9);
    let words = ["convert", "-", "b.img", "--verify"];
    let mut streamed = command(here, "diskferry", &words);
    let mut child = streamed
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&input[..3 << 20]).unwrap();
    while !damage(here, "b.img.partial-", (1 << 20) + 5) {
        assert_eq!(child.try_wait().unwrap(), None);
        thread::sleep(Duration::from_millis(2));
    }
    stdin.write_all(&input[3 << 20..]).unwrap();
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(6), "{:?}", names(here));
    assert_eq!(names(here), [""; 0], "a copy that is not the same goes");
    // The same for a copy that goes on: what was copied before is read again too.
    large(&here.join("a.img"));
    interrupted(here, "b.img", "-KILL");
    assert!(damage(here, "b.img.partial", 1000));
    let found = diskferry(here, &["convert", "a.img", "b.img", "--verify"]).fails(6);
    assert!(found.stderr.contains("byte 1000 "), "{}", found.stderr);
    assert_eq!(names(here), ["a.img"]);
}

#[test]
fn a_copy_may_be_a_larger_disk_than_its_source() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"), 40 << 20);
    for (source, target, size) in [
        ("a.img", "a.vhdx", "16T"),
        ("a.vhdx", "b.vhdx", "64T"),
        ("a.img", "b.img", "1T"),
    ] {
        let bytes = size[..size.len() - 1].parse::<u64>().unwrap() << 40;
        let words = [
            "--json", "--quiet", "convert", source, target, "--size", size,
        ];
        let said = diskferry(here, &words).ok().json_lines().pop().unwrap();
        assert_eq!(said["virtual_size"], bytes, "{said}");
        let info = diskferry(here, &["--json", "info", target]).ok().json();
        assert_eq!(info["virtual_size"], bytes, "{info}");
        if target != "b.img" {
            let same = ["--json", "create", "same.vhdx", size, "--force"];
            let same = diskferry(here, &same).ok().json();
            assert_eq!(info["block_size"], same["block_size"], "by the new size");
        }
        diskferry(here, &["compare", "a.img", target]).ok();
        let taken = on_disk(&here.join(target));
        assert!(taken < 192 << 20, "{words:?} has taken {taken}");
    }
    diskferry(
        here,
        &["convert", "a.img", "c.vhdx", "--size", "60M", "--verify"],
    )
    .ok();
    let words = ["convert", "a.img", "d.vhdx", "--size", "39M"];
    let less = diskferry(here, &words).fails(2);
    assert!(less.stderr.contains("has: 40M"), "{}", less.stderr);
    assert!(!here.join("d.vhdx").exists());
}
