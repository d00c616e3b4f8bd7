//! What a client wrote and was told about it, and whether a disk holds it.

use std::collections::BTreeMap;
use std::fmt;

/// Bytes of a write.
pub(crate) const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// Numbers that look random, always the same for a seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// The versions of a block that matter; 0 is the empty disk.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    issued: u64,
    acknowledged: u64,
    flushed: u64,
}

/// What has to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// The last acknowledged write of every block: nothing crashed.
    Acknowledged,
    /// What was flushed, or anything written after it.
    Flushed,
}

/// All writes of one client, by the offset of their block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    blocks: BTreeMap<u64, Entry>,
    versions: u64,
    /// Acknowledged since the last flush was sent.
    unflushed: Vec<(u64, u64)>,
    pub(crate) acknowledged: u64,
    pub(crate) flushes: u64,
}

impl Ledger {
    /// A write to `offset` is about to be sent: its bytes and version.
    pub(crate) fn issue(&mut self, offset: u64) -> (u64, Vec<u8>) {
        self.versions += 1;
        self.blocks.entry(offset).or_default().issued = self.versions;
        (self.versions, stamp(offset, self.versions))
    }

    /// It was acknowledged.
    pub(crate) fn acknowledge(&mut self, offset: u64, version: u64) {
        self.blocks.entry(offset).or_default().acknowledged = version;
        self.unflushed.push((offset, version));
        self.acknowledged += 1;
    }

    /// A flush is about to be sent: what it covers.
    pub(crate) fn begin_flush(&mut self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.unflushed)
    }

    /// It was acknowledged.
    pub(crate) fn flushed(&mut self, covered: &[(u64, u64)]) {
        for (offset, version) in covered {
            let entry = self.blocks.entry(*offset).or_default();
            entry.flushed = entry.flushed.max(*version);
        }
        self.flushes += 1;
    }

    /// A server died: what was not flushed may be gone.
    pub(crate) fn crashed(&mut self) {
        self.unflushed.clear();
    }

    /// The blocks written.
    pub(crate) fn offsets(&self) -> impl Iterator<Item = u64> {
        self.blocks.keys().copied()
    }

    /// What is wrong with `found` at `offset`.
    pub(crate) fn judge(&self, offset: u64, found: &[u8], promise: Promise) -> Option<Wrong> {
        let entry = self.blocks.get(&offset).copied().unwrap_or_default();
        let least = match promise {
            Promise::Acknowledged => entry.acknowledged,
            Promise::Flushed => entry.flushed,
        };
        for (sector, bytes) in found.chunks(SECTOR).enumerate() {
            let version = version_of(offset, sector, bytes);
            if version.is_none_or(|version| version < least || version > entry.issued) {
                return Some(Wrong {
                    offset,
                    sector,
                    version,
                    least,
                    entry,
                });
            }
        }
        None
    }
}

/// A block that does not hold what it has to.
pub(crate) struct Wrong {
    offset: u64,
    sector: usize,
    version: Option<u64>,
    least: u64,
    entry: Entry,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sector {} of the block at {}: found {:?}, expected at least {} of {:?}",
            self.sector, self.offset, self.version, self.least, self.entry
        )
    }
}

fn stamp(offset: u64, version: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    for sector in 0..BLOCK / SECTOR {
        for word in 0..SECTOR as u64 / 8 {
            bytes.extend(word_of(offset, sector, version, word).to_le_bytes());
        }
    }
    bytes
}

/// The first word is the version itself, the others depend on all there is.
fn word_of(offset: u64, sector: usize, version: u64, word: u64) -> u64 {
    if word == 0 {
        return version;
    }
    let mixed = version ^ offset.rotate_left(20) ^ ((sector as u64) << 50) ^ (word << 40);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The version whose sector this is; 0 for zeros, `None` for nothing that was ever written there.
fn version_of(offset: u64, sector: usize, bytes: &[u8]) -> Option<u64> {
    let words = bytes
        .chunks(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")));
    let version = words.clone().next()?;
    if version == 0 {
        return bytes.iter().all(|byte| *byte == 0).then_some(0);
    }
    let same = words
        .zip(0..)
        .all(|(found, word)| found == word_of(offset, sector, version, word));
    same.then_some(version)
}
