//! Disks of one machine that moved together go home together, or are promoted there to one moment of all of them.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use mirror::files::{groups_beside, load_record, sidecar_path};
use mirror::group::{GroupRecord, Member};
use mirror::record::State;
use serde_json::{Value, json};

use super::faults::seed;
use super::group::{
    BOTH, Counting, counted, export, follow_beyond, is_joined_at, one_moment_of, running, serve,
    started, until,
};
use super::ledger::Random;
use super::process::last_json;
use super::site::Sites;

const BACK: [&str; 3] = ["--manual", "--way-back", "tcp:127.0.0.1:0"];

fn at_home(sites: &Sites, disk: &str) -> PathBuf {
    sites.here().join(disk)
}

/// The number of the last cut that their old host has of all disks.
fn cut_at_home(sites: &Sites) -> u64 {
    let moments = groups_beside(&at_home(sites, "any")).expect("a folder");
    moments.first().map_or(0, |group| group.cut)
}

/// Both follow at home, and are at a moment beyond `cut`.
#[track_caller]
fn follow_at_home_beyond(sites: &Sites, cut: u64) -> u64 {
    until("following at home together", || {
        let joined = |disk: &&str| is_joined_at(&at_home(sites, disk));
        BOTH.iter().all(joined) && cut_at_home(sites) > cut
    });
    cut_at_home(sites)
}

/// Both follow at home, and are at another moment than now: who begins anew counts anew.
#[track_caller]
fn follow_at_home_anew(sites: &Sites) {
    let moments = || groups_beside(&at_home(sites, "any")).expect("a folder");
    let before = moments();
    until("following at home together", || {
        let joined = |disk: &&str| is_joined_at(&at_home(sites, disk));
        let now = moments();
        let of_both = now.iter().all(|group| group.disks.len() == BOTH.len());
        BOTH.iter().all(joined) && of_both && !now.is_empty() && now != before
    });
}

/// How a disk stands at its new host.
fn status(sites: &Sites, disk: &str) -> Value {
    let disk = format!("in/{disk}");
    let ran = sites.run(&["mirror", "status", &disk, "--json"]).ends(0);
    last_json(&ran)
}

fn counting(sites: &Sites, last: u64) -> Counting {
    let [data, log] = ["data", "log"].map(|name| export(sites, name, "s"));
    Counting::after(last, &data, &log)
}

/// Both have moved while a machine writes, and may go back; it goes on writing where it did.
fn moved() -> (Sites, Counting) {
    let sites = running();
    let counting = counting(&sites, 0);
    started(&sites, &BACK);
    follow_beyond(&sites, 0);
    for disk in BOTH {
        sites.run(&["mirror", "cutover", disk, "--wait"]).ends(0);
    }
    (sites, counting)
}

fn state(sites: &Sites, disk: &str) -> Option<State> {
    let record = load_record(&sidecar_path(&at_home(sites, disk)));
    record.expect("a whole record").map(|record| record.state)
}

fn is_home(sites: &Sites, disk: &str) -> bool {
    matches!(state(sites, disk), Some(State::Owner { epoch: 3, .. }))
}

/// Says it until both are home: they may be in the middle of it, or not in step yet.
fn until_home(sites: &Sites) {
    for disk in BOTH {
        until("home", || {
            let there = format!("in/{disk}");
            is_home(sites, disk) || {
                let _ = sites.run(&["mirror", "rollback", &there]);
                is_home(sites, disk)
            }
        });
    }
}

#[test]
fn disks_that_moved_together_are_promoted_at_home_to_one_moment_of_their_machine() {
    let (mut sites, counting) = moved();
    let mut cut = follow_at_home_beyond(&sites, 0);
    for disk in BOTH {
        let status = status(&sites, disk);
        assert_eq!(status["awaits"], Value::Null, "{status}");
        // Only what was changed since was looked at.
        for field in ["found", "same"] {
            assert_eq!(status[field], 0, "{field}: {status}");
        }
    }
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(300));
        cut = follow_at_home_beyond(&sites, cut);
    }
    let before = counted(&export(&sites, "log", "t"));
    cut = follow_at_home_beyond(&sites, cut);
    follow_at_home_beyond(&sites, cut);
    // The site that has them is lost for good.
    sites.target.take().expect("it runs").kill();
    sites.source.take().expect("it runs").kill();
    let last = counting.end();
    let promote = ["receive", "--promote-at-last-epoch", "data.vhdx"];
    sites.run(&promote).ends(0);
    assert!(one_moment_of(&sites, BOTH, last) >= before);
}

#[test]
fn disks_that_moved_together_go_home_one_after_the_other_and_lose_nothing() {
    let (mut sites, counting) = moved();
    follow_at_home_beyond(&sites, 0);
    let back = ["mirror", "rollback", "in/data.vhdx", "--wait"];
    sites.run(&back).ends(0);
    // The other one goes on by itself.
    let cut = cut_at_home(&sites);
    until("followed alone", || cut_at_home(&sites) > cut);
    let back = ["mirror", "rollback", "in/log.vhdx", "--wait"];
    sites.run(&back).ends(0);
    thread::sleep(Duration::from_millis(300));
    let last = counting.end();
    assert!(last > 0 && BOTH.iter().all(|disk| is_home(&sites, disk)));
    sites.end();
    assert_eq!(one_moment_of(&sites, BOTH, last), last);
}

#[test]
fn disks_go_home_together_although_either_host_is_killed_in_the_middle() {
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut sites, mut counting) = moved();
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(random.below(600)));
        if random.below(2) == 0 {
            sites.target.take().expect("it runs").kill();
            thread::sleep(Duration::from_millis(random.below(300)));
            sites.receive();
            continue;
        }
        sites.source.take().expect("it runs").kill();
        let last = counting.end();
        serve(&mut sites, &BOTH);
        counting = self::counting(&sites, last);
    }
    follow_at_home_anew(&sites);
    until_home(&sites);
    thread::sleep(Duration::from_millis(300));
    let last = counting.end();
    sites.end();
    assert_eq!(one_moment_of(&sites, BOTH, last), last);
}

/// The first of the disks goes home by itself in the end, without the other one.
#[track_caller]
fn goes_home_alone(sites: &Sites) {
    until("following at home", || {
        let moments = groups_beside(&at_home(sites, "any")).expect("a folder");
        let of_it = |member: &Member| member.name == "data.vhdx";
        let alone = |group: &GroupRecord| group.disks.iter().all(of_it);
        moments.iter().any(alone) && is_joined_at(&at_home(sites, "data.vhdx"))
    });
    let status = status(sites, "data.vhdx");
    assert_eq!(status["awaits"], Value::Null, "{status}");
    until("home", || {
        let _ = sites.run(&["mirror", "rollback", "in/data.vhdx"]);
        is_home(sites, "data.vhdx")
    });
}

#[test]
fn a_disk_does_not_wait_for_ever_for_one_that_stays_also_over_a_restart() {
    let mut sites = running();
    started(&sites, &BACK);
    follow_beyond(&sites, 0);
    sites
        .run(&["mirror", "cutover", "data.vhdx", "--wait"])
        .ends(0);
    let log = sites.here().join("in/log.vhdx");
    let log = log.canonicalize().expect("it is there");
    for restarted in [false, true] {
        if restarted {
            sites.target.take().expect("it runs").kill();
            sites.receive();
        }
        until("waiting", || {
            let ran = sites.run(&["mirror", "status", "in/data.vhdx", "--json"]);
            ran.code == 0 && last_json(&ran)["awaits"] == json!([log])
        });
    }
    goes_home_alone(&sites);
}

#[test]
fn a_disk_goes_on_by_itself_when_the_way_back_of_another_one_is_cancelled() {
    let (sites, counting) = moved();
    follow_at_home_beyond(&sites, 0);
    sites.run(&["mirror", "cancel", "in/log.vhdx"]).ends(0);
    goes_home_alone(&sites);
    counting.end();
    assert!(!is_home(&sites, "log.vhdx"));
}

#[test]
fn disks_go_home_together_also_if_their_first_host_restarts_between_their_handovers() {
    let mut sites = running();
    let counting = counting(&sites, 0);
    started(&sites, &BACK);
    follow_beyond(&sites, 0);
    let cutover = |sites: &Sites, disk| {
        let ran = sites.run(&["mirror", "cutover", disk, "--wait"]);
        ran.ends(0);
    };
    cutover(&sites, "data.vhdx");
    sites.source.take().expect("it runs").kill();
    counting.end();
    serve(&mut sites, &BOTH);
    cutover(&sites, "log.vhdx");
    follow_at_home_beyond(&sites, 0);
    until_home(&sites);
    sites.end();
}

#[test]
fn disks_of_several_folders_have_no_way_back_together() {
    let mut sites = Sites::new("data.vhdx", &["64M"]);
    std::fs::create_dir(sites.here().join("other")).expect("a folder");
    sites.run(&["create", "other/log.vhdx", "64M"]).ends(0);
    serve(&mut sites, &["data.vhdx", "other/log.vhdx"]);
    sites.receive();
    let to = sites.to();
    let start = [
        "mirror",
        "start",
        "data.vhdx",
        "other/log.vhdx",
        "--to",
        &to,
    ];
    let ran = sites.run(&[&start[..], &BACK].concat());
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("one folder"), "{}", ran.stderr);
    sites.end();
}
