//! How full a volume is: what still goes into it.

use crate::record::RECORD_HEAD;
use crate::volume::HEADER;

/// Bytes that `age` encrypts at once, and what each of them grows by.
const SEALED_PIECE: u64 = 64 << 10;
const SEAL: u64 = 16;

/// The volume that is being filled.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    limit: u64,
    /// Bytes before the encrypted ones; `None` if nothing is encrypted.
    sealed: Option<u64>,
    used: u64,
}

impl Fill {
    /// A new volume of at most `limit` bytes, in which only the header stands; `sealed` bytes come before
    /// what is encrypted, if it is.
    #[must_use]
    pub fn new(limit: u64, sealed: Option<u64>) -> Self {
        Self {
            limit,
            sealed,
            used: HEADER as u64,
        }
    }

    /// Whether a record with `stored` bytes goes in, and the end after it.
    #[must_use]
    pub fn takes(&self, stored: u64) -> bool {
        let heads = 2 * RECORD_HEAD as u64;
        let plain = self.used.checked_add(stored);
        let plain = plain.and_then(|plain| plain.checked_add(heads));
        let len = plain.and_then(|plain| self.file_len(plain));
        len.is_some_and(|len| len <= self.limit)
    }

    /// A record with `stored` bytes went in.
    pub fn add(&mut self, stored: u64) {
        self.used = self.used.saturating_add(RECORD_HEAD as u64 + stored);
    }

    /// How long a file becomes that has `plain` bytes before it is encrypted.
    fn file_len(&self, plain: u64) -> Option<u64> {
        let Some(before) = self.sealed else {
            return Some(plain);
        };
        let pieces = plain.div_ceil(SEALED_PIECE).max(1);
        plain
            .checked_add(pieces.checked_mul(SEAL)?)?
            .checked_add(before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{CHUNK, LEAST_VOLUME};

    proptest! {
        #[test]
        fn what_goes_in_never_makes_a_volume_longer_than_asked(
            limit in LEAST_VOLUME..64 << 20,
            sealed in proptest::option::of(100_u64..5000),
            records in proptest::collection::vec(0..=CHUNK, 0..100),
        ) {
            let mut fill = Fill::new(limit, sealed);
            let mut plain = HEADER as u64;
            for stored in records {
                if fill.takes(stored) {
                    fill.add(stored);
                    plain += RECORD_HEAD as u64 + stored;
                }
            }
            let plain = plain + RECORD_HEAD as u64;
            let grown = sealed.map_or(0, |before| before + plain.div_ceil(65536) * 16);
            prop_assert!(plain + grown <= limit);
        }
    }

    #[test]
    fn a_chunk_goes_into_every_new_volume() {
        assert!(Fill::new(LEAST_VOLUME, Some(64 << 10)).takes(CHUNK));
        assert!(!Fill::new(u64::MAX, Some(100)).takes(u64::MAX));
    }
}
