//! The last of what a guest has printed.
//!
//! Machine. Every byte has a number, from 0 when the machine began; who reads remembers the number of the next one
//! it wants. What has fallen out is skipped.

use std::collections::VecDeque;

/// Bytes that are kept.
pub(super) const KEPT: usize = 64 << 10;

/// What is kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: VecDeque<u8>,
    /// Number of the byte that comes next.
    end: u64,
}

impl Kept {
    /// The guest has printed this.
    pub(super) fn push(&mut self, printed: &[u8]) {
        self.end = self.end.wrapping_add(printed.len() as u64);
        let last = printed.len().saturating_sub(KEPT);
        let printed = printed.get(last..).unwrap_or_default();
        let room = KEPT - printed.len();
        let over = self.bytes.len().saturating_sub(room);
        self.bytes.drain(..over);
        self.bytes.extend(printed);
    }

    /// Number of the first byte that is kept.
    pub(super) fn start(&self) -> u64 {
        self.end.saturating_sub(self.bytes.len() as u64)
    }

    /// Number of the byte that comes next.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes from number `from` on, or from the first that is kept, and the number of the first of them. Not
    /// always all; none only when there are none.
    pub(super) fn since(&self, from: u64) -> (u64, &[u8]) {
        let from = from.max(self.start());
        let skip = usize::try_from(from - self.start()).unwrap_or(usize::MAX);
        let (first, second) = self.bytes.as_slices();
        let bytes = match first.get(skip..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => second
                .get(skip.saturating_sub(first.len())..)
                .unwrap_or_default(),
        };
        (from, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(kept: &Kept, mut from: u64) -> (u64, Vec<u8>) {
        let first = kept.since(from).0;
        let mut bytes = Vec::new();
        loop {
            let (at, more) = kept.since(from);
            if more.is_empty() {
                return (first, bytes);
            }
            bytes.extend(more);
            from = at + more.len() as u64;
        }
    }

    #[test]
    fn who_reads_in_time_misses_nothing() {
        let mut kept = Kept::default();
        let (mut at, mut read, mut printed) = (0, Vec::new(), Vec::new());
        for len in (1..700).chain([KEPT - 1, KEPT, 1, KEPT]) {
            let bytes: Vec<u8> = (0..len).map(|byte| (byte * 7 + len) as u8).collect();
            kept.push(&bytes);
            printed.extend(bytes);
            let (from, more) = all(&kept, at);
            assert_eq!(from, at);
            at += more.len() as u64;
            read.extend(more);
        }
        assert!(read == printed);
        assert_eq!((at, kept.since(at).1), (kept.end(), &[][..]));
    }

    #[test]
    fn who_comes_late_gets_the_last_that_is_kept() {
        let mut kept = Kept::default();
        let printed: Vec<u8> = (0..3 * KEPT + 5).map(|byte| (byte / 3) as u8).collect();
        for part in printed.chunks(1000) {
            kept.push(part);
        }
        let (from, bytes) = all(&kept, 0);
        assert_eq!((from, bytes.len()), (2 * KEPT as u64 + 5, KEPT));
        assert!(bytes == printed[2 * KEPT + 5..]);
        kept.push(&printed);
        let (from, bytes) = all(&kept, 7);
        assert_eq!(from + KEPT as u64, kept.end());
        assert!(bytes == printed[2 * KEPT + 5..]);
    }
}
