//! The map in one thread: what a lookup answers and when a generation is passed.

use std::sync::Arc;

use super::{Access, BlockMap, Lookup, MapShape};
use crate::units::{FileOffset, GuestOffset};

const MIB: u64 = 1 << 20;

fn map(frames: usize) -> Arc<BlockMap> {
    let shape = MapShape {
        block_shift: Some(20),
        chunk_shift: 12,
        alignment: 512,
        read_only: false,
        parent: false,
    };
    Arc::new(BlockMap::new(shape, 8192 * MIB, 8193, frames))
}

#[test]
fn a_page_that_is_not_here_is_the_engines_business() {
    let map = map(2);
    assert_eq!(
        map.lookup(GuestOffset(0), 4096, Access::Read),
        Lookup::Engine
    );
    map.install(0, 0, &[0; 512]);
    assert_eq!(
        map.lookup(GuestOffset(5), 10, Access::Read),
        Lookup::Zero { len: 10 }
    );
}

#[test]
fn a_present_block_is_found_at_its_place_and_a_run_ends_with_it() {
    let map = map(2);
    let mut entries = [0; 512];
    entries[3] = (7 * MIB) | 6;
    map.install(1, 0, &entries);
    let found = map.lookup(GuestOffset(4 * MIB - 512), 4096, Access::Read);
    assert_eq!(
        found,
        Lookup::File {
            at: FileOffset(8 * MIB - 512),
            len: 512
        }
    );
}

#[test]
fn writes_go_to_the_engine_until_armed_and_when_unaligned_or_absent() {
    let map = map(2);
    map.install(0, 0, &[(7 * MIB) | 6]);
    let write = |at, len| map.lookup(GuestOffset(at), len, Access::Write);
    assert_eq!(write(0, 512), Lookup::Engine);
    map.set_armed(true);
    assert_eq!(
        write(0, 512),
        Lookup::File {
            at: FileOffset(7 * MIB),
            len: 512
        }
    );
    assert_eq!(write(1, 512), Lookup::Engine);
    assert_eq!(write(MIB, 512), Lookup::Engine);
    map.set_diverted(true);
    assert_eq!(write(0, 512), Lookup::Engine);
}

#[test]
fn an_entry_behind_a_bitmap_slot_is_found() {
    let map = map(32);
    // Block 4096 has BAT index 4097: entry 1 of page 8.
    map.install(0, 8, &[0, (9 * MIB) | 6]);
    let found = map.lookup(GuestOffset(4096 * MIB), 1, Access::Read);
    assert_eq!(
        found,
        Lookup::File {
            at: FileOffset(9 * MIB),
            len: 1
        }
    );
}

#[test]
fn what_goes_beyond_the_end_is_refused_by_the_engine_and_not_looked_up() {
    let map = map(1);
    map.install(0, 0, &[(7 * MIB) | 6, (8 * MIB) | 6]);
    let read = |at, len| map.lookup(GuestOffset(at), len, Access::Read);
    let found = Lookup::File {
        at: FileOffset(8 * MIB),
        len: 512,
    };
    assert_eq!(read(MIB, 512), found);
    map.set_size(MIB + 512);
    assert_eq!((map.size(), read(MIB, 512)), (MIB + 512, found));
    assert_eq!(read(MIB, 1024), Lookup::Engine);
    assert_eq!(read(u64::MAX, 512), Lookup::Engine);
    map.set_size(16384 * MIB);
    assert_eq!(read(8191 * MIB, 512), Lookup::Engine);
}

#[test]
fn a_frame_given_away_forgets_its_old_page() {
    let map = map(1);
    map.install(0, 0, &[(7 * MIB) | 6]);
    map.install(0, 1, &[(8 * MIB) | 6]);
    assert_eq!(map.entry(0), None);
    assert_eq!(map.lookup(GuestOffset(0), 1, Access::Read), Lookup::Engine);
    let found = map.lookup(GuestOffset(512 * MIB), 1, Access::Read);
    assert_eq!(
        found,
        Lookup::File {
            at: FileOffset(8 * MIB),
            len: 1
        }
    );
}

#[test]
fn a_generation_is_passed_when_all_that_began_before_it_left() {
    let map = map(1);
    let (mut one, mut two) = (map.register(), map.register());
    let (early, also_early) = (one.enter(), two.enter());
    let change = map.advance();
    map.set_attention(true);
    let late = one.enter();
    assert!(!map.quiesced(change));
    assert!(one.leave(early));
    assert!(!map.quiesced(change));
    assert!(two.leave(also_early));
    assert!(map.quiesced(change));
    assert!(one.leave(late));
}
