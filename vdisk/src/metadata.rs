//! The metadata items of an image that is not in use (MS-VHDX 2.6.1): listed, read, set and removed;
//! those that go with a disk into its child, or back into its parent.
//!
//! Every change is one step. Contents go to places of the region that nothing names, and are durable
//! there before one entry of the log changes the table; where the region has no room, a larger one
//! is written at the end of the file and the entry names that in both region tables. So a crash
//! leaves the old items or the new ones. Items and regions of others stay as they are.

use bytes::Bytes;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::format::metadata::{
    Edited, Item, LOGICAL_SECTOR, LONGEST_REGION, NewItem, PHYSICAL_SECTOR, TABLE_BYTES,
    VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE, edit, name,
};
use crate::format::{Guid, PAGE, Region, region};
use crate::open::{Change, Image, View, examine, prepare};
use crate::storage::Storage;
use crate::units::{FileOffset, MIB};

/// What the table says of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ItemInfo {
    /// What it is.
    pub id: Guid,
    /// What the format calls it; `None` for a user's and for one that is not known.
    pub name: Option<&'static str>,
    /// Whether it belongs to a program and not to the format.
    pub user: bool,
    /// Whether it goes with the disk into a child.
    pub virtual_disk: bool,
    /// Whether a reader that does not know it must refuse the file.
    pub required: bool,
    /// How many bytes it holds.
    pub len: u32,
}

/// Lists all items, those of the format too, in the order of the table.
///
/// Reads a dirty image through its log and changes nothing. Fails as [`load`](crate::open::load) does.
pub fn list(storage: &mut dyn Storage) -> Result<Vec<ItemInfo>> {
    let image = examine(storage)?;
    let told = |item: &Item| ItemInfo {
        id: item.id,
        name: (!item.is_user())
            .then(|| name(item.id))
            .filter(|name| !name.is_empty()),
        user: item.is_user(),
        virtual_disk: item.is_virtual_disk(),
        required: item.is_required(),
        len: item.len,
    };
    Ok(image.metadata.items.iter().map(told).collect())
}

/// What the user's item `id` holds; `None` if there is none.
pub fn get(storage: &mut dyn Storage, id: Guid) -> Result<Option<Bytes>> {
    let image = examine(storage)?;
    let found = image.metadata.items.iter().find(|item| is_users(item, id));
    let Some(item) = found.copied() else {
        return Ok(None);
    };
    contents(storage, image, &[item]).map(|mut found| found.pop().map(|item| item.content))
}

/// Has the user's item `id` hold `content`, at most 1 MiB, whether it was there or not.
///
/// One that is there goes on belonging to the disk or to the file as it did, unless `virtual_disk`
/// says that it is the disk's. A change of an item of the disk changes the version of its data, so
/// that disks built on it are lost, as the format has it.
///
/// A dirty image is replayed first. `InvalidArgument` for a content that is too long and for more than
/// 1024 items, `Unsupported` for more than 40 MiB of them; and as [`load`](crate::open::load) fails.
pub fn set(
    storage: &mut dyn Storage,
    id: Guid,
    (content, virtual_disk): (Bytes, bool),
    random: &mut dyn FnMut() -> u128,
) -> Result<()> {
    let image = prepare(storage, false, random)?;
    let old = image.metadata.items.iter().find(|item| is_users(item, id));
    let was_disks = old.is_some_and(Item::is_virtual_disk);
    let item = NewItem {
        id,
        user: true,
        virtual_disk: virtual_disk || was_disks,
        required: false,
        content,
    };
    let version = item.virtual_disk.then(|| Guid::from_random(random()));
    let plan = Plan {
        dropped: &|item| is_users(item, id),
        added: &[item],
        version,
    };
    plan.carry_out(storage, &image, random)
}

/// Removes the user's item `id`; whether there was one. As [`set`] otherwise.
pub fn remove(
    storage: &mut dyn Storage,
    id: Guid,
    random: &mut dyn FnMut() -> u128,
) -> Result<bool> {
    let image = prepare(storage, false, random)?;
    let old = image.metadata.items.iter().find(|item| is_users(item, id));
    let Some(old) = old else {
        return Ok(false);
    };
    let version = old.is_virtual_disk().then(|| Guid::from_random(random()));
    let plan = Plan {
        dropped: &|item| is_users(item, id),
        added: &[],
        version,
    };
    plan.carry_out(storage, &image, random)?;
    Ok(true)
}

/// The items that describe the disk and not the file, users' ones too: what a child gets of its
/// parent.
pub fn of_disk(storage: &mut dyn Storage) -> Result<Vec<NewItem>> {
    let image = examine(storage)?;
    let items = image.metadata.items.iter();
    let items: Vec<Item> = items
        .filter(|item| item.is_virtual_disk())
        .copied()
        .collect();
    contents(storage, image, &items)
}

/// The format's own items of a disk, which every image has.
const KNOWN_OF_DISK: [Guid; 4] = [
    VIRTUAL_DISK_SIZE,
    VIRTUAL_DISK_ID,
    LOGICAL_SECTOR,
    PHYSICAL_SECTOR,
];

/// Of [`of_disk`], those that a new image does not have by itself.
pub(crate) fn beyond_the_known(mut items: Vec<NewItem>) -> Vec<NewItem> {
    items.retain(|item| item.user || !KNOWN_OF_DISK.contains(&item.id));
    items
}

/// Gives the disk these items in place of all that describe it, and its data the version `version`;
/// nothing changes where it has them already. Refused with `Locked` if its data is of a version that is
/// not in `expected`.
///
/// What an image cannot do without stays if `items` has nothing in its place.
pub(crate) fn replace_of_disk(
    storage: &mut dyn Storage,
    items: &[NewItem],
    (expected, version): (&[Guid], Guid),
    random: &mut dyn FnMut() -> u128,
) -> Result<()> {
    let sorted = |mut items: Vec<NewItem>| {
        items.sort_by_key(|item| (item.id, item.user));
        items
    };
    if sorted(of_disk(storage)?) == sorted(items.to_vec()) {
        return Ok(());
    }
    let image = prepare(storage, false, random)?;
    if !expected.contains(&image.header.data_write) {
        let what = "was changed by another program just now; look at it before trying again";
        return Err(Error::new(ErrorKind::Locked, what));
    }
    let dropped = |old: &Item| {
        let replaced = |new: &NewItem| (new.id, new.user) == (old.id, old.is_user());
        let needed = !old.is_user() && KNOWN_OF_DISK.contains(&old.id);
        items.iter().any(replaced) || (old.is_virtual_disk() && !needed)
    };
    let plan = Plan {
        dropped: &dropped,
        added: items,
        version: Some(version),
    };
    plan.carry_out(storage, &image, random)
}

fn is_users(item: &Item, id: Guid) -> bool {
    item.is_user() && item.id == id
}

/// Those items of the image with what they hold.
fn contents(storage: &mut dyn Storage, image: Image, items: &[Item]) -> Result<Vec<NewItem>> {
    let place = image.metadata_region().at.0;
    let mut view = View {
        storage,
        overlay: image.overlay,
        len: image.file_len,
    };
    let read = |item: &Item| {
        let at = place + u64::from(item.offset);
        let content = view.read(at, item.len as usize, "metadata")?;
        Ok(NewItem {
            id: item.id,
            user: item.is_user(),
            virtual_disk: item.is_virtual_disk(),
            required: item.is_required(),
            content: Bytes::from(content),
        })
    };
    items.iter().map(read).collect()
}

/// A change of the items.
struct Plan<'a> {
    /// Which of the present ones go.
    dropped: &'a dyn Fn(&Item) -> bool,
    /// Which come.
    added: &'a [NewItem],
    /// The version of the disk's data with them, if it is another one.
    version: Option<Guid>,
}

impl Plan<'_> {
    /// Makes it in an image that was just opened for writing.
    fn carry_out(
        &self,
        storage: &mut dyn Storage,
        image: &Image,
        random: &mut dyn FnMut() -> u128,
    ) -> Result<()> {
        let place = image.metadata_region();
        let table = read(storage, place.at, TABLE_BYTES)?;
        let mut len = place.len;
        let edited = loop {
            if let Some(edited) = self.edit((&table, image), len)? {
                break edited;
            }
            if len >= LONGEST_REGION {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "the metadata does not fit into a region of {LONGEST_REGION} bytes, the \
                         longest that is read"
                    ),
                ));
            }
            len = (2 * len).min(LONGEST_REGION);
        };
        let current = (image.header.clone(), image.slot);
        if len > place.len {
            let moved = self.moved(storage, image, (&edited, len))?;
            return moved
                .change(self.version)
                .make(storage, current, random)
                .map(drop);
        }
        let pages = edited.table.chunks(PAGE).zip(table.chunks(PAGE));
        let pages: Vec<(FileOffset, Bytes)> = (place.at.0..)
            .step_by(PAGE)
            .zip(pages)
            .filter(|(_, (new, old))| new != old)
            .map(|(at, (new, _))| (FileOffset(at), Bytes::copy_from_slice(new)))
            .collect();
        let written = Written {
            beside: self.placed(place.at.0, &edited),
            pages,
            file_len: 0,
        };
        written
            .change(self.version)
            .make(storage, current, random)
            .map(drop)
    }

    fn edit(&self, (table, image): (&[u8], &Image), len: u64) -> Result<Option<Edited>> {
        edit(
            (table, &image.metadata.items),
            len,
            self.dropped,
            self.added,
        )
    }

    /// Where each new content goes in a file whose metadata region begins at `region`.
    fn placed(&self, region: u64, edited: &Edited) -> Vec<(FileOffset, Bytes)> {
        let placed = self.added.iter().zip(&edited.places);
        placed
            .filter(|(item, _)| !item.content.is_empty())
            .map(|(item, at)| (FileOffset(region + at), item.content.clone()))
            .collect()
    }

    /// The whole region with the change in it, longer and at the end of the file.
    fn moved(
        &self,
        storage: &mut dyn Storage,
        image: &Image,
        (edited, len): (&Edited, u64),
    ) -> Result<Written> {
        let old = image.metadata_region();
        let file_len = storage
            .len()
            .map_err(|source| Error::io("cannot tell the length of the file", source))?;
        let at = file_len.next_multiple_of(MIB);
        let mut beside = vec![(FileOffset(at), Bytes::copy_from_slice(&edited.table))];
        for item in image.metadata.items.iter().filter(|item| item.len != 0) {
            if !(self.dropped)(item) {
                let from = FileOffset(old.at.0 + u64::from(item.offset));
                let content = read(storage, from, item.len as usize)?;
                beside.push((FileOffset(at + u64::from(item.offset)), content.into()));
            }
        }
        beside.extend(self.placed(at, edited));
        let place = Region {
            at: FileOffset(at),
            len,
        };
        let table = image.regions.with_metadata(place).encode();
        let copies = [region::COPY_ONE, region::COPY_TWO].into_iter();
        let pages = copies
            .flat_map(|copy| (copy.0..).step_by(PAGE).zip(table.chunks(PAGE)))
            .map(|(at, page)| (FileOffset(at), Bytes::copy_from_slice(page)))
            .collect();
        Ok(Written {
            beside,
            pages,
            file_len: place.end(),
        })
    }
}

/// What a change writes.
struct Written {
    beside: Vec<(FileOffset, Bytes)>,
    pages: Vec<(FileOffset, Bytes)>,
    file_len: u64,
}

impl Written {
    fn change(&self, data_write: Option<Guid>) -> Change<'_> {
        Change {
            pages: &self.pages,
            beside: &self.beside,
            file_len: self.file_len,
            data_write,
        }
    }
}

fn read(storage: &mut dyn Storage, at: FileOffset, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    storage
        .read_at(at.0, &mut bytes)
        .map_err(|source| Error::io("cannot read the metadata", source).at(at.0))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
