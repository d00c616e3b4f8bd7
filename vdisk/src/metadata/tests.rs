//! Promises of the metadata items: what was set is read, a crash leaves the old or the new ones, and
//! nothing else of the image changes.

use super::*;
use crate::check::check;
use crate::create::tests::{Cut, counter, dice, made};
use crate::info::info;
use crate::open::{Admit, LoadOptions, load};
use crate::storage::{CrashStorage, MemoryStorage};

const FIRST: Guid = Guid::known(0x1111);
const SECOND: Guid = Guid::known(0x2222);

fn image() -> MemoryStorage {
    made(|options| options.log_len = Some(1 << 20), 1 << 30).unwrap()
}

fn put(storage: &mut dyn Storage, id: Guid, value: u8, len: usize) {
    let content = Bytes::from(vec![value; len]);
    set(storage, id, (content, false), &mut counter()).unwrap();
}

fn version(storage: &mut dyn Storage) -> Guid {
    info(storage).unwrap().ids.data_write
}

#[test]
fn what_was_set_is_listed_read_and_removed() {
    let mut storage = image();
    assert_eq!(list(&mut storage).unwrap().len(), 5);
    put(&mut storage, FIRST, 1, 3000);
    put(&mut storage, SECOND, 2, 0);
    put(&mut storage, FIRST, 3, 100_000);
    let listed = list(&mut storage).unwrap();
    assert_eq!(listed[1].name, Some("virtual disk size"));
    let user = |at: usize| (listed[at].id, listed[at].len, listed[at].user);
    assert_eq!(
        (user(5), user(6)),
        ((SECOND, 0, true), (FIRST, 100_000, true))
    );
    assert_eq!(get(&mut storage, FIRST).unwrap().unwrap(), vec![3; 100_000]);
    assert_eq!(get(&mut storage, SECOND).unwrap().unwrap(), "");
    assert!(remove(&mut storage, SECOND, &mut counter()).unwrap());
    assert!(!remove(&mut storage, SECOND, &mut counter()).unwrap());
    assert_eq!(get(&mut storage, SECOND).unwrap(), None);
    assert!(check(&mut storage).unwrap().is_sound());
}

#[test]
fn an_item_of_the_disk_makes_another_version_and_one_of_the_file_does_not() {
    let mut storage = image();
    let first = version(&mut storage);
    put(&mut storage, FIRST, 1, 10);
    assert!(remove(&mut storage, FIRST, &mut counter()).unwrap());
    assert_eq!(version(&mut storage), first);
    let mut random = counter();
    let mut versions = vec![first];
    let of_the_disk = (Bytes::from("a"), true);
    set(&mut storage, FIRST, of_the_disk, &mut random).unwrap();
    versions.push(version(&mut storage));
    // It stays the disk's when it is set without a word about that.
    set(&mut storage, FIRST, (Bytes::from("b"), false), &mut random).unwrap();
    versions.push(version(&mut storage));
    assert_eq!(of_disk(&mut storage).unwrap().last().unwrap().content, "b");
    remove(&mut storage, FIRST, &mut random).unwrap();
    versions.push(version(&mut storage));
    versions.sort();
    versions.dedup();
    assert_eq!(versions.len(), 4);
}

#[test]
fn an_item_of_the_format_is_not_a_users() {
    let mut storage = image();
    assert_eq!(get(&mut storage, VIRTUAL_DISK_ID).unwrap(), None);
    assert!(!remove(&mut storage, VIRTUAL_DISK_ID, &mut counter()).unwrap());
    // A user's item may have the same GUID; it is another one.
    put(&mut storage, VIRTUAL_DISK_ID, 7, 16);
    assert_eq!(list(&mut storage).unwrap().len(), 6);
    assert!(check(&mut storage).unwrap().is_sound());
}

#[test]
fn a_region_without_room_becomes_a_longer_one_and_keeps_what_it_held() {
    let mut storage = image();
    for number in 0..40_u128 {
        let value = number as u8;
        put(&mut storage, Guid::known(number + 10), value, 1 << 20);
    }
    for number in 0..40_u128 {
        let found = get(&mut storage, Guid::known(number + 10))
            .unwrap()
            .unwrap();
        assert!(found.len() == 1 << 20 && found.iter().all(|byte| *byte == number as u8));
    }
    let too_much = (Bytes::from("x"), false);
    let refused = set(&mut storage, FIRST, too_much, &mut counter()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("41943041 bytes"), "{refused}");
    let report = check(&mut storage).unwrap();
    assert!(report.is_sound(), "{report:?}");
}

#[test]
fn a_thousand_items_fit_and_one_more_than_the_format_has_is_refused() {
    let mut storage = image();
    let mut random = counter();
    for number in 0..1024_u128 {
        let content = Bytes::from(vec![number as u8; 300]);
        let id = Guid::known(number + 1000);
        set(&mut storage, id, (content, false), &mut random).unwrap();
    }
    let one_more = set(&mut storage, FIRST, (Bytes::new(), false), &mut random).unwrap_err();
    assert_eq!(one_more.kind(), ErrorKind::InvalidArgument);
    assert!(check(&mut storage).unwrap().is_sound());
    put(&mut storage, Guid::known(1500), 9, 5000);
    assert_eq!(list(&mut storage).unwrap().len(), 1029);
}

/// What a reader sees of the two items.
fn seen(storage: &mut dyn Storage) -> [Option<Bytes>; 2] {
    [FIRST, SECOND].map(|id| get(storage, id).unwrap())
}

/// Cuts the power at every operation of `change`: the items and the version of the data are those
/// before or those after, together.
fn cut_everywhere(before: &MemoryStorage, change: &dyn Fn(&mut dyn Storage) -> Result<()>) -> u32 {
    let mut after = before.clone();
    change(&mut after).unwrap();
    let told = |storage: &mut dyn Storage| (seen(storage), version(storage));
    let (old, new) = (told(&mut before.clone()), told(&mut after));
    assert_ne!(old, new);
    let (mut cuts, mut changed) = (0, 0);
    for left in 0.. {
        let mut whole = false;
        for seed in 0..12 {
            let mut cut = Cut {
                storage: CrashStorage::new(before.clone()),
                left,
            };
            whole = change(&mut cut).is_ok();
            let mut image = cut.storage.cut(&[], &mut dice(seed));
            for writable in [false, true] {
                let found = told(&mut image);
                assert!(
                    found == old || found == new,
                    "{left} operations, seed {seed}"
                );
                assert!(!whole || found == new);
                changed += u32::from(found == new && !whole);
                if !writable {
                    let options = LoadOptions {
                        writable: true,
                        scan_bat: true,
                        admit: Admit::default(),
                        random: &mut counter(),
                    };
                    load(&mut image, options).unwrap();
                }
            }
            let report = check(&mut image).unwrap();
            assert!(report.is_sound(), "{report:?}");
            cuts += 1;
        }
        if whole {
            break;
        }
    }
    assert!(changed > 20, "{cuts} cuts, {changed} changed");
    cuts
}

#[test]
fn a_power_cut_while_items_change_leaves_the_old_or_the_new_ones() {
    let mut before = image();
    put(&mut before, FIRST, 1, 5000);
    let content = |len| Bytes::from(vec![8; len]);
    for (len, of_the_disk) in [(3, false), (70_000, true), (900_000, false)] {
        let cuts = cut_everywhere(&before, &|storage| {
            set(storage, FIRST, (content(len), of_the_disk), &mut counter())
        });
        assert!(cuts > 150, "{cuts}");
        cut_everywhere(&before, &|storage| {
            set(storage, SECOND, (content(len), of_the_disk), &mut counter())
        });
    }
    cut_everywhere(&before, &|storage| {
        remove(storage, FIRST, &mut counter()).map(drop)
    });
}

#[test]
fn a_power_cut_while_the_region_moves_leaves_the_old_or_the_new_one() {
    let mut before = image();
    put(&mut before, FIRST, 1, 700_000);
    cut_everywhere(&before, &|storage| {
        let content = Bytes::from(vec![5; 600_000]);
        set(storage, SECOND, (content, true), &mut counter())
    });
}

#[test]
fn items_of_the_disk_take_the_place_of_others_and_what_an_image_needs_stays() {
    let (mut child, mut parent) = (image(), image());
    let mut random = counter();
    set(&mut child, FIRST, (Bytes::from("child"), true), &mut random).unwrap();
    put(&mut parent, FIRST, 1, 5);
    set(
        &mut parent,
        SECOND,
        (Bytes::from("gone"), true),
        &mut random,
    )
    .unwrap();
    put(&mut parent, Guid::known(3), 3, 3);
    let (old, new) = (version(&mut parent), Guid::known(99));
    let items: Vec<NewItem> = of_disk(&mut child)
        .unwrap()
        .into_iter()
        .filter(|item| item.id != PHYSICAL_SECTOR)
        .collect();
    let other = replace_of_disk(&mut parent, &items, (&[new], new), &mut random);
    assert_eq!(other.unwrap_err().kind(), ErrorKind::Locked);
    replace_of_disk(&mut parent, &items, (&[old], new), &mut random).unwrap();
    assert_eq!(seen(&mut parent), [Some("child".into()), None]);
    assert_eq!(
        get(&mut parent, Guid::known(3)).unwrap().unwrap(),
        vec![3; 3]
    );
    assert_eq!(version(&mut parent), new);
    assert!(check(&mut parent).unwrap().is_sound());
    replace_of_disk(
        &mut parent,
        &of_disk(&mut child).unwrap(),
        (&[new], new),
        &mut random,
    )
    .unwrap();
    assert_eq!(of_disk(&mut parent).unwrap().len(), 5);
}
