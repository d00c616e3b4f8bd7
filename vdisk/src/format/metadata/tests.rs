//! The rules of the metadata region, one test each (clauses 12 to 14 of the validation list).

use proptest::prelude::*;

use super::*;

fn metadata() -> Metadata {
    Metadata {
        block_size: 1 << 20,
        virtual_size: 16 << 40,
        logical_sector: 512,
        physical_sector: 4096,
        disk_id: Guid::from_random(3),
        leave_allocated: false,
        parent: None,
        mark: None,
        items: Vec::new(),
    }
}

fn read(region: &[u8]) -> Result<Metadata> {
    let items = decode_table(region, MIB)?;
    Metadata::decode(items, &mut |offset, len| {
        let mut whole = region.to_vec();
        whole.resize(MIB as usize, 0);
        Ok(whole[offset as usize..offset as usize + len as usize].to_vec())
    })
}

fn mutated(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut region = metadata().encode_new(&[]);
    change(&mut region);
    region
}

fn refused(region: &[u8], words: &str) -> ErrorKind {
    let error = read(region).unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
    error.kind()
}

/// Where entry `number` of the table begins.
fn entry(number: usize) -> usize {
    ENTRIES_AT + number * ENTRY_BYTES
}

#[test]
fn what_is_encoded_is_decoded() {
    for (leave_allocated, mark) in [
        (false, None),
        (true, Some(Mark::Incomplete)),
        (false, Some(Mark::HandedOver)),
    ] {
        let written = Metadata {
            leave_allocated,
            mark,
            ..metadata()
        };
        let mut found = read(&written.encode_new(&[])).unwrap();
        assert_eq!(found.items.len(), 5 + usize::from(mark.is_some()));
        found.items.clear();
        assert_eq!(found, written);
    }
}

#[test]
fn a_wrong_signature_or_count_is_refused() {
    refused(&mutated(|r| r[0] = b'M'), "signature");
    refused(
        &mutated(|r| put(r, COUNT_AT, &2048_u16.to_le_bytes())),
        "EntryCount",
    );
}

#[test]
fn reserved_flags_are_refused() {
    refused(&mutated(|r| r[entry(0) + 24] |= 8), "reserved flags");
    refused(&mutated(|r| r[TABLE_BYTES + 4] |= 4), "reserved bits");
}

#[test]
fn items_outside_the_region_are_refused() {
    for offset in [1_u32, 65535, MIB as u32 - 7, u32::MAX] {
        refused(
            &mutated(|r| put(r, entry(0) + 16, &offset.to_le_bytes())),
            "not inside",
        );
    }
    refused(
        &mutated(|r| put(r, entry(0) + 20, &u32::MAX.to_le_bytes())),
        "not inside",
    );
    refused(
        &mutated(|r| put(r, entry(0) + 20, &0_u32.to_le_bytes())),
        "is empty",
    );
}

#[test]
fn overlapping_items_are_refused() {
    let same = (TABLE_BYTES as u32).to_le_bytes();
    refused(&mutated(|r| put(r, entry(1) + 16, &same)), "overlap");
}

#[test]
fn an_item_named_twice_is_refused() {
    let id = FILE_PARAMETERS.0;
    refused(&mutated(|r| put(r, entry(1), &id)), "twice");
}

#[test]
fn an_unknown_required_item_is_refused_and_an_optional_one_kept() {
    let with = |flags: u32, id: Guid| {
        mutated(|r| {
            let item = Item {
                id,
                offset: 0,
                len: 0,
                flags,
            };
            put(r, entry(5), &encode_entry(&item));
            put(r, COUNT_AT, &6_u16.to_le_bytes());
        })
    };
    let id = Guid::from_random(1);
    assert_eq!(refused(&with(4, id), "unknown"), ErrorKind::Unsupported);
    assert_eq!(refused(&with(5, id), "user's"), ErrorKind::Corrupt);
    assert_eq!(
        refused(&with(4, OPENVMM_INCOMPLETE), "did not finish"),
        ErrorKind::Unsupported
    );
    assert_eq!(read(&with(0, id)).unwrap().items.len(), 6);
    assert_eq!(read(&with(1, FILE_PARAMETERS)).unwrap().items.len(), 6);
}

#[test]
fn missing_items_and_wrong_lengths_are_refused() {
    for (number, name) in ["parameters", "size", "id", "logical", "physical"]
        .iter()
        .enumerate()
    {
        refused(
            &mutated(|r| {
                put(r, entry(number), &Guid::from_random(1).0);
                put(r, entry(number) + 24, &0_u32.to_le_bytes());
            }),
            name,
        );
        refused(
            &mutated(|r| put(r, entry(number) + 20, &1_u32.to_le_bytes())),
            "has 1 bytes",
        );
    }
}

#[test]
fn wrong_values_are_refused() {
    let parameters = TABLE_BYTES;
    let size = parameters + 8;
    let logical = size + 8 + 16;
    let physical = logical + 4;
    refused(
        &mutated(|r| put(r, parameters, &(3_u32 << 20).to_le_bytes())),
        "BlockSize",
    );
    refused(
        &mutated(|r| put(r, size, &0_u64.to_le_bytes())),
        "VirtualDiskSize",
    );
    refused(
        &mutated(|r| put(r, size, &((64_u64 << 40) + 512).to_le_bytes())),
        "VirtualDiskSize",
    );
    refused(
        &mutated(|r| put(r, size, &1000_u64.to_le_bytes())),
        "multiple",
    );
    refused(
        &mutated(|r| put(r, logical, &1024_u32.to_le_bytes())),
        "LogicalSectorSize",
    );
    refused(
        &mutated(|r| put(r, physical, &1024_u32.to_le_bytes())),
        "PhysicalSectorSize",
    );
}

#[test]
fn a_parent_without_a_locator_is_refused() {
    refused(&mutated(|r| r[TABLE_BYTES + 4] |= 2), "locator");
}

#[test]
fn a_mark_is_put_in_replaced_and_taken_out_without_a_trace() {
    let plain = metadata().encode_new(&[]);
    let marked = set_mark(&plain, Some(Mark::Incomplete)).unwrap();
    let with_mark = Metadata {
        mark: Some(Mark::Incomplete),
        ..metadata()
    };
    assert_eq!(marked[..], with_mark.encode_new(&[])[..PAGE]);
    let other = set_mark(&marked, Some(Mark::HandedOver)).unwrap();
    let mut region = plain.clone();
    put(&mut region, 0, &other);
    assert_eq!(read(&region).unwrap().mark, Some(Mark::HandedOver));
    assert_eq!(set_mark(&other, None).unwrap()[..], plain[..PAGE]);
    assert_eq!(set_mark(&plain, None).unwrap()[..], plain[..PAGE]);
}

#[test]
fn a_full_table_takes_no_mark() {
    let mut page = metadata().encode_new(&[]);
    put(&mut page, COUNT_AT, &127_u16.to_le_bytes());
    assert!(set_mark(&page, None).is_ok());
    assert_eq!(
        set_mark(&page, Some(Mark::Incomplete)).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    put(&mut page, COUNT_AT, &128_u16.to_le_bytes());
    assert!(set_mark(&page, None).is_err());
}

proptest! {
    #[test]
    fn any_entries_give_an_error_or_items(
        entries in prop::collection::vec(any::<[u8; 32]>(), 0..20),
        count in 0..24_u16, region_len in 0..(2 * MIB),
    ) {
        let mut table = vec![0; TABLE_BYTES];
        put(&mut table, 0, &SIGNATURE);
        put(&mut table, COUNT_AT, &count.to_le_bytes());
        put(&mut table, ENTRIES_AT, &entries.concat());
        let _ = decode_table(&table, region_len);
        let _ = set_mark(&table, Some(Mark::Incomplete));
        let _ = set_mark(&entries.concat(), None);
    }

    #[test]
    fn any_item_contents_give_an_error_or_metadata(content in any::<[u8; 48]>()) {
        let region = mutated(|r| put(r, TABLE_BYTES, &content));
        if let Ok(metadata) = read(&region) {
            prop_assert!(metadata.geometry().is_ok());
        }
    }
}
