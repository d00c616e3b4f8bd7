//! A move over a long, lossy line that breaks again and again: the kernel's own TCP, between two network namespaces.

use std::thread;
use std::time::Duration;

use blockserver::nbd::blocking_client::BlockingClient;
use testlink::{End, Link, Namespace, Shape, inside};

use super::faults::seed;
use super::ledger::{Ledger, Promise, Random};
use super::load::{Area, Load, address, verify};
use super::site::Sites;
use crate::run::program;

const MIB: u64 = 1 << 20;
const SOURCE: &str = "10.77.3.1";
const TARGET: &str = "10.77.3.2";
/// What there is to copy, between the places where the client writes: some seconds of the line.
const OLD: std::ops::Range<u64> = 100..132;

/// Two hosts and what joins them.
pub(crate) struct Line {
    /// Ends before its interfaces do: a kernel that takes a namespace apart waits long for one that is in use.
    link: Link,
    near: Namespace,
    far: Namespace,
}

impl Line {
    /// 100 Mbit/s, 40 ms each way, one packet of a thousand lost.
    fn new(seed: u64) -> Self {
        let shape = Shape {
            loss: 1000,
            ..Shape::new(100_000_000, Duration::from_millis(40))
        };
        Self::with(seed, shape)
    }

    pub(crate) fn with(seed: u64, shape: Shape) -> Self {
        let near = Namespace::new().expect("a namespace");
        let far = Namespace::new().expect("a namespace");
        let (source, target) = (format!("{SOURCE}/24"), format!("{TARGET}/24"));
        let end = |namespace, address| End { namespace, address };
        let ends = [end(&near, &source), end(&far, &target)];
        let link = Link::join(ends, ("link0", 1500), (shape, seed));
        let link = link.expect("a link");
        Self { link, near, far }
    }

    /// A disk that is served at one end, and a site that waits for it at the other.
    pub(crate) fn sites(&self) -> Sites {
        let mut sites = Sites::new("a.vhdx", &["1G", "--block-size", "1M"]);
        TARGET.clone_into(&mut sites.host);
        sites.port = 9000;
        sites.serves = format!("tcp:{TARGET}:10809");
        self.at_source(|| sites.serve());
        self.at_target(|| sites.receive());
        sites
    }

    /// An outage of a fifth of a second to over two.
    fn breaks(&self, random: &mut Random) {
        self.link.cut();
        thread::sleep(Duration::from_millis(200 + random.below(2000)));
        self.link.mend();
    }

    pub(crate) fn at_source<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.near.enter(work).expect("it can be entered")
    }

    pub(crate) fn at_target<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.far.enter(work).expect("it can be entered")
    }
}

/// A mebibyte that nothing makes shorter.
fn old(seed: u64, number: u64) -> Vec<u8> {
    let mut random = Random::new(seed ^ (number << 32));
    let words = (0..MIB / 8).map(|_| random.below(u64::MAX));
    words.flat_map(u64::to_le_bytes).collect()
}

fn write_old(at: &str, seed: u64) {
    let mut client = BlockingClient::connect(&address(at)).expect("the disk is served");
    for number in OLD {
        let written = client.write(number * MIB, &old(seed, number), false);
        written.expect("it can be written");
    }
}

fn find_old(at: &str, seed: u64) {
    let mut client = BlockingClient::connect(&address(at)).expect("the disk is served");
    let mut found = vec![0; MIB as usize];
    for number in OLD {
        client.read(number * MIB, &mut found).expect("it is read");
        assert!(found == old(seed, number), "MiB {number} is another");
    }
}

#[test]
fn nothing_acknowledged_is_lost_over_a_long_line_that_breaks_while_the_target_is_killed() {
    if !inside(
        "mirror::wan::nothing_acknowledged_is_lost_over_a_long_line_that_breaks_while_the_target_is_killed",
    ) {
        return;
    }
    let seed = seed();
    let mut random = Random::new(seed);
    let line = Line::new(seed);
    let mut sites = line.sites();
    write_old(&sites.at_source(), seed);
    let area = Area {
        seed,
        disk: 1024 * MIB,
        regions: 3,
        length: 16 * MIB,
        rate: 800,
    };
    let load = Load::start(&sites.at_source(), area, Ledger::default());
    load.goes_on(200);
    sites.start(&["--manual"]).ends(0);
    for round in 0..4 {
        thread::sleep(Duration::from_millis(200 + random.below(1500)));
        if round == 1 {
            sites.target.take().expect("it runs").kill();
        }
        line.breaks(&mut random);
        if round == 1 {
            line.at_target(|| sites.receive());
        }
        // Whatever the line does, the client's writes are this host's own.
        load.goes_on(100);
    }
    sites.until("in step", |status| status["stage"] == "synced");
    sites.mirror("cutover").ends(0);
    thread::sleep(Duration::from_millis(random.below(300)));
    line.breaks(&mut random);
    sites.moved();
    load.goes_on(100);
    let ledger = load.well();
    line.at_target(|| {
        verify(&sites.at_target(), &ledger, Promise::Acknowledged);
        find_old(&sites.at_target(), seed);
    });
    let [there, _] = line.link.counts();
    println!("{} writes, there: {there:?}", ledger.acknowledged);
    assert!(there.lost.packets > 0 && there.cut.packets > 0);
    sites.end();
    program(sites.here(), "qemu-img", &["check", "in/a.vhdx"]).ends(0);
}
