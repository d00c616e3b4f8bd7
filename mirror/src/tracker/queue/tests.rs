//! The queue beside a list of all changes.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::wire::Content;

fn record(seq: u64, offset: u64, len: u64) -> Record {
    let content = match seq % 3 {
        0 => Content::Zeroes(len),
        _ => Content::Data(Bytes::from(vec![seq as u8; len as usize])),
    };
    Record {
        seq,
        offset,
        content,
    }
}

#[test]
fn of_two_changes_of_the_same_bytes_the_later_one_is_kept() {
    let mut queue = Queue::new(1 << 20);
    assert_eq!(queue.push(record(1, 0, 4096), 0), None);
    assert_eq!(queue.push(record(2, 8192, 4096), 0), None);
    assert_eq!(queue.push(record(4, 0, 4096), 0), Some(record(1, 0, 4096)));
    // Covers only a part.
    assert_eq!(queue.push(record(5, 8192, 512), 0), None);
    assert_eq!(queue.gap_at(0), None);
    for seq in 1..4 {
        assert_eq!(queue.gap_at(seq), Some(Gap { first: 1, last: 4 }));
    }
    assert_eq!(queue.gap_at(4), None);
    let kept: Vec<u64> = std::iter::from_fn(|| queue.take())
        .map(|record| record.seq)
        .collect();
    assert_eq!(kept, [2, 4, 5]);
    // It may have to be sent again: only what is durable is forgotten.
    assert!(queue.gap_at(2).is_some());
    queue.settle(4);
    assert_eq!(queue.gap_at(2), None);
}

#[test]
fn what_was_taken_lies_before_a_cut_or_in_another_window_is_left_alone() {
    let mut queue = Queue::new(8192);
    queue.push(record(1, 0, 4096), 0);
    queue.take();
    assert_eq!(queue.push(record(2, 0, 4096), 0), None, "it was taken");
    assert_eq!(queue.push(record(4, 0, 4096), 3), None, "before the cut");
    assert!(queue.push(record(5, 0, 4096), 3).is_some());
    assert_eq!(queue.push(record(6, 0, 4096), 3), None, "another window");
    assert_eq!(queue.gap_at(3), None);
    assert_eq!(queue.gap_at(4), Some(Gap { first: 4, last: 5 }));
}

/// What a disk holds after changes, by byte: which of them wrote it.
fn disk<'a>(records: impl Iterator<Item = &'a Record>) -> BTreeMap<u64, u64> {
    let mut disk = BTreeMap::new();
    for record in records {
        for byte in record.offset..record.offset + record.content.covers() {
            disk.insert(byte, record.seq);
        }
    }
    disk
}

proptest! {
    #[test]
    fn with_everything_up_to_a_number_outside_of_a_gap_a_disk_is_as_it_was_then(
        changes in prop::collection::vec((0_u64..6, 1_u64..5, 0_u32..100), 1..80),
        span in 1_u64..40,
    ) {
        let mut queue = Queue::new(span);
        let (mut all, mut kept, mut cut, mut held) = (Vec::new(), Vec::new(), 0, 0);
        for (index, (offset, len, what)) in changes.into_iter().enumerate() {
            let record = record(index as u64 + 1, offset, len);
            let left_out = queue.push(record.clone(), cut);
            held += 1 - u64::from(left_out.is_some());
            all.push(record);
            match what {
                0..30 => kept.extend(queue.take()),
                30..35 => cut = index as u64 + 1,
                _ => {}
            }
            prop_assert_eq!(held, (kept.len() + queue.iter().count()) as u64);
            prop_assert_eq!(queue.is_empty(), queue.front().is_none());
            prop_assert_eq!(queue.places.len() - queue.empty(), queue.iter().count());
        }
        kept.extend(std::iter::from_fn(|| queue.take()));
        prop_assert!(kept.is_sorted_by_key(|record| record.seq));
        for seq in 0..=all.len() as u64 {
            let up_to = |record: &&Record| record.seq <= seq;
            if queue.gap_at(seq).is_none() {
                prop_assert_eq!(disk(kept.iter().filter(up_to)), disk(all.iter().filter(up_to)), "{}", seq);
            }
        }
        prop_assert_eq!(queue.gap_at(all.len() as u64), None);
    }
}
