//! The digest of what a disk holds, the same however its bytes are kept and however it was read.
//!
//! BLAKE3 over the pieces that are not all zero, in order: for each its number (64 bits, little-endian)
//! and the BLAKE3 of its bytes, zeros added up to a whole piece. So a disk of many terabytes has its
//! digest after reading what it holds, and zeros at its end do not count (docs/convert.md).

use super::pieces::PIECE;

/// The digest of a piece.
pub(crate) type PieceHash = [u8; blake3::OUT_LEN];

/// A digest under way.
#[derive(Default)]
pub(crate) struct Digest(blake3::Hasher);

impl Digest {
    /// The next piece that is not all zero.
    pub(crate) fn add(&mut self, offset: u64, piece: &PieceHash) {
        self.0.update(&(offset / PIECE).to_le_bytes());
        self.0.update(piece);
    }

    /// The digest, in hexadecimal.
    pub(crate) fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// The digest of one piece, which may be the last and not whole.
pub(crate) fn of_piece(bytes: &[u8]) -> PieceHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(bytes);
    let missing = (PIECE as usize).saturating_sub(bytes.len());
    if missing > 0 {
        hasher.update(&vec![0; missing]);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_at_the_end_do_not_count_and_places_do() {
        assert_eq!(of_piece(b"abc"), of_piece(b"abc\0\0"));
        let digest = |offset| {
            let mut digest = Digest::default();
            digest.add(offset, &of_piece(b"abc"));
            digest.finish()
        };
        assert_ne!(digest(0), digest(PIECE));
        assert_eq!(digest(0).len(), 64);
    }
}
