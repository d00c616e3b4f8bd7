//! Promises of the log: what is written is found, in order, and nothing else is.

use bytes::Bytes;
use proptest::prelude::*;

use super::entry::encode_with_zeroes;
use super::*;
use crate::format::{Guid, PAGE, PAGE_BYTES};
use crate::units::FileOffset;

const LOG_LEN: usize = 1 << 20;
const BAT_AT: u64 = 16 << 20;

fn place() -> LogPlace {
    LogPlace {
        guid: Guid::from_random(5),
        at: FileOffset(1 << 20),
    }
}

fn pages(count: usize, fill: u8) -> Vec<(FileOffset, Bytes)> {
    (0..count)
        .map(|number| {
            let bytes: Vec<u8> = (0..PAGE)
                .map(|at| fill ^ (at as u8) ^ (at >> 8) as u8 ^ number as u8)
                .collect();
            (
                FileOffset(BAT_AT + number as u64 * PAGE_BYTES),
                Bytes::from(bytes),
            )
        })
        .collect()
}

fn entry(sequence: u64, tail: u32, pages: &[(FileOffset, Bytes)]) -> Vec<u8> {
    encode_entry(&EntryPlan {
        log_guid: place().guid,
        sequence,
        tail,
        flushed_file_offset: 20 << 20,
        last_file_offset: 24 << 20,
        pages,
    })
}

/// Writes round the end of the log; returns where the next entry goes.
fn append(log: &mut [u8], at: u32, bytes: &[u8]) -> u32 {
    for (number, byte) in bytes.iter().enumerate() {
        log[(at as usize + number) % LOG_LEN] = *byte;
    }
    ((at as usize + bytes.len()) % LOG_LEN) as u32
}

fn replayed(log: &[u8], entry: &Entry) -> Vec<(FileOffset, Bytes)> {
    descriptors(log, entry)
        .map(|change| {
            let change = change.unwrap();
            let Descriptor::Data { to, .. } = change else {
                panic!("a zero descriptor")
            };
            (
                to,
                Bytes::copy_from_slice(&page(log, &change).unwrap().unwrap()),
            )
        })
        .collect()
}

#[test]
fn lengths_count_descriptor_sectors() {
    for (count, sectors) in [
        (0, 1),
        (1, 2),
        (126, 127),
        (127, 129),
        (254, 256),
        (255, 258),
    ] {
        assert_eq!(entry_len(count), sectors * PAGE, "{count} pages");
        if count < 250 {
            assert_eq!(entry(1, 0, &pages(count, 1)).len(), sectors * PAGE);
        }
    }
}

#[test]
fn an_entry_that_wraps_is_read_whole() {
    let mut log = vec![0; LOG_LEN];
    let at = (LOG_LEN - 2 * PAGE) as u32;
    let pages = pages(130, 7);
    append(&mut log, at, &entry(9, at, &pages));
    let active = find_active(&log, &place()).unwrap();
    assert_eq!(active.entries.len(), 1);
    assert_eq!(active.entries[0].last_file_offset, 24 << 20);
    assert_eq!(replayed(&log, &active.entries[0]), pages);
}

#[test]
fn replay_begins_at_the_tail_of_the_head_entry() {
    let mut log = vec![0; LOG_LEN];
    let second = append(&mut log, 0, &entry(1, 0, &pages(1, 1)));
    let third = append(&mut log, second, &entry(2, 0, &pages(2, 2)));
    append(&mut log, third, &entry(3, second, &pages(3, 3)));
    let active = find_active(&log, &place()).unwrap();
    let numbers: Vec<u64> = active.entries.iter().map(|e| e.sequence).collect();
    assert_eq!(numbers, [2, 3]);
}

#[test]
fn a_torn_newest_entry_leaves_the_older_ones() {
    let mut log = vec![0; LOG_LEN];
    let second = append(&mut log, 0, &entry(1, 0, &pages(1, 1)));
    append(&mut log, second, &entry(2, 0, &pages(3, 2)));
    log[second as usize + 2 * PAGE + 700] ^= 1;
    let active = find_active(&log, &place()).unwrap();
    assert_eq!(active.head().unwrap().sequence, 1);
}

#[test]
fn a_tail_outside_the_sequence_makes_it_invalid() {
    let mut log = vec![0; LOG_LEN];
    append(&mut log, 8192, &entry(4, 4096, &pages(1, 1)));
    let error = find_active(&log, &place()).unwrap_err();
    assert!(error.to_string().contains("1 valid entries"), "{error}");
}

#[test]
fn the_greatest_number_wins_and_a_gap_breaks_the_chain() {
    let mut log = vec![0; LOG_LEN];
    let second = append(&mut log, 0, &entry(7, 0, &pages(1, 1)));
    append(&mut log, second, &entry(9, second, &pages(1, 2)));
    let active = find_active(&log, &place()).unwrap();
    assert_eq!(active.entries.len(), 1);
    assert_eq!(active.head().unwrap().sequence, 9);
}

#[test]
fn entries_of_an_earlier_log_do_not_count() {
    let mut log = vec![0; LOG_LEN];
    append(&mut log, 0, &entry(7, 0, &pages(1, 1)));
    let other = LogPlace {
        guid: Guid::from_random(6),
        ..place()
    };
    assert!(find_active(&log, &other).is_err());
    assert!(find_active(&[], &place()).is_err());
}

#[test]
fn headers_and_log_are_out_of_reach() {
    for target in [
        0,
        64 << 10,
        128 << 10,
        1 << 20,
        (2 << 20) - 4096,
        u64::MAX - 4095,
        5 << 20 | 512,
    ] {
        let page = vec![(FileOffset(target), Bytes::from(vec![1; PAGE]))];
        let log = entry(1, 0, &page);
        let mut whole = vec![0; LOG_LEN];
        append(&mut whole, 0, &log);
        assert!(decode_entry(&whole, 0, &place()).is_err(), "{target:#x}");
    }
    for (target, fine) in [(192 << 10, true), (2 << 20, true)] {
        let mut whole = vec![0; LOG_LEN];
        append(
            &mut whole,
            0,
            &entry(1, 0, &[(FileOffset(target), Bytes::from(vec![1; PAGE]))]),
        );
        assert_eq!(
            decode_entry(&whole, 0, &place()).is_ok(),
            fine,
            "{target:#x}"
        );
    }
}

#[test]
fn zero_ranges_are_kept_apart_from_pages() {
    let pages = pages(2, 3);
    let plan = EntryPlan {
        log_guid: place().guid,
        sequence: 1,
        tail: 0,
        flushed_file_offset: 0,
        last_file_offset: 0,
        pages: &pages,
    };
    let zeroes = [
        (FileOffset(32 << 20), 1 << 20),
        (FileOffset(40 << 20), 8192),
    ];
    let bytes = encode_with_zeroes(&plan, &zeroes);
    assert_eq!(bytes.len(), 3 * PAGE);
    let mut log = vec![0; LOG_LEN];
    append(&mut log, 4096 * 5, &bytes);
    let read = decode_entry(&log, 4096 * 5, &place()).unwrap();
    let changes: Vec<Descriptor> = descriptors(&log, &read).map(Result::unwrap).collect();
    assert_eq!(changes.len(), 4);
    assert_eq!(
        changes[3],
        Descriptor::Zero {
            at: zeroes[1].0,
            len: 8192
        }
    );
    assert_eq!(
        page(&log, &changes[1]).unwrap().unwrap()[..],
        pages[1].1[..]
    );
}

/// Each field of the entry header and each kind of sector, spoilt with the checksum put right.
#[test]
fn every_rule_of_an_entry_is_checked() {
    let good = entry(3, 0, &pages(2, 1));
    let spoil = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        let crc = crate::format::checksum(&bytes, 4);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        let mut log = vec![0; LOG_LEN];
        append(&mut log, 0, &bytes);
        decode_entry(&log, 0, &place())
    };
    assert!(spoil(0, b"loge").is_ok());
    let cases: [(usize, &[u8], &str); 14] = [
        (0, b"logf", "signature"),
        (8, &8191_u32.to_le_bytes(), "EntryLength"),
        (8, &0_u32.to_le_bytes(), "EntryLength"),
        (8, &(2_u32 << 20).to_le_bytes(), "EntryLength"),
        (8, &8192_u32.to_le_bytes(), "descriptors make"),
        (12, &1_u32.to_le_bytes(), "Tail"),
        (12, &(1_u32 << 20).to_le_bytes(), "Tail"),
        (16, &0_u64.to_le_bytes(), "SequenceNumber is 0"),
        (24, &u32::MAX.to_le_bytes(), "DescriptorCount"),
        (24, &3_u32.to_le_bytes(), "SequenceNumber"),
        (32, &[1; 16], "another log"),
        (64, b"desx", "unknown signature"),
        (PAGE, b"date", "data sector 0"),
        (2 * PAGE - 4, &[9; 4], "data sector 0"),
    ];
    for (at, value, words) in cases {
        let error = spoil(at, value).unwrap_err();
        assert!(error.to_string().contains(words), "{at} {words}: {error}");
    }
}

/// The text's own procedure: walk from every sector (MS-VHDX 2.3.3).
fn walk_from_everywhere(log: &[u8]) -> Option<(u64, u32)> {
    let mut best: Option<(u64, u32)> = None;
    for start in (0..log.len()).step_by(PAGE) {
        let (mut at, mut total) = (start as u32, 0);
        let mut walked: Vec<Entry> = Vec::new();
        while let Ok(entry) = decode_entry(log, at, &place()) {
            let follows = walked
                .last()
                .is_none_or(|e| e.sequence + 1 == entry.sequence);
            total += entry.len as usize;
            if !follows || total > log.len() {
                break;
            }
            at = ((at as usize + entry.len as usize) % log.len()) as u32;
            walked.push(entry);
        }
        if let Some(head) = walked.last()
            && walked.iter().any(|e| e.at == head.tail)
            && best.is_none_or(|(sequence, _)| sequence < head.sequence)
        {
            best = Some((head.sequence, head.tail));
        }
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Random entries at random places with random tails: one pass finds what the walks find.
    #[test]
    fn one_pass_finds_what_the_walks_find(
        start in 0..64_u32,
        entries in prop::collection::vec((0..5_usize, 0..3_u64, 0..64_u32, any::<bool>()), 1..16),
    ) {
        let mut log = vec![0; 64 * PAGE];
        let mut at = start as usize * PAGE;
        let mut sequence = 10;
        let mut starts = vec![at as u32];
        for (count, step, tail, torn) in entries {
            sequence += if step == 0 { 2 } else { 1 };
            let tail = starts[tail as usize % starts.len()];
            let mut bytes = entry(sequence, tail, &pages(count, 1));
            if torn && step == 1 {
                let last = bytes.len() - 9;
                bytes[last] ^= 1;
            }
            for byte in bytes {
                log[at % (64 * PAGE)] = byte;
                at += 1;
            }
            at %= 64 * PAGE;
            starts.push(at as u32);
        }
        let found = find_active(&log, &place()).ok();
        let ends = found.map(|a| (a.head().unwrap().sequence, a.entries[0].at));
        prop_assert_eq!(ends, walk_from_everywhere(&log));
    }

    #[test]
    fn any_bytes_with_a_right_checksum_do_not_panic(
        head in prop::collection::vec(any::<u8>(), 28),
        descriptors in prop::collection::vec((any::<bool>(), any::<[u8; 28]>()), 0..40),
        length in 0..40_u32, count in 0..60_u32, at in 0..16_u32,
    ) {
        let mut bytes = vec![0; PAGE * 8];
        bytes[4..32].copy_from_slice(&head);
        bytes[..4].copy_from_slice(b"loge");
        bytes[8..12].copy_from_slice(&(length * 2048).to_le_bytes());
        bytes[24..28].copy_from_slice(&count.to_le_bytes());
        bytes[32..48].copy_from_slice(&place().guid.0);
        for (number, (zero, body)) in descriptors.iter().enumerate() {
            let start = 64 + number * 32;
            bytes[start..start + 4].copy_from_slice(if *zero { b"zero" } else { b"desc" });
            bytes[start + 4..start + 32].copy_from_slice(body);
        }
        let crc = crate::format::checksum(&bytes, 4);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        let mut log = vec![0; 16 * PAGE];
        for (number, byte) in bytes.iter().enumerate() {
            let len = log.len();
            log[(at as usize * PAGE + number) % len] = *byte;
        }
        let _ = decode_entry(&log, at * PAGE as u32, &place());
        let _ = find_active(&log, &place());
        let _ = find_active(&log[..5000], &place());
    }

    #[test]
    fn what_is_encoded_is_found(count in 0..200_usize, fill: u8, at in 0..256_u32, sequence in 1..u64::MAX) {
        let mut log = vec![0; LOG_LEN];
        let pages = pages(count, fill);
        let at = at * PAGE as u32;
        append(&mut log, at, &entry(sequence, at, &pages));
        let active = find_active(&log, &place()).unwrap();
        prop_assert_eq!(active.head().unwrap().sequence, sequence);
        prop_assert_eq!(replayed(&log, &active.entries[0]), pages);
    }
}
