//! The client's handshake: structured replies if there are any, contexts if wanted, then GO.
//!
//! Machine. A server that does not know GO is asked with `EXPORT_NAME`; one that does not know
//! structured replies is used with simple ones. All of it can be asked at once: four times there and back are one then.

use super::ClientFault;
use crate::nbd::error::{Hex, ProtocolError};
use crate::nbd::wire::{
    self, BASE_ALLOCATION, DEFAULT_MAX_PAYLOAD, Fields, GREETING_LEN, OPTION_REPLY_HEADER_LEN,
    OptionReplyHeader, info, option, reply, transmission,
};

/// The longest payload of an option reply that is accepted.
const MAX_REPLY: u32 = 64 << 10;
/// The flags of a greeting that are of use here.
const EXPECTED: u16 = wire::FIXED_NEWSTYLE | wire::NO_ZEROES;

/// What to ask a server for; it may not have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Structured replies.
    pub structured: bool,
    /// The context `base:allocation`, for block status; needs structured replies.
    pub allocation: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            structured: true,
            allocation: true,
        }
    }
}

/// What a server told about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteExport {
    /// Bytes.
    pub size: u64,
    /// The transmission flags, [`transmission`].
    pub flags: u16,
    /// The smallest unit of a request, bytes.
    pub min_block: u32,
    /// The unit of a good request, bytes.
    pub preferred_block: u32,
    /// The longest read or write, bytes.
    pub max_payload: u32,
    /// Whether replies are structured.
    pub structured: bool,
    /// The id of `base:allocation`, if block status can be asked for.
    pub allocation: Option<u32>,
}

impl RemoteExport {
    /// Whether this flag of [`transmission`] is set.
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether changes fail.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.has(transmission::READ_ONLY)
    }
}

#[derive(Debug)]
enum Expect {
    Greeting,
    ReplyHeader,
    ReplyPayload(OptionReplyHeader),
    /// The answer to `EXPORT_NAME`.
    NameAnswer,
    Nothing,
}

/// The client's handshake.
#[derive(Debug)]
pub struct Attach {
    export: String,
    wanted: Wanted,
    expect: Expect,
    /// The option that is being answered.
    asked: u32,
    /// Bytes of the unit that is expected.
    need: usize,
    held: Vec<u8>,
    position: u64,
    no_zeroes: bool,
    sized: bool,
    /// Everything was asked in the beginning; only answers are awaited.
    at_once: bool,
    remote: RemoteExport,
    output: Vec<u8>,
}

impl Attach {
    /// A handshake for the export `export`, which must be at most 4096 bytes long.
    #[must_use]
    pub fn new(export: &str, wanted: Wanted) -> Self {
        Self {
            export: export.to_owned(),
            wanted,
            expect: Expect::Greeting,
            asked: 0,
            need: GREETING_LEN,
            held: Vec::new(),
            position: 0,
            no_zeroes: false,
            sized: false,
            at_once: false,
            remote: RemoteExport {
                size: 0,
                flags: 0,
                min_block: 1,
                preferred_block: 4096,
                max_payload: DEFAULT_MAX_PAYLOAD,
                structured: false,
                allocation: None,
            },
            output: Vec::new(),
        }
    }

    /// The same for a server that is known to be one of ours: everything is asked before it has said anything, and it is no
    /// use with any other that cannot take that.
    #[must_use]
    pub fn at_once(export: &str) -> Self {
        let mut attach = Self::new(export, Wanted::default());
        attach.answer_greeting(EXPECTED);
        attach.ask(option::STRUCTURED_REPLY, &[]);
        attach.choose_contexts();
        attach.go();
        attach.at_once = true;
        attach.expect = Expect::Greeting;
        attach.need = GREETING_LEN;
        attach
    }

    /// Take bytes of the server, none beyond the end of the handshake; answers how many.
    pub fn receive(&mut self, input: &[u8]) -> Result<usize, ClientFault> {
        let mut rest = input;
        while !matches!(self.expect, Expect::Nothing) {
            let missing = self.need.saturating_sub(self.held.len());
            let (piece, after) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
            self.held.extend_from_slice(piece);
            rest = after;
            if piece.len() < missing {
                break;
            }
            let unit = std::mem::take(&mut self.held);
            self.unit(&unit)?;
            self.position = self.position.saturating_add(unit.len() as u64);
        }
        Ok(input.len().saturating_sub(rest.len()))
    }

    /// Bytes to send; the driver takes them out.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// What the server told, once the handshake is over.
    #[must_use]
    pub fn remote(&self) -> Option<&RemoteExport> {
        matches!(self.expect, Expect::Nothing).then_some(&self.remote)
    }

    /// Bytes of the server's stream that the handshake took.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    fn wrong(&self, field: &'static str, value: u64, reason: &'static str) -> ClientFault {
        ProtocolError::new(field, Hex(value), self.position, reason).into()
    }

    fn unit(&mut self, unit: &[u8]) -> Result<(), ClientFault> {
        match std::mem::replace(&mut self.expect, Expect::Nothing) {
            Expect::Greeting => self.greeting(unit),
            Expect::ReplyHeader => self.reply_header(unit),
            Expect::ReplyPayload(header) => self.reply(header, unit),
            Expect::NameAnswer => self.name_answer(unit),
            Expect::Nothing => Ok(()),
        }
    }

    fn greeting(&mut self, unit: &[u8]) -> Result<(), ClientFault> {
        let mut fields = Fields::new(unit);
        let (magic, version) = (fields.u64(), fields.u64());
        if magic != Some(wire::NBDMAGIC) {
            let value = magic.unwrap_or_default();
            return Err(self.wrong("greeting magic", value, "this is no NBD server"));
        }
        if version != Some(wire::IHAVEOPT) {
            let value = version.unwrap_or_default();
            return Err(self.wrong(
                "greeting version",
                value,
                "only newstyle servers can be used",
            ));
        }
        let flags = fields.u16().unwrap_or_default();
        if !self.at_once {
            self.answer_greeting(flags & EXPECTED);
        } else if flags & EXPECTED != EXPECTED {
            return Err(self.wrong(
                "handshake flags",
                flags.into(),
                "a server that is asked everything at once has to have all of them",
            ));
        }
        if flags & wire::FIXED_NEWSTYLE == 0 {
            self.ask_by_name();
        } else if self.wanted.structured {
            self.ask(option::STRUCTURED_REPLY, &[]);
        } else {
            self.go();
        }
        Ok(())
    }

    fn answer_greeting(&mut self, flags: u16) {
        self.no_zeroes = flags & wire::NO_ZEROES != 0;
        self.output
            .extend_from_slice(&u32::from(flags).to_be_bytes());
    }

    fn ask(&mut self, number: u32, data: &[u8]) {
        if !self.at_once {
            wire::put_option(&mut self.output, number, data);
        }
        self.asked = number;
        self.expect_reply();
    }

    fn expect_reply(&mut self) {
        self.expect = Expect::ReplyHeader;
        self.need = OPTION_REPLY_HEADER_LEN;
    }

    fn put_name(&self) -> Vec<u8> {
        let mut data = Vec::with_capacity(self.export.len().saturating_add(32));
        data.extend_from_slice(&(self.export.len() as u32).to_be_bytes());
        data.extend_from_slice(self.export.as_bytes());
        data
    }

    fn choose_contexts(&mut self) {
        let mut data = self.put_name();
        data.extend_from_slice(&1u32.to_be_bytes());
        data.extend_from_slice(&(BASE_ALLOCATION.len() as u32).to_be_bytes());
        data.extend_from_slice(BASE_ALLOCATION.as_bytes());
        self.ask(option::SET_META_CONTEXT, &data);
    }

    fn go(&mut self) {
        let mut data = self.put_name();
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.ask(option::GO, &data);
    }

    fn ask_by_name(&mut self) {
        wire::put_option(
            &mut self.output,
            option::EXPORT_NAME,
            self.export.as_bytes(),
        );
        self.expect = Expect::NameAnswer;
        self.need = 10;
        if !self.no_zeroes {
            self.need += wire::EXPORT_NAME_ZEROES;
        }
    }

    fn name_answer(&mut self, unit: &[u8]) -> Result<(), ClientFault> {
        let mut fields = Fields::new(unit);
        self.sized(fields.u64(), fields.u16())?;
        self.end()
    }

    fn reply_header(&mut self, unit: &[u8]) -> Result<(), ClientFault> {
        let Some(bytes) = unit.first_chunk() else {
            return Err(self.wrong("option reply", 0, "too short"));
        };
        let header = OptionReplyHeader::decode(bytes).map_err(|wrong| {
            self.wrong(
                "option reply magic",
                wrong.0,
                "a reply opens with its magic",
            )
        })?;
        if header.option != self.asked {
            let value = header.option.into();
            return Err(self.wrong("option reply", value, "it answers what was not asked"));
        }
        if header.len > MAX_REPLY {
            let value = header.len.into();
            return Err(self.wrong("option reply length", value, "longer than any reply may be"));
        }
        self.need = header.len as usize;
        self.expect = Expect::ReplyPayload(header);
        Ok(())
    }

    fn reply(&mut self, header: OptionReplyHeader, payload: &[u8]) -> Result<(), ClientFault> {
        let failed = header.kind & reply::ERROR_BIT != 0;
        match (header.option, header.kind) {
            (option::STRUCTURED_REPLY, kind) if failed || kind == reply::ACK => {
                self.remote.structured = !failed;
                if self.wanted.allocation && (self.remote.structured || self.at_once) {
                    self.choose_contexts();
                } else {
                    self.go();
                }
            }
            (option::SET_META_CONTEXT, reply::META_CONTEXT) => {
                let mut fields = Fields::new(payload);
                if let Some(id) = fields.u32()
                    && fields.rest() == BASE_ALLOCATION.as_bytes()
                {
                    self.remote.allocation = Some(id);
                }
                self.expect_reply();
            }
            (option::SET_META_CONTEXT, kind) if failed || kind == reply::ACK => {
                if failed || !self.remote.structured {
                    self.remote.allocation = None;
                }
                self.go();
            }
            (option::GO, reply::INFO) => {
                self.info(payload)?;
                self.expect_reply();
            }
            (option::GO, reply::ACK) => self.end()?,
            (option::GO, reply::ERR_UNSUP) => self.ask_by_name(),
            (option::GO, kind) if failed => {
                return Err(ClientFault::Refused {
                    kind,
                    message: String::from_utf8_lossy(payload).into_owned(),
                });
            }
            (_, kind) => {
                let reason = "not a reply to what was asked";
                return Err(self.wrong("option reply type", kind.into(), reason));
            }
        }
        Ok(())
    }

    fn info(&mut self, payload: &[u8]) -> Result<(), ClientFault> {
        let mut fields = Fields::new(payload);
        match fields.u16() {
            Some(info::EXPORT) => self.sized(fields.u64(), fields.u16()),
            Some(info::BLOCK_SIZE) => {
                let sizes = (fields.u32(), fields.u32(), fields.u32());
                let (Some(min), Some(preferred), Some(max)) = sizes else {
                    return Err(self.wrong("block size info", 0, "too short"));
                };
                if !min.is_power_of_two() || min > 1 << 16 || preferred < min || max < min {
                    let value = min.into();
                    return Err(self.wrong("block size info", value, "sizes that cannot be"));
                }
                self.remote.min_block = min;
                self.remote.preferred_block = preferred;
                self.remote.max_payload = max;
                Ok(())
            }
            // Facts that were not asked for may be ignored.
            Some(_) => Ok(()),
            None => Err(self.wrong("info type", 0, "too short")),
        }
    }

    fn sized(&mut self, size: Option<u64>, flags: Option<u16>) -> Result<(), ClientFault> {
        let (Some(size), Some(flags)) = (size, flags) else {
            return Err(self.wrong("export size and flags", 0, "too short"));
        };
        if size > i64::MAX.cast_unsigned() {
            return Err(self.wrong("export size", size, "no disk is so large"));
        }
        self.remote.size = size;
        self.remote.flags = flags;
        self.sized = true;
        Ok(())
    }

    fn end(&mut self) -> Result<(), ClientFault> {
        if !self.sized {
            return Err(self.wrong("export info", 0, "GO ended without size and flags"));
        }
        self.expect = Expect::Nothing;
        Ok(())
    }
}
