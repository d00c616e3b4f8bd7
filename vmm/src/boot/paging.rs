//! Page tables in which every address stands for itself (Intel SDM volume 3, 4.5).

use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout::{GIB, PAGE, PAGE_TABLES};
use crate::{Error, Result};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
/// The entry maps memory itself. With it, accessed and dirty, so that the processor has nothing to write.
const LEAF: u64 = 1 << 7 | 1 << 5 | 1 << 6;
const ENTRIES: u64 = 512;
/// Bytes that the tables of pages of 2 MiB reach, for processors without larger ones.
const SMALL_REACH: u64 = 4 * GIB;
const MIB_2: u64 = 2 << 20;

/// Write tables that map everything below `end`, and at least 4 GiB.
///
/// With pages of 1 GiB they are a page for each 512 GiB and one above; without them 4 GiB are the most.
pub(super) fn identity(
    memory: &GuestMemoryMmap<()>,
    end: u64,
    gigabyte_pages: bool,
    user: bool,
) -> Result<()> {
    let end = end.max(SMALL_REACH).next_multiple_of(GIB);
    let flags = PRESENT | WRITABLE | if user { USER } else { 0 };
    if !gigabyte_pages && end > SMALL_REACH {
        let what = "this host's processors have no pages of 1 GiB, so a program that is entered directly has at most 3 GiB of memory";
        return Err(Error::new(crate::ErrorKind::Unsupported, what));
    }
    let mut tables = Tables {
        memory,
        next: PAGE_TABLES,
    };
    let top = tables.page();
    let mut at = 0;
    for slot in 0..end.div_ceil(ENTRIES * GIB) {
        let directory = tables.page();
        tables.write(top, slot, directory | flags)?;
        for entry in 0..ENTRIES.min((end - at) / GIB) {
            if gigabyte_pages {
                tables.write(directory, entry, at | flags | LEAF)?;
            } else {
                let smaller = tables.page();
                tables.write(directory, entry, smaller | flags)?;
                for page in 0..ENTRIES {
                    tables.write(smaller, page, at + page * MIB_2 | flags | LEAF)?;
                }
            }
            at += GIB;
        }
    }
    Ok(())
}

struct Tables<'a> {
    memory: &'a GuestMemoryMmap<()>,
    next: u64,
}

impl Tables<'_> {
    /// The next page of them. Memory that was never touched is zero: no entry is present.
    fn page(&mut self) -> u64 {
        let page = self.next;
        self.next += PAGE;
        page
    }

    fn write(&self, table: u64, entry: u64, value: u64) -> Result<()> {
        let at = GuestAddress(table + entry * 8);
        let written = self.memory.write_obj(value, at);
        written
            .map_err(|error| Error::host("page tables cannot be written", io::Error::other(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;
    use crate::layout::{COMMAND_LINE, HOLE};

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
        for (bytes, gigabyte) in [
            (4 << 20, false),
            (4 << 20, true),
            (512 * GIB, true),
            (1024 * GIB, true),
        ] {
            let memory = Memory::new(bytes, false).unwrap();
            identity(memory.guest(), memory.end(), gigabyte, true).unwrap();
            for at in [0, 0x1234, HOLE.start, HOLE.end - 1, memory.end() - 1] {
                assert_eq!(walk(&memory, at), Some((at, true)), "{at:#x} of {bytes:#x}");
            }
            let behind: u64 = memory
                .guest()
                .read_obj(GuestAddress(COMMAND_LINE - 8))
                .unwrap();
            assert_eq!(behind, 0, "tables end before what follows them");
        }
    }

    #[test]
    fn memory_that_small_pages_cannot_map_is_refused() {
        let memory = Memory::new(4 * GIB, false).unwrap();
        let refused = identity(memory.guest(), memory.end(), false, true).unwrap_err();
        assert_eq!(refused.kind(), crate::ErrorKind::Unsupported);
        identity(memory.guest(), memory.end(), true, false).unwrap();
        assert_eq!(walk(&memory, 5), Some((5, false)));
    }
}
