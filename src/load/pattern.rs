//! Blocks that say which write they are: a header with place and sequence number, then bytes that
//! follow from both and a seed.

/// Bytes of the header: the block's offset on the disk, then the sequence number.
pub(crate) const HEADER: usize = 16;

/// Fills `block` with write number `sequence` of the block at `offset`.
pub(crate) fn fill(block: &mut [u8], seed: u64, offset: u64, sequence: u64) {
    let mut state = seed ^ offset.rotate_left(32) ^ sequence;
    for word in block.chunks_mut(8) {
        let bytes = next(&mut state).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
    block[..8].copy_from_slice(&offset.to_le_bytes());
    block[8..HEADER].copy_from_slice(&sequence.to_le_bytes());
}

/// What stands in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Zeros: it was never written.
    Nothing,
    /// This write, whole.
    Write(u64),
    /// Anything else.
    Foreign,
}

/// Which write `block`, read from `offset`, holds.
pub(crate) fn read(block: &[u8], seed: u64, offset: u64) -> Found {
    if block.iter().all(|byte| *byte == 0) {
        return Found::Nothing;
    }
    let Some(sequence) = block[8..].first_chunk().map(|b| u64::from_le_bytes(*b)) else {
        return Found::Foreign;
    };
    let mut expected = vec![0; block.len()];
    fill(&mut expected, seed, offset, sequence);
    if expected == block {
        Found::Write(sequence)
    } else {
        Found::Foreign
    }
}

/// One step of the generator `SplitMix64`.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_known_again_and_one_changed_byte_is_seen() {
        let mut block = vec![0; 4096];
        assert_eq!(read(&block, 1, 8192), Found::Nothing);
        fill(&mut block, 1, 8192, 77);
        assert_eq!(read(&block, 1, 8192), Found::Write(77));
        assert_eq!(read(&block, 2, 8192), Found::Foreign, "another seed");
        assert_eq!(read(&block, 1, 4096), Found::Foreign, "another place");
        for at in [0, 8, 16, 4095] {
            let mut harmed = block.clone();
            harmed[at] ^= 1;
            assert_eq!(read(&harmed, 1, 8192), Found::Foreign, "byte {at}");
        }
    }
}
