//! What the owner of an export is promised.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use blockserver::export::{Disk, ExportOptions, LocalReply, LocalRequest};
use blockserver::nbd::blocking_client::{BlockingClient, ConnectOptions, PipelinedClient};
use blockserver::nbd::client::ClientRequest;
use blockserver::server::ServerConfig;
use vdisk::engine::Mark;

use super::site::{Load, Random, Site, on_both, read_locally, read_remotely};

#[test]
fn a_held_export_stands_still_and_loses_nothing() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 4 << 20);
        let load = Load::start(&site, "disk", 4, 0x401d);
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(20));
            export.hold_and_wait();
            let first = read_locally(&export);
            std::thread::sleep(Duration::from_millis(5));
            assert!(
                first == read_locally(&export),
                "nothing changes while it is held"
            );
            export
                .call(LocalRequest::Park { mark: None })
                .expect("a held disk can be parked");
            export.release();
        }
        let model = load.stop(4 << 20);
        assert!(read_remotely(&mut site.client("disk")) == model);
    });
}

#[test]
fn a_request_to_a_held_export_is_answered_after_its_release() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 1 << 20);
        let mut client = site.client("disk");
        export.hold_and_wait();
        let (sender, receiver) = mpsc::channel();
        let writer = std::thread::spawn(move || {
            client.write(0, &[9; 4096], false).expect("a write");
            sender.send(()).expect("waiting");
        });
        assert!(
            receiver.recv_timeout(Duration::from_millis(50)).is_err(),
            "it waits"
        );
        assert!(read_locally(&export).iter().all(|byte| *byte == 0));
        export.release();
        receiver.recv().expect("it is answered");
        writer.join().expect("no error");
        assert!(read_locally(&export)[..4096] == [9; 4096]);
    });
}

#[test]
fn an_export_added_as_held_serves_after_its_release() {
    on_both(|config| {
        let site = Site::new(config);
        let disk = site.raw("disk.raw", 1 << 20);
        let options = ExportOptions::default();
        let export = site
            .server
            .add_held_export("disk", disk, options, None)
            .expect("a free name");
        let mut client = site.client("disk");
        let reader = std::thread::spawn(move || read_remotely(&mut client));
        export.release();
        assert_eq!(reader.join().expect("no error").len(), 1 << 20);
    });
}

#[test]
fn a_disk_is_replaced_under_clients_that_stay_connected() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 4 << 20);
        let load = Load::start(&site, "disk", 4, 0x54a9);
        std::thread::sleep(Duration::from_millis(50));
        let other = site.raw("other.raw", 4 << 20);
        let wrong = site.raw("wrong.raw", 1 << 20);
        assert!(
            export.swap(other.clone(), || {}).is_err(),
            "only a held export's disk"
        );
        export.hold_and_wait();
        assert!(
            export.swap(wrong, || {}).is_err(),
            "only by one of its size"
        );
        let bytes = read_locally(&export);
        let copy = site
            .server
            .add_export("copy", other.clone(), ExportOptions::default());
        let copy = copy.expect("a free name");
        for (number, chunk) in bytes.chunks(1 << 20).enumerate() {
            let (offset, data) = ((number as u64) << 20, bytes::Bytes::copy_from_slice(chunk));
            copy.call(LocalRequest::Write { offset, data })
                .expect("a write");
        }
        let (sender, receiver) = mpsc::channel();
        export
            .swap(other, move || sender.send(()).expect("waiting"))
            .expect("held, of one size");
        receiver.recv().expect("swapped");
        export.release();
        std::thread::sleep(Duration::from_millis(50));
        let model = load.stop(4 << 20);
        assert!(read_locally(&export) == model);
        let old = std::fs::read(site.path("disk.raw")).expect("the old file");
        assert!(
            old == bytes,
            "the old disk stays as it was when it was replaced"
        );
    });
}

#[test]
fn local_requests_outside_the_disk_are_refused() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 1 << 20);
        for (offset, len) in [(1 << 20, 1), (u64::MAX, 2), (0, (1 << 20) + 1), (5, 0)] {
            let refused = export
                .call(LocalRequest::Read { offset, len })
                .expect_err("outside");
            assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
            export
                .call(LocalRequest::Zero { offset, len })
                .expect_err("outside");
            export
                .call(LocalRequest::Status { offset, len })
                .expect_err("outside");
        }
        let status = export.call(LocalRequest::Status {
            offset: 0,
            len: 1 << 20,
        });
        assert!(matches!(status, Ok(LocalReply::Extents(extents)) if !extents.is_empty()));
        assert_eq!(
            export.call(LocalRequest::Flush).expect("a flush"),
            LocalReply::Done
        );
    });
}

#[test]
fn a_removed_export_lets_its_clients_and_its_file_go() {
    on_both(|config| {
        let site = Site::new(config);
        let disk = site.vhdx("disk.vhdx", 16 << 20);
        let export = site
            .server
            .add_export("disk", disk, ExportOptions::default())
            .expect("a free name");
        let mut client = site.client("disk");
        client.write(12345, b"kept", false).expect("a write");
        site.server.remove_export(&export).expect("a clean close");
        assert!(client.write(0, &[1], false).is_err(), "it is gone");
        assert!(BlockingClient::connect(&site.address("disk")).is_err());
        drop(export);
        // The lock on the file goes with it: it can be opened again, to be written.
        let path = site.path("disk.vhdx");
        let mut again = vdisk::disk::Disk::open(&path, &vdisk::disk::OpenOptions::default())
            .expect("not locked");
        let mut found = [0; 4];
        again.read_at(12345, &mut found).expect("a read");
        assert_eq!(&found, b"kept");
    });
}

#[test]
fn a_marked_disk_is_refused_until_the_mark_is_removed() {
    on_both(|config| {
        let site = Site::new(config);
        let disk = site.vhdx("disk.vhdx", 16 << 20);
        let export = site
            .server
            .add_export("disk", disk, ExportOptions::default())
            .expect("a free name");
        site.client("disk")
            .write(0, &[1; 4096], false)
            .expect("a write");
        export.hold_and_wait();
        export
            .call(LocalRequest::Park {
                mark: Some(Mark::HandedOver),
            })
            .expect("parked");
        let path = site.path("disk.vhdx");
        let mut storage = vdisk::storage::FileStorage::open(&path, false);
        assert!(storage.is_err(), "it is locked while it is served");
        export
            .call(LocalRequest::Park { mark: None })
            .expect("parked");
        storage = {
            drop(export);
            drop(site.server);
            vdisk::storage::FileStorage::open(&path, false)
        };
        let info = vdisk::info::info(&mut storage.expect("not locked any more")).expect("an image");
        println!("{info:?}");
    });
}

#[test]
fn a_server_that_ends_answers_what_is_in_flight_and_gives_its_path_back() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, 8 << 20);
        let options = ConnectOptions::default();
        let mut client =
            PipelinedClient::connect(&site.address("disk"), &options).expect("a client");
        let data = vec![5; 64 << 10];
        let mut sent = 0;
        while sent < 64 {
            client
                .submit(&ClientRequest::write(sent << 16, &data))
                .expect("room");
            sent += 1;
        }
        let first = client.wait().expect("an answer").expect("not closed");
        assert!(first.result.is_ok());
        let Site { dir, server, .. } = site;
        let ending = std::thread::spawn(move || server.shutdown());
        let mut answered = 1;
        // Each is answered, well or with ESHUTDOWN, unless it was still on its way.
        while let Ok(Some(_)) = client.wait() {
            answered += 1;
        }
        assert!(answered >= 1);
        ending.join().expect("no panic").expect("a clean end");
        assert!(!dir.path().join("nbd.sock").exists());
    });
}

#[test]
fn a_server_ends_although_an_export_is_held_and_a_client_does_not_read() {
    on_both(|config| {
        let drain_limit = Duration::from_millis(100);
        let config = ServerConfig {
            drain_limit,
            ..config
        };
        let (site, export) = Site::with_raw_disk(config, 64 << 20);
        let options = ConnectOptions::default();
        let mut held = site.client("disk");
        let mut deaf = PipelinedClient::connect(&site.address("disk"), &options).expect("a client");
        for at in 0..16u64 {
            deaf.submit(&ClientRequest::read(at << 22, 4 << 20))
                .expect("room");
        }
        drop(deaf.wait());
        export.hold_and_wait();
        let writer = std::thread::spawn(move || held.write(0, &[1], false));
        std::thread::sleep(Duration::from_millis(20));
        site.server.shutdown().expect("a clean end");
        assert!(writer.join().expect("no panic").is_err());
    });
}

#[test]
fn what_was_done_is_counted() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 1 << 20);
        let mut client = site.client("disk");
        for block in 0..10 {
            client
                .write(block * 4096, &[1; 4096], false)
                .expect("a write");
        }
        client.read(0, &mut [0; 1000]).expect("a read");
        client.flush().expect("a flush");
        client.trim(0, 4096).expect("a trim");
        let counted = export.statistics();
        assert_eq!(
            (
                counted.write.requests,
                counted.write.bytes,
                counted.write.errors
            ),
            (10, 40960, 0)
        );
        assert_eq!((counted.read.requests, counted.read.bytes), (1, 1000));
        assert_eq!(
            (
                counted.flush.requests,
                counted.zero.requests,
                counted.zero.bytes
            ),
            (1, 1, 4096)
        );
        assert_eq!(counted.write.latency.iter().sum::<u64>(), 10);
    });
}

#[test]
fn what_this_process_writes_arrives_from_any_address_and_to_any_place() {
    on_both(|config| {
        for memory in [false, true] {
            let dir = if memory {
                tempfile::tempdir_in("/dev/shm")
            } else {
                tempfile::tempdir()
            };
            let site = Site::in_directory(config.clone(), dir.expect("a folder"));
            arrives(&site, ("raw", site.raw("disk.raw", 8 << 20)));
            arrives(&site, ("vhdx", site.vhdx("disk.vhdx", 8 << 20)));
        }
    });
}

fn arrives(site: &Site, (name, disk): (&str, Arc<Disk>)) {
    let bytes = disk.size();
    let added = site.server.add_export(name, disk, ExportOptions::default());
    let export = added.expect("a free name");
    let (mut random, mut model) = (Random::new(0x1e27), vec![0; bytes as usize]);
    let source: bytes::Bytes = (0..1 << 20).map(|_| random.next() as u8).collect();
    for step in 0..200 {
        // As chunks come off a wire, and as they lie best.
        let unit = if step % 3 == 0 { 4096 } else { 1 };
        let mut pick = |limit: u64| random.below(limit / unit) * unit;
        let len = pick(256 << 10).max(unit);
        let (at, offset) = (pick(512 << 10), pick(bytes - len));
        let data = source.slice(at as usize..(at + len) as usize);
        model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
        let written = export.call(LocalRequest::Write { offset, data });
        assert_eq!(written.expect("a write"), LocalReply::Done);
    }
    assert!(read_locally(&export) == model, "{name}");
}
