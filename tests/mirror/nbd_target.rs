//! Disks that move to NBD servers of other makers while a client writes to them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use blockserver::nbd::CommandFlags;
use blockserver::nbd::blocking_client::BlockingClient;
use mirror::record::State;

use super::faults::seed;
use super::ledger::{BLOCK, Ledger, Promise, Random};
use super::load::{Area, Load, address, verify};
use super::process::STUCK;
use super::site::Sites;
use crate::run::{Ran, command, program};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;
/// Where no load writes.
const ASIDE: u64 = SIZE - 2 * MIB;

/// A server of another maker, with `target.img` behind it.
pub(crate) struct Other {
    words: Vec<String>,
    folder: PathBuf,
    child: Option<Child>,
}

impl Other {
    /// `qemu-nbd`, which lets many clients in.
    pub(crate) fn qemu(here: &Path) -> Self {
        let words = ["qemu-nbd", "-t", "-f", "raw", "--shared=8", "-k"];
        Self::start(here, &words, &["target.img"])
    }

    /// `nbdkit` with these words before those of its plugin for files.
    pub(crate) fn nbdkit(here: &Path, filters: &[&str], more: &[&str]) -> Self {
        let words = [&["nbdkit", "-f"], filters, &["-U"]].concat();
        Self::start(here, &words, &[&["file", "target.img"], more].concat())
    }

    /// `nbdkit` with a plugin that is these scripts.
    pub(crate) fn scripts(here: &Path, scripts: &[&str]) -> Self {
        let words = [&["eval"], scripts].concat();
        Self::start(here, &["nbdkit", "-f", "-U"], &words)
    }

    /// A program that is told the path of its socket between those words.
    fn start(here: &Path, before: &[&str], after: &[&str]) -> Self {
        let socket = here.join("other").display().to_string();
        let words = [before, &[&socket], after].concat();
        let mut other = Self {
            words: words.iter().map(|&word| word.to_owned()).collect(),
            folder: here.to_owned(),
            child: None,
        };
        other.run();
        other
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("other")
    }

    pub(crate) fn at(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    /// Starts it (again), and waits until it greets.
    pub(crate) fn run(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let (name, words) = self.words.split_first().expect("a program");
        let child = command(&self.folder, name, words).spawn();
        self.child = Some(child.expect("it can be run; scripts/setup.sh installs it"));
        let patience = Instant::now() + STUCK;
        loop {
            let mut greeting = [0; 8];
            if let Ok(mut stream) = UnixStream::connect(self.socket())
                && stream.read_exact(&mut greeting).is_ok()
                && &greeting == b"NBDMAGIC"
            {
                return;
            }
            assert!(Instant::now() < patience, "{name} does not listen");
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn area(seed: u64) -> Area {
    Area {
        seed,
        disk: SIZE,
        regions: 3,
        length: 16 * MIB,
        rate: 800,
    }
}

/// A disk that is served and written, with something in it, and a file full of something else for the other server.
fn busy() -> (Sites, Load) {
    let mut sites = Sites::new("a.vhdx", &["256M", "--block-size", "1M"]);
    let mut there = File::create(sites.here().join("target.img")).expect("a file");
    let something = vec![0xa5; MIB as usize];
    for _ in 0..SIZE / MIB {
        there.write_all(&something).expect("room");
    }
    sites.serve();
    let load = Load::start(&sites.at_source(), area(5), Ledger::default());
    load.goes_on(300);
    (sites, load)
}

fn start(sites: &Sites, to: &str, words: &[&str]) -> Ran {
    let start: &[&str] = &["mirror", "start", "a.vhdx", "--to", to];
    sites.run(&[start, words].concat())
}

/// Nothing is where nothing was written.
#[track_caller]
pub(crate) fn is_zero(at: &str, offset: u64) {
    let mut client = BlockingClient::connect(&address(at)).expect("it is served");
    let mut found = vec![1; MIB as usize];
    client.read(offset, &mut found).expect("it can be read");
    assert!(found.iter().all(|byte| *byte == 0), "at {offset}");
}

/// What has to be true once the disk has moved to `other`: of what the client was told, of the rest, of the record.
#[track_caller]
fn has_moved(sites: &mut Sites, other: &Other, load: Load) {
    let status = sites.moved();
    println!("{status}");
    assert!(status["not_promised"].is_string(), "{status}");
    load.goes_on(200);
    let ledger = load.well();
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
    verify(&other.at(), &ledger, Promise::Acknowledged);
    is_zero(&other.at(), ASIDE);
    is_zero(&other.at(), 40 * MIB);
    let (source, _) = sites.records();
    let to = other.at();
    assert!(
        matches!(&source, Some(State::Released { epoch: 2, to: at, .. }) if *at == to),
        "{source:?}"
    );
    // Whoever serves what was left here sends its clients there.
    sites.source.take().expect("it runs").kill();
    let refused = program(sites.here(), "qemu-img", &["info", "a.vhdx"]);
    assert_ne!(refused.code, 0, "{}", refused.stdout);
    sites.serve();
    assert_eq!(sites.moved()["stage"], "forwarding");
    let load = Load::start(&sites.at_source(), area(6), ledger);
    load.goes_on(100);
    let ledger = load.well();
    verify(&other.at(), &ledger, Promise::Acknowledged);
    sites.source.take().expect("it runs").end();
}

#[test]
fn a_busy_disk_moves_to_qemu_nbd_and_its_client_never_notices() {
    let (mut sites, load) = busy();
    let other = Other::qemu(sites.here());
    start(&sites, &other.at(), &["--wait"]).ends(0);
    has_moved(&mut sites, &other, load);
}

#[test]
fn a_busy_disk_moves_to_nbdkit_over_several_connections() {
    let (mut sites, load) = busy();
    let other = Other::nbdkit(sites.here(), &[], &[]);
    start(&sites, &other.at(), &["--wait"]).ends(0);
    has_moved(&mut sites, &other, load);
}

#[test]
fn a_server_that_knows_neither_zeroes_nor_durable_writes_nor_extents_takes_a_disk_and_its_clients()
{
    let (mut sites, load) = busy();
    let filters = [
        "--filter=noextents",
        "--filter=nozero",
        "--filter=fua",
        "--filter=multi-conn",
    ];
    let modes = ["zeromode=none", "multi-conn-mode=disable"];
    let other = Other::nbdkit(sites.here(), &filters, &modes);
    start(&sites, &other.at(), &["--manual"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    sites.mirror("cutover").ends(0);
    sites.moved();
    let mut client = BlockingClient::connect(&address(&sites.at_source())).expect("it is served");
    client
        .write(ASIDE - MIB, &[7; 3 * BLOCK], true)
        .expect("a durable write");
    let durable = CommandFlags {
        fua: true,
        ..CommandFlags::default()
    };
    client
        .zeroes(ASIDE - MIB, 2 * BLOCK as u64, durable)
        .expect("zeroes");
    client
        .zeroes(ASIDE, 2 * MIB, CommandFlags::default())
        .expect("many zeroes");
    let mut found = vec![1; 4 * BLOCK];
    let mut there = BlockingClient::connect(&address(&other.at())).expect("it is served");
    there.read(ASIDE - MIB, &mut found).expect("it is read");
    assert!(found[..2 * BLOCK].iter().all(|byte| *byte == 0));
    assert!(found[2 * BLOCK..3 * BLOCK].iter().all(|byte| *byte == 7));
    drop((client, there));
    has_moved(&mut sites, &other, load);
}

#[test]
fn a_server_that_is_killed_while_it_is_copied_to_gets_all_that_it_may_have_lost() {
    let (mut sites, load) = busy();
    let mut other = Other::qemu(sites.here());
    start(&sites, &other.at(), &["--manual", "--rate", "20M"]).ends(0);
    for wait in [400, 3000] {
        thread::sleep(Duration::from_millis(wait));
        other.kill();
        load.goes_on(200);
        other.run();
    }
    sites.run(&["mirror", "rate", "a.vhdx", "none"]).ends(0);
    sites.until("in step", |status| {
        status["stage"] == "synced" && status["reconnects"].as_u64() > Some(0)
    });
    // One that is away is handed nothing; clients go on here.
    other.kill();
    sites.until("lost", |status| status["connected"] == false);
    sites.mirror("cutover").ends(0);
    load.goes_on(200);
    let (source, _) = sites.records();
    assert!(
        matches!(source, Some(State::Owner { epoch: 1, .. })),
        "{source:?}"
    );
    other.run();
    has_moved(&mut sites, &other, load);
}

#[test]
fn a_server_that_refuses_now_and_then_is_asked_again() {
    let (mut sites, load) = busy();
    let other = Other::nbdkit(
        sites.here(),
        &["--filter=error"],
        &["error-pwrite-rate=2%", "error-zero-rate=2%"],
    );
    start(&sites, &other.at(), &["--manual"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    sites.mirror("cancel").ends(0);
    sites.until("ended", |status| status["ended"] == true);
    load.goes_on(100);
    let (source, _) = sites.records();
    assert!(
        matches!(source, Some(State::Owner { epoch: 1, .. })),
        "{source:?}"
    );
    // A move that was broken off can begin again, to another server.
    drop(other);
    let other = Other::qemu(sites.here());
    start(&sites, &other.at(), &["--wait"]).ends(0);
    has_moved(&mut sites, &other, load);
}

#[test]
fn a_source_that_is_killed_while_it_copies_owns_the_disk_and_begins_again() {
    let (mut sites, load) = busy();
    let other = Other::qemu(sites.here());
    start(&sites, &other.at(), &["--rate", "10M", "--manual"]).ends(0);
    thread::sleep(Duration::from_millis(800));
    sites.source.take().expect("it runs").kill();
    let ledger = load.died();
    sites.serve();
    verify(&sites.at_source(), &ledger, Promise::Flushed);
    let ran = sites.mirror("status").ends(2);
    assert!(ran.stderr.contains("not being moved"), "{}", ran.stderr);
    // Of blocks that are not written any more it holds what was promised before the crash; a new client has all of them.
    let load = Load::start(&sites.at_source(), area(8), ledger.clone());
    load.goes_on(100);
    start(&sites, &other.at(), &["--wait"]).ends(0);
    load.goes_on(100);
    let ledger = load.well();
    verify(&other.at(), &ledger, Promise::Flushed);
    is_zero(&other.at(), ASIDE);
    let (source, _) = sites.records();
    assert!(matches!(source, Some(State::Released { .. })), "{source:?}");
}

#[test]
fn a_source_that_is_killed_while_it_switches_over_leaves_one_owner_with_all_that_was_promised() {
    let mut random = Random::new(seed());
    for _ in 0..5 {
        let (mut sites, load) = busy();
        let other = Other::qemu(sites.here());
        start(&sites, &other.at(), &["--manual"]).ends(0);
        sites.until("in step", |status| status["stage"] == "synced");
        let words = ["mirror", "cutover", "a.vhdx"];
        let mut cutover = command(sites.here(), "diskferry", &words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it can be run");
        thread::sleep(Duration::from_millis(random.below(120)));
        sites.source.take().expect("it runs").kill();
        cutover.wait().expect("it ends");
        let (mut ledger, _) = load.finish();
        ledger.crashed();
        let (source, _) = sites.records();
        println!("{source:?}");
        sites.serve();
        verify(&sites.at_source(), &ledger, Promise::Flushed);
        match source {
            Some(State::Owner { epoch: 1, .. }) => {
                sites.mirror("status").ends(2);
            }
            Some(State::Released { epoch: 2, .. }) => {
                assert_eq!(sites.moved()["stage"], "forwarding");
                verify(&other.at(), &ledger, Promise::Flushed);
                is_zero(&other.at(), ASIDE);
            }
            other => panic!("{other:?}"),
        }
        let load = Load::start(&sites.at_source(), area(9), ledger);
        load.goes_on(100);
        load.well();
    }
}

#[test]
fn what_an_nbd_server_cannot_be_asked_is_refused_with_a_reason() {
    let mut sites = Sites::new("a.vhdx", &["8M", "--block-size", "1M"]);
    sites.serve();
    let here = sites.here().to_owned();
    let refused = |to: &str, words: &[&str], code: i32, why: &str| {
        let ran = start(&sites, to, words).ends(code);
        assert!(ran.stderr.contains(why), "{why}: {}", ran.stderr);
    };
    refused("nbds://localhost/a", &[], 2, "--identity");
    refused("nbds+unix:///a?socket=s", &[], 2, "not encrypted");
    refused("nbd://10.1.2.3/a", &[], 2, "--plain");
    refused(&sites.at_source(), &[], 2, "this server itself");
    let set = |len: u64| {
        let file = File::create(here.join("target.img")).expect("a file");
        file.set_len(len).expect("a length");
    };
    set(8 * MIB);
    let other = Other::qemu(&here);
    refused(&other.at(), &["--deadline", "1h"], 2, "deadline");
    let way = ["--way-back", "tcp:127.0.0.1:0"];
    refused(&other.at(), &way, 2, "way back");
    let fast = ["--switchover", "fast", "--arbiter", "file:/tmp"];
    refused(&other.at(), &fast, 2, "arbiter");
    start(&sites, &other.at(), &["--manual"]).ends(0);
    let ran = sites.mirror("verify").ends(2);
    assert!(ran.stderr.contains("NBD server"), "{}", ran.stderr);
    sites.mirror("cancel").ends(0);
    sites.until("ended", |status| status["ended"] == true);
    drop(other);
    set(8 * MIB - 4096);
    let other = Other::qemu(&here);
    refused(&other.at(), &["--wait"], 8, "the export has");
    drop(other);
    set(8 * MIB);
    let other = Other::nbdkit(&here, &["-r"], &[]);
    refused(&other.at(), &["--wait"], 8, "read-only");
    drop(other);
    let other = without_flush(&here);
    refused(&other.at(), &["--wait"], 8, "--without-flush");
    start(&sites, &other.at(), &["--wait", "--without-flush"]).ends(0);
    assert_eq!(sites.moved()["stage"], "forwarding");
}

/// A server that never says what is durable.
fn without_flush(here: &Path) -> Other {
    let of = |what: &str| {
        format!("{what} if=target.img of=/dev/stdout iflag=skip_bytes,count_bytes status=none")
    };
    let read = format!("pread={} skip=$4 count=$3", of("dd"));
    let write = "pwrite=dd of=target.img oflag=seek_bytes conv=notrunc status=none seek=$4";
    let size = format!("get_size=echo {}", 8 * MIB);
    let plugin = [
        "eval",
        &size,
        &read,
        write,
        "can_flush=exit 3",
        "thread_model=echo serialize_all_requests",
    ];
    Other::start(here, &["nbdkit", "-f", "-U"], &plugin)
}
