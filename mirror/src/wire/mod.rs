//! The protocol between the two hosts: bytes to checked messages and back.
//!
//! Total on every input: whatever the other host sends becomes a message or a [`DecodeError`] that
//! names the field and its offset. Bounded: a frame says its length first and none is longer than
//! [`MAX_FRAME`]. Must never do I/O and never decide anything. Specified in
//! `docs/mirror-protocol.md`.
//!
//! All integers are little-endian. A frame is
//!
//! ```text
//!  0        4     5      6        8         12            12+fixed        12+body
//!  | body   |kind |zero  |fixed   |check    |fixed fields | payload ...   |
//! ```
//!
//! `check` is the first four bytes of the BLAKE3 hash of the first eight bytes of the frame and its
//! fixed fields. The payload (the bytes of a record or a chunk) is covered by the digest of its
//! epoch or by the chunk's own check ([`check_of`]).

#![deny(clippy::indexing_slicing)]

mod decode;
mod encode;
mod message;
mod pack;
mod reader;
#[cfg(test)]
pub(crate) mod tests;

pub use decode::{DecodeError, Decoder, Fault, FrameHead, decode_body, decode_head};
pub use encode::{Frame, encode, encode_packed};
pub use message::{
    Begin, Chunk, Content, DiskDescription, DiskFormat, Final, Group, Hello, Here, Join, Look,
    Marker, Message, Probe, Record, Refusal, Standing, Start, WayHome,
};
pub use pack::pack;

/// Version of the protocol spoken by this code; the first field of a greeting.
pub const VERSION: u16 = 7;
/// First bytes of a greeting, so that a stray client of another protocol is told apart.
pub const MAGIC: u32 = u32::from_le_bytes(*b"DFM1");
/// Bytes in front of every frame's body.
pub const HEAD_LEN: usize = 12;
/// The most bytes of the disk in one message.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// The most bytes of the fixed fields of one message.
pub const MAX_FIXED: usize = 8192;
/// The longest body of a frame.
pub const MAX_FRAME: usize = MAX_PAYLOAD + MAX_FIXED;
/// The most chunk numbers in one acknowledgement.
pub const MAX_CHUNKS_DONE: usize = 512;
/// The most blocks of one probe.
pub const MAX_BLOCKS: usize = 128;
/// The most bytes of zeroes that the target is asked to look at at once.
pub const MAX_LOOK: u64 = 64 << 20;
/// The most disks of one group.
pub const MAX_DISKS: u16 = 64;
/// The longest disk name in bytes.
pub const MAX_NAME: usize = 255;
/// The longest address or sentence in bytes.
pub const MAX_TEXT: usize = 1024;
/// The largest disk: 64 TiB, as in VHDX.
pub const MAX_DISK: u64 = 64 << 40;

/// Numbers of the kinds of messages.
pub(crate) mod kind {
    pub(crate) const HELLO: u8 = 0x01;
    pub(crate) const JOIN: u8 = 0x02;
    pub(crate) const WELCOME: u8 = 0x03;
    pub(crate) const REFUSED: u8 = 0x04;
    pub(crate) const BEGIN: u8 = 0x05;
    pub(crate) const BEGUN: u8 = 0x06;
    pub(crate) const BEAT: u8 = 0x07;
    pub(crate) const OFFER: u8 = 0x08;
    pub(crate) const TAKEN: u8 = 0x09;
    pub(crate) const RECORD_DATA: u8 = 0x10;
    pub(crate) const RECORD_ZERO: u8 = 0x11;
    pub(crate) const CHUNK_DATA: u8 = 0x12;
    pub(crate) const CHUNK_ZERO: u8 = 0x13;
    pub(crate) const MARKER: u8 = 0x14;
    pub(crate) const CHUNKS_DONE: u8 = 0x15;
    pub(crate) const DURABLE: u8 = 0x16;
    pub(crate) const PROBE: u8 = 0x17;
    pub(crate) const DIFFERS: u8 = 0x18;
    pub(crate) const LOOK: u8 = 0x1C;
    pub(crate) const LOOK_ZEROES: u8 = 0x1D;
    pub(crate) const SEEN: u8 = 0x1E;
    pub(crate) const PREPARE: u8 = 0x20;
    pub(crate) const READY: u8 = 0x21;
    pub(crate) const FINAL: u8 = 0x22;
    pub(crate) const COMMIT_REQUEST: u8 = 0x23;
    pub(crate) const GRANT: u8 = 0x24;
    pub(crate) const RUNNING: u8 = 0x25;
    pub(crate) const NOT_READY: u8 = 0x26;
    pub(crate) const WAY_BACK: u8 = 0x27;
    pub(crate) const ABANDON: u8 = 0x30;
    pub(crate) const FAILED: u8 = 0x31;
}

/// What a chunk says of its data: XXH3 of 128 bits, little-endian.
///
/// It tells what an error changed. Whoever could change it on purpose is kept out by TLS, or could as well change the
/// check; where equal hashes have to mean equal bytes, as in a probe, they are BLAKE3.
#[must_use]
pub fn check_of(data: &[u8]) -> [u8; 16] {
    twox_hash::XxHash3_128::oneshot(data).to_le_bytes()
}

/// The digest of the records of one epoch of the stream, updated record by record.
///
/// Covers number, place, kind and bytes of every record since the previous marker.
#[derive(Clone, Debug, Default)]
pub struct StreamDigest {
    hasher: blake3::Hasher,
    count: u64,
}

impl StreamDigest {
    /// A record follows those before.
    pub fn add(&mut self, record: &Record) {
        let (kind, len) = match &record.content {
            Content::Data(data) => (0_u8, data.len() as u64),
            Content::Zeroes(len) => (1_u8, *len),
        };
        self.hasher.update(&record.seq.to_le_bytes());
        self.hasher.update(&record.offset.to_le_bytes());
        self.hasher.update(&[kind]);
        self.hasher.update(&len.to_le_bytes());
        if let Content::Data(data) = &record.content {
            self.hasher.update(data);
        }
        self.count += 1;
    }

    /// How many records it covers.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The digest and the number of records, and begins anew.
    pub fn finish(&mut self) -> ([u8; 32], u64) {
        let digest = *self.hasher.finalize().as_bytes();
        self.hasher.reset();
        (digest, std::mem::take(&mut self.count))
    }
}
