//! States of machines: any bytes, any messages, and harm done to a state that a machine has left.
//!
//! What must hold: decoding is total; what is read is written again alike, but for messages that may be
//! skipped; and whether a host carries what was read is answered.

use arbitrary::{Arbitrary, Unstructured};
use vmm::snapshot::{FORMAT, Kind, MAGIC, MachineState, SKIPPABLE};

/// The state of a machine of one processor with a disk and an entropy device at work.
const SAMPLE: &[u8] = include_bytes!("../../vmm/tests/snapshot/format-1.state");
/// Where the first message begins, and bytes before the body of each.
const FIRST: usize = 16;
const HEAD: usize = 12;

#[derive(Arbitrary, Debug)]
enum Plan {
    Bytes(Vec<u8>),
    Messages(Vec<Message>),
    Harmed(Vec<Harm>),
}

#[derive(Arbitrary, Clone, Debug)]
struct Message {
    kind: u16,
    version: u16,
    body: Vec<u8>,
}

/// What is done to a message, by its place.
#[derive(Arbitrary, Debug)]
enum Harm {
    Set(u8, u16, u8),
    Cut(u8, u16),
    Append(u8, Vec<u8>),
    Drop(u8),
    Repeat(u8),
    Swap(u8, u8),
    Kind(u8, u16),
    Version(u8, u16),
}

/// The messages of a sound state, but the end.
fn messages(bytes: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    let mut at = FIRST;
    while at < bytes.len() {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let length = usize::from(word(at + 4)) | usize::from(word(at + 6)) << 16;
        found.push(Message {
            kind: word(at),
            version: word(at + 2),
            body: bytes[at + HEAD..at + HEAD + length].to_vec(),
        });
        at += HEAD + length;
    }
    found.pop();
    found
}

fn append(to: &mut Vec<u8>, message: &Message) {
    let mut head = Vec::with_capacity(HEAD);
    head.extend(message.kind.to_le_bytes());
    head.extend(message.version.to_le_bytes());
    head.extend((message.body.len() as u32).to_le_bytes());
    let check = crc32c::crc32c_append(crc32c::crc32c(&head), &message.body);
    to.extend(head);
    to.extend(check.to_le_bytes());
    to.extend(&message.body);
}

/// The bytes of messages, with an end, all checksums right.
fn laid_out(messages: &[Message]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend([0; 4]);
    for message in messages {
        append(&mut bytes, message);
    }
    let end = Message {
        kind: Kind::End.number(),
        version: 1,
        body: crc32c::crc32c(&bytes).to_le_bytes().to_vec(),
    };
    append(&mut bytes, &end);
    bytes
}

impl Harm {
    fn apply(self, messages: &mut Vec<Message>) {
        let many = messages.len();
        if many == 0 {
            return;
        }
        let place = |at: u8| usize::from(at) % many;
        match self {
            Self::Set(message, at, value) => {
                let body = &mut messages[place(message)].body;
                if !body.is_empty() {
                    let at = usize::from(at) % body.len();
                    body[at] = value;
                }
            }
            Self::Cut(message, at) => messages[place(message)].body.truncate(at.into()),
            Self::Append(message, bytes) => messages[place(message)].body.extend(bytes),
            Self::Drop(message) => {
                messages.remove(place(message));
            }
            Self::Repeat(message) => {
                let again = messages[place(message)].clone();
                messages.insert(place(message), again);
            }
            Self::Swap(one, other) => messages.swap(place(one), place(other)),
            Self::Kind(message, kind) => messages[place(message)].kind = kind,
            Self::Version(message, version) => messages[place(message)].version = version,
        }
    }
}

/// What is read is written again alike, and can be asked.
fn decode(bytes: &[u8], skips: bool) -> bool {
    let state = match MachineState::decode(bytes) {
        Ok(state) => state,
        Err(error) => {
            assert!(error.offset() <= bytes.len() as u64, "{error}");
            return false;
        }
    };
    let again = state.encode();
    assert!(
        skips || again == bytes,
        "written otherwise than it was read"
    );
    assert_eq!(MachineState::decode(&again).as_ref(), Ok(&state));
    // Of the answer nothing is known but that there is one.
    let _ = state.host.carries(&state);
    true
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    match plan {
        Plan::Bytes(bytes) => {
            decode(&bytes, false);
        }
        Plan::Messages(messages) => {
            // None of these is a whole machine.
            assert!(!decode(&laid_out(&messages), false));
        }
        Plan::Harmed(harms) => {
            let mut messages = messages(SAMPLE);
            let whole = harms.is_empty();
            for harm in harms {
                harm.apply(&mut messages);
            }
            let skips = messages.iter().any(|message| message.kind & SKIPPABLE != 0);
            let read = decode(&laid_out(&messages), skips);
            assert!(read || !whole, "a machine has left this");
        }
    }
}
