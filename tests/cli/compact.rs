//! Disks whose files are made shorter, at rest and while they are served; QEMU sees what it saw.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use blockserver::nbd::blocking_client::BlockingClient;

use super::run::{diskferry, folder, on_disk, program};
use super::serving::Serving;

const MIB: u64 = 1 << 20;
const BLOCKS: u64 = 60;

fn client(serving: &Serving) -> BlockingClient {
    BlockingClient::connect(&serving.uri().parse().unwrap()).unwrap()
}

/// A disk of which blocks were written in a mixed order and half of them given back; its raw twin.
fn scattered(here: &Path) {
    diskferry(here, &["create", "a.vhdx", "1G", "--block-size", "1M"]).ok();
    let listen = format!("unix:{}/s", here.display());
    let serving = Serving::start(here, &["a.vhdx", "--listen", &listen]);
    let mut client = client(&serving);
    for number in 0..BLOCKS {
        let block = number * 37 % BLOCKS;
        let data = vec![block as u8 + 1; 300_032];
        client.write(block * 16 * MIB + 512, &data, false).unwrap();
    }
    client.flush().unwrap();
    for block in (0..BLOCKS).step_by(2) {
        client.trim(block * 16 * MIB, MIB).unwrap();
    }
    client.flush().unwrap();
    drop(client);
    serving.end();
    let twin = ["convert", "-f", "vhdx", "-O", "raw", "a.vhdx", "twin.img"];
    program(here, "qemu-img", &twin).ok();
}

fn same_as_twin(here: &Path, disk: &str) {
    diskferry(here, &["check", disk]).ok();
    program(here, "qemu-img", &["check", disk]).ok();
    program(here, "qemu-img", &["compare", disk, "twin.img"]).ok();
}

fn length(here: &Path, disk: &str) -> u64 {
    std::fs::metadata(here.join(disk)).unwrap().len()
}

#[test]
fn a_compacted_file_is_shorter_and_qemu_finds_the_same_disk_in_it() {
    for more in [&[][..], &["--defragment"]] {
        let here = folder();
        let here = here.path();
        scattered(here);
        let before = length(here, "a.vhdx");
        let words = [&["compact", "a.vhdx", "--json"][..], more].concat();
        let lines = diskferry(here, &words).ok().json_lines();
        let summary = lines.last().unwrap();
        let now = length(here, "a.vhdx");
        assert_eq!(
            (&summary["previous_file_len"], &summary["file_len"]),
            (&before.into(), &now.into())
        );
        assert!(now <= (BLOCKS / 2 + 8) * MIB && now < before, "{now}");
        assert!(on_disk(&here.join("a.vhdx")) <= now);
        same_as_twin(here, "a.vhdx");
        let again = diskferry(here, &words).ok().json_lines();
        assert_eq!(again.last().unwrap()["moved_bytes"], 0);
    }
}

#[test]
fn a_served_disk_is_compacted_under_its_clients() {
    let here = folder();
    let here = here.path();
    scattered(here);
    let before = length(here, "a.vhdx");
    let listen = format!("unix:{}/s", here.display());
    let serving = Serving::start(here, &["a.vhdx", "--listen", &listen]);
    let over = AtomicBool::new(false);
    let mut busy = client(&serving);
    let rounds = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            // Always into the same place of each block that is there.
            let mut round = 0_u64;
            while !over.load(Ordering::Relaxed) || round < 3 {
                round += 1;
                for block in (1..BLOCKS).step_by(2) {
                    let data = [round as u8; 8192];
                    let at = block * 16 * MIB + 400 * 1024;
                    busy.write(at, &data, round.is_multiple_of(8)).unwrap();
                    let mut found = [0; 8192];
                    busy.read(at, &mut found).unwrap();
                    assert!(found == data, "block {block} in round {round}");
                }
            }
            busy.flush().unwrap();
            round
        });
        for more in [&[][..], &["--defragment"], &[]] {
            let words = [&["compact", "a.vhdx", "--json"][..], more].concat();
            let lines = diskferry(here, &words).ok().json_lines();
            assert_eq!(lines.last().unwrap()["online"], true);
        }
        over.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    let now = length(here, "a.vhdx");
    assert!(now < before, "{now} of {before}");
    serving.end();
    for block in (1..BLOCKS).step_by(2) {
        let at = format!(
            "write -P {} {} 8192",
            rounds % 256,
            block * 16 * MIB + 400 * 1024
        );
        let words = ["-f", "raw", "twin.img", "-c", &at];
        program(here, "qemu-io", &words).ok();
    }
    same_as_twin(here, "a.vhdx");
}

#[test]
fn disks_built_on_a_compacted_one_stay_valid() {
    let here = folder();
    let here = here.path();
    scattered(here);
    diskferry(here, &["snapshot", "a.vhdx", "child.vhdx"]).ok();
    let words = ["compact", "a.vhdx"];
    // It is read-only, and stays so unless somebody says otherwise.
    let may = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(here.join("a.vhdx"), may).unwrap();
    diskferry(here, &words).ok();
    same_as_twin(here, "a.vhdx");
    let words = ["convert", "child.vhdx", "flat.vhdx"];
    diskferry(here, &words).ok();
    same_as_twin(here, "flat.vhdx");
}

#[test]
fn what_cannot_be_compacted_is_refused_with_a_reason() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.img", "10M"]).ok();
    diskferry(here, &["compact", "a.img"]).fails(2);
    diskferry(here, &["compact", "none.vhdx"]).fails(1);
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    let words = [
        "a.vhdx",
        "--listen",
        "unix:s",
        "--read-only",
        "--control",
        "unix:c",
    ];
    let serving = Serving::start(here, &words);
    diskferry(here, &["compact", "a.vhdx"]).fails(5);
    let ran = diskferry(here, &["compact", "a.vhdx", "--control", "unix:c"]).fails(2);
    assert!(ran.stderr.contains("read-only"), "{}", ran.stderr);
    serving.end();
}
