//! What clients are promised whose disk has moved to another server.

use std::time::Duration;

use blockserver::export::{ExportHandle, ExportOptions, LocalRequest};
use blockserver::server::{Server, ServerConfig};

use super::site::{Load, Site, on_both, read_locally, read_remotely};

/// Copy a disk that stands still.
fn copy(from: &ExportHandle, to: &ExportHandle) {
    for (number, chunk) in read_locally(from).chunks(1 << 20).enumerate() {
        let (offset, data) = ((number as u64) << 20, bytes::Bytes::copy_from_slice(chunk));
        to.call(LocalRequest::Write { offset, data })
            .expect("a write");
    }
}

#[test]
fn clients_go_on_at_the_server_their_disk_has_moved_to() {
    on_both(|config| {
        let (old, source) = Site::with_raw_disk(config.clone(), 4 << 20);
        let (new, target) = Site::with_raw_disk(config, 4 << 20);
        let load = Load::start(&old, "disk", 4, 0xf04);
        std::thread::sleep(Duration::from_millis(100));
        source.hold_and_wait();
        copy(&source, &target);
        let left_behind = read_locally(&source);
        source.forward(new.address("disk"));
        std::thread::sleep(Duration::from_millis(200));
        let late = read_remotely(&mut old.client("disk"));
        assert_eq!(late.len(), 4 << 20, "who comes late is sent on too");
        let extents = old
            .client("disk")
            .block_status(0, 4 << 20)
            .expect("extents");
        assert_eq!(
            extents.iter().map(|e| u64::from(e.len)).sum::<u64>(),
            4 << 20
        );
        let model = load.stop(4 << 20);
        assert!(read_locally(&target) == model, "all is at the new place");
        assert!(
            read_locally(&source) == left_behind,
            "nothing was done at the old place"
        );
    });
}

#[test]
fn clients_do_not_notice_that_the_server_behind_is_restarted() {
    on_both(|config| {
        let (old, source) = Site::with_raw_disk(config.clone(), 2 << 20);
        let (new, target) = Site::with_raw_disk(config.clone(), 2 << 20);
        let load = Load::start(&old, "disk", 3, 0x4e57);
        std::thread::sleep(Duration::from_millis(50));
        source.hold_and_wait();
        copy(&source, &target);
        source.forward(new.address("disk"));
        let mut new = new;
        drop(target);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(100));
            let Site { dir, server, .. } = new;
            server.shutdown().expect("a clean end");
            new = restart(&config, dir);
        }
        std::thread::sleep(Duration::from_millis(100));
        let model = load.stop(2 << 20);
        let target = new.server.export("disk").expect("it was added");
        assert!(read_locally(&target) == model);
    });
}

/// The same disk at the same address, served anew.
fn restart(config: &ServerConfig, dir: tempfile::TempDir) -> Site {
    let site = Site::in_directory(config.clone(), dir);
    let path = site.path("disk.raw");
    let disk = blockserver::export::Disk::open(&path, &vdisk::disk::OpenOptions::default())
        .expect("not locked");
    // A client that is faster than this finds no export and comes again.
    site.server
        .add_export("disk", disk, ExportOptions::default())
        .expect("a free name");
    site
}

#[test]
fn a_server_ends_although_nobody_answers_what_it_sent_on() {
    let (old, source) = Site::with_raw_disk(
        ServerConfig {
            workers: 2,
            drain_limit: Duration::from_millis(100),
            ..ServerConfig::default()
        },
        1 << 20,
    );
    let mut client = old.client("disk");
    source.hold_and_wait();
    source.forward("unix:/nonexistent/nbd.sock".parse().expect("an address"));
    let writer = std::thread::spawn(move || client.write(0, &[1], false));
    std::thread::sleep(Duration::from_millis(50));
    let server: Server = old.server;
    server.shutdown().expect("a clean end");
    assert!(writer.join().expect("no panic").is_err());
}
