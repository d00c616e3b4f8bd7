//! Space given back through NBD, and what clients see of it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use blockserver::nbd::CommandFlags;
use blockserver::nbd::blocking_client::BlockingClient;

use crate::run::{diskferry, folder, on_disk, program};
use crate::serving::Serving;

const MIB: u64 = 1 << 20;

/// Waits until the image takes less than `most` bytes: space goes back behind the clients.
#[track_caller]
fn falls_below(image: &Path, most: u64) {
    let patience = Instant::now() + Duration::from_secs(20);
    while on_disk(image) >= most {
        assert!(
            Instant::now() < patience,
            "{} bytes, not below {most}",
            on_disk(image)
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn is_zero(client: &mut BlockingClient, at: u64, len: u64) -> bool {
    let mut back = vec![0xEE; len as usize];
    client.read(at, &mut back).expect("read");
    back.iter().all(|byte| *byte == 0)
}

#[test]
fn trimmed_and_zeroed_space_goes_back_to_the_host_and_reads_as_zero() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G", "--block-size", "1M"]).ok();
    let image = here.join("a.vhdx");
    let place = format!("unix:{}", here.join("s").display());
    let serving = Serving::start(here, &["a.vhdx", "--listen", &place]);
    let address = serving.uri().parse().expect("an address");
    let mut client = BlockingClient::connect(&address).expect("it listens");
    let noise: Vec<u8> = (0..MIB as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 | 1)
        .collect();
    for block in 0..96 {
        client.write(block * MIB, &noise, false).expect("written");
    }
    client.flush().expect("flushed");
    let full = on_disk(&image);
    assert!(full >= 96 * MIB, "{full}");
    // Whole blocks, by both words.
    client.trim(0, 32 * MIB).expect("trimmed");
    client
        .zeroes(32 * MIB, 32 * MIB, CommandFlags::default())
        .expect("zeroed");
    client.flush().expect("flushed");
    falls_below(&image, full - 60 * MIB);
    assert!(is_zero(&mut client, 0, 64 * MIB));
    // Half of each block.
    for block in 64..96 {
        client.trim(block * MIB, MIB / 4).expect("trimmed");
        client
            .zeroes(block * MIB + MIB / 4, MIB / 4, CommandFlags::default())
            .expect("zeroed");
    }
    client.flush().expect("flushed");
    falls_below(&image, full - 75 * MIB);
    for block in 64..96 {
        assert!(is_zero(&mut client, block * MIB, MIB / 2));
    }
    let mut back = vec![0; MIB as usize / 2];
    client.read(95 * MIB + MIB / 2, &mut back).expect("read");
    assert!(
        back == noise[MIB as usize / 2..],
        "what was not trimmed stays"
    );
    // Space that went back is used again, and shows nothing old.
    for block in 0..64 {
        client
            .write(block * MIB + 8192, &[7; 4096], false)
            .expect("written");
    }
    client.flush().expect("flushed");
    for block in 0..64 {
        assert!(is_zero(&mut client, block * MIB, 8192));
        assert!(is_zero(&mut client, block * MIB + 12288, MIB - 12288));
    }
    drop(client);
    serving.end();
    diskferry(here, &["check", "a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "a.vhdx"]).ok();
}

#[test]
fn room_that_must_not_fail_later_is_taken_at_once() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G", "--block-size", "1M"]).ok();
    let image = here.join("a.vhdx");
    let place = format!("unix:{}", here.join("s").display());
    let serving = Serving::start(here, &["a.vhdx", "--listen", &place]);
    let address = serving.uri().parse().expect("an address");
    let mut client = BlockingClient::connect(&address).expect("it listens");
    let keep = CommandFlags {
        no_hole: true,
        ..CommandFlags::default()
    };
    let before = on_disk(&image);
    client.zeroes(10 * MIB, 20 * MIB, keep).expect("zeroed");
    client.flush().expect("flushed");
    assert!(on_disk(&image) >= before + 20 * MIB);
    assert!(is_zero(&mut client, 9 * MIB, 22 * MIB));
    drop(client);
    serving.end();
}

#[test]
fn nbdinfo_sees_the_blocks_of_a_sparse_disk_as_they_are() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G", "--block-size", "1M"]).ok();
    let serving = Serving::start(here, &["a.vhdx", "--listen", "unix:s"]);
    let uri = serving.uri();
    let words = [
        "-f",
        "raw",
        &uri,
        "-c",
        "write -P 1 100M 2M",
        "-c",
        "write -P 2 500M 1M",
        "-c",
        "flush",
    ];
    program(here, "qemu-io", &words).ok();
    let map = program(here, "nbdinfo", &["--map", "--json", &uri]).ok();
    let map: Vec<serde_json::Value> = serde_json::from_str(&map.stdout).expect("JSON");
    let runs: Vec<_> = map
        .iter()
        .map(|run| {
            let number = |key: &str| run[key].as_u64().expect("a number");
            (number("offset"), number("length"), number("type"))
        })
        .collect();
    let expected = [
        (0, 100 * MIB, 3),
        (100 * MIB, 2 * MIB, 0),
        (102 * MIB, 398 * MIB, 3),
        (500 * MIB, MIB, 0),
        (501 * MIB, 523 * MIB, 3),
    ];
    assert_eq!(runs, expected);
    serving.end();
}
