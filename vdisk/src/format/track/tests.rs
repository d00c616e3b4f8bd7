//! What the tracking region says comes back as it was written, and nothing else is believed.

use proptest::prelude::*;

use super::*;

fn checkpoint(id: u64, name: &str, bitmap: u32) -> Checkpoint {
    Checkpoint {
        id,
        name: CheckpointName::new(name).unwrap(),
        time: 1_700_000_000 + id,
        size: 64 << 30,
        low: 32 << 30,
        bitmap,
        lost: false,
    }
}

fn header() -> TrackHeader {
    let shape = TrackShape::for_disk(64 << 30, None).unwrap();
    let mut header = TrackHeader::new(shape, Guid::from_random(1));
    header.next = Guid::from_random(2);
    header.clean = false;
    header.next_id = 9;
    header.checkpoints = vec![checkpoint(3, "monday", 1), checkpoint(8, "dienstag é", 0)];
    header
}

const REGION: u64 = 1 << 30;

#[test]
fn a_header_comes_back_as_it_was_written() {
    let header = header();
    assert_eq!(
        TrackHeader::decode(&header.encode(), REGION).unwrap(),
        header
    );
}

#[test]
fn a_torn_header_leaves_the_other_one() {
    let (old, mut new) = (header(), header());
    new.sequence += 1;
    new.clean = true;
    let pages = [old.encode().to_vec(), new.encode().to_vec()];
    assert_eq!(TrackHeader::choose(&pages, REGION).unwrap(), (new, 1));
    let mut torn = pages.clone();
    torn[1][700] ^= 1;
    assert_eq!(TrackHeader::choose(&torn, REGION).unwrap(), (old, 0));
    torn[0][700] ^= 1;
    let error = TrackHeader::choose(&torn, REGION).unwrap_err();
    assert!(error.to_string().contains("both"), "{error}");
}

#[test]
fn a_header_that_contradicts_itself_is_refused() {
    type Spoil = fn(&mut TrackHeader);
    let spoils: [Spoil; 9] = [
        |header| header.checkpoints[1].bitmap = 1,
        |header| header.checkpoints[1].name = header.checkpoints[0].name,
        |header| header.checkpoints[1].id = 2,
        |header| header.checkpoints[1].id = 9,
        |header| header.checkpoints[1].lost = true,
        |header| header.checkpoints[0].low = u64::MAX,
        |header| header.shape.granularity = 5000,
        |header| header.shape.bitmap_len = PAGE_BYTES,
        |header| header.shape.bitmaps = 17,
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        let mut header = header();
        spoil(&mut header);
        assert!(
            TrackHeader::decode(&header.encode(), REGION).is_err(),
            "{number}"
        );
    }
    assert!(TrackHeader::decode(&header().encode(), MIB).is_err());
}

#[test]
fn what_is_known_follows_from_the_images_guid() {
    let mut header = header();
    let (before, during, other) = (header.made_for, header.next, Guid::from_random(3));
    assert_eq!(header.validity(before), Validity::Complete);
    assert_eq!(header.validity(during), Validity::Interrupted);
    assert_eq!(header.validity(other), Validity::Foreign);
    (header.made_for, header.clean) = (during, true);
    assert_eq!(header.validity(before), Validity::Foreign);
    assert_eq!(header.validity(during), Validity::Complete);
    // A merge goes on under the version that it announced.
    header.clean = false;
    assert_eq!(header.validity(during), Validity::Interrupted);
}

#[test]
fn bitmaps_of_all_disks_fit_their_region() {
    for shift in 0..=46 {
        for size in [1_u64 << shift, (1 << shift) + (1 << shift) / 2] {
            let shape = TrackShape::for_disk(size.min(MAX_VIRTUAL_SIZE), None).unwrap();
            assert!(shape.capacity >= size.min(MAX_VIRTUAL_SIZE));
            assert!(shape.bitmap_len <= 4 * CHOSEN_BITMAP, "{shape:?}");
            assert_eq!(shape.bitmaps, 16);
            shape.check(shape.region_len()).unwrap();
        }
    }
    let error = TrackShape::for_disk(MAX_VIRTUAL_SIZE, Some(4096)).unwrap_err();
    assert!(error.to_string().contains("at least 8192"), "{error}");
    let fine = TrackShape::for_disk(MAX_VIRTUAL_SIZE, Some(8192)).unwrap();
    assert!(fine.region_len() <= MOST_REGION && fine.bitmaps >= 2);
    assert!(TrackShape::for_disk(1 << 30, Some(2048)).is_err());
    assert!(TrackShape::for_disk(1 << 30, Some(12_288)).is_err());
}

#[test]
fn names_are_text_of_some_length() {
    assert!(CheckpointName::new("").is_err());
    assert!(CheckpointName::new(&"x".repeat(65)).is_err());
    assert!(CheckpointName::new("a\nb").is_err());
    let longest = "é".repeat(32);
    assert_eq!(CheckpointName::new(&longest).unwrap().as_str(), longest);
}

#[test]
fn the_newer_copy_of_a_sector_of_this_session_counts() {
    let sector = |session, sequence, page| ActivitySector {
        session,
        sequence,
        entries: vec![LogEntry { page, mask: 5 }; 3],
    };
    let (one, two) = (sector(7, 1, 10), sector(7, 2, 11));
    let (a, mut b) = (one.encode(), two.encode());
    assert_eq!(newest([&a, &b], 7), Some(two));
    assert_eq!(
        newest([&a, &sector(6, 9, 1).encode()], 7),
        Some(one.clone())
    );
    b[90] ^= 1;
    assert_eq!(newest([&a, &b], 7), Some(one));
    assert_eq!(newest([&a, &b], 8), None);
    assert_eq!(newest([&[], &[0; 9]], 0), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..5000), sum in any::<bool>()) {
        let mut bytes = bytes;
        if sum && bytes.len() >= PAGE {
            bytes[..8].copy_from_slice(&SIGNATURE);
            bytes[VERSION_AT..VERSION_AT + 4].copy_from_slice(&1_u32.to_le_bytes());
            let crc = checksum(&bytes[..PAGE], CHECKSUM_AT);
            bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
        }
        let _ = TrackHeader::decode(&bytes, REGION);
        let _ = ActivitySector::decode(&bytes);
    }

    #[test]
    fn a_header_with_any_word_spoiled_and_summed_again_is_refused_or_read(at in 12_usize..400, word in any::<u64>()) {
        let mut page = header().encode();
        page[at..at + 8].copy_from_slice(&word.to_le_bytes());
        let crc = checksum(&page, CHECKSUM_AT);
        page[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&crc.to_le_bytes());
        if let Ok(header) = TrackHeader::decode(&page, REGION) {
            prop_assert!(header.shape.region_len() <= REGION);
            prop_assert!(header.checkpoints.len() <= MAX_CHECKPOINTS);
        }
    }
}
