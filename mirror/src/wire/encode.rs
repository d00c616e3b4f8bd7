//! Messages to bytes.

use bytes::{BufMut, Bytes, BytesMut};
use uuid::Uuid;

use super::message::{
    Begin, Chunk, Content, DiskFormat, Final, Hello, Here, Look, Marker, Message, Probe, Record,
    Refusal, Standing, Start,
};
use super::{HEAD_LEN, MAGIC, MAX_DISKS, MAX_TEXT, VERSION, kind};

/// An encoded message: the frame's head with its fixed fields, and the bytes that follow uncopied.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Head and fixed fields.
    pub head: Bytes,
    /// The payload; empty for most messages.
    pub payload: Bytes,
}

impl Frame {
    /// Length on the wire in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// Never: every frame has a head.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// The frame of a message. What breaks the bounds of [`Message`] is the caller's fault and is
/// refused by the other side's decoder; texts are cut to their bound here.
#[must_use]
pub fn encode(message: &Message) -> Frame {
    encode_packed(message, |_| None)
}

/// The same; bytes of the disk are replaced by what `pack` makes of them, if it makes something: see [`super::pack`].
#[must_use]
pub fn encode_packed(message: &Message, pack: impl FnOnce(&Bytes) -> Option<Bytes>) -> Frame {
    let mut body = BytesMut::with_capacity(128);
    body.put_bytes(0, HEAD_LEN);
    let (kind, payload) = put_message(&mut body, message);
    let packs = matches!(kind, kind::RECORD_DATA | kind::CHUNK_DATA);
    let packed = packs.then(|| pack(&payload)).flatten();
    let form = u8::from(packed.is_some());
    let payload = packed.unwrap_or(payload);
    let fixed = body.len() - HEAD_LEN;
    let mut head = BytesMut::with_capacity(HEAD_LEN);
    head.put_u32_le((fixed + payload.len()) as u32);
    head.put_u8(kind);
    head.put_u8(form);
    head.put_u16_le(fixed as u16);
    let check = super::decode::check_of(&head, body.get(HEAD_LEN..).unwrap_or_default());
    head.put_slice(&check);
    if let Some(front) = body.get_mut(..HEAD_LEN) {
        front.copy_from_slice(&head);
    }
    Frame {
        head: body.freeze(),
        payload,
    }
}

fn put_message(out: &mut BytesMut, message: &Message) -> (u8, Bytes) {
    let kind = match message {
        Message::Hello(hello) => put_hello(out, hello),
        Message::Join(join) => {
            out.put_slice(join.session.as_bytes());
            out.put_u64_le(join.incarnation);
            out.put_u16_le(join.lane);
            kind::JOIN
        }
        Message::Welcome(standing) => put_standing(out, standing),
        Message::Refused { refusal, text } => {
            out.put_u8(refusal_number(*refusal));
            put_text(out, text);
            kind::REFUSED
        }
        Message::Begin(begin) => put_begin(out, *begin),
        Message::Offer(offer) => {
            out.put_u32_le(MAGIC);
            out.put_u16_le(VERSION);
            return (kind::OFFER, offer.clone());
        }
        Message::Record(record) => return put_record(out, record),
        Message::Chunk(chunk) => return put_chunk(out, chunk),
        Message::Probe(probe) => put_probe(out, probe),
        Message::Look(look) => put_look(out, look),
        Message::Marker(marker) => {
            put_marker(out, marker);
            kind::MARKER
        }
        Message::Final(last) => put_final(out, last),
        Message::ChunksDone(ids) => {
            out.put_u16_le(ids.len() as u16);
            for id in ids {
                out.put_u64_le(*id);
            }
            kind::CHUNKS_DONE
        }
        Message::Beat => kind::BEAT,
        other => put_short(out, other),
    };
    (kind, Bytes::new())
}

/// The messages of a number or two.
fn put_short(out: &mut BytesMut, message: &Message) -> u8 {
    match message {
        Message::Begun {
            window,
            address,
            templates,
        } => {
            out.put_u64_le(*window);
            put_text(out, address);
            out.put_u8(u8::from(*templates));
            kind::BEGUN
        }
        Message::Durable { marker, chunks } => {
            out.put_u64_le(*marker);
            out.put_u64_le(*chunks);
            kind::DURABLE
        }
        Message::Differs { id, blocks } => {
            out.put_u64_le(*id);
            out.put_u128_le(*blocks);
            kind::DIFFERS
        }
        Message::Seen {
            id,
            unlike,
            unknown,
        } => {
            out.put_u64_le(*id);
            out.put_u128_le(*unlike);
            out.put_u128_le(*unknown);
            kind::SEEN
        }
        Message::Prepare { attempt, arbiter } => {
            out.put_u64_le(*attempt);
            put_name(out, *arbiter);
            kind::PREPARE
        }
        Message::NotReady { attempt, text } => {
            out.put_u64_le(*attempt);
            put_text(out, text);
            kind::NOT_READY
        }
        Message::Ready { attempt } => put_attempt(out, *attempt, kind::READY),
        Message::CommitRequest { attempt } => put_attempt(out, *attempt, kind::COMMIT_REQUEST),
        Message::Grant { attempt, epoch } => {
            out.put_u64_le(*attempt);
            out.put_u64_le(*epoch);
            kind::GRANT
        }
        Message::Running { epoch, address } => {
            out.put_u64_le(*epoch);
            put_text(out, address);
            kind::RUNNING
        }
        Message::WayBack(way) => {
            out.put_u64_le(way.seconds);
            put_text(out, &way.address);
            put_names(out, &way.together);
            kind::WAY_BACK
        }
        Message::Abandon { text } => {
            put_text(out, text);
            kind::ABANDON
        }
        Message::Failed { text } => {
            put_text(out, text);
            kind::FAILED
        }
        Message::Taken => kind::TAKEN,
        _ => kind::BEAT,
    }
}

fn put_attempt(out: &mut BytesMut, attempt: u64, kind: u8) -> u8 {
    out.put_u64_le(attempt);
    kind
}

/// All zero bytes for none: no arbiter and no group is called so.
fn put_name(out: &mut BytesMut, name: Option<Uuid>) {
    out.put_slice(name.unwrap_or_default().as_bytes());
}

fn put_hello(out: &mut BytesMut, hello: &Hello) -> u8 {
    out.put_u32_le(MAGIC);
    out.put_u16_le(VERSION);
    out.put_slice(hello.session.as_bytes());
    out.put_slice(hello.disk.as_bytes());
    out.put_u64_le(hello.epoch);
    out.put_u64_le(hello.incarnation);
    let disk = &hello.description;
    out.put_u64_le(disk.size);
    out.put_u32_le(disk.block_size);
    out.put_u32_le(disk.logical_sector);
    out.put_u32_le(disk.physical_sector);
    out.put_u8(match disk.format {
        DiskFormat::Vhdx => 1,
        DiskFormat::Raw => 2,
    });
    put_text(out, &disk.name);
    kind::HELLO
}

fn put_standing(out: &mut BytesMut, standing: &Standing) -> u8 {
    let (number, value) = match standing {
        Standing::Empty => (0, 0),
        Standing::Receiving => (1, 0),
        Standing::Prepared { attempt } => (2, *attempt),
        Standing::Owner { epoch } => (3, *epoch),
        Standing::Stale => (4, 0),
        Standing::Left { epoch, .. } => (5, *epoch),
    };
    out.put_u8(number);
    out.put_u64_le(value);
    if let Standing::Left { session, .. } = standing {
        out.put_slice(session.as_bytes());
    }
    kind::WELCOME
}

fn put_begin(out: &mut BytesMut, begin: Begin) -> u8 {
    out.put_u8(match begin.start {
        Start::GoOn => 0,
        Start::Fresh => 1,
        Start::Compare => 2,
        Start::Same => 3,
    });
    out.put_u64_le(begin.acked);
    out.put_u64_le(begin.aborted);
    out.put_u8(u8::from(begin.follow));
    put_name(out, begin.group.map(|group| group.id));
    put_name(out, begin.group.map(|group| group.sequence));
    kind::BEGIN
}

fn put_look(out: &mut BytesMut, look: &Look) -> u8 {
    out.put_u64_le(look.id);
    out.put_u64_le(look.offset);
    match &look.here {
        Here::Zeroes => {
            out.put_u64_le(look.len);
            kind::LOOK_ZEROES
        }
        Here::Blocks(block, hashes) => {
            out.put_u32_le(look.len as u32);
            out.put_u32_le(*block);
            for hash in hashes {
                out.extend_from_slice(hash);
            }
            kind::LOOK
        }
    }
}

fn put_probe(out: &mut BytesMut, probe: &Probe) -> u8 {
    out.put_u64_le(probe.id);
    out.put_u64_le(probe.base);
    out.put_u64_le(probe.offset);
    out.put_u32_le(probe.len as u32);
    out.put_u32_le(probe.block);
    for hash in &probe.hashes {
        out.put_slice(hash);
    }
    kind::PROBE
}

fn put_record(out: &mut BytesMut, record: &Record) -> (u8, Bytes) {
    out.put_u64_le(record.seq);
    out.put_u64_le(record.offset);
    match &record.content {
        Content::Data(data) => (kind::RECORD_DATA, data.clone()),
        Content::Zeroes(len) => {
            out.put_u64_le(*len);
            (kind::RECORD_ZERO, Bytes::new())
        }
    }
}

fn put_chunk(out: &mut BytesMut, chunk: &Chunk) -> (u8, Bytes) {
    out.put_u64_le(chunk.id);
    out.put_u64_le(chunk.base);
    out.put_u64_le(chunk.offset);
    match &chunk.content {
        Content::Data(data) => {
            out.put_slice(&chunk.check);
            (kind::CHUNK_DATA, data.clone())
        }
        Content::Zeroes(len) => {
            out.put_u64_le(*len);
            (kind::CHUNK_ZERO, Bytes::new())
        }
    }
}

fn put_marker(out: &mut BytesMut, marker: &Marker) {
    out.put_u64_le(marker.id);
    out.put_u64_le(marker.seq);
    out.put_u64_le(marker.count);
    out.put_u64_le(marker.floor);
    out.put_slice(&marker.digest);
    out.put_u8(u8::from(marker.consistent));
    out.put_u16_le(marker.disks);
}

fn put_final(out: &mut BytesMut, last: &Final) -> u8 {
    out.put_u64_le(last.attempt);
    out.put_u64_le(last.chunks);
    put_name(out, last.arbiter);
    put_marker(out, &last.marker);
    kind::FINAL
}

/// Cut at a character boundary so that what is sent is always valid.
fn put_names(out: &mut BytesMut, names: &[Uuid]) {
    let names = names.get(..usize::from(MAX_DISKS)).unwrap_or(names);
    out.put_u16_le(names.len() as u16);
    for name in names {
        out.put_slice(name.as_bytes());
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.get(..end).unwrap_or_default();
    out.put_u16_le(text.len() as u16);
    out.put_slice(text.as_bytes());
}

/// The number of a refusal on the wire.
pub(super) fn refusal_number(refusal: Refusal) -> u8 {
    match refusal {
        Refusal::Version => 1,
        Refusal::Occupied => 2,
        Refusal::Newer => 3,
        Refusal::Unknown => 4,
        Refusal::CannotCreate => 5,
        Refusal::Unusable => 6,
    }
}
