//! What to answer to each option of a client ("Option types" of the protocol document).
//!
//! Machine: bytes of one whole option in, reply bytes and a verdict out. It must answer every option
//! it can read, known or not, so that the two sides stay in step; only what the document gives no
//! reply for ends the connection.

use super::connection::{ExportInfo, ExportTable};
use super::error::Quoted;
use super::wire::{self, BASE_ALLOCATION, Fields, info, option, reply, transmission};

/// The longest data of an option that is read; what is longer is skipped and answered `ERR_TOO_BIG`.
pub const MAX_OPTION_LEN: u32 = 64 << 10;
/// The longest data of an option that is skipped; beyond it the connection ends.
pub const MAX_OPTION_SKIP: u32 = wire::DEFAULT_MAX_PAYLOAD;
/// Our id of `base:allocation` once chosen. Lists use 0, as the document asks.
pub const ALLOCATION_ID: u32 = 1;

/// What the two sides have agreed on so far.
#[derive(Debug, Default)]
pub(super) struct Negotiated {
    /// The client knows replies to options.
    pub(super) fixed_newstyle: bool,
    /// No padding after the answer to `EXPORT_NAME`.
    pub(super) no_zeroes: bool,
    /// Structured replies.
    pub(super) structured: bool,
    /// The export for which `base:allocation` was chosen.
    allocation_of: Option<String>,
}

/// What follows from an option.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The next option may come.
    Continue,
    /// Transmission begins on this export; `allocation` says whether `base:allocation` is on.
    Attach {
        export: ExportInfo,
        allocation: bool,
    },
    /// The client ended the handshake.
    Abort,
    /// There is no reply for what went wrong: drop the connection.
    Drop {
        field: &'static str,
        value: String,
        reason: &'static str,
    },
}

/// How the data of an option is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intake {
    /// Collect it and hand it to [`answer`].
    Read,
    /// Drop it, then reply with this error.
    Skip(u32),
    /// Drop the connection.
    Refuse,
}

/// Decide how to take the data of an option from its head alone.
pub(super) fn intake(header: wire::OptionHeader) -> Intake {
    let known = matches!(
        header.option,
        option::EXPORT_NAME
            | option::ABORT
            | option::LIST
            | option::STARTTLS
            | option::INFO
            | option::GO
            | option::STRUCTURED_REPLY
            | option::LIST_META_CONTEXT
            | option::SET_META_CONTEXT
    );
    if known && header.len <= MAX_OPTION_LEN {
        Intake::Read
    } else if header.option == option::EXPORT_NAME || header.len > MAX_OPTION_SKIP {
        Intake::Refuse
    } else if known {
        Intake::Skip(reply::ERR_TOO_BIG)
    } else {
        Intake::Skip(reply::ERR_UNSUP)
    }
}

/// Answer one option whose data is complete: append the replies to `out`, say what follows.
pub(super) fn answer(
    negotiated: &mut Negotiated,
    number: u32,
    data: &[u8],
    exports: &dyn ExportTable,
    out: &mut Vec<u8>,
) -> Verdict {
    if !negotiated.fixed_newstyle && number != option::EXPORT_NAME {
        return Verdict::Drop {
            field: "option",
            value: number.to_string(),
            reason: "a client without fixed newstyle may send only EXPORT_NAME",
        };
    }
    let mut replies = Replies {
        option: number,
        out,
    };
    match number {
        option::EXPORT_NAME => return export_name(negotiated, data, exports, replies.out),
        option::ABORT => {
            replies.ack();
            return Verdict::Abort;
        }
        option::LIST => list(data, exports, &mut replies),
        option::STARTTLS if data.is_empty() => {
            replies.error(reply::ERR_UNSUP, "this server has no TLS");
        }
        option::STARTTLS => replies.error(reply::ERR_INVALID, "STARTTLS takes no data"),
        option::STRUCTURED_REPLY if data.is_empty() => {
            negotiated.structured = true;
            replies.ack();
        }
        option::STRUCTURED_REPLY => {
            replies.error(reply::ERR_INVALID, "STRUCTURED_REPLY takes no data");
        }
        option::INFO | option::GO => return info_or_go(negotiated, data, exports, &mut replies),
        option::LIST_META_CONTEXT => list_contexts(data, exports, &mut replies),
        option::SET_META_CONTEXT => set_contexts(negotiated, data, exports, &mut replies),
        _ => replies.error(reply::ERR_UNSUP, "unknown option"),
    }
    Verdict::Continue
}

/// Reply with `error` to an option whose data was skipped.
pub(super) fn answer_skipped(number: u32, error: u32, out: &mut Vec<u8>) {
    let message = if error == reply::ERR_TOO_BIG {
        "the option is too long"
    } else {
        "unknown option"
    };
    let mut replies = Replies {
        option: number,
        out,
    };
    replies.error(error, message);
}

/// The transmission flags of an export for a client with or without structured replies.
pub(super) fn transmission_flags(export: &ExportInfo, structured: bool) -> u16 {
    let mut flags = transmission::HAS_FLAGS | transmission::SEND_FLUSH;
    flags |= if export.read_only {
        transmission::READ_ONLY
    } else {
        transmission::SEND_FUA | transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES
    };
    if export.rotational {
        flags |= transmission::ROTATIONAL;
    }
    if export.can_multi_conn {
        flags |= transmission::CAN_MULTI_CONN;
    }
    if structured {
        flags |= transmission::SEND_DF;
    }
    flags
}

/// Writes the replies to one option.
struct Replies<'a> {
    option: u32,
    out: &'a mut Vec<u8>,
}

impl Replies<'_> {
    fn put(&mut self, kind: u32, parts: &[&[u8]]) {
        wire::put_option_reply(self.out, self.option, kind, parts);
    }

    fn ack(&mut self) {
        self.put(reply::ACK, &[]);
    }

    fn error(&mut self, kind: u32, message: &str) {
        self.put(kind, &[message.as_bytes()]);
    }
}

fn export_name(
    negotiated: &Negotiated,
    data: &[u8],
    exports: &dyn ExportTable,
    out: &mut Vec<u8>,
) -> Verdict {
    let drop = |reason| Verdict::Drop {
        field: "export name",
        value: Quoted(&String::from_utf8_lossy(data)).to_string(),
        reason,
    };
    let Some(name) = wire::checked_string(data) else {
        return drop("a name is UTF-8 without NUL, at most 4096 bytes");
    };
    let Some(export) = exports.find(name) else {
        return drop("there is no such export, and EXPORT_NAME has no way to say so");
    };
    out.extend_from_slice(&export.size.to_be_bytes());
    let flags = transmission_flags(&export, negotiated.structured);
    out.extend_from_slice(&flags.to_be_bytes());
    if !negotiated.no_zeroes {
        out.extend_from_slice(&[0; wire::EXPORT_NAME_ZEROES]);
    }
    let allocation = negotiated.allocation_of.as_deref() == Some(name);
    Verdict::Attach { export, allocation }
}

fn list(data: &[u8], exports: &dyn ExportTable, replies: &mut Replies<'_>) {
    if !data.is_empty() {
        replies.error(reply::ERR_INVALID, "LIST takes no data");
        return;
    }
    for (name, description) in exports.names() {
        let Ok(len) = u32::try_from(name.len()) else {
            continue;
        };
        replies.put(
            reply::SERVER,
            &[&len.to_be_bytes(), name.as_bytes(), description.as_bytes()],
        );
    }
    replies.ack();
}

/// The export name of an INFO or GO and the facts asked for.
fn parse_info(data: &[u8]) -> Option<(&str, Fields<'_>)> {
    let mut fields = Fields::new(data);
    let len = fields.u32()?;
    let name = fields.string(len)?;
    let count = fields.u16()?;
    let wanted = fields;
    (wanted.rest().len() == usize::from(count).checked_mul(2)?).then_some((name, wanted))
}

fn info_or_go(
    negotiated: &Negotiated,
    data: &[u8],
    exports: &dyn ExportTable,
    replies: &mut Replies<'_>,
) -> Verdict {
    let Some((name, mut wanted)) = parse_info(data) else {
        replies.error(reply::ERR_INVALID, "malformed INFO or GO");
        return Verdict::Continue;
    };
    let Some(export) = exports.find(name) else {
        replies.error(reply::ERR_UNKNOWN, "there is no such export");
        return Verdict::Continue;
    };
    let flags = transmission_flags(&export, negotiated.structured);
    replies.put(
        reply::INFO,
        &[
            &info::EXPORT.to_be_bytes(),
            &export.size.to_be_bytes(),
            &flags.to_be_bytes(),
        ],
    );
    // Offered unasked too: a client may only ignore it, and most that do not ask still use it.
    replies.put(
        reply::INFO,
        &[
            &info::BLOCK_SIZE.to_be_bytes(),
            &export.min_block.to_be_bytes(),
            &export.preferred_block.to_be_bytes(),
            &export.max_payload.to_be_bytes(),
        ],
    );
    // A fact asked for twice is against the rules and answered once.
    let (mut said_name, mut said_description) = (false, false);
    while let Some(fact) = wanted.u16() {
        match fact {
            info::NAME if !said_name => {
                said_name = true;
                replies.put(reply::INFO, &[&fact.to_be_bytes(), name.as_bytes()]);
            }
            info::DESCRIPTION if !said_description && !export.description.is_empty() => {
                said_description = true;
                let text = export.description.as_bytes();
                replies.put(reply::INFO, &[&fact.to_be_bytes(), text]);
            }
            _ => {}
        }
    }
    replies.ack();
    if replies.option == option::INFO {
        return Verdict::Continue;
    }
    let allocation = negotiated.allocation_of.as_deref() == Some(name);
    Verdict::Attach { export, allocation }
}

/// Whether the queries of a list or choice of contexts hit `base:allocation`.
struct Queries<'a> {
    export: &'a str,
    /// There were none at all.
    none: bool,
    /// One names it exactly.
    exact: bool,
    /// One is `base:`, which counts only in a list.
    wildcard: bool,
}

fn parse_queries(data: &[u8]) -> Option<Queries<'_>> {
    let mut fields = Fields::new(data);
    let len = fields.u32()?;
    let export = fields.string(len)?;
    let count = fields.u32()?;
    let mut queries = Queries {
        export,
        none: count == 0,
        exact: false,
        wildcard: false,
    };
    // Each query takes at least four bytes, so a false count ends at the end of the data.
    for _ in 0..count {
        let len = fields.u32()?;
        let query = fields.string(len)?;
        if !query.contains(':') {
            return None;
        }
        queries.exact |= query == BASE_ALLOCATION;
        queries.wildcard |= query == "base:";
    }
    fields.is_empty().then_some(queries)
}

fn list_contexts(data: &[u8], exports: &dyn ExportTable, replies: &mut Replies<'_>) {
    let Some(queries) = parse_queries(data) else {
        replies.error(reply::ERR_INVALID, "malformed LIST_META_CONTEXT");
        return;
    };
    if exports.find(queries.export).is_none() {
        replies.error(reply::ERR_UNKNOWN, "there is no such export");
        return;
    }
    if queries.none || queries.exact || queries.wildcard {
        let name = BASE_ALLOCATION.as_bytes();
        replies.put(reply::META_CONTEXT, &[&0u32.to_be_bytes(), name]);
    }
    replies.ack();
}

fn set_contexts(
    negotiated: &mut Negotiated,
    data: &[u8],
    exports: &dyn ExportTable,
    replies: &mut Replies<'_>,
) {
    // A new choice replaces the old one even when it fails.
    negotiated.allocation_of = None;
    if !negotiated.structured {
        replies.error(reply::ERR_INVALID, "contexts need structured replies first");
        return;
    }
    let Some(queries) = parse_queries(data) else {
        replies.error(reply::ERR_INVALID, "malformed SET_META_CONTEXT");
        return;
    };
    if exports.find(queries.export).is_none() {
        replies.error(reply::ERR_UNKNOWN, "there is no such export");
        return;
    }
    if queries.exact {
        negotiated.allocation_of = Some(queries.export.to_owned());
        let name = BASE_ALLOCATION.as_bytes();
        replies.put(reply::META_CONTEXT, &[&ALLOCATION_ID.to_be_bytes(), name]);
    }
    replies.ack();
}
