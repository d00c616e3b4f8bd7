//! Real NBD programs against the server.

use std::path::Path;
use std::process::Command;

use blockserver::export::ExportOptions;

use super::site::{Site, on_both};

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

/// Run a program that must succeed; what it printed.
fn must(program: &str, args: &[&str]) -> String {
    // fio leaves a file where it runs.
    let directory = std::env::temp_dir();
    let output = Command::new(program)
        .args(args)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| {
            let package = PACKAGES.iter().find(|(name, _)| *name == program);
            let package = package.map_or(program, |(_, package)| package);
            panic!(
                "cannot run {program}: {error}. Install the Debian package {package}, or set \
             DISKFERRY_NO_INTEROP=1 to leave these tests out"
            )
        });
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {args:?} failed:\n{text}{errors}"
    );
    text
}

fn uri(site: &Site, export: &str) -> String {
    site.address(export).to_string()
}

/// A file with bytes that differ from place to place.
fn patterned(path: &Path, len: usize) -> Vec<u8> {
    let bytes: Vec<u8> = (0..len).map(|at| (at / 4096 + at % 251) as u8).collect();
    std::fs::write(path, &bytes).expect("room");
    bytes
}

#[test]
fn libnbd_programs_list_describe_and_copy() {
    if switched_off() {
        return;
    }
    on_both(|config| {
        let site = Site::new(config);
        for name in ["first", "second"] {
            let disk = site.raw(&format!("{name}.raw"), 16 << 20);
            site.server
                .add_export(name, disk, ExportOptions::default())
                .expect("a free name");
        }
        let listed = must("nbdinfo", &["--list", "--json", &uri(&site, "")]);
        assert!(
            listed.contains("\"first\"") && listed.contains("\"second\""),
            "{listed}"
        );
        let described = must("nbdinfo", &["--json", &uri(&site, "first")]);
        for fact in [
            "\"export-size\": 16777216",
            "\"can_multi_conn\": true",
            "\"can_flush\": true",
        ] {
            assert!(described.contains(fact), "{described}");
        }
        let bytes = patterned(&site.path("in"), 16 << 20);
        let (input, output) = (site.path("in"), site.path("out"));
        let connections = "--connections=4";
        must(
            "nbdcopy",
            &[
                connections,
                "--flush",
                &input.to_string_lossy(),
                &uri(&site, "first"),
            ],
        );
        must(
            "nbdcopy",
            &[connections, &uri(&site, "first"), &output.to_string_lossy()],
        );
        assert!(std::fs::read(&output).expect("the copy") == bytes);
        assert!(std::fs::read(site.path("first.raw")).expect("the disk") == bytes);
        must("nbdinfo", &["--map", &uri(&site, "second")]);
    });
}

#[test]
fn qemu_programs_read_write_and_compare() {
    if switched_off() {
        return;
    }
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, 16 << 20);
        let uri = uri(&site, "disk");
        let mut arguments = vec!["-f", "raw"];
        for command in [
            "write -P 1 0 1M",
            "write -P 2 1000 333",
            "write -z 64k 64k",
            "discard 128k 64k",
            "write -f -P 3 5M 4k",
            "flush",
            "read -P 1 0 1000",
            "read -P 2 1000 333",
            "read -P 1 1333 60k",
            "read -P 0 64k 64k",
            "read -P 3 5M 4k",
            "read -P 0 6M 1M",
        ] {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        let said = must("qemu-io", &arguments);
        assert!(!said.contains("verification failed"), "{said}");
        let file = site.path("copy.raw").to_string_lossy().into_owned();
        must(
            "qemu-img",
            &["convert", "-f", "raw", "-O", "raw", &uri, &file],
        );
        must(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", &uri, &file],
        );
    });
}

#[test]
fn fio_finds_what_it_wrote_at_depth_32_over_four_connections() {
    if switched_off() {
        return;
    }
    on_both(|config| {
        let site = Site::new(config);
        let raw = site.raw("disk.raw", 64 << 20);
        let vhdx = site.vhdx("disk.vhdx", 64 << 20);
        site.server
            .add_export("raw", raw, ExportOptions::default())
            .expect("a free name");
        site.server
            .add_export("vhdx", vhdx, ExportOptions::default())
            .expect("a free name");
        for export in ["raw", "vhdx"] {
            let uri = format!("--uri={}", uri(&site, export));
            must(
                "fio",
                &[
                    "--name=verify",
                    "--ioengine=nbd",
                    &uri,
                    "--rw=randwrite",
                    "--bsrange=512-64k",
                    "--bs_unaligned=0",
                    "--blockalign=512",
                    "--iodepth=32",
                    "--numjobs=4",
                    "--size=16M",
                    "--offset_increment=16M",
                    "--verify=crc32c",
                    "--verify_fatal=1",
                    "--randseed=7",
                    "--thread",
                    "--fsync=64",
                ],
            );
        }
        let path = site.path("disk.vhdx").to_string_lossy().into_owned();
        let Site { dir, server, .. } = site;
        server.shutdown().expect("a clean end");
        must("qemu-img", &["check", "-f", "vhdx", &path]);
        drop(dir);
    });
}
