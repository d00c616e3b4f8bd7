//! How a connection becomes encrypted: STARTTLS, before anything else is said ("TLS support" of the protocol document).
//!
//! Two machines, one for each side. Each says how many bytes it needs next and takes just those, so that nothing that was
//! sent before the encryption is taken for something that came behind it. A server asks for TLS before all else (the
//! document's FORCEDTLS). Behind it the two sides go on as if only the greeting had been said.

use super::client::ClientFault;
use super::error::{Hex, ProtocolError};
use super::handshake::MAX_OPTION_SKIP;
use super::wire::{
    self, Fields, GREETING_LEN, OPTION_HEADER_LEN, OPTION_REPLY_HEADER_LEN, OptionHeader,
    OptionReplyHeader, option, reply,
};

/// The flags of a greeting that both sides have to have.
const FLAGS: u16 = wire::FIXED_NEWSTYLE | wire::NO_ZEROES;
/// The longest reply that is read: a refusal with its words.
const MAX_REFUSAL: u32 = 4096;
/// How many options other than STARTTLS are answered.
const PATIENCE: u32 = 16;
/// Bytes of a client's flags.
pub const CLIENT_FLAGS_LEN: usize = 4;

/// What the client of an encrypted connection sends first: its flags, and that it wants TLS.
#[must_use]
pub fn opening() -> Vec<u8> {
    let mut out = u32::from(FLAGS).to_be_bytes().to_vec();
    wire::put_option(&mut out, option::STARTTLS, &[]);
    out
}

/// The client's side, once it has sent its [`opening`].
#[derive(Debug)]
pub struct Opening {
    awaits: Awaits,
    position: u64,
}

#[derive(Clone, Copy, Debug)]
enum Awaits {
    Greeting,
    Reply,
    Refusal(OptionReplyHeader),
    Nothing,
}

impl Default for Opening {
    fn default() -> Self {
        Self {
            awaits: Awaits::Greeting,
            position: 0,
        }
    }
}

impl Opening {
    /// How many bytes are to be taken next; 0 when TLS begins.
    #[must_use]
    pub fn needs(&self) -> usize {
        match self.awaits {
            Awaits::Greeting => GREETING_LEN,
            Awaits::Reply => OPTION_REPLY_HEADER_LEN,
            Awaits::Refusal(header) => header.len as usize,
            Awaits::Nothing => 0,
        }
    }

    /// Take as many bytes as it needs.
    pub fn take(&mut self, unit: &[u8]) -> Result<(), ClientFault> {
        self.awaits = match self.awaits {
            Awaits::Greeting => self.greeting(unit)?,
            Awaits::Reply => self.reply(unit)?,
            Awaits::Refusal(header) => return Err(refusal(header, unit)),
            Awaits::Nothing => Awaits::Nothing,
        };
        self.position = self.position.saturating_add(unit.len() as u64);
        Ok(())
    }

    fn wrong(&self, field: &'static str, value: u64, reason: &'static str) -> ClientFault {
        ProtocolError::new(field, Hex(value), self.position, reason).into()
    }

    fn greeting(&self, unit: &[u8]) -> Result<Awaits, ClientFault> {
        let mut fields = Fields::new(unit);
        let magic = fields.u64().unwrap_or_default();
        if magic != wire::NBDMAGIC {
            return Err(self.wrong("greeting magic", magic, "this is no NBD server"));
        }
        let version = fields.u64().unwrap_or_default();
        let flags = fields.u16().unwrap_or_default();
        if version != wire::IHAVEOPT || flags & FLAGS != FLAGS {
            let reason = "only servers of the fixed newstyle have TLS";
            return Err(self.wrong("handshake flags", flags.into(), reason));
        }
        Ok(Awaits::Reply)
    }

    fn reply(&self, unit: &[u8]) -> Result<Awaits, ClientFault> {
        let header = unit.first_chunk().map(OptionReplyHeader::decode);
        let Some(Ok(header)) = header else {
            let reason = "a reply opens with its magic";
            return Err(self.wrong("option reply magic", 0, reason));
        };
        if header.option != option::STARTTLS {
            let reason = "it answers what was not asked";
            return Err(self.wrong("option reply", header.option.into(), reason));
        }
        match header {
            OptionReplyHeader { len: 0, kind, .. } if kind == reply::ACK => Ok(Awaits::Nothing),
            OptionReplyHeader { len: 0, .. } => Err(refusal(header, &[])),
            OptionReplyHeader { len, kind, .. }
                if kind & reply::ERROR_BIT != 0 && len <= MAX_REFUSAL =>
            {
                Ok(Awaits::Refusal(header))
            }
            _ => {
                let reason = "longer than a reply to STARTTLS may be";
                Err(self.wrong("option reply length", header.len.into(), reason))
            }
        }
    }
}

fn refusal(header: OptionReplyHeader, words: &[u8]) -> ClientFault {
    ClientFault::Refused {
        kind: header.kind,
        message: String::from_utf8_lossy(words).into_owned(),
    }
}

/// The server's side, which begins when the greeting is sent.
#[derive(Debug)]
pub struct Door {
    expects: Expects,
    refused: u32,
    position: u64,
    output: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Expects {
    Flags,
    Option,
    /// The data of an option that is refused; this many bytes are left of it.
    Data(OptionHeader, u32),
}

/// What follows from what a client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// More is needed.
    More,
    /// These are its flags, for the server behind the door.
    Flags([u8; CLIENT_FLAGS_LEN]),
    /// TLS begins, once the output is sent.
    Seal,
    /// It goes, once the output is sent.
    Leave,
}

impl Default for Door {
    fn default() -> Self {
        Self {
            expects: Expects::Flags,
            refused: 0,
            position: 0,
            output: Vec::new(),
        }
    }
}

impl Door {
    /// How many bytes are to be taken next, never more than 4096.
    #[must_use]
    pub fn needs(&self) -> usize {
        match self.expects {
            Expects::Flags => CLIENT_FLAGS_LEN,
            Expects::Option => OPTION_HEADER_LEN,
            Expects::Data(_, left) => left.min(4096) as usize,
        }
    }

    /// Bytes to send; the driver takes them out.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Take as many bytes as it needs.
    pub fn take(&mut self, unit: &[u8]) -> Result<Entry, ProtocolError> {
        let entry = match self.expects {
            Expects::Flags => self.flags(unit),
            Expects::Option => self.option(unit),
            Expects::Data(header, left) => {
                let left = left.saturating_sub(unit.len() as u32);
                Ok(self.data(header, left))
            }
        };
        self.position = self.position.saturating_add(unit.len() as u64);
        entry
    }

    fn wrong(&self, field: &'static str, value: u64, reason: &'static str) -> ProtocolError {
        ProtocolError::new(field, Hex(value), self.position, reason)
    }

    fn flags(&mut self, unit: &[u8]) -> Result<Entry, ProtocolError> {
        let flags = *unit.first_chunk().unwrap_or(&[0; CLIENT_FLAGS_LEN]);
        if u32::from_be_bytes(flags) & u32::from(wire::FIXED_NEWSTYLE) == 0 {
            let reason = "a client without fixed newstyle cannot ask for TLS";
            return Err(self.wrong("client flags", u32::from_be_bytes(flags).into(), reason));
        }
        self.expects = Expects::Option;
        Ok(Entry::Flags(flags))
    }

    fn option(&mut self, unit: &[u8]) -> Result<Entry, ProtocolError> {
        let header = unit.first_chunk().map(OptionHeader::decode);
        let Some(Ok(header)) = header else {
            let reason = "an option opens with its magic";
            return Err(self.wrong("option magic", 0, reason));
        };
        if header.option == option::EXPORT_NAME || header.len > MAX_OPTION_SKIP {
            let reason = "what cannot be refused is not heard before TLS";
            return Err(self.wrong("option", header.option.into(), reason));
        }
        self.refused += u32::from(header.option != option::STARTTLS);
        if self.refused > PATIENCE {
            let reason = "it has been told that it needs TLS";
            return Err(self.wrong("option", header.option.into(), reason));
        }
        Ok(self.data(header, header.len))
    }

    /// An option is being taken, of whose data so much is left.
    fn data(&mut self, header: OptionHeader, left: u32) -> Entry {
        if left > 0 {
            self.expects = Expects::Data(header, left);
            return Entry::More;
        }
        self.expects = Expects::Option;
        let (kind, words, entry) = match header {
            OptionHeader { option, len: 0 } if option == option::STARTTLS => {
                (reply::ACK, "", Entry::Seal)
            }
            OptionHeader { option, .. } if option == option::STARTTLS => {
                (reply::ERR_INVALID, "STARTTLS takes no data", Entry::More)
            }
            OptionHeader { option, .. } if option == option::ABORT => {
                (reply::ACK, "", Entry::Leave)
            }
            _ => (reply::ERR_TLS_REQD, "TLS first, please", Entry::More),
        };
        wire::put_option_reply(&mut self.output, header.option, kind, &[words.as_bytes()]);
        entry
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Hand over what it needs again and again, until it is through or nothing is left.
    fn enter(door: &mut Door, mut bytes: &[u8]) -> Result<Entry, ProtocolError> {
        loop {
            let Some((unit, rest)) = bytes.split_at_checked(door.needs()) else {
                return Ok(Entry::More);
            };
            bytes = rest;
            match door.take(unit)? {
                Entry::Seal => {
                    assert!(bytes.is_empty(), "TLS begins behind what was taken");
                    return Ok(Entry::Seal);
                }
                Entry::Leave => return Ok(Entry::Leave),
                Entry::More | Entry::Flags(_) => {}
            }
        }
    }

    fn option_with(number: u32, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        wire::put_option(&mut out, number, data);
        out
    }

    #[test]
    fn both_sides_agree_on_where_tls_begins() {
        let (mut door, mut client) = (Door::default(), Opening::default());
        assert_eq!(enter(&mut door, &opening()), Ok(Entry::Seal));
        let mut said = Vec::new();
        wire::put_greeting(&mut said);
        said.append(door.output());
        let mut rest = said.as_slice();
        while client.needs() > 0 {
            let (unit, after) = rest.split_at(client.needs());
            client.take(unit).expect("it is ours");
            rest = after;
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn nothing_but_starttls_is_answered_well_before_tls() {
        let mut door = Door::default();
        let mut said = u32::from(FLAGS).to_be_bytes().to_vec();
        for (number, data) in [
            (option::LIST, &[][..]),
            (option::GO, &[0; 5000]),
            (option::STARTTLS, &[1]),
            (99, &[]),
        ] {
            said.extend_from_slice(&option_with(number, data));
        }
        assert_eq!(enter(&mut door, &said), Ok(Entry::More));
        let mut out = door.output().as_slice();
        for (number, kind) in [
            (option::LIST, reply::ERR_TLS_REQD),
            (option::GO, reply::ERR_TLS_REQD),
            (option::STARTTLS, reply::ERR_INVALID),
            (99, reply::ERR_TLS_REQD),
        ] {
            let header = OptionReplyHeader::decode(out.first_chunk().unwrap()).unwrap();
            assert_eq!((header.option, header.kind), (number, kind));
            out = &out[OPTION_REPLY_HEADER_LEN + header.len as usize..];
        }
        assert_eq!(
            enter(&mut door, &option_with(option::STARTTLS, &[])),
            Ok(Entry::Seal)
        );
    }

    #[test]
    fn who_cannot_be_answered_or_does_not_listen_is_let_go() {
        let flags = u32::from(FLAGS).to_be_bytes();
        let by_name = [&flags[..], &option_with(option::EXPORT_NAME, b"disk")].concat();
        assert!(enter(&mut Door::default(), &by_name).is_err());
        assert!(enter(&mut Door::default(), &[0; 4]).is_err());
        let again = option_with(option::LIST, &[]).repeat(PATIENCE as usize + 1);
        assert!(enter(&mut Door::default(), &[&flags[..], &again].concat()).is_err());
        let leaves = [&flags[..], &option_with(option::ABORT, &[])].concat();
        assert_eq!(enter(&mut Door::default(), &leaves), Ok(Entry::Leave));
    }

    #[test]
    fn a_server_without_tls_is_told_apart_with_its_own_words() {
        let mut client = Opening::default();
        let mut said = Vec::new();
        wire::put_greeting(&mut said);
        wire::put_option_reply(
            &mut said,
            option::STARTTLS,
            reply::ERR_UNSUP,
            &[b"this server has no TLS"],
        );
        let mut rest = said.as_slice();
        let fault = loop {
            let (unit, after) = rest.split_at(client.needs());
            rest = after;
            if let Err(fault) = client.take(unit) {
                break fault;
            }
        };
        let ClientFault::Refused { kind, message } = fault else {
            panic!("{fault}");
        };
        assert_eq!(kind, reply::ERR_UNSUP);
        assert_eq!(message, "this server has no TLS");
    }

    proptest! {
        #[test]
        fn no_bytes_make_either_side_panic_or_need_much(bytes: Vec<u8>, well in 0..30_usize) {
            let mut good = Vec::new();
            wire::put_greeting(&mut good);
            let mut said = good[..well.min(good.len())].to_vec();
            said.extend_from_slice(&bytes);
            let mut client = Opening::default();
            let mut rest = said.as_slice();
            while client.needs() > 0 {
                prop_assert!(client.needs() <= MAX_REFUSAL as usize);
                let Some((unit, after)) = rest.split_at_checked(client.needs()) else { break };
                rest = after;
                if client.take(unit).is_err() { break }
            }
            let mut said = opening()[..well.min(4)].to_vec();
            said.extend_from_slice(&bytes);
            let mut door = Door::default();
            let _ = enter(&mut door, &said);
            prop_assert!(door.output().len() < 4096);
        }
    }
}
