//! Bytes to messages, total on every input.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

use super::message::{
    Begin, Chunk, Content, DiskDescription, DiskFormat, Final, Group, Hello, Here, Join, Look,
    Marker, Message, Probe, Record, Refusal, Standing, Start, WayHome,
};
use super::pack::unpack;
use super::reader::Reader;
use super::{
    HEAD_LEN, MAGIC, MAX_BLOCKS, MAX_CHUNKS_DONE, MAX_DISK, MAX_DISKS, MAX_FIXED, MAX_FRAME,
    MAX_LOOK, MAX_NAME, MAX_PAYLOAD, MAX_TEXT, VERSION, kind,
};

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The frame ends before the field does.
    Truncated,
    /// The frame goes on after its last field.
    Excess,
    /// A length or count beyond its bound.
    TooLong,
    /// A value that the field cannot have.
    BadValue,
    /// The check of the frame does not match: the bytes were damaged or are no frame.
    BadCheck,
    /// A protocol version that this code does not speak.
    Version,
}

/// Why bytes are no message: which field, where, what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The field, as in the protocol document.
    pub field: &'static str,
    /// Its offset in the frame, in bytes.
    pub offset: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = match self.fault {
            Fault::Truncated => "is cut off",
            Fault::Excess => "is followed by bytes that belong to nothing",
            Fault::TooLong => "is longer than allowed",
            Fault::BadValue => "has a value it cannot have",
            Fault::BadCheck => "does not match the frame: it was damaged or is no frame",
            Fault::Version => "is a version this program does not speak",
        };
        write!(
            f,
            "malformed message: {} at byte {} {fault}",
            self.field, self.offset
        )
    }
}

impl std::error::Error for DecodeError {}

/// The first bytes of a frame, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// The first eight bytes as they came, for the check.
    raw: [u8; 8],
    kind: u8,
    /// Whether the payload is packed.
    packed: bool,
    fixed: usize,
    body: usize,
    check: [u8; 4],
}

impl FrameHead {
    /// Length of what follows the head, in bytes; at most [`MAX_FRAME`].
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.body
    }
}

/// The check of a frame from its first eight bytes and its fixed fields.
pub(super) fn check_of(raw: &[u8], fixed: &[u8]) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(raw);
    hasher.update(fixed);
    let hash = hasher.finalize();
    hash.as_bytes()
        .first_chunk::<4>()
        .copied()
        .unwrap_or_default()
}

/// The longest payload a kind may carry; `None` for an unknown kind.
fn payload_bound(kind: u8) -> Option<usize> {
    match kind {
        kind::RECORD_DATA | kind::CHUNK_DATA | kind::OFFER => Some(MAX_PAYLOAD),
        kind::HELLO..=kind::BEAT
        | kind::TAKEN
        | kind::RECORD_ZERO
        | kind::CHUNK_ZERO..=kind::DIFFERS
        | kind::LOOK..=kind::SEEN
        | kind::PREPARE..=kind::WAY_BACK
        | kind::ABANDON
        | kind::FAILED => Some(0),
        _ => None,
    }
}

/// Read the head of a frame.
pub fn decode_head(bytes: [u8; HEAD_LEN]) -> Result<FrameHead, DecodeError> {
    let mut r = Reader::new(Bytes::copy_from_slice(&bytes), 0);
    let body = r.u32("body length")? as usize;
    let kind = r.u8("kind")?;
    let form = r.u8("form")?;
    let fixed = usize::from(r.u16("fixed length")?);
    let check = r.array::<4>("check")?;
    let bad = |field, offset, fault| {
        Err(DecodeError {
            field,
            offset,
            fault,
        })
    };
    let Some(bound) = payload_bound(kind) else {
        return bad("kind", 4, Fault::BadValue);
    };
    let packs = matches!(kind, kind::RECORD_DATA | kind::CHUNK_DATA);
    if form > u8::from(packs) {
        return bad("form", 5, Fault::BadValue);
    }
    if fixed > MAX_FIXED || fixed > body {
        return bad("fixed length", 6, Fault::TooLong);
    }
    if body - fixed > bound {
        return bad("body length", 0, Fault::TooLong);
    }
    let raw = bytes.first_chunk::<8>().copied().unwrap_or_default();
    Ok(FrameHead {
        raw,
        kind,
        packed: form == 1,
        fixed,
        body,
        check,
    })
}

/// Read the body of a frame; `body` is [`FrameHead::body_len`] bytes long.
pub fn decode_body(head: &FrameHead, mut body: Bytes) -> Result<Message, DecodeError> {
    if body.len() != head.body {
        let fault = Fault::Truncated;
        return Err(DecodeError {
            field: "body",
            offset: HEAD_LEN,
            fault,
        });
    }
    let fixed = body.split_to(head.fixed);
    if check_of(&head.raw, &fixed) != head.check {
        return Err(DecodeError {
            field: "check",
            offset: 8,
            fault: Fault::BadCheck,
        });
    }
    if head.packed {
        let place = HEAD_LEN + head.fixed;
        body = unpack(&body).ok_or(DecodeError {
            field: "packed payload",
            offset: place,
            fault: Fault::BadValue,
        })?;
    }
    let mut r = Reader::new(fixed, HEAD_LEN);
    let message = match head.kind {
        kind::HELLO => Message::Hello(hello(&mut r)?),
        kind::OFFER => {
            greeting(&mut r)?;
            Message::Offer(body)
        }
        kind::JOIN => Message::Join(Join {
            session: r.uuid("session")?,
            incarnation: r.nonzero("incarnation")?,
            lane: r.u16("lane")?,
        }),
        kind::WELCOME => Message::Welcome(standing(&mut r)?),
        kind::REFUSED => Message::Refused {
            refusal: refusal(&mut r)?,
            text: r.text("text", MAX_TEXT)?,
        },
        kind::BEGIN => Message::Begin(Begin {
            start: start(&mut r)?,
            acked: r.u64("acked")?,
            aborted: r.u64("aborted")?,
            follow: r.flag("follow")?,
            group: group(&mut r)?,
        }),
        kind::RECORD_DATA | kind::RECORD_ZERO => Message::Record(record(&mut r, head.kind, body)?),
        kind::CHUNK_DATA | kind::CHUNK_ZERO => Message::Chunk(chunk(&mut r, head.kind, body)?),
        kind::PROBE => Message::Probe(probe(&mut r)?),
        kind::LOOK | kind::LOOK_ZEROES => Message::Look(look(&mut r, head.kind)?),
        kind::MARKER => Message::Marker(marker(&mut r)?),
        kind::FINAL => Message::Final(Final {
            attempt: r.nonzero("attempt")?,
            chunks: r.u64("chunks")?,
            arbiter: r.maybe_name("arbiter")?,
            marker: marker(&mut r)?,
        }),
        kind::CHUNKS_DONE => Message::ChunksDone(chunks_done(&mut r)?),
        _ => short(&mut r, head.kind)?,
    };
    r.end()?;
    Ok(message)
}

/// The messages of a number or two.
fn short(r: &mut Reader, kind: u8) -> Result<Message, DecodeError> {
    Ok(match kind {
        kind::BEGUN => Message::Begun {
            window: r.nonzero("window")?,
            address: r.text("address", MAX_TEXT)?,
            templates: r.flag("templates")?,
        },
        kind::DURABLE => Message::Durable {
            marker: r.u64("marker")?,
            chunks: r.u64("chunks")?,
        },
        kind::DIFFERS => Message::Differs {
            id: r.u64("chunk")?,
            blocks: r.blocks("blocks")?,
        },
        kind::SEEN => Message::Seen {
            id: r.u64("look")?,
            unlike: r.u128("unlike")?,
            unknown: r.u128("unknown")?,
        },
        kind::PREPARE => Message::Prepare {
            attempt: r.nonzero("attempt")?,
            arbiter: r.maybe_name("arbiter")?,
        },
        kind::NOT_READY => Message::NotReady {
            attempt: r.nonzero("attempt")?,
            text: r.text("text", MAX_TEXT)?,
        },
        kind::READY => Message::Ready {
            attempt: r.nonzero("attempt")?,
        },
        kind::COMMIT_REQUEST => Message::CommitRequest {
            attempt: r.nonzero("attempt")?,
        },
        kind::GRANT => Message::Grant {
            attempt: r.nonzero("attempt")?,
            epoch: r.nonzero("epoch")?,
        },
        kind::RUNNING => Message::Running {
            epoch: r.nonzero("epoch")?,
            address: r.text("address", MAX_TEXT)?,
        },
        kind::WAY_BACK => Message::WayBack(WayHome {
            seconds: r.u64("seconds")?,
            address: r.text("address", MAX_TEXT)?,
            together: r.names("together", MAX_DISKS)?,
        }),
        kind::ABANDON => Message::Abandon {
            text: r.text("text", MAX_TEXT)?,
        },
        kind::FAILED => Message::Failed {
            text: r.text("text", MAX_TEXT)?,
        },
        kind::BEAT => Message::Beat,
        kind::TAKEN => Message::Taken,
        _ => {
            return Err(DecodeError {
                field: "kind",
                offset: 4,
                fault: Fault::BadValue,
            });
        }
    })
}

/// What a greeting of any kind begins with.
fn greeting(r: &mut Reader) -> Result<(), DecodeError> {
    if r.u32("magic")? != MAGIC {
        return Err(r.bad("magic", 4));
    }
    if r.u16("version")? != VERSION {
        return Err(DecodeError {
            fault: Fault::Version,
            ..r.bad("version", 2)
        });
    }
    Ok(())
}

fn hello(r: &mut Reader) -> Result<Hello, DecodeError> {
    greeting(r)?;
    Ok(Hello {
        session: r.name("session")?,
        disk: r.name("disk")?,
        epoch: r.nonzero("epoch")?,
        incarnation: r.nonzero("incarnation")?,
        description: description(r)?,
    })
}

fn description(r: &mut Reader) -> Result<DiskDescription, DecodeError> {
    let size = r.u64("size")?;
    if !(512..=MAX_DISK).contains(&size) || !size.is_multiple_of(512) {
        return Err(r.bad("size", 8));
    }
    let block_size = r.u32("block size")?;
    let logical_sector = r.u32("logical sector")?;
    if !matches!(logical_sector, 512 | 4096) {
        return Err(r.bad("logical sector", 4));
    }
    let physical_sector = r.u32("physical sector")?;
    if !matches!(physical_sector, 512 | 4096) {
        return Err(r.bad("physical sector", 4));
    }
    let format = match r.u8("format")? {
        1 => DiskFormat::Vhdx,
        2 => DiskFormat::Raw,
        _ => return Err(r.bad("format", 1)),
    };
    let at = r.at();
    let name = r.text("name", MAX_NAME)?;
    // The name becomes part of a path at the target: it may not lead out of its directory.
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) {
        return Err(DecodeError {
            field: "name",
            offset: at,
            fault: Fault::BadValue,
        });
    }
    Ok(DiskDescription {
        name,
        size,
        block_size,
        logical_sector,
        physical_sector,
        format,
    })
}

fn standing(r: &mut Reader) -> Result<Standing, DecodeError> {
    let number = r.u8("standing")?;
    let value = r.u64("standing value")?;
    match (number, value) {
        (0, 0) => Ok(Standing::Empty),
        (1, 0) => Ok(Standing::Receiving),
        (2, 1..) => Ok(Standing::Prepared { attempt: value }),
        (3, 1..) => Ok(Standing::Owner { epoch: value }),
        (4, 0) => Ok(Standing::Stale),
        (5, 1..) => Ok(Standing::Left {
            session: r.uuid("session")?,
            epoch: value,
        }),
        _ => Err(r.bad("standing", 9)),
    }
}

fn start(r: &mut Reader) -> Result<Start, DecodeError> {
    match r.u8("start")? {
        0 => Ok(Start::GoOn),
        1 => Ok(Start::Fresh),
        2 => Ok(Start::Compare),
        3 => Ok(Start::Same),
        _ => Err(r.bad("start", 1)),
    }
}

/// Both names or none.
fn group(r: &mut Reader) -> Result<Option<Group>, DecodeError> {
    let names = (r.maybe_name("group")?, r.maybe_name("sequence")?);
    match names {
        (None, None) => Ok(None),
        (Some(id), Some(sequence)) => Ok(Some(Group { id, sequence })),
        _ => Err(r.bad("sequence", 16)),
    }
}

fn refusal(r: &mut Reader) -> Result<Refusal, DecodeError> {
    match r.u8("refusal")? {
        1 => Ok(Refusal::Version),
        2 => Ok(Refusal::Occupied),
        3 => Ok(Refusal::Newer),
        4 => Ok(Refusal::Unknown),
        5 => Ok(Refusal::CannotCreate),
        6 => Ok(Refusal::Unusable),
        _ => Err(r.bad("refusal", 1)),
    }
}

/// A place on a disk: it ends within 64 TiB.
fn place(r: &Reader, offset: u64, len: u64) -> Result<(), DecodeError> {
    match offset.checked_add(len) {
        Some(end) if end <= MAX_DISK && len > 0 => Ok(()),
        _ => Err(r.bad("place on the disk", 8)),
    }
}

fn content(r: &mut Reader, zero: bool, payload: Bytes) -> Result<Content, DecodeError> {
    if zero {
        return Ok(Content::Zeroes(r.u64("length")?));
    }
    Ok(Content::Data(payload))
}

fn record(r: &mut Reader, kind: u8, payload: Bytes) -> Result<Record, DecodeError> {
    let seq = r.nonzero("sequence number")?;
    let offset = r.u64("offset")?;
    let content = content(r, kind == kind::RECORD_ZERO, payload)?;
    place(r, offset, content.covers())?;
    Ok(Record {
        seq,
        offset,
        content,
    })
}

fn chunk(r: &mut Reader, kind: u8, payload: Bytes) -> Result<Chunk, DecodeError> {
    let id = r.u64("chunk")?;
    let base = r.u64("base")?;
    let offset = r.u64("offset")?;
    let zero = kind == kind::CHUNK_ZERO;
    let check = if zero {
        [0; 16]
    } else {
        r.array::<16>("check")?
    };
    let content = content(r, zero, payload)?;
    place(r, offset, content.covers())?;
    Ok(Chunk {
        id,
        base,
        offset,
        content,
        check,
    })
}

fn probe(r: &mut Reader) -> Result<Probe, DecodeError> {
    let id = r.u64("chunk")?;
    let base = r.u64("base")?;
    let offset = r.u64("offset")?;
    let (len, block, hashes) = blocks(r, offset)?;
    Ok(Probe {
        id,
        base,
        offset,
        len,
        block,
        hashes,
    })
}

/// A length, the bytes of a block, and the hash of each block.
fn blocks(r: &mut Reader, offset: u64) -> Result<(u64, u32, Vec<[u8; 32]>), DecodeError> {
    let len = r.u32("length")?;
    if len == 0 || len as usize > MAX_PAYLOAD {
        return Err(r.bad("length", 4));
    }
    let block = r.u32("block")?;
    let blocks = len.div_ceil(block.max(1)) as usize;
    if !block.is_power_of_two() || !(4096..=1 << 20).contains(&block) || blocks > MAX_BLOCKS {
        return Err(r.bad("block", 4));
    }
    let len = u64::from(len);
    place(r, offset, len)?;
    let hashes = (0..blocks).map(|_| r.array::<32>("hash"));
    Ok((len, block, hashes.collect::<Result<_, _>>()?))
}

fn look(r: &mut Reader, kind: u8) -> Result<Look, DecodeError> {
    let id = r.u64("look")?;
    let offset = r.u64("offset")?;
    let (len, here) = if kind == kind::LOOK {
        let (len, block, hashes) = blocks(r, offset)?;
        (len, Here::Blocks(block, hashes))
    } else {
        let len = r.u64("length")?;
        if len == 0 || len > MAX_LOOK {
            return Err(r.bad("length", 8));
        }
        place(r, offset, len)?;
        (len, Here::Zeroes)
    };
    Ok(Look {
        id,
        offset,
        len,
        here,
    })
}

fn marker(r: &mut Reader) -> Result<Marker, DecodeError> {
    let marker = Marker {
        id: r.u64("marker")?,
        seq: r.u64("sequence number")?,
        count: r.u64("record count")?,
        floor: r.u64("floor")?,
        digest: r.array::<32>("digest")?,
        consistent: r.flag("consistent")?,
        disks: r.u16("disks")?,
    };
    if marker.disks > MAX_DISKS || (marker.disks > 0 && !marker.consistent) {
        return Err(r.bad("disks", 2));
    }
    Ok(marker)
}

fn chunks_done(r: &mut Reader) -> Result<Vec<u64>, DecodeError> {
    let count = usize::from(r.u16("chunk count")?);
    if count == 0 || count > MAX_CHUNKS_DONE {
        return Err(DecodeError {
            fault: Fault::TooLong,
            ..r.bad("chunk count", 2)
        });
    }
    (0..count).map(|_| r.u64("chunk")).collect()
}

/// Cuts a byte stream into messages. Holds at most one frame and what was fed after it.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: BytesMut,
    head: Option<FrameHead>,
}

impl Decoder {
    /// More bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The buffer to read more of the stream into, behind what is there.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// How many more bytes the frame at hand needs; 0 when [`Decoder::next`] has something to do.
    #[must_use]
    pub fn wants(&self) -> usize {
        let whole = self.head.map_or(HEAD_LEN, |head| head.body);
        whole.saturating_sub(self.bytes.len()).min(MAX_FRAME)
    }

    /// Where in the buffer the payload of the frame at hand begins; 0 while its head is not there.
    #[must_use]
    pub fn payload_at(&self) -> usize {
        self.head.map_or(0, |head| head.fixed)
    }

    /// The next whole message, if it is there. After an error the stream is of no use any more.
    #[expect(
        clippy::should_implement_trait,
        reason = "it is not an iterator: `None` is no end"
    )]
    pub fn next(&mut self) -> Result<Option<Message>, DecodeError> {
        let head = if let Some(head) = self.head {
            head
        } else {
            let Some(bytes) = self.bytes.first_chunk::<HEAD_LEN>().copied() else {
                return Ok(None);
            };
            let head = decode_head(bytes)?;
            self.bytes.advance(HEAD_LEN);
            self.head = Some(head);
            head
        };
        if self.bytes.len() < head.body {
            return Ok(None);
        }
        self.head = None;
        let body = self.bytes.split_to(head.body).freeze();
        decode_body(&head, body).map(Some)
    }
}

const _: () = assert!(MAX_FRAME < u32::MAX as usize && MAX_FIXED <= u16::MAX as usize);
const _: () = assert!(MAX_CHUNKS_DONE * 8 + 2 <= MAX_FIXED && MAX_BLOCKS * 32 + 32 <= MAX_FIXED);
const _: () = assert!(MAX_BLOCKS == u128::BITS as usize);
