//! Metadata regions: a table of items in any state, and the changes that are made to it.
//!
//! What must hold: reading is total; items that are read are inside the region and apart; a mark that
//! is set is there, alone, and removing it brings the table back; another locator changes nothing else.

use arbitrary::{Arbitrary, Unstructured};
use vdisk::engine::Mark;
use vdisk::format::metadata::{self, Item, Metadata, decode_table, place_locator, set_mark};
use vdisk::format::{Guid, PAGE};
use vdisk::{Error, Result};

const MIB: u64 = 1 << 20;
const ENTRIES_AT: usize = 32;
const ENTRY_BYTES: usize = 32;

const KNOWN: [Guid; 9] = [
    metadata::FILE_PARAMETERS,
    metadata::VIRTUAL_DISK_SIZE,
    metadata::VIRTUAL_DISK_ID,
    metadata::LOGICAL_SECTOR,
    metadata::PHYSICAL_SECTOR,
    metadata::PARENT_LOCATOR,
    metadata::MARK_INCOMPLETE,
    metadata::MARK_HANDED_OVER,
    metadata::OPENVMM_INCOMPLETE,
];

#[derive(Arbitrary, Debug)]
struct Plan {
    /// A new region to begin with, and not an empty one.
    sound: Option<Sound>,
    items: Vec<Entry>,
    /// So many user items of no bytes besides.
    users: u16,
    harms: Vec<(u16, u8)>,
    region: u8,
    locator: u16,
}

#[derive(Arbitrary, Debug)]
struct Sound {
    block: u8,
    size: u64,
    large_sectors: bool,
    marked: bool,
    fixed: bool,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    known: Option<u8>,
    id: u8,
    offset: u32,
    len: u32,
    flags: u8,
    content: u64,
}

fn put(region: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = region.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

impl Sound {
    fn encode(&self) -> Vec<u8> {
        let sector = if self.large_sectors { 4096 } else { 512 };
        let metadata = Metadata {
            block_size: 1 << (self.block % 40).min(31),
            virtual_size: self.size,
            logical_sector: sector,
            physical_sector: 4096,
            disk_id: Guid::from_random(3),
            leave_allocated: self.fixed,
            parent: None,
            mark: self.marked.then_some(Mark::HandedOver),
            items: Vec::new(),
        };
        metadata.encode_new(&[])
    }
}

fn region(plan: &Plan) -> Vec<u8> {
    let mut region = if let Some(sound) = &plan.sound {
        sound.encode()
    } else {
        let mut empty = vec![0; 2 * metadata::TABLE_BYTES];
        put(&mut empty, 0, b"metadata");
        empty
    };
    region.resize(MIB as usize / 4 * (1 + usize::from(plan.region % 2)), 0);
    let mut count = u16::from_le_bytes([region[10], region[11]]);
    let mut add = |region: &mut [u8], id: Guid, (offset, len, flags): (u32, u32, u32)| {
        let at = ENTRIES_AT + usize::from(count) * ENTRY_BYTES;
        if at + ENTRY_BYTES > metadata::TABLE_BYTES {
            return;
        }
        put(region, at, &id.0);
        put(region, at + 16, &offset.to_le_bytes());
        put(region, at + 20, &len.to_le_bytes());
        put(region, at + 24, &flags.to_le_bytes());
        count += 1;
        put(region, 10, &count.to_le_bytes());
    };
    for entry in &plan.items {
        let id = match entry.known {
            Some(known) => KNOWN[usize::from(known) % KNOWN.len()],
            None => Guid::from_random(u128::from(entry.id)),
        };
        let place = (entry.offset, entry.len, u32::from(entry.flags));
        put(
            &mut region,
            entry.offset as usize,
            &entry.content.to_le_bytes(),
        );
        add(&mut region, id, place);
    }
    for number in 0..plan.users % 1100 {
        let id = Guid::from_random(1 << 100 | u128::from(number));
        add(&mut region, id, (0, 0, 1));
    }
    for (at, byte) in &plan.harms {
        put(&mut region, usize::from(*at), &[*byte]);
    }
    region
}

fn read(region: &[u8], items: Vec<Item>) -> Result<Metadata> {
    Metadata::decode(items, &mut |offset, len| {
        let bytes = region
            .get(offset as usize..)
            .and_then(|rest| rest.get(..len as usize));
        bytes
            .map(<[u8]>::to_vec)
            .ok_or_else(|| Error::corrupt("outside"))
    })
}

fn apart(items: &[Item], len: u64) {
    let end = |item: &Item| u64::from(item.offset) + u64::from(item.len);
    let mut placed: Vec<&Item> = items.iter().filter(|item| item.len != 0).collect();
    placed.sort_by_key(|item| item.offset);
    for item in &placed {
        assert!(item.offset as usize >= metadata::TABLE_BYTES && end(item) <= len);
    }
    for pair in placed.windows(2) {
        assert!(end(pair[0]) <= u64::from(pair[1].offset), "{pair:?}");
    }
}

fn is_mark(item: &Item) -> bool {
    let marks = [metadata::MARK_INCOMPLETE, metadata::MARK_HANDED_OVER];
    !item.is_user() && marks.contains(&item.id)
}

/// Setting and removing a mark changes no other item.
fn marks(region: &[u8], items: &[Item]) {
    let with = |mark| {
        let page = set_mark(region, mark).ok()?;
        let mut changed = region[..metadata::TABLE_BYTES].to_vec();
        changed[..PAGE].copy_from_slice(&page);
        let changed = decode_table(&changed, region.len() as u64);
        Some(changed.expect("a table with another mark is one"))
    };
    let others: Vec<Item> = items
        .iter()
        .filter(|item| !is_mark(item))
        .copied()
        .collect();
    for mark in [Mark::Incomplete, Mark::HandedOver] {
        let Some(marked) = with(Some(mark)) else {
            assert!(others.len() >= 127 || items.len() > 127, "it has room");
            continue;
        };
        let (last, rest) = marked.split_last().expect("the mark");
        assert!(is_mark(last) && rest == others, "{marked:?}");
    }
    if let Some(bare) = with(None) {
        assert_eq!(bare, others);
    }
}

/// Another locator takes the old one's entry and nothing else's place.
fn locator(region: &[u8], items: &[Item], len: usize) {
    let Ok((at, entry)) = place_locator(items, region.len() as u64, len) else {
        return;
    };
    let mut changed = region[..metadata::TABLE_BYTES].to_vec();
    put(&mut changed, at, &entry);
    let changed = decode_table(&changed, region.len() as u64);
    let now = changed.expect("a table with another locator is one");
    apart(&now, region.len() as u64);
    let differ: Vec<usize> = (0..now.len()).filter(|n| now[*n] != items[*n]).collect();
    assert!(differ.len() <= 1, "{differ:?}");
    let is_new = |item: &&Item| item.id == metadata::PARENT_LOCATOR && !item.is_user();
    let new = now.iter().find(is_new).expect("it is there");
    assert_eq!(new.len as usize, len);
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let region = region(&plan);
    let Ok(items) = decode_table(&region, region.len() as u64) else {
        return;
    };
    apart(&items, region.len() as u64);
    marks(&region, &items);
    locator(&region, &items, 1 + usize::from(plan.locator) * 17);
    if let Ok(metadata) = read(&region, items) {
        let geometry = metadata.geometry().expect("checked when it was read");
        assert_eq!(geometry.virtual_size(), metadata.virtual_size);
        metadata.size_item().expect("it was read");
    }
}
