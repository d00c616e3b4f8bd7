//! Clients that mean harm or know no better: each gets what it deserves, nobody else notices.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use blockserver::nbd::blocking_client::BlockingClient;

use super::random::Random;
use crate::run::{diskferry, folder};
use crate::serving::Serving;

const MIB: u64 = 1 << 20;

fn connect(here: &Path) -> UnixStream {
    let stream = UnixStream::connect(here.join("s")).expect("it listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("set");
    stream
        .set_write_timeout(Some(Duration::from_secs(10)))
        .expect("set");
    stream
}

/// Memory of the process, in bytes.
fn resident(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .expect("it says");
    let number = line.split_whitespace().nth(1).expect("a number");
    number.parse::<u64>().expect("a number") * 1024
}

/// Ends the handshake with the default export.
fn attached(here: &Path) -> UnixStream {
    let mut stream = connect(here);
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    // Fixed newstyle without zeroes, then EXPORT_NAME with no name.
    stream.write_all(&3_u32.to_be_bytes()).expect("sent");
    stream
        .write_all(&[&b"IHAVEOPT"[..], &1_u32.to_be_bytes(), &[0; 4]].concat())
        .expect("sent");
    let mut export = [0; 10];
    stream.read_exact(&mut export).expect("an export");
    stream
}

fn request(command: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(0_u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(7_u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// Whether the server closed this client's connection, now or soon.
fn is_closed(mut stream: UnixStream) -> bool {
    let mut rest = vec![0; 65536];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn garbage(here: &Path, random: &mut Random) {
    for _ in 0..100 {
        let mut stream = if random.below(2) == 0 {
            connect(here)
        } else {
            attached(here)
        };
        let len = random.below(3000) as usize;
        let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        // It may hang up on us in the middle.
        let _ = stream.write_all(&bytes);
    }
    for _ in 0..300 {
        // Right at the beginning, one word wrong.
        let mut bytes = [
            &3_u32.to_be_bytes()[..],
            b"IHAVEOPT",
            &7_u32.to_be_bytes(),
            &[0; 16],
        ]
        .concat();
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << random.below(8);
        let _ = connect(here).write_all(&bytes);
    }
}

/// Options or requests without end, and no reply is ever read.
fn floods(here: &Path) {
    let mut flood = connect(here);
    flood.write_all(&3_u32.to_be_bytes()).expect("sent");
    flood
        .set_write_timeout(Some(Duration::from_millis(300)))
        .expect("set");
    let list = [&b"IHAVEOPT"[..], &3_u32.to_be_bytes(), &[0; 4]]
        .concat()
        .repeat(1000);
    for _ in 0..200 {
        if flood.write_all(&list).is_err() {
            break;
        }
    }
    let mut flood = attached(here);
    flood
        .set_write_timeout(Some(Duration::from_millis(300)))
        .expect("set");
    let reads = request(0, 0, 32 << 20).repeat(100);
    for _ in 0..200 {
        if flood.write_all(&reads).is_err() {
            break;
        }
    }
}

fn absurd(here: &Path) {
    // A write of 4 GiB that is announced: the connection ends, the memory is never taken.
    let mut stream = attached(here);
    stream.write_all(&request(1, 0, u32::MAX)).expect("sent");
    assert!(is_closed(stream), "a write of 4 GiB is not waited for");
    let mut stream = attached(here);
    stream.write_all(&[0; 28]).expect("sent");
    assert!(is_closed(stream), "no magic, no connection");
    // What is out of bounds is an error, and the connection lives.
    let mut stream = attached(here);
    for (command, offset, len) in [
        (0, u64::MAX, 1),
        (0, u64::MAX - 4095, 4096),
        (4, 1 << 62, u32::MAX),
        (99, 0, 0),
        (7, 0, 10),
    ] {
        stream
            .write_all(&request(command, offset, len))
            .expect("sent");
        let mut reply = [0; 16];
        stream.read_exact(&mut reply).expect("a reply");
        assert_ne!(reply[4..8], [0; 4], "{command} {offset} {len}");
    }
}

#[test]
fn hostile_clients_disturb_nobody_and_take_no_memory() {
    let here = folder();
    let here = here.path();
    let mut random = Random::printed();
    diskferry(here, &["create", "a.vhdx", "1G", "--block-size", "1M"]).ok();
    let place = format!("unix:{}", here.join("s").display());
    let serving = Serving::start(here, &["a.vhdx", "--listen", &place]);
    let address = serving.uri().parse().expect("an address");
    let mut good = BlockingClient::connect(&address).expect("it listens");
    good.write(0, &[7; 4096], false).expect("written");
    let half_open: Vec<_> = (0..400).map(|_| connect(here)).collect();
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            // Announces a long write and sends a little of it.
            let mut stream = attached(here);
            stream.write_all(&request(1, MIB, 32 << 20)).expect("sent");
            stream.write_all(&[1; 100]).expect("sent");
            stream
        })
        .collect();
    garbage(here, &mut random);
    floods(here);
    absurd(here);
    for turn in 0..50 {
        good.write(turn * MIB, &[turn as u8; 4096], true)
            .expect("written");
    }
    let mut back = [0; 4096];
    good.read(49 * MIB, &mut back).expect("read");
    assert_eq!(back, [49; 4096]);
    let mut another = BlockingClient::connect(&address).expect("it still listens");
    another.read(49 * MIB, &mut back).expect("read");
    let memory = resident(serving.pid());
    println!("{} MiB resident", memory / MIB);
    assert!(memory < 600 * MIB, "{memory} bytes");
    drop((half_open, waiting, good, another));
    serving.end();
    diskferry(here, &["check", "a.vhdx"]).ok();
}
