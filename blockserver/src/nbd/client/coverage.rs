//! Which bytes of a read have arrived, so that none is missing and none comes twice.

/// The most separate pieces of one read: as many as 512-byte pieces of 32 MiB.
const MAX_PIECES: usize = 1 << 16;

/// The bytes of a read that have arrived.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    /// All before this have arrived.
    prefix: u32,
    /// Pieces beyond the prefix as start and end: sorted, apart, the first not at the prefix.
    beyond: Vec<(u32, u32)>,
}

impl Coverage {
    /// Note that `start..end` arrived; `false` when part of it had arrived before, or when there
    /// are too many pieces.
    #[must_use]
    pub(super) fn add(&mut self, start: u32, end: u32) -> bool {
        if start < self.prefix || end < start {
            return false;
        }
        if self.beyond.is_empty() && start == self.prefix {
            self.prefix = end;
            return true;
        }
        let at = self.beyond.partition_point(|piece| piece.0 < start);
        let before = at.checked_sub(1).and_then(|at| self.beyond.get(at));
        let meets_before = before.is_some_and(|piece| piece.1 > start);
        let meets_after = self.beyond.get(at).is_some_and(|piece| piece.0 < end);
        if meets_before || meets_after || self.beyond.len() >= MAX_PIECES {
            return false;
        }
        self.beyond.insert(at, (start, end));
        let mut joined = 0;
        for piece in &self.beyond {
            if piece.0 != self.prefix {
                break;
            }
            self.prefix = piece.1;
            joined += 1;
        }
        self.beyond.drain(..joined);
        true
    }

    /// Whether the first `len` bytes have all arrived.
    pub(super) fn is_complete(&self, len: u32) -> bool {
        self.prefix >= len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_complete_it_and_overlaps_are_seen() {
        let mut coverage = Coverage::default();
        assert!(coverage.add(20, 30));
        assert!(coverage.add(0, 10));
        assert!(!coverage.add(5, 6));
        assert!(!coverage.add(25, 35));
        assert!(!coverage.add(15, 21));
        assert!(!coverage.is_complete(30));
        assert!(coverage.add(10, 20));
        assert!(coverage.is_complete(30));
        assert!(!coverage.add(29, 31));
        assert!(coverage.add(30, 31));
        assert!(coverage.beyond.is_empty());
    }
}
