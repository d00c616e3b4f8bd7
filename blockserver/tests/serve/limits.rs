//! What is promised of an export with limits.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use blockserver::export::ExportHandle;
use blockserver::nbd::blocking_client::{ConnectOptions, PipelinedClient};
use blockserver::nbd::client::ClientRequest;
use blockserver::throttle::Limits;

use super::guest::{DATA, Driver, OK, OUT, memory, readable};
use super::site::{Site, on_both};

const ALL: u64 = !0;
/// Long enough to see that something waits, and too short for a whole token of one a second.
const MOMENT: Duration = Duration::from_millis(50);

fn limited(export: &ExportHandle, iops: u64, burst: u64) {
    let limits = Limits::new((Some(iops), Some(burst)), (None, None));
    export.set_limits(limits.expect("sound limits"));
}

fn unlimited(export: &ExportHandle) {
    export.set_limits(Limits::default());
}

/// Puts so many writes of a sector into a queue.
fn submit(driver: &mut Driver, count: u64) {
    for sector in 0..count {
        driver.submit(OUT, sector, &[readable(DATA, 512)]);
    }
    driver.kick();
}

#[test]
fn all_who_ask_together_get_no_more_than_the_rate() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 1 << 20);
        limited(&export, 200, 10);
        let began = Instant::now();
        let clients: Vec<_> = (0..3)
            .map(|_| {
                let mut client = site.client("disk");
                thread::spawn(move || {
                    for _ in 0..20 {
                        client.write(0, &[1; 512], false).expect("a write");
                    }
                })
            })
            .collect();
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 64, ALL);
        let queue = driver.attach(&export, 0);
        submit(&mut driver, 20);
        let mut ended = 0;
        while ended < 20 {
            ended += driver.wait().len();
        }
        for client in clients {
            client.join().expect("no error");
        }
        // 80 requests, of which 10 may begin at once.
        assert!(began.elapsed() >= Duration::from_millis(350));
        let throttled = export.throttled();
        assert!(throttled.requests >= 20, "{throttled:?}");
        assert!(throttled.nanoseconds > 0);
        let _ = queue.stop();
    });
}

#[test]
fn bytes_are_limited_as_requests_are_and_a_large_request_is_not_stuck() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 1 << 20);
        let limits = Limits::new((None, None), (Some(1 << 20), Some(4096)));
        export.set_limits(limits.expect("sound limits"));
        let mut client = site.client("disk");
        let began = Instant::now();
        // More than is ever kept: it begins with what there is, and the next one pays.
        client
            .write(0, &vec![7; 128 << 10], false)
            .expect("a write");
        client.write(0, &[8; 512], false).expect("a write");
        assert!(began.elapsed() >= Duration::from_millis(110));
    });
}

#[test]
fn whoever_waits_goes_on_when_limits_are_lifted_and_in_its_order() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 1 << 20);
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 64, ALL);
        let queue = driver.attach(&export, 0);
        limited(&export, 1, 1);
        submit(&mut driver, 8);
        let mut ended = driver.wait().len();
        assert_eq!(ended, 1);
        thread::sleep(MOMENT);
        assert_eq!(driver.take_used(), [], "the others wait");
        unlimited(&export);
        while ended < 8 {
            ended += driver.wait().len();
        }
        assert_eq!(export.limits(), Limits::default());
        assert_eq!(export.throttled().requests, 0, "none had to end its wait");
        let _ = queue.stop();
    });
}

#[test]
fn a_flush_waits_for_no_limit() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 1 << 20);
        limited(&export, 1, 1);
        let mut client = site.client("disk");
        client.write(0, &[1; 512], false).expect("a write");
        let mut other = site.client("disk");
        let (sender, receiver) = mpsc::channel();
        let writer = thread::spawn(move || {
            client.write(0, &[2; 512], false).expect("a write");
            let _ = sender.send(());
        });
        assert!(receiver.recv_timeout(MOMENT).is_err(), "the write waits");
        other.flush().expect("a flush");
        assert!(receiver.try_recv().is_err(), "the write waits still");
        unlimited(&export);
        writer.join().expect("no error");
    });
}

#[test]
fn nobody_waits_for_those_who_wait_for_their_turn() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 1 << 20);
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 64, ALL);
        let queue = driver.attach(&export, 0);
        limited(&export, 1, 1);
        submit(&mut driver, 20);
        assert_eq!(driver.wait().len(), 1);
        // Twenty seconds' worth of requests: they are not in flight, and a stop that the host wants begins them.
        export.hold_and_wait();
        export.release();
        let state = queue.stop();
        assert_eq!(state.next_used, 20);
        assert!(driver.take_used().iter().all(|used| used.status == OK));
        // What could not wait is paid for by those who come later.
        let mut client = site.client("disk");
        let (sender, receiver) = mpsc::channel();
        let writer = thread::spawn(move || {
            let written = client.write(0, &[2; 512], false);
            let _ = sender.send(());
            written
        });
        assert!(receiver.recv_timeout(MOMENT).is_err(), "it waits");
        // Nor does the end of the server wait.
        drop(site);
        let _ = writer.join().expect("no panic");
    });
}

#[test]
fn a_driver_that_resets_its_queue_gets_no_more_by_that() {
    on_both(|config| {
        let (_site, export) = Site::with_raw_disk(config, 1 << 20);
        let memory = memory();
        let mut driver = Driver::new(&memory, 0, 64, ALL);
        let queue = driver.attach(&export, 0);
        limited(&export, 1, 1);
        submit(&mut driver, 4);
        // When the first has ended all have been taken.
        assert_eq!(driver.wait().len(), 1);
        assert_eq!(queue.try_stop(), None);
        thread::sleep(MOMENT);
        assert_eq!(queue.try_stop(), None, "it waits for its turn");
        queue.hurry();
        let state = loop {
            if let Some(state) = queue.try_stop() {
                break state;
            }
            thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(state.next_used, 4);
    });
}

/// Whether it comes to pass some time, without anybody else doing anything.
fn some_time(mut is: impl FnMut() -> bool) -> bool {
    (0..6000).any(|_| {
        thread::sleep(Duration::from_millis(5));
        is()
    })
}

#[test]
fn a_client_that_is_gone_waits_for_nothing_any_more() {
    on_both(|config| {
        let (site, export) = Site::with_raw_disk(config, 1 << 20);
        limited(&export, 1, 1);
        let options = ConnectOptions::default();
        let mut client =
            PipelinedClient::connect(&site.address("disk"), &options).expect("a client");
        for _ in 0..40 {
            client
                .submit(&ClientRequest::write(0, &[1; 512]))
                .expect("room");
        }
        // When the first is answered the server has them all, or gets them before the end.
        client.wait().expect("an answer");
        thread::sleep(MOMENT);
        drop(client);
        // Forty seconds' worth of requests.
        let ended = || export.statistics().write.requests;
        assert!(some_time(|| ended() == 40), "{} of 40 ended", ended());
    });
}
