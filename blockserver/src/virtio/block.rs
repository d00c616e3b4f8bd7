//! virtio-blk in bytes: what a device offers, what a request says, what is answered (VIRTIO 1.2, 5.2).
//!
//! Codec. A descriptor chain of a guest becomes a checked [`Request`], or the status byte that refuses
//! it, or the finding that the queue is of no use any more because the place of that byte cannot be
//! told. It never panics, never changes a guest's memory, reads each of its bytes at most once, and
//! keeps at most [`MAX_DESCRIPTORS`] descriptors and [`MAX_RANGES`] ranges, whatever the guest claims.

#![deny(clippy::indexing_slicing)]

use thiserror::Error;
use virtio_bindings::{virtio_blk as blk, virtio_config, virtio_ring};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Bytes of a sector, the unit of all numbers of the protocol whatever the disk's own sectors are
/// (5.2.4).
pub const SECTOR: u64 = 512;
/// The most segments of data in a request (`seg_max`), where the queue has room for so many.
pub const SEG_MAX: u16 = 254;
/// The most descriptors in a chain. A device may have a reasonable limit (2.7.4.1); with this one a
/// chain and its surroundings fit one vectored system call.
pub const MAX_DESCRIPTORS: usize = 1024;
/// The most ranges in a request to discard or to write zeroes.
pub const MAX_RANGES: usize = 64;
/// The most sectors in one of these ranges: 1 GiB.
pub const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Bytes of the device's name for itself (`VIRTIO_BLK_T_GET_ID`).
pub const SERIAL_LEN: usize = blk::VIRTIO_BLK_ID_BYTES as usize;
/// Bytes of the configuration space up to the last field that is offered (5.2.4).
pub const CONFIG_LEN: usize = 60;

/// Bytes of a request's header, and of a range in a request.
const HEADER: usize = 16;
/// The flag of a range that allows to give its space back.
const UNMAP: u32 = blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
/// The physical sector that the disk claims, as a power of two of bytes: what no guest should tear.
const PHYSICAL_SHIFT: u32 = 12;
/// The unit of a good request, in bytes.
const BEST_IO: u32 = 1 << 20;

/// Feature bits (5.2.3, 6) as masks of the 64 that a driver negotiates.
pub mod feature {
    use super::{blk, virtio_config, virtio_ring};

    /// The most segments are told.
    pub const SEG_MAX: u64 = 1 << blk::VIRTIO_BLK_F_SEG_MAX;
    /// The device is read-only.
    pub const RO: u64 = 1 << blk::VIRTIO_BLK_F_RO;
    /// The size of a sector is told.
    pub const BLK_SIZE: u64 = 1 << blk::VIRTIO_BLK_F_BLK_SIZE;
    /// Writes may be volatile until a flush. Whoever does not take it gets every write durable.
    pub const FLUSH: u64 = 1 << blk::VIRTIO_BLK_F_FLUSH;
    /// What sizes are good is told.
    pub const TOPOLOGY: u64 = 1 << blk::VIRTIO_BLK_F_TOPOLOGY;
    /// There is more than one queue.
    pub const MQ: u64 = 1 << blk::VIRTIO_BLK_F_MQ;
    /// Ranges can be discarded.
    pub const DISCARD: u64 = 1 << blk::VIRTIO_BLK_F_DISCARD;
    /// Ranges can be made zero.
    pub const WRITE_ZEROES: u64 = 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES;
    /// A descriptor may refer to a table of descriptors (2.7.5.3).
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// Notifications are asked for by index (2.7.7, 2.7.10).
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// The device is not a legacy one.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
}

/// What a driver learns of a device before it uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// Size of the disk in bytes. Of one that is no multiple of [`SECTOR`] the whole sectors are served.
    pub size: u64,
    /// Bytes of a logical sector of the disk: a power of two, at least [`SECTOR`].
    pub logical_sector: u32,
    /// Whether changes are refused.
    pub read_only: bool,
    /// How many queues there are, at least one.
    pub queues: u16,
    /// The most entries of each.
    pub queue_size: u16,
}

impl BlockDevice {
    /// What is offered (5.2.3).
    #[must_use]
    pub fn features(&self) -> u64 {
        let always = feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::VERSION_1;
        let changes = if self.read_only {
            feature::RO
        } else {
            feature::DISCARD | feature::WRITE_ZEROES
        };
        let many = if self.queues > 1 { feature::MQ } else { 0 };
        always | changes | many
    }

    /// The configuration space (5.2.4). Whatever is read behind it is zero.
    #[must_use]
    pub fn config(&self) -> [u8; CONFIG_LEN] {
        let sector = self.logical_sector.max(SECTOR as u32);
        // Two descriptors of a chain are the header and the status.
        let segments = SEG_MAX.min(self.queue_size.saturating_sub(2)).max(1);
        let physical_exp = PHYSICAL_SHIFT.saturating_sub(sector.trailing_zeros()) as u8;
        let (ranges, range_sectors) = if self.read_only {
            (0, 0)
        } else {
            (MAX_RANGES as u32, MAX_RANGE_SECTORS)
        };
        let mut config = Vec::with_capacity(CONFIG_LEN);
        config.extend_from_slice(&capacity(self.size).to_le_bytes());
        // size_max: not offered.
        config.extend_from_slice(&0u32.to_le_bytes());
        config.extend_from_slice(&u32::from(segments).to_le_bytes());
        // geometry: not offered.
        config.extend_from_slice(&[0; 4]);
        config.extend_from_slice(&sector.to_le_bytes());
        // physical_block_exp, alignment_offset, min_io_size, opt_io_size, the last two in sectors.
        config.extend_from_slice(&[physical_exp, 0]);
        config.extend_from_slice(&(1u16 << physical_exp.min(15)).to_le_bytes());
        config.extend_from_slice(&(BEST_IO / sector).to_le_bytes());
        // writeback: CONFIG_WCE is not offered.
        config.extend_from_slice(&[0; 2]);
        config.extend_from_slice(&self.queues.max(1).to_le_bytes());
        config.extend_from_slice(&range_sectors.to_le_bytes());
        config.extend_from_slice(&ranges.to_le_bytes());
        // discard_sector_alignment, in units of 512 bytes.
        config.extend_from_slice(&(sector.max(1 << PHYSICAL_SHIFT) / SECTOR as u32).to_le_bytes());
        config.extend_from_slice(&range_sectors.to_le_bytes());
        config.extend_from_slice(&ranges.to_le_bytes());
        config.extend_from_slice(&[u8::from(!self.read_only), 0, 0, 0]);
        let mut bytes = [0; CONFIG_LEN];
        bytes
            .iter_mut()
            .zip(config)
            .for_each(|(to, from)| *to = from);
        bytes
    }
}

/// The name of a disk as `VIRTIO_BLK_T_GET_ID` answers it: cut or filled with zeros to
/// [`SERIAL_LEN`] bytes (5.2.6).
#[must_use]
pub fn serial(name: &str) -> [u8; SERIAL_LEN] {
    let mut bytes = [0; SERIAL_LEN];
    let from = name.bytes();
    bytes.iter_mut().zip(from).for_each(|(to, from)| *to = from);
    bytes
}

/// Whole sectors of a disk of so many bytes.
#[must_use]
pub fn capacity(size: u64) -> u64 {
    size / SECTOR
}

/// What a request ends with (5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was done.
    Ok,
    /// It was not, or not whole.
    IoError,
    /// The device has no such request.
    Unsupported,
}

impl Status {
    /// The byte that says it.
    #[must_use]
    pub fn to_wire(self) -> u8 {
        let code = match self {
            Self::Ok => blk::VIRTIO_BLK_S_OK,
            Self::IoError => blk::VIRTIO_BLK_S_IOERR,
            Self::Unsupported => blk::VIRTIO_BLK_S_UNSUPP,
        };
        code as u8
    }
}

/// Bytes of a guest's memory that a descriptor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The guest's address of the first byte.
    pub address: u64,
    /// How many.
    pub len: u32,
}

/// A range of the disk in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRange {
    /// First byte.
    pub offset: u64,
    /// How many; none is possible.
    pub len: u64,
    /// Whether its space may be given back.
    pub unmap: bool,
}

/// What a request asks for. What it moves is in [`Chain::data`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Fill the data from the disk, from this byte on.
    Read(u64),
    /// Write the data to the disk, from this byte on.
    Write(u64),
    /// Make every write that was answered durable.
    Flush,
    /// These ranges are not needed any more.
    Discard(Vec<DiskRange>),
    /// Make these ranges read as zero.
    WriteZeroes(Vec<DiskRange>),
    /// Fill the data with the device's serial.
    Identify,
}

/// A request that keeps the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub what: What,
    /// Bytes of data that it moves: whole sectors, but for [`What::Identify`].
    pub len: u64,
    /// Bytes that the device may write before the status.
    pub room: u64,
}

/// What became of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// To be carried out.
    Request(Request),
    /// To be answered with this at once.
    Refused(Status),
}

/// Why a queue cannot go on: the device needs a reset (2.1, `DEVICE_NEEDS_RESET`).
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// A descriptor of it cannot be read, loops, or is longer than 2^32 bytes (2.7.5.2, 2.7.5.3).
    #[error("a descriptor chain has no end")]
    Endless,
    /// It has more than the device takes; a disk takes [`MAX_DESCRIPTORS`].
    #[error("a descriptor chain has too many descriptors")]
    TooLong,
    /// The driver claims to have made more chains available than there are entries (2.7.13.3).
    #[error("the available ring runs ahead of the queue")]
    Index,
    /// A part of the queue is not in the guest's memory.
    #[error("the queue is not in the guest's memory")]
    Memory,
    /// What the driver kicks with cannot be read.
    #[error("the kick cannot be read")]
    Kick,
    /// There is no byte of memory that it could be answered in.
    #[error("a descriptor chain has no place for its status")]
    NoStatus,
    /// It does not go the way that its queue goes, or cannot hold what begins it.
    #[error("a descriptor chain is not of the kind that its queue is for")]
    Unfit,
}

/// What a request is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Bytes of the disk as it is now.
    pub size: u64,
    /// Whether changes are refused.
    pub read_only: bool,
    /// What the driver negotiated.
    pub features: u64,
}

/// A descriptor chain taken apart. Used again for the next one, so that it costs no memory.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    /// Where the status goes.
    status_at: u64,
    /// Whether something writable came before something readable.
    disordered: bool,
    /// Whether the data is what the device writes.
    to_guest: bool,
}

impl Chain {
    /// Take a chain apart and find what it asks for.
    ///
    /// # Errors
    /// The place of its status is not to be found, so that it cannot even be refused.
    pub fn parse(
        &mut self,
        memory: &GuestMemoryMmap<()>,
        descriptors: impl Iterator<Item = Descriptor>,
        rules: &Rules,
    ) -> Result<Parsed, Fault> {
        self.gather(descriptors)?;
        self.find_status(memory)?;
        let found = self.request(memory, rules);
        Ok(found.map_or_else(Parsed::Refused, Parsed::Request))
    }

    /// Where the status byte of the chain that was parsed last goes.
    #[must_use]
    pub fn status_at(&self) -> u64 {
        self.status_at
    }

    /// The data of the request that was parsed last: header and status are not in it.
    #[must_use]
    pub fn data(&self) -> &[Segment] {
        if self.to_guest {
            &self.writable
        } else {
            &self.readable
        }
    }

    fn gather(&mut self, descriptors: impl Iterator<Item = Descriptor>) -> Result<(), Fault> {
        self.readable.clear();
        self.writable.clear();
        (self.disordered, self.to_guest) = (false, false);
        let (mut count, mut ended) = (0, false);
        for descriptor in descriptors {
            count += 1;
            if count > MAX_DESCRIPTORS {
                return Err(Fault::TooLong);
            }
            ended = !descriptor.has_next();
            let (address, len) = (descriptor.addr().0, descriptor.len());
            if len == 0 {
                continue;
            }
            if descriptor.is_write_only() {
                self.writable.push(Segment { address, len });
            } else {
                self.disordered |= !self.writable.is_empty();
                self.readable.push(Segment { address, len });
            }
        }
        // The walk also ends at a descriptor that is not there.
        if ended { Ok(()) } else { Err(Fault::Endless) }
    }

    /// The status is the last byte that the device may write; how it is framed is the driver's
    /// business (2.7.4.1).
    fn find_status(&mut self, memory: &GuestMemoryMmap<()>) -> Result<(), Fault> {
        let last = self.writable.last_mut().ok_or(Fault::NoStatus)?;
        last.len -= 1;
        let at = last.address.checked_add(u64::from(last.len));
        self.status_at = at
            .filter(|at| memory.address_in_range(GuestAddress(*at)))
            .ok_or(Fault::NoStatus)?;
        if last.len == 0 {
            self.writable.pop();
        }
        Ok(())
    }

    fn request(&mut self, memory: &GuestMemoryMmap<()>, rules: &Rules) -> Result<Request, Status> {
        let all = self.readable.iter().chain(&self.writable);
        let overflow = |s: &Segment| s.address.checked_add(u64::from(s.len)).is_none();
        if self.disordered || all.into_iter().any(overflow) {
            return Err(Status::IoError);
        }
        let header = self.take_readable::<HEADER>(memory)?;
        let (kind, rest) = take::<4>(&header)?;
        // The second word is reserved, once a priority.
        let (_, rest) = take::<4>(rest)?;
        let (sector, _) = take::<8>(rest)?;
        let sector = u64::from_le_bytes(sector);
        let (incoming, outgoing) = (total(&self.readable), total(&self.writable));
        let room = outgoing;
        let nothing = |what| Request { what, len: 0, room };
        match u32::from_le_bytes(kind) {
            blk::VIRTIO_BLK_T_IN if incoming == 0 => {
                self.to_guest = true;
                let offset = self.moved(sector, outgoing, rules)?;
                Ok(Request {
                    what: What::Read(offset),
                    len: outgoing,
                    room,
                })
            }
            blk::VIRTIO_BLK_T_OUT if outgoing == 0 && !rules.read_only => {
                let offset = self.moved(sector, incoming, rules)?;
                Ok(Request {
                    what: What::Write(offset),
                    len: incoming,
                    room,
                })
            }
            // Data is not forbidden here, and means nothing (5.2.6.1).
            blk::VIRTIO_BLK_T_FLUSH => Ok(nothing(What::Flush)),
            blk::VIRTIO_BLK_T_DISCARD if rules.features & feature::DISCARD != 0 => {
                let ranges = self.ranges(memory, rules, 0)?;
                Ok(nothing(What::Discard(ranges)))
            }
            blk::VIRTIO_BLK_T_WRITE_ZEROES if rules.features & feature::WRITE_ZEROES != 0 => {
                let ranges = self.ranges(memory, rules, UNMAP)?;
                Ok(nothing(What::WriteZeroes(ranges)))
            }
            blk::VIRTIO_BLK_T_GET_ID if incoming == 0 && outgoing > 0 => {
                self.to_guest = true;
                let len = outgoing.min(SERIAL_LEN as u64);
                Ok(Request {
                    what: What::Identify,
                    len,
                    room,
                })
            }
            blk::VIRTIO_BLK_T_IN | blk::VIRTIO_BLK_T_OUT | blk::VIRTIO_BLK_T_GET_ID => {
                Err(Status::IoError)
            }
            _ => Err(Status::Unsupported),
        }
    }

    /// The first byte on the disk of a request that moves `len` bytes, if it may.
    fn moved(&self, sector: u64, len: u64, rules: &Rules) -> Result<u64, Status> {
        let whole = len.is_multiple_of(SECTOR) && self.data().len() <= usize::from(SEG_MAX);
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        if whole && fits(offset, len, rules) {
            Ok(offset)
        } else {
            Err(Status::IoError)
        }
    }

    /// The ranges of a request to discard or to write zeroes, in which these flags are known.
    fn ranges(
        &mut self,
        memory: &GuestMemoryMmap<()>,
        rules: &Rules,
        known: u32,
    ) -> Result<Vec<DiskRange>, Status> {
        let bytes = total(&self.readable);
        let count = bytes / HEADER as u64;
        let sound = bytes.is_multiple_of(HEADER as u64)
            && (1..=MAX_RANGES as u64).contains(&count)
            && self.writable.is_empty();
        if rules.read_only || !sound {
            return Err(Status::IoError);
        }
        let mut ranges = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let range = self.take_readable::<HEADER>(memory)?;
            let (sector, rest) = take::<8>(&range)?;
            let (sectors, rest) = take::<4>(rest)?;
            let (flags, _) = take::<4>(rest)?;
            let flags = u32::from_le_bytes(flags);
            if flags & !known != 0 {
                return Err(Status::Unsupported);
            }
            let sectors = u32::from_le_bytes(sectors);
            let len = u64::from(sectors) * SECTOR;
            let offset = u64::from_le_bytes(sector).checked_mul(SECTOR);
            let offset = offset.ok_or(Status::IoError)?;
            if sectors > MAX_RANGE_SECTORS || !fits(offset, len, rules) {
                return Err(Status::IoError);
            }
            ranges.push(DiskRange {
                offset,
                len,
                unmap: flags & UNMAP != 0,
            });
        }
        Ok(ranges)
    }

    /// Take so many bytes off the front of what the device may read.
    fn take_readable<const N: usize>(
        &mut self,
        memory: &GuestMemoryMmap<()>,
    ) -> Result<[u8; N], Status> {
        let mut bytes = [0; N];
        let (mut filled, mut used) = (0, 0);
        for segment in &mut self.readable {
            let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) else {
                break;
            };
            let here = room.len().min(segment.len as usize);
            let target = room.get_mut(..here).ok_or(Status::IoError)?;
            memory
                .read_slice(target, GuestAddress(segment.address))
                .map_err(|_| Status::IoError)?;
            filled += here;
            segment.address = segment.address.saturating_add(here as u64);
            segment.len -= here as u32;
            used += usize::from(segment.len == 0);
        }
        self.readable.drain(..used.min(self.readable.len()));
        if filled == N {
            Ok(bytes)
        } else {
            Err(Status::IoError)
        }
    }
}

impl Request {
    /// What the used ring says was written: bytes from the first one that the device may write on
    /// without a gap, so that of a read that failed not even the status counts (2.7.8.2).
    #[must_use]
    pub fn written(&self, status: Status) -> u32 {
        let data = match (&self.what, status) {
            (What::Read(_) | What::Identify, Status::Ok) => self.len,
            _ => 0,
        };
        let status = u64::from(data == self.room);
        u32::try_from(data + status).unwrap_or(u32::MAX)
    }
}

/// How many bytes the segments have together.
fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Whether a range lies inside the whole sectors of the disk.
fn fits(offset: u64, len: u64, rules: &Rules) -> bool {
    let end = capacity(rules.size) * SECTOR;
    offset.checked_add(len).is_some_and(|last| last <= end)
}

/// The first bytes, and those that follow.
fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), Status> {
    let (first, rest) = bytes.split_first_chunk::<N>().ok_or(Status::IoError)?;
    Ok((*first, rest))
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
