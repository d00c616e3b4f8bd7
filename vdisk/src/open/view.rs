//! The file as it is after replay: what is on the medium, with replayed pages in memory over it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::format::{PAGE, PAGE_BYTES};
use crate::storage::Storage;

/// A storage seen through pages of 4 KiB that a replay in memory has put over it.
pub(crate) struct View<'a> {
    pub(crate) storage: &'a mut dyn Storage,
    /// By file offset, each a multiple of 4096 and each page 4096 bytes.
    pub(crate) overlay: BTreeMap<u64, Bytes>,
    /// Length of the file after replay.
    pub(crate) len: u64,
}

impl View<'_> {
    /// `len` bytes from `at`; beyond the end of the file they are zero. `what` names them.
    pub(crate) fn read(&mut self, at: u64, len: usize, what: &str) -> Result<Vec<u8>> {
        let mut buffer = vec![0; len];
        self.read_into(at, &mut buffer, what)?;
        Ok(buffer)
    }

    pub(crate) fn read_into(&mut self, at: u64, buffer: &mut [u8], what: &str) -> Result<()> {
        self.storage
            .read_at(at, buffer)
            .map_err(|source| Error::io(format!("cannot read the {what}"), source).at(at))?;
        let end = at.saturating_add(buffer.len() as u64);
        let first = at / PAGE_BYTES * PAGE_BYTES;
        for (page_at, page) in self.overlay.range(first..end) {
            let from = (*page_at).max(at);
            let to = page_at.saturating_add(PAGE_BYTES).min(end);
            let source = page.get((from - page_at) as usize..(to - page_at) as usize);
            let target = buffer.get_mut((from - at) as usize..(to - at) as usize);
            if let (Some(source), Some(target)) = (source, target) {
                target.copy_from_slice(source);
            }
        }
        Ok(())
    }

    /// The first byte at or after `at` that may not be zero.
    pub(crate) fn next_data(&mut self, at: u64, what: &str) -> Result<Option<u64>> {
        let stored = self
            .storage
            .next_data(at)
            .map_err(|source| Error::io(format!("cannot find the data of the {what}"), source))?;
        let first = at / PAGE_BYTES * PAGE_BYTES;
        let replayed = self.overlay.range(first..).next();
        let replayed = replayed.map(|(page, _)| (*page).max(at));
        Ok(match (stored, replayed) {
            (Some(stored), Some(replayed)) => Some(stored.min(replayed)),
            (stored, replayed) => stored.or(replayed),
        })
    }
}

/// A page of zeros that takes no memory of its own.
pub(crate) static ZERO_PAGE: [u8; PAGE] = [0; PAGE];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn replayed_pages_lie_over_the_file_and_count_as_data() {
        let mut storage = MemoryStorage::from_bytes(&[7; 3 * PAGE]);
        let mut view = View {
            storage: &mut storage,
            overlay: BTreeMap::from([
                (PAGE_BYTES, Bytes::from_static(&ZERO_PAGE)),
                (8 * PAGE_BYTES, Bytes::from(vec![9; PAGE])),
            ]),
            len: 9 * PAGE_BYTES,
        };
        let bytes = view.read(PAGE_BYTES - 2, PAGE + 4, "test").unwrap();
        assert_eq!(bytes[..3], [7, 7, 0]);
        assert_eq!(bytes[PAGE + 1..], [0, 7, 7]);
        assert_eq!(view.read(8 * PAGE_BYTES + 5, 3, "test").unwrap(), [9; 3]);
        assert_eq!(
            view.next_data(3 * PAGE_BYTES, "test").unwrap(),
            Some(8 * PAGE_BYTES)
        );
        let inside = 8 * PAGE_BYTES + 100;
        assert_eq!(view.next_data(inside, "test").unwrap(), Some(inside));
        assert_eq!(view.next_data(9 * PAGE_BYTES, "test").unwrap(), None);
    }
}
