//! Disks of one machine that follow together: their source is killed and comes back, with all of them or with some.

use std::thread;
use std::time::Duration;

use blockserver::nbd::blocking_client::BlockingClient;
use mirror::files::{load_session, session_path};
use serde_json::{Value, json};

use super::group::{
    BOTH, Counting, counted, export, follow_beyond, last_cut, one_moment, running, serve, started,
    until,
};
use super::ledger::BLOCK;
use super::load::address;
use super::process::last_json;
use super::site::Sites;

/// Bytes of each disk that nobody writes any more, and where: beyond what counts, and beyond what is taken to have changed
/// with that after a crash (`docs/tracking.md`).
const OLD: u64 = 64 << 20;
const OLD_AT: u64 = 128 << 20;

/// What `mirror status` says of both disks.
fn statuses(sites: &Sites) -> [Value; 2] {
    BOTH.map(|disk| last_json(&sites.run(&["mirror", "status", disk, "--json"]).ends(0)))
}

fn at_source(sites: &Sites) -> [String; 2] {
    ["data", "log"].map(|name| export(sites, name, "s"))
}

/// The machine goes on counting.
fn counting_after(sites: &Sites, last: u64) -> Counting {
    let [data, log] = at_source(sites);
    Counting::after(last, &data, &log)
}

/// The source's host is lost; the last number that was acknowledged.
fn lose_source(sites: &mut Sites, counting: Counting) -> u64 {
    sites.source.take().expect("it runs").kill();
    counting.end()
}

/// The number after which the cuts of the life are that comes after the one of that cut. Of the same life one that was on its
/// way may still become one of all disks when the source is lost.
fn next_life(cut: u64) -> u64 {
    ((cut >> 40) + 1) << 40
}

/// The target is promoted, and has one moment of the machine: which.
fn promoted(sites: &mut Sites, last: u64) -> u64 {
    sites.target.take().expect("it runs").kill();
    let promote = ["receive", "--promote-at-last-epoch", "in/data.vhdx"];
    sites.run(&promote).ends(0);
    one_moment(sites, last)
}

/// A machine whose disks follow together, with their changes tracked.
fn tracked() -> (Sites, Counting) {
    let mut sites = running();
    sites.source.take().expect("it runs").end();
    for disk in BOTH {
        sites.run(&["track", "on", disk]).ends(0);
    }
    serve(&mut sites, &BOTH);
    for at in at_source(&sites) {
        let mut client = BlockingClient::connect(&address(&at)).expect("a client");
        for piece in (0..OLD).step_by(1 << 20) {
            let wrote = client.write(OLD_AT + piece, &vec![3; 1 << 20], false);
            wrote.expect("it is written");
        }
    }
    let counting = counting_after(&sites, 0);
    started(&sites, &["--manual"]);
    follow_beyond(&sites, 0);
    until("keeping that the target has them", || {
        let kept = BOTH.map(|disk| load_session(&session_path(&sites.here().join(disk))));
        let rests = kept.map(|kept| kept.expect("a whole file").map(|saved| saved.rest));
        let few = |rest: Option<Vec<(u64, u64)>>| {
            rest.is_some_and(|rest| rest.iter().map(|(_, len)| len).sum::<u64>() < OLD / 2)
        };
        rests.into_iter().all(few)
    });
    (sites, counting)
}

#[test]
fn disks_of_a_group_go_on_together_when_their_source_comes_back() {
    let (mut sites, mut counting) = tracked();
    let sessions = statuses(&sites).map(|status| status["session"].clone());
    let mut before = 0;
    for turn in 0..4 {
        thread::sleep(Duration::from_millis(700));
        before = lose_source(&mut sites, counting);
        let cut = last_cut(&sites);
        let mut disks = BOTH;
        disks.rotate_left(turn % 2);
        serve(&mut sites, &disks);
        for at in at_source(&sites) {
            assert!(counted(&at) >= before);
        }
        counting = counting_after(&sites, before);
        follow_beyond(&sites, next_life(cut));
        for (status, session) in statuses(&sites).iter().zip(&sessions) {
            assert_eq!(&status["session"], session, "{status}");
            assert_eq!(status["awaits"], Value::Null, "{status}");
            let read = status["report"]["read"].as_u64().expect("bytes");
            assert!(read < OLD, "all of it was compared: {read} bytes");
        }
    }
    let last = lose_source(&mut sites, counting);
    // All moments after they came back have what was there before.
    assert!(promoted(&mut sites, last) >= before);
}

#[test]
fn a_disk_that_comes_back_without_the_others_waits_for_them_and_loses_nothing_meanwhile() {
    let (mut sites, counting) = tracked();
    let last = lose_source(&mut sites, counting);
    let cut = last_cut(&sites);
    serve(&mut sites, &BOTH[..1]);
    let waits = |status: &Value| !status["awaits"].is_null();
    let status = sites.until("waiting", waits);
    let log = sites.here().join("log.vhdx");
    assert_eq!(
        status["awaits"],
        json!([log.canonicalize().expect("it is there")])
    );
    let people = sites.run(&["mirror", "status", "data.vhdx"]).ends(0);
    assert!(people.stdout.contains("waiting for"), "{}", people.stdout);
    let [data, _] = at_source(&sites);
    let mut client = BlockingClient::connect(&address(&data)).expect("a client");
    let place = 250 << 20;
    let wrote = client.write(place, &[7; BLOCK], false);
    wrote.expect("it is written");
    drop(client);
    thread::sleep(Duration::from_secs(1));
    let status = sites.until("still waiting", waits);
    assert_eq!(status["connected"], false, "{status}");
    let now = last_cut(&sites);
    assert!(now < next_life(cut), "there are no moments of one alone");
    sites.source.take().expect("it runs").end();
    serve(&mut sites, &BOTH);
    let counting = counting_after(&sites, last);
    follow_beyond(&sites, next_life(cut));
    let last = lose_source(&mut sites, counting);
    promoted(&mut sites, last);
    sites.run(&["convert", "in/data.vhdx", "data.img"]).ends(0);
    let bytes = std::fs::read(sites.here().join("data.img")).expect("an image");
    assert!(bytes[place as usize..][..BLOCK] == [7; BLOCK]);
}

#[test]
fn a_disk_that_was_cancelled_while_it_waited_ends_the_moves_of_the_others_when_they_come() {
    let (mut sites, counting) = tracked();
    lose_source(&mut sites, counting);
    serve(&mut sites, &BOTH[..1]);
    sites.until("waiting", |status| !status["awaits"].is_null());
    sites.mirror("cancel").ends(0);
    sites.until("ended", |status| status["ended"] == true);
    let kept = BOTH.map(|disk| session_path(&sites.here().join(disk)));
    assert_eq!(kept.each_ref().map(|kept| kept.exists()), [false, true]);
    sites.source.take().expect("it runs").end();
    serve(&mut sites, &BOTH);
    until("over", || !kept[1].exists());
    let status = sites
        .run(&["mirror", "status", "log.vhdx", "--json"])
        .ends(0);
    let status = last_json(&status);
    let error = status["error"].as_str().expect("a reason");
    assert!(error.contains("another disk of its group"), "{error}");
    assert_eq!(status["awaits"], Value::Null, "{status}");
    // They can be started again.
    let counting = counting_after(&sites, 100_000);
    let cut = last_cut(&sites);
    started(&sites, &["--manual"]);
    until("another moment", || last_cut(&sites) != cut);
    let last = lose_source(&mut sites, counting);
    assert!(promoted(&mut sites, last) >= 100_000);
}

#[test]
fn no_disk_goes_on_without_one_of_its_group_of_which_nothing_is_known_any_more() {
    for damaged in BOTH {
        let (mut sites, counting) = tracked();
        lose_source(&mut sites, counting);
        let kept = BOTH.map(|disk| session_path(&sites.here().join(disk)));
        let its = session_path(&sites.here().join(damaged));
        let mut bytes = std::fs::read(&its).expect("it was kept");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&its, &bytes).expect("it is damaged");
        serve(&mut sites, &BOTH);
        let other = kept.iter().find(|kept| **kept != its).expect("another");
        until("over", || !other.exists());
        let serve = sites.source.as_ref().expect("it runs");
        assert!(serve.log().contains("no move goes on"), "{}", serve.log());
        sites.end();
    }
}

#[test]
fn a_disk_that_was_handed_over_is_not_waited_for_whether_it_is_served_or_not() {
    for served in [&BOTH[..], &BOTH[1..]] {
        let (mut sites, counting) = tracked();
        let kept = session_path(&sites.here().join("log.vhdx"));
        let before = std::fs::read(&kept).expect("it is kept");
        sites
            .run(&["mirror", "cutover", "data.vhdx", "--wait"])
            .ends(0);
        let cut = last_cut(&sites);
        until("followed alone", || last_cut(&sites) > cut);
        lose_source(&mut sites, counting);
        // What was kept last may still name both.
        std::fs::write(&kept, before).expect("it is as it was");
        let cut = next_life(last_cut(&sites));
        serve(&mut sites, served);
        let log = export(&sites, "log", "s");
        let mut client = BlockingClient::connect(&address(&log)).expect("a client");
        client.write(0, &[9; BLOCK], false).expect("it is written");
        drop(client);
        until("going on", || last_cut(&sites) > cut);
        sites
            .run(&["mirror", "cutover", "log.vhdx", "--wait"])
            .ends(0);
        assert_eq!(
            counted(&export(&sites, "log", "t")),
            u64::from_le_bytes([9; 8])
        );
        sites.end();
    }
}
