//! The state of a machine as a volume that is mirrored like a disk: its first page, its manifest, the state of its
//! processors and devices, and behind a fixed place its memory as it is.
//!
//! Codec: total, bounded, without I/O. The memory has no checksum here; the mirror compares every chunk of it.
//!
//! | at | | |
//! |---|---|---|
//! | 0 | 8 bytes | `DFMOVED\0` |
//! | 8 | u32, u32 | version, 1; zero |
//! | 16 | u64, u64 | bytes of the manifest, of the state |
//! | 32 | u64 | bytes of memory |
//! | 40 | 32 bytes | BLAKE3 of bytes 0 to 39, the manifest and the state |
//! | 4096 | | the manifest (JSON), then the state |
//! | [`HEAD`] | | memory |
//!
//! All numbers are little-endian. What is not named is zero.

use std::ops::Range;

/// Where memory begins.
pub(crate) const HEAD: u64 = 66 << 20;
/// Where the manifest begins.
const BODY: usize = 4096;
const MAGIC: [u8; 8] = *b"DFMOVED\0";
const VERSION: u32 = 1;
/// Bytes of the numbers before the hash.
const NUMBERS: usize = 40;

/// Bytes of the volume of a machine with so much memory.
pub(crate) fn size(memory: u64) -> u64 {
    HEAD.saturating_add(memory)
}

/// All before the memory, as far as it is not zero. `None` if it is too long.
pub(crate) fn encode(manifest: &[u8], state: &[u8], memory: u64) -> Option<Vec<u8>> {
    let len = BODY.checked_add(manifest.len())?.checked_add(state.len())?;
    if len as u64 > HEAD {
        return None;
    }
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 4]);
    for number in [manifest.len() as u64, state.len() as u64, memory] {
        bytes.extend(number.to_le_bytes());
    }
    let hash = hash(&bytes, manifest, state);
    bytes.extend(hash);
    bytes.resize(BODY, 0);
    bytes.extend(manifest);
    bytes.extend(state);
    Some(bytes)
}

fn hash(numbers: &[u8], manifest: &[u8], state: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in [numbers, manifest, state] {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// What the first page says: where manifest and state are, and bytes of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct First {
    pub(crate) manifest: Range<u64>,
    pub(crate) state: Range<u64>,
    pub(crate) memory: u64,
    numbers: Vec<u8>,
    hash: [u8; 32],
}

impl First {
    /// Bytes that have to be read for it.
    pub(crate) const BYTES: usize = NUMBERS + 32;

    /// What these bytes say; the text says why nothing.
    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, &'static str> {
        let (numbers, hash) = bytes.split_at(NUMBERS);
        if numbers.get(..8) != Some(&MAGIC) {
            return Err("is not the state of a machine, or has not arrived whole");
        }
        if numbers.get(8..16) != Some(&u64::from(VERSION).to_le_bytes()) {
            return Err("is of a version that this program does not know");
        }
        let mut longs = numbers.chunks_exact(8).skip(2).map(|bytes| {
            let bytes = bytes.try_into();
            bytes.map_or(0, u64::from_le_bytes)
        });
        let mut long = || longs.next().unwrap_or_default();
        let (manifest, state, memory) = (long(), long(), long());
        let body = BODY as u64;
        let middle = body.checked_add(manifest);
        let end = middle.and_then(|middle| middle.checked_add(state));
        match (middle, end) {
            (Some(middle), Some(end)) if end <= HEAD => Ok(Self {
                manifest: body..middle,
                state: middle..end,
                memory,
                numbers: numbers.to_vec(),
                hash: hash.try_into().unwrap_or_default(),
            }),
            _ => Err("names more than there is room for"),
        }
    }

    /// Whether these are the manifest and the state that were written.
    pub(crate) fn fits(&self, manifest: &[u8], state: &[u8]) -> bool {
        hash(&self.numbers, manifest, state) == self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(bytes: &[u8]) -> Result<First, &'static str> {
        First::decode(bytes[..First::BYTES].try_into().unwrap())
    }

    #[test]
    fn what_was_written_is_found_again_and_nothing_else() {
        let bytes = encode(b"manifest", b"the state", 1 << 30).unwrap();
        let found = first(&bytes).unwrap();
        let part = |range: &Range<u64>| &bytes[range.start as usize..range.end as usize];
        assert_eq!(part(&found.manifest), b"manifest");
        assert_eq!(part(&found.state), b"the state");
        assert_eq!(found.memory, 1 << 30);
        assert!(found.fits(b"manifest", b"the state"));
        assert!(!found.fits(b"manifest", b"the stata"));
        for at in 0..NUMBERS {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let found = first(&damaged);
            assert!(
                found.is_err() || !found.unwrap().fits(b"manifest", b"the state"),
                "{at}"
            );
        }
    }

    #[test]
    fn what_does_not_fit_before_the_memory_is_refused() {
        assert!(encode(&[], &vec![0; HEAD as usize], 0).is_none());
        let mut bytes = encode(b"m", b"s", 0).unwrap();
        bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(first(&bytes).is_err());
        bytes[16..24].copy_from_slice(&HEAD.to_le_bytes());
        assert!(first(&bytes).is_err());
    }
}
