//! What comes over a lane of the mirror: bytes of another, in pieces of any length.
//!
//! What must hold: decoding is total and does not depend on the pieces; a message that is read is written again alike; after
//! an error nothing more is read; nothing is kept beyond one frame.

mod examples;

pub use examples::{KINDS, examples, name};

use arbitrary::{Arbitrary, Unstructured};
use mirror::wire::{
    Decoder, Frame, MAGIC, MAX_FRAME, Message, VERSION, encode, encode_packed, pack,
};

#[derive(Arbitrary, Debug)]
struct Plan {
    /// The check of each frame is set right, and how greetings begin, as whoever attacks would.
    checked: bool,
    pieces: Vec<u8>,
    bytes: Vec<u8>,
}

/// Kinds of frames that begin with the magic number and the version: what was kept of an older version stays of use.
const GREETINGS: [u8; 2] = [0x01, 0x08];

/// Set the check of the first frames right, as far as their lengths make sense, and how greetings begin.
fn set_checks(bytes: &mut [u8]) {
    let mut rest = bytes;
    for _ in 0..16 {
        let Some((head, body)) = rest.split_at_mut_checked(12) else {
            return;
        };
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let fixed = usize::from(u16::from_le_bytes([head[6], head[7]]));
        let Some(fields) = body.get_mut(..fixed) else {
            return;
        };
        if GREETINGS.contains(&head[4])
            && let Some((magic, rest)) = fields.split_first_chunk_mut()
            && let Some(version) = rest.first_chunk_mut()
        {
            *magic = MAGIC.to_le_bytes();
            *version = VERSION.to_le_bytes();
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&head[..8]).update(&*fields);
        head[8..12].copy_from_slice(&hasher.finalize().as_bytes()[..4]);
        if len > body.len() {
            return;
        }
        rest = &mut body[len..];
    }
}

/// All messages in these bytes, fed so many at a time, and whether they end with an error.
fn messages(bytes: &[u8], mut next: impl FnMut() -> usize) -> (Vec<Message>, bool) {
    let mut decoder = Decoder::default();
    let (mut rest, mut all) = (bytes, Vec::new());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(next().clamp(1, rest.len()));
        decoder.feed(piece);
        rest = after;
        loop {
            match decoder.next() {
                Ok(Some(message)) => all.push(message),
                Ok(None) => break,
                Err(_) => return (all, true),
            }
        }
    }
    (all, false)
}

fn plan(data: &[u8]) -> Option<Plan> {
    let mut plan = Plan::arbitrary_take_rest(Unstructured::new(data)).ok()?;
    if plan.checked {
        set_checks(&mut plan.bytes);
    }
    Some(plan)
}

/// The messages of an input.
#[must_use]
pub fn read(data: &[u8]) -> Vec<Message> {
    plan(data).map_or_else(Vec::new, |plan| messages(&plan.bytes, || usize::MAX).0)
}

/// The input that has this message, as `arbitrary` reads a [`Plan`]: before each item of a list, whether there is one.
#[must_use]
pub fn input(message: &Message) -> Vec<u8> {
    let frame = encode(message);
    let bytes = frame.head.iter().chain(&frame.payload);
    let (checked, pieces) = (1, [1, 7, 0]);
    let list = bytes.flat_map(|byte| [1, *byte]);
    [checked].into_iter().chain(pieces).chain(list).collect()
}

/// One input.
pub fn run(data: &[u8]) {
    let Some(plan) = plan(data) else {
        return;
    };
    let whole = messages(&plan.bytes, || usize::MAX);
    let mut pieces = plan.pieces.iter().cycle();
    let cut = messages(&plan.bytes, || pieces.next().map_or(1, |len| (*len).into()));
    assert_eq!(whole, cut, "it matters where the bytes are cut");
    for message in &whole.0 {
        comes_back(message, &encode(message));
        comes_back(message, &encode_packed(message, |payload| pack(payload, 1)));
    }
}

fn comes_back(message: &Message, frame: &Frame) {
    let bytes = [&frame.head[..], &frame.payload[..]].concat();
    assert!(bytes.len() <= MAX_FRAME + 12);
    let again = messages(&bytes, || usize::MAX);
    assert_eq!(again, (vec![message.clone()], false));
}
