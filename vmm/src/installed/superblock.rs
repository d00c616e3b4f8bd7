//! The superblock of an ext4 file system, where it tells what has to be known before a library may read it.
//!
//! Codec. It refuses sizes by which a library would take memory without bound, finds group descriptors where
//! the library does not look for them (`META_BG`, which Linux sets when it grows a file system by more than a
//! thousand times), and makes a superblock that the library can go by. Layout: Linux,
//! `Documentation/filesystems/ext4/globals.rst`.

/// Where it is in the file system, in bytes, and how long.
pub(super) const AT: u64 = 1024;
pub(super) const BYTES: usize = 1024;
/// Groups of a file system, at most: 128 TiB of them with blocks of 4 KiB.
const MOST_GROUPS: u64 = 1 << 20;
/// Fields, by their offset.
mod at {
    pub(super) const BLOCKS_LOW: usize = 0x04;
    pub(super) const FIRST_BLOCK: usize = 0x14;
    pub(super) const LOG_BLOCK: usize = 0x18;
    pub(super) const BLOCKS_PER_GROUP: usize = 0x20;
    pub(super) const INODES_PER_GROUP: usize = 0x28;
    pub(super) const MAGIC: usize = 0x38;
    pub(super) const INODE_SIZE: usize = 0x58;
    pub(super) const COMPATIBLE: usize = 0x5C;
    pub(super) const INCOMPATIBLE: usize = 0x60;
    pub(super) const READ_ONLY_COMPATIBLE: usize = 0x64;
    pub(super) const UUID: usize = 0x68;
    pub(super) const JOURNAL_INODE: usize = 0xE0;
    pub(super) const DESCRIPTOR_SIZE: usize = 0xFE;
    pub(super) const FIRST_META_GROUP: usize = 0x104;
    pub(super) const BLOCKS_HIGH: usize = 0x150;
    pub(super) const BACKUP_GROUPS: usize = 0x24C;
    pub(super) const CHECKSUM: usize = 0x3FC;
}
const MAGIC: u16 = 0xEF53;
const HAS_JOURNAL: u32 = 0x4;
const SPARSE_SUPER2: u32 = 0x200;
const RECOVERY: u32 = 0x4;
const META_GROUPS: u32 = 0x10;
const WIDE: u32 = 0x80;
const SPARSE_SUPER: u32 = 0x1;
const METADATA_CHECKSUMS: u32 = 0x400;

/// What it says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Bytes of a block: 1 to 64 KiB.
    pub(super) block: u64,
    /// Blocks of the file system.
    pub(super) blocks: u64,
    /// Groups, at least one.
    pub(super) groups: u64,
    /// Inodes of a group, at least one.
    pub(super) inodes_per_group: u32,
    /// Bytes of an inode; a block holds a whole number of them.
    pub(super) inode: u64,
    /// Bytes of a group descriptor: 32 to 512, a power of two.
    pub(super) descriptor: u64,
    /// The inode of the journal, if the file system needs it to be read.
    pub(super) journal: Option<u32>,
    /// As Linux writes it.
    pub(super) uuid: String,
    first_block: u64,
    blocks_per_group: u64,
    /// From which block of descriptors on each lies in a group of its own.
    spread: Option<u64>,
    backups: Backups,
}

/// Which groups begin with a copy of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backups {
    All,
    Powers,
    These(u32, u32),
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|field| field.first_chunk());
    u32::from_le_bytes(field.copied().unwrap_or_default())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let field = bytes.get(at..).and_then(|field| field.first_chunk());
    u16::from_le_bytes(field.copied().unwrap_or_default())
}

/// Whether this is a superblock of ext2, ext3 or ext4 at all.
pub(super) fn is_one(bytes: &[u8; BYTES]) -> bool {
    u16_at(bytes, at::MAGIC) == MAGIC
}

/// Read it; `room` is how many bytes its partition has. The error says what is wrong.
pub(super) fn read(bytes: &[u8; BYTES], room: u64) -> Result<Superblock, &'static str> {
    if !is_one(bytes) {
        return Err("is no ext4 file system");
    }
    let incompatible = u32_at(bytes, at::INCOMPATIBLE);
    let wide = incompatible & WIDE != 0;
    let log = u32_at(bytes, at::LOG_BLOCK);
    if log > 6 {
        return Err("has blocks of a size that is not known");
    }
    let block = 1024_u64 << log;
    let high = if wide {
        u64::from(u32_at(bytes, at::BLOCKS_HIGH))
    } else {
        0
    };
    let blocks = u64::from(u32_at(bytes, at::BLOCKS_LOW)) | high << 32;
    let size = blocks.checked_mul(block);
    if size.is_none_or(|size| size > room) {
        return Err("is longer than its partition");
    }
    let first_block = u64::from(u32_at(bytes, at::FIRST_BLOCK));
    let blocks_per_group = u64::from(u32_at(bytes, at::BLOCKS_PER_GROUP));
    let inodes_per_group = u32_at(bytes, at::INODES_PER_GROUP);
    let groups = blocks
        .checked_sub(first_block)
        .filter(|_| blocks_per_group != 0 && inodes_per_group != 0 && first_block <= 1)
        .map(|blocks| blocks.div_ceil(blocks_per_group));
    let groups = groups.filter(|groups| (1..=MOST_GROUPS).contains(groups));
    let groups = groups.ok_or("has groups of a size that cannot be")?;
    let inode = u64::from(u16_at(bytes, at::INODE_SIZE));
    if !inode.is_power_of_two() || !(128..=block).contains(&inode) {
        return Err("has inodes of a size that cannot be");
    }
    let descriptor = if wide {
        u64::from(u16_at(bytes, at::DESCRIPTOR_SIZE))
    } else {
        32
    };
    if !descriptor.is_power_of_two() || !(32..=512).contains(&descriptor) {
        return Err("has group descriptors of a size that cannot be");
    }
    let compatible = u32_at(bytes, at::COMPATIBLE);
    let needs_journal = compatible & HAS_JOURNAL != 0 && incompatible & RECOVERY != 0;
    let journal = u32_at(bytes, at::JOURNAL_INODE);
    let spread = u64::from(u32_at(bytes, at::FIRST_META_GROUP));
    Ok(Superblock {
        block,
        blocks,
        groups,
        inodes_per_group,
        inode,
        descriptor,
        journal: (needs_journal && journal != 0).then_some(journal),
        uuid: uuid(bytes),
        first_block,
        blocks_per_group,
        spread: (incompatible & META_GROUPS != 0).then_some(spread),
        backups: backups(bytes, compatible),
    })
}

fn backups(bytes: &[u8; BYTES], compatible: u32) -> Backups {
    let these = (
        u32_at(bytes, at::BACKUP_GROUPS),
        u32_at(bytes, at::BACKUP_GROUPS + 4),
    );
    if compatible & SPARSE_SUPER2 != 0 {
        Backups::These(these.0, these.1)
    } else if u32_at(bytes, at::READ_ONLY_COMPATIBLE) & SPARSE_SUPER != 0 {
        Backups::Powers
    } else {
        Backups::All
    }
}

fn uuid(bytes: &[u8; BYTES]) -> String {
    let mut text = String::new();
    let uuid = bytes.get(at::UUID..at::UUID + 16).unwrap_or_default();
    for (place, byte) in uuid.iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 0xF] {
            text.extend(char::from_digit(u32::from(digit), 16));
        }
    }
    text
}

/// The same superblock for a reader that finds descriptors in one place and need not know of a journal.
pub(super) fn plain(bytes: &[u8; BYTES]) -> [u8; BYTES] {
    let mut plain = *bytes;
    let incompatible = u32_at(bytes, at::INCOMPATIBLE) & !(RECOVERY | META_GROUPS);
    put(&mut plain, at::INCOMPATIBLE, incompatible);
    if incompatible & WIDE == 0 {
        // The library counts it in any case.
        put(&mut plain, at::BLOCKS_HIGH, 0);
    }
    // One that was wrong stays wrong.
    let sums = u32_at(bytes, at::READ_ONLY_COMPATIBLE) & METADATA_CHECKSUMS != 0;
    if sums && u32_at(bytes, at::CHECKSUM) == checksum(bytes) {
        let sum = checksum(&plain);
        put(&mut plain, at::CHECKSUM, sum);
    }
    plain
}

fn put(bytes: &mut [u8; BYTES], at: usize, value: u32) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}

fn checksum(bytes: &[u8; BYTES]) -> u32 {
    !crc32c::crc32c(bytes.get(..at::CHECKSUM).unwrap_or_default())
}

impl Superblock {
    /// Where a reader that knows one place for all descriptors looks for that of group 0.
    pub(super) fn plain_descriptors(&self) -> u64 {
        let block = if self.block == 1024 { 2 } else { 1 };
        self.block * block
    }

    /// Where the descriptor of a group is, in bytes from the start; `None` if there is no such group.
    pub(super) fn descriptor_at(&self, group: u64) -> Option<u64> {
        let per_block = self.block / self.descriptor;
        if group >= self.groups {
            return None;
        }
        let place = group / per_block;
        let block = match self.spread {
            Some(first) if place >= first => {
                let home = place * per_block;
                let copy = u64::from(self.has_copy(home));
                self.first_block + home * self.blocks_per_group + copy
            }
            _ => self.first_block + 1 + place,
        };
        Some(block * self.block + group % per_block * self.descriptor)
    }

    fn has_copy(&self, group: u64) -> bool {
        let power = |of: u64| {
            let mut power = of;
            while power < group {
                power *= of;
            }
            power == group
        };
        match self.backups {
            Backups::All => true,
            Backups::Powers => group <= 1 || power(3) || power(5) || power(7),
            Backups::These(one, other) => {
                group == 0 || group == u64::from(one) || group == u64::from(other)
            }
        }
    }
}
