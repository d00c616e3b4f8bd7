//! The form of a journal's bytes: what came for a disk that follows another one, and is not in it yet.
//!
//! A journal is two files beside the disk, each a head and entries one after the other. One is filled; once a consistent
//! marker seals it the other one is, and the sealed one is carried over into the disk and emptied. Must never take bytes for
//! an entry that were not written as one: each has a check that also covers which filling of the file it belongs to.
//! Drawn in `docs/mirror-protocol.md`.

use bytes::{Buf, BufMut, Bytes};
use uuid::Uuid;

use crate::wire::{Content, MAX_DISK, MAX_PAYLOAD};

/// Bytes of a file's head.
pub const HEAD_LEN: usize = 64;
/// Bytes of an entry before its payload.
pub const ENTRY_LEN: usize = 32;

const MAGIC: [u8; 4] = *b"DFJ1";
const CHECK: usize = 8;

const DATA: u8 = 1;
const ZEROES: u8 = 2;
const MARK: u8 = 3;
const SEAL: u8 = 4;

/// The head of one of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The session whose data it is.
    pub session: Uuid,
    /// Counts the fillings of both files from 1.
    pub filling: u64,
    /// The number at which the disk was as the source's when the journal began; 0 when it is not known.
    pub seq: u64,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A change of the disk.
    Change {
        /// First byte.
        offset: u64,
        /// What is there then.
        content: Content,
    },
    /// Everything before it was made durable.
    Mark {
        /// The last number given out before it.
        seq: u64,
        /// With everything before it the disk is as the source's was: the end of a filling.
        sealed: bool,
    },
}

/// The beginning of an entry, checked as far as it can be without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHead {
    kind: u8,
    /// First byte, or the number.
    place: u64,
    /// Bytes of the disk.
    covers: u64,
    check: [u8; CHECK],
}

impl Head {
    /// Its bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        let (mut rest, check_at) = (&mut bytes[..], HEAD_LEN - CHECK);
        rest.put_slice(&MAGIC);
        rest.put_u32_le(0);
        rest.put_slice(self.session.as_bytes());
        rest.put_u64_le(self.filling);
        rest.put_u64_le(self.seq);
        let hash = blake3::hash(&bytes[..check_at]);
        bytes[check_at..].copy_from_slice(&hash.as_bytes()[..CHECK]);
        bytes
    }

    /// The head in these bytes; `None` if they are none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEAD_LEN]) -> Option<Self> {
        let (fields, check) = bytes.split_last_chunk::<CHECK>()?;
        if blake3::hash(fields).as_bytes().first_chunk() != Some(check) {
            return None;
        }
        let mut rest = fields;
        let magic = rest.try_get_u32().ok()?;
        let zero = rest.try_get_u32_le().ok()?;
        let session = Uuid::from_u128(rest.try_get_u128().ok()?);
        let filling = rest.try_get_u64_le().ok()?;
        let seq = rest.try_get_u64_le().ok()?;
        let known = magic.to_be_bytes() == MAGIC && zero == 0 && filling > 0;
        known.then_some(Self {
            session,
            filling,
            seq,
        })
    }
}

fn check(filling: u64, fields: &[u8], payload: &[u8]) -> [u8; CHECK] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&filling.to_le_bytes());
    hasher.update(fields).update(payload);
    let mut check = [0; CHECK];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK]);
    check
}

/// Kind, place, bytes of the disk: what the check covers beside the payload.
fn fields(kind: u8, place: u64, covers: u64) -> [u8; ENTRY_LEN - CHECK] {
    let mut fields = [0; ENTRY_LEN - CHECK];
    let mut rest = &mut fields[..];
    rest.put_u64_le(u64::from(kind));
    rest.put_u64_le(place);
    rest.put_u64_le(covers);
    fields
}

impl Entry {
    /// Append its bytes to `out`, for that filling.
    pub fn encode(&self, filling: u64, out: &mut Vec<u8>) {
        let (kind, place, covers, payload): (u8, u64, u64, &[u8]) = match self {
            Self::Change { offset, content } => match content {
                Content::Data(data) => (DATA, *offset, data.len() as u64, data),
                Content::Zeroes(len) => (ZEROES, *offset, *len, &[]),
            },
            Self::Mark { seq, sealed } => (if *sealed { SEAL } else { MARK }, *seq, 0, &[]),
        };
        let fields = fields(kind, place, covers);
        out.extend_from_slice(&fields);
        out.extend_from_slice(&check(filling, &fields, payload));
        out.extend_from_slice(payload);
    }
}

impl EntryHead {
    /// The beginning of an entry in these bytes; `None` if it is none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; ENTRY_LEN]) -> Option<Self> {
        let (fields, check) = bytes.split_last_chunk::<CHECK>()?;
        let mut rest = fields;
        let kind = u8::try_from(rest.try_get_u64_le().ok()?).ok()?;
        let place = rest.try_get_u64_le().ok()?;
        let covers = rest.try_get_u64_le().ok()?;
        let end = place.checked_add(covers)?;
        let fits = match kind {
            DATA => (1..=MAX_PAYLOAD as u64).contains(&covers) && end <= MAX_DISK,
            ZEROES => covers > 0 && end <= MAX_DISK,
            MARK | SEAL => covers == 0,
            _ => false,
        };
        fits.then_some(Self {
            kind,
            place,
            covers,
            check: *check,
        })
    }

    /// How many bytes of payload follow; at most 1 MiB.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        if self.kind == DATA {
            self.covers as usize
        } else {
            0
        }
    }

    /// The entry with that payload; `None` when it was not written as one of that filling.
    #[must_use]
    pub fn with_payload(&self, filling: u64, payload: Bytes) -> Option<Entry> {
        let fields = fields(self.kind, self.place, self.covers);
        if payload.len() != self.payload_len() || check(filling, &fields, &payload) != self.check {
            return None;
        }
        let content = match self.kind {
            DATA => Content::Data(payload),
            ZEROES => Content::Zeroes(self.covers),
            kind => {
                return Some(Entry::Mark {
                    seq: self.place,
                    sealed: kind == SEAL,
                });
            }
        };
        Some(Entry::Change {
            offset: self.place,
            content,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Entry> {
        prop_oneof![
            (
                0..MAX_DISK - 4096,
                prop::collection::vec(any::<u8>(), 1..2000)
            )
                .prop_map(|(offset, data)| Entry::Change {
                    offset,
                    content: Content::Data(data.into()),
                }),
            (0..MAX_DISK / 2, 1..MAX_DISK / 2).prop_map(|(offset, len)| Entry::Change {
                offset,
                content: Content::Zeroes(len),
            }),
            (any::<u64>(), any::<bool>()).prop_map(|(seq, sealed)| Entry::Mark { seq, sealed }),
        ]
    }

    fn decode(bytes: &[u8], filling: u64) -> Option<Entry> {
        let (head, payload) = bytes.split_first_chunk::<ENTRY_LEN>()?;
        let head = EntryHead::from_bytes(head)?;
        let payload = payload.get(..head.payload_len())?;
        head.with_payload(filling, Bytes::copy_from_slice(payload))
    }

    proptest! {
        #[test]
        fn an_entry_comes_back_as_it_was_written_and_from_no_other_filling(
            entry in entry(), filling in 1_u64..u64::MAX
        ) {
            let mut bytes = Vec::new();
            entry.encode(filling, &mut bytes);
            prop_assert_eq!(decode(&bytes, filling), Some(entry));
            prop_assert_eq!(decode(&bytes, filling - 1), None);
        }

        #[test]
        fn damaged_bytes_are_no_entry(entry in entry(), at in any::<prop::sample::Index>(), bit in 0..8) {
            let mut bytes = Vec::new();
            entry.encode(7, &mut bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(decode(&bytes, 7), None);
        }

        #[test]
        fn a_head_comes_back_as_it_was_written_and_a_damaged_one_is_none(
            session in any::<u128>(), filling in 1_u64.., seq in any::<u64>(), at in 0..HEAD_LEN, bit in 0..8
        ) {
            let head = Head { session: Uuid::from_u128(session), filling, seq };
            let mut bytes = head.to_bytes();
            prop_assert_eq!(Head::from_bytes(&bytes), Some(head));
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(Head::from_bytes(&bytes), None);
        }
    }
}
