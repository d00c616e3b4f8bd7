//! Two writers never meet: among our own processes, and with programs of QEMU, both ways.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::run::{command, diskferry, folder, program};
use super::serving::Serving;

/// A program of QEMU that has a disk open until it is told or killed.
struct Holder {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Holder {
    /// `qemu-io` with these words, after it has read from the disk.
    fn qemu_io(here: &Path, words: &[&str]) -> Self {
        let mut child = command(here, "qemu-io", words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io can be run; scripts/setup.sh installs it");
        let stdin = child.stdin.as_mut().expect("a pipe");
        stdin.write_all(b"read 0 512\n").expect("it listens");
        // It passes on what it has printed when it asks for the next line, and then waits for that.
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("UTF-8");
        assert!(line.contains("read 512/512"), "{line}");
        Self { child, stdout }
    }

    fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
        drop(self.stdout);
    }
}

fn serve(here: &Path, words: &[&str]) -> Serving {
    let listen = format!("unix:{}", here.join("s").display());
    let words: Vec<&str> = words.iter().copied().chain(["--listen", &listen]).collect();
    Serving::start(here, &words)
}

fn disks(here: &Path) {
    for disk in ["a.vhdx", "a.img"] {
        diskferry(here, &["create", disk, "64M"]).ok();
    }
}

fn format_of(disk: &str) -> &str {
    if Path::new(disk).extension() == Some("vhdx".as_ref()) {
        "vhdx"
    } else {
        "raw"
    }
}

#[test]
fn programs_of_qemu_refuse_a_disk_that_is_served() {
    let here = folder();
    let here = here.path();
    disks(here);
    for disk in ["a.vhdx", "a.img"] {
        let format = format_of(disk);
        let read = ["-r", "-f", format, "-c", "read 0 512", disk];
        let write = ["-f", format, "-c", "write -P 7 0 512", disk];
        let copy = ["convert", "-f", format, "-O", "raw", disk, "copy.img"];
        let socket = here.join("nobody").display().to_string();
        let share = ["-t", "-f", format, "-k", &socket, disk];
        let serving = serve(here, &[disk]);
        for (name, words) in [
            ("qemu-io", &read[..]),
            ("qemu-io", &write),
            ("qemu-img", &copy),
            ("qemu-nbd", &share),
        ] {
            let refused = program(here, name, words).ends(1);
            assert!(refused.stderr.contains("lock"), "{}", refused.stderr);
        }
        serving.end();
        let reading = serve(here, &[disk, "--read-only"]);
        program(here, "qemu-io", &read).ok();
        let refused = program(here, "qemu-io", &write).ends(1);
        assert!(refused.stderr.contains("lock"), "{}", refused.stderr);
        reading.end();
        program(here, "qemu-io", &write).ok();
    }
}

#[test]
fn a_disk_that_a_program_of_qemu_writes_is_refused_until_that_is_gone() {
    let here = folder();
    let here = here.path();
    disks(here);
    for disk in ["a.vhdx", "a.img"] {
        let holder = Holder::qemu_io(here, &["-f", format_of(disk), disk]);
        let every = [
            &["serve", disk, "--listen", "unix:s"][..],
            &["serve", disk, "--read-only", "--listen", "unix:s"],
            &["map", disk],
            &["convert", disk, "copy.img"],
            &["resize", disk, "128M"],
        ];
        let vhdx = [
            &["check", disk][..],
            &["compact", disk],
            &["snapshot", disk, "child.vhdx"],
            &["create", "child.vhdx", "--parent", disk],
        ];
        let vhdx = vhdx.iter().filter(|_| disk == "a.vhdx");
        for words in every.iter().chain(vhdx) {
            let refused = diskferry(here, words).fails(5);
            let named = format!("in use by qemu-io (process {})", holder.child.id());
            assert!(refused.stderr.contains(&named), "{}", refused.stderr);
        }
        holder.kill();
        diskferry(here, &["resize", disk, "128M"]).ok();
    }
}

#[test]
fn what_a_program_of_qemu_reads_may_be_read_and_not_written() {
    let here = folder();
    let here = here.path();
    disks(here);
    for disk in ["a.vhdx", "a.img"] {
        let holder = Holder::qemu_io(here, &["-r", "-f", format_of(disk), disk]);
        diskferry(here, &["info", disk]).ok();
        serve(here, &[disk, "--read-only"]).end();
        // A raw disk is opened by `qemu-io` so that others may write it; a VHDX is not.
        if disk == "a.vhdx" {
            diskferry(here, &["serve", disk, "--listen", "unix:s"]).fails(5);
        }
        holder.kill();
    }
}

#[test]
fn a_disk_is_refused_while_qemu_nbd_serves_it() {
    let here = folder();
    let here = here.path();
    disks(here);
    let socket = here.join("q");
    let mut serving = command(here, "qemu-nbd", &["-t", "-f", "vhdx", "-k"])
        .args([socket.as_path(), Path::new("a.vhdx")])
        .spawn()
        .expect("qemu-nbd can be run; scripts/setup.sh installs it");
    // It listens before it has opened the disk, and greets after.
    let patience = Instant::now() + Duration::from_secs(30);
    let greeting = loop {
        if let Ok(mut stream) = UnixStream::connect(&socket) {
            let mut greeting = [0; 8];
            stream.read_exact(&mut greeting).expect("a greeting");
            break greeting;
        }
        assert!(Instant::now() < patience, "qemu-nbd does not listen");
        thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(&greeting, b"NBDMAGIC");
    diskferry(here, &["serve", "a.vhdx", "--listen", "unix:s"]).fails(5);
    serving.kill().expect("it runs");
    serving.wait().expect("it ends");
    serve(here, &["a.vhdx"]).end();
}

#[test]
fn a_second_server_is_refused_until_the_first_one_is_gone() {
    let here = folder();
    let here = here.path();
    disks(here);
    for disk in ["a.vhdx", "a.img"] {
        let first = serve(here, &[disk]);
        for words in [
            &["serve", disk, "--listen", "unix:t"][..],
            &["serve", disk, "--read-only", "--listen", "unix:t"],
            &["convert", disk, "copy.img"],
        ] {
            diskferry(here, words).fails(5);
        }
        first.kill();
        serve(here, &[disk]).end();
    }
}

#[test]
fn the_parent_of_a_disk_in_use_may_be_read_and_not_written() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "64M"]).ok();
    for child in ["b.vhdx", "c.vhdx"] {
        diskferry(here, &["create", child, "--parent", "a.vhdx"]).ok();
    }
    let serving = serve(here, &["b.vhdx"]);
    program(
        here,
        "qemu-io",
        &["-r", "-f", "vhdx", "-c", "read 0 512", "a.vhdx"],
    )
    .ok();
    let write = ["-f", "vhdx", "-c", "write -P 7 0 512", "a.vhdx"];
    let refused = program(here, "qemu-io", &write).ends(1);
    assert!(refused.stderr.contains("lock"), "{}", refused.stderr);
    let refused = diskferry(here, &["commit", "c.vhdx", "--force"]);
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    let named = format!("in use by diskferry (process {})", serving.pid());
    assert!(refused.stderr.contains(&named), "{}", refused.stderr);
    serving.end();
}
