//! Snapshots of disks that are served, while they are written.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use blockserver::nbd::blocking_client::BlockingClient;

use super::run::{diskferry, folder, program};
use super::serving::Serving;

const MIB: u64 = 1 << 20;
const PLACES: u64 = 64;
const SNAPSHOTS: u8 = 8;

fn serve(here: &Path, disk: &str) -> Serving {
    let listen = format!("unix:{}/s", here.display());
    Serving::start(here, &[disk, "--listen", &listen])
}

fn client(serving: &Serving) -> BlockingClient {
    BlockingClient::connect(&serving.uri().parse().unwrap()).unwrap()
}

fn place(number: u64) -> u64 {
    number * 7 * MIB + 4096 * (number % 5)
}

fn number_at(client: &mut BlockingClient, number: u64) -> u64 {
    let mut found = [0; 4096];
    client.read(place(number), &mut found).unwrap();
    u64::from_le_bytes(found[..8].try_into().unwrap())
}

/// The disk's places in their order, read from a copy that `qemu-img` compares to ours.
fn numbers(here: &Path, disk: &str) -> Vec<u64> {
    diskferry(here, &["convert", disk, "copy.img", "--force"]).ok();
    let copy = fs::read(here.join("copy.img")).unwrap();
    let at = |number| place(number) as usize;
    let read = |number| u64::from_le_bytes(copy[at(number)..at(number) + 8].try_into().unwrap());
    (0..PLACES).map(read).collect()
}

#[test]
fn a_snapshot_under_load_holds_one_moment_and_no_acknowledged_write_is_lost() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "512M"]).ok();
    let serving = serve(here, "a.vhdx");
    let (over, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut writer = client(&serving);
    let mut moments = Vec::new();
    let last = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            // Each write has a number greater than all before it, and goes to the next place.
            let mut number = 0_u64;
            while !over.load(Ordering::Relaxed) {
                number += 1;
                let mut data = [0; 4096];
                data[..8].copy_from_slice(&number.to_le_bytes());
                writer.write(place(number % PLACES), &data, false).unwrap();
                acknowledged.store(number, Ordering::Release);
            }
            assert_eq!(number_at(&mut writer, number % PLACES), number);
            number
        });
        for (base, child) in [
            ("a.vhdx", "b.vhdx"),
            ("b.vhdx", "c.vhdx"),
            ("c.vhdx", "d.vhdx"),
        ] {
            while acknowledged.load(Ordering::Acquire) < (moments.len() as u64 + 1) * 300 {
                std::thread::sleep(Duration::from_millis(1));
            }
            let before = acknowledged.load(Ordering::Acquire);
            let line = diskferry(here, &["snapshot", base, child, "--json"])
                .ok()
                .json();
            assert_eq!(line["online"], true);
            moments.push((base, before, acknowledged.load(Ordering::Acquire)));
        }
        over.store(true, Ordering::Relaxed);
        writing.join().unwrap()
    });
    // It is found by any of its disks, and by the name of the one that is served now.
    diskferry(here, &["resize", "d.vhdx", "1G"]).ok();
    serving.end();
    diskferry(here, &["resize", "d.vhdx", "512M"]).ok();
    for (base, before, after) in moments {
        diskferry(here, &["check", "--chain", base]).ok();
        assert!(
            fs::metadata(here.join(base))
                .unwrap()
                .permissions()
                .readonly()
        );
        let found = numbers(here, base);
        let newest = *found.iter().max().unwrap();
        assert!(
            (before..=after + 1).contains(&newest),
            "{newest} of {before}..={after}"
        );
        // One moment: the last writes up to the newest one, none of them missing.
        for number in newest + 1 - PLACES..=newest {
            assert_eq!(found[(number % PLACES) as usize], number, "{base}");
        }
    }
    let found = numbers(here, "d.vhdx");
    for number in last + 1 - PLACES..=last {
        assert_eq!(found[(number % PLACES) as usize], number);
    }
    program(here, "qemu-img", &["check", "a.vhdx"]).ok();
}

#[test]
fn a_snapshot_that_cannot_be_taken_leaves_the_disk_as_it_is() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "512M"]).ok();
    fs::write(here.join("taken.vhdx"), "somebody's").unwrap();
    let serving = serve(here, "a.vhdx");
    let mut client = client(&serving);
    client.write(0, &[1; 4096], true).unwrap();
    for child in ["taken.vhdx", "no/folder/b.vhdx"] {
        let ran = diskferry(here, &["snapshot", "a.vhdx", child]);
        assert_ne!(ran.code, 0, "{}", ran.stdout);
        client.write(0, &[2; 4096], true).unwrap();
    }
    assert_eq!(fs::read(here.join("taken.vhdx")).unwrap(), b"somebody's");
    // Nobody else may have it, as before.
    diskferry(here, &["map", "a.vhdx"]).fails(5);
    drop(client);
    serving.end();
    diskferry(here, &["check", "a.vhdx"]).ok();
    assert!(
        !fs::metadata(here.join("a.vhdx"))
            .unwrap()
            .permissions()
            .readonly()
    );
}

#[test]
fn a_server_killed_around_a_snapshot_leaves_every_flushed_write() {
    for delay in [0, 3, 6, 10, 15, 25, 40, 80] {
        let here = folder();
        let here = here.path();
        diskferry(here, &["create", "a.vhdx", "512M"]).ok();
        let serving = serve(here, "a.vhdx");
        let mut writer = client(&serving);
        for number in 0..PLACES {
            let data = [number as u8 + 1; 4096];
            writer.write(place(number), &data, false).unwrap();
        }
        writer.flush().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| diskferry(here, &["snapshot", "a.vhdx", "b.vhdx"]));
            std::thread::sleep(Duration::from_millis(delay));
            serving.kill();
        });
        let newest = if here.join("b.vhdx").exists() {
            "b.vhdx"
        } else {
            "a.vhdx"
        };
        println!("after {delay} ms: {newest}");
        let found = numbers(here, newest);
        for (number, found) in (0_u64..).zip(found) {
            assert_eq!(
                found.to_le_bytes(),
                [number as u8 + 1; 8],
                "{newest} after {delay} ms"
            );
        }
        let sound = diskferry(here, &["check", "--chain", newest]);
        assert!([0, 4].contains(&sound.code), "{}", sound.stdout);
    }
}

#[test]
fn a_compaction_under_way_does_not_change_a_disk_that_becomes_a_parent() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "0.vhdx", "512M", "--block-size", "1M"]).ok();
    diskferry(here, &["track", "on", "0.vhdx"]).ok();
    let serving = serve(here, "0.vhdx");
    let mut writer = client(&serving);
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let socket = fs::read_dir(here.join("run")).unwrap().next().unwrap();
    let control = format!("unix:{}", socket.unwrap().path().display());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // Of the disk that is served just then; another one is refused as not served there.
                    let disk = format!("{}.vhdx", served.load(Ordering::Relaxed));
                    let words = ["compact", &disk, "--control", &control];
                    drop(super::run::command(here, "diskferry", &words).output());
                }
            });
        }
        for number in 0..SNAPSHOTS {
            for place in 0..40_u64 {
                let at = (place * 11 + u64::from(number)) % 500 * MIB;
                writer.write(at, &[number + 1; 8192], false).unwrap();
                if place % 2 == 1 {
                    writer.trim(at, MIB).unwrap();
                }
            }
            let (base, child) = (format!("{number}.vhdx"), format!("{}.vhdx", number + 1));
            diskferry(here, &["snapshot", &base, &child]).ok();
            served.store(u64::from(number) + 1, Ordering::Relaxed);
        }
        over.store(true, Ordering::Relaxed);
    });
    drop(writer);
    serving.end();
    for number in 0..=SNAPSHOTS {
        diskferry(here, &["check", "--chain", &format!("{number}.vhdx")]).ok();
    }
    diskferry(here, &["map", &format!("{SNAPSHOTS}.vhdx")]).ok();
}

#[test]
fn a_checkpoint_at_the_same_time_does_not_change_a_disk_that_becomes_a_parent() {
    for round in 0..12 {
        let here = folder();
        let here = here.path();
        diskferry(here, &["create", "a.vhdx", "512M"]).ok();
        diskferry(here, &["track", "on", "a.vhdx"]).ok();
        let serving = serve(here, "a.vhdx");
        client(&serving).write(0, &[1; 4096], true).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for number in 0..4 {
                        let name = format!("{thread}-{number}");
                        let words = ["checkpoint", "add", "a.vhdx", &name];
                        drop(super::run::command(here, "diskferry", &words).output());
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(round));
            diskferry(here, &["snapshot", "a.vhdx", "b.vhdx"]).ok();
        });
        serving.end();
        diskferry(here, &["check", "--chain", "b.vhdx"]).ok();
    }
}
