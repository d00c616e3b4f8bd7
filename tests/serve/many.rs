//! Many at once: disks, clients, kinds of sockets, requests in flight.

use std::thread;

use blockserver::nbd::blocking_client::BlockingClient;

use crate::run::{diskferry, folder, program};
use crate::serving::Serving;

/// The address of export `name` at the `number`th place the server listens.
fn uri(serving: &Serving, name: &str, number: usize) -> String {
    let first = serving.line["uris"][number].as_str().expect("an address");
    first
        .replace("/a?", &format!("/{name}?"))
        .replace("/a", &format!("/{name}"))
}

fn client(uri: &str) -> BlockingClient {
    BlockingClient::connect(&uri.parse().expect("an address")).expect("it listens")
}

fn content(client: u64, turn: u64) -> Vec<u8> {
    ((client << 32) | (turn + 1)).to_le_bytes().repeat(8192 / 8)
}

#[test]
fn three_disks_serve_eight_clients_over_unix_and_tcp_at_once() {
    let here = folder();
    let here = here.path();
    for (name, block) in [("a", "1M"), ("b", "2M"), ("c", "32M")] {
        diskferry(
            here,
            &[
                "create",
                &format!("{name}.vhdx"),
                "4G",
                "--block-size",
                block,
            ],
        )
        .ok();
    }
    // A socket whose path says nothing about exports.
    let place = format!("unix:{}", here.join("s").display());
    let words = [
        "a.vhdx",
        "b.vhdx",
        "c.vhdx",
        "--listen",
        &place,
        "--listen",
        "tcp:127.0.0.1:0",
    ];
    let serving = Serving::start(here, &words);
    thread::scope(|scope| {
        for number in 0..8_u64 {
            let export = ["a", "b", "c"][number as usize % 3];
            let (write, read) = (number as usize % 2, 1 - number as usize % 2);
            let (to, from) = (uri(&serving, export, write), uri(&serving, export, read));
            scope.spawn(move || {
                // One connection writes, another one, over the other kind of socket, reads.
                let (mut writer, mut reader) = (client(&to), client(&from));
                let mut back = vec![0; 8192];
                for turn in 0..120 {
                    // Neighbours of other clients', in the same blocks.
                    let at = (turn % 40) * (64 << 20) + number * 8192;
                    writer
                        .write(at, &content(number, turn), turn % 7 == 0)
                        .expect("written");
                    if turn % 5 == 0 {
                        writer.flush().expect("flushed");
                    }
                    reader.read(at, &mut back).expect("read");
                    assert!(
                        back == content(number, turn),
                        "client {number}, turn {turn}"
                    );
                }
            });
        }
    });
    serving.end();
    for name in ["a.vhdx", "b.vhdx", "c.vhdx"] {
        diskferry(here, &["check", name]).ok();
        program(here, "qemu-img", &["check", name]).ok();
    }
    // An independent reader finds what the last turns wrote.
    for number in 0..8_u64 {
        let disk = ["a.vhdx", "b.vhdx", "c.vhdx"][number as usize % 3];
        let at = 39 * (64 << 20) + number * 8192;
        let pattern = content(number, 119)[0];
        assert_eq!(pattern, 120);
        let ran = program(
            here,
            "qemu-io",
            &["-f", "vhdx", "-r", disk, "-c", &format!("read -v {at} 16")],
        )
        .ok();
        assert!(ran.stdout.contains("78 00 00 00"), "{}", ran.stdout);
    }
}

#[test]
fn fio_verifies_every_block_at_queue_depth_32() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "2G", "--block-size", "1M"]).ok();
    let serving = Serving::start(here, &["a.vhdx", "--listen", "unix:s"]);
    let uri = format!("--uri={}", serving.uri());
    let words = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bs=4k",
        "--size=2G",
        "--io_size=24M",
        "--iodepth=32",
        "--verify=crc32c",
        "--do_verify=1",
        "--fsync=32",
        "--verify_fatal=1",
        "--randseed=11",
    ];
    program(here, "fio", &words).ok();
    serving.end();
    diskferry(here, &["check", "a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "a.vhdx"]).ok();
}
