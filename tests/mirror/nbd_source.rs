//! Disks of NBD servers of other makers that are served through Diskferry, and move from there while a client writes.

use std::fs::{File, read_to_string, write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use blockserver::nbd::blocking_client::BlockingClient;
use mirror::files::{load_record, sidecar_path};
use mirror::record::State;

use super::ledger::{Ledger, Promise};
use super::load::{Area, Load, address, verify};
use super::nbd_target::{Other, is_zero};
use super::process::Running;
use super::site::{Sites, writable};
use crate::run::program;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;
/// Where no load writes.
const ASIDE: u64 = SIZE - 2 * MIB;
/// The file that stands for the disk, as which it arrives.
const STATE: &str = "a.vhdx.nbd";

fn area(seed: u64) -> Area {
    Area {
        seed,
        disk: SIZE,
        regions: 3,
        length: 16 * MIB,
        rate: 800,
    }
}

/// An empty disk of another server, as a file that is `target.img`.
fn empty(here: &Path) {
    let file = File::create(here.join("target.img")).expect("a file");
    file.set_len(SIZE).expect("a length");
}

/// Starts `serve` in front of `other`.
fn serve(sites: &mut Sites, other: &Other) {
    let words = ["serve", &other.at(), "--state", STATE, "--listen", "unix:s"];
    let mut serve = Running::start(sites.here(), &words);
    let line = serve.says("serving");
    assert_eq!(line["virtual_size"], SIZE, "{line}");
    assert!(line["not_promised"].is_string(), "{line}");
    sites.source = Some(serve);
}

/// A site that receives, and one that serves the export of a server that `start` starts.
fn front(start: impl Fn(&Path) -> Other) -> (Sites, Other) {
    let mut sites = Sites::new("none.img", &["1M"]);
    STATE.clone_into(&mut sites.disk);
    empty(sites.here());
    let other = start(sites.here());
    serve(&mut sites, &other);
    sites.receive();
    (sites, other)
}

fn record(at: &Path) -> Option<State> {
    let record = load_record(&sidecar_path(at)).expect("a whole record");
    record.map(|record| record.state)
}

/// What has to be true once the disk has moved: of what the client was told, of the records, of a restart.
#[track_caller]
fn has_moved(sites: &mut Sites, other: &mut Other, load: Load) {
    let status = sites.moved();
    println!("{status}");
    load.goes_on(200);
    let ledger = load.well();
    verify(&sites.at_source(), &ledger, Promise::Acknowledged);
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    is_zero(&sites.at_target(), ASIDE);
    let source = record(&sites.here().join(STATE));
    assert!(
        matches!(source, Some(State::Released { epoch: 2, .. })),
        "{source:?}"
    );
    let target = record(&sites.here().join("in/a.vhdx"));
    assert!(
        matches!(target, Some(State::Owner { epoch: 2, .. })),
        "{target:?}"
    );
    // A restart asks nothing of the server that has the old bytes, which need not be there.
    let before = std::fs::read(sites.here().join("target.img")).expect("a file");
    sites.source.take().expect("it runs").end();
    other.kill();
    serve(sites, other);
    let load = Load::start(&sites.at_source(), area(6), ledger);
    load.goes_on(100);
    let ledger = load.well();
    verify(&sites.at_target(), &ledger, Promise::Acknowledged);
    sites.source.take().expect("it runs").end();
    other.run();
    serve(sites, other);
    assert!(writable(&sites.at_source(), ASIDE));
    sites.end();
    let after = std::fs::read(sites.here().join("target.img")).expect("a file");
    assert!(before == after, "nobody wrote to what was handed over");
    program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]).ends(0);
}

#[test]
fn a_busy_disk_of_qemu_nbd_moves_to_another_site_and_its_client_never_notices() {
    let (mut sites, mut other) = front(Other::qemu);
    let load = Load::start(&sites.at_source(), area(5), Ledger::default());
    load.goes_on(300);
    sites.start(&["--wait"]).ends(0);
    has_moved(&mut sites, &mut other, load);
}

#[test]
fn a_busy_disk_of_nbdkit_without_zeroes_extents_and_durable_writes_moves() {
    let (mut sites, mut other) = front(|here| {
        let filters = ["--filter=noextents", "--filter=nozero", "--filter=fua"];
        Other::nbdkit(here, &filters, &["zeromode=none"])
    });
    let load = Load::start(&sites.at_source(), area(7), Ledger::default());
    load.goes_on(300);
    sites.start(&["--manual"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    load.goes_on(200);
    sites.mirror("cutover").ends(0);
    has_moved(&mut sites, &mut other, load);
}

#[test]
fn a_server_that_is_killed_while_its_disk_moves_gets_again_what_it_may_have_lost() {
    let (mut sites, mut other) = front(Other::qemu);
    let load = Load::start(&sites.at_source(), area(9), Ledger::default());
    load.goes_on(300);
    sites.start(&["--manual", "--rate", "20M"]).ends(0);
    for wait in [300, 1500] {
        thread::sleep(Duration::from_millis(wait));
        other.kill();
        thread::sleep(Duration::from_millis(200));
        other.run();
        load.goes_on(200);
    }
    sites.tell("rate", "none").ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    sites.mirror("cutover").ends(0);
    has_moved(&mut sites, &mut other, load);
}

#[test]
fn a_server_in_front_that_is_killed_goes_on_with_the_disk_and_its_move() {
    let (mut sites, mut other) = front(Other::qemu);
    let load = Load::start(&sites.at_source(), area(11), Ledger::default());
    load.goes_on(300);
    sites.start(&["--manual", "--rate", "20M"]).ends(0);
    load.goes_on(300);
    sites.source.take().expect("it runs").kill();
    let ledger = load.died();
    serve(&mut sites, &other);
    verify(&sites.at_source(), &ledger, Promise::Flushed);
    let load = Load::start(&sites.at_source(), area(12), ledger);
    load.goes_on(300);
    sites.tell("rate", "none").ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    sites.mirror("cutover").ends(0);
    has_moved(&mut sites, &mut other, load);
}

#[test]
fn changes_that_a_server_never_makes_durable_fail_before_they_fill_the_memory() {
    const SCRIPTS: [&str; 6] = [
        "get_size=echo 268435456",
        "can_write=exit 0",
        "can_flush=exit 0",
        "pread=dd if=target.img iflag=skip_bytes,count_bytes skip=$4 count=$3",
        "pwrite=dd of=target.img oflag=seek_bytes seek=$4 conv=notrunc",
        "flush=if [ -e deaf ]; then echo EIO no >&2; exit 1; fi",
    ];
    let (mut sites, _other) = front(|here| Other::scripts(here, &SCRIPTS));
    let deaf = sites.here().join("deaf");
    write(&deaf, "").expect("a file");
    let mut client = BlockingClient::connect(&address(&sites.at_source())).expect("it is served");
    let data = vec![0x5a; MIB as usize];
    let mut writes = |count: u64| -> u64 {
        let written = (0..count).map(|at| client.write(at * MIB, &data, false));
        written.flatten().count() as u64
    };
    let taken = writes(200);
    assert!((100..=140).contains(&taken), "{taken} MiB were taken");
    assert_eq!(writes(5), 0);
    std::fs::remove_file(&deaf).expect("it is there");
    // The first one may come before the flush that it asks for.
    writes(1);
    assert_eq!(writes(200), 200);
    client.flush().expect("it is durable now");
    drop(client);
    sites.end();
}

#[test]
fn what_is_unlike_the_export_or_cannot_be_done_is_refused_with_a_reason() {
    let (mut sites, mut other) = front(Other::qemu);
    let refused = |sites: &Sites, words: &[&str], code: i32, why: &str| {
        let ran = sites.run(words).ends(code);
        assert!(ran.stderr.contains(why), "{why}: {}", ran.stderr);
    };
    let at = other.at();
    let start = ["mirror", "start", STATE, "--to"];
    refused(&sites, &[&start[..], &[&at]].concat(), 2, "already");
    let to = sites.to();
    let back = [&start[..], &[&to, "--way-back", "tcp:127.0.0.1:0"]].concat();
    refused(&sites, &back, 9, "way back");
    refused(&sites, &["snapshot", STATE, "b.vhdx"], 2, "only a VHDX");
    refused(&sites, &["resize", STATE, "+1M"], 9, "another server");
    // Another process has it.
    let again = ["serve", &at, "--state", STATE, "--listen", "unix:s2"];
    refused(&sites, &again, 5, "in use");
    sites.end();
    refused(&sites, &["serve", &at, "--listen", "unix:s2"], 2, "--state");
    let far = [
        "serve",
        "nbd://10.1.2.3/a",
        "--state",
        STATE,
        "--listen",
        "unix:s2",
    ];
    refused(&sites, &far, 2, "--plain");
    let renamed = at.replace("///?", "///b?");
    let other_export = ["serve", &renamed, "--state", STATE, "--listen", "unix:s2"];
    refused(&sites, &other_export, 6, "stands for");
    let own = [
        "serve",
        &at,
        "--state",
        "b.img.nbd",
        "--listen",
        "unix:other",
    ];
    refused(&sites, &own, 2, "this server itself");
    other.kill();
    refused(&sites, &again, 7, "cannot connect");
    let file = File::options()
        .write(true)
        .open(sites.here().join("target.img"));
    file.expect("a file").set_len(SIZE + MIB).expect("a length");
    other.run();
    refused(&sites, &again, 6, "bytes and had");
    let state = sites.here().join(STATE);
    let text = read_to_string(&state).expect("a file");
    write(&state, "{}").expect("room");
    refused(&sites, &again, 3, "is no file of");
    write(&state, text).expect("room");
    std::fs::remove_file(sidecar_path(&state)).expect("it is there");
    refused(&sites, &again, 5, "record is missing");
}
