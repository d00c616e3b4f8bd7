//! Disks of other programs, as `qemu-img` makes them: read as it reads them, or refused.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::run::{diskferry, folder, on_disk, program};

const SIZE: u64 = 80 << 20;

/// Bytes at places that make every kind of block: whole, half, the first, the last, and zeros.
fn raw(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    let bytes: Vec<u8> = (0..2_500_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for offset in [0, 9 << 20, (32 << 20) - 1000, SIZE - 4096] {
        let len = bytes.len().min((SIZE - offset) as usize);
        file.write_all_at(&bytes[..len], offset).unwrap();
    }
    file.write_all_at(&vec![0; 4 << 20], 50 << 20).unwrap();
}

/// What is read, its name here, its format's name there, and the options that make it.
const VARIANTS: [(&str, &str, &[&str]); 19] = [
    ("v2.qcow2", "qcow2", &["-o", "compat=0.10"]),
    ("v3.qcow2", "qcow2", &["-o", "compat=1.1"]),
    ("packed.qcow2", "qcow2", &["-c"]),
    ("small.qcow2", "qcow2", &["-o", "cluster_size=4096"]),
    ("large.qcow2", "qcow2", &["-o", "cluster_size=2M"]),
    ("meta.qcow2", "qcow2", &["-o", "preallocation=metadata"]),
    ("refs.qcow2", "qcow2", &["-o", "refcount_bits=1"]),
    ("sparse.vmdk", "vmdk", &["-o", "subformat=monolithicSparse"]),
    ("flat.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]),
    (
        "split.vmdk",
        "vmdk",
        &["-o", "subformat=twoGbMaxExtentSparse"],
    ),
    ("cut.vmdk", "vmdk", &["-o", "subformat=twoGbMaxExtentFlat"]),
    ("stream.vmdk", "vmdk", &["-o", "subformat=streamOptimized"]),
    ("zeroed.vmdk", "vmdk", &["-o", "zeroed_grain=on"]),
    ("old.vmdk", "vmdk", &["-o", "compat6=on"]),
    (
        "dynamic.vhd",
        "vpc",
        &["-o", "subformat=dynamic,force_size=on"],
    ),
    ("fixed.vhd", "vpc", &["-o", "subformat=fixed,force_size=on"]),
    ("geometry.vhd", "vpc", &[]),
    ("dynamic.vhdx", "vhdx", &["-o", "subformat=dynamic"]),
    ("fixed.vhdx", "vhdx", &["-o", "subformat=fixed"]),
];

fn make(here: &Path, (name, format, options): (&str, &str, &[&str])) {
    let words = [&["convert", "-O", format], options, &["a.img", name]].concat();
    program(here, "qemu-img", &words).ok();
}

#[test]
fn what_qemu_writes_is_read_the_same_in_every_variant() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    for variant in VARIANTS {
        let (name, format, _) = variant;
        make(here, variant);
        println!("{name}");
        let ran = diskferry(
            here,
            &["--json", "convert", name, "b.vhdx", "--verify", "--force"],
        );
        let lines = ran.ok().json_lines();
        let summary = lines.last().unwrap();
        assert_eq!(summary["verified"], true, "{name}: {summary}");
        // Zeros are no data, whatever the source keeps.
        assert!(
            summary["copied_bytes"].as_u64().unwrap() < 8 << 20,
            "{summary}"
        );
        program(
            here,
            "qemu-img",
            &["compare", "-f", format, "-F", "vhdx", name, "b.vhdx"],
        )
        .ok();
        program(
            here,
            "qemu-img",
            &["compare", "-f", "raw", "-F", "vhdx", "a.img", "b.vhdx"],
        )
        .ok();
        diskferry(here, &["check", "b.vhdx"]).ok();
        diskferry(here, &["convert", name, "c.img", "--force"]).ok();
        program(
            here,
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", "a.img", "c.img"],
        )
        .ok();
        assert!(
            on_disk(&here.join("c.img")) < 12 << 20,
            "{name}: holes stay holes"
        );
        diskferry(here, &["compare", name, "a.img", "--other-format", "raw"]).ok();
    }
}

/// A disk of many extents of 2 GB, written by `qemu-io` at their borders.
#[test]
fn extents_of_two_gigabytes_meet_without_a_seam() {
    let here = folder();
    let here = here.path();
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let options = format!("subformat={subformat}");
        program(
            here,
            "qemu-img",
            &["create", "-f", "vmdk", "-o", &options, "a.vmdk", "5G"],
        )
        .ok();
        let words = [
            "-f",
            "vmdk",
            "-c",
            "write -P 7 2147418112 131072",
            "-c",
            "write -P 8 4294901760 131072",
            "-c",
            "write -P 9 5368643584 65536",
            "a.vmdk",
        ];
        program(here, "qemu-io", &words).ok();
        diskferry(here, &["convert", "a.vmdk", "b.vhdx", "--force"]).ok();
        program(
            here,
            "qemu-img",
            &["compare", "-f", "vmdk", "-F", "vhdx", "a.vmdk", "b.vhdx"],
        )
        .ok();
    }
}

#[test]
fn a_qcow2_on_others_is_read_with_them_in_its_own_folder_only() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    fs::create_dir(here.join("sub")).unwrap();
    let create = |words: &[&str]| {
        program(
            here,
            "qemu-img",
            &[&["create", "-f", "qcow2"], words].concat(),
        )
        .ok();
    };
    create(&["-b", "a.img", "-F", "raw", "one.qcow2"]);
    create(&["-b", "one.qcow2", "-F", "qcow2", "two.qcow2", "96M"]);
    let write = [
        "-f",
        "qcow2",
        "-c",
        "write -P 5 1M 70000",
        "-c",
        "write -z 9M 1M",
        "two.qcow2",
    ];
    program(here, "qemu-io", &write).ok();
    diskferry(here, &["convert", "two.qcow2", "b.vhdx", "--verify"]).ok();
    program(
        here,
        "qemu-img",
        &[
            "compare",
            "-f",
            "qcow2",
            "-F",
            "vhdx",
            "two.qcow2",
            "b.vhdx",
        ],
    )
    .ok();
    // The same file, from a folder whose images may name nothing outside it.
    create(&["-b", "../a.img", "-F", "raw", "sub/out.qcow2"]);
    let refused = diskferry(here, &["convert", "sub/out.qcow2", "c.vhdx"]).fails(1);
    assert!(refused.stderr.contains("outside"), "{}", refused.stderr);
    assert!(!here.join("c.vhdx").exists());
    diskferry(
        here,
        &["convert", "sub/out.qcow2", "c.vhdx", "--parent-dir", "."],
    )
    .ok();
    diskferry(here, &["compare", "c.vhdx", "a.img"]).ok();
}

#[test]
fn an_extent_outside_the_folder_is_not_opened() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    make(
        here,
        ("flat.vmdk", "vmdk", &["-o", "subformat=monolithicFlat"]),
    );
    fs::create_dir(here.join("sub")).unwrap();
    let text = fs::read_to_string(here.join("flat.vmdk")).unwrap();
    for name in ["../flat-flat.vmdk", "/etc/hostname", "sub/../../a.img"] {
        let hostile = text.replace("flat-flat.vmdk", name);
        assert_ne!(hostile, text);
        fs::write(here.join("sub/evil.vmdk"), hostile).unwrap();
        let ran = diskferry(here, &["convert", "sub/evil.vmdk", "b.img"]);
        assert!(
            [1, 3].contains(&ran.code),
            "{name}: {} {}",
            ran.code,
            ran.stderr
        );
        assert!(!here.join("b.img").exists());
    }
}

#[test]
fn a_name_that_says_raw_does_not_hide_an_image() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    for variant in [
        VARIANTS[1],
        VARIANTS[7],
        VARIANTS[8],
        VARIANTS[14],
        VARIANTS[15],
    ] {
        make(here, variant);
        fs::copy(here.join(variant.0), here.join("x.img")).unwrap();
        let refused = diskferry(here, &["convert", "x.img", "b.img", "--force"]).fails(2);
        assert!(refused.stderr.contains("--from"), "{}", refused.stderr);
        diskferry(
            here,
            &["convert", "x.img", "b.img", "--from", "raw", "--force"],
        )
        .ok();
        assert_eq!(
            fs::read(here.join("x.img")).unwrap(),
            fs::read(here.join("b.img")).unwrap()
        );
    }
}

#[test]
fn what_is_not_read_names_a_program_that_reads_it() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    for options in [
        "compression_type=zstd",
        "extended_l2=on",
        "data_file=data.raw",
    ] {
        make(here, ("a.qcow2", "qcow2", &["-o", options]));
        let refused = diskferry(here, &["convert", "a.qcow2", "b.vhdx"]).fails(9);
        assert!(
            refused.stderr.contains("qemu-nbd"),
            "{options}: {}",
            refused.stderr
        );
        fs::remove_file(here.join("a.qcow2")).unwrap();
    }
}

/// Numbers that are the same in every run.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// The program says what is wrong, or finds nothing wrong; it never panics, and leaves no target behind
/// if it fails.
fn survives(here: &Path, name: &str, what: &str) {
    let _ = fs::remove_file(here.join("out.img"));
    let ran = diskferry(here, &["convert", name, "out.img", "--restart"]);
    assert!(
        [0, 1, 3, 4, 9].contains(&ran.code),
        "{name} {what}: {} {}",
        ran.code,
        ran.stderr
    );
    assert!(
        !ran.stderr.contains("panicked"),
        "{name} {what}: {}",
        ran.stderr
    );
    assert_eq!(
        here.join("out.img").exists(),
        ran.code == 0,
        "{name} {what}"
    );
    if ran.code != 0 {
        assert!(
            ran.stderr.contains("error:"),
            "{name} {what}: {}",
            ran.stderr
        );
    }
}

#[test]
fn images_cut_off_or_damaged_are_refused_or_read_and_never_panic() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    let seed = 0x1234_5678_9abc_def1_u64;
    println!("seed {seed:#x}");
    let mut state = seed;
    for at in [1, 2, 3, 7, 8, 11, 14, 15, 17] {
        let variant = VARIANTS[at];
        let name = variant.0;
        make(here, variant);
        let whole = here.join("whole");
        fs::copy(here.join(name), &whole).unwrap();
        let len = fs::metadata(&whole).unwrap().len();
        let file = OpenOptions::new()
            .write(true)
            .open(here.join(name))
            .unwrap();
        for part in [0, 1, 511, 512, 600, 1536, len / 3, len - 512, len - 1] {
            let part = part.min(len - 1);
            fs::copy(&whole, here.join(name)).unwrap();
            file.set_len(part).unwrap();
            survives(here, name, &format!("cut to {part}"));
        }
        for round in 0..10 {
            fs::copy(&whole, here.join(name)).unwrap();
            // Headers and tables are at both ends.
            let reach = if round % 2 == 0 {
                2048
            } else {
                len.min(256 << 10)
            };
            for _ in 0..=round % 4 {
                let place = next(&mut state) % reach;
                let place = if round % 5 == 4 {
                    len - 1 - place.min(len - 1)
                } else {
                    place
                };
                file.write_all_at(&next(&mut state).to_be_bytes()[..=round % 8], place)
                    .unwrap();
            }
            survives(here, name, &format!("damaged, round {round}"));
        }
    }
}

/// One field after the other claims as much as it can; the program may have 1 GB of addresses.
#[test]
fn a_table_that_claims_to_be_huge_takes_no_memory() {
    let here = folder();
    let here = here.path();
    raw(&here.join("a.img"));
    let fields: [(usize, &[usize]); 3] = [
        // qcow2: backing file, clusters, size, L1, references, snapshots, length of the header.
        (1, &[16, 20, 24, 28, 36, 56, 60, 96, 100]),
        // VMDK: size, grain, descriptor, entries of a table, directory.
        (7, &[12, 20, 28, 36, 44, 56, 64]),
        // VHD: the size in the copy of the footer; entries and bytes of a block.
        (14, &[40, 48, 512 + 16, 512 + 28, 512 + 32]),
    ];
    for (at, places) in fields {
        let (name, ..) = VARIANTS[at];
        make(here, VARIANTS[at]);
        let whole = fs::read(here.join(name)).unwrap();
        for (place, value) in places
            .iter()
            .flat_map(|p| [(p, 0x7f), (p, 0xff), (p, 0x02)])
        {
            let mut claims = whole.clone();
            claims[*place..place + 4].fill(value);
            fs::write(here.join(name), &claims).unwrap();
            let script =
                "ulimit -v 1048576; exec \"$0\" convert \"$1\" out.img --force --jobs 1 --dry-run";
            let program_path = env!("CARGO_BIN_EXE_diskferry");
            let ran = program(here, "bash", &["-c", script, program_path, name]);
            let what = format!("{name}: {value:#x} at {place}");
            assert!(
                [0, 1, 3, 4, 9].contains(&ran.code),
                "{what}: {} {}",
                ran.code,
                ran.stderr
            );
            assert!(!ran.stderr.contains("panicked"), "{what}: {}", ran.stderr);
        }
    }
}
