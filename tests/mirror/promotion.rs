//! A source that is lost for good: its target is promoted to the last consistent marker.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blockserver::nbd::blocking_client::BlockingClient;
use mirror::record::State;

use super::ledger::BLOCK;
use super::load::address;
use super::process::Running;
use super::site::Sites;

const SIZE: u64 = 1 << 30;
/// Blocks that are written, many of them many times.
const PLACES: u64 = 500;

/// Where the write with that number goes.
fn place(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    (mixed % PLACES) * (SIZE / PLACES / 4096 * 4096)
}

/// Writes numbers, each only when the one before was acknowledged.
struct Counting {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Counting {
    fn start(at: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut client = BlockingClient::connect(&address(at)).expect("a client");
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut number = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                let data = (number + 1).to_le_bytes().repeat(BLOCK / 8);
                if client.write(place(number + 1), &data, false).is_err() {
                    break;
                }
                number += 1;
                thread::sleep(Duration::from_micros(500));
            }
            number
        });
        Self { stop, thread }
    }

    /// The last number that was acknowledged.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it counts")
    }
}

/// Up to which number the disk has all of them, and none beyond that.
fn counted(at: &str) -> u64 {
    let mut client = BlockingClient::connect(&address(at)).expect("a client");
    let mut found = Vec::new();
    for at in 0..PLACES {
        let mut block = vec![0; BLOCK];
        let offset = at * (SIZE / PLACES / 4096 * 4096);
        client.read(offset, &mut block).expect("it is read");
        let number: [u8; 8] = block[..8].try_into().expect("eight bytes");
        assert_eq!(
            block,
            number.repeat(BLOCK / 8),
            "a block of two numbers at {offset}"
        );
        found.push(u64::from_le_bytes(number));
    }
    let last = found.iter().copied().max().expect("some");
    let mut expected = vec![0; PLACES as usize];
    for number in 1..=last {
        expected[(place(number) / (SIZE / PLACES / 4096 * 4096)) as usize] = number;
    }
    assert_eq!(found, expected, "not all up to {last}");
    last
}

fn following(sites: &Sites) -> bool {
    matches!(sites.records().1, Some(State::Following { .. }))
}

#[test]
fn a_target_whose_source_is_lost_is_promoted_to_a_moment_of_it_and_misses_little() {
    let mut sites = Sites::running("a.vhdx", &["1G", "--block-size", "1M"]);
    let counting = Counting::start(&sites.at_source());
    thread::sleep(Duration::from_millis(300));
    sites.start(&["--manual"]).ends(0);
    sites.until("in step", |status| status["stage"] == "synced");
    sites.until("following", |_| following(&sites));
    // A site that dies while its disk follows goes on with what it has.
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(400));
        sites.target.take().expect("it runs").kill();
        sites.receive();
        sites.until("in step again", |status| {
            status["connected"] == true && status["stage"] == "synced"
        });
    }
    thread::sleep(Duration::from_secs(1));
    let image = sites.arriving().to_str().expect("UTF-8").to_owned();
    let promote = ["receive", "--promote-at-last-epoch", &image];
    let ran = sites.run(&promote).ends(1);
    assert!(ran.stderr.contains("in use"), "{}", ran.stderr);
    sites.source.take().expect("it runs").kill();
    let last = counting.end();
    sites.target.take().expect("it runs").kill();
    let ran = sites.run(&["serve", &image, "--listen", "unix:u"]).ends(5);
    assert!(
        ran.stderr.contains("--promote-at-last-epoch"),
        "{}",
        ran.stderr
    );
    let forced = ["serve", &image, "--listen", "unix:u", "--take-over"];
    let ran = sites.run(&forced).ends(5);
    assert!(
        ran.stderr.contains("--promote-at-last-epoch"),
        "{}",
        ran.stderr
    );
    sites.run(&promote).ends(0);
    let target = sites.records().1;
    assert!(
        matches!(target, Some(State::Owner { epoch: 3, .. })),
        "{target:?}"
    );
    let left = |suffix| Path::new(&image).with_extension(suffix);
    for suffix in ["vhdx.journal-a", "vhdx.journal-b"] {
        assert!(
            !sites.here().join(left(suffix)).exists(),
            "{suffix} is left"
        );
    }
    sites.run(&["check", &image]).ends(0);
    let mut serve = Running::start(sites.here(), &["serve", &image, "--listen", "unix:u"]);
    serve.says("serving");
    let socket = sites.here().join("u");
    let found = counted(&format!("nbd+unix:///a?socket={}", socket.display()));
    println!("{last} were acknowledged, {found} are there");
    assert!(found <= last + 1 && found > 0);
    serve.end();
    // Twice is once too often.
    let ran = sites.run(&promote).ends(5);
    assert!(ran.stderr.contains("does not follow"), "{}", ran.stderr);
}
