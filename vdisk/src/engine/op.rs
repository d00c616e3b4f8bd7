//! The words in which an engine and its driver talk.

use bytes::Bytes;

use crate::error::Error;
use crate::format::track::CheckpointName;
use crate::units::{FileOffset, GuestOffset};

/// A request, named by whoever submits it; unique among those in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A file operation, named by the engine; unique among those in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// Why other programs must not open an image now (a zero-length required metadata item).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The target of a migration that is not complete.
    Incomplete,
    /// The source of a migration that has been handed over.
    HandedOver,
}

/// A guest-visible operation. Offsets and lengths are bytes inside the disk; the caller has checked
/// that they lie within it. A request's buffer is as long as the request and stays with the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill the request's buffer.
    Read {
        /// First byte of the disk.
        offset: GuestOffset,
        /// How many bytes.
        len: u64,
    },
    /// Write the request's buffer.
    Write {
        /// First byte of the disk.
        offset: GuestOffset,
        /// How many bytes.
        len: u64,
        /// Whether it must be durable before it completes.
        fua: bool,
    },
    /// Make a range read as zero.
    WriteZeroes {
        /// First byte of the disk.
        offset: GuestOffset,
        /// How many bytes.
        len: u64,
        /// Whether it must be durable before it completes.
        fua: bool,
        /// Whether space may be given back (false: a later write there must not fail for space).
        unmap: bool,
    },
    /// The guest does not need the range any more; it reads as zero or as before.
    Discard {
        /// First byte of the disk.
        offset: GuestOffset,
        /// How many bytes.
        len: u64,
    },
    /// Make every change that completed before durable.
    Flush,
    /// Say which parts of a range are allocated.
    Status {
        /// First byte of the disk.
        offset: GuestOffset,
        /// How many bytes.
        len: u64,
    },
    /// Bring the image into the state of a cleanly closed one, with `mark` in place.
    ///
    /// No change may be in flight. The next change after it opens a new session by itself.
    Park {
        /// The mark to leave in the image; `None` removes one.
        mark: Option<Mark>,
    },
    /// Give the disk another size, durably. Changes that are under way end first; those that come
    /// meanwhile wait, and fail if they lie beyond the new end.
    ///
    /// `InvalidArgument` for a size that cannot be and for one that cuts off data; `NotOwned` for a
    /// marked image; `Unsupported` for one with a parent; `NoSpace` where the host has no room.
    Resize {
        /// The new size in bytes: whole logical sectors, up to 64 TiB; of a raw image what its file
        /// system allows, in units of the file's alignment.
        size: u64,
        /// Whether data beyond the new end may be thrown away.
        discard_data: bool,
    },
    /// Go on making the file as short as it can be, while the disk is in use: blocks whose space the
    /// host holds no data for become zero, others are moved to lower places, and at last the file is
    /// cut. Answered by [`Done::Compacted`]; to be asked again until that says so.
    ///
    /// `InvalidArgument` for a raw image and one opened for reading, or while another one runs; `NotOwned`
    /// for a marked image; `Failed` when it is parked meanwhile or the table of blocks can not be read.
    Compact {
        /// Whether blocks shall also come to lie in the order of the disk, each of which is moved
        /// twice for that.
        defragment: bool,
        /// About so many bytes are moved before this request ends; at least one block.
        budget: u64,
    },
    /// Remember this moment: what changes from now on can be told later. Every change that completed
    /// before is durable and belongs to the time before; all others, to the time after. Changes that
    /// are under way end first.
    ///
    /// `Unsupported` where changes are not tracked; `InvalidArgument` for a name that is taken;
    /// `NoSpace` when there is no room for another checkpoint.
    Checkpoint {
        /// What it is called.
        name: CheckpointName,
        /// Seconds since 1970; only kept.
        time: u64,
    },
}

/// An operation on the file, to be carried out by the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOp {
    /// Names it in [`Engine::complete`](super::Engine::complete).
    pub id: OpId,
    /// What to do.
    pub kind: FileOpKind,
}

/// What to do to the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileOpKind {
    /// Read metadata for the engine; bytes beyond the end of the file are zero.
    Read {
        /// Where in the file; a multiple of 4096.
        at: FileOffset,
        /// How many bytes; a multiple of 4096.
        len: u32,
    },
    /// Write metadata of the engine.
    Write {
        /// Where in the file; a multiple of 4096.
        at: FileOffset,
        /// The bytes; a multiple of 4096 of them.
        data: Bytes,
    },
    /// Fill part of a request's buffer from the file.
    ReadRequest {
        /// Whose buffer.
        request: RequestId,
        /// First byte in that buffer.
        start: u64,
        /// Where in the file.
        at: FileOffset,
        /// How many bytes.
        len: u64,
    },
    /// Write part of a request's buffer to the file.
    WriteRequest {
        /// Whose buffer.
        request: RequestId,
        /// First byte in that buffer.
        start: u64,
        /// Where in the file.
        at: FileOffset,
        /// How many bytes.
        len: u64,
    },
    /// As [`FileOpKind::WriteRequest`], where `at` or `len` is not a multiple of the file's
    /// alignment: read what surrounds it, merge, write. The engine has shut out other writers.
    MergeRequest {
        /// Whose buffer.
        request: RequestId,
        /// First byte in that buffer.
        start: u64,
        /// Where in the file.
        at: FileOffset,
        /// How many bytes.
        len: u64,
    },
    /// Fill part of a request's buffer with zeros; touches no file.
    ZeroRequest {
        /// Whose buffer.
        request: RequestId,
        /// First byte in that buffer.
        start: u64,
        /// How many bytes.
        len: u64,
    },
    /// Fill part of a request's buffer from the parent disk; what lies beyond its end is zero.
    ReadParent {
        /// Whose buffer.
        request: RequestId,
        /// First byte in that buffer.
        start: u64,
        /// Where on the disk.
        offset: GuestOffset,
        /// How many bytes.
        len: u64,
    },
    /// Write to the file what the parent disk holds; what lies beyond its end is zero. The engine has
    /// shut out other writers, so that surroundings may be read and written back.
    CopyUp {
        /// Where on the disk.
        offset: GuestOffset,
        /// Where in the file.
        at: FileOffset,
        /// How many bytes; whole sectors.
        len: u64,
    },
    /// Make everything durable that was written before this operation was handed out.
    Flush,
    /// Set the length of the file.
    SetLen {
        /// The new length in bytes.
        len: u64,
    },
    /// Make a range of the file read as zero; give its space back unless `keep`.
    Zero {
        /// Where in the file; may be unaligned.
        at: FileOffset,
        /// How many bytes.
        len: u64,
        /// Whether host space must stay reserved.
        keep: bool,
    },
    /// Make a range of the file read as another one does that does not overlap it; what is a hole there
    /// becomes one. Where no byte of it is other than zero the outcome may be [`Outcome::Holes`] with
    /// one extent that says so.
    Copy {
        /// Where in the file it is copied from; a multiple of 1 MiB.
        from: FileOffset,
        /// Where to; a multiple of 1 MiB.
        to: FileOffset,
        /// How many bytes; a multiple of 1 MiB.
        len: u64,
    },
    /// Reserve host space; where the file system cannot, that is success.
    Reserve {
        /// Where in the file.
        at: FileOffset,
        /// How many bytes.
        len: u64,
    },
    /// Say which parts of a range of the file are holes; answered by [`Outcome::Holes`].
    Holes {
        /// Where in the file.
        at: FileOffset,
        /// How many bytes.
        len: u64,
    },
    /// Say which parts of a range the parent disk holds, as [`Request::Status`] of it would; what
    /// lies beyond its end is zero. Answered by [`Outcome::Holes`].
    StatusParent {
        /// Where on the disk.
        offset: GuestOffset,
        /// How many bytes.
        len: u64,
    },
}

/// How an operation went.
#[derive(Debug)]
pub enum Outcome {
    /// Done.
    Done,
    /// Done, and this is what [`FileOpKind::Read`] read.
    Data(Bytes),
    /// Done, and these extents, from the first byte of [`FileOpKind::Holes`] or
    /// [`FileOpKind::StatusParent`] on, are what is there; at least one, together at most the range.
    Holes(Vec<Extent>),
    /// It failed; nothing or part of it may have happened.
    Failed(std::io::Error),
}

/// What a completed request brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was done.
    Done,
    /// The answer to [`Request::Status`]: consecutive extents from its first byte, at least one;
    /// they may end before the range does (ask again from there) and never go beyond it.
    Extents(Vec<Extent>),
    /// The answer to [`Request::Compact`].
    Compacted(Compacted),
}

/// How far a compaction is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes of blocks that were moved since it began.
    pub moved: u64,
    /// Bytes of blocks that held nothing but zeros and were dropped.
    pub dropped: u64,
    /// Length that the file needs now, in bytes; when it is done, the length of the file.
    pub end: u64,
    /// Whether nothing is left to do.
    pub done: bool,
}

/// A run of bytes of the disk that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes.
    pub len: u64,
    /// Whether the image holds space for them.
    pub allocated: bool,
    /// Whether they certainly read as zero.
    pub zero: bool,
}

/// The end of a request.
#[derive(Debug)]
pub struct Completion {
    /// Which request.
    pub request: RequestId,
    /// How it went.
    pub result: Result<Done, Error>,
}
