//! Page tables in which every address stands for itself (Intel SDM volume 3, 4.5).

use std::ops::Range;

use vm_memory::GuestMemoryMmap;

use crate::Result;
use crate::layout::{GIB, HOLE, PAGE, PAGE_TABLES};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
/// The entry maps memory itself. With it, accessed and dirty, so that the processor has nothing to write.
const LEAF: u64 = 1 << 7 | 1 << 5 | 1 << 6;
const ENTRIES: u64 = 512;
/// What the tables map at least.
const LEAST: u64 = 4 * GIB;
const MIB_2: u64 = 2 << 20;
/// Pages of the tables that are at [`PAGE_TABLES`]: one for everything, one for each 512 GiB, and one for
/// each of the first GiB where the processor has no pages of 1 GiB.
const DIRECTORIES: u64 = PAGE_TABLES + PAGE;
const FIRST_GIBS: u64 = DIRECTORIES + 3 * PAGE;
const FIRST: u64 = 4;

/// Whom the tables are for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reach {
    /// Everything below is mapped, and at least 4 GiB.
    pub(super) end: u64,
    /// The processor has pages of 1 GiB.
    pub(super) gigabyte_pages: bool,
    /// Level 3 may go there.
    pub(super) user: bool,
}

impl Reach {
    fn gibs(self) -> u64 {
        self.end.max(LEAST).div_ceil(GIB)
    }

    /// Where the tables are that find no place below 1 MiB, a page for each GiB: at the end of the memory
    /// below the hole. Empty when there are none.
    pub(super) fn spilled(self) -> Range<u64> {
        let pages = if self.gigabyte_pages {
            0
        } else {
            self.gibs() - FIRST
        };
        HOLE.start - pages * PAGE..HOLE.start
    }
}

/// Write tables in which every address stands for itself.
pub(super) fn identity(memory: &GuestMemoryMmap<()>, reach: Reach) -> Result<()> {
    let flags = PRESENT | WRITABLE | if reach.user { USER } else { 0 };
    let spilled = reach.spilled().start;
    let gibs: Vec<u64> = (0..reach.gibs()).collect();
    for (directory, gibs) in (0..).zip(gibs.chunks(ENTRIES as usize)) {
        let at = DIRECTORIES + directory * PAGE;
        write(memory, PAGE_TABLES + directory * 8, [at | flags])?;
        if reach.gigabyte_pages {
            write(
                memory,
                at,
                gibs.iter().map(|gib| (gib * GIB) | flags | LEAF),
            )?;
            continue;
        }
        let place = |gib: u64| match gib.checked_sub(FIRST) {
            None => FIRST_GIBS + gib * PAGE,
            Some(behind) => spilled + behind * PAGE,
        };
        write(memory, at, gibs.iter().map(|gib| place(*gib) | flags))?;
        for gib in gibs {
            let pages = (0..ENTRIES).map(|page| (gib * GIB + page * MIB_2) | flags | LEAF);
            write(memory, place(*gib), pages)?;
        }
    }
    Ok(())
}

/// Write entries of a table, one behind the other.
fn write(
    memory: &GuestMemoryMmap<()>,
    at: u64,
    entries: impl IntoIterator<Item = u64>,
) -> Result<()> {
    let bytes: Vec<u8> = entries.into_iter().flat_map(u64::to_le_bytes).collect();
    super::put(memory, at, &bytes)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::Memory;
    use crate::layout::TSS;

    /// Where an address leads to by the tables, and whether level 3 may go there.
    fn walk(memory: &Memory, address: u64) -> Option<(u64, bool)> {
        let mut table = PAGE_TABLES;
        let mut user = true;
        for shift in [39, 30, 21] {
            let entry: u64 = memory
                .guest()
                .read_obj(GuestAddress(table + (address >> shift & 511) * 8))
                .unwrap();
            if entry & PRESENT == 0 {
                return None;
            }
            user &= entry & USER != 0;
            let frame = entry & 0x000F_FFFF_FFFF_F000;
            if entry & LEAF == LEAF {
                return Some((frame | address & ((1 << shift) - 1), user));
            }
            table = frame;
        }
        None
    }

    #[test]
    fn every_address_stands_for_itself() {
        for bytes in [4 << 20, 3 * GIB, 4 * GIB, 100 * GIB, 512 * GIB, 1024 * GIB] {
            for gigabyte_pages in [false, true] {
                let memory = Memory::new(bytes, false).unwrap();
                let reach = Reach {
                    end: memory.end(),
                    gigabyte_pages,
                    user: true,
                };
                identity(memory.guest(), reach).unwrap();
                for at in [0, 0x1234, HOLE.start, HOLE.end - 1, memory.end() - 1] {
                    let found = walk(&memory, at);
                    assert_eq!(found, Some((at, true)), "{at:#x} of {bytes:#x}");
                }
                let behind: u64 = memory.guest().read_obj(GuestAddress(TSS)).unwrap();
                assert_eq!(behind, 0, "tables end before what follows them");
            }
        }
    }

    #[test]
    fn tables_of_a_kernel_are_not_for_level_3() {
        let memory = Memory::new(4 << 20, false).unwrap();
        let reach = Reach {
            end: 0,
            gigabyte_pages: false,
            user: false,
        };
        identity(memory.guest(), reach).unwrap();
        assert_eq!(walk(&memory, 5), Some((5, false)));
        assert!(reach.spilled().is_empty());
    }
}
