//! A server killed under load, again and again: every flushed write is there when it comes back.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use blockserver::nbd::Command;
use blockserver::nbd::blocking_client::{ConnectOptions, PipelinedClient};
use blockserver::nbd::client::{Answer, ClientRequest};

use super::random::Random;
use crate::run::{diskferry, folder, program};
use crate::serving::Serving;

const SLOT: u64 = 4096;
const MIB: u64 = 1 << 20;
const DEPTH: usize = 16;
/// Blocks of the disk that are written to.
const BLOCKS: u64 = 1500;

/// What one place of 4096 bytes may hold, oldest first: what is surely durable, then each write
/// since with the moment of its acknowledgement.
#[derive(Default)]
struct Place {
    durable: u64,
    since: Vec<(u64, Option<u64>)>,
    busy: bool,
}

impl Place {
    fn may_hold(&self, stamp: u64) -> bool {
        stamp == self.durable || self.since.iter().any(|(since, _)| *since == stamp)
    }

    fn flushed(&mut self, moment: u64) {
        let covered = |(_, acked): &(u64, Option<u64>)| acked.is_some_and(|acked| acked < moment);
        if let Some(last) = self.since.iter().rposition(covered) {
            self.durable = self.since[last].0;
            self.since.drain(..=last);
        }
    }
}

/// The client's memory of everything it was promised.
struct Ledger {
    random: Random,
    places: BTreeMap<u64, Place>,
    now: u64,
    flushed: u64,
}

/// What a request was, by its cookie: a write of a stamp, or a flush submitted at a moment.
#[derive(Clone, Copy)]
enum Sent {
    Write(u64, u64),
    Flush(u64),
}

impl Ledger {
    /// A place that no write is under way to: often one in a block never written before.
    fn choose(&mut self) -> u64 {
        loop {
            let block = self.random.below(BLOCKS);
            let at = block * MIB + self.random.below(4) * 16 * SLOT;
            let place = self.places.entry(at).or_default();
            if !std::mem::replace(&mut place.busy, true) {
                return at;
            }
        }
    }

    fn submit(&mut self, client: &mut PipelinedClient, sent: &mut HashMap<u64, Sent>) -> bool {
        self.now += 1;
        if self.random.below(24) == 0 {
            let flush = client.submit(&ClientRequest::flush());
            let flush = flush.map(|cookie| sent.insert(cookie, Sent::Flush(self.now)));
            return flush.is_ok();
        }
        let (at, stamp) = (self.choose(), self.now);
        let data = stamp.to_le_bytes().repeat(SLOT as usize / 8);
        let place = self.places.get_mut(&at).expect("chosen");
        place.since.push((stamp, None));
        let write = client.submit(&ClientRequest::write(at, &data));
        write
            .map(|cookie| sent.insert(cookie, Sent::Write(at, stamp)))
            .is_ok()
    }

    fn acknowledged(&mut self, sent: Sent) {
        self.now += 1;
        match sent {
            Sent::Write(at, stamp) => {
                let place = self.places.get_mut(&at).expect("written");
                place.busy = false;
                let written = place.since.iter_mut().find(|(since, _)| *since == stamp);
                written.expect("written").1 = Some(self.now);
            }
            Sent::Flush(moment) => {
                self.flushed += 1;
                self.places
                    .values_mut()
                    .for_each(|place| place.flushed(moment));
            }
        }
    }

    /// Load until `enough` requests were answered, then the server is killed; what it said before is
    /// heard.
    fn load(&mut self, serving: Serving, enough: u64) {
        let mut client = connect(&serving);
        let mut sent = HashMap::new();
        let mut serving = Some(serving);
        let mut answered = 0;
        loop {
            while serving.is_some() && client.in_flight() < DEPTH {
                assert!(self.submit(&mut client, &mut sent));
            }
            let Ok(Some(completion)) = client.wait() else {
                break;
            };
            // A server that is killed answers nothing, and one that lives no error.
            assert!(completion.result.is_ok(), "{completion:?}");
            self.acknowledged(sent.remove(&completion.cookie).expect("it was sent"));
            answered += 1;
            if answered == enough {
                // With requests on their way.
                while client.in_flight() < DEPTH {
                    assert!(self.submit(&mut client, &mut sent));
                }
                // Sends them; an answer that comes at once counts as well.
                let limit = Some(Duration::from_micros(50));
                if let Ok(Some(early)) = client.wait_at_most(limit) {
                    self.acknowledged(sent.remove(&early.cookie).expect("it was sent"));
                }
                serving.take().expect("it runs").kill();
            }
        }
        assert!(serving.is_none(), "the server went away by itself");
    }

    /// Every place holds what it may; what it holds is what there is from now on.
    fn verify(&mut self, serving: &Serving) {
        let mut client = connect(serving);
        let mut places: Vec<u64> = self.places.keys().copied().collect();
        loop {
            while client.in_flight() < DEPTH
                && let Some(at) = places.pop()
            {
                client
                    .submit(&ClientRequest::read(at, SLOT as u32))
                    .expect("sent");
            }
            let Some(completion) = client.wait().expect("the server answers") else {
                break;
            };
            assert_eq!(completion.command, Command::Read);
            let Ok(Answer::Data(data)) = completion.result else {
                panic!("{completion:?}");
            };
            let at = completion.offset;
            let stamp = u64::from_le_bytes(*data.first_chunk().expect("8 bytes"));
            assert_eq!(
                data,
                stamp.to_le_bytes().repeat(SLOT as usize / 8),
                "torn at {at}"
            );
            let place = self.places.get_mut(&at).expect("asked for");
            assert!(
                place.may_hold(stamp),
                "{at:#x} holds {stamp}; {} was flushed, then came {:?}",
                place.durable,
                place.since
            );
            *place = Place {
                durable: stamp,
                ..Place::default()
            };
        }
    }
}

fn connect(serving: &Serving) -> PipelinedClient {
    let address = serving.uri().parse().expect("an address");
    PipelinedClient::connect(&address, &ConnectOptions::default()).expect("it listens")
}

fn start(here: &Path) -> Serving {
    let listen = format!("unix:{}", here.join("s").display());
    Serving::start(here, &["a.vhdx", "--listen", &listen])
}

#[test]
fn a_server_killed_twenty_times_under_load_loses_no_flushed_write() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "4G", "--block-size", "1M"]).ok();
    let mut ledger = Ledger {
        random: Random::printed(),
        places: BTreeMap::new(),
        now: 0,
        flushed: 0,
    };
    for round in 0..20 {
        let serving = start(here);
        ledger.verify(&serving);
        let enough = 100 + ledger.random.below(900);
        println!("round {round}: killed after {enough} answers");
        ledger.load(serving, enough);
        // What is left is a log to be replayed, and no more than that.
        let checked = diskferry(here, &["check", "--json", "a.vhdx"]);
        assert!([0, 4].contains(&checked.code), "{}", checked.stdout);
        if round == 19 {
            program(here, "qemu-img", &["check", "-r", "all", "a.vhdx"]).ok();
        }
    }
    let serving = start(here);
    ledger.verify(&serving);
    serving.end();
    diskferry(here, &["check", "a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "a.vhdx"]).ok();
    assert!(ledger.flushed > 100, "too few flushes: {}", ledger.flushed);
}
