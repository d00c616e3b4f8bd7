//! What a guest of the PVH boot protocol is told: `hvm_start_info`, its map of memory and its module.
//!
//! Specified in Xen's `include/public/arch-x86/hvm/start_info.h`, version 1. Every integer is little-endian,
//! as the processor is.

use std::ops::Range;

use crate::layout::{self, COMMAND_LINE, LOAD, LOW_END, MEMORY_MAP, MODULES};

/// `"xEn3"` with the first byte's top bit set.
const MAGIC: u32 = 0x336E_C578;
const VERSION: u32 = 1;

/// Kinds of ranges, as e820 has them.
pub(super) const RAM: u32 = 1;
/// Not to be used.
pub(super) const RESERVED: u32 = 2;

/// Ranges of physical addresses with what they are, lowest first. A program that is entered directly keeps
/// the page tables that it starts with, so all below 1 MiB is not its own.
pub(super) fn memory_map(bytes: u64, low_is_kept: bool) -> Vec<(Range<u64>, u32)> {
    let mut map = Vec::new();
    if low_is_kept {
        map.push((0..LOAD, RESERVED));
    } else {
        map.push((0..LOW_END, RAM));
        map.push((LOW_END..LOAD, RESERVED));
    }
    for range in layout::memory_ranges(bytes) {
        map.push((range.start.max(LOAD)..range.end, RAM));
    }
    let at = map
        .iter()
        .position(|(range, _)| range.start >= layout::ECAM.end);
    map.insert(at.unwrap_or(map.len()), (layout::ECAM, RESERVED));
    map
}

/// The structures as bytes, with where each belongs.
pub(super) fn encode(
    map: &[(Range<u64>, u32)],
    initrd: Option<&Range<u64>>,
) -> Vec<(u64, Vec<u8>)> {
    let mut info = Vec::new();
    let modules = u32::from(initrd.is_some());
    for word in [MAGIC, VERSION, 0, modules] {
        info.extend(word.to_le_bytes());
    }
    let modules_at = if modules == 0 { 0 } else { MODULES };
    // The place of the ACPI tables' root is zero: there are none.
    for address in [modules_at, COMMAND_LINE, 0, MEMORY_MAP] {
        info.extend(address.to_le_bytes());
    }
    for word in [map.len() as u32, 0] {
        info.extend(word.to_le_bytes());
    }
    let mut ranges = Vec::new();
    for (range, kind) in map {
        for quad in [range.start, range.end - range.start, u64::from(*kind)] {
            ranges.extend(quad.to_le_bytes());
        }
    }
    let mut all = vec![(layout::START_INFO, info), (MEMORY_MAP, ranges)];
    if let Some(initrd) = initrd {
        let module = [initrd.start, initrd.end - initrd.start, 0, 0];
        all.push((
            MODULES,
            module.into_iter().flat_map(u64::to_le_bytes).collect(),
        ));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{GIB, HOLE, START_INFO};

    #[test]
    fn structures_do_not_overlap() {
        let map = memory_map(1024 * GIB, false);
        let parts = encode(&map, Some(&(0x10_0000..0x20_0000)));
        assert_eq!(parts[0].1.len(), 56);
        for (start, bytes) in &parts {
            let end = start + bytes.len() as u64;
            assert!(end <= layout::ZERO_PAGE);
            assert!(
                parts
                    .iter()
                    .all(|(other, _)| other <= start || *other >= end)
            );
        }
        assert_eq!(parts[0].0, START_INFO);
    }

    #[test]
    fn a_map_is_sorted_and_names_no_memory_in_the_hole() {
        for (bytes, kept) in [
            (4 << 20, true),
            (3 * GIB, false),
            (512 * GIB, true),
            (1024 * GIB, false),
        ] {
            let map = memory_map(bytes, kept);
            assert!(
                map.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start),
                "{map:?}"
            );
            for (range, kind) in map {
                assert!(range.start < range.end);
                assert!(kind != RAM || range.end <= HOLE.start || range.start >= HOLE.end);
                assert!(kind != RAM || !kept || range.start >= LOAD);
            }
        }
    }
}
