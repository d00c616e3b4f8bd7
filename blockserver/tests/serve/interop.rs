//! Real NBD programs against the server.

use std::path::Path;

use blockserver::export::{ExportHandle, ExportOptions};
use blockserver::server::ServerConfig;

use super::programs::{must, run, switched_off};
use super::site::{Site, on_both};

const SIZE: u64 = 16 << 20;

fn uri(site: &Site, export: &str) -> String {
    site.address(export).to_string()
}

fn name(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A server of a raw disk as `disk`, and of another one, read-only, as `fixed`.
fn site(config: ServerConfig) -> Site {
    let (site, _) = Site::with_raw_disk(config, SIZE);
    let options = ExportOptions {
        read_only: true,
        description: "not to be written".to_owned(),
        ..ExportOptions::default()
    };
    add(&site, "fixed", options);
    site
}

fn add(site: &Site, name: &str, options: ExportOptions) -> ExportHandle {
    let disk = site.raw(&format!("{name}.raw"), SIZE);
    let export = site.server.add_export(name, disk, options);
    export.expect("a free name")
}

/// A file with data and holes, as a disk has it.
fn patterned(path: &Path) -> Vec<u8> {
    let mut image = vec![0; SIZE as usize];
    for (block, bytes) in image.chunks_mut(64 << 10).enumerate() {
        if block % 3 == 0 {
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = (at * 7 + block * 13 + at / 509) as u8 | 1;
            }
        }
    }
    std::fs::write(path, &image).expect("room");
    image
}

#[test]
fn nbdinfo_reads_names_sizes_flags_and_block_sizes() {
    if switched_off() {
        return;
    }
    on_both(|config| {
        let site = site(config);
        let listed = must("nbdinfo", &["--list", "--json", &uri(&site, "")]);
        for name in ["\"export-name\": \"disk\"", "\"export-name\": \"fixed\""] {
            assert!(listed.contains(name), "{listed}");
        }
        let described = must("nbdinfo", &["--json", &uri(&site, "disk")]);
        for fact in [
            "\"protocol\": \"newstyle-fixed\"",
            "\"structured\": true",
            "\"export-name\": \"disk\"",
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
            assert!(
                described.contains(fact),
                "{fact} is missing in\n{described}"
            );
        }
        let fixed = must("nbdinfo", &["--json", &uri(&site, "fixed")]);
        for fact in [
            "\"is_read_only\": true",
            "\"description\": \"not to be written\"",
        ] {
            assert!(fixed.contains(fact), "{fact} is missing in\n{fixed}");
        }
        let (success, said) = run("nbdinfo", &[&uri(&site, "nothing")]);
        assert!(!success && said.contains("for export: nothing"), "{said}");
    });
}

#[test]
fn nbdinfo_maps_data_and_holes() {
    if switched_off() {
        return;
    }
    on_both(|config| {
        let site = site(config);
        let uri = uri(&site, "disk");
        must("qemu-io", &["-f", "raw", "-c", "write -P 5 1M 128k", &uri]);
        let map = must("nbdinfo", &["--map", &uri]);
        let runs: Vec<Vec<&str>> = map
            .lines()
            .map(|line| line.split_whitespace().take(3).collect())
            .collect();
        let expected = [
            ["0", "1048576", "3"],
            ["1048576", "131072", "0"],
            ["1179648", "15597568", "3"],
        ];
        assert_eq!(runs, expected);
    });
}

#[test]
fn nbdcopy_copies_both_ways() {
    if switched_off() {
        return;
    }
    on_both(|config| {
        let site = site(config);
        let (from, to) = (name(&site.path("in")), name(&site.path("out")));
        let bytes = patterned(&site.path("in"));
        let (uri, four) = (uri(&site, "disk"), "--connections=4");
        must("nbdcopy", &[four, "--flush", &from, &uri]);
        let disk = std::fs::read(site.path("disk.raw")).expect("the disk");
        assert!(disk == bytes, "the disk differs");
        for how in [
            &[][..],
            // Many requests on several connections, without the help of extents.
            &["--no-extents", four, "--requests=64"],
        ] {
            must("nbdcopy", &[how, &[&uri, &to]].concat());
            let copy = std::fs::read(site.path("out")).expect("the copy");
            assert!(copy == bytes, "the copy differs");
        }
    });
}

#[test]
fn qemu_img_converts_compares_and_describes() {
    if switched_off() {
        return;
    }
    on_both(|config| {
        let site = site(config);
        let (uri, fixed) = (uri(&site, "disk"), uri(&site, "fixed"));
        let (from, to) = (name(&site.path("in")), name(&site.path("out.qcow2")));
        let bytes = patterned(&site.path("in"));
        let image = |words: &str| {
            let place = |word| match word {
                "URI" => uri.as_str(),
                "FIXED" => fixed.as_str(),
                "FROM" => from.as_str(),
                "TO" => to.as_str(),
                word => word,
            };
            let words: Vec<&str> = words.split(' ').map(place).collect();
            must("qemu-img", &words)
        };
        let said = image("info --output=json -f raw URI");
        assert!(said.contains("\"virtual-size\": 16777216"), "{said}");
        image("convert -n -f raw -O raw FROM URI");
        let disk = std::fs::read(site.path("disk.raw")).expect("the disk");
        assert!(disk == bytes, "the disk differs");
        let same = "Images are identical.";
        assert!(image("compare -f raw -F raw FROM URI").contains(same));
        image("convert -f raw -O qcow2 URI TO");
        assert!(image("compare -f qcow2 -F raw TO URI").contains(same));
        image("convert -f raw -O qcow2 FIXED TO");
        assert!(image("compare -f qcow2 -F raw TO FIXED").contains(same));
        image("map --output=json -f raw URI");
        image("bench -f raw -c 2000 -d 32 URI");
    });
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes() {
    if switched_off() {
        return;
    }
    on_both(|config| {
        let site = site(config);
        let uri = uri(&site, "disk");
        let mut arguments = vec!["-f", "raw"];
        for command in [
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
            "read -P 0 7M 1M",
            "length",
        ] {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        let said = must("qemu-io", &arguments);
        assert!(
            !said.contains("failed") && !said.contains("error"),
            "{said}"
        );
        let fixed = self::uri(&site, "fixed");
        let (success, said) = run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &fixed]);
        assert!(!success, "{said}");
    });
}

/// fio writes, reads back and compares, as `how` says.
fn verify(uri: &str, how: &[&str]) {
    let uri = format!("--uri={uri}");
    let always = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--size=16M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--randseed=7",
        "--fsync=64",
    ];
    let said = must("fio", &[&always, how].concat());
    assert!(said.contains("err= 0"), "{said}");
}

#[test]
fn fio_finds_what_it_wrote_mixed_with_reads_and_in_a_row() {
    if switched_off() {
        return;
    }
    on_both(|config| {
        let site = site(config);
        let uri = uri(&site, "disk");
        verify(&uri, &["--rw=randrw", "--bs=4k", "--iodepth=32"]);
        verify(&uri, &["--rw=write", "--bs=256k", "--iodepth=8"]);
    });
}

#[test]
fn fio_finds_what_it_wrote_at_depth_32_over_four_connections() {
    if switched_off() {
        return;
    }
    on_both(|config| {
        let site = Site::new(config);
        let disks = [
            ("raw", site.raw("disk.raw", 64 << 20)),
            ("vhdx", site.vhdx("disk.vhdx", 64 << 20)),
        ];
        for (export, disk) in disks {
            site.server
                .add_export(export, disk, ExportOptions::default())
                .expect("a free name");
            let how = [
                "--rw=randwrite",
                "--bsrange=512-64k",
                "--bs_unaligned=0",
                "--blockalign=512",
                "--iodepth=32",
                "--numjobs=4",
                "--offset_increment=16M",
                "--thread",
            ];
            verify(&uri(&site, export), &how);
        }
        let path = name(&site.path("disk.vhdx"));
        let Site { dir, server, .. } = site;
        server.shutdown().expect("a clean end");
        must("qemu-img", &["check", "-f", "vhdx", &path]);
        drop(dir);
    });
}
