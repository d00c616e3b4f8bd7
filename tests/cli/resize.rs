//! Disks that get another size, in their file and while they are served; QEMU sees what we see.

use std::path::Path;

use blockserver::nbd::CommandFlags;
use blockserver::nbd::blocking_client::BlockingClient;

use super::run::{diskferry, folder, on_disk, program};
use super::serving::Serving;

const GIB: u64 = 1 << 30;

/// Lets qemu-io do something to a disk.
fn qemu_io(here: &Path, format: &str, disk: &str, commands: &[String]) {
    let mut words = vec!["-f", format, disk];
    words.extend(commands.iter().flat_map(|c| ["-c", c.as_str()]));
    let ran = program(here, "qemu-io", &words).ok();
    assert!(!ran.stdout.contains("failed"), "{}", ran.stdout);
}

/// Writes the same to places of a disk and of its raw twin: to each its number, from 1 on.
fn write_both(here: &Path, disk: &str, places: &[&str]) {
    let write = |(number, at): (usize, &&str)| format!("write -P {} {at} 70000", number + 1);
    let commands: Vec<String> = places.iter().enumerate().map(write).collect();
    qemu_io(here, "vhdx", disk, &commands);
    qemu_io(here, "raw", "twin.img", &commands);
}

/// QEMU finds the disk sound, of that size, with those numbers in those places and zeros behind them.
fn qemu_sees(here: &Path, disk: &str, size: u64, places: &[&str]) {
    let info = program(here, "qemu-img", &["info", "--output=json", disk]).ok();
    let info: serde_json::Value = serde_json::from_str(&info.stdout).unwrap();
    assert_eq!(info["virtual-size"], size);
    program(here, "qemu-img", &["check", disk]).ok();
    let read = |(number, at): (usize, &&str)| format!("read -P {} {at} 70000", number + 1);
    let mut commands: Vec<String> = places.iter().enumerate().map(read).collect();
    commands.push(format!("read -P 0 {} 1M", size - (1 << 20)));
    qemu_io(here, "vhdx", disk, &commands);
    diskferry(here, &["check", disk]).ok();
}

/// QEMU finds the disk equal to its raw twin. It reads all of both, so they should not be large.
fn qemu_finds_equal(here: &Path, disk: &str, size: u64) {
    let twin = std::fs::OpenOptions::new()
        .write(true)
        .open(here.join("twin.img"));
    twin.unwrap().set_len(size).unwrap();
    program(here, "qemu-img", &["compare", disk, "twin.img"]).ok();
}

#[test]
fn qemu_reads_a_disk_that_we_made_larger_and_smaller() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "3G", "--block-size", "1M"]).ok();
    diskferry(here, &["create", "twin.img", "3G"]).ok();
    let places = ["0", "2G", "3071M"];
    write_both(here, "a.vhdx", &places);
    // The table of 1 MiB has room for 127 GiB in blocks of 1 MiB; then it has to move.
    for size in ["20G", "+280G", "2T"] {
        let line = diskferry(here, &["resize", "--json", "a.vhdx", size])
            .ok()
            .json();
        assert_eq!(
            (&line["type"], &line["online"]),
            (&"resized".into(), &false.into())
        );
        let size = line["virtual_size"].as_u64().unwrap();
        qemu_sees(here, "a.vhdx", size, &places);
        // QEMU goes on with it, in what is new.
        let at = size - (2 << 20);
        qemu_io(
            here,
            "vhdx",
            "a.vhdx",
            &[format!("write -P 7 {at} 4k"), format!("read -P 7 {at} 4k")],
        );
    }
    assert!(on_disk(&here.join("a.vhdx")) < 32 << 20);
    diskferry(here, &["resize", "a.vhdx", "4G", "--discard-data"]).ok();
    qemu_sees(here, "a.vhdx", 4 * GIB, &places);
    qemu_finds_equal(here, "a.vhdx", 4 * GIB);
    // What was cut off does not come back.
    diskferry(here, &["resize", "a.vhdx", "20G"]).ok();
    qemu_sees(here, "a.vhdx", 20 * GIB, &places);
    qemu_io(here, "vhdx", "a.vhdx", &["read -P 0 20478M 2M".to_owned()]);
}

#[test]
fn qemu_reads_its_own_disk_after_we_resized_it() {
    let here = folder();
    let here = here.path();
    let options = "block_size=1M";
    let create = [
        "create", "-q", "-f", "vhdx", "-o", options, "q.vhdx", "3000M",
    ];
    program(here, "qemu-img", &create).ok();
    diskferry(here, &["create", "twin.img", "3000M"]).ok();
    let places = ["0", "2G", "2999M"];
    write_both(here, "q.vhdx", &places);
    for size in [4 * GIB, 400 * GIB, 5 * GIB] {
        diskferry(here, &["resize", "q.vhdx", &size.to_string()]).ok();
        qemu_sees(here, "q.vhdx", size, &places);
    }
    qemu_finds_equal(here, "q.vhdx", 5 * GIB);
}

#[test]
fn data_is_cut_off_only_with_leave() {
    let here = folder();
    let here = here.path();
    for disk in ["a.vhdx", "a.img"] {
        diskferry(here, &["create", disk, "4G"]).ok();
        let format = if disk == "a.img" { "raw" } else { "vhdx" };
        program(
            here,
            "qemu-io",
            &["-f", format, disk, "-c", "write -P 9 3G 64k"],
        )
        .ok();
        let ran = diskferry(here, &["resize", disk, "-2G"]).fails(2);
        assert!(
            ran.stderr.contains("data at byte 3221225472"),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains("--discard-data"), "{}", ran.stderr);
        let line = diskferry(here, &["resize", disk, "--json", "-512M"])
            .ok()
            .json();
        assert_eq!(line["virtual_size"], 7 * GIB / 2);
        let line = diskferry(here, &["resize", disk, "-2G", "--discard-data", "--json"]).ok();
        let line = line.json();
        assert_eq!(line["previous_size"], 7 * GIB / 2);
        assert_eq!(line["virtual_size"], 3 * GIB / 2);
    }
    for size in ["0", "1000", "-4G", "+16E", "65T", "much"] {
        diskferry(here, &["resize", "a.vhdx", size]).fails(2);
    }
    let info = diskferry(here, &["info", "--json", "a.vhdx"]).ok().json();
    assert_eq!(info["virtual_size"], 3 * GIB / 2);
}

#[test]
fn a_disk_that_is_built_on_another_reads_zero_behind_its_old_end() {
    let here = folder();
    let here = here.path();
    let write = |disk: &str, command: &str| {
        program(here, "qemu-io", &["-f", "vhdx", disk, "-c", command]).ok();
    };
    diskferry(here, &["create", "base.vhdx", "1G"]).ok();
    write("base.vhdx", "write -P 9 0 512M");
    diskferry(here, &["snapshot", "base.vhdx", "a.vhdx"]).ok();
    let ran = diskferry(here, &["resize", "a.vhdx", "300M"]).fails(2);
    assert!(
        ran.stderr.contains("data at byte 314572800"),
        "{}",
        ran.stderr
    );
    diskferry(here, &["resize", "a.vhdx", "600M"]).ok();
    diskferry(here, &["resize", "a.vhdx", "301M", "--discard-data"]).ok();
    // Offline, then at a server.
    diskferry(here, &["resize", "a.vhdx", "400M"]).ok();
    let listen = format!("unix:{}/s", here.display());
    let serving = Serving::start(here, &["a.vhdx", "--listen", &listen]);
    client(&serving).write(399 << 20, &[5; 4096], true).unwrap();
    let ran = diskferry(here, &["resize", "a.vhdx", "200M"]).fails(2);
    assert!(
        ran.stderr.contains("data at byte 209715200"),
        "{}",
        ran.stderr
    );
    diskferry(here, &["resize", "a.vhdx", "201M", "--discard-data"]).ok();
    diskferry(here, &["resize", "a.vhdx", "2T"]).ok();
    let mut later = client(&serving);
    for (at, holds) in [
        (0, 9),
        (201, 0),
        (224, 0),
        (301, 0),
        (399, 0),
        (511, 0),
        (600, 0),
    ] {
        let mut buffer = [1; 8192];
        later.read(at << 20, &mut buffer).unwrap();
        assert_eq!(buffer, [holds; 8192], "at {at} MiB");
    }
    let mut buffer = [1; 4096];
    later.read((201 << 20) - 4096, &mut buffer).unwrap();
    assert_eq!(buffer, [9; 4096]);
    serving.end();
    diskferry(here, &["check", "a.vhdx"]).ok();
    diskferry(here, &["resize", "a.vhdx", "1G"]).ok();
    diskferry(here, &["convert", "a.vhdx", "whole.vhdx"]).ok();
    for at in ["0 201M", "201M 823M"] {
        let holds = if at.starts_with('0') { 9 } else { 0 };
        write("whole.vhdx", &format!("read -P {holds} {at}"));
    }
}

#[test]
fn a_disk_that_another_program_holds_is_not_resized() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    let file = std::fs::File::open(here.join("a.vhdx")).unwrap();
    file.lock().unwrap();
    diskferry(here, &["resize", "a.vhdx", "2G"]).fails(5);
}

/// A connection to a server's first disk.
fn client(serving: &Serving) -> BlockingClient {
    BlockingClient::connect(&serving.uri().parse().unwrap()).unwrap()
}

#[test]
fn a_served_disk_is_resized_under_its_clients() {
    for disk in ["a.vhdx", "a.img"] {
        let here = folder();
        let here = here.path();
        diskferry(here, &["create", disk, "1G"]).ok();
        let listen = format!("unix:{}/s", here.display());
        let serving = Serving::start(here, &[disk, "--listen", &listen]);
        let mut early = client(&serving);
        early.write(512 << 20, &[1; 4096], false).unwrap();
        let line = diskferry(here, &["resize", "--json", disk, "+1G"])
            .ok()
            .json();
        assert_eq!(
            (&line["virtual_size"], &line["online"]),
            (&(2 * GIB).into(), &true.into())
        );
        let mut later = client(&serving);
        assert_eq!((early.size(), later.size()), (GIB, 2 * GIB));
        later.write(2 * GIB - 4096, &[2; 4096], false).unwrap();
        early.write(0, &[3; 4096], true).unwrap();
        let ran = diskferry(here, &["resize", disk, "256M"]).fails(2);
        assert!(
            ran.stderr.contains("data at byte 536870912"),
            "{}",
            ran.stderr
        );
        diskferry(here, &["resize", disk, "256M", "--discard-data"]).ok();
        assert_eq!(client(&serving).size(), 256 << 20);
        // Those that are connected find their disk cut off, and nothing else.
        let mut buffer = [0; 4096];
        assert!(later.read(2 * GIB - 4096, &mut buffer).is_err());
        assert!(later.write(2 * GIB - 4096, &[4; 4096], false).is_err());
        assert!(later.write((256 << 20) - 512, &[4; 1024], true).is_err());
        assert!(
            later
                .zeroes(512 << 20, 4096, CommandFlags::default())
                .is_err()
        );
        assert!(early.trim(512 << 20, 4096).is_err());
        early.read(0, &mut buffer).unwrap();
        assert_eq!(buffer, [3; 4096]);
        early.flush().unwrap();
        diskferry(here, &["resize", disk, "1G"]).ok();
        early.read(512 << 20, &mut buffer).unwrap();
        assert_eq!(buffer, [0; 4096]);
        early.read((256 << 20) - 512, &mut buffer).unwrap();
        assert_eq!(buffer, [0; 4096]);
        serving.end();
        if disk == "a.vhdx" {
            diskferry(here, &["check", disk]).ok();
            program(here, "qemu-img", &["check", disk]).ok();
        }
        let info = diskferry(here, &["info", "--json", disk]).ok().json();
        assert_eq!(info["virtual_size"], GIB);
    }
}

#[test]
fn a_disk_that_is_served_read_only_is_not_resized() {
    let here = folder();
    let here = here.path();
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
    diskferry(here, &["resize", "a.vhdx", "2G"]).fails(5);
    let ran = diskferry(here, &["resize", "a.vhdx", "2G", "--control", "unix:c"]).fails(2);
    assert!(ran.stderr.contains("read-only"), "{}", ran.stderr);
    serving.end();
}
