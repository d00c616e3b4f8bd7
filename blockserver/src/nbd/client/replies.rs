//! Reads a server's replies, simple or structured, and matches them to what is in flight.
//!
//! Machine. The data of a read goes straight into the read's buffer: from [`ReplyReader::receive`],
//! or, without a copy, through [`ReplyReader::data_wanted`]. Specified in `doc/proto.md`, "Simple
//! reply message" and "Structured reply chunk message".

use std::collections::VecDeque;

use super::in_flight::{Answer, Completion, InFlight, Pending, Refusal, RemoteExtent};
use super::{ClientFault, RemoteExport};
use crate::nbd::error::{Hex, ProtocolError};
use crate::nbd::wire::{
    self, CHUNK_HEADER_LEN, ChunkHeader, Command, Errno, Fields, MAX_EXTENTS, MAX_STRING,
    SIMPLE_REPLY_LEN, chunk,
};

/// What the next bytes are.
#[derive(Debug)]
enum Expect {
    /// A simple reply or the head of a chunk.
    Head,
    /// The offset in front of a chunk's data.
    DataOffset(ChunkHeader),
    /// Bytes of a read.
    Data(Incoming),
    /// The payload of a chunk other than data.
    Payload(ChunkHeader),
}

/// A run of data on its way into a read's buffer.
#[derive(Debug)]
struct Incoming {
    cookie: u64,
    /// Taken out of the request while it is filled.
    buffer: Vec<u8>,
    /// Where in the buffer the next byte goes.
    at: usize,
    end: usize,
    /// Whether the reply ends with this run.
    done: bool,
}

/// Reads replies.
#[derive(Debug)]
pub struct ReplyReader {
    structured: bool,
    allocation: Option<u32>,
    expect: Expect,
    /// The beginning of a unit that came in pieces.
    held: Vec<u8>,
    /// Bytes of the server's stream before the current unit.
    position: u64,
    completions: VecDeque<Completion>,
}

impl ReplyReader {
    /// A reader for an export after a handshake that took `position` bytes.
    #[must_use]
    pub fn new(remote: &RemoteExport, position: u64) -> Self {
        Self {
            structured: remote.structured,
            allocation: remote.allocation,
            expect: Expect::Head,
            held: Vec::new(),
            position,
            completions: VecDeque::new(),
        }
    }

    /// The next request that was answered.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }

    /// Take bytes of the server, all of them unless there is an error.
    pub fn receive(&mut self, input: &[u8], in_flight: &mut InFlight) -> Result<(), ClientFault> {
        let mut rest = input;
        while !rest.is_empty() {
            if let Some(wanted) = self.data_wanted() {
                let taken = wanted.len().min(rest.len());
                if let Some((to, from)) = wanted.get_mut(..taken).zip(rest.get(..taken)) {
                    to.copy_from_slice(from);
                }
                rest = rest.get(taken..).unwrap_or_default();
                self.data_filled(taken, in_flight)?;
                continue;
            }
            let need = self.need(rest);
            let missing = need.saturating_sub(self.held.len());
            let Some((piece, after)) = rest.split_at_checked(missing) else {
                self.held.extend_from_slice(rest);
                break;
            };
            rest = after;
            if self.held.is_empty() {
                self.unit(piece, in_flight)?;
            } else {
                self.held.extend_from_slice(piece);
                let mut unit = std::mem::take(&mut self.held);
                self.unit(&unit, in_flight)?;
                // Keep the allocation, unless it was made for a long list of extents.
                if unit.capacity() <= 4096 {
                    unit.clear();
                    self.held = unit;
                }
            }
            self.position = self.position.saturating_add(need as u64);
        }
        Ok(())
    }

    /// Where the next bytes of the stream belong, when they are data of a read: the driver may
    /// receive straight into it and then call [`ReplyReader::data_filled`].
    pub fn data_wanted(&mut self) -> Option<&mut [u8]> {
        match &mut self.expect {
            Expect::Data(incoming) => incoming.buffer.get_mut(incoming.at..incoming.end),
            _ => None,
        }
    }

    /// `len` bytes of [`ReplyReader::data_wanted`] were filled.
    pub fn data_filled(&mut self, len: usize, in_flight: &mut InFlight) -> Result<(), ClientFault> {
        let Expect::Data(incoming) = &mut self.expect else {
            return Ok(());
        };
        incoming.at = incoming.at.saturating_add(len).min(incoming.end);
        self.position = self.position.saturating_add(len as u64);
        if incoming.at < incoming.end {
            return Ok(());
        }
        let (cookie, done) = (incoming.cookie, incoming.done);
        let buffer = std::mem::take(&mut incoming.buffer);
        self.expect = Expect::Head;
        if let Some(pending) = in_flight.get(cookie) {
            pending.buffer = buffer;
        }
        if done {
            self.finish(cookie, in_flight)?;
        }
        Ok(())
    }

    fn wrong(&self, field: &'static str, value: u64, reason: &'static str) -> ClientFault {
        ProtocolError::new(field, Hex(value), self.position, reason).into()
    }

    /// Bytes of the unit that is expected; the magic of a head tells which of two it is.
    fn need(&self, rest: &[u8]) -> usize {
        match &self.expect {
            Expect::Head => {
                let first = self.held.first().or(rest.first());
                if first == wire::CHUNK_MAGIC.to_be_bytes().first() {
                    CHUNK_HEADER_LEN
                } else {
                    SIMPLE_REPLY_LEN
                }
            }
            Expect::DataOffset(_) => 8,
            Expect::Data(_) => 0,
            Expect::Payload(header) => header.len as usize,
        }
    }

    fn unit(&mut self, unit: &[u8], in_flight: &mut InFlight) -> Result<(), ClientFault> {
        match std::mem::replace(&mut self.expect, Expect::Head) {
            Expect::Head => match unit.first_chunk::<CHUNK_HEADER_LEN>() {
                Some(bytes) => self.chunk(bytes, in_flight),
                None => self.simple(unit, in_flight),
            },
            Expect::DataOffset(header) => self.data(header, unit, in_flight),
            Expect::Payload(header) => self.payload(header, unit, in_flight),
            Expect::Data(_) => Ok(()),
        }
    }

    fn pending<'a>(
        &self,
        cookie: u64,
        in_flight: &'a mut InFlight,
    ) -> Result<&'a mut Pending, ClientFault> {
        in_flight
            .get(cookie)
            .ok_or_else(|| self.wrong("reply cookie", cookie, "no such request is outstanding"))
    }

    fn simple(&mut self, unit: &[u8], in_flight: &mut InFlight) -> Result<(), ClientFault> {
        let mut fields = Fields::new(unit);
        let magic = fields.u32().unwrap_or_default();
        if magic != wire::SIMPLE_REPLY_MAGIC {
            let reason = "a reply opens with one of two magics";
            return Err(self.wrong("reply magic", magic.into(), reason));
        }
        let error = fields.u32().unwrap_or_default();
        let cookie = fields.u64().unwrap_or_default();
        let pending = self.pending(cookie, in_flight)?;
        if self.structured && matches!(pending.command, Command::Read | Command::BlockStatus) {
            let reason = "this command is answered with structured replies";
            return Err(self.wrong("reply magic", magic.into(), reason));
        }
        if error != 0 {
            pending.refusal = Some(Refusal {
                errno: Errno::from_wire(error),
                message: String::new(),
            });
        } else if pending.command == Command::Read && pending.len > 0 {
            let end = pending.len;
            return self.begin_data(cookie, (0, end), true, in_flight);
        }
        self.finish(cookie, in_flight)
    }

    fn chunk(
        &mut self,
        bytes: &[u8; CHUNK_HEADER_LEN],
        in_flight: &mut InFlight,
    ) -> Result<(), ClientFault> {
        let header = ChunkHeader::decode(bytes)
            .map_err(|wrong| self.wrong("reply magic", wrong.0, "not a magic of a reply"))?;
        if !self.structured {
            let reason = "structured replies were not agreed on";
            return Err(self.wrong("reply magic", wire::CHUNK_MAGIC.into(), reason));
        }
        let command = self.pending(header.cookie, in_flight)?.command;
        let len = header.len as usize;
        let fits = match header.kind {
            chunk::NONE => len == 0 && header.flags & chunk::DONE != 0,
            chunk::OFFSET_DATA => command == Command::Read && len > 8,
            chunk::OFFSET_HOLE => command == Command::Read && len == 12,
            chunk::BLOCK_STATUS => {
                let whole = len.checked_sub(4).is_some_and(|len| len % 8 == 0);
                command == Command::BlockStatus && whole && len > 4 && len <= 4 + 8 * MAX_EXTENTS
            }
            kind if kind & chunk::ERROR_BIT != 0 => (6..=14 + MAX_STRING).contains(&len),
            kind => return Err(self.wrong("chunk type", kind.into(), "unknown")),
        };
        if !fits {
            let reason = "this chunk cannot have this length, or not for this command";
            return Err(self.wrong("chunk length", header.len.into(), reason));
        }
        match header.kind {
            chunk::NONE => return self.finish(header.cookie, in_flight),
            chunk::OFFSET_DATA => self.expect = Expect::DataOffset(header),
            _ => self.expect = Expect::Payload(header),
        }
        Ok(())
    }

    fn data(
        &mut self,
        header: ChunkHeader,
        unit: &[u8],
        in_flight: &mut InFlight,
    ) -> Result<(), ClientFault> {
        let offset = Fields::new(unit).u64().unwrap_or_default();
        let len = header.len.saturating_sub(8);
        let range = self.cover(header.cookie, offset, len, in_flight)?;
        let done = header.flags & chunk::DONE != 0;
        self.begin_data(header.cookie, range, done, in_flight)
    }

    /// Check that a run of a read lies inside it and is new; answers it relative to the read.
    fn cover(
        &self,
        cookie: u64,
        offset: u64,
        len: u32,
        in_flight: &mut InFlight,
    ) -> Result<(u32, u32), ClientFault> {
        let pending = self.pending(cookie, in_flight)?;
        let range = offset
            .checked_sub(pending.offset)
            .and_then(|start| u32::try_from(start).ok())
            .and_then(|start| Some((start, start.checked_add(len)?)))
            .filter(|(_, end)| *end <= pending.len);
        let Some((start, end)) = range else {
            return Err(self.wrong("chunk offset", offset, "outside of what was asked"));
        };
        if !pending.coverage.add(start, end) {
            return Err(self.wrong("chunk offset", offset, "these bytes came before"));
        }
        Ok((start, end))
    }

    fn begin_data(
        &mut self,
        cookie: u64,
        (start, end): (u32, u32),
        done: bool,
        in_flight: &mut InFlight,
    ) -> Result<(), ClientFault> {
        if !self.structured && !self.pending(cookie, in_flight)?.coverage.add(start, end) {
            return Err(self.wrong("reply cookie", cookie, "answered twice"));
        }
        self.expect = Expect::Data(Incoming {
            cookie,
            buffer: in_flight.take_buffer(cookie),
            at: start as usize,
            end: end as usize,
            done,
        });
        Ok(())
    }

    fn payload(
        &mut self,
        header: ChunkHeader,
        unit: &[u8],
        in_flight: &mut InFlight,
    ) -> Result<(), ClientFault> {
        match header.kind {
            chunk::OFFSET_HOLE => self.hole(header.cookie, unit, in_flight)?,
            chunk::BLOCK_STATUS => self.extents(header.cookie, unit, in_flight)?,
            _ => self.error(header.cookie, unit, in_flight)?,
        }
        if header.flags & chunk::DONE != 0 {
            self.finish(header.cookie, in_flight)?;
        }
        Ok(())
    }

    fn hole(&self, cookie: u64, unit: &[u8], in_flight: &mut InFlight) -> Result<(), ClientFault> {
        let mut fields = Fields::new(unit);
        let offset = fields.u64().unwrap_or_default();
        let len = fields.u32().unwrap_or_default();
        if len == 0 {
            return Err(self.wrong("hole size", 0, "a hole is not empty"));
        }
        let (start, end) = self.cover(cookie, offset, len, in_flight)?;
        let mut buffer = in_flight.take_buffer(cookie);
        if let Some(run) = buffer.get_mut(start as usize..end as usize) {
            run.fill(0);
        }
        if let Some(pending) = in_flight.get(cookie) {
            pending.buffer = buffer;
        }
        Ok(())
    }

    fn extents(
        &self,
        cookie: u64,
        unit: &[u8],
        in_flight: &mut InFlight,
    ) -> Result<(), ClientFault> {
        let mut fields = Fields::new(unit);
        let context = fields.u32();
        if context.is_none() || context != self.allocation {
            let value = context.unwrap_or_default().into();
            return Err(self.wrong("context id", value, "not one that was chosen"));
        }
        let pending = self.pending(cookie, in_flight)?;
        if pending.extents.is_some() {
            return Err(self.wrong("context id", 0, "the extents came before"));
        }
        let mut extents = Vec::with_capacity(fields.rest().len() / 8);
        let mut covered = 0u64;
        while let (Some(len), Some(flags)) = (fields.u32(), fields.u32()) {
            if len == 0 || covered >= pending.len.into() {
                return Err(self.wrong("extent length", len.into(), "empty, or past the request"));
            }
            covered = covered.saturating_add(len.into());
            extents.push(RemoteExtent { len, flags });
        }
        pending.extents = Some(extents);
        Ok(())
    }

    fn error(&self, cookie: u64, unit: &[u8], in_flight: &mut InFlight) -> Result<(), ClientFault> {
        let mut fields = Fields::new(unit);
        let errno = Errno::from_wire(fields.u32().unwrap_or_default());
        let len = fields.u16().unwrap_or_default();
        let Some(message) = fields.bytes(len.into()) else {
            return Err(self.wrong("error message length", len.into(), "longer than the chunk"));
        };
        let pending = self.pending(cookie, in_flight)?;
        // The first error is the one that tells most.
        pending.refusal.get_or_insert_with(|| Refusal {
            errno,
            message: String::from_utf8_lossy(message).into_owned(),
        });
        Ok(())
    }

    /// The reply to `cookie` is complete: check that nothing is missing.
    fn finish(&mut self, cookie: u64, in_flight: &mut InFlight) -> Result<(), ClientFault> {
        let Some(pending) = in_flight.take(cookie) else {
            return Err(self.wrong("reply cookie", cookie, "no such request is outstanding"));
        };
        let result = match (pending.refusal, pending.command) {
            (Some(refusal), _) => {
                in_flight.recycle(pending.buffer);
                Err(refusal)
            }
            (None, Command::Read) => {
                if !pending.coverage.is_complete(pending.len) {
                    let reason = "a read ended before all of it had come";
                    return Err(self.wrong("read length", pending.len.into(), reason));
                }
                Ok(Answer::Data(pending.buffer))
            }
            (None, Command::BlockStatus) => match pending.extents {
                Some(extents) => Ok(Answer::Extents(extents)),
                None => return Err(self.wrong("block status", 0, "it ended without extents")),
            },
            (None, _) => Ok(Answer::Done),
        };
        self.completions.push_back(Completion {
            cookie,
            command: pending.command,
            offset: pending.offset,
            len: pending.len,
            result,
        });
        Ok(())
    }
}
