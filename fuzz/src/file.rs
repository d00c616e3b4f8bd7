//! A file in memory that outlives its disk, counts what is done to it, and is no larger than a file
//! system lets it be.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vdisk::storage::{MemoryStorage, Storage};

/// Operations that one use of an image may cost.
const PATIENCE: u64 = 200_000;
/// Bytes that one operation may move.
const MOST_AT_ONCE: usize = 64 << 20;
/// Length of a file at most, as on ext4 with blocks of 4 KiB.
const LONGEST: u64 = 16 << 40;

/// The file; clones are the same file.
#[derive(Clone, Debug)]
pub(crate) struct SharedFile {
    content: Arc<Mutex<MemoryStorage>>,
    left: u64,
}

impl SharedFile {
    pub(crate) fn new(content: MemoryStorage) -> Self {
        Self {
            content: Arc::new(Mutex::new(content)),
            left: PATIENCE,
        }
    }

    /// What it holds now.
    pub(crate) fn content(&self) -> MemoryStorage {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, MemoryStorage> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&mut self) -> MutexGuard<'_, MemoryStorage> {
        self.left = self.left.checked_sub(1).expect("it goes on without end");
        self.lock()
    }
}

impl Storage for SharedFile {
    fn len(&mut self) -> io::Result<u64> {
        self.count().len()
    }
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        assert!(buffer.len() <= MOST_AT_ONCE, "{} at once", buffer.len());
        self.count().read_at(offset, buffer)
    }
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset.saturating_add(data.len() as u64) > LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.count().write_at(offset, data)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.count().flush()
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        if len > LONGEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.count().set_len(len)
    }
    fn zero(&mut self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        self.count().zero(offset, len, keep)
    }
    fn reserve(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.count().reserve(offset, len)
    }
    fn next_data(&mut self, offset: u64) -> io::Result<Option<u64>> {
        self.count().next_data(offset)
    }
}

/// The first byte from `from` on at which two files differ.
pub(crate) fn difference(a: &MemoryStorage, b: &MemoryStorage, from: u64) -> Option<u64> {
    const PAGE: usize = 4096;
    let (mut a, mut b) = (a.clone(), b.clone());
    if a.length() != b.length() {
        return Some(a.length().min(b.length()));
    }
    let mut at = from;
    loop {
        let next = |file: &mut MemoryStorage| file.next_data(at).ok().flatten();
        let data = match (next(&mut a), next(&mut b)) {
            (Some(a), Some(b)) => a.min(b),
            (Some(data), None) | (None, Some(data)) => data,
            (None, None) => return None,
        };
        let (mut left, mut right) = ([0; PAGE], [0; PAGE]);
        a.get(data, &mut left);
        b.get(data, &mut right);
        if left != right {
            let within = (0..PAGE).find(|at| left[*at] != right[*at]);
            return Some(data + within.unwrap_or(0) as u64);
        }
        at = data + PAGE as u64;
    }
}
