//! What is noted of a disk's changes, as a backup program meets it: at rest and while the disk is served.

use std::path::Path;

use blockserver::nbd::blocking_client::BlockingClient;

use super::run::{diskferry, folder, program};
use super::serving::Serving;

const MIB: u64 = 1 << 20;

fn client(serving: &Serving) -> BlockingClient {
    BlockingClient::connect(&serving.uri().parse().unwrap()).unwrap()
}

/// Offsets and lengths of what is listed, and the summary.
fn since(here: &Path, words: &[&str]) -> (Vec<(u64, u64)>, serde_json::Value) {
    let words = [&["changed", "a.vhdx", "--json", "--since"], words].concat();
    let mut lines = diskferry(here, &words).ok().json_lines();
    let summary = lines.pop().unwrap();
    let number = |line: &serde_json::Value, name: &str| line[name].as_u64().unwrap();
    let extents = lines.iter();
    let extents = extents.map(|line| (number(line, "offset"), number(line, "length")));
    (extents.collect(), summary)
}

#[test]
fn a_checkpoint_of_a_served_disk_divides_what_was_written_before_from_what_is_after() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    let line = diskferry(
        here,
        &["track", "on", "a.vhdx", "--granularity", "4K", "--json"],
    )
    .ok()
    .json();
    assert_eq!(
        (&line["tracking"], &line["granularity"]),
        (&true.into(), &4096.into())
    );
    let listen = format!("unix:{}/s", here.display());
    let serving = Serving::start(here, &["a.vhdx", "--listen", &listen]);
    let mut client = client(&serving);
    client.write(5 * MIB, &[1; 4096], false).unwrap();
    let line = diskferry(here, &["checkpoint", "add", "a.vhdx", "one", "--json"])
        .ok()
        .json();
    assert_eq!(line["online"], true);
    client.write(7 * MIB, &[2; 8192], false).unwrap();
    diskferry(here, &["checkpoint", "add", "a.vhdx", "one"]).fails(2);
    diskferry(here, &["checkpoint", "add", "a.vhdx", "two"]).ok();
    client.write(900 * MIB, &[3; 512], false).unwrap();
    client.write(900 * MIB, &[4; 512], true).unwrap();
    diskferry(here, &["changed", "a.vhdx", "--since", "one"]).fails(5);
    drop(client);
    serving.end();
    assert_eq!(since(here, &["one", "--until", "two"]).0, [(7 * MIB, 8192)]);
    let (extents, summary) = since(here, &["one"]);
    assert_eq!(extents, [(7 * MIB, 8192), (900 * MIB, 4096)]);
    assert_eq!(
        (&summary["known"], &summary["rough"], &summary["bytes"]),
        (&true.into(), &false.into(), &12_288.into())
    );
    diskferry(here, &["checkpoint", "remove", "a.vhdx", "two"]).ok();
    let lines = diskferry(here, &["checkpoint", "list", "a.vhdx", "--json"])
        .ok()
        .json_lines();
    assert!(lines.len() == 1 && lines[0]["name"] == "one");
    assert_eq!(since(here, &["one"]).0, extents);
    diskferry(here, &["check", "a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "a.vhdx"]).ok();
}

#[test]
fn a_server_that_was_killed_misses_no_change() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    diskferry(here, &["track", "on", "a.vhdx"]).ok();
    diskferry(here, &["checkpoint", "add", "a.vhdx", "one"]).ok();
    let listen = format!("unix:{}/s", here.display());
    let serving = Serving::start(here, &["a.vhdx", "--listen", &listen]);
    let mut client = client(&serving);
    let places: Vec<u64> = (0..200).map(|n| n * 5 * MIB + n * 4096).collect();
    for place in &places {
        client.write(*place, &[1; 512], false).unwrap();
    }
    serving.kill();
    let (extents, summary) = since(here, &["one"]);
    assert_eq!(summary["known"], true);
    for place in places {
        let covers = |(offset, len): &(u64, u64)| (*offset..offset + len).contains(&place);
        assert!(extents.iter().any(covers), "{place} is not listed");
    }
}

#[test]
fn a_disk_without_tracking_says_so() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    let line = diskferry(here, &["track", "status", "a.vhdx", "--json"])
        .ok()
        .json();
    assert_eq!(line["tracking"], false);
    diskferry(here, &["checkpoint", "list", "a.vhdx"]).fails(9);
    diskferry(here, &["checkpoint", "add", "a.vhdx", "one"]).fails(9);
    diskferry(here, &["changed", "a.vhdx", "--since", "one"]).fails(9);
    diskferry(here, &["track", "off", "a.vhdx"]).fails(9);
    diskferry(here, &["track", "on", "a.vhdx", "--granularity", "3K"]).fails(2);
}

#[test]
fn a_disk_that_becomes_one_of_its_own_lists_no_more_than_was_written_to_it() {
    let here = folder();
    let here = here.path();
    let write = |disk: &str, words: &str| {
        program(here, "qemu-io", &["-f", "raw", "-c", words, disk]).ok();
    };
    diskferry(here, &["create", "base.img", "1G"]).ok();
    write("base.img", "write -P 1 0 16M");
    let base = ["convert", "base.img", "base.vhdx", "--from", "raw"];
    diskferry(here, &base).ok();
    diskferry(here, &["create", "a.vhdx", "--parent", "base.vhdx"]).ok();
    diskferry(here, &["track", "on", "a.vhdx"]).ok();
    let listen = format!("unix:{}/s", here.display());
    let serving = Serving::start(here, &["a.vhdx", "--listen", &listen]);
    let mut client = client(&serving);
    client.write(2 * MIB, &[2; 4096], false).unwrap();
    diskferry(here, &["checkpoint", "add", "a.vhdx", "one"]).ok();
    client.write(5 * MIB, &[3; 4096], false).unwrap();
    client.write(700 * MIB, &[4; 4096], true).unwrap();
    drop(client);
    serving.end();
    let (before, _) = since(here, &["one"]);
    diskferry(here, &["flatten", "a.vhdx"]).ok();
    let (after, summary) = since(here, &["one"]);
    assert_eq!(
        (&summary["known"], &summary["rough"], after),
        (&true.into(), &false.into(), before)
    );
}
