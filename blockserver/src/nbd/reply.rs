//! Replies to requests, simple or structured.
//!
//! Codec: appends heads to a buffer; the data of a read never passes through here. Specified in
//! `doc/proto.md`, "Simple reply message" and "Structured reply chunk message".

use super::handshake::ALLOCATION_ID;
use super::wire::{self, ChunkHeader, Errno, chunk};

/// How replies look to one client: simple or structured.
///
/// The methods append only heads; the driver sends the data of a read behind them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplyStyle {
    structured: bool,
    allocation: bool,
}

impl ReplyStyle {
    /// Replies for a client that has negotiated this; contexts need structured replies.
    pub(super) fn new(structured: bool, allocation: bool) -> Self {
        Self {
            structured,
            allocation: allocation && structured,
        }
    }

    /// Whether the client chose `base:allocation` and may ask for block status.
    #[must_use]
    pub fn has_allocation(self) -> bool {
        self.allocation
    }

    /// Whether the client takes structured replies.
    #[must_use]
    pub fn is_structured(self) -> bool {
        self.structured
    }

    /// The request was done. Not for a read or a block status.
    pub fn reply_done(self, out: &mut Vec<u8>, cookie: u64) {
        // Short, and allowed with structured replies too where there is no payload.
        wire::put_simple_reply(out, cookie, 0);
    }

    /// The request failed.
    pub fn reply_error(self, out: &mut Vec<u8>, cookie: u64, errno: Errno) {
        if !self.structured {
            wire::put_simple_reply(out, cookie, errno.to_wire());
            return;
        }
        put_last_chunk(out, chunk::ERROR, cookie, 6);
        out.extend_from_slice(&errno.to_wire().to_be_bytes());
        out.extend_from_slice(&0u16.to_be_bytes());
    }

    /// The whole of a read: the driver sends its `len` bytes of data right behind this head.
    ///
    /// Only for data that is in memory: after the head nothing can fail any more.
    pub fn reply_read_header(self, out: &mut Vec<u8>, cookie: u64, offset: u64, len: u32) {
        if self.structured {
            put_last_chunk(out, chunk::OFFSET_DATA, cookie, len.saturating_add(8));
            out.extend_from_slice(&offset.to_be_bytes());
        } else {
            wire::put_simple_reply(out, cookie, 0);
        }
    }

    /// The whole of a read that is all zeros, without data. `false`, and nothing appended, when
    /// this client needs the zeros themselves.
    #[must_use]
    pub fn reply_read_hole(self, out: &mut Vec<u8>, cookie: u64, offset: u64, len: u32) -> bool {
        if self.structured {
            put_last_chunk(out, chunk::OFFSET_HOLE, cookie, 12);
            out.extend_from_slice(&offset.to_be_bytes());
            out.extend_from_slice(&len.to_be_bytes());
        }
        self.structured
    }

    /// The extents of a block status: lengths in bytes and flags of [`wire::allocation`].
    ///
    /// At least one, none of length 0, consecutive from the request's offset; at most
    /// [`wire::MAX_EXTENTS`] are sent. With `req_one` only one, no longer than the request.
    pub fn reply_block_status(self, out: &mut Vec<u8>, cookie: u64, extents: &[(u32, u32)]) {
        let sent = extents.get(..wire::MAX_EXTENTS).unwrap_or(extents);
        // At most 2^17 extents of 8 bytes: fits.
        let len = 4 + 8 * sent.len() as u32;
        put_last_chunk(out, chunk::BLOCK_STATUS, cookie, len);
        out.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
        for (len, flags) in sent {
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&flags.to_be_bytes());
        }
    }

    /// A read of no bytes.
    pub(super) fn reply_empty_read(self, out: &mut Vec<u8>, cookie: u64) {
        if self.structured {
            put_last_chunk(out, chunk::NONE, cookie, 0);
        } else {
            wire::put_simple_reply(out, cookie, 0);
        }
    }
}

fn put_last_chunk(out: &mut Vec<u8>, kind: u16, cookie: u64, len: u32) {
    ChunkHeader {
        flags: chunk::DONE,
        kind,
        cookie,
        len,
    }
    .encode(out);
}
