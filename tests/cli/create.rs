//! New disks: what they take, what others say of them.

use std::time::Instant;

use super::run::{diskferry, folder, on_disk, program};

#[test]
fn the_largest_disks_take_no_space() {
    let here = folder();
    for (size, bytes) in [("16T", 16_u64 << 40), ("64T", 64 << 40)] {
        for block in ["1M", "2M", "32M", "256M"] {
            let name = format!("{size}-{block}.vhdx");
            let started = Instant::now();
            let words = ["--json", "create", &name, size, "--block-size", block];
            let line = diskferry(here.path(), &words).ok().json();
            println!("{name}: {:?}", started.elapsed());
            assert_eq!(line["type"], "created");
            assert_eq!(line["virtual_size"], bytes);
            let taken = on_disk(&here.path().join(&name));
            assert!(taken < 2_000_000, "{name} takes {taken} bytes");
            assert_eq!(line["size_on_disk"], taken);
            std::fs::remove_file(here.path().join(&name)).unwrap();
        }
    }
}

#[test]
fn other_readers_open_what_is_created() {
    let here = folder();
    for shape in [
        &["3G"][..],
        &["64M", "--fixed"],
        &["5G", "--block-size", "1M"],
    ] {
        let words = [&["create", "a.vhdx", "--force"], shape].concat();
        diskferry(here.path(), &words).ok();
        diskferry(here.path(), &["check", "a.vhdx"]).ok();
        program(here.path(), "qemu-img", &["check", "-f", "vhdx", "a.vhdx"]).ok();
        program(here.path(), "vhdiinfo", &["a.vhdx"]).ok();
        let theirs = program(
            here.path(),
            "qemu-img",
            &["info", "--output=json", "a.vhdx"],
        )
        .ok();
        let theirs: serde_json::Value = serde_json::from_str(&theirs.stdout).unwrap();
        let ours = diskferry(here.path(), &["info", "--json", "a.vhdx"])
            .ok()
            .json();
        assert_eq!(ours["virtual_size"], theirs["virtual-size"]);
        assert_eq!(ours["block_size"], theirs["cluster-size"]);
        assert_eq!(theirs["format"], "vhdx");
    }
}

#[test]
fn a_disk_that_exists_is_replaced_only_when_asked() {
    let here = folder();
    diskferry(here.path(), &["create", "a.vhdx", "1G"]).ok();
    let ran = diskferry(here.path(), &["create", "a.vhdx", "2G"]).fails(1);
    assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
    let size = || {
        diskferry(here.path(), &["info", "--json", "a.vhdx"])
            .ok()
            .json()["virtual_size"]
            .clone()
    };
    assert_eq!(size(), 1_u64 << 30);
    diskferry(here.path(), &["create", "a.vhdx", "2G", "--force"]).ok();
    assert_eq!(size(), 2_u64 << 30);
}

#[test]
fn a_disk_that_cannot_be_made_leaves_nothing() {
    let here = folder();
    diskferry(here.path(), &["create", "a.vhdx", "65T"]).fails(2);
    diskferry(here.path(), &["create", "none/a.vhdx", "1T"]).fails(1);
    assert_eq!(std::fs::read_dir(here.path()).unwrap().count(), 0);
}

#[test]
fn a_raw_disk_is_a_hole_of_its_size() {
    let here = folder();
    diskferry(here.path(), &["create", "a.img", "1T"]).ok();
    let path = here.path().join("a.img");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 40);
    assert!(on_disk(&path) < 65536);
    let line = diskferry(here.path(), &["info", "--json", "a.img"])
        .ok()
        .json();
    assert_eq!(
        (&line["format"], &line["virtual_size"]),
        (&"raw".into(), &(1_u64 << 40).into())
    );
}
