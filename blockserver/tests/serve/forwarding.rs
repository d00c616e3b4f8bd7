//! What clients are promised whose disk has moved to another server.

use std::time::Duration;

use blockserver::export::{ExportHandle, ExportOptions, LocalRequest};
use blockserver::nbd::CommandFlags;
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

#[test]
fn what_a_crashed_server_lost_of_acknowledged_writes_is_written_again() {
    on_both(|config| {
        let (old, source) = Site::with_raw_disk(config.clone(), 1 << 20);
        let (new, target) = Site::with_raw_disk(config.clone(), 1 << 20);
        source.hold_and_wait();
        source.forward(new.address("disk"));
        let mut client = old.client("disk");
        client.write(0, &[1; 8192], false).expect("a write");
        client.flush().expect("a flush");
        let flushed = read_locally(&target);
        client.write(4096, &[2; 8192], false).expect("a write");
        client.write(6000, &[3; 10], false).expect("a write");
        client
            .zeroes(7000, 100, CommandFlags::default())
            .expect("zeroes");
        drop(target);
        let Site { dir, server, .. } = new;
        server.shutdown().expect("a clean end");
        // As a crash leaves it at worst: what was not flushed is gone.
        std::fs::write(dir.path().join("disk.raw"), flushed).expect("room");
        let new = restart(&config, dir);
        client.flush().expect("a flush");
        let target = new.server.export("disk").expect("it was added");
        let mut expected = vec![0; 1 << 20];
        expected[..8192].fill(1);
        expected[4096..12288].fill(2);
        expected[6000..6010].fill(3);
        expected[7000..7100].fill(0);
        assert!(read_locally(&target) == expected);
    });
}

#[test]
fn what_is_kept_for_a_crash_is_bounded_by_flushes() {
    on_both(|config| {
        let (old, source) = Site::with_raw_disk(config.clone(), 8 << 20);
        let (new, target) = Site::with_raw_disk(config, 8 << 20);
        source.hold_and_wait();
        source.forward(new.address("disk"));
        let mut client = old.client("disk");
        let data = vec![7; 4 << 20];
        for _ in 0..32 {
            client.write(4 << 20, &data, false).expect("a write");
        }
        let flushes = target.statistics().flush.requests;
        assert!((1..32).contains(&flushes), "{flushes} flushes of our own");
    });
}

/// Copies a disk whose clients are held.
fn bring_back(from: &ExportHandle, to: &ExportHandle) {
    copy(from, to);
    to.call(LocalRequest::Flush).expect("a flush");
}

#[test]
fn clients_whose_disk_has_come_back_go_on_at_the_same_connection() {
    on_both(|config| {
        let (old, source) = Site::with_raw_disk(config.clone(), 2 << 20);
        let (new, target) = Site::with_raw_disk(config, 2 << 20);
        let load = Load::start(&old, "disk", 4, 0xbac6);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(50));
            source.hold_and_wait();
            copy(&source, &target);
            target.come_back().expect("a server that runs");
            source.write_through();
            source.forward(new.address("disk"));
            assert_eq!(source.forwards_to(), Some(new.address("disk")));
            std::thread::sleep(Duration::from_millis(100));
            // What is under way is held there when the disk comes back, and is sent here then.
            target.write_through();
            target.hold_and_wait();
            bring_back(&target, &source);
            while !source.may_come_back(None) {
                std::thread::sleep(Duration::from_millis(1));
            }
            source.come_back().expect("a server that runs");
            assert_eq!(source.forwards_to(), None);
            target.forward(old.address("disk"));
        }
        std::thread::sleep(Duration::from_millis(100));
        let left_behind = read_locally(&target);
        let model = load.stop(2 << 20);
        assert!(read_locally(&source) == model, "all is here again");
        assert!(
            read_remotely(&mut new.client("disk")) == model,
            "who comes there is sent here"
        );
        assert!(
            read_locally(&target) == left_behind,
            "nothing was done there any more"
        );
    });
}

#[test]
fn what_was_answered_before_a_disk_came_back_is_not_done_again() {
    on_both(|config| {
        let (old, source) = Site::with_raw_disk(config.clone(), 1 << 20);
        let (new, target) = Site::with_raw_disk(config.clone(), 1 << 20);
        source.hold_and_wait();
        source.forward(new.address("disk"));
        let mut client = old.client("disk");
        // Answered there, and not flushed.
        client.write(0, &[1; 4096], false).expect("a write");
        target.hold_and_wait();
        bring_back(&target, &source);
        // One that is under way there.
        let (say, heard) = std::sync::mpsc::channel();
        let mut other = old.client("disk");
        std::thread::spawn(move || {
            let _ = say.send(other.write(8192, &[2; 4096], false));
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(source.may_come_back(None));
        source.come_back().expect("a server that runs");
        client.write(0, &[3; 4096], false).expect("a write");
        // The other server ends, and another one comes that sends everything here.
        drop(target);
        let Site { dir, server, .. } = new;
        server.shutdown().expect("a clean end");
        let again = Site::in_directory(config.clone(), dir);
        let path = again.path("disk.raw");
        let disk = blockserver::export::Disk::open(&path, &vdisk::disk::OpenOptions::default());
        let held = again.server.add_held_export(
            "disk",
            disk.expect("not locked"),
            ExportOptions::default(),
            None,
        );
        let held = held.expect("a free name");
        held.write_through();
        held.forward(old.address("disk"));
        heard
            .recv_timeout(Duration::from_mins(1))
            .expect("an answer")
            .expect("a write");
        for (offset, byte) in [(0, 3), (8192, 2)] {
            let mut found = [0; 4096];
            client.read(offset, &mut found).expect("a read");
            assert_eq!(found, [byte; 4096], "at {offset}");
        }
    });
}
