//! A real file system on a served disk, through nbdfuse.

use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use crate::run::{diskferry, folder, program};
use crate::serving::Serving;

/// The disk as a file, taken away with the value.
struct Mounted<'a> {
    child: Child,
    at: &'a Path,
}

impl<'a> Mounted<'a> {
    fn new(at: &'a Path, uri: &str) -> Self {
        std::fs::create_dir(at).expect("made");
        let mut child = Command::new("nbdfuse")
            .args([at.join("disk").to_str().expect("UTF-8"), uri])
            .spawn()
            .unwrap_or_else(|e| panic!("nbdfuse: {e}; scripts/setup.sh installs it"));
        let patience = Instant::now() + Duration::from_secs(20);
        while !at.join("disk").exists() {
            assert!(
                child.try_wait().expect("asked").is_none(),
                "nbdfuse gave up"
            );
            assert!(Instant::now() < patience, "nbdfuse does not mount");
            thread::sleep(Duration::from_millis(10));
        }
        Self { child, at }
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3").arg("-u").arg(self.at).status();
        let _ = self.child.wait();
    }
}

/// Some hundred files of all sizes, the same every time.
fn grow_tree(root: &Path) {
    for folder in 0..12_u32 {
        let folder_path = root.join(format!("folder {folder}"));
        std::fs::create_dir_all(&folder_path).expect("made");
        for file in 0..20_u32 {
            let len = (folder * 7919 + file * 104_729) % 300_000;
            let bytes: Vec<u8> = (0..len)
                .map(|i| ((i ^ file << 8).wrapping_mul(2_654_435_761) >> 24) as u8)
                .collect();
            std::fs::write(folder_path.join(format!("file {file}")), bytes).expect("written");
        }
    }
}

#[test]
fn an_ext4_file_system_keeps_its_tree() {
    let here = folder();
    let here = here.path();
    grow_tree(&here.join("tree"));
    diskferry(here, &["create", "a.vhdx", "1G", "--block-size", "1M"]).ok();
    let mount = here.join("mount");
    let serving = Serving::start(here, &["a.vhdx", "--listen", "unix:s"]);
    let at = Mounted::new(
        &mount,
        &format!("nbd+unix:///?socket={}", here.join("s").display()),
    );
    let sbin = |name: &str, words: &[&str]| program(here, &format!("/usr/sbin/{name}"), words).ok();
    sbin("mkfs.ext4", &["-q", "-F", "-d", "tree", "mount/disk"]);
    sbin("debugfs", &["-w", "-R", "write a.vhdx late", "mount/disk"]);
    sbin("e2fsck", &["-fn", "mount/disk"]);
    drop(at);
    serving.end();
    diskferry(here, &["check", "a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "a.vhdx"]).ok();
    // As another program reads the image.
    program(
        here,
        "qemu-img",
        &["convert", "-O", "raw", "a.vhdx", "a.img"],
    )
    .ok();
    sbin("e2fsck", &["-fn", "a.img"]);
    std::fs::create_dir(here.join("back")).expect("made");
    sbin("debugfs", &["-R", "rdump / back", "a.img"]);
    program(
        here,
        "diff",
        &["-r", "-x", "lost+found", "-x", "late", "tree", "back"],
    )
    .ok();
}
