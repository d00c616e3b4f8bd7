//! The rules of the region table, one test each (clause 10 and 11 of the validation list).

use proptest::prelude::*;

use super::*;

fn table() -> RegionTable {
    let place = |mib: u64, len: u64| Region {
        at: FileOffset(mib * MIB),
        len: len * MIB,
    };
    RegionTable::new(place(6, 2), place(5, 1))
}

/// The encoded table with `change` made and the checksum put right again.
fn mutated(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = table().encode();
    change(&mut bytes);
    let crc = checksum(&bytes, CHECKSUM_AT);
    put(&mut bytes, CHECKSUM_AT, &crc.to_le_bytes());
    bytes
}

fn refused(bytes: &[u8], words: &str) -> ErrorKind {
    let error = RegionTable::decode(bytes, COPY_ONE).unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
    assert!(error.offset().is_some(), "{error}");
    error.kind()
}

#[test]
fn what_is_encoded_is_decoded() {
    assert_eq!(
        RegionTable::decode(&table().encode(), COPY_ONE).unwrap(),
        table()
    );
}

#[test]
fn the_second_copy_serves_when_the_first_is_damaged() {
    let good = table().encode();
    let mut bad = good.clone();
    bad[20] ^= 1;
    let (chosen, warnings) = RegionTable::choose(&bad, &good).unwrap();
    assert_eq!((chosen, warnings.len()), (table(), 1));
    assert_eq!(warnings[0].offset, Some(COPY_ONE.0));
    let (chosen, warnings) = RegionTable::choose(&good, &bad).unwrap();
    assert_eq!((chosen, warnings.len()), (table(), 1));
    assert_eq!(
        RegionTable::choose(&bad, &bad).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    assert!(RegionTable::choose(&good, &good).unwrap().1.is_empty());
    let other = mutated(|bytes| bytes[60_000] = 1);
    assert_eq!(RegionTable::choose(&good, &other).unwrap().1.len(), 1);
}

#[test]
fn too_many_entries_are_refused() {
    let bytes = mutated(|bytes| put(bytes, COUNT_AT, &2048_u32.to_le_bytes()));
    assert_eq!(refused(&bytes, "EntryCount is 2048"), ErrorKind::Corrupt);
}

#[test]
fn a_misaligned_region_is_refused() {
    let bytes = mutated(|bytes| put(bytes, ENTRIES_AT + 16, &(MIB + 4096).to_le_bytes()));
    assert_eq!(refused(&bytes, "FileOffset"), ErrorKind::Corrupt);
    let bytes = mutated(|bytes| put(bytes, ENTRIES_AT + 16, &0_u64.to_le_bytes()));
    assert_eq!(refused(&bytes, "FileOffset"), ErrorKind::Corrupt);
    let bytes = mutated(|bytes| put(bytes, ENTRIES_AT + 24, &4096_u32.to_le_bytes()));
    assert_eq!(refused(&bytes, "Length"), ErrorKind::Corrupt);
}

#[test]
fn overlapping_regions_are_refused() {
    let bytes = mutated(|bytes| put(bytes, ENTRIES_AT + 16, &(7 * MIB).to_le_bytes()));
    assert_eq!(refused(&bytes, "overlap"), ErrorKind::Corrupt);
}

#[test]
fn a_region_named_twice_is_refused() {
    let bytes = mutated(|bytes| {
        let copy: Vec<u8> = bytes[ENTRIES_AT..ENTRIES_AT + 32].to_vec();
        put(bytes, ENTRIES_AT + 64, &copy);
        put(bytes, ENTRIES_AT + 64 + 16, &(20 * MIB).to_le_bytes());
        put(bytes, COUNT_AT, &3_u32.to_le_bytes());
    });
    assert_eq!(refused(&bytes, "twice"), ErrorKind::Corrupt);
}

#[test]
fn a_missing_known_region_is_refused() {
    let bytes = mutated(|bytes| put(bytes, COUNT_AT, &1_u32.to_le_bytes()));
    assert_eq!(refused(&bytes, "no BAT"), ErrorKind::Corrupt);
}

#[test]
fn an_unknown_region_is_kept_when_optional_and_refused_when_required() {
    let with = |required: u32| {
        mutated(|bytes| {
            put(bytes, ENTRIES_AT + 64, &Guid::from_random(7).0);
            put(bytes, ENTRIES_AT + 64 + 16, &(20 * MIB).to_le_bytes());
            put(bytes, ENTRIES_AT + 64 + 24, &(MIB as u32).to_le_bytes());
            put(bytes, ENTRIES_AT + 64 + 28, &required.to_le_bytes());
            put(bytes, COUNT_AT, &3_u32.to_le_bytes());
        })
    };
    assert_eq!(
        RegionTable::decode(&with(0), COPY_ONE)
            .unwrap()
            .entries
            .len(),
        3
    );
    assert_eq!(refused(&with(1), "required"), ErrorKind::Unsupported);
}

#[test]
fn the_known_regions_need_not_be_flagged_required() {
    let bytes = mutated(|bytes| put(bytes, ENTRIES_AT + 28, &0_u32.to_le_bytes()));
    assert!(RegionTable::decode(&bytes, COPY_ONE).is_ok());
}

proptest! {
    #[test]
    fn any_entries_give_an_error_or_a_table(
        entries in prop::collection::vec(any::<[u8; 32]>(), 0..20), count in 0..30_u32,
    ) {
        let bytes = mutated(|bytes| {
            put(bytes, COUNT_AT, &count.to_le_bytes());
            put(bytes, ENTRIES_AT, &entries.concat());
        });
        let _ = RegionTable::decode(&bytes, COPY_ONE);
        let _ = RegionTable::choose(&bytes, &entries.concat());
    }
}
