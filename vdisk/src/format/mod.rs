//! The VHDX format: bytes to checked types and back. Total on every input, does no I/O.
//!
//! One module per structure of the file, in the order in which they lie there:
//!
//! | file offset | structure | module |
//! |---|---|---|
//! | 0 | file type identifier | [`identifier`] |
//! | 64 KiB, 128 KiB | the two headers | [`header`] |
//! | 192 KiB, 256 KiB | the two copies of the region table | [`region`] |
//! | anywhere | log | [`log`] |
//! | anywhere | metadata region | [`metadata`] |
//! | in the metadata region | parent locator | [`locator`] |
//! | anywhere | block allocation table | [`bat`] |
//! | anywhere | tracking region, our own | [`track`] |
//!
//! Specified by MS-VHDX; what is read leniently and why is in `docs/vhdx.md`. Nothing in here may
//! panic, allocate by what a file claims without a bound, or trust a length.

pub mod bat;
mod code;
mod field;
mod finding;
mod guid;
pub mod header;
pub mod identifier;
pub mod locator;
pub mod log;
pub mod metadata;
pub mod region;
pub mod track;

pub use bat::{BatEntry, BlockState, Geometry};
pub use code::{Code, Remedy};
pub use finding::{Finding, Severity};
pub use guid::Guid;
pub use header::Header;
pub use locator::ParentLocator;
pub use metadata::Metadata;
pub use region::{Region, RegionTable};

/// The grain of everything that goes through the log: one page of 4 KiB (MS-VHDX 2.3).
pub const PAGE: usize = 4096;

/// [`PAGE`] in the type of file offsets.
pub const PAGE_BYTES: u64 = 4096;

/// BAT entries in one page.
pub const ENTRIES_PER_PAGE: u64 = 512;

/// No object of an image may lie beyond this byte: 128 TiB, twice the largest disk. The format's
/// own bound (16 EiB) would let a small hostile file ask for gigabytes of accounting.
pub const MAX_FILE_OFFSET: u64 = 128 << 40;

/// CRC-32C of `bytes` with the four bytes at `at` taken as zero, as every checksum of the format.
#[must_use]
pub fn checksum(bytes: &[u8], at: usize) -> u32 {
    let (before, rest) = bytes.split_at(at.min(bytes.len()));
    let after = rest.get(4..).unwrap_or_default();
    let crc = crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]);
    crc32c::crc32c_append(crc, after)
}
