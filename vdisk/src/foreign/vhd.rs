//! VHD, the format of Virtual PC and of Hyper-V before VHDX. Numbers are big-endian.
//!
//! ```text
//!   fixed:    | disk | footer |
//!   dynamic:  | footer | header | table, anywhere | blocks: bitmap, data ... | footer |
//! ```
//!
//! **The size of the disk** is the footer's current size, as Hyper-V and libvhdi have it. Its geometry,
//! from which Virtual PC took a size that is at most as large, is not looked at.

use super::array;
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a footer, at the end of every image and at the beginning of a dynamic one.
pub const FOOTER: usize = 512;
/// Bytes of the header of a dynamic disk.
pub const HEADER: usize = 1024;
/// Bytes of a sector; places in the file are counted in these.
pub const SECTOR: u64 = 512;
/// The first eight bytes of a footer.
pub const COOKIE: [u8; 8] = *b"conectix";

const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// The only major version there is, in the upper half.
const MAJOR: u32 = 1;
/// An entry of the table that names no block.
const UNUSED: u32 = u32::MAX;
/// Blocks beyond this are not made by anybody, and would let a small file ask for much memory.
const MAX_BLOCK: u32 = 256 << 20;
/// A bitmap of one byte; smaller blocks have none that makes sense.
const MIN_BLOCK: u32 = 4096;
/// A table counts sectors in 32 bits, so no dynamic disk is larger.
const MAX_DYNAMIC: u64 = SECTOR << 32;

/// How the bytes of a disk are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One after the other.
    Fixed,
    /// In blocks, for each of which there is room only once it was written; the header is at this byte
    /// of the file.
    Dynamic(u64),
}

/// What is known of a disk from its footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// How the bytes are kept.
    pub kind: Kind,
    /// Bytes of the disk, whole sectors.
    pub size: u64,
}

impl Footer {
    /// Reads a footer. `Unsupported` if the disk is built on another one.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if array::<8>(bytes, 0)? != COOKIE {
            return Err(Error::corrupt("there is no VHD footer"));
        }
        checked(bytes, FOOTER, 64, "footer")?;
        version(bytes, 12, "footer")?;
        let size = u64::from_be_bytes(array(bytes, 48)?);
        if size == 0 || !size.is_multiple_of(SECTOR) {
            let what = format!("the footer gives the disk {size} bytes, not whole sectors");
            return Err(Error::corrupt(what));
        }
        let kind = match u32::from_be_bytes(array(bytes, 60)?) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic(u64::from_be_bytes(array(bytes, 16)?)),
            4 => {
                let what = "is a differencing VHD, which holds only what differs from another disk; \
                    merge it into its parent first";
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
            other => return Err(Error::corrupt(format!("has the unknown type {other}"))),
        };
        if kind != Kind::Fixed && size > MAX_DYNAMIC {
            let what = format!("a dynamic disk of {size} bytes cannot be");
            return Err(Error::corrupt(what));
        }
        Ok(Self { kind, size })
    }
}

/// Where the blocks of a dynamic disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// First byte of the table in the file.
    pub table: u64,
    /// Bytes of a block, a power of two.
    pub block: u64,
    /// Blocks of the disk.
    pub blocks: u64,
}

impl Header {
    /// Reads the header of the disk that `footer` tells of, in a file of `file_len` bytes.
    pub fn decode(bytes: &[u8], footer: &Footer, file_len: u64) -> Result<Self> {
        if array::<8>(bytes, 0)? != HEADER_COOKIE {
            return Err(Error::corrupt("there is no header of a dynamic disk"));
        }
        checked(bytes, HEADER, 36, "header")?;
        version(bytes, 24, "header")?;
        let table = u64::from_be_bytes(array(bytes, 16)?);
        let entries = u32::from_be_bytes(array(bytes, 28)?);
        let block = u32::from_be_bytes(array(bytes, 32)?);
        if !block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&block) {
            return Err(Error::corrupt(format!("blocks of {block} bytes cannot be")));
        }
        let block = u64::from(block);
        let blocks = footer.size.div_ceil(block);
        if u64::from(entries) < blocks {
            let what = format!("the table has {entries} entries, the disk {blocks} blocks");
            return Err(Error::corrupt(what));
        }
        let end = table.checked_add(blocks * 4);
        if end.is_none_or(|end| end > file_len) {
            return Err(Error::corrupt("the table is beyond the end of the file").at(table));
        }
        Ok(Self {
            table,
            block,
            blocks,
        })
    }

    /// Bytes of the bitmap in front of each block: a bit for each sector, in whole sectors.
    #[must_use]
    pub fn bitmap(&self) -> u64 {
        (self.block / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    /// Where in the file the bitmap of a block lies for which the table holds `entry`; `None` if the
    /// block was never written. `used` bytes of the block are within the disk and must be in the file.
    pub fn place(&self, entry: [u8; 4], used: u64, file_len: u64) -> Result<Option<u64>> {
        let sector = u32::from_be_bytes(entry);
        if sector == UNUSED {
            return Ok(None);
        }
        let at = u64::from(sector) * SECTOR;
        if at < FOOTER as u64 || at + self.bitmap() + used.min(self.block) > file_len {
            return Err(Error::corrupt("a block lies outside of the file").at(at));
        }
        Ok(Some(at))
    }
}

/// Whether the block with this bitmap holds its `sector`; one that it does not hold reads as zero.
#[must_use]
pub fn holds(bitmap: &[u8], sector: u64) -> bool {
    let byte = usize::try_from(sector / 8).ok();
    let byte = byte.and_then(|at| bitmap.get(at));
    byte.is_some_and(|byte| byte & (0x80 >> (sector % 8)) != 0)
}

/// Refuses a structure whose checksum, at `at`, is wrong: the complement of the sum of its other bytes.
fn checked(bytes: &[u8], len: usize, at: usize, what: &str) -> Result<()> {
    let said = u32::from_be_bytes(array(bytes, at)?);
    let sum = |bytes: Option<&[u8]>| {
        let bytes = bytes.unwrap_or_default().iter();
        bytes.fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
    };
    let whole = bytes.get(..len);
    if whole.is_none() {
        return Err(Error::corrupt(format!("the {what} is cut off")));
    }
    let found = !sum(whole).wrapping_sub(sum(bytes.get(at..at + 4)));
    if found != said {
        let what = format!("the checksum of the {what} is {found:#x} and should be {said:#x}");
        return Err(Error::corrupt(what));
    }
    Ok(())
}

fn version(bytes: &[u8], at: usize, what: &str) -> Result<()> {
    let version = u32::from_be_bytes(array(bytes, at)?);
    if version >> 16 != MAJOR {
        let what = format!("the {what} is of version {version:#x}, which nobody specified");
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seal(bytes: &mut [u8], at: usize) {
        bytes[at..at + 4].fill(0);
        let sum = bytes.iter().fold(0_u32, |sum, byte| sum + u32::from(*byte));
        bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    }

    fn footer(kind: u32, size: u64) -> [u8; FOOTER] {
        let mut bytes = [0; FOOTER];
        bytes[..8].copy_from_slice(&COOKIE);
        bytes[12..16].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
        bytes[16..24].copy_from_slice(&512_u64.to_be_bytes());
        bytes[48..56].copy_from_slice(&size.to_be_bytes());
        bytes[60..64].copy_from_slice(&kind.to_be_bytes());
        seal(&mut bytes, 64);
        bytes
    }

    fn header(table: u64, entries: u32, block: u32) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&HEADER_COOKIE);
        bytes[16..24].copy_from_slice(&table.to_be_bytes());
        bytes[24..28].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
        bytes[28..32].copy_from_slice(&entries.to_be_bytes());
        bytes[32..36].copy_from_slice(&block.to_be_bytes());
        seal(&mut bytes, 36);
        bytes
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(Footer::decode(&footer(2, 1024)).unwrap().kind, Kind::Fixed);
        let refused = |bytes: &[u8]| Footer::decode(bytes).unwrap_err().kind();
        assert_eq!(refused(&footer(4, 1024)), ErrorKind::Unsupported);
        for bad in [
            footer(7, 1024),
            footer(2, 0),
            footer(2, 1000),
            footer(3, 1 << 42),
        ] {
            assert_eq!(refused(&bad), ErrorKind::Corrupt);
        }
        let mut flipped = footer(2, 1024);
        flipped[50] ^= 1;
        assert_eq!(refused(&flipped), ErrorKind::Corrupt);
        assert_eq!(refused(&footer(2, 1024)[..511]), ErrorKind::Corrupt);
        let disk = Footer::decode(&footer(3, 1 << 30)).unwrap();
        let whole = Header::decode(&header(1536, 512, 2 << 20), &disk, 1 << 20).unwrap();
        assert_eq!((whole.blocks, whole.bitmap()), (512, 512));
        for (table, entries, block) in [
            (1536, 511, 2 << 20),
            (1536, 512, 0),
            (1536, 512, 3 << 20),
            (1536, u32::MAX, 1 << 31),
            (u64::MAX - 5, 512, 2 << 20),
            ((1 << 20) - 2047, 512, 2 << 20),
        ] {
            let bytes = header(table, entries, block);
            assert!(
                Header::decode(&bytes, &disk, 1 << 20).is_err(),
                "{table} {entries}"
            );
        }
        assert_eq!(whole.place([0xff; 4], 512, 4096).unwrap(), None);
        assert_eq!(whole.place([0, 0, 0, 4], 512, 4096).unwrap(), Some(2048));
        assert!(whole.place([0, 0, 0, 7], 512, 4096).is_err());
        assert!(whole.place([0; 4], 512, 1 << 30).is_err());
    }

    #[test]
    fn bits_are_counted_from_the_highest() {
        let bitmap = [0x80, 0x01];
        let held: Vec<u64> = (0..40).filter(|sector| holds(&bitmap, *sector)).collect();
        assert_eq!(held, [0, 15]);
    }

    proptest! {
        #[test]
        fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..1100), len: u64) {
            let _ = Footer::decode(&bytes);
            let mut signed = bytes;
            if let Some(start) = signed.first_chunk_mut::<8>() {
                *start = COOKIE;
            }
            if signed.len() >= HEADER {
                seal(&mut signed[..FOOTER], 64);
                let _ = Footer::decode(&signed);
                signed[..8].copy_from_slice(&HEADER_COOKIE);
                seal(&mut signed[..HEADER], 36);
            }
            let disk = Footer { kind: Kind::Dynamic(0), size: 1 << 40 };
            if let Ok(header) = Header::decode(&signed, &disk, len) {
                let _ = header.place([1, 2, 3, 4], len, len);
            }
        }
    }
}
