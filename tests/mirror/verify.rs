//! Both sides are compared while a client writes.

use std::os::unix::fs::FileExt as _;

use blockserver::nbd::blocking_client::BlockingClient;
use serde_json::Value;

use super::ledger::Ledger;
use super::load::{Area, Load, address};
use super::site::Sites;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 1 << 30;
/// Where nobody writes once it is filled, and how many bytes of it.
const FROM: u64 = 512 * MIB;
const FILLED: u64 = 24 * MIB;

/// The words of the filled part, no two alike.
fn word(number: u64) -> [u8; 8] {
    (number | 1 << 61).to_le_bytes()
}

fn filled() -> Sites {
    let sites = Sites::new("a.vhdx", &["1G", "--block-size", "1M"]);
    let file = std::fs::File::create(sites.here().join("content.raw")).expect("a file");
    file.set_len(SIZE).expect("a size");
    let content: Vec<u8> = (0..FILLED / 8).flat_map(word).collect();
    file.write_all_at(&content, FROM).expect("it is written");
    let words = ["convert", "content.raw", "a.vhdx", "--force"];
    sites.run(&words).ends(0);
    sites
}

/// Flips a bit of a word in the target's file, past everybody; where on the disk.
fn damage(sites: &Sites, number: u64) -> u64 {
    let path = sites.here().join(sites.arriving());
    let bytes = std::fs::read(&path).expect("the image can be read");
    let at = bytes.windows(8).position(|window| window == word(number));
    let at = at.expect("the content is there") as u64;
    let file = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("the image");
    file.write_all_at(&[word(number)[0] ^ 0x10], at)
        .expect("it is written");
    file.sync_all().expect("it is there");
    FROM + number * 8
}

/// What a verification found, if it ends with that code, and what was said.
fn verified(sites: &Sites, code: i32) -> (Value, String) {
    let words = ["mirror", "verify", &sites.disk, "--wait", "--json"];
    let ran = sites.run(&words).ends(code);
    let lines = ran.json_lines();
    let summary = lines.iter().find(|line| line["type"] == "summary");
    let found = summary.expect("a summary")["verify"].clone();
    (found, ran.stderr)
}

#[test]
fn what_is_damaged_at_the_target_is_found_and_mended_while_clients_write() {
    let mut sites = filled();
    sites.serve();
    sites.receive();
    let area = Area {
        seed: 5,
        disk: 256 * MIB,
        regions: 2,
        length: 4 * MIB,
        rate: 500,
    };
    let load = Load::start(&sites.at_source(), area, Ledger::default());
    sites.start(&["--manual"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    let (found, _) = verified(&sites, 0);
    println!("{found}");
    let number = |found: &Value, field: &str| found[field].as_u64().expect("a number");
    assert_eq!(
        number(&found, "compared") + number(&found, "unsettled"),
        SIZE
    );
    assert!(number(&found, "unsettled") <= 8 * MIB, "{found}");
    assert_eq!(found["wrong"], 0);

    let at = damage(&sites, 12_345);
    let (found, said) = verified(&sites, 6);
    let block = at / 32768 * 32768;
    assert_eq!(
        (&found["wrong"], &found["first_wrong"]),
        (&32768.into(), &block.into()),
        "{found}"
    );
    assert!(said.contains(&block.to_string()), "{said}");
    let (found, _) = verified(&sites, 0);
    assert_eq!(found["wrong"], 0, "it was copied again");

    assert!(load.acknowledged() > 0);
    sites.mirror("cutover").ends(0);
    sites.moved();
    let mut client = BlockingClient::connect(&address(&sites.at_target())).expect("it is served");
    let mut there = [0; 8];
    client.read(at, &mut there).expect("it can be read");
    assert_eq!(there, word(12_345));
    load.well();
    sites.end();
}

#[test]
fn a_disk_that_is_not_mirrored_cannot_be_verified() {
    let mut sites = Sites::running("a.vhdx", &["1G"]);
    let ran = sites.run(&["mirror", "verify", "a.vhdx"]).ends(2);
    assert!(ran.stderr.contains("not being moved"), "{}", ran.stderr);
    sites.end();
}
