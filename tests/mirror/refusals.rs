//! What is refused, and how that is said.

use super::process::last_json;
use super::site::Sites;
use crate::run::command;

#[test]
fn a_disk_that_nobody_serves_cannot_be_moved() {
    let sites = Sites::new("a.vhdx", &["1G"]);
    let ran = sites
        .run(&["mirror", "start", "a.vhdx", "--to", "in/b.vhdx"])
        .ends(1);
    assert!(ran.stderr.contains("no server"), "{}", ran.stderr);
    assert!(ran.stderr.contains("diskferry serve"), "{}", ran.stderr);
    let ran = sites.run(&["mirror", "status", "none.vhdx"]);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("none.vhdx"), "{}", ran.stderr);
}

#[test]
fn a_move_never_goes_over_a_file_that_is_there() {
    let mut sites = Sites::running("a.vhdx", &["1G"]);
    sites.run(&["create", "b.vhdx", "1G"]).ends(0);
    sites.run(&["create", "in/a.vhdx", "2G"]).ends(0);
    let start = ["mirror", "start", "a.vhdx", "--to", "b.vhdx"];
    let ran = sites.run(&start).ends(2);
    assert!(ran.stderr.contains("exists"), "{}", ran.stderr);
    // Nor does the other site.
    let ran = sites.start(&["--wait"]).ends(8);
    assert!(ran.stderr.contains("already an image"), "{}", ran.stderr);
    let info = last_json(&sites.run(&["info", "in/a.vhdx", "--json"]).ends(0));
    assert_eq!(info["virtual_size"], 2_u64 << 30, "{info}");
    sites.end();
    sites.run(&["check", "in/a.vhdx"]).ends(0);
    sites.run(&["check", "a.vhdx"]).ends(0);
}

#[test]
fn a_disk_is_named_from_any_folder_and_by_any_path() {
    let mut sites = Sites::running("a.vhdx", &["1G"]);
    let link = sites.here().join("link.vhdx");
    std::os::unix::fs::symlink("a.vhdx", &link).unwrap();
    let inside = sites.here().join("in");
    let status = |disk: &str| {
        command(sites.here(), "diskferry", &["mirror", "cancel", disk])
            .current_dir(&inside)
            .output()
            .unwrap()
    };
    for name in ["../a.vhdx", link.to_str().expect("UTF-8")] {
        let ran = status(name);
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(said.contains("is not being moved"), "{name}: {said}");
    }
    sites.end();
}

#[test]
fn an_incomplete_target_is_refused_by_everybody() {
    let mut sites = Sites::running("a.vhdx", &["1T", "--block-size", "1M"]);
    sites.start(&["--manual"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    sites.target.take().expect("it runs").kill();
    for (program, words) in [
        ("qemu-img", &["info", "in/a.vhdx"][..]),
        ("vhdiinfo", &["in/a.vhdx"]),
    ] {
        let ran = crate::run::program(sites.here(), program, words);
        assert_ne!(ran.code, 0, "{program}: {}", ran.stdout);
    }
    let serve = ["serve", "in/a.vhdx", "--listen", "unix:u"];
    let ran = sites.run(&serve).ends(5);
    assert!(ran.stderr.contains("incomplete"), "{}", ran.stderr);
    let ran = sites.run(&["convert", "in/a.vhdx", "copy.img"]);
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    // Nor is the record needed for that.
    std::fs::remove_file(sites.here().join("in/a.vhdx.ownership")).unwrap();
    let ran = sites.run(&serve).ends(5);
    assert!(ran.stderr.contains("incomplete"), "{}", ran.stderr);
    sites.source.take().expect("it runs").end();
}

#[test]
fn a_disk_that_is_being_moved_keeps_its_size_and_file_and_moves_with_the_size_it_had_before() {
    let mut sites = Sites::running("a.vhdx", &["1G"]);
    sites.run(&["resize", "a.vhdx", "+1G"]).ends(0);
    sites.start(&["--manual"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    let ran = sites.run(&["resize", "a.vhdx", "+1G"]).ends(5);
    assert!(ran.stderr.contains("being moved"), "{}", ran.stderr);
    // Nor does it become a parent: what is sent is one file's.
    let ran = sites.run(&["snapshot", "a.vhdx", "c.vhdx"]).ends(5);
    assert!(ran.stderr.contains("being moved"), "{}", ran.stderr);
    assert!(!sites.here().join("c.vhdx").exists());
    sites.mirror("cancel").ends(0);
    sites.until("ended", |status| status["ended"] == true);
    sites.run(&["resize", "a.vhdx", "+1G"]).ends(0);
    sites.start(&["--wait"]).ends(0);
    // It has moved: neither its clients' server nor its old file is the place for that.
    sites.run(&["resize", "a.vhdx", "+1G"]).ends(5);
    sites.run(&["snapshot", "a.vhdx", "c.vhdx"]).ends(5);
    sites.end();
    let ran = sites.run(&["resize", "a.vhdx", "+1G"]).ends(5);
    assert!(ran.stderr.contains("handed over"), "{}", ran.stderr);
    let info = sites.run(&["info", "in/a.vhdx", "--json"]).ends(0).json();
    assert_eq!(info["virtual_size"], 3_u64 << 30, "{info}");
    sites.run(&["resize", "in/a.vhdx", "+1G"]).ends(0);
    sites.run(&["check", "in/a.vhdx"]).ends(0);
}
