//! Every number and layout of the NBD protocol that this program speaks.
//!
//! Codec: bytes to checked types and back, total on every input; it decides nothing. Everything on
//! the wire is big-endian. Specified in `doc/proto.md` of the NBD project; sections are named where
//! a layout is defined. Extended headers are not spoken, so only their numbers appear here.

#![deny(clippy::indexing_slicing)]

/// First eight bytes of a server: "NBDMAGIC".
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": follows [`NBDMAGIC`], and opens each option of a client.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Opens each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Opens a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Opens a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Opens a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of the server's greeting: two magics and the handshake flags.
pub const GREETING_LEN: usize = 18;
/// Bytes of an option before its data.
pub const OPTION_HEADER_LEN: usize = 16;
/// Bytes of a reply to an option before its payload.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;
/// Bytes of a request before its payload.
pub const REQUEST_LEN: usize = 28;
/// Bytes of a simple reply before its data.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Bytes of a chunk before its payload.
pub const CHUNK_HEADER_LEN: usize = 20;
/// Zero bytes after the answer to `EXPORT_NAME`, unless both sides set `NO_ZEROES`.
pub const EXPORT_NAME_ZEROES: usize = 124;

/// The longest string of the protocol, in bytes ("Values", string limit).
pub const MAX_STRING: usize = 4096;
/// The longest payload that everyone may send without having asked, in bytes: 32 MiB.
pub const DEFAULT_MAX_PAYLOAD: u32 = 1 << 25;
/// The most extents we put in, or take from, one block status reply: 1 MiB of them.
pub const MAX_EXTENTS: usize = 1 << 17;
/// The name of the one metadata context that is spoken.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Handshake flag, both directions: options have replies.
pub const FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag, both directions: no padding after the answer to `EXPORT_NAME`.
pub const NO_ZEROES: u16 = 1 << 1;

/// Numbers of the options.
pub mod option {
    /// Choose an export and begin, without a way to report an error.
    pub const EXPORT_NAME: u32 = 1;
    /// End the handshake.
    pub const ABORT: u32 = 2;
    /// Name the exports.
    pub const LIST: u32 = 3;
    /// Go over to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and begin.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose the metadata contexts of an export.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of the replies to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One fact about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in every error.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// The option is known and not allowed.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// The option's data is malformed or comes at the wrong time.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// Only after STARTTLS.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is shutting down.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// Only for a client that asks for block sizes.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT | 8;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
}

/// Types of the facts in an INFO reply.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The canonical name.
    pub const NAME: u16 = 1;
    /// A description for people.
    pub const DESCRIPTION: u16 = 2;
    /// Smallest, preferred and largest request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what a server can do with an export.
pub mod transmission {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes fail with EPERM.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Seeks cost.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` works, with `NO_HOLE`.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag works; only with structured replies.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers what completed on all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `FAST_ZERO` works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Flags of a command on the wire.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Do not give the space back.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Do not fragment the reply.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail rather than be as slow as writing.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types and flags of chunks.
pub mod chunk {
    /// Reply flag: the last chunk of its reply.
    pub const DONE: u16 = 1 << 0;
    /// Nothing; ends a reply.
    pub const NONE: u16 = 0;
    /// Data that was read.
    pub const OFFSET_DATA: u16 = 1;
    /// A run of zeros that was read.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in every error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// The command failed.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// The command failed, and where.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Flags of an extent of `base:allocation`; none set means allocated data, always a safe answer.
pub mod allocation {
    /// No space is reserved.
    pub const HOLE: u32 = 1 << 0;
    /// Reads as zero.
    pub const ZERO: u32 = 1 << 1;
}

/// Number of the command DISC, which is an end and not a request.
pub const CMD_DISC: u16 = 2;

/// A command that gets a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Read.
    Read,
    /// Write; the only one with a payload.
    Write,
    /// Make everything durable that was replied to.
    Flush,
    /// The range is not needed any more.
    Trim,
    /// Make the range read as zero.
    WriteZeroes,
    /// Tell the extents of the range.
    BlockStatus,
}

impl Command {
    /// The command with this number on the wire; `None` when it is not spoken here.
    #[must_use]
    pub fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Read,
            1 => Self::Write,
            3 => Self::Flush,
            4 => Self::Trim,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => return None,
        })
    }

    /// Its number on the wire.
    #[must_use]
    pub fn to_wire(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
        }
    }

    /// Whether it changes the disk.
    #[must_use]
    pub fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }
}

/// The flags of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "five independent bits of one protocol field"
)]
pub struct CommandFlags {
    /// Durable before the reply.
    pub fua: bool,
    /// Do not give the space back (`WRITE_ZEROES`).
    pub no_hole: bool,
    /// Do not fragment the reply (READ).
    pub df: bool,
    /// One extent is enough (`BLOCK_STATUS`).
    pub req_one: bool,
    /// Fail rather than be as slow as writing (`WRITE_ZEROES`).
    pub fast_zero: bool,
}

impl CommandFlags {
    /// The flags in these bits; `None` when an unknown one is set.
    #[must_use]
    pub fn from_wire(bits: u16) -> Option<Self> {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
        if bits & !(FUA | NO_HOLE | DF | REQ_ONE | FAST_ZERO) != 0 {
            return None;
        }
        Some(Self {
            fua: bits & FUA != 0,
            no_hole: bits & NO_HOLE != 0,
            df: bits & DF != 0,
            req_one: bits & REQ_ONE != 0,
            fast_zero: bits & FAST_ZERO != 0,
        })
    }

    /// The bits on the wire.
    #[must_use]
    pub fn to_wire(self) -> u16 {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
        [
            (self.fua, FUA),
            (self.no_hole, NO_HOLE),
            (self.df, DF),
            (self.req_one, REQ_ONE),
            (self.fast_zero, FAST_ZERO),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(0, |bits, (_, bit)| bits | bit)
    }
}

/// The errors of the protocol ("Error values"); the numbers are Linux's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// EPERM: the export is read-only.
    NotPermitted,
    /// EIO: the medium failed.
    Io,
    /// ENOMEM.
    OutOfMemory,
    /// EINVAL: the request makes no sense.
    Invalid,
    /// ENOSPC: past the end, or no room left.
    NoSpace,
    /// EOVERFLOW: too long to be answered in one piece.
    Overflow,
    /// ENOTSUP: `FAST_ZERO` would be slow.
    NotSupported,
    /// ESHUTDOWN: the server is going away.
    Shutdown,
}

impl Errno {
    /// The error with this number; numbers the document does not name count as EINVAL, as it says.
    #[must_use]
    pub fn from_wire(number: u32) -> Self {
        match number {
            1 => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::OutOfMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            _ => Self::Invalid,
        }
    }

    /// Its number on the wire.
    #[must_use]
    pub fn to_wire(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::OutOfMemory => 12,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }
}

impl From<&std::io::Error> for Errno {
    fn from(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::NoSpace
            }
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Self::NotPermitted,
            ErrorKind::InvalidInput => Self::Invalid,
            ErrorKind::OutOfMemory => Self::OutOfMemory,
            _ => Self::Io,
        }
    }
}

/// Something opened with another magic than it must; holds what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongMagic(pub u64);

/// Takes big-endian fields off the front of bytes that a peer sent. `None` means too short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn bytes(&mut self, len: u32) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(head)
    }

    /// A string of `len` bytes; also `None` when it is not one that the document allows.
    pub(crate) fn string(&mut self, len: u32) -> Option<&'a str> {
        self.bytes(len).and_then(checked_string)
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// These bytes as a string of the protocol: UTF-8, no NUL, at most [`MAX_STRING`] bytes.
#[must_use]
pub fn checked_string(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > MAX_STRING || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// A length that is known to be small, as the protocol writes it.
fn wire_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The server's greeting: fixed newstyle, no padding wanted.
pub fn put_greeting(out: &mut Vec<u8>) {
    out.extend_from_slice(&NBDMAGIC.to_be_bytes());
    out.extend_from_slice(&IHAVEOPT.to_be_bytes());
    out.extend_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
}

/// The head of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub option: u32,
    /// Bytes of its data.
    pub len: u32,
}

impl OptionHeader {
    /// Decode the head of an option.
    pub fn decode(bytes: &[u8; OPTION_HEADER_LEN]) -> Result<Self, WrongMagic> {
        let mut fields = Fields::new(bytes);
        match (fields.u64(), fields.u32(), fields.u32()) {
            (Some(IHAVEOPT), Some(option), Some(len)) => Ok(Self { option, len }),
            (magic, ..) => Err(WrongMagic(magic.unwrap_or_default())),
        }
    }
}

/// An option with its data.
pub fn put_option(out: &mut Vec<u8>, option: u32, data: &[u8]) {
    out.extend_from_slice(&IHAVEOPT.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&wire_len(data.len()).to_be_bytes());
    out.extend_from_slice(data);
}

/// The head of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// Which option it answers.
    pub option: u32,
    /// Its type, one of [`reply`].
    pub kind: u32,
    /// Bytes of its payload.
    pub len: u32,
}

impl OptionReplyHeader {
    /// Decode the head of a reply to an option.
    pub fn decode(bytes: &[u8; OPTION_REPLY_HEADER_LEN]) -> Result<Self, WrongMagic> {
        let mut fields = Fields::new(bytes);
        match (fields.u64(), fields.u32(), fields.u32(), fields.u32()) {
            (Some(OPTION_REPLY_MAGIC), Some(option), Some(kind), Some(len)) => {
                Ok(Self { option, kind, len })
            }
            (magic, ..) => Err(WrongMagic(magic.unwrap_or_default())),
        }
    }
}

/// A reply of `kind` to `option`, whose payload is `parts` one after the other.
pub fn put_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&wire_len(len).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// The head of a request, as it is on the wire: not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags.
    pub flags: u16,
    /// Number of the command.
    pub command: u16,
    /// The client's name for the request.
    pub cookie: u64,
    /// First byte of the disk.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
}

impl RequestHeader {
    /// Decode the head of a request.
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> Result<Self, WrongMagic> {
        let mut fields = Fields::new(bytes);
        let magic = fields.u32().unwrap_or_default();
        if magic != REQUEST_MAGIC {
            return Err(WrongMagic(magic.into()));
        }
        Ok(Self {
            flags: fields.u16().unwrap_or_default(),
            command: fields.u16().unwrap_or_default(),
            cookie: fields.u64().unwrap_or_default(),
            offset: fields.u64().unwrap_or_default(),
            len: fields.u32().unwrap_or_default(),
        })
    }

    /// Append it to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.command.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
        out.extend_from_slice(&self.len.to_be_bytes());
    }
}

/// A simple reply without its data; `error` 0 is success.
pub fn put_simple_reply(out: &mut Vec<u8>, cookie: u64, error: u32) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

/// The head of a chunk of a structured reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Reply flags, [`chunk::DONE`] or none.
    pub flags: u16,
    /// Its type, one of [`chunk`].
    pub kind: u16,
    /// Which request it answers.
    pub cookie: u64,
    /// Bytes of its payload.
    pub len: u32,
}

impl ChunkHeader {
    /// Decode the head of a chunk.
    pub fn decode(bytes: &[u8; CHUNK_HEADER_LEN]) -> Result<Self, WrongMagic> {
        let mut fields = Fields::new(bytes);
        let magic = fields.u32().unwrap_or_default();
        if magic != CHUNK_MAGIC {
            return Err(WrongMagic(magic.into()));
        }
        Ok(Self {
            flags: fields.u16().unwrap_or_default(),
            kind: fields.u16().unwrap_or_default(),
            cookie: fields.u64().unwrap_or_default(),
            len: fields.u32().unwrap_or_default(),
        })
    }

    /// Append it to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&CHUNK_MAGIC.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.kind.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&self.len.to_be_bytes());
    }
}
