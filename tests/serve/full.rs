//! The host's file system is full: that write fails and says why, everything else goes on.

use std::path::Path;
use std::process::Command;

use blockserver::nbd::Errno;
use blockserver::nbd::blocking_client::{BlockingClient, ClientError};

use crate::run::{diskferry, folder, program};
use crate::serving::Serving;

const MIB: u64 = 1 << 20;

/// A small file system in memory, taken away with the value.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    /// `None`, and said so, where one may not mount.
    fn mount(at: &'a Path, size: &str) -> Option<Self> {
        let id = Command::new("id")
            .arg("-u")
            .output()
            .expect("id can be run");
        if id.stdout != b"0\n" {
            println!("skipped: only root may mount a small file system");
            return None;
        }
        std::fs::create_dir(at).expect("made");
        let options = format!("size={size}");
        let at_text = at.to_str().expect("UTF-8");
        program(
            Path::new("/"),
            "mount",
            &["-t", "tmpfs", "-o", &options, "tmpfs", at_text],
        )
        .ok();
        Some(Self(at))
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        program(
            Path::new("/"),
            "mount",
            &["-o", &options, self.0.to_str().expect("UTF-8")],
        )
        .ok();
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        // Lazily: a test that failed may have left a server.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn client_of(serving: &Serving) -> BlockingClient {
    let address = serving.uri().parse().expect("an address");
    BlockingClient::connect(&address).expect("it listens")
}

/// The server of a new disk in the small file system, and a client.
fn serve_on_it(here: &Path) -> (Serving, BlockingClient) {
    let create = ["create", "small/a.vhdx", "1G", "--block-size", "1M"];
    diskferry(here, &create).ok();
    let place = format!("unix:{}", here.join("s").display());
    let serving = Serving::start(here, &["small/a.vhdx", "--listen", &place]);
    let client = client_of(&serving);
    (serving, client)
}

fn is_full(result: Result<(), ClientError>) -> bool {
    match result {
        Ok(()) => false,
        Err(ClientError::Failed {
            errno: Errno::NoSpace,
            ..
        }) => true,
        Err(error) => panic!("{error}"),
    }
}

/// What a client that fills the host's file system finds, and another one beside it.
fn fill(small: &Small<'_>, client: &mut BlockingClient, beside: &mut BlockingClient) {
    let block = |number: u64| vec![number as u8 + 1; MIB as usize];
    let mut kept = Vec::new();
    let mut full = 0;
    for number in 0..120 {
        if is_full(client.write(number * MIB, &block(number), false)) {
            full += 1;
        } else {
            kept.push(number);
        }
        // What is there can be overwritten, flushed and read, whatever fails beside it.
        beside
            .write(200 * MIB, &[number as u8; 4096], false)
            .expect("room was taken before");
        if number % 10 == 0 {
            client.flush().expect("a full disk can be flushed");
        }
    }
    assert!(
        full > 20 && kept.len() > 10,
        "{full} full, {} kept",
        kept.len()
    );
    beside.flush().expect("flushed");
    let mut back = vec![0; MIB as usize];
    for number in &kept {
        client.read(number * MIB, &mut back).expect("read");
        assert!(back == block(*number), "block {number}");
    }
    small.resize("200m");
    client
        .write(199 * MIB, &block(199), true)
        .expect("there is room again");
    client.read(199 * MIB, &mut back).expect("read");
    assert!(back == block(199));
}

#[test]
fn a_full_host_fails_the_write_that_needs_room_and_no_other() {
    let here = folder();
    let here = here.path();
    let mount = here.join("small");
    let Some(small) = Small::mount(&mount, "40m") else {
        return;
    };
    let (serving, mut client) = serve_on_it(here);
    let mut beside = client_of(&serving);
    beside
        .write(200 * MIB, &[0; 4096], false)
        .expect("the first write");
    fill(&small, &mut client, &mut beside);
    drop((client, beside));
    serving.end();
    diskferry(here, &["check", "small/a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "small/a.vhdx"]).ok();
}

#[test]
fn a_host_that_is_full_from_the_start_refuses_the_first_write_and_serves_on() {
    let here = folder();
    let here = here.path();
    let mount = here.join("small");
    let Some(small) = Small::mount(&mount, "3m") else {
        return;
    };
    let (serving, mut client) = serve_on_it(here);
    for _ in 0..3 {
        assert!(is_full(client.write(0, &[1; 4096], false)));
        let mut back = [7; 4096];
        client.read(0, &mut back).expect("read");
        assert_eq!(back, [0; 4096]);
    }
    small.resize("60m");
    client
        .write(0, &[1; 4096], true)
        .expect("there is room now");
    drop(client);
    serving.end();
    diskferry(here, &["check", "small/a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "small/a.vhdx"]).ok();
}

#[test]
fn a_full_host_refuses_a_snapshot_and_the_disk_goes_on_as_it_was() {
    let here = folder();
    let here = here.path();
    let mount = here.join("small");
    let Some(small) = Small::mount(&mount, "40m") else {
        return;
    };
    let (serving, mut client) = serve_on_it(here);
    client.write(0, &[1; 4096], true).expect("there is room");
    let filled = std::fs::write(mount.join("rest"), vec![1; 64 << 20]);
    assert!(filled.is_err(), "nothing is left");
    let snapshot = ["snapshot", "small/a.vhdx", "small/b.vhdx"];
    let ran = diskferry(here, &snapshot);
    assert!(
        ran.code == 1 && ran.stderr.contains("No space"),
        "{}",
        ran.stderr
    );
    let left: Vec<_> = std::fs::read_dir(&mount)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name.to_string_lossy().contains("b.vhdx"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    client
        .write(0, &[2; 4096], true)
        .expect("its place is taken");
    small.resize("80m");
    diskferry(here, &snapshot).ok();
    client.write(MIB, &[3; 4096], true).expect("there is room");
    drop(client);
    serving.end();
    diskferry(here, &["check", "--chain", "small/b.vhdx"]).ok();
}
