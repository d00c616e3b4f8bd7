//! Virtqueues of several guests and threads, and what the owner of an export does meanwhile.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use blockserver::export::{Disk, ExportHandle, ExportOptions, LocalRequest};
use blockserver::server::ServerConfig;
use blockserver::virtio::block::feature;
use vdisk::disk::OpenOptions;
use vdisk::tap::{Change, WriteTap};
use vdisk::units::GuestOffset;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{
    DATA, DISCARD, Driver, FLUSH, IN, IOERR, OK, OUT, Used, memory, readable, writable,
};
use super::site::{Random, Site, on_both, read_locally};

const ALL: u64 = !0;

/// Keep up to `depth` requests of 4 KiB in flight in a part of the disk of its own, `rounds` of them,
/// with a write of a block followed by a read of it some time; answers how often the device called.
fn churn(driver: &mut Driver, part: u64, rounds: u64, depth: usize) -> u64 {
    const BLOCKS: u64 = 64;
    let mut random = Random::new(0xc4 + part);
    let mut model = [0u8; BLOCKS as usize];
    // What each slot has in flight: the block, and the byte that is written or expected.
    let mut slots = std::collections::HashMap::new();
    let mut busy = std::collections::HashSet::new();
    let (mut begun, mut ended) = (0, 0);
    let data = |slot: u16| DATA + (part * 128 + u64::from(slot)) * 4096;
    while ended < rounds {
        let before = begun;
        let batch = 1 + random.below(8);
        while begun < rounds && slots.len() < depth && begun - before < batch {
            let block = random.below(BLOCKS);
            if !busy.insert(block) {
                break;
            }
            let sector = (part * BLOCKS + block) * 8;
            let at = data(driver.next_slot());
            let write = random.below(2) == 0;
            let slot = if write {
                let byte = random.next() as u8;
                model[block as usize] = byte;
                let page = [byte; 4096];
                driver
                    .memory
                    .write_slice(&page, GuestAddress(at))
                    .expect("inside");
                driver.submit(OUT, sector, &[readable(at, 4096)])
            } else {
                driver.submit_indirect(IN, sector, &[writable(at, 1024), writable(at + 1024, 3072)])
            };
            slots.insert(slot, (block, write));
            begun += 1;
        }
        driver.kick();
        // Sometimes a driver looks without asking to be told, sometimes it sleeps.
        let used = match random.below(3) {
            0 => driver.take_used(),
            _ => driver.wait(),
        };
        for Used { slot, status, .. } in used {
            assert_eq!(status, OK);
            let (block, write) = slots.remove(&slot).expect("it was in flight");
            busy.remove(&block);
            if !write {
                let found = driver.bytes(data(slot), 4096);
                let byte = model[block as usize];
                assert!(
                    found.iter().all(|b| *b == byte),
                    "block {block} of part {part}"
                );
            }
            ended += 1;
        }
    }
    driver.drain_calls();
    driver.calls
}

#[test]
fn no_kick_and_no_call_is_missed() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 8 << 20);
        let memory = memory();
        let threads: Vec<_> = [(0, ALL), (1, ALL), (2, !feature::EVENT_IDX), (3, ALL)]
            .into_iter()
            .map(|(number, features)| {
                let mut driver = Driver::new(&memory, number, 64, features);
                driver.start_at(0xff00);
                // Two of them on one worker.
                let queue = driver.attach(&export, number);
                thread::spawn(move || {
                    // A few, and so many that the device does not ask to be told of more.
                    let depth = if number == 1 || number == 2 { 21 } else { 12 };
                    let calls = churn(&mut driver, number.into(), 2000, depth);
                    let state = queue.stop();
                    assert_eq!(state.next_used, 0xff00u16.wrapping_add(2000));
                    calls
                })
            })
            .collect();
        let calls = threads
            .into_iter()
            .map(|thread| thread.join().expect("all is well"));
        let calls: Vec<u64> = calls.collect();
        println!("calls: {calls:?}");
        assert!(
            calls.iter().all(|calls| *calls <= 2000),
            "at most one for each"
        );
    });
}

#[test]
fn a_driver_that_asks_for_nothing_is_not_called() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 1 << 20);
        let memory = memory();
        for (number, features) in [(0, ALL), (1, !feature::EVENT_IDX)] {
            let mut driver = Driver::new(&memory, number, 64, features);
            driver.want_no_calls();
            let queue = driver.attach(&export, number);
            for sector in 0..10 {
                driver.submit(OUT, sector, &[readable(DATA, 512)]);
            }
            driver.kick_anyway();
            let mut ended = 0;
            while ended < 10 {
                ended += driver.take_used().len();
                thread::sleep(Duration::from_millis(1));
            }
            let _ = queue.stop();
            assert_eq!(driver.drain_calls(), 0, "2.7.7.2");
        }
    });
}

#[test]
fn a_held_export_lets_a_guest_wait_and_a_released_one_go_on() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 1 << 20);
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 64, ALL);
        let queue = driver.attach(&export, 0);
        driver.write(0, &[1; 4096]);
        export.hold_and_wait();
        for sector in 0..8 {
            driver.submit(OUT, sector, &[readable(DATA, 512)]);
        }
        driver.kick();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(driver.take_used(), []);
        // A stop waits for what has been taken, and that for the release.
        let (sender, receiver) = mpsc::channel();
        let stopped = thread::spawn(move || {
            let state = queue.stop();
            sender.send(()).expect("waiting");
            state
        });
        thread::sleep(Duration::from_millis(50));
        assert!(receiver.try_recv().is_err());
        export.release();
        let state = stopped.join().expect("it ends");
        assert_eq!((state.next_available, state.next_used), (9, 9));
        assert_eq!(driver.take_used().len(), 8);
    });
}

/// Remembers what it sees.
#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, Change)>>);

impl WriteTap for Recorder {
    fn changed(&self, offset: GuestOffset, change: Change) {
        self.0.lock().expect("no poison").push((offset.0, change));
    }
}

#[test]
fn disk_and_tap_get_the_same_from_a_guest_that_writes_into_its_buffer_meanwhile() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 1 << 20);
        let tap = Arc::new(Recorder::default());
        let (sender, receiver) = mpsc::channel();
        export.attach_tap(Arc::clone(&tap) as Arc<dyn WriteTap>, move || {
            sender.send(()).expect("waiting");
        });
        receiver.recv().expect("attached");
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 16, ALL);
        let queue = driver.attach(&export, 0);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let scribbler = {
            let (memory, stop) = (Arc::clone(&memory), Arc::clone(&stop));
            thread::spawn(move || {
                let mut byte = 0u8;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    byte = byte.wrapping_add(1);
                    let page = vec![byte; 65536];
                    memory
                        .write_slice(&page, GuestAddress(DATA))
                        .expect("inside");
                }
            })
        };
        for round in 0..100 {
            let used = driver.ask(OUT, round % 8, &[readable(DATA, 65536)]);
            assert_eq!(used.status, OK);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        scribbler.join().expect("it ends");
        assert_eq!(driver.ranges(DISCARD, &[(4, 9, 0)]).status, OK);
        let _ = queue.stop();
        let mut replayed = vec![0; 1 << 20];
        for (offset, change) in &*tap.0.lock().expect("no poison") {
            let range = *offset as usize..(*offset + change.len()) as usize;
            match change {
                Change::Data(data) => replayed[range].copy_from_slice(data),
                Change::Zeroes(_) => replayed[range].fill(0),
                Change::Unknown(_) => panic!("nothing fails here"),
            }
        }
        assert!(
            replayed == read_locally(&export),
            "the records give the same disk"
        );
    });
}

/// Copy a disk that stands still.
fn copy(from: &ExportHandle, to: &ExportHandle) {
    let data = bytes::Bytes::from(read_locally(from));
    to.call(LocalRequest::Write { offset: 0, data })
        .expect("a write");
}

#[test]
fn a_guest_goes_on_at_the_server_its_disk_has_moved_to() {
    on_both(|config| {
        let (_old, source) = Site::with_raw_disk(config.clone(), 4 << 20);
        let (new, target) = Site::with_raw_disk(config, 4 << 20);
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 64, ALL);
        let queue = driver.attach(&source, 0);
        let guest = thread::spawn(move || {
            churn(&mut driver, 0, 1500, 8);
            assert_eq!(driver.ask(FLUSH, 0, &[]).status, OK);
            assert_eq!(driver.ranges(DISCARD, &[(0, 8, 0)]).status, OK);
            (driver, queue)
        });
        thread::sleep(Duration::from_millis(20));
        source.hold_and_wait();
        copy(&source, &target);
        let left_behind = read_locally(&source);
        source.forward(new.address("disk"));
        let (mut driver, queue) = guest.join().expect("the guest saw no error");
        // Pieces that are not aligned, and holes.
        let used = driver.ask(
            IN,
            1000,
            &[writable(DATA + 3, 1000), writable(DATA + 2000, 1048)],
        );
        assert_eq!((used.status, used.written), (OK, 2049));
        let found = [
            driver.bytes(DATA + 3, 1000),
            driver.bytes(DATA + 2000, 1048),
        ]
        .concat();
        let moved = read_locally(&target);
        assert!(found == moved[512_000..512_000 + 2048]);
        assert!(driver.read(0, 256 << 10) == moved[..256 << 10]);
        let _ = queue.stop();
        assert!(
            read_locally(&source) == left_behind,
            "nothing was written to the old disk"
        );
    });
}

#[test]
fn a_server_that_ends_gives_its_queues_back() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 1 << 20);
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 64, ALL);
        let queue = driver.attach(&export, 0);
        let other = Driver::new(&memory, 1, 64, ALL).attach(&export, 1);
        driver.write(4096, &[3; 4096]);
        let Site { dir, server, .. } = site;
        server.shutdown().expect("a clean end");
        let state = queue.stop();
        assert_eq!((state.next_available, state.next_used), (1, 1));
        drop(other);
        driver.state = state;
        let refused = driver.try_attach(&export, 0).expect_err("nobody is there");
        assert_eq!(refused.kind(), std::io::ErrorKind::NotConnected);
        drop(dir);
    });
}

#[test]
fn an_export_that_is_removed_gives_its_queues_and_its_disk_back() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 1 << 20);
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 64, ALL);
        let queue = driver.attach(&export, 0);
        driver.write(0, &[3; 512]);
        site.server.remove_export(&export).expect("a clean end");
        let state = queue.stop();
        assert_eq!(state.next_used, 1);
        drop(export);
        let open = || Disk::open(&site.path("disk.raw"), &OpenOptions::default());
        // A worker lets go of it just after it has said so.
        let mut again = std::iter::repeat_with(open)
            .take(1000)
            .filter_map(|opened| {
                thread::sleep(Duration::from_millis(1));
                opened.ok()
            });
        let again = again.next().expect("nobody has it any more");
        let options = ExportOptions::default();
        let export = site
            .server
            .add_export("disk", again, options)
            .expect("a free name");
        driver.state = state;
        let _queue = driver.attach(&export, 2);
        assert_eq!(driver.read(0, 512), [3; 512]);
    });
}

#[test]
fn guests_that_want_much_at_once_get_it_piece_by_piece() {
    on_both(|config| {
        let config = ServerConfig {
            workers: 1,
            requests_per_connection: 3,
            bytes_per_connection: 100_000,
            bytes_in_flight: 200_000,
            ..config
        };
        let (_site, export) = Site::with_raw_disk(config, 8 << 20);
        let memory = memory();
        let mut drivers: Vec<_> = (0..3).map(|n| Driver::new(&memory, n, 256, ALL)).collect();
        let queues: Vec<_> = drivers
            .iter()
            .map(|driver| driver.attach(&export, 0))
            .collect();
        for driver in &mut drivers {
            for n in 0..50u64 {
                let len = if n % 10 == 0 { 1 << 20 } else { 4096 };
                driver.submit(IN, n * 8, &[writable(DATA + 1, len)]);
            }
            driver.kick();
        }
        for driver in &mut drivers {
            let mut ended = 0;
            while ended < 50 {
                let used = driver.wait();
                assert!(used.iter().all(|used| used.status == OK));
                ended += used.len();
            }
        }
        let statistics = export.statistics();
        assert_eq!((statistics.read.requests, statistics.read.errors), (150, 0));
        for queue in queues {
            assert_eq!(queue.stop().next_used, 50);
        }
    });
}

#[test]
fn what_the_disk_cannot_do_is_an_error_of_the_request() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 1 << 20);
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 64, ALL);
        let _queue = driver.attach(&export, 0);
        assert_eq!(driver.read((1 << 20) - 4096, 4096), [0; 4096]);
        // 5.2.5: the capacity may change; who asks beyond it is refused.
        let shrink = LocalRequest::Resize {
            size: 512 << 10,
            discard_data: true,
        };
        export.call(shrink).expect("a smaller disk");
        let used = driver.ask(IN, 1500, &[writable(DATA, 4096)]);
        assert_eq!((used.status, used.written), (IOERR, 0));
        let grow = LocalRequest::Resize {
            size: 2 << 20,
            discard_data: false,
        };
        export.call(grow).expect("a larger disk");
        assert_eq!(driver.read((2 << 20) - 4096, 4096), [0; 4096]);
    });
}
