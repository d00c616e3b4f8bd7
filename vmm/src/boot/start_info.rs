//! What a guest of the PVH boot protocol is told: `hvm_start_info`, its map of memory and its module.
//!
//! Specified in Xen's `include/public/arch-x86/hvm/start_info.h`, version 1. Every integer is little-endian,
//! as the processor is.

use std::ops::Range;

use crate::acpi;
use crate::layout::{self, COMMAND_LINE, HOLE, LOAD, LOW_END, MEMORY_MAP, MODULES};

/// `"xEn3"` with the first byte's top bit set.
const MAGIC: u32 = 0x336E_C578;
const VERSION: u32 = 1;

/// Kinds of ranges, as e820 has them.
pub(super) const RAM: u32 = 1;
/// Not to be used.
pub(super) const RESERVED: u32 = 2;
/// ACPI tables.
const TABLES: u32 = 3;

/// Ranges of physical addresses with what they are, lowest first. A program that is entered directly keeps
/// the page tables that it starts with, so they are not its own: they are below 1 MiB and in `tables`.
pub(super) fn memory_map(bytes: u64, tables: Option<&Range<u64>>) -> Vec<(Range<u64>, u32)> {
    let mut map = match tables {
        Some(_) => vec![(0..LOAD, RESERVED)],
        None => vec![
            (0..LOW_END, RAM),
            (LOW_END..layout::ACPI.start, RESERVED),
            (layout::ACPI, TABLES),
            (layout::ACPI.end..LOAD, RESERVED),
        ],
    };
    let none = HOLE.start..HOLE.start;
    let tables = tables.unwrap_or(&none);
    for range in layout::memory_ranges(bytes) {
        let end = if range.end == tables.end {
            tables.start
        } else {
            range.end
        };
        map.push((range.start.max(LOAD)..end, RAM));
        if range.start < HOLE.start {
            map.push((tables.clone(), RESERVED));
            map.push((layout::ECAM, RESERVED));
        }
    }
    map.retain(|(range, _)| !range.is_empty());
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
    for address in [modules_at, COMMAND_LINE, acpi::ROOT, MEMORY_MAP] {
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
    use crate::layout::{GIB, START_INFO};

    #[test]
    fn structures_do_not_overlap() {
        let map = memory_map(1024 * GIB, None);
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
        let tables = HOLE.start - 0x20_0000..HOLE.start;
        for bytes in [4 << 20, 3 * GIB, 4 * GIB, 512 * GIB, 1024 * GIB] {
            for kept in [None, Some(&tables)] {
                let map = memory_map(bytes, kept);
                let sorted = map.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start);
                assert!(sorted, "{map:?}");
                for (range, kind) in map {
                    assert!(range.start < range.end);
                    let is_memory = range.end <= HOLE.start || range.start >= HOLE.end;
                    assert!(kind != RAM || is_memory);
                    assert!(kind != RAM || kept.is_none() || range.start >= LOAD);
                    let apart = range.end <= tables.start || range.start >= tables.end;
                    assert!(kind != RAM || kept.is_none() || apart);
                }
            }
        }
    }
}
