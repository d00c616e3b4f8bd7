//! A journal's bytes: those of another, and entries harmed in any way. The record of a group of disks as well.
//!
//! What must hold: decoding is total; an entry is read as it was written and from no other filling; bytes that were harmed
//! are no entry; what is read is within its bounds and is written again alike.

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use mirror::group::GroupRecord;
use mirror::journal::{ENTRY_LEN, Entry, EntryHead, HEAD_LEN, Head};
use mirror::wire::{Content, MAX_DISK, MAX_PAYLOAD};
use uuid::Uuid;

#[derive(Arbitrary, Debug)]
enum Plan {
    Bytes(u64, Vec<u8>),
    Written {
        filling: u64,
        place: u64,
        covers: u64,
        kind: u8,
        harm: Option<(u16, u8)>,
    },
    Head {
        session: u128,
        filling: u64,
        seq: u64,
        harm: Option<(u16, u8)>,
    },
}

/// The entry that these bytes begin with.
fn read(bytes: &[u8], filling: u64) -> Option<Entry> {
    let (head, rest) = bytes.split_first_chunk::<ENTRY_LEN>()?;
    let head = EntryHead::from_bytes(head)?;
    assert!(head.payload_len() <= MAX_PAYLOAD);
    let payload = rest.get(..head.payload_len())?;
    let entry = head.with_payload(filling, Bytes::copy_from_slice(payload))?;
    if let Entry::Change { offset, content } = &entry {
        let end = offset
            .checked_add(content.covers())
            .expect("it was checked");
        assert!(end <= MAX_DISK && content.covers() > 0);
    }
    let mut again = Vec::new();
    entry.encode(filling, &mut again);
    assert_eq!(bytes.get(..again.len()), Some(&again[..]));
    Some(entry)
}

/// Whether one byte was changed.
fn harmed(bytes: &mut [u8], harm: Option<(u16, u8)>) -> bool {
    let Some((at, by)) = harm else { return false };
    let at = usize::from(at) % bytes.len();
    bytes[at] ^= by;
    by != 0
}

/// A group's record with these bytes as it is, and with them as the content of one that checks.
fn group(bytes: &[u8]) {
    if let Ok(record) = GroupRecord::from_bytes(bytes) {
        assert!(record.disks.iter().all(|disk| !disk.name.contains('/')));
    }
    let content = String::from_utf8_lossy(bytes);
    let check = blake3::hash(content.as_bytes()).to_hex();
    let checked = format!("{{\"diskferry_group\":1,\"check\":\"{check}\",\"record\":{content}}}");
    if let Ok(record) = GroupRecord::from_bytes(checked.as_bytes()) {
        let again = record.to_bytes().expect("it has a form");
        assert_eq!(
            GroupRecord::from_bytes(&again).expect("as it was written"),
            record
        );
        assert!(record.disks.iter().all(|disk| !disk.name.contains('/')));
    }
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    match plan {
        Plan::Bytes(filling, bytes) => {
            read(&bytes, filling);
            group(&bytes);
            if let Some(head) = bytes.first_chunk::<HEAD_LEN>().and_then(Head::from_bytes) {
                assert_eq!(Some(&head.to_bytes()), bytes.first_chunk());
            }
        }
        Plan::Written {
            filling,
            place,
            covers,
            kind,
            harm,
        } => {
            let len = covers % 5000 + 1;
            let offset = place % (MAX_DISK - 5000);
            let entry = match kind % 4 {
                0 => Entry::Change {
                    offset,
                    content: Content::Data(vec![kind; len as usize].into()),
                },
                1 => Entry::Change {
                    offset,
                    content: Content::Zeroes(len),
                },
                _ => Entry::Mark {
                    seq: place,
                    sealed: kind.is_multiple_of(2),
                },
            };
            let mut bytes = Vec::new();
            entry.encode(filling, &mut bytes);
            assert_eq!(read(&bytes, filling.wrapping_add(1)), None);
            let expected = (!harmed(&mut bytes, harm)).then_some(entry);
            assert_eq!(read(&bytes, filling), expected);
        }
        Plan::Head {
            session,
            filling,
            seq,
            harm,
        } => {
            let head = Head {
                session: Uuid::from_u128(session),
                filling: filling.max(1),
                seq,
            };
            let mut bytes = head.to_bytes();
            let expected = (!harmed(&mut bytes, harm)).then_some(head);
            assert_eq!(Head::from_bytes(&bytes), expected);
        }
    }
}
