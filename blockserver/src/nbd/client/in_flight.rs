//! The requests of a client that are not answered yet.
//!
//! Machine: checks and encodes requests, and remembers of each what its reply is checked against.
//! Its size is bounded by the limit it was made with, whatever a server does.

use std::fmt;

use super::RemoteExport;
use super::coverage::Coverage;
use crate::nbd::wire::{Command, CommandFlags, Errno, RequestHeader, transmission};

/// How many requests may be outstanding unless said otherwise.
pub const DEFAULT_MAX_IN_FLIGHT: usize = 256;
/// Bytes of finished read buffers kept for the next reads.
const MAX_SPARE: usize = 64 << 20;

/// A request as a client makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRequest<'a> {
    /// What to do.
    pub command: Command,
    /// How.
    pub flags: CommandFlags,
    /// First byte of the disk; 0 for FLUSH.
    pub offset: u64,
    /// How many bytes; 0 for FLUSH.
    pub len: u32,
    /// The bytes of a WRITE, `len` of them; empty for the others.
    pub data: &'a [u8],
}

impl<'a> ClientRequest<'a> {
    /// A read.
    #[must_use]
    pub fn read(offset: u64, len: u32) -> Self {
        Self::plain(Command::Read, offset, len)
    }

    /// A write of `data`, of which no more than 4 GiB are meant.
    #[must_use]
    pub fn write(offset: u64, data: &'a [u8]) -> Self {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        Self {
            data,
            ..Self::plain(Command::Write, offset, len)
        }
    }

    /// A flush.
    #[must_use]
    pub fn flush() -> Self {
        Self::plain(Command::Flush, 0, 0)
    }

    /// A request without payload and flags.
    #[must_use]
    pub fn plain(command: Command, offset: u64, len: u32) -> Self {
        Self {
            command,
            flags: CommandFlags::default(),
            offset,
            len,
            data: &[],
        }
    }

    /// The same request with these flags.
    #[must_use]
    pub fn with(mut self, flags: CommandFlags) -> Self {
        self.flags = flags;
        self
    }
}

/// Why a request was not even sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// As many as allowed are outstanding: wait for one.
    Full,
    /// The handshake is not over.
    NotAttached,
    /// The server does not offer this command, or this flag of it.
    NotOffered(Command),
    /// Longer than the server takes in one piece.
    TooLong {
        /// The longest it takes, bytes.
        max: u32,
    },
    /// The length and the payload disagree.
    WrongPayload,
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("too many requests are outstanding"),
            Self::NotAttached => f.write_str("the NBD handshake is not over"),
            Self::NotOffered(command) => {
                write!(f, "the NBD server does not offer {command:?} in this form")
            }
            Self::TooLong { max } => {
                write!(f, "the NBD server takes at most {max} bytes in one request")
            }
            Self::WrongPayload => f.write_str("a request's length and payload disagree"),
        }
    }
}

impl std::error::Error for SubmitError {}

/// A run of bytes that are alike, as a server tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteExtent {
    /// How many bytes; the last of a reply may run past the end of the request.
    pub len: u32,
    /// Bits of [`allocation`](crate::nbd::wire::allocation).
    pub flags: u32,
}

/// What a server answered to a request that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// The bytes of a READ, all of them.
    Data(Vec<u8>),
    /// The extents of a `BLOCK_STATUS`, consecutive from its offset; at least one. They may end
    /// before the request does.
    Extents(Vec<RemoteExtent>),
}

/// Why a server failed a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error.
    pub errno: Errno,
    /// What it said about it; may be empty.
    pub message: String,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The cookie that submitting it gave.
    pub cookie: u64,
    /// What was asked.
    pub command: Command,
    /// First byte of the disk.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
    /// How it went.
    pub result: Result<Answer, Refusal>,
}

/// What is remembered of a request until its reply is complete.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) command: Command,
    pub(super) offset: u64,
    pub(super) len: u32,
    /// The bytes of a read, `len` of them once the first has come.
    pub(super) buffer: Vec<u8>,
    pub(super) coverage: Coverage,
    pub(super) extents: Option<Vec<RemoteExtent>>,
    pub(super) refusal: Option<Refusal>,
}

#[derive(Debug)]
struct Slot {
    /// Changes with each use, so that a late reply to an old request is not taken for a new one's.
    generation: u32,
    pending: Option<Pending>,
}

/// The requests that are not answered yet.
#[derive(Debug)]
pub struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
    limit: usize,
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
}

impl InFlight {
    /// Room for `limit` requests, at least one.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            limit: limit.clamp(1, 1 << 20),
            spare: Vec::new(),
            spare_bytes: 0,
        }
    }

    /// How many requests are outstanding.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// Whether none is outstanding.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Check `request`, append its head to `out`, and answer its cookie. The caller sends the
    /// payload right behind the head.
    pub fn submit(
        &mut self,
        remote: &RemoteExport,
        request: &ClientRequest<'_>,
        out: &mut Vec<u8>,
    ) -> Result<u64, SubmitError> {
        check(remote, request)?;
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() >= self.limit => return Err(SubmitError::Full),
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    pending: None,
                });
                self.slots.len().saturating_sub(1) as u32
            }
        };
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return Err(SubmitError::Full);
        };
        slot.generation = slot.generation.wrapping_add(1);
        slot.pending = Some(Pending {
            command: request.command,
            offset: request.offset,
            len: request.len,
            buffer: Vec::new(),
            coverage: Coverage::default(),
            extents: None,
            refusal: None,
        });
        let cookie = u64::from(slot.generation) << 32 | u64::from(index);
        RequestHeader {
            flags: request.flags.to_wire(),
            command: request.command.to_wire(),
            cookie,
            offset: request.offset,
            len: request.len,
        }
        .encode(out);
        Ok(cookie)
    }

    /// Give back the buffer of a finished read, for the next one.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        let bytes = self.spare_bytes.saturating_add(buffer.capacity());
        if buffer.capacity() > 0 && bytes <= MAX_SPARE && self.spare.len() < self.limit {
            self.spare_bytes = bytes;
            self.spare.push(buffer);
        }
    }

    /// The outstanding request of this cookie.
    pub(super) fn get(&mut self, cookie: u64) -> Option<&mut Pending> {
        let slot = self
            .slots
            .get_mut(usize::try_from(cookie & 0xffff_ffff).ok()?)?;
        if u64::from(slot.generation) != cookie >> 32 {
            return None;
        }
        slot.pending.as_mut()
    }

    /// Forget the request of this cookie.
    pub(super) fn take(&mut self, cookie: u64) -> Option<Pending> {
        self.get(cookie)?;
        let index = u32::try_from(cookie & 0xffff_ffff).ok()?;
        let pending = self.slots.get_mut(index as usize)?.pending.take()?;
        self.free.push(index);
        Some(pending)
    }

    /// The buffer of the read `cookie`, for filling; `len` bytes long, what they hold is undefined.
    pub(super) fn take_buffer(&mut self, cookie: u64) -> Vec<u8> {
        let spare = self.spare.last().map_or(0, Vec::capacity);
        let Some(pending) = self.get(cookie) else {
            return Vec::new();
        };
        let len = pending.len as usize;
        let mut buffer = std::mem::take(&mut pending.buffer);
        if buffer.is_empty() && spare >= len {
            buffer = self.spare.pop().unwrap_or_default();
            self.spare_bytes = self.spare_bytes.saturating_sub(spare);
        }
        if buffer.capacity() == 0 {
            // Zeroed by the allocator for nothing, unlike `resize`.
            return vec![0; len];
        }
        buffer.resize(len, 0);
        buffer
    }
}

fn check(remote: &RemoteExport, request: &ClientRequest<'_>) -> Result<(), SubmitError> {
    let payload = if request.command == Command::Write {
        request.len as usize
    } else {
        0
    };
    if request.data.len() != payload {
        return Err(SubmitError::WrongPayload);
    }
    let carries_data = matches!(request.command, Command::Read | Command::Write);
    if carries_data && request.len > remote.max_payload {
        let max = remote.max_payload;
        return Err(SubmitError::TooLong { max });
    }
    let offered = match request.command {
        Command::Read | Command::Write => true,
        Command::Flush => remote.has(transmission::SEND_FLUSH),
        Command::Trim => remote.has(transmission::SEND_TRIM),
        Command::WriteZeroes => remote.has(transmission::SEND_WRITE_ZEROES),
        Command::BlockStatus => remote.allocation.is_some(),
    };
    let flags = request.flags;
    let missing = (flags.fua && !remote.has(transmission::SEND_FUA))
        || (flags.df && !remote.has(transmission::SEND_DF))
        || (flags.fast_zero && !remote.has(transmission::SEND_FAST_ZERO));
    if offered && !missing {
        Ok(())
    } else {
        Err(SubmitError::NotOffered(request.command))
    }
}
