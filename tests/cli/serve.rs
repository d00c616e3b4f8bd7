//! Served disks: real clients read and write them, and a killed server loses nothing flushed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::run::{command, diskferry, folder, program};
use super::serving::Serving;

const SIZE: u64 = 200 << 20;

/// A raw disk with something in it.
fn raw(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    let bytes: Vec<u8> = (0..5_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    file.write_all_at(&bytes, 0).unwrap();
    file.write_all_at(&bytes, 150 << 20).unwrap();
}

#[test]
fn nbdinfo_finds_every_disk_and_its_holes() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    diskferry(here, &["convert", "a.img", "a.vhdx", "--block-size", "1M"]).ok();
    let serving = Serving::start(here, &["a.vhdx", "raw=a.img", "--listen", "unix:s"]);
    let list = program(
        here,
        "nbdinfo",
        &["--list", "--json", "nbd+unix:///?socket=s"],
    )
    .ok();
    let list: serde_json::Value = serde_json::from_str(&list.stdout).unwrap();
    let names: Vec<_> = list["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["export-name"].clone())
        .collect();
    assert_eq!(names, ["a", "raw"]);
    for export in ["a", "raw"] {
        let uri = format!("nbd+unix:///{export}?socket=s");
        program(here, "nbdinfo", &["--can", "flush", &uri]).ok();
        program(here, "nbdinfo", &["--can", "multi-conn", &uri]).ok();
        let map = program(here, "nbdinfo", &["--map", "--totals", &uri])
            .ok()
            .stdout;
        let data = map
            .lines()
            .find(|line| line.trim_end().ends_with("data"))
            .expect("data");
        let bytes: u64 = data.split_whitespace().next().unwrap().parse().unwrap();
        assert!((10_000_000..13_000_000).contains(&bytes), "{map}");
    }
    // Two exports, so none is the default one.
    assert_ne!(program(here, "nbdinfo", &["nbd+unix:///?socket=s"]).code, 0);
    serving.end();
}

#[test]
fn nbdcopy_brings_a_disk_in_and_out() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    diskferry(here, &["create", "b.vhdx", &SIZE.to_string()]).ok();
    let serving = Serving::start(here, &["b.vhdx", "--listen", "unix:s"]);
    program(here, "nbdcopy", &["--flush", "a.img", &serving.uri()]).ok();
    program(here, "nbdcopy", &[serving.uri().as_str(), "c.img"]).ok();
    program(
        here,
        "qemu-img",
        &["compare", "-f", "raw", "a.img", "c.img"],
    )
    .ok();
    let summary = serving.end();
    assert!(
        summary["exports"][0]["write"]["requests"].as_u64().unwrap() > 0,
        "{summary}"
    );
    diskferry(here, &["check", "b.vhdx"]).ok();
    program(here, "qemu-img", &["check", "b.vhdx"]).ok();
    program(here, "qemu-img", &["compare", "a.img", "b.vhdx"]).ok();
}

#[test]
fn qemu_io_writes_what_qemu_img_reads_back() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "b.vhdx", "1G", "--block-size", "1M"]).ok();
    let serving = Serving::start(here, &["b.vhdx", "--listen", "unix:s"]);
    let uri = serving.uri();
    let io = |commands: &[&str]| {
        let mut words = vec!["-f", "raw", uri.as_str()];
        words.extend(commands.iter().flat_map(|c| ["-c", *c]));
        let ran = program(here, "qemu-io", &words).ok();
        assert!(!ran.stdout.contains("failed"), "{}", ran.stdout);
    };
    io(&[
        "write -P 1 1000 70000",
        "write -f -P 2 3M 1M",
        "write -z 3500k 100k",
        "flush",
    ]);
    io(&[
        "write -P 3 900M 2M",
        "discard 900M 1M",
        "read -P 3 901M 1M",
        "read -P 0 3500k 100k",
    ]);
    serving.end();
    for pattern in [
        "read -P 1 1000 70000",
        "read -P 2 3M 428k",
        "read -P 0 3500k 100k",
        "read -P 0 0 1000",
    ] {
        let ran = program(
            here,
            "qemu-io",
            &["-f", "vhdx", "-r", "b.vhdx", "-c", pattern],
        )
        .ok();
        assert!(!ran.stdout.contains("failed"), "{pattern}: {}", ran.stdout);
    }
    program(here, "qemu-img", &["check", "b.vhdx"]).ok();
}

#[test]
fn fio_finds_every_block_as_it_wrote_it() {
    let here = folder();
    let here = here.path();
    for (name, words) in [("b.vhdx", &["--block-size", "1M"][..]), ("b.img", &[])] {
        diskferry(here, &[&["create", name, "256M"], words].concat()).ok();
        let serving = Serving::start(here, &[name, "--listen", "unix:s"]);
        let uri = format!("--uri={}", serving.uri());
        program(
            here,
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                "--rw=randwrite",
                "--bsrange=4k-64k",
                "--size=64M",
                "--iodepth=16",
                "--verify=crc32c",
                "--do_verify=1",
                "--fsync=64",
                "--verify_fatal=1",
                "--randseed=7",
            ],
        )
        .ok();
        serving.end();
        let _ = std::fs::remove_file(here.join("s"));
    }
    diskferry(here, &["check", "b.vhdx"]).ok();
}

#[test]
fn a_disk_has_one_writer_and_an_address_one_server() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    diskferry(here, &["create", "b.vhdx", "1G"]).ok();
    let serving = Serving::start(here, &["a.vhdx", "--listen", "tcp:127.0.0.1:0"]);
    let ran = diskferry(here, &["serve", "a.vhdx", "--listen", "unix:t"]).fails(5);
    assert!(
        ran.stderr.contains("a.vhdx") && ran.stderr.contains("in use"),
        "{}",
        ran.stderr
    );
    let port = serving
        .uri()
        .rsplit(':')
        .next()
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    let place = format!("tcp:127.0.0.1:{port}");
    let ran = diskferry(here, &["serve", "b.vhdx", "--listen", &place]).fails(5);
    assert!(ran.stderr.contains(&place), "{}", ran.stderr);
    serving.end();
    // Readers do not disturb one another.
    let one = Serving::start(here, &["a.vhdx", "--read-only", "--listen", "unix:s"]);
    let two = Serving::start(here, &["a.vhdx", "--read-only", "--listen", "unix:t"]);
    assert_eq!(one.line["read_only"], true);
    let ran = program(
        here,
        "qemu-io",
        &["-f", "raw", &two.uri(), "-c", "write 0 4k"],
    );
    assert_ne!(ran.code, 0);
    diskferry(here, &["serve", "none.vhdx", "--listen", "unix:u"]).fails(1);
    diskferry(here, &["serve", "a.vhdx", "--listen", "nowhere"]).fails(2);
    diskferry(here, &["serve", "a.vhdx", "./a.vhdx", "--listen", "unix:u"]).fails(2);
}

#[test]
fn a_killed_server_loses_no_flushed_write() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "4G", "--block-size", "1M"]).ok();
    let load = [
        "load",
        "run",
        "unix:s",
        "--ledger",
        "l",
        "--rate",
        "3000",
        "--length",
        "2G",
        "--flush-every",
        "32",
    ];
    for round in 0..20 {
        let serving = Serving::start(here, &["a.vhdx", "--listen", "unix:s"]);
        let mut client = command(here, "diskferry", &load)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(50 + 17 * round));
        serving.kill();
        let status = client.wait().unwrap();
        assert_eq!(status.code(), Some(7), "round {round}");
        let words = [
            "load",
            "verify",
            "a.vhdx",
            "--ledger",
            "l",
            "--flushed-only",
            "--json",
        ];
        let line = diskferry(here, &words).ok().json();
        println!("round {round}: {line}");
        assert_eq!(line["wrong"], 0);
        // As the next writable open will find it.
        let checked = diskferry(here, &["check", "--json", "a.vhdx"]);
        assert!(
            [0, 4].contains(&checked.code),
            "round {round}: {}",
            checked.stdout
        );
    }
    Serving::start(here, &["a.vhdx", "--listen", "unix:s"]).end();
    diskferry(here, &["check", "a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "a.vhdx"]).ok();
    let last = [
        "load",
        "verify",
        "a.vhdx",
        "--ledger",
        "l",
        "--flushed-only",
        "--json",
    ];
    let line = diskferry(here, &last).ok().json();
    assert!(
        line["writes_acknowledged"].as_u64().unwrap() > 1000,
        "too little load: {line}"
    );
}

#[test]
fn a_server_ends_in_order_with_more_to_publish_than_the_log_holds() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "15T", "--block-size", "1M"]).ok();
    let serving = Serving::start(here, &["a.vhdx", "--listen", "unix:s"]);
    let words = [
        "bench",
        "unix:s",
        "--pattern",
        "random-write",
        "--destroy-data",
        "--ops",
        "12000",
    ];
    diskferry(here, &words).ok();
    serving.end();
    let checked = diskferry(here, &["check", "--json", "a.vhdx"]).ok().json();
    let present = checked["blocks"]["fully_present"].as_u64().unwrap();
    assert!(present > 11_900, "{checked}");
}
