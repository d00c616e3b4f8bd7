//! The rules about images that are built on others.

use super::*;
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
