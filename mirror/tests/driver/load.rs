//! Clients that write without pause and remember everything that was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use crate::disk::MemoryDisk;

/// A small generator, the same from the same seed.
pub(crate) struct Random(u64);

impl Random {
    /// From `DISKFERRY_SEED`, or chance; printed either way.
    pub(crate) fn new(test: &str) -> Self {
        let seed = std::env::var("DISKFERRY_SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        println!("{test}: DISKFERRY_SEED={seed}");
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    pub(crate) fn fork(&mut self) -> Self {
        Self(self.below(u64::MAX) | 1)
    }
}

/// Where a client goes when it is sent on.
pub(crate) type Find = Arc<dyn Fn(&str) -> Arc<MemoryDisk> + Send + Sync>;

/// The clients of one disk. Each has a part of the disk to itself.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    pub(crate) acknowledged: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<u8>>>,
}

impl Load {
    pub(crate) fn start(
        disk: &Arc<MemoryDisk>,
        pause: Duration,
        random: &mut Random,
        find: &Find,
    ) -> Self {
        let content = disk.content();
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let share = content.len() / 3 / 4096 * 4096;
        let mut clients = Vec::new();
        for at in 0..3 {
            let end = if at == 2 {
                content.len()
            } else {
                (at + 1) * share
            };
            let client = Client {
                start: at * share,
                mine: content[at * share..end].to_vec(),
                disk: Arc::clone(disk),
                random: random.fork(),
                find: Arc::clone(find),
            };
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            clients.push(std::thread::spawn(move || {
                client.run(pause, &stop, &acknowledged)
            }));
        }
        Self {
            stop,
            acknowledged,
            clients,
        }
    }

    /// What the disk has to hold now: the clients write no more.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    }
}

struct Client {
    start: usize,
    mine: Vec<u8>,
    disk: Arc<MemoryDisk>,
    random: Random,
    find: Find,
}

impl Client {
    fn run(mut self, pause: Duration, stop: &AtomicBool, acknowledged: &AtomicU64) -> Vec<u8> {
        let sectors = self.mine.len() / 512;
        while !stop.load(Ordering::Relaxed) {
            let count = 1 + self.random.below(64.min(sectors as u64)) as usize;
            let at = self.random.below((sectors - count + 1) as u64) as usize * 512;
            let range = at..at + count * 512;
            let data = (self.random.below(10) > 0).then(|| {
                let tag = self.random.below(u64::MAX).to_le_bytes();
                Bytes::from(tag.repeat(count * 64))
            });
            while let Err(address) =
                self.disk
                    .client_change(self.start + at, range.len(), data.clone())
            {
                self.disk = (self.find)(&address);
            }
            match data {
                Some(data) => self.mine[range].copy_from_slice(&data),
                None => self.mine[range].fill(0),
            }
            acknowledged.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(pause);
        }
        self.mine
    }
}
