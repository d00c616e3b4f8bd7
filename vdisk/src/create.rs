//! Making a new, empty image (MS-VHDX 2, section 13 of our notes in `docs/vhdx.md`).
//!
//! ```text
//!   0      1 MiB             1+L            2+L
//!   | head | log of L MiB    | metadata     | BAT           | blocks (fixed disks only) ...
//! ```
//!
//! The file identifier is written last of all and after a flush: a creation that was cut short
//! leaves no file that anyone takes for an image.

use crate::engine::Mark;
use crate::error::{Error, ErrorKind, Result};
use crate::format::bat::{ENTRY_BYTES, MAX_BLOCK_SIZE, MIN_BLOCK_SIZE};
use crate::format::header::{Header, Slot, VERSION};
use crate::format::identifier::Identifier;
use crate::format::metadata::{Metadata, NewItem};
use crate::format::region::{self, RegionTable};
use crate::format::{BatEntry, Geometry, Guid, ParentLocator, Region};
use crate::storage::Storage;
use crate::units::{BatIndex, BlockIndex, FileOffset, MAX_VIRTUAL_SIZE, MIB};

const MIN_LOG: u64 = 4 * MIB;
const MAX_LOG: u64 = 64 * MIB;
/// A table is written in pieces of this size.
const PIECE_ENTRIES: u64 = MIB / ENTRY_BYTES;

/// What image to make.
pub struct CreateOptions<'a> {
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// Bytes of a block; `None` for [`default_block_size`].
    pub block_size: Option<u32>,
    /// Bytes of a logical sector, 512 or 4096.
    pub logical_sector: u32,
    /// Bytes of a physical sector, 512 or 4096.
    pub physical_sector: u32,
    /// Whether every block is allocated from the start.
    pub fixed: bool,
    /// Bytes of the log, a multiple of 1 MiB up to 64 MiB; `None` for [`default_log_len`].
    pub log_len: Option<u32>,
    /// The mark to leave in the image.
    pub mark: Option<Mark>,
    /// The disk that a differencing disk is built on.
    pub parent: Option<ParentLocator>,
    /// The disk's identity; `None` for a random one.
    pub disk_id: Option<Guid>,
    /// Metadata items beyond those that every image has: those of the parent's disk, in a child.
    pub items: Vec<NewItem>,
    /// Who makes the file, for people to read.
    pub creator: String,
    /// Random bits for GUIDs.
    pub random: &'a mut dyn FnMut() -> u128,
}

impl<'a> CreateOptions<'a> {
    /// A dynamic disk of `virtual_size` bytes with 512-byte logical and 4096-byte physical sectors.
    #[must_use]
    pub fn new(virtual_size: u64, random: &'a mut dyn FnMut() -> u128) -> Self {
        Self {
            virtual_size,
            block_size: None,
            logical_sector: 512,
            physical_sector: 4096,
            fixed: false,
            log_len: None,
            mark: None,
            parent: None,
            disk_id: None,
            items: Vec::new(),
            creator: concat!("Diskferry ", env!("CARGO_PKG_VERSION")).to_owned(),
            random,
        }
    }
}

/// The block size of a disk for which none was asked: 2 MiB up to 64 GiB, 8 MiB up to 1 TiB, else
/// 32 MiB. Small disks stay small on the host; the table of the largest disk stays below 17 MiB.
#[must_use]
pub fn default_block_size(virtual_size: u64) -> u32 {
    match virtual_size {
        0..=0x10_0000_0000 => 2 << 20,
        0x10_0000_0001..=0x100_0000_0000 => 8 << 20,
        _ => 32 << 20,
    }
}

/// Bytes of the log of a new image: three times its table, as a power of two from 4 to 64 MiB.
///
/// One log entry then holds every page of the table that can be pending, and takes at most a third
/// of the log. The log is a hole in the file until it is used.
#[must_use]
pub fn default_log_len(geometry: &Geometry) -> u64 {
    let wanted = geometry.bat_len().saturating_mul(3);
    wanted.next_power_of_two().clamp(MIN_LOG, MAX_LOG)
}

/// Where everything goes.
struct Layout {
    log: Region,
    metadata: Region,
    bat: Region,
    /// Where the first block of a fixed disk goes.
    blocks: u64,
    file_len: u64,
}

impl Layout {
    /// The log has `log_len` bytes, the items of the metadata end within `metadata_len`.
    fn new(geometry: &Geometry, log_len: u64, metadata_len: u64, fixed: bool) -> Self {
        let region = |at: u64, len: u64| Region {
            at: FileOffset(at),
            len,
        };
        let log = region(MIB, log_len);
        let metadata = region(log.end(), metadata_len.next_multiple_of(MIB));
        let bat_len = geometry.bat_len().next_multiple_of(MIB);
        let bat = region(metadata.end(), bat_len);
        let blocks = bat.end();
        let payload = if fixed {
            geometry.payload_blocks() * u64::from(geometry.block_size())
        } else {
            0
        };
        Self {
            log,
            metadata,
            bat,
            blocks,
            file_len: blocks + payload,
        }
    }
}

fn checked_log_len(len: u32) -> Result<u64> {
    let len = u64::from(len);
    if len.is_multiple_of(MIB) && (MIB..=MAX_LOG).contains(&len) {
        return Ok(len);
    }
    Err(Error::invalid(format!(
        "a log has whole mebibytes, 1 to 64 of them, not {len} bytes"
    )))
}

/// Makes an image in an empty storage, durable when it returns. On failure the storage holds
/// nothing that anyone takes for an image; removing it is the caller's business.
///
/// `InvalidArgument` for sizes that cannot be, with what can; `NoSpace` when the host's file system
/// cannot hold a file of that length.
pub fn create(storage: &mut dyn Storage, options: CreateOptions<'_>) -> Result<()> {
    let geometry = validate(&options)?;
    let log_len = match options.log_len {
        None => default_log_len(&geometry),
        Some(len) => checked_log_len(len)?,
    };
    let fixed = options.fixed;
    let random = options.random;
    let metadata = Metadata {
        block_size: geometry.block_size(),
        virtual_size: geometry.virtual_size(),
        logical_sector: options.logical_sector,
        physical_sector: options.physical_sector,
        disk_id: options
            .disk_id
            .unwrap_or_else(|| Guid::from_random(random())),
        leave_allocated: fixed,
        parent: options.parent,
        mark: options.mark,
        items: Vec::new(),
    };
    let metadata = metadata.encode_new(&options.items);
    let layout = Layout::new(&geometry, log_len, metadata.len() as u64, fixed);
    lengthen(storage, layout.file_len)?;
    let failed = |source| Error::io("cannot write the new image", source);
    if fixed {
        write_full_table(storage, &geometry, &layout).map_err(failed)?;
    }
    let header = Header {
        sequence: 1,
        file_write: Guid::from_random(random()),
        data_write: Guid::from_random(random()),
        log_guid: Guid::ZERO,
        log_version: 0,
        version: VERSION,
        log_len: layout.log.len as u32,
        log_at: layout.log.at,
    };
    let identifier = Identifier {
        creator: options.creator,
    };
    write_structures(storage, &layout, (&metadata, header))
        .and_then(|()| storage.write_at(0, &identifier.encode()))
        .and_then(|()| storage.flush())
        .map_err(failed)
}

/// Gives an empty file the length of the image.
fn lengthen(storage: &mut dyn Storage, file_len: u64) -> Result<()> {
    let len = storage
        .len()
        .map_err(|source| Error::io("cannot write the new image", source))?;
    if len != 0 {
        return Err(Error::invalid(format!(
            "a new image is made in an empty file, this one has {len} bytes"
        )));
    }
    storage.set_len(file_len).map_err(|source| {
        let what = format!(
            "the host's file system cannot hold a file of {file_len} bytes, which this image needs"
        );
        match source.kind() {
            std::io::ErrorKind::FileTooLarge | std::io::ErrorKind::InvalidInput => {
                Error::new(ErrorKind::NoSpace, what)
            }
            _ => Error::io(what, source),
        }
    })
}

/// Everything but the identifier, and a flush.
fn write_structures(
    storage: &mut dyn Storage,
    layout: &Layout,
    (metadata, header): (&[u8], Header),
) -> std::io::Result<()> {
    // Space for the identifier: writing it then changes no metadata of the host's file system, and
    // the flush after it needs no second commit of its journal.
    storage.write_at(0, &[0; 4096])?;
    storage.write_at(layout.metadata.at.0, metadata)?;
    let table = RegionTable::new(layout.bat, layout.metadata).encode();
    storage.write_at(region::COPY_ONE.0, &table)?;
    storage.write_at(region::COPY_TWO.0, &table)?;
    let second = Header {
        sequence: header.sequence + 1,
        ..header.clone()
    };
    storage.write_at(Slot::One.at().0, &header.encode())?;
    storage.write_at(Slot::Two.at().0, &second.encode())?;
    storage.flush()
}

/// The table of a fixed disk: every block present, in the order of the disk.
fn write_full_table(
    storage: &mut dyn Storage,
    geometry: &Geometry,
    layout: &Layout,
) -> std::io::Result<()> {
    use crate::format::bat::Slot as Entry;
    let entries = geometry.bat_entries();
    let mut piece = Vec::with_capacity(MIB as usize);
    for first in (0..entries).step_by(PIECE_ENTRIES as usize) {
        piece.clear();
        for index in first..entries.min(first + PIECE_ENTRIES) {
            let entry = match geometry.classify(BatIndex(index)) {
                Entry::Payload(BlockIndex(block)) => {
                    let at = layout.blocks + block * u64::from(geometry.block_size());
                    BatEntry::fully_present(FileOffset(at)).encode()
                }
                Entry::Bitmap(_) | Entry::Unused => 0,
            };
            piece.extend_from_slice(&entry.to_le_bytes());
        }
        storage.write_at(layout.bat.at.0 + first * ENTRY_BYTES, &piece)?;
    }
    Ok(())
}

fn validate(options: &CreateOptions<'_>) -> Result<Geometry> {
    let size = options.virtual_size;
    let sector = options.logical_sector;
    for (name, bytes) in [("logical", sector), ("physical", options.physical_sector)] {
        if bytes != 512 && bytes != 4096 {
            return Err(Error::invalid(format!(
                "a {name} sector has 512 or 4096 bytes, not {bytes}"
            )));
        }
    }
    let block_size = options
        .block_size
        .unwrap_or_else(|| default_block_size(size));
    if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
        return Err(Error::invalid(format!(
            "a block has 1, 2, 4, 8, 16, 32, 64, 128 or 256 MiB, not {block_size} bytes"
        )));
    }
    if size == 0 {
        return Err(Error::invalid("a disk cannot be empty"));
    }
    if size > MAX_VIRTUAL_SIZE {
        return Err(Error::invalid(format!(
            "a VHDX disk has at most 64 TiB ({MAX_VIRTUAL_SIZE} bytes), not {size} bytes"
        )));
    }
    if !size.is_multiple_of(u64::from(sector)) {
        return Err(Error::invalid(format!(
            "a disk consists of whole sectors of {sector} bytes: {size} bytes are not, {} would be",
            size.next_multiple_of(u64::from(sector))
        )));
    }
    if options.fixed && options.parent.is_some() {
        return Err(Error::invalid(
            "a disk with a parent grows as it is written; it cannot be fixed",
        ));
    }
    if let Some(locator) = &options.parent {
        locator.check()?;
    }
    Geometry::new(block_size, sector, size, options.parent.is_some())
}

#[cfg(test)]
pub(crate) mod tests;
