//! Served disks that are built on others.

use std::fs;
use std::path::Path;
use std::thread;

use blockserver::nbd::CommandFlags;
use blockserver::nbd::blocking_client::BlockingClient;

use super::random::Random;
use crate::run::{diskferry, folder};
use crate::serving::Serving;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 96 * MIB;
const CLIENTS: u64 = 4;

fn socket(here: &Path, name: &str) -> String {
    format!("unix:{}", here.join(name).display())
}

fn client(serving: &Serving) -> BlockingClient {
    BlockingClient::connect(&serving.uri().parse().expect("an address")).expect("it listens")
}

/// Clients write, zero and read at random, each in its own stripes of 64 KiB, which lie between those
/// of the others.
fn write_about(serving: &Serving, content: &mut [u8], random: &mut Random) {
    let seeds: Vec<u64> = (0..CLIENTS).map(|_| random.next()).collect();
    let stripe = 64 << 10;
    let writes: Vec<Vec<(u64, Vec<u8>)>> = thread::scope(|scope| {
        let run = |(number, seed): (usize, &u64)| {
            let (seed, mut client) = (*seed, client(serving));
            scope.spawn(move || {
                let mut random = Random::of(seed);
                let mut done = Vec::new();
                for _ in 0..150 {
                    let turn = random.below(SIZE / stripe / CLIENTS);
                    let start = random.below(stripe / 512 - 1);
                    let sectors = 1 + random.below(stripe / 512 - start);
                    let offset = (turn * CLIENTS + number as u64) * stripe + start * 512;
                    let len = sectors * 512;
                    if random.below(5) == 0 {
                        client
                            .zeroes(offset, len, CommandFlags::default())
                            .expect("zeroed");
                        done.push((offset, vec![0; len as usize]));
                    } else {
                        let data = vec![1 + random.below(255) as u8; len as usize];
                        client
                            .write(offset, &data, random.below(9) == 0)
                            .expect("written");
                        done.push((offset, data));
                    }
                    let (offset, data) = &done[done.len() - 1];
                    let mut back = vec![0xEE; data.len()];
                    client.read(*offset, &mut back).expect("read");
                    assert!(&back == data, "{len} bytes at {offset} read otherwise");
                }
                client.flush().expect("flushed");
                done
            })
        };
        let threads: Vec<_> = seeds.iter().enumerate().map(run).collect();
        threads
            .into_iter()
            .map(|one| one.join().expect("a client"))
            .collect()
    });
    for (offset, data) in writes.into_iter().flatten() {
        content[offset as usize..][..data.len()].copy_from_slice(&data);
    }
}

fn served(here: &Path, disk: &str, content: &mut [u8], random: &mut Random) {
    let serving = Serving::start(here, &[disk, "--listen", &socket(here, "s")]);
    write_about(&serving, content, random);
    let mut back = vec![0xEE; content.len()];
    let mut reader = client(&serving);
    for (number, piece) in back.chunks_mut(MIB as usize).enumerate() {
        reader.read(number as u64 * MIB, piece).expect("read");
    }
    assert!(back == content, "{disk} as it is served");
    drop(reader);
    serving.end();
    diskferry(here, &["check", disk]).ok();
}

#[test]
fn a_served_chain_holds_what_its_clients_wrote_and_leaves_its_parents_alone() {
    let here = folder();
    let here = here.path();
    let mut random = Random::printed();
    let mut content = vec![0; SIZE as usize];
    diskferry(here, &["create", "base.vhdx", "96M", "--block-size", "1M"]).ok();
    served(here, "base.vhdx", &mut content, &mut random);
    diskferry(here, &["snapshot", "base.vhdx", "a.vhdx"]).ok();
    let base = fs::read(here.join("base.vhdx")).unwrap();
    served(here, "a.vhdx", &mut content, &mut random);
    diskferry(
        here,
        &["snapshot", "a.vhdx", "b.vhdx", "--block-size", "32M"],
    )
    .ok();
    served(here, "b.vhdx", &mut content, &mut random);
    assert!(fs::read(here.join("base.vhdx")).unwrap() == base);
    diskferry(here, &["convert", "b.vhdx", "whole.img"]).ok();
    assert!(fs::read(here.join("whole.img")).unwrap() == content);
    // A chain of disks becomes one that other programs read.
    diskferry(here, &["convert", "b.vhdx", "whole.vhdx"]).ok();
    let words = [
        "compare",
        "-f",
        "raw",
        "-F",
        "vhdx",
        "whole.img",
        "whole.vhdx",
    ];
    crate::run::program(here, "qemu-img", &words).ok();
}

#[test]
fn a_disk_on_which_others_are_built_is_served_for_reading_only() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "base.vhdx", "64M"]).ok();
    diskferry(here, &["snapshot", "base.vhdx", "a.vhdx"]).ok();
    let refused = diskferry(here, &["serve", "base.vhdx", "--listen", "unix:s"]).fails(1);
    assert!(
        refused.stderr.contains("other disks may be built on it"),
        "{}",
        refused.stderr
    );
    let first = Serving::start(here, &["a.vhdx", "--listen", &socket(here, "a")]);
    let second = Serving::start(
        here,
        &["base.vhdx", "--read-only", "--listen", &socket(here, "b")],
    );
    let mut byte = [1; 512];
    client(&first).read(0, &mut byte).expect("read");
    client(&second).read(0, &mut byte).expect("read");
    first.end();
    second.end();
}
