//! Changing the items of a metadata region (MS-VHDX 2.6.1): the next table, and where contents go.
//!
//! What is known and what is not stays as it is, byte for byte, in its order. A new content goes
//! where nothing lies that the present table names, so that it can be written before the table that
//! names it counts. Never decides what an item means.

use bytes::Bytes;

use super::{
    COUNT_AT, ENTRIES_AT, ENTRY_BYTES, IS_REQUIRED, IS_USER, IS_VIRTUAL_DISK, Item, MAX_ENTRIES,
    MAX_USER_ENTRIES, TABLE_BYTES, encode_entry,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Guid;
use crate::format::field::put;
use crate::units::MIB;

/// The longest region that is read, and so the longest that is made: 128 MiB.
pub const LONGEST_REGION: u64 = super::MAX_REGION;

/// Bytes that the items of users may have together. The text has no bound; `OpenVMM`, which the
/// format's owners wrote, refuses more than this.
pub const MOST_USER_BYTES: u64 = 40 << 20;

/// Contents begin at multiples of this, so that no sector holds parts of two items of which one is
/// being written.
const GRAIN: u64 = 512;

/// An item with what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewItem {
    /// What it is.
    pub id: Guid,
    /// Whether it belongs to a program and not to the format.
    pub user: bool,
    /// Whether it describes the disk and not the file, and so goes with the disk into a child.
    pub virtual_disk: bool,
    /// Whether a reader that does not know it must refuse the file.
    pub required: bool,
    /// At most 1 MiB.
    pub content: Bytes,
}

impl NewItem {
    /// The flag bits of its entry.
    fn flags(&self) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        bit(self.user, IS_USER)
            | bit(self.virtual_disk, IS_VIRTUAL_DISK)
            | bit(self.required, IS_REQUIRED)
    }

    /// Its entry, with its content at `offset` of the region.
    pub(super) fn entry(&self, offset: u64) -> Item {
        let empty = self.content.is_empty();
        Item {
            id: self.id,
            offset: if empty { 0 } else { offset as u32 },
            len: self.content.len() as u32,
            flags: self.flags(),
        }
    }
}

/// What a change of the items makes of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    /// The whole table, 64 KiB.
    pub table: Vec<u8>,
    /// Where the content of each added item goes, from the start of the region.
    pub places: Vec<u64>,
}

/// The table without the items that `dropped` names, and with `added` behind the rest.
///
/// `table` is the present one and `items` what it says; the region has, or will have, `region_len`
/// bytes. `None` when the contents do not fit into that. Fails with `InvalidArgument` for more items
/// or bytes than there may be.
pub fn edit(
    (table, items): (&[u8], &[Item]),
    region_len: u64,
    dropped: &dyn Fn(&Item) -> bool,
    added: &[NewItem],
) -> Result<Option<Edited>> {
    let kept: Vec<&Item> = items.iter().filter(|item| !dropped(item)).collect();
    check_counts(&kept, added)?;
    let Some(places) = free_places(items, region_len, added) else {
        return Ok(None);
    };
    let mut next = vec![0; TABLE_BYTES];
    put(&mut next, 0, table.get(..ENTRIES_AT).unwrap_or_default());
    let mut at = ENTRIES_AT;
    for (item, entry) in items.iter().zip((ENTRIES_AT..).step_by(ENTRY_BYTES)) {
        if !dropped(item) {
            let entry = table.get(entry..entry + ENTRY_BYTES).unwrap_or_default();
            put(&mut next, at, entry);
            at += ENTRY_BYTES;
        }
    }
    for (item, place) in added.iter().zip(&places) {
        put(&mut next, at, &encode_entry(&item.entry(*place)));
        at += ENTRY_BYTES;
    }
    let count = (kept.len() + added.len()) as u16;
    put(&mut next, COUNT_AT, &count.to_le_bytes());
    Ok(Some(Edited {
        table: next,
        places,
    }))
}

fn check_counts(kept: &[&Item], added: &[NewItem]) -> Result<()> {
    if let Some(item) = added.iter().find(|item| item.content.len() as u64 > MIB) {
        return Err(Error::invalid(format!(
            "metadata item {} would have {} bytes; an item has at most 1 MiB",
            item.id,
            item.content.len()
        )));
    }
    let users = kept.iter().filter(|item| item.is_user()).count()
        + added.iter().filter(|item| item.user).count();
    if users > MAX_USER_ENTRIES {
        return Err(Error::invalid(format!(
            "an image has at most {MAX_USER_ENTRIES} metadata items of users; remove one first"
        )));
    }
    if kept.len() + added.len() > usize::from(MAX_ENTRIES) {
        return Err(Error::invalid(format!(
            "an image has at most {MAX_ENTRIES} metadata items; remove one first"
        )));
    }
    let old = kept.iter().filter(|item| item.is_user());
    let new = added.iter().filter(|item| item.user);
    let bytes = old.map(|item| u64::from(item.len)).sum::<u64>()
        + new.map(|item| item.content.len() as u64).sum::<u64>();
    if bytes > MOST_USER_BYTES {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the metadata items of users would have {bytes} bytes together; other programs \
                 refuse more than {MOST_USER_BYTES}"
            ),
        ));
    }
    Ok(())
}

/// A place for each content among what `items` leave free; `None` if there is none.
fn free_places(items: &[Item], region_len: u64, added: &[NewItem]) -> Option<Vec<u64>> {
    let held = items.iter().filter(|item| item.len != 0);
    let mut used: Vec<(u64, u64)> = held
        .map(|item| (u64::from(item.offset), item.end()))
        .collect();
    used.push((region_len, u64::MAX));
    used.sort_unstable();
    let mut gaps = Vec::with_capacity(used.len());
    let mut from = TABLE_BYTES as u64;
    for (start, end) in used {
        if from < start {
            gaps.push((from, start));
        }
        from = from.max(end.checked_next_multiple_of(GRAIN).unwrap_or(u64::MAX));
    }
    let mut places = Vec::with_capacity(added.len());
    for item in added {
        let len = item.content.len() as u64;
        let gap = gaps.iter_mut().find(|(from, to)| to - *from >= len)?;
        places.push(gap.0);
        gap.0 = (gap.0 + len.next_multiple_of(GRAIN)).min(gap.1);
    }
    Some(places)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Metadata, decode_table};
    use super::*;

    fn item(id: u128, len: usize) -> NewItem {
        NewItem {
            id: Guid::known(id),
            user: true,
            virtual_disk: id.is_multiple_of(2),
            required: false,
            content: Bytes::from(vec![id as u8; len]),
        }
    }

    fn empty_table() -> Vec<u8> {
        let metadata = Metadata {
            block_size: 1 << 20,
            virtual_size: 1 << 30,
            logical_sector: 512,
            physical_sector: 512,
            disk_id: Guid::known(3),
            leave_allocated: false,
            parent: None,
            mark: None,
            items: Vec::new(),
        };
        metadata.encode_new(&[])[..TABLE_BYTES].to_vec()
    }

    #[test]
    fn more_items_or_bytes_than_there_may_be_are_refused() {
        let table = empty_table();
        let items = decode_table(&table, LONGEST_REGION).unwrap();
        let try_to = |added: &[NewItem], len| edit((&table, &items), len, &|_| false, added);
        let many: Vec<NewItem> = (100..1125).map(|id| item(id, 1)).collect();
        assert!(try_to(&many[1..], MIB).unwrap().is_some());
        assert!(try_to(&many, MIB).is_err());
        assert!(try_to(&[item(1, 1 << 20)], MIB).unwrap().is_none());
        assert!(try_to(&[item(1, 1 << 20)], 2 * MIB).unwrap().is_some());
        assert!(try_to(&[item(1, (1 << 20) + 1)], 8 * MIB).is_err());
        let large: Vec<NewItem> = (100..141).map(|id| item(id, 1 << 20)).collect();
        assert!(try_to(&large[1..], LONGEST_REGION).unwrap().is_some());
        assert!(try_to(&large, LONGEST_REGION).is_err());
    }

    proptest! {
        #[test]
        fn any_changes_leave_a_table_that_is_read_and_nothing_overlapping(
            steps in prop::collection::vec((0..12_u128, 0..300_000_usize, any::<bool>()), 1..40),
        ) {
            let mut table = empty_table();
            let before = decode_table(&table, MIB).unwrap();
            for (id, len, remove) in steps {
                let items = decode_table(&table, MIB).unwrap();
                let added = if remove { vec![] } else { vec![item(id, len)] };
                let dropped = |old: &Item| old.is_user() && old.id == Guid::known(id);
                let Some(next) = edit((&table, &items), MIB, &dropped, &added).unwrap() else {
                    continue;
                };
                table = next.table;
                let now = decode_table(&table, MIB).unwrap();
                prop_assert_eq!(&now[..before.len()], &before[..]);
                let found = now.iter().find(|item| dropped(item));
                prop_assert_eq!(found.map(|item| item.len as usize), (!remove).then_some(len));
                if let Some(place) = next.places.first().filter(|_| len > 0) {
                    // Nor over anything that was named before.
                    let apart = |old: &Item| {
                        old.end() <= *place || u64::from(old.offset) >= place + len as u64
                    };
                    prop_assert!(items.iter().all(|old| old.len == 0 || apart(old)));
                }
            }
        }
    }
}
