//! What the blocking server and the blocking client promise, over real sockets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crate::memory_disk::{MemoryDisk, Served};
use blockserver::blocking::Limits;
use blockserver::nbd::blocking_client::{
    BlockingClient, ClientError, ConnectOptions, PipelinedClient,
};
use blockserver::nbd::client::{Answer, ClientRequest, Wanted};
use blockserver::nbd::uri::Endpoint;
use blockserver::nbd::wire::{CommandFlags, Errno, allocation};
use blockserver::socket::Listener;

const SIZE: usize = 8 << 20;

fn tcp() -> Endpoint {
    Endpoint::Tcp {
        host: "127.0.0.1".into(),
        port: 0,
    }
}

fn unix(dir: &tempfile::TempDir) -> Endpoint {
    Endpoint::Unix(dir.path().join("nbd.sock"))
}

fn served(endpoint: &Endpoint) -> (Arc<MemoryDisk>, Served) {
    let disk = Arc::new(MemoryDisk::new(SIZE));
    let disks = [("", &disk), ("disk", &disk), ("fixed", &disk)];
    let served = Served::new(endpoint, &disks, &["fixed"], Limits::default());
    (disk, served)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 31 + seed * 7 + at / 251) as u8)
        .collect()
}

#[test]
fn what_is_written_is_read_back_over_tcp_and_unix() {
    let dir = tempfile::tempdir().expect("a directory");
    for endpoint in [tcp(), unix(&dir)] {
        let (disk, served) = served(&endpoint);
        let mut client = BlockingClient::connect(&served.address("disk")).expect("connected");
        assert_eq!(client.size(), SIZE as u64);
        let data = pattern(300_000, 1);
        client.write(12_345, &data, false).expect("written");
        client.write(1 << 20, &data, true).expect("written");
        client.flush().expect("flushed");
        let mut back = vec![0; data.len()];
        client.read(12_345, &mut back).expect("read");
        assert_eq!(back, data);
        assert_eq!(disk.contents()[1 << 20..(1 << 20) + data.len()], data);
        client
            .zeroes(12_345, 100_000, CommandFlags::default())
            .expect("zeroed");
        client.trim(4 << 20, 1 << 20).expect("trimmed");
        client.read(12_345, &mut back).expect("read");
        assert_eq!(back[..100_000], vec![0; 100_000]);
        assert_eq!(back[100_000..], data[100_000..]);
    }
}

#[test]
fn simple_replies_serve_as_well_as_structured_ones() {
    let (_, served) = served(&tcp());
    let options = ConnectOptions {
        wanted: Wanted {
            structured: false,
            allocation: false,
        },
        ..ConnectOptions::default()
    };
    let mut client =
        BlockingClient::connect_with(&served.address(""), &options).expect("connected");
    assert!(!client.remote().structured);
    let data = pattern(70_000, 2);
    client.write(512, &data, false).expect("written");
    let mut back = vec![0; data.len()];
    client.read(512, &mut back).expect("read");
    assert_eq!(back, data);
    assert!(matches!(
        client.block_status(0, 4096),
        Err(ClientError::Submit(_))
    ));
}

#[test]
fn block_status_covers_all_that_was_asked() {
    let (_, served) = served(&tcp());
    let mut client = BlockingClient::connect(&served.address("disk")).expect("connected");
    client.write(1 << 20, &[1; 4096], false).expect("written");
    let extents = client.block_status(0, SIZE as u64).expect("extents");
    let total: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum();
    assert_eq!(total, SIZE as u64);
    let flags: Vec<u32> = extents.iter().map(|extent| extent.flags).collect();
    let hole = allocation::HOLE | allocation::ZERO;
    assert_eq!(flags, [hole, 0, hole]);
}

#[test]
fn errors_reach_the_client_and_the_connection_goes_on() {
    let (_, served) = served(&tcp());
    let mut client = BlockingClient::connect(&served.address("fixed")).expect("connected");
    assert!(client.remote().is_read_only());
    let denied = client.write(0, &[1; 100], false);
    let Err(ClientError::Failed { errno, .. }) = denied else {
        panic!("{denied:?}");
    };
    assert_eq!(errno, Errno::NotPermitted);
    client.read(0, &mut [0; 512]).expect("still there");

    let mut client = BlockingClient::connect(&served.address("disk")).expect("connected");
    let beyond = client.write(SIZE as u64 - 10, &[1; 100], false);
    let Err(ClientError::Failed { errno, .. }) = beyond else {
        panic!("{beyond:?}");
    };
    assert_eq!(errno, Errno::NoSpace);
    client.read(SIZE as u64, &mut [0; 1]).expect_err("beyond");
    client.read(0, &mut [0; 512]).expect("still there");

    let unknown = BlockingClient::connect(&served.address("nothing"));
    let text = unknown.expect_err("no such export").to_string();
    assert!(text.contains("there is no such export"), "{text}");
}

#[test]
fn many_requests_from_one_thread_never_lock_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let (disk, served) = served(&unix(&dir));
    let options = ConnectOptions::default();
    let mut client = PipelinedClient::connect(&served.address(""), &options).expect("connected");
    // Far more in both directions than sockets buffer: a client that only sends would lock up.
    let data = pattern(1 << 20, 3);
    let mut outstanding = 0;
    for round in 0..4u64 {
        for at in 0..8u64 {
            let write = ClientRequest::write(at << 20, &data);
            client.submit(&write).expect("queued");
            let read = ClientRequest::read(((at + round) % 8) << 20, 1 << 20);
            client.submit(&read).expect("queued");
            outstanding += 2;
        }
    }
    while let Some(completion) = client.wait().expect("an answer") {
        outstanding -= 1;
        if let Answer::Data(bytes) = completion.result.expect("done") {
            assert_eq!(bytes.len(), 1 << 20);
            client.recycle(bytes);
        }
    }
    assert_eq!((outstanding, client.in_flight()), (0, 0));
    assert_eq!(disk.contents(), data.repeat(8));
}

#[test]
fn a_split_client_sends_and_receives_on_two_threads() {
    let (disk, served) = served(&tcp());
    let options = ConnectOptions {
        max_in_flight: 5000,
        ..ConnectOptions::default()
    };
    let client = PipelinedClient::connect(&served.address(""), &options).expect("connected");
    let (mut send, mut receive) = client.split();
    let receiver = std::thread::spawn(move || {
        let mut answers = 0;
        while let Some(completion) = receive.wait().expect("an answer") {
            completion.result.expect("done");
            answers += 1;
        }
        answers
    });
    let data = pattern(4096, 4);
    for at in 0..2000u64 {
        let offset = at * 4096;
        send.submit(&ClientRequest::write(offset, &data))
            .expect("queued");
        if at % 16 == 15 {
            send.send().expect("sent");
        }
    }
    send.send().expect("sent");
    drop(send);
    assert_eq!(receiver.join().expect("no panic"), 2000);
    assert_eq!(disk.contents()[..2000 * 4096], data.repeat(2000));
}

#[test]
fn several_clients_see_each_others_writes() {
    let (_, served) = served(&tcp());
    let address = served.address("disk");
    let threads: Vec<_> = (0..8usize)
        .map(|id| {
            let address = address.clone();
            std::thread::spawn(move || {
                let mut client = BlockingClient::connect(&address).expect("connected");
                let data = pattern(10_000, id);
                client
                    .write(id as u64 * 10_000, &data, true)
                    .expect("written");
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    let mut client = BlockingClient::connect(&address).expect("connected");
    for id in 0..8usize {
        let mut back = vec![0; 10_000];
        client.read(id as u64 * 10_000, &mut back).expect("read");
        assert_eq!(back, pattern(10_000, id));
    }
}

#[test]
fn a_client_that_never_ends_its_handshake_is_dropped() {
    let disk = Arc::new(MemoryDisk::new(4096));
    let limits = Limits {
        handshake: Duration::from_millis(200),
        ..Limits::default()
    };
    let served = Served::new(&tcp(), &[("", &disk)], &[], limits);
    let Endpoint::Tcp { host, port } = served.endpoint.clone() else {
        panic!("tcp");
    };
    let mut silent = TcpStream::connect((host.as_str(), port)).expect("connected");
    let mut all = Vec::new();
    silent.read_to_end(&mut all).expect("closed by the server");
    assert_eq!(all.len(), 18);
    // One that drips bytes gains no time by it.
    let mut dripping = TcpStream::connect((host.as_str(), port)).expect("connected");
    dripping.write_all(&3u32.to_be_bytes()).expect("sent");
    while dripping.write_all(b"I").is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_client_too_many_is_turned_away_and_the_others_stay() {
    let disk = Arc::new(MemoryDisk::new(4096));
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let served = Served::new(&tcp(), &[("", &disk)], &[], limits);
    let address = served.address("");
    let mut first = BlockingClient::connect(&address).expect("connected");
    let second = BlockingClient::connect(&address).expect("connected");
    BlockingClient::connect(&address).expect_err("turned away");
    first.flush().expect("still served");
    drop(second);
    // The place is free once the server's thread has seen the goodbye.
    let mut again = BlockingClient::connect(&address);
    for _ in 0..500 {
        if again.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        again = BlockingClient::connect(&address);
    }
    again.expect("a free place");
}

#[test]
fn a_used_endpoint_says_so_and_a_dead_socket_file_is_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let endpoint = unix(&dir);
    let first = Listener::bind(&endpoint).expect("free");
    let error = Listener::bind(&endpoint).expect_err("used");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains("nbd.sock"), "{error}");
    drop(first);
    let Endpoint::Unix(path) = &endpoint else {
        panic!("unix");
    };
    assert!(!path.exists());
    // A socket file whose server was killed.
    drop(std::os::unix::net::UnixListener::bind(path).expect("free"));
    assert!(path.exists());
    Listener::bind(&endpoint).expect("replaced");
    std::fs::write(path, "precious").expect("written");
    Listener::bind(&endpoint).expect_err("a file of another kind stays");
    assert!(path.exists());

    let (_, served) = served(&tcp());
    let error = Listener::bind(&served.endpoint).expect_err("used");
    assert!(
        error
            .to_string()
            .contains("cannot listen on tcp:127.0.0.1:")
    );
}

#[test]
fn stopping_answers_what_was_taken_and_ends() {
    let (_, served) = served(&tcp());
    let mut client = BlockingClient::connect(&served.address("")).expect("connected");
    client.write(0, &[1; 512], false).expect("written");
    drop(served);
    client.flush().expect_err("gone");
}

#[test]
fn a_request_cut_off_in_its_payload_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let endpoint = unix(&dir);
    let (disk, served) = served(&endpoint);
    let Endpoint::Unix(path) = &served.endpoint else {
        panic!("unix");
    };
    let mut raw = UnixStream::connect(path).expect("connected");
    let mut bytes = 3u32.to_be_bytes().to_vec();
    // EXPORT_NAME of the default export, then half of a write.
    bytes.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    bytes.extend(0x2560_9513u32.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(4096u32.to_be_bytes());
    bytes.extend([0xee; 2000]);
    raw.write_all(&bytes).expect("sent");
    drop(raw);
    drop(served);
    assert!(disk.contents().iter().all(|byte| *byte == 0));
}

#[test]
fn a_failing_disk_gives_errors_and_the_connection_goes_on() {
    let (disk, served) = served(&tcp());
    let mut client = BlockingClient::connect(&served.address("disk")).expect("connected");
    for (kind, expected) in [
        (vdisk::ErrorKind::NoSpace, Errno::NoSpace),
        (vdisk::ErrorKind::Io, Errno::Io),
        (vdisk::ErrorKind::Corrupt, Errno::Io),
        (vdisk::ErrorKind::NotOwned, Errno::NotPermitted),
    ] {
        disk.fail_with(Some(kind));
        let results = [
            client.read(0, &mut [0; 5000]),
            client.write(0, &[1; 5000], false),
            client.flush(),
            client.zeroes(0, 4096, CommandFlags::default()),
            client.trim(0, 4096),
            client.block_status(0, 4096).map(drop),
        ];
        for result in results {
            let Err(ClientError::Failed { errno, .. }) = result else {
                panic!("{result:?}");
            };
            assert_eq!(errno, expected);
        }
        disk.fail_with(None);
        let mut back = [9; 5000];
        client.read(0, &mut back).expect("works again");
        assert_eq!(back, [0; 5000]);
    }
}

/// The bytes of a handshake by name of the default export, and of `count` reads of 1 MiB.
fn unread_reads(count: usize) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    for _ in 0..count {
        bytes.extend(0x2560_9513u32.to_be_bytes());
        bytes.extend([0; 20]);
        bytes.extend((1u32 << 20).to_be_bytes());
    }
    bytes
}

#[test]
fn a_client_that_takes_no_replies_cannot_keep_the_server_from_stopping() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Arc::new(MemoryDisk::new(SIZE));
    let limits = Limits {
        farewell: Duration::from_millis(100),
        ..Limits::default()
    };
    let served = Served::new(&unix(&dir), &[("", &disk)], &[], limits);
    let Endpoint::Unix(path) = &served.endpoint else {
        panic!("unix");
    };
    let mut stuck = UnixStream::connect(path).expect("connected");
    stuck.write_all(&unread_reads(20)).expect("sent");
    drop(served);
}

#[test]
fn a_client_that_only_stops_sending_still_gets_its_replies() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, served) = served(&unix(&dir));
    let Endpoint::Unix(path) = &served.endpoint else {
        panic!("unix");
    };
    let mut client = UnixStream::connect(path).expect("connected");
    client.write_all(&unread_reads(3)).expect("sent");
    client.shutdown(std::net::Shutdown::Write).expect("ended");
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("replies");
    assert_eq!(all.len(), 18 + 10 + 3 * (16 + (1 << 20)));
}
