//! What `serve` refuses: the exit code that the README promises, and words that say which thing.

use std::os::unix::net::UnixListener;

use vdisk::disk::{Disk, OpenOptions};
use vdisk::engine::Mark;

use crate::run::{diskferry, folder, program};
use crate::serving::Serving;

#[test]
fn a_socket_path_in_use_is_refused_and_one_left_behind_is_not() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    let listener = UnixListener::bind(here.join("s")).expect("a socket");
    let ran = diskferry(here, &["serve", "a.vhdx", "--listen", "unix:s"]).fails(5);
    assert!(ran.stderr.contains("unix:s"), "{}", ran.stderr);
    // Its file stays when its owner goes.
    drop(listener);
    assert!(here.join("s").exists());
    Serving::start(here, &["a.vhdx", "--listen", "unix:s"]).end();
    // What is no socket is nobody's to replace.
    std::fs::write(here.join("t"), "precious").expect("written");
    diskferry(here, &["serve", "a.vhdx", "--listen", "unix:t"]).fails(5);
    assert_eq!(
        std::fs::read(here.join("t")).expect("still there"),
        b"precious"
    );
}

#[test]
fn an_image_that_belongs_to_another_host_is_refused() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    for mark in [Mark::Incomplete, Mark::HandedOver] {
        let options = OpenOptions {
            allow_marked: true,
            ..OpenOptions::default()
        };
        let mut disk = Disk::open(&here.join("a.vhdx"), &options).expect("it opens");
        disk.park(Some(mark)).expect("marked");
        disk.close().expect("closed");
        for read_only in [&[][..], &["--read-only"]] {
            let words = [&["serve", "a.vhdx", "--listen", "unix:s"], read_only].concat();
            let ran = diskferry(here, &words).fails(5);
            assert!(ran.stderr.contains("a.vhdx"), "{}", ran.stderr);
        }
        assert_ne!(program(here, "qemu-img", &["check", "a.vhdx"]).code, 0);
    }
}

#[test]
fn each_kind_of_refusal_has_its_exit_code() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G"]).ok();
    std::fs::write(here.join("torn.vhdx"), vec![7; 3 << 20]).expect("written");
    let serve = |disk: &str, listen: &str| diskferry(here, &["serve", disk, "--listen", listen]);
    let ran = serve("torn.vhdx", "unix:s").fails(3);
    assert!(ran.stderr.contains("torn.vhdx"), "{}", ran.stderr);
    let ran = serve("missing.vhdx", "unix:s").fails(1);
    assert!(ran.stderr.contains("missing.vhdx"), "{}", ran.stderr);
    serve("a.vhdx", "unix:no/such/folder/s").fails(1);
    serve("a.vhdx", "tcp:nowhere").fails(2);
    // A writer shuts a reader out as well.
    let serving = Serving::start(here, &["a.vhdx", "--listen", "unix:s"]);
    let ran = diskferry(
        here,
        &["serve", "a.vhdx", "--read-only", "--listen", "unix:t"],
    )
    .fails(5);
    assert!(ran.stderr.contains("in use"), "{}", ran.stderr);
    serving.end();
    let serving = Serving::start(here, &["a.vhdx", "--read-only", "--listen", "unix:s"]);
    let before = std::fs::read(here.join("a.vhdx")).expect("read");
    for change in ["write 0 4k", "write -z 0 1M", "discard 0 1M"] {
        let ran = program(
            here,
            "qemu-io",
            &["-f", "raw", &serving.uri(), "-c", change],
        );
        assert!(
            ran.code != 0 || ran.stdout.contains("failed"),
            "{change}: {}",
            ran.stdout
        );
    }
    program(here, "nbdinfo", &["--is", "read-only", &serving.uri()]).ok();
    serving.end();
    assert!(
        std::fs::read(here.join("a.vhdx")).expect("read") == before,
        "not a byte was changed"
    );
}
