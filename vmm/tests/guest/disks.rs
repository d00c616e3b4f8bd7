//! Disks under the guest: what it says of them is what is there.

use std::fs::{File, read};
use std::path::PathBuf;

use tempfile::TempDir;
use vdisk::create::CreateOptions;
use vdisk::disk::{Disk, OpenOptions, create_file, random_bits};

use crate::qemu::{Qemu, Ran};

/// Bytes of the disks here.
pub(crate) const SIZE: u64 = 64 << 20;

/// An empty raw disk in a folder that is there as long as it is held.
pub(crate) fn raw_disk() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.raw");
    let file = File::create(&path).expect("a file");
    file.set_len(SIZE).expect("room");
    (folder, path)
}

/// The word that the guest writes at a byte offset, for a seed.
fn stamp(seed: u64, offset: u64) -> u64 {
    let mut mixed = (seed ^ offset).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The first offset from `from` on where `found` is not the pattern of a seed.
fn first_wrong(seed: u64, from: u64, found: &[u8]) -> Option<u64> {
    let offsets = (from..).step_by(8);
    let mut words = offsets.zip(found.as_chunks::<8>().0);
    words.find_map(|(at, word)| (u64::from_le_bytes(*word) != stamp(seed, at)).then_some(at))
}

#[track_caller]
fn none_wrong(ran: &Ran, name: &str, requests: u64) {
    for event in ran.all(name) {
        assert_eq!(event["requests"], requests, "{event}");
        assert_eq!(
            (&event["errors"], &event["wrong"]),
            (&0.into(), &0.into()),
            "{event}"
        );
    }
    assert!(ran.all(name).next().is_some(), "no {name}");
}

#[test]
fn a_disk_is_described_as_it_is() {
    for kind in ["pc", "q35"] {
        let (_folder, path) = raw_disk();
        let options = "serial=ferry,num-queues=3,logical_block_size=4096,physical_block_size=4096";
        let machine = Qemu::new(kind).disk(&path, "raw", options);
        let ran = machine.run("do=disk").good();
        let disk = ran.event("disk");
        assert_eq!(disk["capacity"], SIZE, "{kind}");
        assert_eq!(
            (&disk["name"], &disk["queues"]),
            (&"ferry".into(), &3.into()),
            "{kind}"
        );
        assert_eq!(disk["block"], 4096, "{kind}");
    }
}

#[test]
fn what_the_guest_verifies_is_in_the_file() {
    for ways in [
        "",
        "indirect=1",
        "events=1",
        "indirect=1 events=1 depth=128 size=16K pieces=4",
    ] {
        let (_folder, path) = raw_disk();
        let machine = Qemu::new("q35").disk(&path, "raw", "");
        let words = format!("do=verify seed=7 from=1M length=2M {ways}");
        let ran = machine.run(&words).good();
        let requests = if ways.contains("16K") { 128 } else { 512 };
        none_wrong(&ran, "written", requests);
        none_wrong(&ran, "verified", requests);
        let found = read(&path).expect("the disk");
        let range = 1 << 20..3 << 20;
        assert_eq!(
            first_wrong(7, 1 << 20, &found[range.clone()]),
            None,
            "{ways}"
        );
        let others = found[..range.start].iter().chain(&found[range.end..]);
        assert!(others.into_iter().all(|byte| *byte == 0), "{ways}");
    }
}

#[test]
fn each_processor_has_a_queue_of_its_own() {
    let (_folder, path) = raw_disk();
    let machine = Qemu::new("q35").with(&["-smp", "3"]);
    let words = "do=verify length=3M events=1 do=load ops=50 do=load ops=50 queues=2";
    let ran = machine.disk(&path, "raw", "num-queues=4").run(words).good();
    none_wrong(&ran, "written", 256);
    none_wrong(&ran, "verified", 256);
    assert_eq!(ran.all("verified").count(), 3);
    // The second time one of them has no queue, and waits.
    assert_eq!(ran.all("load").count(), 3 + 2);
    let found = read(&path).expect("the disk");
    assert_eq!(first_wrong(1, 0, &found[..3 << 20]), None);
}

#[test]
fn what_the_guest_writes_to_a_vhdx_our_engine_reads() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.vhdx");
    create_file(&path, CreateOptions::new(SIZE, &mut random_bits)).expect("a disk");
    let words = "seed=3 from=31M length=3M do=verify only=write do=verify only=read do=disk";
    let ran = Qemu::new("pc").disk(&path, "vhdx", "").run(words).good();
    none_wrong(&ran, "verified", 768);
    assert_eq!(ran.event("disk")["capacity"], SIZE);
    let mut disk = Disk::open(&path, &OpenOptions::default()).expect("a disk");
    let mut found = vec![0; 3 << 20];
    disk.read_at(31 << 20, &mut found).expect("data");
    assert_eq!(first_wrong(3, 31 << 20, &found), None);
}

#[test]
fn a_pattern_that_is_not_there_is_seen() {
    let (_folder, path) = raw_disk();
    let words = "length=1M do=verify seed=1 do=verify seed=2 only=read";
    let ran = Qemu::new("q35").disk(&path, "raw", "").run(words);
    assert_eq!(ran.code, 1);
    let last = ran.all("verified").last().expect("an event");
    assert_eq!((&last["wrong"], &last["first"]), (&256.into(), &0.into()));
}

#[test]
fn a_load_does_what_it_was_told() {
    let (_folder, path) = raw_disk();
    let words = "do=load ops=500 write=100 depth=128 do=load ops=300 sequential=1 size=64K \
        do=load ticks=100M write=50 from=1M length=1M events=1 indirect=1 depth=128 seed=5";
    let ran = Qemu::new("q35").disk(&path, "raw", "").run(words).good();
    let [writes, reads, both] = &ran.all("load").collect::<Vec<_>>()[..] else {
        panic!("{:?}", ran.events);
    };
    // The queue has 256 descriptors, and each request three.
    assert_eq!(
        (&writes["reads"], &writes["writes"], &writes["depth"]),
        (&0.into(), &500.into(), &85.into())
    );
    assert_eq!(
        (&reads["reads"], &reads["size"]),
        (&300.into(), &65536.into())
    );
    assert!(both["ticks"].as_u64() >= Some(100 << 20), "{both}");
    assert!(
        both["reads"].as_u64() > Some(0) && both["writes"].as_u64() > Some(0),
        "{both}"
    );
    assert_eq!(both["depth"], 128);
    for load in [writes, reads, both] {
        assert_eq!(load["errors"], 0);
        let at = |name: &str| load[name].as_u64().expect("a number");
        assert!(
            at("p50") <= at("p99") && at("p99") <= at("longest"),
            "{load}"
        );
        assert!(
            at("longest") <= at("ticks") && at("gap") <= at("ticks"),
            "{load}"
        );
    }
}

#[test]
fn what_is_discarded_or_zeroed_reads_as_zero() {
    let (_folder, path) = raw_disk();
    let words = "do=verify length=4M do=discard from=1M length=1M zero=1 do=zeroes from=2M length=1M \
        do=zeroes from=3M length=512 unmap=1";
    let ran = Qemu::new("pc").disk(&path, "raw", "").run(words).good();
    assert_eq!(ran.event("discarded")["errors"], 0);
    assert_eq!(ran.all("zeroed").count(), 2);
    let found = read(&path).expect("the disk");
    assert_eq!(first_wrong(1, 0, &found[..1 << 20]), None);
    assert!(
        found[1 << 20..(3 << 20) + 512]
            .iter()
            .all(|byte| *byte == 0)
    );
    let rest = (3 << 20) + 512;
    assert_eq!(first_wrong(1, rest, &found[rest as usize..4 << 20]), None);
}

#[test]
fn what_a_disk_must_refuse_is_refused_and_changes_nothing() {
    let (_folder, path) = raw_disk();
    let words = "do=verify from=63M length=1M do=refusals do=refusals indirect=1 events=1";
    let ran = Qemu::new("q35").disk(&path, "raw", "").run(words).good();
    for refusals in ran.all("refusals") {
        assert_eq!(
            (&refusals["tried"], &refusals["unexpected"]),
            (&13.into(), &0.into())
        );
    }
    let found = read(&path).expect("the disk");
    assert_eq!(first_wrong(1, 63 << 20, &found[63 << 20..]), None);
    let file = path.to_str().expect("UTF-8");
    let drive = format!("driver=raw,read-only=on,file.driver=file,file.filename={file}");
    Qemu::new("q35").drive(&drive, "").run("do=refusals").good();
}

#[test]
fn a_capacity_that_changes_is_seen() {
    let (folder, path) = raw_disk();
    let machine = Qemu::new("q35").disk(&path, "raw", "");
    let machine = machine.start("do=resize-watch", &folder.path().join("monitor"));
    assert_eq!(machine.next()["bytes"], SIZE);
    machine.order("block_resize disk 96M");
    let resized = machine.next();
    assert_eq!(
        (&resized["event"], &resized["bytes"]),
        (&"resized".into(), &(96 << 20).into())
    );
    assert_eq!(machine.ends(), 0);
}
