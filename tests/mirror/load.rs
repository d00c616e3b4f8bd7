//! A client that writes all the time and keeps a ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use blockserver::nbd::blocking_client::{BlockingClient, ConnectOptions, PipelinedClient};
use blockserver::nbd::client::ClientRequest;
use blockserver::nbd::uri::Address;

use super::ledger::{BLOCK, Ledger, Promise, Random};
use super::process::STUCK;

/// Writes outstanding.
const DEPTH: usize = 8;
/// A flush after so many writes.
const FLUSH_EVERY: u64 = 64;

/// Where a load writes: blocks in a few regions of the disk, far apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    pub(crate) seed: u64,
    pub(crate) disk: u64,
    pub(crate) regions: u64,
    pub(crate) length: u64,
    /// Writes in a second at most.
    pub(crate) rate: u64,
}

impl Area {
    fn pick(&self, random: &mut Random) -> u64 {
        let region = random.below(self.regions) * (self.disk / self.regions);
        let block = random.below(self.length / BLOCK as u64);
        region / (1 << 20) * (1 << 20) + block * BLOCK as u64
    }
}

/// A load that runs.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<(Ledger, Result<(), String>)>,
}

/// The address of an export.
pub(crate) fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

impl Load {
    /// Connects to `to` and goes on with `ledger`.
    pub(crate) fn start(to: &str, area: Area, ledger: Ledger) -> Self {
        let client = PipelinedClient::connect(&address(to), &ConnectOptions::default());
        let client = client.expect("the disk is served");
        let (stop, acknowledged) = (Arc::default(), Arc::default());
        let writer = Writer {
            client,
            area,
            random: Random::new(area.seed ^ ledger.acknowledged),
            ledger,
            writes: BTreeMap::new(),
            busy: BTreeSet::new(),
            flush: None,
            acknowledged: Arc::clone(&acknowledged),
            stop: Arc::clone(&stop),
        };
        let thread = thread::spawn(move || writer.run());
        Self {
            stop,
            acknowledged,
            thread,
        }
    }

    /// Writes acknowledged since it was started.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more writes were acknowledged.
    #[track_caller]
    pub(crate) fn goes_on(&self, writes: u64) {
        let (before, since) = (self.acknowledged(), Instant::now());
        while self.acknowledged() < before + writes {
            assert!(
                since.elapsed() < STUCK && !self.thread.is_finished(),
                "the client does not get on after {} writes",
                self.acknowledged()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it: its ledger, and what it died of.
    pub(crate) fn finish(self) -> (Ledger, Result<(), String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the client does not panic")
    }

    /// Its server has died, and the client with it: what that may have lost is not counted on.
    #[track_caller]
    pub(crate) fn died(self) -> Ledger {
        let (mut ledger, result) = self.finish();
        assert!(result.is_err(), "the client must see that its server died");
        ledger.crashed();
        ledger
    }

    /// Ends it; it may not have seen any error.
    #[track_caller]
    pub(crate) fn well(self) -> Ledger {
        let (ledger, result) = self.finish();
        result.expect("no error for the client");
        ledger
    }
}

struct Writer {
    client: PipelinedClient,
    area: Area,
    random: Random,
    ledger: Ledger,
    /// In flight, by cookie: the offset and the version.
    writes: BTreeMap<u64, (u64, u64)>,
    busy: BTreeSet<u64>,
    flush: Option<(u64, Vec<(u64, u64)>)>,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self) -> (Ledger, Result<(), String>) {
        let result = self.work();
        (self.ledger, result)
    }

    fn work(&mut self) -> Result<(), String> {
        let since = Instant::now();
        let mut sent = 0_u64;
        while !self.stop.load(Ordering::Relaxed) {
            let due = since.elapsed().as_micros() as u64 * self.area.rate / 1_000_000;
            while self.writes.len() < DEPTH && sent < due {
                self.write()?;
                sent += 1;
                if sent.is_multiple_of(FLUSH_EVERY) && self.flush.is_none() {
                    self.begin_flush()?;
                }
            }
            if self.writes.is_empty() && self.flush.is_none() {
                thread::sleep(Duration::from_millis(1));
            } else {
                self.hear()?;
            }
        }
        if self.flush.is_none() {
            self.begin_flush()?;
        }
        let since = Instant::now();
        while !self.writes.is_empty() || self.flush.is_some() {
            self.hear()?;
            if since.elapsed() > STUCK {
                return Err(format!("{} writes are never answered", self.writes.len()));
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), String> {
        let mut offset = self.area.pick(&mut self.random);
        while !self.busy.insert(offset) {
            offset = self.area.pick(&mut self.random);
        }
        let (version, data) = self.ledger.issue(offset);
        let cookie = self.client.submit(&ClientRequest::write(offset, &data));
        let cookie = cookie.map_err(|e| e.to_string())?;
        self.writes.insert(cookie, (offset, version));
        Ok(())
    }

    fn begin_flush(&mut self) -> Result<(), String> {
        let covered = self.ledger.begin_flush();
        let cookie = self.client.submit(&ClientRequest::flush());
        self.flush = Some((cookie.map_err(|e| e.to_string())?, covered));
        Ok(())
    }

    fn hear(&mut self) -> Result<(), String> {
        let short = Some(Duration::from_millis(20));
        let heard = self.client.wait_at_most(short).map_err(|e| e.to_string())?;
        let Some(completion) = heard else {
            return Ok(());
        };
        if let Err(refusal) = completion.result {
            return Err(format!("{:?}: {refusal:?}", completion.command));
        }
        if let Some((offset, version)) = self.writes.remove(&completion.cookie) {
            self.busy.remove(&offset);
            self.ledger.acknowledge(offset, version);
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        } else if let Some((_, covered)) = self.flush.take_if(|(c, _)| *c == completion.cookie) {
            self.ledger.flushed(&covered);
        }
        Ok(())
    }
}

/// Looks for everything in `ledger` at the disk served at `at`.
#[track_caller]
pub(crate) fn verify(at: &str, ledger: &Ledger, promise: Promise) {
    let mut client = BlockingClient::connect(&address(at)).expect("the disk is served");
    let mut found = vec![0; BLOCK];
    let (mut wrong, mut blocks) = (Vec::new(), 0);
    for offset in ledger.offsets() {
        client.read(offset, &mut found).expect("it can be read");
        wrong.extend(ledger.judge(offset, &found, promise));
        blocks += 1;
    }
    let some: Vec<_> = wrong.iter().take(8).map(ToString::to_string).collect();
    assert!(
        wrong.is_empty(),
        "{} of {blocks} blocks at {at} are wrong: {some:#?}",
        wrong.len()
    );
}
