//! The messages that the state of a machine is written as: which there are, how each is framed and checked.
//!
//! ```text
//!   "DFSTATE\0"  format u32  zero u32    then messages, each:
//!   kind u16  version u16  length u32  check u32  body: length bytes
//! ```
//!
//! `check` is CRC-32C of the eight bytes before it and of the body. The last message, [`Kind::End`], has
//! CRC-32C of all bytes before it, so that what is cut, left out or moved is noticed. Specified in
//! `docs/vm-snapshot.md`.

use std::fmt;

use super::bytes::{Encoded, Reader};
use super::error::{DecodeError, Fault};

/// What the bytes begin with.
pub const MAGIC: [u8; 8] = *b"DFSTATE\0";
/// The format of the whole: of the header, and of how messages are framed.
pub const FORMAT: u32 = 1;
/// Bytes before the body of a message.
const HEAD_BYTES: usize = 12;
/// Most bytes of a whole.
pub const MOST_BYTES: usize = 64 << 20;
/// A kind with this bit may be skipped by who does not know it.
pub const SKIPPABLE: u16 = 0x8000;

/// Kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// What the host was: [`super::HostFacts`].
    Host,
    /// How large the machine is: [`super::Shape`].
    Shape,
    /// The machine's clock: [`super::Clock`].
    Clock,
    /// Interrupt controllers of the board: [`super::Chips`].
    Chips,
    /// The interval timer: [`super::Pit`].
    Pit,
    /// A processor, in their order: [`super::Processor`].
    Processor,
    /// The serial port: [`super::Serial`].
    Serial,
    /// The events device: [`super::Events`].
    Events,
    /// PCI, but its functions: [`super::Pci`].
    Pci,
    /// A virtio device on PCI, by their slots: [`super::Function`].
    Function,
    /// The end.
    End,
}

impl Kind {
    /// All, in the order in which their messages stand.
    pub(super) const ALL: [Self; 11] = [
        Self::Host,
        Self::Shape,
        Self::Clock,
        Self::Chips,
        Self::Pit,
        Self::Processor,
        Self::Serial,
        Self::Events,
        Self::Pci,
        Self::Function,
        Self::End,
    ];

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Host => 1,
            Self::Shape => 2,
            Self::Clock => 3,
            Self::Chips => 4,
            Self::Pit => 5,
            Self::Processor => 6,
            Self::Serial => 7,
            Self::Events => 8,
            Self::Pci => 9,
            Self::Function => 10,
            Self::End => 0x7FFF,
        }
    }

    /// The version of its body that is written, and the only one that is read.
    #[must_use]
    pub const fn version(self) -> u16 {
        1
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "the host",
            Self::Shape => "the machine's shape",
            Self::Clock => "the clock",
            Self::Chips => "the interrupt controllers",
            Self::Pit => "the interval timer",
            Self::Processor => "a processor",
            Self::Serial => "the serial port",
            Self::Events => "the events device",
            Self::Pci => "PCI",
            Self::Function => "a virtio device",
            Self::End => "the end",
        })
    }
}

/// A message as it stands in the bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: Kind,
    pub(super) body: &'a [u8],
    /// Offset of the body in the whole.
    pub(super) at: u64,
}

impl Message<'_> {
    /// What it says, all of it.
    pub(super) fn value<T: Encoded>(&self) -> Result<T, DecodeError> {
        let mut reader = Reader::new(self.body, self.at);
        let value = reader.take();
        let value = value.and_then(|value| reader.end().map(|()| value));
        value.map_err(|error| error.within(self.kind))
    }
}

/// Write the bytes before the first message.
pub(super) fn begin() -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    FORMAT.put(&mut bytes);
    0_u32.put(&mut bytes);
    bytes
}

/// Append a message.
pub(super) fn append<T: Encoded>(to: &mut Vec<u8>, kind: Kind, value: &T) {
    let mut body = Vec::new();
    value.put(&mut body);
    let mut head = Vec::with_capacity(HEAD_BYTES);
    kind.number().put(&mut head);
    kind.version().put(&mut head);
    (body.len() as u32).put(&mut head);
    let check = crc32c::crc32c_append(crc32c::crc32c(&head), &body);
    check.put(&mut head);
    to.extend(head);
    to.extend(body);
}

/// Append the end.
pub(super) fn finish(mut bytes: Vec<u8>) -> Vec<u8> {
    let check = crc32c::crc32c(&bytes);
    append(&mut bytes, Kind::End, &check);
    bytes
}

/// The messages, all checked; those that may be skipped and are not known are left out.
pub(super) fn messages(bytes: &[u8]) -> Result<Vec<Message<'_>>, DecodeError> {
    let whole = |fault| DecodeError::new(0, "", fault);
    if bytes.len() > MOST_BYTES {
        return Err(whole(Fault::Size));
    }
    let mut reader = Reader::new(bytes, 0);
    if reader.take::<[u8; 8]>() != Ok(MAGIC) {
        return Err(whole(Fault::Magic));
    }
    let format = reader.take::<u32>()?;
    if format != FORMAT {
        return Err(reader.fault(Fault::Format(format)));
    }
    if reader.take::<u32>()? != 0 {
        return Err(reader.wrong("bytes of the header that must be zero are not"));
    }
    let mut found = Vec::new();
    loop {
        let read = bytes.len() - reader.left();
        let Some(message) = next(&mut reader)? else {
            continue;
        };
        if message.kind == Kind::End {
            let before = bytes.get(..read).unwrap_or_default();
            if message.value::<u32>()? != crc32c::crc32c(before) {
                return Err(reader.fault(Fault::Checksum).within(Kind::End));
            }
            reader.end()?;
            return Ok(found);
        }
        found.push(message);
    }
}

/// The next message; `None` for one that is skipped.
fn next<'a>(reader: &mut Reader<'a>) -> Result<Option<Message<'a>>, DecodeError> {
    let at = reader.at();
    let head = reader.bytes(8)?;
    let check = reader.take::<u32>()?;
    let mut fields = Reader::new(head, at);
    let (number, version) = (fields.take::<u16>()?, fields.take::<u16>()?);
    let length = fields.take::<u32>()?;
    let begin = reader.at();
    let body = reader.bytes(usize::try_from(length).unwrap_or(usize::MAX))?;
    if crc32c::crc32c_append(crc32c::crc32c(head), body) != check {
        return Err(fields.fault(Fault::Checksum));
    }
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.number() == number) else {
        if number & SKIPPABLE != 0 {
            return Ok(None);
        }
        return Err(fields.fault(Fault::Kind(number)));
    };
    if version != kind.version() {
        return Err(fields.fault(Fault::Version(version)).within(kind));
    }
    Ok(Some(Message {
        kind,
        body,
        at: begin,
    }))
}
