//! Volumes read as they were written, harmed, exchanged and cut.

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::manifest::{DiskShape, VolumeEntry};
use crate::record::pack;

const SIZE: u64 = 64 << 20;

/// A package of two volumes, of which the second tells of nothing.
fn manifest(records: u64, increment: bool) -> Manifest {
    let entry = |first, end, records| VolumeEntry {
        length: 0,
        hash: Hash::NONE,
        first,
        end,
        records,
    };
    Manifest {
        package: Uuid::from_u128(77),
        name: "disk".to_owned(),
        created: 0,
        disk: DiskShape {
            size: SIZE,
            sector: 512,
            id: None,
        },
        builds_on: increment.then(|| Uuid::from_u128(76)),
        encrypted: false,
        volumes: vec![entry(0, SIZE, records), entry(SIZE, SIZE, 0)],
    }
}

/// The first volume with these items.
fn written(manifest: &Manifest, items: &[Item]) -> Vec<u8> {
    let (header, hash) = Header::of(manifest, 1).unwrap().encode();
    let mut sequence = Sequence::new(hash);
    let mut volume = header.to_vec();
    for item in items {
        let (record, stored) = match item {
            Item::Zeros { offset, len } => (
                Record {
                    content: Content::Zeros,
                    offset: *offset,
                    len: *len,
                    hash: Hash::NONE,
                },
                Vec::new(),
            ),
            Item::Data { offset, bytes } => {
                let packed = pack(bytes);
                let content = packed.as_ref().map_or(Content::Plain, |packed| {
                    Content::Packed(packed.len() as u32)
                });
                let record = Record {
                    content,
                    offset: *offset,
                    len: bytes.len() as u64,
                    hash: Hash::of(bytes),
                };
                (record, packed.unwrap_or_else(|| bytes.clone()))
            }
        };
        volume.extend(sequence.encode(&record));
        volume.extend(stored);
    }
    let end = Record {
        content: Content::End,
        offset: SIZE,
        len: items.len() as u64,
        hash: Hash::NONE,
    };
    volume.extend(sequence.encode(&end));
    volume
}

fn read(manifest: &Manifest, number: u32, volume: &[u8]) -> Result<Vec<Item>> {
    let mut walker = Walker::new(manifest, number).unwrap();
    let (mut rest, mut items) = (volume, Vec::new());
    while walker.wants() > 0 {
        let wanted = walker.wants().min(rest.len());
        let (bytes, after) = rest.split_at(wanted);
        rest = after;
        items.extend(walker.take(bytes)?);
    }
    walker.take(rest)?;
    Ok(items)
}

fn some_items() -> Vec<Item> {
    let noise = (0..5000_u32).map(|n| n.wrapping_mul(0x9E37_79B9).to_le_bytes()[3]);
    vec![
        Item::Data {
            offset: 4096,
            bytes: vec![5; 70_000],
        },
        Item::Zeros {
            offset: 1 << 20,
            len: 3 << 20,
        },
        Item::Data {
            offset: 8 << 20,
            bytes: noise.collect(),
        },
    ]
}

#[test]
fn a_volume_is_read_as_it_was_written() {
    let manifest = manifest(3, true);
    let volume = written(&manifest, &some_items());
    assert!(volume.len() < 10_000, "it is packed");
    assert_eq!(read(&manifest, 1, &volume), Ok(some_items()));
}

#[test]
fn harm_never_makes_another_disk_and_an_end_is_needed() {
    let manifest = manifest(3, true);
    let volume = written(&manifest, &some_items());
    for at in 0..volume.len() {
        let mut harmed = volume.clone();
        harmed[at] ^= 0x10;
        // A frame of zstd has bits that nobody reads; the hash of the file has them.
        if let Ok(items) = read(&manifest, 1, &harmed) {
            assert_eq!(items, some_items(), "byte {at}");
        }
        assert!(read(&manifest, 1, &volume[..at]).is_err(), "cut at {at}");
    }
    let longer = [&volume[..], &[0]].concat();
    assert!(read(&manifest, 1, &longer).is_err());
}

#[test]
fn a_volume_in_the_place_of_another_is_told_by_what_it_is() {
    let manifest = manifest(3, true);
    let volume = written(&manifest, &some_items());
    let refused = read(&manifest, 2, &volume).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Other);
    assert!(refused.to_string().contains("volume 1"), "{refused}");
    let mut other = manifest.clone();
    other.package = Uuid::from_u128(78);
    let refused = read(&other, 1, &volume).unwrap_err();
    assert!(refused.to_string().contains("another package"), "{refused}");
}

#[test]
fn records_that_are_sound_and_in_the_wrong_place_are_refused() {
    let zeros = |offset, len| Item::Zeros { offset, len };
    for items in [
        [zeros(4096, 4096), zeros(4096, 4096)],
        [zeros(4096, 4096), zeros(0, 512)],
        [zeros(0, 512), zeros(SIZE - 512, 1024)],
    ] {
        let manifest = manifest(2, true);
        let volume = written(&manifest, &items);
        assert!(read(&manifest, 1, &volume).is_err(), "{items:?}");
    }
    let whole = manifest(2, false);
    let items = [zeros(0, 512), zeros(512, 512)];
    assert!(read(&whole, 1, &written(&whole, &items)).is_err());
    let fewer = manifest(1, true);
    assert!(read(&fewer, 1, &written(&fewer, &items)).is_err());
}

#[test]
fn a_record_in_another_place_or_longer_than_a_chunk_is_refused() {
    let record = |content, len| Record {
        content,
        offset: 0,
        len,
        hash: if content == Content::Zeros {
            Hash::NONE
        } else {
            Hash::of(b"it")
        },
    };
    let decoded = |record: &Record, place: u64| {
        let mut writer = Sequence::new(Hash::of(b"a volume"));
        let mut reader = writer.clone();
        for _ in 0..place {
            writer.encode(record);
        }
        reader.decode(&writer.encode(record))
    };
    let chunk = crate::CHUNK;
    for sound in [
        record(Content::Plain, chunk),
        record(Content::Packed(100), chunk),
        record(Content::Zeros, chunk * 1000),
    ] {
        assert_eq!(decoded(&sound, 0), Ok(sound));
        assert!(decoded(&sound, 1).is_err(), "{sound:?}");
    }
    for wrong in [
        record(Content::Plain, chunk + 1),
        record(Content::Packed(100), chunk + 1),
        record(Content::Packed(100), 100),
        record(Content::Packed(0), 100),
        record(Content::Plain, 0),
        record(Content::Zeros, MAX_DISK + 1),
        record(Content::Zeros, u64::MAX),
    ] {
        assert!(decoded(&wrong, 0).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_chunk_that_would_unpack_to_more_than_it_says_is_refused() {
    let bytes = vec![1; 1 << 20];
    let packed = pack(&bytes).unwrap();
    let record = Record {
        content: Content::Packed(packed.len() as u32),
        offset: 0,
        len: 512,
        hash: Hash::of(&bytes),
    };
    assert!(record.open(&packed).is_err());
}

proptest! {
    #[test]
    fn whatever_the_bytes_are_reading_ends(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let manifest = manifest(3, true);
        let _ = read(&manifest, 1, &bytes);
        let sound = written(&manifest, &some_items());
        let _ = read(&manifest, 1, &[&sound[..HEADER], &bytes].concat());
    }
}
