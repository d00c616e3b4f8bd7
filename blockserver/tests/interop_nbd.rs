//! Real NBD programs against the blocking server, and the server and client against each other.
//!
//! A program that is not installed fails its test with the name of the Debian package, unless
//! `DISKFERRY_NO_INTEROP=1`.

mod blocking_server;
mod memory_disk;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use blockserver::blocking::Limits;
use blockserver::nbd::uri::Endpoint;
use memory_disk::{MemoryDisk, Served};

const SIZE: usize = 16 << 20;

/// The Debian package of each program.
const PACKAGES: [(&str, &str); 5] = [
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("fio", "fio"),
];

/// Whether tests with real programs are switched off.
fn switched_off() -> bool {
    std::env::var_os("DISKFERRY_NO_INTEROP").is_some_and(|value| value == "1")
}

/// Run a program; what it printed, and whether it succeeded.
fn run(program: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| {
        let package = PACKAGES.iter().find(|(name, _)| *name == program);
        let package = package.map_or(program, |(_, package)| package);
        panic!(
            "cannot run {program}: {error}. Install the Debian package {package}, or set \
             DISKFERRY_NO_INTEROP=1 to leave these tests out"
        )
    });
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

/// Run a program that must succeed; what it printed.
fn must(program: &str, args: &[&str]) -> String {
    let (success, text) = run(program, args);
    assert!(success, "{program} {args:?} failed:\n{text}");
    text
}

/// A disk served on a unix socket as `disk`, and read-only as `fixed`.
struct Site {
    dir: tempfile::TempDir,
    disk: Arc<MemoryDisk>,
    served: Served,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = Arc::new(MemoryDisk::new(SIZE));
        let endpoint = Endpoint::Unix(dir.path().join("nbd.sock"));
        let disks = [("disk", &disk), ("fixed", &disk)];
        let served = Served::new(&endpoint, &disks, &["fixed"], Limits::default());
        Self { dir, disk, served }
    }

    fn uri(&self, export: &str) -> String {
        self.served.address(export).to_string()
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }
}

/// Data with holes, as a disk has it.
fn image() -> Vec<u8> {
    let mut image = vec![0; SIZE];
    for (block, bytes) in image.chunks_mut(64 << 10).enumerate() {
        if block % 3 == 0 {
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = (at * 7 + block * 13 + at / 509) as u8 | 1;
            }
        }
    }
    image
}

fn write_image(path: &str) -> Vec<u8> {
    let image = image();
    std::fs::write(path, &image).expect("written");
    image
}

#[test]
fn nbdinfo_reads_size_flags_and_block_sizes() {
    if switched_off() {
        return;
    }
    let site = Site::new();
    let text = must("nbdinfo", &["--json", &site.uri("disk")]);
    for part in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"structured\": true",
        "\"export-name\": \"disk\"",
        "\"description\": \"memory of 16777216 bytes\"",
        "\"export-size\": 16777216",
        "\"base:allocation\"",
        "\"is_read_only\": false",
        "\"can_df\": true",
        "\"can_fast_zero\": false",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_multi_conn\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"block_size_minimum\": 1",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let text = must("nbdinfo", &["--json", &site.uri("fixed")]);
    assert!(text.contains("\"is_read_only\": true"), "{text}");
    let (success, text) = run("nbdinfo", &[&site.uri("nothing")]);
    assert!(!success && text.contains("for export: nothing"), "{text}");
}

#[test]
fn nbdinfo_lists_every_export() {
    if switched_off() {
        return;
    }
    let site = Site::new();
    let text = must("nbdinfo", &["--list", "--json", &site.uri("")]);
    assert!(text.contains("\"export-name\": \"disk\""), "{text}");
    assert!(text.contains("\"export-name\": \"fixed\""), "{text}");
}

#[test]
fn nbdinfo_maps_data_and_holes() {
    if switched_off() {
        return;
    }
    let site = Site::new();
    must(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 5 1M 128k", &site.uri("disk")],
    );
    let text = must("nbdinfo", &["--map", &site.uri("disk")]);
    let fields: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().take(3).collect())
        .collect();
    assert_eq!(
        fields,
        [
            ["0", "1048576", "3"],
            ["1048576", "131072", "0"],
            ["1179648", "15597568", "3"],
        ]
    );
}

#[test]
fn nbdcopy_copies_both_ways() {
    if switched_off() {
        return;
    }
    let site = Site::new();
    let (from, to) = (site.file("from.raw"), site.file("to.raw"));
    let image = write_image(&from);
    must("nbdcopy", &["--flush", &from, &site.uri("disk")]);
    assert!(site.disk.contents() == image, "the disk differs");
    must("nbdcopy", &[&site.uri("disk"), &to]);
    assert!(
        std::fs::read(&to).expect("read") == image,
        "the copy differs"
    );
    // Many requests on several connections, without the help of extents.
    let args = [
        "--no-extents",
        "-C",
        "4",
        "-R",
        "64",
        &site.uri("disk"),
        &to,
    ];
    must("nbdcopy", &args);
    assert!(
        std::fs::read(&to).expect("read") == image,
        "the copy differs"
    );
}

#[test]
fn qemu_img_converts_compares_and_describes() {
    if switched_off() {
        return;
    }
    let site = Site::new();
    let uri = site.uri("disk");
    let (from, to) = (site.file("from.raw"), site.file("to.qcow2"));
    let image = write_image(&from);
    let text = must("qemu-img", &["info", "--output=json", "-f", "raw", &uri]);
    assert!(text.contains("\"virtual-size\": 16777216"), "{text}");
    must(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", &from, &uri],
    );
    assert!(site.disk.contents() == image, "the disk differs");
    let compared = must(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &from, &uri],
    );
    assert!(compared.contains("Images are identical."), "{compared}");
    must(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            &site.uri("fixed"),
            &to,
        ],
    );
    let compared = must(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", &to, &uri],
    );
    assert!(compared.contains("Images are identical."), "{compared}");
    must("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    must(
        "qemu-img",
        &["bench", "-f", "raw", "-c", "2000", "-d", "32", &uri],
    );
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    if switched_off() {
        return;
    }
    let site = Site::new();
    let commands = [
        "write -P 0xab 0 1M",
        "write -f -P 0xcd 512k 64k",
        "read -P 0xab 0 512k",
        "read -P 0xcd 512k 64k",
        "write -z 0 4k",
        "write -z -u 64k 128k",
        "read -P 0 0 4k",
        "read -P 0xab 4k 60k",
        "read -P 0 64k 128k",
        "discard 1M 1M",
        "flush",
        "aio_write -P 1 4M 1M",
        "aio_write -P 2 5M 1M",
        "aio_read 0 1M",
        "aio_flush",
        "read -P 1 4M 1M",
        "read -P 2 5M 1M",
        "read -P 1 5242879 1",
        "write -P 3 1000001 77",
        "read -P 3 1000001 77",
        "length",
    ];
    let uri = site.uri("disk");
    let mut args = vec!["-f", "raw"];
    for command in &commands {
        args.extend(["-c", command]);
    }
    args.push(&uri);
    let text = must("qemu-io", &args);
    assert!(
        !text.contains("failed") && !text.contains("error"),
        "{text}"
    );
    let refused = run(
        "qemu-io",
        &["-f", "raw", "-c", "write 0 4k", &site.uri("fixed")],
    );
    assert!(!refused.0, "{}", refused.1);
}

#[test]
fn fio_verifies_what_it_wrote() {
    if switched_off() {
        return;
    }
    let site = Site::new();
    let uri = format!("--uri={}", site.uri("disk"));
    for (pattern, size, depth) in [("randrw", "4k", "32"), ("write", "256k", "8")] {
        let args = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            &format!("--rw={pattern}"),
            &format!("--bs={size}"),
            &format!("--iodepth={depth}"),
            "--size=16M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--fsync=64",
            &format!("--aux-path={}", site.dir.path().display()),
        ];
        let text = must("fio", &args);
        assert!(text.contains("err= 0"), "{text}");
    }
    assert!(Path::new(&site.file("nbd.sock")).exists());
}
