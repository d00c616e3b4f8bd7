//! What clients are promised.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use blockserver::export::ExportOptions;
use blockserver::nbd::blocking_client::{
    BlockingClient, ClientError, ConnectOptions, PipelinedClient,
};
use blockserver::nbd::client::{Answer, ClientRequest};
use blockserver::nbd::wire::allocation;
use blockserver::nbd::{CommandFlags, Errno};
use blockserver::server::ServerConfig;

use super::site::{Load, Random, Site, on_both, read_remotely};

#[test]
fn every_client_reads_what_it_wrote_last() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, 4 << 20);
        let load = Load::start(&site, "disk", 4, 0x5eed);
        std::thread::sleep(Duration::from_millis(500));
        let model = load.stop(4 << 20);
        assert!(read_remotely(&mut site.client("disk")) == model);
    });
}

#[test]
fn a_served_vhdx_disk_keeps_what_clients_wrote() {
    on_both(|config| {
        let site = Site::new(config);
        let disk = site.vhdx("disk.vhdx", 64 << 20);
        site.server
            .add_export("disk", disk, ExportOptions::default())
            .expect("a free name");
        let load = Load::start(&site, "disk", 4, 0xd15c);
        std::thread::sleep(Duration::from_millis(500));
        let model = load.stop(64 << 20);
        assert!(read_remotely(&mut site.client("")) == model);
        let path = site.path("disk.vhdx");
        let Site { dir, server, .. } = site;
        server.shutdown().expect("a clean end");
        let mut storage = vdisk::storage::FileStorage::open(&path, false).expect("the image");
        let report = vdisk::check::check(&mut storage).expect("a readable image");
        assert!(report.is_sound(), "{report:?}");
        let mut again = vdisk::disk::Disk::open(&path, &read_only()).expect("the image");
        let mut found = vec![0; 64 << 20];
        again.read_at(0, &mut found).expect("all of it");
        assert!(found == model, "what was served is in the file");
        drop(dir);
    });
}

fn read_only() -> vdisk::disk::OpenOptions {
    vdisk::disk::OpenOptions {
        read_only: true,
        ..Default::default()
    }
}

#[test]
fn neighbours_in_one_sector_lose_no_bytes_of_each_other() {
    const SIZE: u64 = 1 << 20;
    const CELL: u64 = 100;
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, SIZE);
        // Five writers of cells that share sectors with the others' cells; the cell of the sixth
        // kind spans whole sectors every 64 KiB and is written aligned.
        let aligned = |offset: u64| offset % (64 << 10) < 8192;
        let threads = (0..6).map(|writer| {
            let mut client = site.client("disk");
            std::thread::spawn(move || {
                let mut random = Random::new(writer);
                let mut written = Vec::new();
                for round in 0..6u64 {
                    let mut starts: Vec<u64> = match writer {
                        5 => (0..SIZE).step_by(64 << 10).collect(),
                        _ => (0..SIZE / CELL)
                            .filter(|c| c % 5 == writer)
                            .map(|c| c * CELL)
                            .collect(),
                    };
                    for _ in 0..starts.len().min(150) {
                        let start = starts.swap_remove(random.below(starts.len() as u64) as usize);
                        let len = if writer == 5 { 8192 } else { CELL };
                        let (start, len) = clip(start, len, writer, aligned);
                        if len > 0 {
                            let data = vec![fill(writer, round); len as usize];
                            client.write(start, &data, false).expect("a write");
                            written.push((start as usize, data));
                        }
                    }
                }
                client.flush().expect("a flush");
                written
            })
        });
        let threads: Vec<_> = threads.collect();
        let mut expected = vec![0; SIZE as usize];
        for thread in threads {
            // Nobody else wrote these bytes, so the order among writers does not matter.
            for (start, data) in thread.join().expect("no client saw an error") {
                expected[start..start + data.len()].copy_from_slice(&data);
            }
        }
        let disk = read_remotely(&mut site.client("disk"));
        let lost = (0..disk.len()).find(|at| disk[*at] != expected[*at]);
        assert_eq!(lost, None, "a byte is not what its only writer wrote last");
    });
}

/// What a writer writes in a round.
fn fill(writer: u64, round: u64) -> u8 {
    ((writer + 1) * 10 + round) as u8
}

/// The part of an unaligned writer's cell that is not the aligned writer's.
fn clip(start: u64, len: u64, writer: u64, aligned: impl Fn(u64) -> bool) -> (u64, u64) {
    if writer == 5 {
        return (start, len);
    }
    let mine: Vec<u64> = (start..start + len)
        .filter(|offset| !aligned(*offset))
        .collect();
    (mine.first().copied().unwrap_or(start), mine.len() as u64)
}

#[test]
fn one_byte_writes_beside_each_other_all_arrive() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, 64 << 10);
        let threads: Vec<_> = (0..4u8)
            .map(|writer| {
                let mut client = site.client("disk");
                std::thread::spawn(move || {
                    for offset in (0..2048u64).filter(|offset| offset % 4 == u64::from(writer)) {
                        client.write(offset, &[writer + 1], false).expect("a write");
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no client saw an error");
        }
        let disk = read_remotely(&mut site.client("disk"));
        let expected: Vec<u8> = (0..2048u64).map(|offset| (offset % 4) as u8 + 1).collect();
        assert!(disk[..2048] == expected && disk[2048..].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_client_may_ask_for_far_more_than_is_worked_on_at_once() {
    on_both(|config| {
        let config = ServerConfig {
            requests_per_connection: 4,
            bytes_per_connection: 100_000,
            ..config
        };
        let (site, _export) = Site::with_raw_disk(config, 4 << 20);
        let options = ConnectOptions {
            max_in_flight: 600,
            ..ConnectOptions::default()
        };
        let mut client =
            PipelinedClient::connect(&site.address("disk"), &options).expect("a client");
        for block in 0..300u64 {
            let data = vec![block as u8; 8192];
            client
                .submit(&ClientRequest::write(block * 8192, &data))
                .expect("room");
        }
        (0..300).for_each(|_| drop(client.wait().expect("an answer")));
        let mut cookies = std::collections::BTreeMap::new();
        for block in 0..300u64 {
            let cookie = client
                .submit(&ClientRequest::read(block * 8192, 8192))
                .expect("room");
            cookies.insert(cookie, block);
        }
        for _ in 0..300 {
            let completion = client.wait().expect("an answer").expect("not closed");
            let block = cookies[&completion.cookie];
            let answer = completion.result.expect("a read");
            assert!(matches!(answer, Answer::Data(data) if data == vec![block as u8; 8192]));
        }
    });
}

#[test]
fn a_bound_on_all_that_is_in_flight_slows_clients_and_stops_none() {
    on_both(|config| {
        let config = ServerConfig {
            workers: 1,
            bytes_in_flight: 10_000,
            ..config
        };
        let (site, _export) = Site::with_raw_disk(config, 4 << 20);
        let load = Load::start(&site, "disk", 4, 0x11417);
        let mut deaf = UnixStream::connect(site.path("nbd.sock")).expect("the server listens");
        deaf.write_all(b"nothing").expect("room");
        std::thread::sleep(Duration::from_millis(200));
        let model = load.stop(4 << 20);
        let mut big = vec![0; 4 << 20];
        site.client("disk").read(0, &mut big).expect("a read");
        assert!(big == model);
    });
}

#[test]
fn the_longest_requests_are_served() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, 40 << 20);
        let mut client = site.client("disk");
        let data: Vec<u8> = (0..32 << 20).map(|i: u32| (i / 777) as u8).collect();
        client.write(4097, &data, true).expect("32 MiB");
        let mut found = vec![0; 32 << 20];
        client.read(4097, &mut found).expect("32 MiB");
        assert!(found == data);
    });
}

#[test]
fn zeroes_trims_and_extents_agree_with_the_bytes() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, 8 << 20);
        let mut client = site.client("disk");
        client
            .write(1 << 20, &vec![7; 2 << 20], false)
            .expect("a write");
        client
            .zeroes(1 << 20, 1 << 20, CommandFlags::default())
            .expect("zeroes");
        let keep = CommandFlags {
            no_hole: true,
            ..CommandFlags::default()
        };
        client
            .zeroes((2 << 20) + 5, 100_000, keep)
            .expect("zeroes that keep their space");
        client.trim(4 << 20, 1 << 20).expect("a trim");
        let disk = read_remotely(&mut client);
        let sevens = (2 << 20)..(3 << 20);
        let zeroed = (2 << 20) + 5..(2 << 20) + 100_005;
        for (offset, byte) in disk.iter().enumerate() {
            let expected = if sevens.contains(&offset) && !zeroed.contains(&offset) {
                7
            } else {
                0
            };
            assert_eq!(*byte, expected, "at {offset}");
        }
        let extents = client.block_status(0, 8 << 20).expect("the extents");
        assert_eq!(
            extents.iter().map(|e| u64::from(e.len)).sum::<u64>(),
            8 << 20
        );
        let mut offset = 0;
        for extent in extents {
            let range = offset..offset + extent.len as usize;
            if extent.flags & allocation::ZERO != 0 {
                assert!(
                    disk[range.clone()].iter().all(|byte| *byte == 0),
                    "{range:?}"
                );
            }
            offset = range.end;
        }
    });
}

#[test]
fn several_disks_are_served_beside_each_other() {
    on_both(|config| {
        let site = Site::new(config);
        for name in ["one", "two", "three"] {
            let disk = site.raw(&format!("{name}.raw"), 1 << 20);
            site.server
                .add_export(name, disk, ExportOptions::default())
                .expect("a free name");
        }
        for name in ["one", "two", "three"] {
            site.client(name)
                .write(0, name.as_bytes(), false)
                .expect("a write");
        }
        for name in ["one", "two", "three"] {
            let mut found = vec![0; name.len()];
            site.client(name).read(0, &mut found).expect("a read");
            assert_eq!(found, name.as_bytes());
        }
        assert!(
            BlockingClient::connect(&site.address("")).is_err(),
            "which one is meant?"
        );
        assert!(BlockingClient::connect(&site.address("four")).is_err());
        let again =
            site.server
                .add_export("one", site.raw("x.raw", 4096), ExportOptions::default());
        assert_eq!(
            again.expect_err("the name is taken").kind(),
            std::io::ErrorKind::AlreadyExists
        );
    });
}

#[test]
fn a_read_only_export_refuses_changes_and_nothing_else() {
    on_both(|config| {
        let site = Site::new(config);
        let options = ExportOptions {
            read_only: true,
            ..ExportOptions::default()
        };
        site.server
            .add_export("disk", site.raw("disk.raw", 1 << 20), options)
            .expect("a free name");
        let mut client = site.client("disk");
        let refused = client
            .write(0, &[1; 512], false)
            .expect_err("it is read-only");
        assert!(
            matches!(
                refused,
                ClientError::Failed {
                    errno: Errno::NotPermitted,
                    ..
                } | ClientError::Submit(_)
            ),
            "{refused:?}"
        );
        assert!(read_remotely(&mut client).iter().all(|byte| *byte == 0));
        client.flush().expect("a flush has nothing to do");
    });
}

#[test]
fn a_disk_of_odd_size_is_served_to_its_last_byte() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, 1_000_003);
        let mut client = site.client("disk");
        client
            .write(1_000_000, &[1, 2, 3], true)
            .expect("the last bytes");
        let mut found = [0; 4];
        client.read(999_999, &mut found).expect("the last bytes");
        assert_eq!(found, [0, 1, 2, 3]);
    });
}

#[test]
fn a_full_file_system_fails_that_write_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "none"])
        .arg(dir.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("not allowed to mount a small file system: this promise was not tested");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        on_both(|config| {
            let site = Site::new(config);
            let path = dir.path().join("disk.raw");
            let disk = super::site::raw_disk(&path, 64 << 20);
            site.server
                .add_export("disk", disk, ExportOptions::default())
                .expect("a free name");
            let mut client = site.client("disk");
            client
                .write(0, &vec![1; 1 << 20], true)
                .expect("there is room");
            let full = client
                .write(8 << 20, &vec![2; 8 << 20], false)
                .expect_err("there is no room");
            assert!(
                matches!(
                    full,
                    ClientError::Failed {
                        errno: Errno::NoSpace,
                        ..
                    }
                ),
                "{full:?}"
            );
            client
                .zeroes(8 << 20, 8 << 20, CommandFlags::default())
                .expect("gives space back");
            client
                .write(1 << 20, &vec![3; 1 << 20], true)
                .expect("there is room again");
            let mut found = vec![0; 2 << 20];
            client.read(0, &mut found).expect("a read");
            assert!(
                found[..1 << 20].iter().all(|b| *b == 1)
                    && found[1 << 20..].iter().all(|b| *b == 3)
            );
            drop(site);
            std::fs::remove_file(&path).expect("it was there");
        });
    });
    let unmounted = std::process::Command::new("umount")
        .arg(dir.path())
        .status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
