//! A disk with a volatile cache. Must never make a write durable before a flush, except by chance.

use std::collections::VecDeque;

use vdisk::engine::Extent;

use super::rng::Rng;
use crate::GRANULE;

/// The unit that a power cut keeps or loses.
pub(super) const SECTOR: usize = 512;

#[derive(Clone, Debug)]
pub(super) struct SimDisk {
    /// What a read sees.
    pub(super) now: Vec<u8>,
    /// What certainly survives a power cut.
    pub(super) durable: Vec<u8>,
    /// Writes since, numbered.
    unflushed: VecDeque<(u64, usize, Vec<u8>)>,
    written: u64,
}

impl SimDisk {
    pub(super) fn new(size: usize) -> Self {
        Self {
            now: vec![0; size],
            durable: vec![0; size],
            unflushed: VecDeque::new(),
            written: 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let at = offset as usize;
        self.now[at..at + data.len()].copy_from_slice(data);
        self.unflushed.push_back((self.written, at, data.to_vec()));
        self.written += 1;
    }

    /// What a flush that is submitted now will make durable.
    pub(super) fn flush_mark(&self) -> u64 {
        self.written
    }

    /// That flush ended.
    pub(super) fn flushed(&mut self, mark: u64) {
        while self.unflushed.front().is_some_and(|(n, ..)| *n < mark) {
            if let Some((_, at, data)) = self.unflushed.pop_front() {
                self.durable[at..at + data.len()].copy_from_slice(&data);
            }
        }
    }

    /// The power goes: any subset of the sectors written since stays.
    pub(super) fn power_cut(&mut self, rng: &mut Rng) {
        let keep = [0, 50, 90, 100][rng.below(4) as usize];
        for (_, at, data) in std::mem::take(&mut self.unflushed) {
            for (i, sector) in data.chunks(SECTOR).enumerate() {
                if rng.percent(keep) {
                    let at = at + i * SECTOR;
                    self.durable[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        self.now.clone_from(&self.durable);
    }

    /// A new, empty, durable image.
    pub(super) fn create(&mut self) {
        let size = self.now.len();
        *self = Self::new(size);
    }

    /// Which granules may hold data; ends early by chance.
    pub(super) fn status(&self, offset: u64, len: u64, rng: &mut Rng) -> Vec<Extent> {
        let mut extents = Vec::new();
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let stop = ((at / GRANULE + 1) * GRANULE).min(end);
            let data = self.now[at as usize..stop as usize].iter().any(|b| *b != 0);
            let allocated = data || rng.percent(20);
            extents.push(Extent {
                len: stop - at,
                allocated,
                zero: !data && rng.percent(50),
            });
            at = stop;
            if rng.percent(10) {
                break;
            }
        }
        extents
    }
}
