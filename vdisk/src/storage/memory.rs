//! A sparse file in memory, for tests and simulations. Cloning is cheap: pages are shared.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::Storage;

const PAGE: usize = 4096;

/// A file whose pages exist only where something other than zero was written.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

impl MemoryStorage {
    /// An empty file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A file that holds `data`.
    #[must_use]
    pub fn from_bytes(data: &[u8]) -> Self {
        let mut storage = Self::new();
        storage.put(0, data);
        storage
    }

    /// How many bytes it takes in memory, as a host would count a sparse file's blocks.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    /// Fill `buffer` from `offset`.
    pub fn get(&self, offset: u64, buffer: &mut [u8]) {
        for (page, within, range) in pieces(offset, buffer.len()) {
            match self.pages.get(&page) {
                Some(data) => {
                    let len = range.len();
                    buffer[range].copy_from_slice(&data[within..within + len]);
                }
                None => buffer[range].fill(0),
            }
        }
    }

    /// Write `data` at `offset`, lengthening the file where needed.
    pub fn put(&mut self, offset: u64, data: &[u8]) {
        self.len = self.len.max(offset + data.len() as u64);
        for (page, within, range) in pieces(offset, data.len()) {
            let piece = &data[range];
            if piece.iter().all(|byte| *byte == 0) && !self.pages.contains_key(&page) {
                continue;
            }
            let target = self
                .pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(target)[within..within + piece.len()].copy_from_slice(piece);
        }
    }

    /// Make `len` bytes at `offset` read as zero; the length of the file stays.
    pub fn clear(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.len);
        let (first, last) = (offset.div_ceil(PAGE as u64), end / PAGE as u64);
        let whole: Vec<u64> = if first < last {
            self.pages
                .range(first..last)
                .map(|(page, _)| *page)
                .collect()
        } else {
            Vec::new()
        };
        for page in whole {
            self.pages.remove(&page);
        }
        for (from, to) in [
            (offset, end.min(first * PAGE as u64)),
            (offset.max(last * PAGE as u64), end),
        ] {
            if from < to {
                self.put(from, &vec![0; (to - from) as usize]);
            }
        }
    }

    /// Set the length; what is cut off is gone, what is added reads as zero.
    pub fn resize(&mut self, len: u64) {
        if len < self.len {
            let old = self.len;
            self.clear(len, old - len);
        }
        self.len = len;
    }

    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.len
    }
}

/// The pages that `len` bytes at `offset` touch: page, first byte in it, range of the buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % PAGE as u64) as usize;
        let piece = (PAGE - within).min(len - done);
        let range = done..done + piece;
        done += piece;
        Some((at / PAGE as u64, within, range))
    })
}

impl Storage for MemoryStorage {
    fn len(&mut self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.get(offset, buffer);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.put(offset, data);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.resize(len);
        Ok(())
    }

    fn zero(&mut self, offset: u64, len: u64, _keep: bool) -> io::Result<()> {
        self.clear(offset, len);
        Ok(())
    }

    fn reserve(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        let from = offset / PAGE as u64;
        let next = self
            .pages
            .range(from..)
            .next()
            .map(|(page, _)| (page * PAGE as u64).max(offset));
        Ok(next.filter(|at| *at < self.len))
    }
}
