//! What a guest that breaks the rules is answered, and that its neighbours do not notice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blockserver::export::{ExportHandle, ExportOptions};
use blockserver::server::ServerConfig;
use blockserver::virtio::QueueState;
use vm_memory::Bytes as _;

use super::guest::{
    DATA, Driver, GET_ID, IN, INDIRECT, IOERR, NEXT, OK, OUT, Piece, SLOTS, WRITE, WRITE_ZEROES,
    memory, readable, writable,
};
use super::site::{Site, on_both};

const ALL: u64 = !0;
/// Outside of the guest's memory.
const NOWHERE: u64 = 1 << 40;

/// One worker, so that everybody is a neighbour.
fn alone(config: ServerConfig) -> ServerConfig {
    ServerConfig {
        workers: 1,
        ..config
    }
}

#[test]
fn a_bad_request_is_answered_and_the_queue_goes_on() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(alone(config), 1 << 20);
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 512, ALL);
        let _queue = driver.attach(&export, 0);
        driver.write(0, &[5; 4096]);
        let page = writable(DATA, 4096);
        let many = |count| vec![writable(DATA, 512); count];
        let bad: Vec<(u32, u64, Vec<Piece>)> = vec![
            (IN, 0, vec![writable(DATA, 511)]),
            (IN, 0, vec![readable(DATA, 512)]),
            (OUT, 0, vec![writable(DATA, 512)]),
            (OUT, 0, vec![page, readable(DATA, 512)]),
            (IN, 2048, vec![page]),
            (IN, 2041, vec![page]),
            (IN, u64::MAX, vec![page]),
            (OUT, u64::MAX / 512, vec![readable(DATA, 4096)]),
            (IN, 0, vec![writable(NOWHERE, 512)]),
            (OUT, 0, vec![readable(NOWHERE, 512)]),
            (IN, 0, vec![page, writable(u64::MAX - 511, 512)]),
            (IN, 0, vec![page, writable(u64::MAX, 512)]),
            (IN, 0, many(255)),
            (IN, 0, vec![writable(DATA, 4_000_000_000)]),
            (GET_ID, 0, vec![readable(DATA, 20)]),
            (GET_ID, 0, vec![writable(NOWHERE, 20)]),
            (WRITE_ZEROES, 0, vec![readable(NOWHERE, 16)]),
            (WRITE_ZEROES, 0, vec![readable(DATA, 15)]),
            (WRITE_ZEROES, 0, vec![]),
        ];
        for (kind, sector, data) in bad {
            let used = driver.ask(kind, sector, &data);
            assert_eq!(used.status, IOERR, "{kind} {sector} {data:x?}");
            assert!(used.written <= 1, "no data was written");
            let used = driver.ask_indirect(kind, sector, &data);
            assert_eq!(used.status, IOERR, "{kind} {sector} {data:x?} by a table");
        }
        // The header nowhere, or too short.
        let status = writable(driver.status_at(SLOTS - 1), 1);
        for header in [
            readable(NOWHERE, 16),
            readable(DATA, 15),
            readable(u64::MAX - 4, 16),
        ] {
            driver.submit_chain(&[header, status], false);
            driver.kick();
            assert_eq!(driver.wait().len(), 1);
            assert_eq!(driver.bytes(driver.status_at(SLOTS - 1), 1), [IOERR]);
        }
        assert_eq!(driver.read(0, 4096), [5; 4096]);
    });
}

/// Something that a driver does to its own queue.
type Sin = (&'static str, fn(&mut Driver));

/// Every way to make it impossible to answer.
const SINS: [Sin; 12] = [
    ("no place for the status", |driver| {
        driver.submit_chain(&[readable(driver.header_at(0), 16)], false);
    }),
    ("a status nowhere", |driver| {
        let header = readable(driver.header_at(0), 16);
        driver.submit_chain(&[header, writable(NOWHERE, 1)], false);
    }),
    ("a status beyond the last address", |driver| {
        let header = readable(driver.header_at(0), 16);
        driver.submit_chain(&[header, writable(u64::MAX, 2)], false);
    }),
    ("a status of no bytes", |driver| {
        let header = readable(driver.header_at(0), 16);
        driver.submit_chain(&[header, writable(DATA, 0)], false);
    }),
    ("a head that is no descriptor", |driver| {
        driver.make_available(64);
    }),
    ("a successor that is no descriptor", |driver| {
        let flags = NEXT | WRITE;
        driver.put_descriptor(
            driver.state.descriptors,
            0,
            Piece {
                address: DATA,
                len: 1,
                flags,
            },
            64,
        );
        driver.make_available(0);
    }),
    ("a loop", |driver| {
        let flags = NEXT | WRITE;
        driver.put_descriptor(
            driver.state.descriptors,
            0,
            Piece {
                address: DATA,
                len: 1,
                flags,
            },
            0,
        );
        driver.make_available(0);
    }),
    ("4 GiB, again and again", |driver| {
        let flags = NEXT | WRITE;
        let piece = Piece {
            address: DATA,
            len: u32::MAX,
            flags,
        };
        driver.put_descriptor(driver.state.descriptors, 0, piece, 1);
        driver.put_descriptor(driver.state.descriptors, 1, piece, 0);
        driver.make_available(0);
    }),
    ("a table in a table", |driver| {
        let piece = Piece {
            address: DATA,
            len: 16,
            flags: INDIRECT,
        };
        driver.put_descriptor(DATA, 0, piece, 0);
        driver.put_descriptor(driver.state.descriptors, 0, piece, 0);
        driver.make_available(0);
    }),
    ("a table of half a descriptor", |driver| {
        let piece = Piece {
            address: DATA,
            len: 24,
            flags: INDIRECT,
        };
        driver.put_descriptor(driver.state.descriptors, 0, piece, 0);
        driver.make_available(0);
    }),
    ("a table that is too long", |driver| {
        let flags = NEXT | WRITE;
        for index in 0..2000 {
            driver.put_descriptor(
                DATA,
                index,
                Piece {
                    address: DATA,
                    len: 1,
                    flags,
                },
                index + 1,
            );
        }
        let piece = Piece {
            address: DATA,
            len: 2001 * 16,
            flags: INDIRECT,
        };
        driver.put_descriptor(driver.state.descriptors, 0, piece, 0);
        driver.make_available(0);
    }),
    ("an index that runs ahead", |driver| {
        driver.publish_index(1000);
    }),
];

#[test]
fn a_queue_that_cannot_be_answered_breaks_alone() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(alone(config), 1 << 20);
        let memory = memory();
        let mut neighbour = Driver::new(&memory, 1, 64, ALL);
        let going_on = neighbour.attach(&export, 1);
        for (number, (what, sin)) in SINS.iter().enumerate() {
            println!("{what}");
            let mut driver = Driver::new(&memory, 0, 64, ALL);
            driver.start_at(0);
            let queue = driver.attach(&export, 0);
            driver.write(0, &[number as u8; 512]);
            sin(&mut driver);
            driver.kick_anyway();
            // Takes as long as the worker needs for both.
            neighbour.write(4096, &[number as u8 + 1; 512]);
            let mut patience = 10_000;
            while !queue.is_broken() && patience > 0 {
                thread::sleep(Duration::from_millis(1));
                patience -= 1;
            }
            assert!(queue.is_broken(), "{what}");
            assert_eq!(neighbour.read(4096, 512), [number as u8 + 1; 512]);
            // Whatever it does now, nothing is taken, and it stands before what it was broken by.
            driver.kick_anyway();
            let state = queue.stop();
            assert_eq!((state.next_available, state.next_used), (1, 1), "{what}");
        }
        assert!(!going_on.is_broken());
        let _ = going_on.stop();
    });
}

#[test]
fn a_broken_queue_is_told_of_once_and_still_answers_what_it_has_taken() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(alone(config), 1 << 20);
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 64, ALL);
        let (sender, receiver) = mpsc::channel();
        let queue = driver.attach_with(&export, 0, move |fault| {
            sender.send(fault).expect("waiting");
        });
        export.hold_and_wait();
        for sector in 0..4 {
            driver.submit(OUT, sector, &[readable(DATA, 512)]);
        }
        driver.make_available(64);
        driver.kick_anyway();
        let fault = receiver.recv().expect("it is told");
        assert_eq!(fault.to_string(), "a descriptor chain has no end");
        driver.kick_anyway();
        export.release();
        let state = queue.stop();
        assert_eq!((state.next_available, state.next_used), (4, 4));
        assert!(driver.take_used().iter().all(|used| used.status == OK));
        assert!(receiver.try_recv().is_err(), "once");
    });
}

/// A driver that offers its first chain again as often as the queue has entries, as fast as they are
/// used, until this is dropped.
struct Torrent(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Torrent {
    fn start(mut driver: Driver, kind: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            driver.submit(kind, 0, &[writable(DATA, 512)]);
            driver.kick_anyway();
            while !stopped.load(Ordering::Relaxed) {
                let used = driver.used_index();
                driver.publish_index(used.wrapping_add(driver.state.size));
                driver.kick();
            }
        });
        Self(stop, Some(thread))
    }
}

impl Drop for Torrent {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        if let Some(thread) = self.1.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_guest_that_never_stops_lets_its_neighbours_go_on() {
    on_both(|config| {
        let site = Site::new(alone(config));
        let disk = site.vhdx("disk.vhdx", 64 << 20);
        let export = site
            .server
            .add_export("disk", disk, ExportOptions::default())
            .expect("a free name");
        let memory = memory();
        // Requests that end at once: one that there is not, and a read of a hole.
        for kind in [77, IN] {
            let drivers = [0, 1].map(|number| {
                let mut driver = Driver::new(&memory, number, 32768, ALL);
                driver.start_at(0);
                driver
            });
            let queues = drivers.each_ref().map(|driver| driver.attach(&export, 0));
            let torrents = drivers.map(|driver| Torrent::start(driver, kind));
            let (sender, receiver) = mpsc::channel();
            let mut client = site.client("disk");
            thread::spawn(move || {
                for at in 0..20 {
                    client.write(at * 4096, &[3; 4096], true).expect("a write");
                }
                let _ = sender.send(());
            });
            let waited = receiver.recv_timeout(Duration::from_mins(1));
            assert!(waited.is_ok(), "the neighbour waits for ever");
            for queue in queues {
                assert!(!queue.is_broken(), "it keeps the rules, if barely");
                let _ = queue.stop();
            }
            drop(torrents);
        }
    });
}

fn refused(export: &ExportHandle, driver: &Driver, state: QueueState) {
    let mut bad = Driver::new(&driver.memory, 0, 64, ALL);
    bad.state = state;
    let error = bad.try_attach(export, 0).expect_err("an unsound queue");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
}

#[test]
fn a_queue_that_is_not_in_memory_is_refused() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 1 << 20);
        let memory = memory();
        let driver = Driver::new(&memory, 0, 64, ALL);
        let good = driver.state;
        for size in [0, 3, 65, 32769, u16::MAX] {
            refused(&export, &driver, QueueState { size, ..good });
        }
        for at in [8, NOWHERE, u64::MAX - 15, DATA + (48 << 20) - 16] {
            refused(
                &export,
                &driver,
                QueueState {
                    descriptors: at,
                    ..good
                },
            );
        }
        for at in [0, 4097, NOWHERE, u64::MAX - 1] {
            refused(
                &export,
                &driver,
                QueueState {
                    available: at,
                    ..good
                },
            );
        }
        for at in [4098, NOWHERE, u64::MAX - 3] {
            refused(&export, &driver, QueueState { used: at, ..good });
        }
        let queue = driver.attach(&export, 0);
        assert_eq!(queue.stop(), good);
        assert_eq!(
            Arc::strong_count(&memory),
            2,
            "nothing holds the memory any more"
        );
        assert!(
            memory
                .read_obj::<u8>(vm_memory::GuestAddress(NOWHERE))
                .is_err()
        );
    });
}
