//! What of a file system is newer in its journal, because it was not shut down cleanly.
//!
//! Machine: asks for blocks and decides which of them are replaced by which; it never writes them back. All
//! that was committed counts, also where the journal goes on at its beginning, except for blocks that were
//! revoked later (Linux, `Documentation/filesystems/ext4/journal.rst`). No block of the file system stands
//! for two of the journal, so what is asked for is bounded by the length of both; revocations are counted.

use std::collections::BTreeMap;
use std::io;

use super::superblock::Superblock;

/// Stands at the beginning of each block that is not a copy.
pub(super) const MAGIC: [u8; 4] = 0xC03B_3998_u32.to_be_bytes();
/// Blocks of a journal, and such as it revokes, pieces that it consists of, and blocks that say where these are,
/// at most.
const MOST_BLOCKS: u64 = 1 << 20;
const MOST_PIECES: usize = 1 << 14;
const MOST_NODES: usize = 1 << 10;
/// Blocks of a piece, at most; a larger number says that nothing was ever written there.
const MOST_IN_PIECE: u64 = 1 << 15;
/// Kinds of blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK: u32 = 4;
const REVOKE: u32 = 5;
/// What a journal may have that is understood here: revocations, wide block numbers, checksums of both kinds.
const WIDE: u32 = 0x2;
const CHECKSUMS_2: u32 = 0x8;
const CHECKSUMS_3: u32 = 0x10;
const KNOWN: u32 = 0x1 | WIDE | CHECKSUMS_2 | CHECKSUMS_3;
/// Bits of a tag.
const ESCAPED: u32 = 1;
const SAME_UUID: u32 = 2;
const LAST: u32 = 8;
/// Offset of the checksum in a commit block.
const COMMIT_SUM: usize = 0x10;

/// Reads a block of the file system, by its number.
pub(super) type ReadBlock<'a> = dyn Fn(u64) -> io::Result<Vec<u8>> + 'a;

/// Why a journal is not read.
#[derive(Debug)]
pub(super) enum Unread {
    /// The disk cannot be read.
    Disk(io::Error),
    /// It is not as journals are.
    Odd(&'static str),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// Where the content of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Newer {
    /// A block of the file system, which belongs to the journal.
    pub(super) block: u64,
    /// Whether the content begins with [`MAGIC`], which is left out there.
    pub(super) escaped: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|field| field.first_chunk());
    u32::from_be_bytes(field.copied().unwrap_or_default())
}

fn little(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|field| field.first_chunk());
    u64::from(u32::from_le_bytes(field.copied().unwrap_or_default()))
}

fn little_16(bytes: &[u8], at: usize) -> u64 {
    little(bytes, at) & 0xFFFF
}

/// Which blocks are newer in the journal in `inode` of a file system.
pub(super) fn newer(
    superblock: &Superblock,
    inode: u32,
    read: &ReadBlock<'_>,
) -> Result<BTreeMap<u64, Newer>, Unread> {
    let pieces = pieces(superblock, inode, read)?;
    let first = *pieces.first().ok_or(Unread::Odd("its journal is empty"))?;
    if first.logical != 0 {
        return Err(Unread::Odd("its journal has no beginning"));
    }
    let head = read(first.physical)?;
    let features = u32_at(&head, 0x28);
    let (length, begin) = (u32_at(&head, 0x10), u32_at(&head, 0x14));
    let is_one = head.starts_with(&MAGIC) && u32_at(&head, 4) == SUPERBLOCK;
    if !is_one || u64::from(u32_at(&head, 0x0C)) != superblock.block {
        return Err(Unread::Odd("its journal is damaged"));
    }
    if features & !KNOWN != 0 {
        return Err(Unread::Odd("its journal has features that are not known"));
    }
    let length = u64::from(length);
    if length > MOST_BLOCKS {
        return Err(Unread::Odd("its journal is longer than any that is read"));
    }
    if begin == 0 || u64::from(begin) >= length {
        return Err(Unread::Odd("its journal is damaged"));
    }
    let start = u32_at(&head, 0x1C);
    let mut log = Log {
        pieces,
        ring: (u64::from(begin), length),
        features,
        seed: !crc32c::crc32c(head.get(0x30..0x40).unwrap_or_default()),
        sequence: u32_at(&head, 0x18),
        copies: Vec::new(),
        revoked: BTreeMap::new(),
        revocations_left: MOST_BLOCKS,
    };
    if start != 0 {
        log.scan(u64::from(start), read)?;
    }
    Ok(log.replay())
}

/// A part of the journal that lies in one piece.
#[derive(Clone, Copy, Debug)]
struct Piece {
    logical: u64,
    physical: u64,
    blocks: u64,
}

/// Where the journal is, in the order of its blocks.
fn pieces(superblock: &Superblock, inode: u32, read: &ReadBlock<'_>) -> Result<Vec<Piece>, Unread> {
    let damaged = || Unread::Odd("the inode of its journal is damaged");
    let number = inode.checked_sub(1).ok_or_else(damaged)?;
    let group = u64::from(number / superblock.inodes_per_group);
    let at = superblock.descriptor_at(group).ok_or_else(damaged)?;
    let descriptor = read(at / superblock.block)?;
    let at = (at % superblock.block) as usize;
    let high = if superblock.descriptor >= 64 {
        little(&descriptor, at + 0x28)
    } else {
        0
    };
    let table = little(&descriptor, at + 0x08) | high << 32;
    let within = u64::from(number % superblock.inodes_per_group) * superblock.inode;
    let block = table.checked_add(within / superblock.block);
    let inodes = read(block.ok_or_else(damaged)?)?;
    let at = (within % superblock.block) as usize;
    let inode = inodes.get(at..).unwrap_or_default();
    if little_16(inode, 0) & 0xF000 != 0x8000 {
        return Err(damaged());
    }
    if little(inode, 0x20) & 0x8_0000 == 0 {
        return Err(Unread::Odd("its journal is laid out as in ext3"));
    }
    let mut nodes = vec![inode.get(0x28..0x64).unwrap_or_default().to_vec()];
    let (mut pieces, mut seen) = (Vec::new(), 0);
    while let Some(node) = nodes.pop() {
        seen += 1;
        let entries = little_16(&node, 2) as usize;
        let depth = little_16(&node, 6);
        let holds = (node.len() / 12).saturating_sub(1);
        let known = little_16(&node, 0) == 0xF30A && entries <= holds && depth <= 5;
        if !known || seen > MOST_NODES || pieces.len() > MOST_PIECES {
            return Err(damaged());
        }
        for at in (1..=entries).map(|entry| entry * 12) {
            if depth > 0 {
                if nodes.len() > MOST_NODES {
                    return Err(damaged());
                }
                let child = read(little(&node, at + 4) | little_16(&node, at + 8) << 32)?;
                if little_16(&child, 6) + 1 != depth {
                    return Err(damaged());
                }
                nodes.push(child);
            } else {
                pieces.push(Piece {
                    logical: little(&node, at),
                    physical: little(&node, at + 8) | little_16(&node, at + 6) << 32,
                    blocks: little_16(&node, at + 4),
                });
            }
        }
    }
    if !are_apart(&mut pieces, superblock.blocks) {
        return Err(damaged());
    }
    Ok(pieces)
}

/// Puts the pieces in order. Whether each is a place of its own, of the journal and of the file system's blocks.
fn are_apart(pieces: &mut [Piece], blocks: u64) -> bool {
    let inside = |piece: &Piece| {
        let end = piece.physical.checked_add(piece.blocks);
        (1..=MOST_IN_PIECE).contains(&piece.blocks) && end.is_some_and(|end| end <= blocks)
    };
    let mut apart = pieces.iter().all(inside);
    for place in [
        |piece: &Piece| piece.physical,
        |piece: &Piece| piece.logical,
    ] {
        pieces.sort_by_key(place);
        let behind = pieces.iter().skip(1);
        let mut pairs = pieces.iter().zip(behind);
        apart &= pairs.all(|(one, next)| place(next) - place(one) >= one.blocks);
    }
    apart
}

/// A copy of a block in a transaction that was committed.
#[derive(Clone, Copy, Debug)]
struct Copied {
    sequence: u32,
    of: u64,
    newer: Newer,
}

struct Log {
    pieces: Vec<Piece>,
    /// The first block that is used in turn, and the end.
    ring: (u64, u64),
    features: u32,
    /// What checksums begin with.
    seed: u32,
    /// Of the transaction that is next.
    sequence: u32,
    copies: Vec<Copied>,
    /// The last transaction that revoked a block.
    revoked: BTreeMap<u64, u32>,
    /// Also of such as are not committed yet, and as often as it is said.
    revocations_left: u64,
}

/// Whether a transaction is not before another; numbers go round.
fn not_before(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) < 1 << 31
}

impl Log {
    fn physical(&self, logical: u64) -> Result<u64, Unread> {
        let behind = self
            .pieces
            .partition_point(|piece| piece.logical <= logical);
        let piece = behind.checked_sub(1).and_then(|at| self.pieces.get(at));
        let found = piece.and_then(|piece| {
            let within = logical - piece.logical;
            (within < piece.blocks).then(|| piece.physical.checked_add(within))?
        });
        found.ok_or(Unread::Odd("its journal has a hole"))
    }

    fn next(&self, at: u64) -> u64 {
        if at + 1 < self.ring.1 {
            at + 1
        } else {
            self.ring.0
        }
    }

    fn has_sums(&self) -> bool {
        self.features & (CHECKSUMS_2 | CHECKSUMS_3) != 0
    }

    /// Whether the four bytes at `at` are the checksum of the block with zeros in their place.
    fn is_whole(&self, block: &[u8], at: usize) -> bool {
        if !self.has_sums() {
            return true;
        }
        let (before, rest) = block.split_at_checked(at).unwrap_or_default();
        let behind = rest.get(4..).unwrap_or_default();
        let sum = crc32c::crc32c_append(!self.seed, before);
        let sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, &[0; 4]), behind);
        !sum == u32_at(block, at)
    }

    /// Collect what was committed, from block `at` of the journal on.
    fn scan(&mut self, mut at: u64, read: &ReadBlock<'_>) -> Result<(), Unread> {
        let (mut copies, mut revoked) = (Vec::new(), Vec::new());
        let mut left = self.ring.1;
        loop {
            let block = read(self.physical(at)?)?;
            let (kind, sequence) = (u32_at(&block, 4), u32_at(&block, 8));
            if !block.starts_with(&MAGIC) || sequence != self.sequence {
                return Ok(());
            }
            at = self.next(at);
            let mut used = 1;
            let tail = block.len().saturating_sub(4);
            match kind {
                DESCRIPTOR if self.is_whole(&block, tail) => {
                    for (of, escaped) in self.tags(&block) {
                        let newer = Newer {
                            block: self.physical(at)?,
                            escaped,
                        };
                        copies.push(Copied {
                            sequence,
                            of,
                            newer,
                        });
                        at = self.next(at);
                        used += 1;
                    }
                }
                REVOKE if self.is_whole(&block, tail) => {
                    let those = self.revocations(&block);
                    let left = self.revocations_left.checked_sub(those.len() as u64);
                    self.revocations_left = left.ok_or(Unread::Odd(
                        "its journal revokes more blocks than are counted",
                    ))?;
                    revoked.extend(those);
                }
                COMMIT if self.is_whole(&block, COMMIT_SUM) => {
                    self.copies.append(&mut copies);
                    let those = revoked.drain(..).map(|block| (block, sequence));
                    self.revoked.extend(those);
                    self.sequence = sequence.wrapping_add(1);
                }
                // Torn: neither it nor what follows was committed.
                _ => return Ok(()),
            }
            let Some(rest) = left.checked_sub(used) else {
                return Ok(());
            };
            left = rest;
        }
    }

    /// The blocks whose copies follow a descriptor.
    fn tags(&self, block: &[u8]) -> Vec<(u64, bool)> {
        let end = block
            .len()
            .saturating_sub(if self.has_sums() { 4 } else { 0 });
        let wide = self.features & WIDE != 0;
        let third = self.features & CHECKSUMS_3 != 0;
        let second = if self.features & CHECKSUMS_2 != 0 {
            2
        } else {
            0
        };
        let bytes = match (third, wide) {
            (true, _) => 16,
            (false, true) => 12 + second,
            (false, false) => 8 + second,
        };
        let (mut at, mut tags) = (12, Vec::new());
        while at + bytes <= end {
            let flags = u32_at(block, at + 4) & if third { u32::MAX } else { 0xFFFF };
            let high = if wide {
                u64::from(u32_at(block, at + 8))
            } else {
                0
            };
            let of = u64::from(u32_at(block, at)) | high << 32;
            tags.push((of, flags & ESCAPED != 0));
            if flags & LAST != 0 {
                break;
            }
            at += bytes + if flags & SAME_UUID == 0 { 16 } else { 0 };
        }
        tags
    }

    fn revocations(&self, block: &[u8]) -> Vec<u64> {
        let wide = self.features & WIDE != 0;
        let bytes = if wide { 8 } else { 4 };
        let end = (u32_at(block, 12) as usize).min(block.len());
        let places = (16..end).step_by(bytes).filter(|at| at + bytes <= end);
        let block_at = |at| {
            let first = u64::from(u32_at(block, at));
            if wide {
                first << 32 | u64::from(u32_at(block, at + 4))
            } else {
                first
            }
        };
        places.map(block_at).collect()
    }

    /// The newest copy of each block that was not revoked in its transaction or later.
    fn replay(self) -> BTreeMap<u64, Newer> {
        let mut newer = BTreeMap::new();
        for copied in self.copies {
            let revoked = self.revoked.get(&copied.of);
            if revoked.is_some_and(|revoked| not_before(*revoked, copied.sequence)) {
                newer.remove(&copied.of);
            } else {
                newer.insert(copied.of, copied.newer);
            }
        }
        newer
    }
}
