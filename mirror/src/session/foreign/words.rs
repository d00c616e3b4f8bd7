//! The words in which the machine, its driver and what reaches the server talk.

use bytes::Bytes;
use vdisk::engine::{Extent, Mark};

use crate::record::Ownership;
use crate::session::{Command, OpId};
use crate::timetable::WeekMinute;

/// The longest request of a client that is sent on after the switchover, in bytes.
const LONGEST_REQUEST: u32 = 32 << 20;
/// The unit in which clients may ask, at the least, in bytes.
const SMALLEST_UNIT: u32 = 512;

/// What a server told of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignExport {
    /// Bytes of the disk there.
    pub size: u64,
    /// The smallest unit of a request, bytes.
    pub min_block: u32,
    /// The longest write, bytes.
    pub max_payload: u32,
    /// What it can do.
    pub can: ForeignAbilities,
}

/// What a server can do with an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a protocol")]
pub struct ForeignAbilities {
    /// Be written to.
    pub write: bool,
    /// Say when what was written is durable.
    pub flush: bool,
    /// Make a range zero without being sent zeroes.
    pub zero: bool,
    /// Say which parts are zero.
    pub tell: bool,
}

impl ForeignExport {
    /// Whether a disk of `size` bytes can be moved there, `without_flush` if its user said so; if not, why.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn takes(&self, size: u64, without_flush: bool) -> Result<(), String> {
        if !self.can.write {
            return Err("the export is read-only".into());
        }
        if self.size < size {
            return Err(format!(
                "the export has {} bytes, the disk {size}",
                self.size
            ));
        }
        if self.min_block > SMALLEST_UNIT {
            return Err(format!(
                "the export can only be written in units of {} bytes, clients here may write {SMALLEST_UNIT}",
                self.min_block
            ));
        }
        if self.max_payload < LONGEST_REQUEST {
            return Err(format!(
                "the server takes at most {} bytes in a request, clients here may write {LONGEST_REQUEST}",
                self.max_payload
            ));
        }
        if !self.can.flush && !without_flush {
            return Err(
                "the server has no flush: what it has could be gone after a crash \
                 (--without-flush moves the disk there all the same)"
                    .into(),
            );
        }
        Ok(())
    }
}

/// What is asked of the server. Offsets and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForeignOrder {
    /// Say whether all of a range reads as zero.
    Look(u64, u64),
    /// Make a range read as zero.
    Zero(u64, u64),
    /// Write.
    Write(u64, Bytes),
    /// Make durable what was answered before.
    Flush,
}

/// What the server answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignAnswer {
    /// It is done; or, to a look, not all of it is zero, or that is not known.
    Done,
    /// All of it reads as zero.
    IsZero,
}

/// What happened.
#[derive(Debug)]
pub enum ForeignEvent {
    /// Time passed, or the tracker called its waker.
    Tick,
    /// Another minute has begun by the host's clock.
    Minute(WeekMinute),
    /// The connections of that number are there, or cannot be made.
    Opened(u64, Result<ForeignExport, String>),
    /// One of the connections of that number ended: all of them are of no use.
    Lost(u64, String),
    /// The server answered, over the connections of that number; an error is what it said.
    Answered(u64, OpId, Result<ForeignAnswer, String>),
    /// The tap is on and every change that began before it has completed.
    Attached,
    /// A read of this host's disk ended.
    Read(OpId, std::io::Result<Bytes>),
    /// A question about allocation ended.
    Status(OpId, std::io::Result<Vec<Extent>>),
    /// No request is in flight, new ones wait. For the [`ForeignAction::Hold`] of that attempt.
    Held(u64),
    /// The image is parked as asked, or could not be.
    Parked(std::io::Result<()>),
    /// The record is durable; on failure it may or may not be.
    Persisted(std::io::Result<()>),
    /// The user wants something.
    Command(Command),
}

/// What to do.
#[derive(Debug)]
pub enum ForeignAction {
    /// Connect to the server; these connections have that number.
    Open(u64),
    /// Let go of the connections.
    Close,
    /// Ask the server.
    Ask(OpId, ForeignOrder),
    /// See every change of the disk.
    AttachTap,
    /// No more.
    DetachTap,
    /// Read this host's disk: offset and length.
    Read(OpId, u64, u32),
    /// What is allocated on this host's disk: offset and length.
    Status(OpId, u64, u64),
    /// Hold clients' requests.
    Hold(u64),
    /// Let them go on here.
    Release,
    /// Close the image with this mark, or without.
    Park(Option<Mark>),
    /// Write the record.
    Persist(Ownership),
    /// Send clients' requests to the server from now on.
    Forward,
}
