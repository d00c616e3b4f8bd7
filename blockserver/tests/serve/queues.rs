//! What a guest is promised of a virtqueue on an export.

use blockserver::export::{Disk, ExportOptions, LocalReply, LocalRequest};
use blockserver::server::Server;
use blockserver::virtio::block::feature;
use vdisk::disk::OpenOptions;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{
    DATA, DATA_END, DISCARD, Driver, FLUSH, GET_ID, IN, IOERR, OK, OUT, Piece, UNSUPP, WRITE,
    WRITE_ZEROES, memory, readable, writable,
};
use super::site::{Random, Site, on_both, read_locally};

const ALL: u64 = !0;
const NO_EVENT_IDX: u64 = !feature::EVENT_IDX;
const SIZE: u64 = 32 << 20;

/// A random number of pieces of memory, of `len` bytes together, in the half open range of addresses.
fn scatter(random: &mut Random, (from, to): (u64, u64), len: u64) -> Vec<Piece> {
    let mut left = len;
    let mut pieces = Vec::new();
    while left > 0 {
        let some = match random.below(4) {
            _ if pieces.len() == 20 => left,
            0 => left,
            1 => random.below(left) + 1,
            _ => (random.below(left) + 512) & !511,
        };
        let some = some.min(left);
        let address = from + random.below(to - from - some);
        // Most guests use pages.
        let address = if random.below(2) == 0 {
            address & !4095
        } else {
            address
        };
        pieces.push(readable(address.max(from), some as u32));
        left -= some;
    }
    pieces
}

fn fill(driver: &Driver, random: &mut Random, piece: Piece) -> Vec<u8> {
    let seed = random.next();
    let bytes: Vec<u8> = (0..piece.len)
        .map(|n| (seed >> (n % 7 * 8)) as u8 ^ n as u8 ^ (n >> 8) as u8)
        .collect();
    driver
        .memory
        .write_slice(&bytes, GuestAddress(piece.address))
        .expect("inside");
    bytes
}

/// One random request of whole sectors, checked against the model.
fn step(driver: &mut Driver, random: &mut Random, model: &mut [u8]) {
    let most = [8, 64, 1024][random.below(3) as usize];
    let sectors = 1 + random.below(most);
    let sector = random.below(model.len() as u64 / 512 - sectors);
    let range = (sector * 512) as usize..((sector + sectors) * 512) as usize;
    let indirect = random.below(2) == 0;
    let space = (DATA, DATA_END);
    match random.below(10) {
        0 => {
            let used = driver.ask(FLUSH, 0, &[]);
            assert_eq!((used.status, used.written), (OK, 1));
        }
        1 => {
            let flags = random.below(2) as u32;
            let used = driver.ranges(WRITE_ZEROES, &[(sector, sectors as u32, flags)]);
            assert_eq!(used.status, OK);
            model[range].fill(0);
        }
        2..=5 => {
            // Pieces that do not overlap, or the order of copies would matter.
            let mut pieces = scatter(random, space, sectors * 512);
            let part = (DATA_END - DATA) / pieces.len() as u64;
            for (number, piece) in pieces.iter_mut().enumerate() {
                piece.flags = WRITE;
                let odd = piece.address % 4096;
                piece.address = DATA + part * number as u64 + odd;
            }
            let slot = if indirect {
                driver.submit_indirect(IN, sector, &pieces)
            } else {
                driver.submit(IN, sector, &pieces)
            };
            driver.kick();
            let used = driver.wait();
            let written = sectors as u32 * 512 + 1;
            assert_eq!(
                (used[0].slot, used[0].status, used[0].written),
                (slot, OK, written)
            );
            let mut found = Vec::new();
            for piece in pieces {
                found.extend(driver.bytes(piece.address, piece.len));
            }
            assert!(found == model[range], "{sectors} sectors at {sector}");
        }
        _ => {
            let pieces = scatter(random, space, sectors * 512);
            for piece in &pieces {
                fill(driver, random, *piece);
            }
            // Some overlap: what counts is what they hold now.
            let mut data = Vec::new();
            for piece in &pieces {
                data.extend(driver.bytes(piece.address, piece.len));
            }
            let _ = if indirect {
                driver.submit_indirect(OUT, sector, &pieces)
            } else {
                driver.submit(OUT, sector, &pieces)
            };
            driver.kick();
            let used = driver.wait();
            assert_eq!((used[0].status, used[0].written), (OK, 1));
            model[range].copy_from_slice(&data);
        }
    }
}

#[test]
fn a_guest_reads_what_it_wrote_last_wherever_its_memory_lies() {
    on_both(|config| {
        let site = Site::new(config);
        let disk = site.vhdx("disk.vhdx", SIZE);
        let export = site
            .server
            .add_export("disk", disk, ExportOptions::default())
            .expect("a free name");
        let mut model = vec![0; SIZE as usize];
        for (round, features) in [ALL, NO_EVENT_IDX, !feature::FLUSH].into_iter().enumerate() {
            let memory = memory();
            let mut driver = Driver::new(&memory, 1, 64, features);
            let queue = driver.attach(&export, round as u16);
            let mut random = Random::new(0x9e57 + round as u64);
            for _ in 0..250 {
                step(&mut driver, &mut random, &mut model);
            }
            let state = queue.stop();
            assert_eq!((state.next_available, state.next_used), (250, 250));
        }
        assert!(read_locally(&export) == model, "as this process sees it");
        drop(export);
        let path = site.path("disk.vhdx");
        let Site { dir, server, .. } = site;
        server.shutdown().expect("a clean end");
        let mut storage = vdisk::storage::FileStorage::open(&path, false).expect("the image");
        let report = vdisk::check::check(&mut storage).expect("a readable image");
        assert!(report.is_sound(), "{report:?}");
        let options = OpenOptions {
            read_only: true,
            ..Default::default()
        };
        let mut again = vdisk::disk::Disk::open(&path, &options).expect("the image");
        let mut found = vec![0; SIZE as usize];
        again.read_at(0, &mut found).expect("all of it");
        assert!(found == model, "as it is in the file");
        drop(dir);
    });
}

#[test]
fn a_long_request_is_carried_out_whole() {
    const LEN: u32 = 40 << 20;
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 64 << 20);
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 16, ALL);
        let _queue = driver.attach(&export, 0);
        let mut random = Random::new(0x1096);
        // At an odd address, across two regions.
        let piece = readable(DATA + 1, LEN);
        let data = fill(&driver, &mut random, piece);
        assert_eq!(driver.ask(OUT, 3, &[piece]).status, OK);
        assert_eq!(driver.ask(IN, 3, &[writable(DATA, LEN)]).written, LEN + 1);
        assert!(
            driver.bytes(DATA, LEN) == data,
            "it came back, shifted by a byte"
        );
        let disk = read_locally(&export);
        assert!(disk[3 * 512..][..LEN as usize] == data[..]);
        assert!(disk[3 * 512 + LEN as usize..].iter().all(|byte| *byte == 0));
        let after = driver.ask(IN, 100_000, &[writable(DATA, LEN / 4)]);
        assert_eq!(after.status, OK, "holes and data in one");
        assert!(driver.bytes(DATA, LEN / 4) == disk[100_000 * 512..][..LEN as usize / 4]);
    });
}

#[test]
fn the_smallest_and_the_largest_queue_work() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 1 << 20);
        let memory = memory();
        for (number, size) in [(0, 1), (1, 32768), (2, 2)] {
            for features in [ALL, NO_EVENT_IDX] {
                let mut driver = Driver::new(&memory, number, size, features);
                // Indices of a used queue, before they wrap.
                driver.start_at(0xffc0);
                let queue = driver.attach(&export, number);
                for round in 0..200u64 {
                    let data = [round as u8 + 1; 512];
                    let at = DATA + round * 512;
                    memory.write_slice(&data, GuestAddress(at)).expect("inside");
                    let used = driver.ask_indirect(OUT, round, &[readable(at, 512)]);
                    assert_eq!(used.status, OK);
                }
                let state = queue.stop();
                assert_eq!(
                    (state.size, state.next_used),
                    (size, 0xffc0u16.wrapping_add(200))
                );
            }
        }
        let disk = read_locally(&export);
        assert!((0..200).all(|round| disk[round * 512] == round as u8 + 1));
    });
}

#[test]
fn a_device_says_its_name_and_refuses_what_it_has_not() {
    on_both(|config| {
        let site = Site::new(config);
        // Not whole sectors: 2047 of them can be reached.
        let disk = site.raw("odd", (1 << 20) - 100);
        let export = site
            .server
            .add_export("odd", disk, ExportOptions::default())
            .expect("a free name");
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 16, ALL);
        let _queue = driver.attach(&export, 0);
        let used = driver.ask(GET_ID, 0, &[writable(DATA, 7), writable(DATA + 100, 13)]);
        assert_eq!((used.status, used.written), (OK, 21));
        let name = [driver.bytes(DATA, 7), driver.bytes(DATA + 100, 13)].concat();
        assert_eq!(name, b"a guest's disk\0\0\0\0\0\0");
        assert_eq!(driver.ask(77, 0, &[]).status, UNSUPP);
        assert_eq!(driver.ranges(DISCARD, &[(0, 1, 1)]).status, UNSUPP);
        let last = [writable(DATA, 512)];
        assert_eq!(driver.ask(IN, 2046, &last).status, OK);
        assert_eq!(driver.ask(IN, 2047, &last).status, IOERR);
        assert_eq!(driver.ask(IN, 0, &[]).status, OK, "nothing is read");
    });
}

#[test]
fn a_device_is_offered_as_its_disk_is() {
    on_both(|config| {
        let site = Site::new(config);
        let mut random = vdisk::disk::random_bits;
        let mut options = vdisk::create::CreateOptions::new(SIZE, &mut random);
        options.logical_sector = 4096;
        let path = site.path("disk.vhdx");
        vdisk::disk::create_file(&path, options).expect("a new image");
        let options = OpenOptions {
            read_only: true,
            ..Default::default()
        };
        let disk = Disk::open(&path, &options).expect("an image just made");
        let export = site
            .server
            .add_export("disk", disk, ExportOptions::default())
            .expect("a free name");
        let device = export.block_device(4, 128);
        assert_eq!((device.size, device.logical_sector), (SIZE, 4096));
        assert_eq!(
            (device.queues, device.queue_size, device.read_only),
            (4, 128, true)
        );
        assert_ne!(device.features() & feature::RO, 0);
    });
}

#[test]
fn a_read_only_export_refuses_changes_of_guests() {
    on_both(|config| {
        let site = Site::new(config);
        let options = ExportOptions {
            read_only: true,
            ..Default::default()
        };
        let disk = site.raw("disk", 1 << 20);
        let export = site.server.add_export("disk", disk, options);
        let export = export.expect("a free name");
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 16, ALL);
        let _queue = driver.attach(&export, 0);
        assert_eq!(driver.ask(OUT, 0, &[readable(DATA, 512)]).status, IOERR);
        assert_eq!(driver.ranges(WRITE_ZEROES, &[(0, 8, 0)]).status, IOERR);
        assert_eq!(driver.ranges(DISCARD, &[(0, 8, 0)]).status, IOERR);
        assert_eq!(driver.ask(FLUSH, 0, &[]).status, OK);
        assert_eq!(driver.read(0, 4096), [0; 4096]);
    });
}

/// Whether a range of an export has space.
fn is_allocated(export: &blockserver::export::ExportHandle, offset: u64, len: u64) -> bool {
    let Ok(LocalReply::Extents(extents)) = export.call(LocalRequest::Status { offset, len }) else {
        panic!("no answer");
    };
    extents.iter().any(|extent| extent.allocated)
}

#[test]
fn what_a_guest_discards_gives_its_space_back() {
    const BLOCKS: u64 = 8 << 20;
    on_both(|config| {
        let site = Site::new(config);
        let disk = site.vhdx("disk.vhdx", 512 << 20);
        let export = site
            .server
            .add_export("disk", disk, ExportOptions::default())
            .expect("a free name");
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 16, ALL);
        let _queue = driver.attach(&export, 0);
        for at in [0, 256 << 20] {
            driver.write(at, &vec![7; BLOCKS as usize]);
            assert!(is_allocated(&export, at, 64 << 20));
        }
        // Several ranges, one of them empty.
        let sectors = (128 << 20) / 512;
        let used = driver.ranges(DISCARD, &[(9, 0, 0), (0, sectors, 0), (4096, 0, 0)]);
        assert_eq!((used.status, used.written), (OK, 1));
        let used = driver.ranges(WRITE_ZEROES, &[((256 << 20) / 512, sectors, 1)]);
        assert_eq!(used.status, OK);
        for at in [0, 256 << 20] {
            assert!(
                !is_allocated(&export, at, 64 << 20),
                "the blocks at {at} are free"
            );
        }
        assert_eq!(driver.read(256 << 20, 4096), [0; 4096]);
    });
}

#[test]
fn without_flush_a_write_is_in_the_image_when_it_is_answered() {
    on_both(|config| {
        let site = Site::new(config);
        let disk = site.vhdx("disk.vhdx", SIZE);
        let export = site
            .server
            .add_export("disk", disk, ExportOptions::default())
            .expect("a free name");
        let memory = memory();
        let data = vec![0x5a; 64 << 10];
        let crash = |name: &str| {
            // What a crash now would leave, or more: nobody writes.
            std::fs::copy(site.path("disk.vhdx"), site.path(name)).expect("a copy");
            let options = OpenOptions::default();
            let mut left = vdisk::disk::Disk::open(&site.path(name), &options).expect("an image");
            let mut found = vec![0; 64 << 10];
            left.read_at(1 << 20, &mut found).expect("a read");
            let mut second = vec![0; 64 << 10];
            left.read_at(20 << 20, &mut second).expect("a read");
            (found, second)
        };
        // 5.2.6.2: writethrough, for a driver that has not taken FLUSH.
        let mut driver = Driver::new(&memory, 0, 16, !feature::FLUSH);
        let queue = driver.attach(&export, 0);
        driver.write(1 << 20, &data);
        assert!(crash("a.vhdx").0 == data);
        let _ = queue.stop();
        let mut driver = Driver::new(&memory, 1, 16, ALL);
        let _queue = driver.attach(&export, 1);
        driver.write(20 << 20, &data);
        assert_eq!(driver.ask(FLUSH, 0, &[]).status, OK);
        assert!(
            crash("b.vhdx") == (data.clone(), data.clone()),
            "a flush makes it so too"
        );
    });
}

#[test]
fn a_queue_goes_on_in_another_server_where_it_was_stopped() {
    on_both(|config| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.vhdx");
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 32, ALL);
        let mut model = vec![0; SIZE as usize];
        let mut random = Random::new(0x570b);
        let mut expected: u16 = 0;
        for round in 0..4 {
            let server = Server::start(config.clone()).expect("a server");
            if round == 0 {
                let mut bits = vdisk::disk::random_bits;
                let options = vdisk::create::CreateOptions::new(SIZE, &mut bits);
                vdisk::disk::create_file(&path, options).expect("a new image");
            }
            let disk = Disk::open(&path, &OpenOptions::default());
            let export = server
                .add_export("disk", disk.expect("the image"), ExportOptions::default())
                .expect("a free name");
            let queue = driver.attach(&export, round);
            for _ in 0..40 {
                step(&mut driver, &mut random, &mut model);
            }
            // Left in the ring: some of it may be taken by this server, the rest is by the next.
            let slots: Vec<_> = (0..8u64)
                .map(|n| {
                    let at = DATA + n * 4096;
                    memory
                        .write_slice(&[n as u8 + 1; 4096], GuestAddress(at))
                        .expect("inside");
                    model[n as usize * 4096..][..4096].fill(n as u8 + 1);
                    driver.submit(OUT, n * 8, &[readable(at, 4096)])
                })
                .collect();
            driver.kick();
            driver.state = queue.stop();
            drop(export);
            server.shutdown().expect("a clean end");
            assert_eq!(driver.state.next_available, driver.state.next_used);
            let server = Server::start(config.clone()).expect("a server");
            let disk = Disk::open(&path, &OpenOptions::default());
            let export = server
                .add_export("disk", disk.expect("the image"), ExportOptions::default())
                .expect("a free name");
            let queue = driver.attach(&export, round + 1);
            let mut left = slots.len();
            while left > 0 {
                let used = driver.wait();
                assert!(used.iter().all(|used| used.status == OK));
                left -= used.len();
            }
            expected += 48;
            driver.state = queue.stop();
            assert_eq!(
                driver.state.next_used, expected,
                "nothing twice, nothing lost"
            );
            assert!(read_locally(&export) == model);
        }
    });
}
