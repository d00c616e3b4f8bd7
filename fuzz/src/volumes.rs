//! The files of a package, as somebody made them: records with any fields, harmed volumes, manifests of any text.
//!
//! What must hold: reading is total and bounded; what is read lies in the volume's part of the disk, in order; a volume is read
//! as it was written; harm makes no other bytes of the disk; a manifest that is read is written again alike.

use arbitrary::{Arbitrary, Unstructured};
use package::{
    CHUNK, Content, DiskShape, Hash, Header, Item, MAX_DISK, Manifest, Record, Sequence,
    VolumeEntry, Walker, pack,
};
use uuid::Uuid;

#[derive(Arbitrary, Debug)]
struct Forged {
    kind: u8,
    offset: u64,
    len: u64,
    near: bool,
    right: bool,
    stored: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Plan {
    /// A manifest: its JSON, whose hash is set right.
    Text(Vec<u8>),
    /// A volume of these records, all bound to it as they must be.
    Forged {
        size: u64,
        increment: bool,
        records: Vec<Forged>,
    },
    /// A volume as it is written, and one byte of it changed.
    Written {
        pieces: Vec<(u16, u16, u8)>,
        harm: Option<(u32, u8)>,
    },
}

fn manifest(size: u64, records: u64, increment: bool) -> Manifest {
    Manifest {
        package: Uuid::from_u128(7),
        name: "disk".to_owned(),
        created: 1,
        disk: DiskShape {
            size,
            sector: 512,
            id: None,
        },
        builds_on: increment.then(|| Uuid::from_u128(6)),
        encrypted: false,
        volumes: vec![VolumeEntry {
            length: 0,
            hash: Hash::NONE,
            first: 0,
            end: size,
            records,
        }],
    }
}

/// What is read of a volume, and whether all of it was sound.
fn read(manifest: &Manifest, volume: &[u8]) -> (Vec<Item>, bool) {
    let mut walker = Walker::new(manifest, 1).expect("it has one volume");
    let (mut rest, mut items, mut at) = (volume, Vec::new(), 0);
    loop {
        let wanted = walker.wants();
        assert!(wanted as u64 <= CHUNK);
        let (bytes, after) = rest.split_at(wanted.max(1).min(rest.len()));
        rest = after;
        match walker.take(bytes) {
            Ok(Some(item)) => {
                let (offset, len) = match &item {
                    Item::Data { offset, bytes } => (*offset, bytes.len() as u64),
                    Item::Zeros { offset, len } => (*offset, *len),
                };
                assert!(offset >= at && len > 0, "out of order");
                at = offset.checked_add(len).expect("it was checked");
                assert!(at <= manifest.disk.size);
                items.push(item);
            }
            Ok(None) if wanted == 0 => return (items, true),
            Ok(None) => {}
            Err(_) => return (items, false),
        }
    }
}

fn end(size: u64, count: usize) -> Record {
    Record {
        content: Content::End,
        offset: size,
        len: count as u64,
        hash: Hash::NONE,
    }
}

fn forged(size: u64, increment: bool, records: &[Forged]) {
    let manifest = manifest(size % MAX_DISK + 1, records.len() as u64, increment);
    let size = manifest.disk.size;
    let (header, hash) = Header::of(&manifest, 1).expect("its volume").encode();
    let mut sequence = Sequence::new(hash);
    let mut volume = header.to_vec();
    let mut at = 0_u64;
    for plan in records {
        let stored = if plan.right { pack(&plan.stored) } else { None };
        let content = match plan.kind % 4 {
            0 => Content::Plain,
            1 => Content::Packed(stored.as_ref().unwrap_or(&plan.stored).len() as u32),
            2 => Content::Zeros,
            _ => Content::End,
        };
        let zeros = matches!(content, Content::Zeros | Content::End);
        let offset = if plan.near { at } else { plan.offset };
        let len = if plan.right && !zeros {
            plan.stored.len() as u64
        } else {
            plan.len
        };
        let hash = if zeros {
            Hash::NONE
        } else {
            Hash::of(&plan.stored)
        };
        volume.extend(sequence.encode(&Record {
            content,
            offset,
            len,
            hash,
        }));
        if !zeros {
            volume.extend(stored.as_ref().unwrap_or(&plan.stored));
        }
        at = offset.saturating_add(len);
    }
    volume.extend(sequence.encode(&end(size, records.len())));
    read(&manifest, &volume);
}

fn written(pieces: &[(u16, u16, u8)], harm: Option<(u32, u8)>) {
    let mut items = Vec::new();
    let mut at = 0;
    for (gap, len, byte) in pieces {
        let (offset, len) = (at + u64::from(*gap), u64::from(*len) + 1);
        items.push(match byte {
            0 => Item::Zeros { offset, len },
            _ => Item::Data {
                offset,
                bytes: (0..len).map(|n| byte.wrapping_mul(n as u8 | 1)).collect(),
            },
        });
        at = offset + len;
    }
    let manifest = manifest(at + 1, items.len() as u64, true);
    let (header, hash) = Header::of(&manifest, 1).expect("its volume").encode();
    let mut sequence = Sequence::new(hash);
    let mut volume = header.to_vec();
    for item in &items {
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
    volume.extend(sequence.encode(&end(manifest.disk.size, items.len())));
    assert_eq!(read(&manifest, &volume), (items.clone(), true));
    let Some((at, by)) = harm else { return };
    let at = at as usize % volume.len();
    volume[at] ^= by;
    let (found, _) = read(&manifest, &volume);
    assert_eq!(found[..], items[..found.len()], "harm made other bytes");
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    match plan {
        Plan::Text(json) => {
            let _ = Manifest::decode(&json);
            let line = format!("diskferry-package 1 {}\n", Hash::of(&json));
            if let Ok((read, _)) = Manifest::decode(&[line.as_bytes(), &json].concat()) {
                let (again, root) = read.encode();
                assert_eq!(Manifest::decode(&again), Ok((read, root)));
            }
        }
        Plan::Forged {
            size,
            increment,
            records,
        } => forged(size, increment, &records),
        Plan::Written { pieces, harm } => written(&pieces, harm),
    }
}
