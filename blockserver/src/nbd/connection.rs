//! The server's side of one NBD client, from greeting to disconnect.
//!
//! Machine: bytes of the client in; events and bytes for the client out. It checks every request
//! before the driver sees it and answers bad ones itself, so an [`NbdRequest`] is always one that
//! the export can carry out. It must never block, panic on what a client sends, or hold more than a
//! bounded amount of it. Specified in `doc/proto.md`, "Transmission"; what is spoken is in
//! `docs/nbd.md`.
//!
//! The payload of a write does not pass through here: after [`Event::Request`] with
//! [`Command::Write`] the driver takes `len` bytes itself (first from what it has not handed over,
//! then straight from the socket into the request's buffer) and calls
//! [`Connection::payload_taken`].

use std::collections::VecDeque;

use super::error::{Hex, ProtocolError};
use super::handshake::{self, Intake, Negotiated, Verdict};
use super::limits::{Checked, Limits};
pub use super::reply::ReplyStyle;
use super::wire::{
    self, Command, CommandFlags, DEFAULT_MAX_PAYLOAD, Errno, OPTION_HEADER_LEN, OptionHeader,
    REQUEST_LEN, RequestHeader,
};

/// Events that may wait in the machine; at this many it takes no more bytes.
pub const MAX_QUEUED_EVENTS: usize = 1024;
/// Bytes of option replies that may wait; beyond it the machine takes no more options.
pub const MAX_QUEUED_REPLIES: usize = 256 << 10;
/// The longest payload of a refused write that is read and dropped; beyond it the connection ends.
pub const MAX_DRAIN: u32 = 2 * DEFAULT_MAX_PAYLOAD;

/// What a client may find here. Implemented by the server's export table; must not block.
pub trait ExportTable {
    /// The export of this name; the empty name is the default export.
    fn find(&self, name: &str) -> Option<ExportInfo>;

    /// Names and descriptions to list.
    fn names(&self) -> Vec<(String, String)>;
}

/// What a client learns about an export, and the table's own handle of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Chosen by the table, handed back in [`Event::Attached`].
    pub id: u64,
    /// Bytes; a multiple of `min_block`.
    pub size: u64,
    /// Whether changes fail with EPERM.
    pub read_only: bool,
    /// The smallest unit of a request, bytes, a power of two up to 65,536. Requests that are not
    /// multiples of it are answered with EINVAL; 1 takes all.
    pub min_block: u32,
    /// The unit of a good request, bytes, a power of two of at least 512 and `min_block`.
    pub preferred_block: u32,
    /// The longest read or write, bytes, at least `preferred_block`.
    pub max_payload: u32,
    /// Whether a flush on one connection covers what completed on all.
    pub can_multi_conn: bool,
    /// Whether seeks cost.
    pub rotational: bool,
    /// For people; may be empty.
    pub description: String,
}

/// What the driver has to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The handshake ended; requests to this export follow.
    Attached {
        /// [`ExportInfo::id`].
        export: u64,
    },
    /// A valid request, to be answered through [`Connection::reply_style`].
    Request(NbdRequest),
    /// The client said goodbye: answer what is in flight, send the output, close.
    Disconnect,
}

/// A request that the export can carry out: in bounds, allowed, not empty (but for FLUSH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdRequest {
    /// The client's name for it, to be given back in the reply.
    pub cookie: u64,
    /// What to do.
    pub command: Command,
    /// How.
    pub flags: CommandFlags,
    /// First byte of the disk.
    pub offset: u64,
    /// How many bytes; 0 only for FLUSH.
    pub len: u32,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Options are exchanged.
    Handshake,
    /// Requests come.
    Transmission,
    /// Nothing more is taken from the client.
    Closing,
}

#[derive(Debug)]
enum Phase {
    ClientFlags,
    OptionHeader,
    OptionData {
        option: u32,
        len: u32,
    },
    SkipOption {
        option: u32,
        left: u32,
        error: u32,
    },
    Request,
    /// The driver is taking the payload of a write.
    Payload {
        len: u32,
    },
    /// The payload of a refused write is dropped.
    Drain {
        left: u32,
    },
    Closing,
}

/// The server's side of one client.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    negotiated: Negotiated,
    limits: Limits,
    style: ReplyStyle,
    /// The beginning of a unit (flags, head, option data) that came in pieces.
    held: Vec<u8>,
    /// Bytes of the client's stream taken so far, payloads included.
    position: u64,
    events: VecDeque<Event>,
    output: Vec<u8>,
}

impl Default for Connection {
    fn default() -> Self {
        Self::new()
    }
}

impl Connection {
    /// A new client; the greeting is already in the output.
    #[must_use]
    pub fn new() -> Self {
        let mut output = Vec::with_capacity(512);
        wire::put_greeting(&mut output);
        Self {
            phase: Phase::ClientFlags,
            negotiated: Negotiated::default(),
            limits: Limits::default(),
            style: ReplyStyle::default(),
            held: Vec::new(),
            position: 0,
            events: VecDeque::new(),
            output,
        }
    }

    /// Take bytes of the client; answers how many were taken.
    ///
    /// Fewer than given are taken when a write's payload is next (right after its head), when
    /// [`MAX_QUEUED_EVENTS`] or [`MAX_QUEUED_REPLIES`] is reached, and at the end of the
    /// connection. Keep the rest, deal with events, payload and output, and call again until
    /// nothing is taken. After an error the state is [`State::Closing`]; what is in the output may
    /// still be sent.
    pub fn receive(
        &mut self,
        input: &[u8],
        exports: &dyn ExportTable,
    ) -> Result<usize, ProtocolError> {
        let mut rest = input;
        while !rest.is_empty() && self.takes_input() {
            match self.step(rest, exports) {
                Ok(taken) => {
                    self.position = self.position.saturating_add(taken as u64);
                    rest = rest.get(taken..).unwrap_or_default();
                }
                Err(error) => {
                    self.phase = Phase::Closing;
                    return Err(error);
                }
            }
        }
        Ok(input.len().saturating_sub(rest.len()))
    }

    /// The next thing for the driver to act on.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes to send: greeting, option replies, replies to requests refused here. The driver takes
    /// them out, and may append its own replies.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// The driver has taken the payload of the write announced last.
    pub fn payload_taken(&mut self) {
        if let Phase::Payload { len } = self.phase {
            self.position = self.position.saturating_add(len.into());
            self.phase = Phase::Request;
        }
    }

    /// Bytes of payload that the driver has to take before more input is taken here.
    #[must_use]
    pub fn payload_pending(&self) -> Option<u32> {
        match self.phase {
            Phase::Payload { len } => Some(len),
            _ => None,
        }
    }

    /// How far the connection is.
    #[must_use]
    pub fn state(&self) -> State {
        match self.phase {
            Phase::ClientFlags
            | Phase::OptionHeader
            | Phase::OptionData { .. }
            | Phase::SkipOption { .. } => State::Handshake,
            Phase::Request | Phase::Payload { .. } | Phase::Drain { .. } => State::Transmission,
            Phase::Closing => State::Closing,
        }
    }

    /// How replies look to this client; settled once [`Event::Attached`] has come.
    #[must_use]
    pub fn reply_style(&self) -> ReplyStyle {
        self.style
    }

    fn takes_input(&self) -> bool {
        match self.phase {
            Phase::Payload { .. } | Phase::Closing => false,
            Phase::Request => self.events.len() < MAX_QUEUED_EVENTS,
            Phase::Drain { .. } => true,
            _ => self.output.len() < MAX_QUEUED_REPLIES,
        }
    }

    /// Take one unit, or what there is of one, off the front of `rest`, which is not empty.
    fn step(&mut self, rest: &[u8], exports: &dyn ExportTable) -> Result<usize, ProtocolError> {
        match self.phase {
            Phase::ClientFlags => self.client_flags(rest),
            Phase::OptionHeader => self.option_header(rest, exports),
            Phase::OptionData { option, len } => self.option_data(rest, option, len, exports),
            Phase::SkipOption {
                option,
                left,
                error,
            } => {
                let (taken, left) = skip(rest, left);
                self.phase = Phase::SkipOption {
                    option,
                    left,
                    error,
                };
                if left == 0 {
                    self.option_skipped(option, error);
                }
                Ok(taken)
            }
            Phase::Request => self.request(rest),
            Phase::Drain { left } => {
                let (taken, left) = skip(rest, left);
                self.phase = if left == 0 {
                    Phase::Request
                } else {
                    Phase::Drain { left }
                };
                Ok(taken)
            }
            Phase::Payload { .. } | Phase::Closing => Ok(0),
        }
    }

    /// The unit's first byte in the client's stream; the unit may have begun in an earlier piece.
    fn unit_start(&self) -> u64 {
        self.position.saturating_sub(self.held.len() as u64)
    }

    /// Collect a unit of `N` bytes that may come in pieces.
    fn collect<const N: usize>(&mut self, rest: &[u8]) -> (usize, Option<[u8; N]>) {
        if self.held.is_empty()
            && let Some(whole) = rest.first_chunk::<N>()
        {
            return (N, Some(*whole));
        }
        let missing = N.saturating_sub(self.held.len());
        let taken = missing.min(rest.len());
        self.held
            .extend_from_slice(rest.get(..taken).unwrap_or_default());
        let whole = self.held.first_chunk::<N>().copied();
        (taken, whole)
    }

    fn client_flags(&mut self, rest: &[u8]) -> Result<usize, ProtocolError> {
        let start = self.unit_start();
        let (taken, whole) = self.collect::<4>(rest);
        if let Some(bytes) = whole {
            self.held.clear();
            let flags = u32::from_be_bytes(bytes);
            let known = u32::from(wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
            if flags & !known != 0 {
                return Err(ProtocolError::new(
                    "client flags",
                    Hex(flags.into()),
                    start,
                    "a server must drop a client that sets flags it did not offer",
                ));
            }
            self.negotiated.fixed_newstyle = flags & u32::from(wire::FIXED_NEWSTYLE) != 0;
            self.negotiated.no_zeroes = flags & u32::from(wire::NO_ZEROES) != 0;
            self.phase = Phase::OptionHeader;
        }
        Ok(taken)
    }

    fn option_header(
        &mut self,
        rest: &[u8],
        exports: &dyn ExportTable,
    ) -> Result<usize, ProtocolError> {
        let start = self.unit_start();
        let (taken, whole) = self.collect::<OPTION_HEADER_LEN>(rest);
        let Some(bytes) = whole else {
            return Ok(taken);
        };
        self.held.clear();
        let header = OptionHeader::decode(&bytes).map_err(|wrong| {
            let reason = "an option opens with IHAVEOPT";
            ProtocolError::new("option magic", Hex(wrong.0), start, reason)
        })?;
        match handshake::intake(header) {
            Intake::Read if header.len == 0 => self.option(header.option, &[], start, exports)?,
            Intake::Read => {
                self.phase = Phase::OptionData {
                    option: header.option,
                    len: header.len,
                };
            }
            Intake::Skip(error) if header.len == 0 => self.option_skipped(header.option, error),
            Intake::Skip(error) => {
                self.phase = Phase::SkipOption {
                    option: header.option,
                    left: header.len,
                    error,
                };
            }
            Intake::Refuse => {
                let at = start.saturating_add(12);
                let reason = "longer than any option may be";
                return Err(ProtocolError::new("option length", header.len, at, reason));
            }
        }
        Ok(taken)
    }

    fn option_data(
        &mut self,
        rest: &[u8],
        option: u32,
        len: u32,
        exports: &dyn ExportTable,
    ) -> Result<usize, ProtocolError> {
        let start = self.unit_start();
        let missing = (len as usize).saturating_sub(self.held.len());
        let taken = missing.min(rest.len());
        let piece = rest.get(..taken).unwrap_or_default();
        if taken < missing {
            self.held.extend_from_slice(piece);
        } else if self.held.is_empty() {
            self.option(option, piece, start, exports)?;
        } else {
            self.held.extend_from_slice(piece);
            let data = std::mem::take(&mut self.held);
            self.option(option, &data, start, exports)?;
        }
        Ok(taken)
    }

    /// An option is complete; its data began at `start`.
    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        start: u64,
        exports: &dyn ExportTable,
    ) -> Result<(), ProtocolError> {
        let out = &mut self.output;
        match handshake::answer(&mut self.negotiated, option, data, exports, out) {
            Verdict::Continue => self.phase = Phase::OptionHeader,
            Verdict::Attach { export, allocation } => self.attach(&export, allocation),
            Verdict::Abort => {
                self.phase = Phase::Closing;
                self.events.push_back(Event::Disconnect);
            }
            Verdict::Drop {
                field,
                value,
                reason,
            } => return Err(ProtocolError::new(field, value, start, reason)),
        }
        Ok(())
    }

    fn option_skipped(&mut self, option: u32, error: u32) {
        handshake::answer_skipped(option, error, &mut self.output);
        self.phase = Phase::OptionHeader;
    }

    fn attach(&mut self, export: &ExportInfo, allocation: bool) {
        self.limits = Limits::of(export);
        self.style = ReplyStyle::new(self.negotiated.structured, allocation);
        self.held = Vec::with_capacity(REQUEST_LEN);
        self.phase = Phase::Request;
        self.events.push_back(Event::Attached { export: export.id });
    }

    fn request(&mut self, rest: &[u8]) -> Result<usize, ProtocolError> {
        let start = self.unit_start();
        let (taken, whole) = self.collect::<REQUEST_LEN>(rest);
        let Some(bytes) = whole else {
            return Ok(taken);
        };
        self.held.clear();
        let header = RequestHeader::decode(&bytes).map_err(|wrong| {
            let reason = "a request opens with its magic";
            ProtocolError::new("request magic", Hex(wrong.0), start, reason)
        })?;
        if header.command == wire::CMD_DISC {
            self.phase = Phase::Closing;
            self.events.push_back(Event::Disconnect);
            return Ok(taken);
        }
        match self.limits.check(&header, self.style) {
            Checked::Pass(request) => {
                if request.command == Command::Write {
                    self.phase = Phase::Payload { len: request.len };
                }
                self.events.push_back(Event::Request(request));
            }
            Checked::Empty(command) => {
                if command == Command::Read {
                    self.style.reply_empty_read(&mut self.output, header.cookie);
                } else {
                    self.style.reply_done(&mut self.output, header.cookie);
                }
            }
            Checked::Refuse(errno) => self.refuse(&header, errno, start)?,
        }
        Ok(taken)
    }

    fn refuse(
        &mut self,
        header: &RequestHeader,
        errno: Errno,
        start: u64,
    ) -> Result<(), ProtocolError> {
        if header.command == Command::Write.to_wire() {
            if header.len > MAX_DRAIN.max(self.limits.max_payload()) {
                return Err(ProtocolError::new(
                    "request length",
                    header.len,
                    start.saturating_add(24),
                    "a write far longer than the largest payload",
                ));
            }
            if header.len > 0 {
                self.phase = Phase::Drain { left: header.len };
            }
        }
        self.style
            .reply_error(&mut self.output, header.cookie, errno);
        Ok(())
    }
}

/// Drop up to `left` bytes of `rest`: how many were there, how many are left.
fn skip(rest: &[u8], left: u32) -> (usize, u32) {
    let taken = u32::try_from(rest.len()).unwrap_or(u32::MAX).min(left);
    (taken as usize, left.saturating_sub(taken))
}

#[cfg(test)]
mod tests;
