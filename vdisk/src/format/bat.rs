//! The block allocation table (MS-VHDX 2.5): geometry of the disk, index formula, entries.
//!
//! The table interleaves one bitmap entry after every `chunk_ratio` payload entries; only
//! [`Geometry`] knows that.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::units::{BatIndex, BlockIndex, FileOffset, MAX_VIRTUAL_SIZE, MIB};

use super::{Code, MAX_FILE_OFFSET};

/// Sectors that one bitmap block of 1 MiB describes.
const SECTORS_PER_CHUNK: u64 = 1 << 23;

/// The smallest block.
pub const MIN_BLOCK_SIZE: u32 = 1 << 20;

/// The largest block.
pub const MAX_BLOCK_SIZE: u32 = 256 << 20;

/// Bytes of a BAT entry.
pub const ENTRY_BYTES: u64 = 8;

/// Bits of an entry between its state and its place.
pub const RESERVED_BITS: u64 = 0xF_FFF8;

/// Sizes of a disk and what follows from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    block_size: u32,
    sector: u32,
    virtual_size: u64,
    differencing: bool,
}

/// What an entry of the table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// This payload block.
    Payload(BlockIndex),
    /// The sector bitmap of this chunk; used in differencing disks only.
    Bitmap(u64),
    /// Beyond the disk.
    Unused,
}

impl Geometry {
    /// Checks the sizes: a block of 1 to 256 MiB and a power of two, sectors of 512 or 4096 bytes, a
    /// disk of whole sectors up to 64 TiB. All sizes in bytes.
    pub fn new(
        block_size: u32,
        sector: u32,
        virtual_size: u64,
        differencing: bool,
    ) -> Result<Self> {
        if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size)
        {
            return Err(Error::corrupt(format!(
                "BlockSize is {block_size}: not a power of two from 1 MiB to 256 MiB"
            )));
        }
        if sector != 512 && sector != 4096 {
            return Err(Error::corrupt(format!(
                "LogicalSectorSize is {sector}: neither 512 nor 4096"
            )));
        }
        if virtual_size == 0 || virtual_size > MAX_VIRTUAL_SIZE {
            return Err(Error::corrupt(format!(
                "VirtualDiskSize is {virtual_size}: not between 1 byte and 64 TiB"
            )));
        }
        if !virtual_size.is_multiple_of(u64::from(sector)) {
            return Err(Error::corrupt(format!(
                "VirtualDiskSize is {virtual_size}: not a multiple of the sector size {sector}"
            )));
        }
        Ok(Self {
            block_size,
            sector,
            virtual_size,
            differencing,
        })
    }

    /// The same disk with another size, in bytes; refused like any size that cannot be.
    pub fn with_size(&self, virtual_size: u64) -> Result<Self> {
        Self::new(
            self.block_size,
            self.sector,
            virtual_size,
            self.differencing,
        )
    }

    /// The same disk, as large as the format allows.
    #[must_use]
    pub fn largest(&self) -> Self {
        Self {
            virtual_size: MAX_VIRTUAL_SIZE,
            ..*self
        }
    }

    /// Bytes of a payload block.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Bytes of a logical sector.
    #[must_use]
    pub fn sector(&self) -> u32 {
        self.sector
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Whether the disk has a parent.
    #[must_use]
    pub fn differencing(&self) -> bool {
        self.differencing
    }

    /// Payload blocks of the disk, the last one perhaps only partly used.
    #[must_use]
    pub fn payload_blocks(&self) -> u64 {
        self.virtual_size.div_ceil(u64::from(self.block_size))
    }

    /// Payload blocks in a chunk; 16 to 32768.
    #[must_use]
    pub fn chunk_ratio(&self) -> u64 {
        SECTORS_PER_CHUNK * u64::from(self.sector) / u64::from(self.block_size)
    }

    /// Chunks of the disk, and so bitmap blocks of a differencing one.
    #[must_use]
    pub fn bitmap_blocks(&self) -> u64 {
        self.payload_blocks().div_ceil(self.chunk_ratio())
    }

    /// Entries the table must have.
    #[must_use]
    pub fn bat_entries(&self) -> u64 {
        if self.differencing {
            self.bitmap_blocks() * (self.chunk_ratio() + 1)
        } else {
            let blocks = self.payload_blocks();
            blocks + blocks.saturating_sub(1) / self.chunk_ratio()
        }
    }

    /// Bytes of the entries the table must have.
    #[must_use]
    pub fn bat_len(&self) -> u64 {
        self.bat_entries() * ENTRY_BYTES
    }

    /// Where the entry of a payload block is. `block` is one of the disk.
    #[must_use]
    pub fn bat_index(&self, block: BlockIndex) -> BatIndex {
        BatIndex(block.0 + block.0 / self.chunk_ratio())
    }

    /// Where the entry of a chunk's bitmap is.
    #[must_use]
    pub fn bitmap_index(&self, chunk: u64) -> BatIndex {
        BatIndex(chunk * (self.chunk_ratio() + 1) + self.chunk_ratio())
    }

    /// What an entry is for.
    #[must_use]
    pub fn classify(&self, index: BatIndex) -> Slot {
        let group = self.chunk_ratio() + 1;
        let (chunk, within) = (index.0 / group, index.0 % group);
        if index.0 >= self.bat_entries() {
            return Slot::Unused;
        }
        if within == self.chunk_ratio() {
            return Slot::Bitmap(chunk);
        }
        let block = index.0 - chunk;
        if block < self.payload_blocks() {
            Slot::Payload(BlockIndex(block))
        } else {
            Slot::Unused
        }
    }
}

/// The state of a payload block (MS-VHDX 2.5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockState {
    /// 0: reads as zeros, or from the parent.
    NotPresent,
    /// 1: anything; reads as zeros here.
    Undefined,
    /// 2: reads as zeros.
    Zero,
    /// 3: trimmed; reads as zeros here, may still own its space.
    Unmapped,
    /// 6: in the file.
    FullyPresent,
    /// 7: in the file where the bitmap says so, else in the parent.
    PartiallyPresent,
}

impl BlockState {
    fn bits(self) -> u64 {
        match self {
            Self::NotPresent => 0,
            Self::Undefined => 1,
            Self::Zero => 2,
            Self::Unmapped => 3,
            Self::FullyPresent => 6,
            Self::PartiallyPresent => 7,
        }
    }

    /// Whether bytes of the disk are read from the block's place in the file.
    #[must_use]
    pub fn is_present(self) -> bool {
        matches!(self, Self::FullyPresent | Self::PartiallyPresent)
    }
}

/// An entry of the table that keeps the rules which one entry alone can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatEntry {
    /// The state.
    pub state: BlockState,
    /// Where the block is or was, a multiple of 1 MiB; 0 for nowhere.
    pub offset: FileOffset,
}

impl BatEntry {
    /// A block that is nowhere and reads as zeros (or from the parent).
    pub const NOT_PRESENT: Self = Self {
        state: BlockState::NotPresent,
        offset: FileOffset(0),
    };

    /// A block that is wholly in the file at `offset`, a multiple of 1 MiB.
    #[must_use]
    pub const fn fully_present(offset: FileOffset) -> Self {
        Self {
            state: BlockState::FullyPresent,
            offset,
        }
    }

    /// Reads an entry: known state, reserved bits zero, a place where the state needs one.
    pub fn decode(entry: u64) -> Result<Self> {
        let state = match entry & 7 {
            0 => BlockState::NotPresent,
            1 => BlockState::Undefined,
            2 => BlockState::Zero,
            3 => BlockState::Unmapped,
            6 => BlockState::FullyPresent,
            7 => BlockState::PartiallyPresent,
            state => {
                return Err(Error::corrupt(format!(
                    "BAT entry {entry:#018x} has the reserved state {state}"
                ))
                .coded(Code::EntryState));
            }
        };
        let offset = FileOffset(entry & !(MIB - 1));
        if entry & RESERVED_BITS != 0 {
            // Where the block owns space, its place may be as wrong as those bits are.
            let code = match (Self { state, offset }).space() {
                Some(_) => Code::EntryReserved,
                None if state.is_present() => Code::EntryReserved,
                None => Code::EntryIdleReserved,
            };
            return Err(
                Error::corrupt(format!("BAT entry {entry:#018x} has reserved bits set"))
                    .coded(code),
            );
        }
        if state.is_present() && offset.0 == 0 {
            return Err(Error::corrupt(format!(
                "BAT entry {entry:#018x} says that the block is present, at no place"
            ))
            .coded(Code::EntryNoPlace));
        }
        if state.is_present() && offset.0 > MAX_FILE_OFFSET {
            return Err(Error::corrupt(format!(
                "BAT entry {entry:#018x} has a FileOffsetMB beyond 128 TiB"
            ))
            .coded(Code::BlockBeyondEnd));
        }
        Ok(Self { state, offset })
    }

    /// The entry as it is written; bits of the offset below 1 MiB are dropped.
    #[must_use]
    pub fn encode(self) -> u64 {
        (self.offset.0 & !(MIB - 1)) | self.state.bits()
    }

    /// Where the block's space is, if the block owns any: present, or unmapped and not given up.
    #[must_use]
    pub fn space(self) -> Option<FileOffset> {
        let owns = self.state.is_present() || self.state == BlockState::Unmapped;
        (owns && self.offset.0 != 0).then_some(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry(block: u32, sector: u32, size: u64, differencing: bool) -> Geometry {
        Geometry::new(block, sector, size, differencing).unwrap()
    }

    #[test]
    fn the_counts_are_those_of_the_specification() {
        let worst = geometry(1 << 20, 512, 64 << 40, false);
        assert_eq!(worst.chunk_ratio(), 4096);
        assert_eq!(worst.bat_entries(), (1 << 26) + 16383);
        let usual = geometry(32 << 20, 512, 64 << 40, false);
        assert_eq!(usual.bat_entries(), (2 << 20) + 16383);
        assert_eq!(geometry(256 << 20, 512, 1 << 30, false).chunk_ratio(), 16);
        assert_eq!(geometry(1 << 20, 4096, 1 << 30, false).chunk_ratio(), 32768);
        let child = geometry(32 << 20, 512, 5 << 30, true);
        assert_eq!(child.bat_entries(), 2 * 129);
        assert_eq!(child.bitmap_index(1), BatIndex(257));
    }

    #[test]
    fn the_first_block_of_the_second_chunk_comes_after_a_bitmap() {
        let g = geometry(1 << 20, 512, 16 << 30, false);
        assert_eq!(g.bat_index(BlockIndex(4095)), BatIndex(4095));
        assert_eq!(g.bat_index(BlockIndex(4096)), BatIndex(4097));
        assert_eq!(g.classify(BatIndex(4096)), Slot::Bitmap(0));
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for block in [0, 1, 1 << 19, (1 << 20) + 512, 3 << 20, 512 << 20, u32::MAX] {
            assert!(
                Geometry::new(block, 512, 1 << 30, false).is_err(),
                "{block}"
            );
        }
        for sector in [0, 1, 513, 520, 1024, 8192] {
            assert!(
                Geometry::new(1 << 20, sector, 1 << 30, false).is_err(),
                "{sector}"
            );
        }
        for size in [0, 511, (64 << 40) + 512, u64::MAX] {
            assert!(Geometry::new(1 << 20, 512, size, false).is_err(), "{size}");
        }
    }

    #[test]
    fn broken_entries_are_refused() {
        for entry in [
            4,
            5,
            6,
            7,
            MIB | 8 | 6,
            MIB | (1 << 19) | 6,
            u64::MAX,
            !7 | 6,
        ] {
            assert!(BatEntry::decode(entry).is_err(), "{entry:#x}");
        }
        for entry in [0, 1, 2, 3, MIB | 3, MIB | 6, MIB | 7] {
            assert_eq!(BatEntry::decode(entry).unwrap().encode(), entry);
        }
        assert_eq!(
            BatEntry::decode(MIB | 3).unwrap().space(),
            Some(FileOffset(MIB))
        );
        assert_eq!(BatEntry::decode(MIB | 1).unwrap().space(), None);
    }

    proptest! {
        #[test]
        fn every_block_has_its_own_entry_and_back(
            block in 20..=28_u32, sector in prop::sample::select(vec![512_u32, 4096]),
            sectors in 1..=(1_u64 << 34), pick: u64, differencing: bool,
        ) {
            let size = sectors * u64::from(sector);
            let g = geometry(1 << block, sector, size, differencing);
            let number = BlockIndex(pick % g.payload_blocks());
            let index = g.bat_index(number);
            prop_assert!(index.0 < g.bat_entries());
            prop_assert_eq!(g.classify(index), Slot::Payload(number));
            let last = g.bat_index(BlockIndex(g.payload_blocks() - 1));
            if !differencing {
                prop_assert_eq!(last.0 + 1, g.bat_entries());
            }
            prop_assert_eq!(g.classify(BatIndex(g.bat_entries())), Slot::Unused);
        }

        #[test]
        fn any_entry_is_refused_or_read(entry: u64) {
            if let Ok(read) = BatEntry::decode(entry) {
                prop_assert_eq!(read.encode(), entry);
            }
        }
    }
}
