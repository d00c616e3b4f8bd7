//! The words in which the target and its driver talk.

use bytes::Bytes;
use uuid::Uuid;
use vdisk::engine::Mark;

use crate::arbiter::{ArbiterName, Ballot, Side};
use crate::record::Ownership;
use crate::session::{ConnId, OpId};
use crate::wire::{Content, DiskDescription, Group, Message, WayHome};

/// What a target offers.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// The most bytes of records, and of chunks, that may be on the way to it.
    pub window: u64,
    /// Where clients will find the disk once it is served, if that is known.
    pub address: Option<String>,
    /// Where to find the arbiter that may be asked for a disk that is offered, if there is one.
    pub arbiter: Option<String>,
    /// Whether a session may begin here at all.
    pub admission: Admission,
    /// The image is in use, and never made anew: what cannot be gone on from is refused.
    pub in_use: bool,
    /// The session and the number of this disk's last cut, as the record of its group says, if it is of one.
    pub cut: Option<(Uuid, u64)>,
    /// How many images there are in which blocks of the disk may be, at the same place.
    pub templates: usize,
    /// The rule that a test breaks.
    #[cfg(test)]
    pub(crate) sabotage: Option<crate::session::Sabotage>,
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            window: 64 << 20,
            address: None,
            arbiter: None,
            admission: Admission::default(),
            in_use: false,
            cut: None,
            templates: 0,
            #[cfg(test)]
            sabotage: None,
        }
    }
}

/// What a site takes under a disk's name. It is asked when a session begins with the disk; one that has begun is let go on, whatever
/// the site takes now: what is half-way has to come to an end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// The site was told which disks to expect, and this is none of them.
    pub unexpected: bool,
    /// The largest disk, in bytes.
    pub largest: Option<u64>,
}

impl Admission {
    /// Why that disk is not taken, if it is not.
    #[must_use]
    pub fn refuses(&self, disk: &DiskDescription) -> Option<String> {
        if self.unexpected {
            let what = "this site expects other disks, none of that name: its `diskferry receive` is told by --expect";
            return Some(what.to_owned());
        }
        let largest = self.largest.filter(|largest| disk.size > *largest)?;
        Some(format!(
            "the disk has {} bytes, this site takes disks of at most {largest}: its `diskferry receive` is told by --max-disk",
            disk.size
        ))
    }
}

/// How far a journal is carried over into its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upto {
    /// Up to the last place that is sealed.
    Sealed,
    /// Up to the place that was sealed with that number; nothing, if the journal has none, since it was carried over then.
    Cut(u64),
    /// Not at all: it is opened.
    Nothing,
}

/// What happened.
#[derive(Debug)]
pub enum TargetEvent {
    /// Time passed, or the machine was just made.
    Tick,
    /// A message came. The first on a connection is a greeting.
    Message(ConnId, Message),
    /// What came is no message.
    Malformed(ConnId, crate::wire::DecodeError),
    /// A connection ended.
    Closed(ConnId),
    /// The disk is open as asked.
    Opened(std::io::Result<()>),
    /// An operation with that name ended.
    Disk(OpId, std::io::Result<()>),
    /// A read with that name ended.
    Read(OpId, std::io::Result<Bytes>),
    /// A read of a template with that name ended: what that has there, which may be less.
    OfTemplate(OpId, std::io::Result<Bytes>),
    /// Whether a part is zero.
    Zeroes(OpId, std::io::Result<bool>),
    /// The record is durable; on failure it may or may not be.
    Persisted(std::io::Result<()>),
    /// The image is parked without a mark.
    Parked(std::io::Result<()>),
    /// Whether the arbiter is there, for that attempt.
    Reached(u64, std::io::Result<()>),
    /// What the arbiter says of that, or that it cannot be asked.
    Decided(Ballot, std::io::Result<Side>),
    /// The record of this disk's group says, durably, that every disk of it has that cut, this one in the journal of that
    /// session.
    Cut(Uuid, u64),
    /// The group names no other cut of this disk than this one, which is in its durable record, with the session.
    Left(Option<(Uuid, u64)>),
    /// The disk is served, at that address.
    Serving(std::io::Result<String>),
}

/// What to do.
#[derive(Debug)]
pub enum TargetAction {
    /// Send a message.
    Send(ConnId, Message),
    /// Close a connection after what was sent; nothing more is heard of it.
    Close(ConnId),
    /// Open the disk's image, marked incomplete. `fresh`: create it anew, empty, durably, in place
    /// of what may be there.
    Open {
        /// What to create or to find.
        description: Option<DiskDescription>,
        /// Whether to begin from an empty disk.
        fresh: bool,
    },
    /// Read from the disk: offset, length.
    Read(OpId, u64, u32),
    /// Read from a template, as far as that goes.
    ReadTemplate {
        /// For which operation.
        op: OpId,
        /// Which of them, from 0.
        number: usize,
        /// First byte.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// Find out whether all of a part reads as zero, which may be long and mostly not allocated: offset, length.
    Zeroes(OpId, u64, u64),
    /// Write bytes at an offset.
    Write(OpId, u64, Bytes),
    /// Make bytes read as zero: offset, length.
    Zero(OpId, u64, u64),
    /// Make every write that ended durable.
    Flush(OpId),
    /// Make an empty journal for the disk, durably, in place of one that may be there: the disk is now as the source's
    /// was when `seq` was the last number given out.
    StartJournal {
        /// The operation.
        op: OpId,
        /// The session whose changes it is for.
        session: Uuid,
        /// The number; 0 when it is not known any more.
        seq: u64,
    },
    /// Append a change to the journal, after all that was appended before.
    Journal(OpId, u64, Content),
    /// Append a marker to the journal and make everything before it durable.
    Mark {
        /// The operation.
        op: OpId,
        /// The last number given out before it.
        seq: u64,
        /// With everything before it the disk is as the source's was: it may be carried over up to there, by itself or once
        /// all disks of its group have got that far.
        sealed: bool,
    },
    /// Open the journal if it is not open, without what came after its last marker; write what it holds up to that place
    /// into the disk in the order of the journal, and flush the disk. What was carried over may be taken out of the
    /// journal then, durably. May be done again after a crash.
    Apply(OpId, Upto),
    /// Tell the disk's group that this disk has a cut durably.
    Reached {
        /// The group.
        group: Group,
        /// The session whose journal has it.
        session: Uuid,
        /// Its number.
        cut: u64,
        /// Through how many disks it goes.
        disks: u16,
    },
    /// Tell that group that what was said to it of this disk does not hold any more; it answers once no record that is
    /// being written names the disk.
    Leave(Uuid),
    /// Find out whether that arbiter is there, and is the one so named.
    Reach {
        /// For which attempt.
        attempt: u64,
        /// The arbiter.
        arbiter: ArbiterName,
    },
    /// Ask that arbiter for the disk, as the target.
    Claim {
        /// The arbiter.
        arbiter: ArbiterName,
        /// About what.
        ballot: Ballot,
    },
    /// Make this the disk's durable ownership record.
    Persist(Ownership),
    /// Flush, close the image cleanly and leave this mark in it.
    Park(Option<Mark>),
    /// Keep, durably, what the source says of a way back; nothing depends on it.
    WayBack(WayHome),
    /// Serve the disk from now on.
    Serve,
}
