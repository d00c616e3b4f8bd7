//! What programs that use our own clients are promised.

use blockserver::export::ExportOptions;
use blockserver::nbd::Errno;
use blockserver::nbd::blocking_client::{
    BlockingClient, ClientError, ConnectOptions, PipelinedClient,
};
use blockserver::nbd::client::{Answer, ClientRequest, Wanted};
use blockserver::nbd::uri::{Address, Endpoint};
use blockserver::nbd::wire::allocation;
use blockserver::server::ServerConfig;

use super::site::{Site, on_both, read_remotely};

const SIZE: u64 = 8 << 20;

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 31 + seed * 7 + at / 251) as u8)
        .collect()
}

#[test]
fn what_is_written_over_tcp_is_read_back_over_a_unix_socket() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, SIZE);
        let any = Endpoint::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        };
        let address = Address {
            endpoint: site.server.listen(&any).expect("a free port"),
            export: "disk".to_owned(),
        };
        let mut client = BlockingClient::connect(&address).expect("a client");
        assert_eq!(client.size(), SIZE);
        let data = pattern(3_000_000, 1);
        client.write(12_345, &data, true).expect("a write");
        let mut back = vec![0; data.len()];
        client.read(12_345, &mut back).expect("a read");
        assert!(back == data);
        assert!(read_remotely(&mut site.client("disk"))[12_345..][..data.len()] == data);
    });
}

#[test]
fn simple_replies_serve_as_well_as_structured_ones() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, SIZE);
        let options = ConnectOptions {
            wanted: Wanted {
                structured: false,
                allocation: false,
            },
            ..ConnectOptions::default()
        };
        let mut client =
            BlockingClient::connect_with(&site.address(""), &options).expect("a client");
        assert!(!client.remote().structured);
        let data = pattern(70_000, 2);
        client.write(512, &data, false).expect("a write");
        let mut back = vec![9; data.len() + 512];
        client.read(0, &mut back).expect("a read");
        assert!(back[..512].iter().all(|byte| *byte == 0) && back[512..] == data);
        assert!(matches!(
            client.block_status(0, 4096),
            Err(ClientError::Submit(_))
        ));
    });
}

#[test]
fn extents_tell_holes_from_data_and_cover_all_that_was_asked() {
    on_both(|config| {
        let site = Site::new(config);
        let disk = site.vhdx("disk.vhdx", 256 << 20);
        site.server
            .add_export("disk", disk, ExportOptions::default())
            .expect("a free name");
        let mut client = site.client("disk");
        client.write(100 << 20, &[1; 4096], false).expect("a write");
        let extents = client.block_status(0, 256 << 20).expect("extents");
        let total: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum();
        assert_eq!(total, 256 << 20);
        let flags: Vec<u32> = extents.iter().map(|extent| extent.flags).collect();
        let hole = allocation::HOLE | allocation::ZERO;
        assert_eq!(flags, [hole, 0, hole]);
    });
}

#[test]
fn errors_reach_the_client_and_the_connection_goes_on() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, SIZE);
        let mut client = site.client("disk");
        let beyond = client.write(SIZE - 10, &[1; 100], false);
        let Err(ClientError::Failed { errno, .. }) = beyond else {
            panic!("{beyond:?}");
        };
        assert_eq!(errno, Errno::NoSpace);
        client.read(SIZE, &mut [0; 1]).expect_err("beyond");
        client.read(0, &mut [0; 512]).expect("still there");
        let unknown = BlockingClient::connect(&site.address("nothing"));
        let text = unknown.expect_err("no such export").to_string();
        assert!(text.contains("there is no such export"), "{text}");
    });
}

#[test]
fn many_requests_from_one_thread_never_lock_up() {
    on_both(|config| {
        // A server that stops reading soon: a client that only sent would wait for ever.
        let config = ServerConfig {
            bytes_per_connection: 1 << 20,
            ..config
        };
        let (site, _export) = Site::with_raw_disk(config, SIZE);
        let options = ConnectOptions::default();
        let mut client = PipelinedClient::connect(&site.address(""), &options).expect("a client");
        // Far more in both directions than sockets buffer.
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
        assert!(read_remotely(&mut site.client("disk")) == data.repeat(8));
    });
}

#[test]
fn a_split_client_sends_and_receives_on_two_threads() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, SIZE);
        let options = ConnectOptions {
            max_in_flight: 5000,
            ..ConnectOptions::default()
        };
        let client = PipelinedClient::connect(&site.address(""), &options).expect("a client");
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
            let write = ClientRequest::write(at * 4096, &data);
            send.submit(&write).expect("queued");
            if at % 16 == 15 {
                send.send().expect("sent");
            }
        }
        send.send().expect("sent");
        drop(send);
        assert_eq!(receiver.join().expect("no panic"), 2000);
        let disk = read_remotely(&mut site.client("disk"));
        assert!(disk[..2000 * 4096] == data.repeat(2000));
    });
}
