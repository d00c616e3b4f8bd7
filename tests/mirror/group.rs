//! Disks of one machine whose source is lost: the targets are promoted to one moment of all of them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use blockserver::nbd::blocking_client::BlockingClient;
use mirror::files::{groups_beside, load_record, sidecar_path};
use mirror::group::GroupRecord;
use mirror::record::{Membership, State};
use serde_json::Value;

use super::ledger::BLOCK;
use super::load::address;
use super::process::{Running, STUCK};
use super::site::Sites;

pub(super) fn export(sites: &Sites, name: &str, socket: &str) -> String {
    let socket = sites.here().join(socket);
    format!("nbd+unix:///{name}?socket={}", socket.display())
}

/// Two disks at the source, and a site that waits for them.
pub(super) fn running() -> Sites {
    let mut sites = Sites::new("data.vhdx", &["256M", "--block-size", "1M"]);
    sites
        .run(&["create", "log.vhdx", "256M", "--block-size", "1M"])
        .ends(0);
    serve(&mut sites, &BOTH);
    sites.receive();
    sites
}

/// The disks of the machine.
pub(super) const BOTH: [&str; 2] = ["data.vhdx", "log.vhdx"];

/// Serve these of them at the source.
pub(super) fn serve(sites: &mut Sites, disks: &[&str]) {
    let words = [&["serve", "--listen", "unix:s"], disks].concat();
    let mut serve = Running::start(sites.here(), &words);
    serve.says("serving");
    sites.source = Some(serve);
}

/// Writes a number to one disk, and once that is acknowledged to the other; then the next.
pub(super) struct Counting {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

/// Where the number is, and where another copy of it is.
fn places(number: u64) -> [u64; 2] {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    [0, (1 + mixed % 5000) * BLOCK as u64]
}

impl Counting {
    pub(super) fn start(first: &str, second: &str) -> Self {
        Self::after(0, first, second)
    }

    /// Goes on after the number that both had acknowledged.
    pub(super) fn after(last: u64, first: &str, second: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut disks =
            [first, second].map(|at| BlockingClient::connect(&address(at)).expect("a client"));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut number = last;
            while !stopped.load(Ordering::Relaxed) {
                let data = (number + 1).to_le_bytes().repeat(BLOCK / 8);
                for disk in &mut disks {
                    for place in places(number + 1) {
                        if disk.write(place, &data, false).is_err() {
                            return number;
                        }
                    }
                }
                number += 1;
            }
            number
        });
        Self { stop, thread }
    }

    /// The last number that was acknowledged of both.
    pub(super) fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it counts")
    }
}

/// The number that a disk has.
pub(super) fn counted(at: &str) -> u64 {
    let mut client = BlockingClient::connect(&address(at)).expect("a client");
    let mut block = vec![0; BLOCK];
    client.read(0, &mut block).expect("it is read");
    u64::from_le_bytes(block[..8].try_into().expect("eight bytes"))
}

fn is_joined(sites: &Sites, name: &str) -> bool {
    is_joined_at(&sites.here().join("in").join(name))
}

/// Whether the disk there is at the moment that the record of its group names.
pub(super) fn is_joined_at(disk: &Path) -> bool {
    let record = load_record(&sidecar_path(disk));
    matches!(
        record.expect("a whole record").map(|record| record.state),
        Some(State::Following {
            group: Some(Membership { joined: true, .. }),
            ..
        })
    )
}

fn moments(sites: &Sites) -> Vec<GroupRecord> {
    groups_beside(&sites.here().join("in/any")).expect("a folder")
}

/// The number of the last cut that the site has of all disks.
pub(super) fn last_cut(sites: &Sites) -> u64 {
    moments(sites).first().map_or(0, |group| group.cut)
}

#[track_caller]
pub(super) fn until(what: &str, wanted: impl Fn() -> bool) {
    let since = Instant::now();
    while !wanted() {
        assert!(since.elapsed() < STUCK, "never {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Both follow, and the group has a moment beyond `cut`.
#[track_caller]
pub(super) fn follow_beyond(sites: &Sites, cut: u64) -> u64 {
    until("following together", || {
        is_joined(sites, "data.vhdx") && is_joined(sites, "log.vhdx") && last_cut(sites) > cut
    });
    last_cut(sites)
}

pub(super) fn started(sites: &Sites, words: &[&str]) {
    let to = sites.to();
    let start = ["mirror", "start", "data.vhdx", "log.vhdx", "--to", &to];
    sites.run(&[&start, words].concat()).ends(0);
}

/// Serve what was promoted, and see that it is one moment of the machine: which.
pub(super) fn one_moment(sites: &Sites, last: u64) -> u64 {
    one_moment_of(sites, ["in/data.vhdx", "in/log.vhdx"], last)
}

/// The same of disks anywhere.
pub(super) fn one_moment_of(sites: &Sites, [data, log]: [&str; 2], last: u64) -> u64 {
    let words = ["serve", data, log, "--listen", "unix:u"];
    let mut serve = Running::start(sites.here(), &words);
    serve.says("serving");
    let found = ["data", "log"].map(|name| counted(&export(sites, name, "u")));
    println!("{last} were acknowledged, {found:?} are there");
    let [first, second] = found;
    assert!(
        second <= first && first <= second + 1,
        "two moments: {found:?}"
    );
    assert!(second > 0 && first <= last + 1, "{found:?} of {last}");
    serve.end();
    for disk in [data, log] {
        sites.run(&["check", disk]).ends(0);
    }
    first
}

#[test]
fn disks_that_were_started_together_are_promoted_to_one_moment_of_their_machine() {
    let mut sites = running();
    let counting = Counting::start(&export(&sites, "data", "s"), &export(&sites, "log", "s"));
    started(&sites, &["--manual"]);
    let mut cut = follow_beyond(&sites, 0);
    let status = sites
        .run(&["mirror", "status", "data.vhdx", "log.vhdx", "--json"])
        .ends(0);
    let lines = status.stdout.lines();
    let lines: Vec<Value> = lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let names = lines.iter().map(|line| line["name"].as_str());
    assert_eq!(
        names.collect::<Vec<_>>(),
        [Some("data.vhdx"), Some("log.vhdx"), None]
    );
    assert_eq!(
        (&lines[2]["type"], &lines[2]["disks"]),
        (&"total".into(), &2.into())
    );
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(300));
        sites.target.take().expect("it runs").kill();
        sites.receive();
        cut = follow_beyond(&sites, cut);
    }
    thread::sleep(Duration::from_secs(1));
    let promote = ["receive", "--promote-at-last-epoch", "in/log.vhdx"];
    let ran = sites.run(&promote).ends(1);
    assert!(ran.stderr.contains("in use"), "{}", ran.stderr);
    sites.source.take().expect("it runs").kill();
    let last = counting.end();
    sites.target.take().expect("it runs").kill();
    // A disk that is not there is missed before anything is changed.
    let (there, away) = (sites.here().join("in/data.vhdx"), sites.here().join("away"));
    std::fs::rename(&there, &away).expect("renamed");
    let ran = sites.run(&promote).ends(5);
    assert!(
        ran.stderr.contains("data.vhdx of its group is not here"),
        "{}",
        ran.stderr
    );
    assert!(is_joined(&sites, "log.vhdx"));
    std::fs::rename(&away, &there).expect("renamed");
    sites.run(&promote).ends(0);
    let left = std::fs::read_dir(sites.here().join("in")).expect("a folder");
    let left: Vec<String> = left
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.contains("journal") || name.contains(".group"))
        .collect();
    assert_eq!(left, [""; 0], "left behind");
    one_moment(&sites, last);
    let ran = sites.run(&promote).ends(5);
    assert!(ran.stderr.contains("does not follow"), "{}", ran.stderr);
}

#[test]
fn a_promotion_that_broke_off_between_two_disks_goes_on_to_the_same_moment() {
    let mut sites = running();
    let counting = Counting::start(&export(&sites, "data", "s"), &export(&sites, "log", "s"));
    started(&sites, &["--manual"]);
    follow_beyond(&sites, 0);
    thread::sleep(Duration::from_millis(500));
    // Whichever of them goes first.
    sites.target.take().expect("it runs").kill();
    sites.source.take().expect("it runs").kill();
    let last = counting.end();
    let data = ["receive", "--promote-at-last-epoch", "in/data.vhdx"];
    sites.run(&[&data[..], &["--apart"]].concat()).ends(0);
    assert!(is_joined(&sites, "log.vhdx"));
    sites.run(&data).ends(0);
    let record = load_record(&sidecar_path(&sites.here().join("in/log.vhdx")));
    let state = record.expect("a record").map(|record| record.state);
    assert!(matches!(state, Some(State::Owner { .. })), "{state:?}");
    one_moment(&sites, last);
}

#[test]
fn a_disk_of_which_the_record_of_its_group_says_nothing_is_not_promoted_and_left_as_it_is() {
    let mut sites = running();
    started(&sites, &["--manual"]);
    follow_beyond(&sites, 0);
    sites.end();
    let gone = sites.here().join("gone");
    let mut record = None;
    for entry in std::fs::read_dir(sites.here().join("in")).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.to_string_lossy().contains(".group") {
            std::fs::rename(&path, &gone).expect("it is gone");
            record = Some(path);
        }
    }
    let promote = ["receive", "--promote-at-last-epoch", "in/data.vhdx"];
    for words in [&promote[..], &[&promote[..], &["--apart"]].concat()] {
        let ran = sites.run(words).ends(5);
        let why = "does not say how far the disk is";
        assert!(ran.stderr.contains(why), "{}", ran.stderr);
    }
    assert!(is_joined(&sites, "data.vhdx"));
    std::fs::rename(&gone, record.expect("there was one")).expect("it is back");
    sites.run(&promote).ends(0);
}

#[test]
fn disks_of_a_group_are_handed_over_one_after_the_other_and_lose_nothing() {
    let mut sites = running();
    let counting = Counting::start(&export(&sites, "data", "s"), &export(&sites, "log", "s"));
    started(&sites, &["--manual"]);
    follow_beyond(&sites, 0);
    sites
        .run(&["mirror", "cutover", "data.vhdx", "--wait"])
        .ends(0);
    // The other one goes on by itself.
    let cut = last_cut(&sites);
    until("followed alone", || last_cut(&sites) > cut);
    sites
        .run(&["mirror", "cutover", "log.vhdx", "--wait"])
        .ends(0);
    thread::sleep(Duration::from_millis(300));
    let last = counting.end();
    let found = ["data", "log"].map(|name| counted(&export(&sites, name, "t")));
    assert!(last > 0 && found == [last, last], "{found:?} of {last}");
    sites.end();
}

#[test]
fn disks_that_cannot_follow_together_are_refused_and_a_cancelled_one_ends_all() {
    let mut sites = running();
    let to = sites.to();
    let start = ["mirror", "start", "data.vhdx", "log.vhdx", "--to", &to];
    let ran = sites.run(&start).ends(2);
    assert!(ran.stderr.contains("--manual"), "{}", ran.stderr);
    let twice = [
        "mirror",
        "start",
        "data.vhdx",
        "data.vhdx",
        "--manual",
        "--to",
        &to,
    ];
    let ran = sites.run(&twice).ends(2);
    assert!(ran.stderr.contains("twice"), "{}", ran.stderr);
    started(&sites, &["--manual"]);
    follow_beyond(&sites, 0);
    sites.run(&["mirror", "cancel", "log.vhdx"]).ends(0);
    let status = sites.until("ended too", |status| status["ended"] == true);
    let error = status["error"].as_str().expect("a reason");
    assert!(error.contains("another disk of its group"), "{error}");
    assert!(Path::new(&sites.here().join("in/log.vhdx")).exists());
    // The same group again, from what is there.
    let before = moments(&sites);
    started(&sites, &["--manual"]);
    // Nobody writes, so the cut may have the same number; its sessions are others.
    until("another moment", || moments(&sites) != before);
    sites.end();
}
