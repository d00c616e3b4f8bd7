//! The rules about images that are built on others.

use super::*;
use crate::create::{CreateOptions, create};
use crate::format::ParentLocator;

#[test]
fn rule_19_an_image_with_a_parent_is_not_opened_without_it() {
    let mut sample = differencing();
    for writable in [false, true] {
        let error = opened(&mut sample.storage, writable).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("built on another"), "{error}");
    }
    assert_eq!(info(&mut sample.storage).unwrap().kind, "differencing");
    let report = check(&mut sample.storage).unwrap();
    assert!(report.is_sound(), "{report:?}");
}

#[test]
fn rule_18_a_locator_that_breaks_a_rule_is_refused_and_says_where() {
    let mut sample = differencing();
    let at = sample.image.metadata_region().at.0 + (128 << 10);
    sample.put(at + 18, &[0xFF, 0xFF]);
    let error = info(&mut sample.storage).unwrap_err();
    assert!(error.to_string().contains("65535 entries"), "{error}");
    assert_eq!(error.offset(), Some(at + 18));
    assert!(!check(&mut sample.storage).unwrap().is_sound());
}

/// The sample with a parent: the flag and a locator item.
fn differencing() -> Sample {
    let mut sample = Sample::new();
    let at = sample.image.metadata_region().at.0;
    let mut entry = [0; 32];
    entry[..16].copy_from_slice(&metadata::PARENT_LOCATOR.0);
    entry[16..20].copy_from_slice(&(128_u32 << 10).to_le_bytes());
    let locator = ParentLocator::new(Guid::known(7), "parent.vhdx").encode();
    entry[20..24].copy_from_slice(&(locator.len() as u32).to_le_bytes());
    entry[24] = 4;
    sample.put(at + 32 + 5 * 32, &entry).put(at + 10, &[6]);
    sample.put(at + (128 << 10), &locator);
    sample.warned("parent locator");
    sample.put(at + (64 << 10) + 4, &[2]);
    sample
}

#[test]
fn rule_17_a_partial_block_needs_its_chunks_bitmap() {
    let mut sample = differencing();
    let (free, bat) = (sample.free(), sample.image.bat().at.0);
    let bitmap = |chunk: u64| bat + (chunk * 4097 + 4096) * 8;
    sample.entry(3, free | 7).entry(9000, (free + MIB) | 7);
    assert_eq!(check(&mut sample.storage).unwrap().errors(), 2);
    sample.put(bitmap(0), &present(free + 2 * MIB).to_le_bytes());
    assert_eq!(check(&mut sample.storage).unwrap().errors(), 1);
    sample.put(bitmap(2), &present(free + 3 * MIB).to_le_bytes());
    let report = check(&mut sample.storage).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.blocks.partially_present, 2);
    sample.put(bitmap(2), &present(free).to_le_bytes());
    assert_eq!(check(&mut sample.storage).unwrap().errors(), 1);
    sample.put(bitmap(2), &2_u64.to_le_bytes());
    assert_eq!(check(&mut sample.storage).unwrap().errors(), 2);
}

/// What the image says of its parent, which must be readable; and that the rest is in order.
fn locator_of(storage: &mut dyn Storage, writable: bool) -> ParentLocator {
    let mut random = counter();
    let options = LoadOptions {
        writable,
        scan_bat: true,
        admit: Admit {
            parent: true,
            marked: false,
        },
        random: &mut random,
    };
    let image = load(storage, options).unwrap();
    image.metadata.parent.expect("a child has a locator")
}

#[test]
fn a_power_cut_while_the_locator_changes_leaves_the_old_one_or_the_new_one() {
    let mut sample = differencing();
    let old = locator_of(&mut sample.storage, false);
    let mut new = old.clone();
    new.add_linkage(Guid::known(9));
    let data_write = info(&mut sample.storage).unwrap().ids.data_write;
    let (mut cuts, mut changed) = (0, 0);
    for left in 0.. {
        let mut whole = false;
        for seed in 0..20 {
            let mut cut = Cut {
                storage: CrashStorage::new(sample.storage.clone()),
                left,
            };
            whole = set_locator(&mut cut, &new, &mut counter()).is_ok();
            let mut image = cut.storage.cut(&[], &mut dice(seed));
            for writable in [false, true] {
                let seen = locator_of(&mut image, writable);
                assert!(seen == old || seen == new, "{left} operations, seed {seed}");
                assert!(!whole || seen == new);
                changed += u32::from(seen == new && !whole);
            }
            assert!(check(&mut image).unwrap().is_sound());
            assert_eq!(info(&mut image).unwrap().ids.data_write, data_write);
            cuts += 1;
        }
        if whole {
            break;
        }
    }
    assert!(cuts > 200 && changed > 20, "{cuts} cuts, {changed} changed");
}

#[test]
fn a_locator_can_change_any_number_of_times() {
    let mut sample = differencing();
    let mut locator = locator_of(&mut sample.storage, false);
    for number in 1..600_u128 {
        locator.set_linkage(Guid::known(number));
        set_locator(&mut sample.storage, &locator, &mut counter()).unwrap();
        assert_eq!(locator_of(&mut sample.storage, false), locator);
    }
    assert!(check(&mut sample.storage).unwrap().is_sound());
}

/// Locators of ours that we would not read again.
fn unreadable() -> [ParentLocator; 3] {
    let at = |path: &str| ParentLocator::new(Guid::known(7), path);
    [at("a\0b"), at(&"x".repeat(1 << 15)), at("")]
}

#[test]
fn a_locator_that_nobody_could_read_is_not_written() {
    let mut sample = differencing();
    let before = locator_of(&mut sample.storage, false);
    for locator in unreadable() {
        let error = set_locator(&mut sample.storage, &locator, &mut counter()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(locator_of(&mut sample.storage, false), before);
        let mut random = counter();
        let mut options = CreateOptions::new(64 * MIB, &mut random);
        options.parent = Some(locator);
        let mut file = MemoryStorage::new();
        let error = create(&mut file, options).unwrap_err();
        assert_eq!((error.kind(), file.length()), (ErrorKind::Unsupported, 0));
    }
}
