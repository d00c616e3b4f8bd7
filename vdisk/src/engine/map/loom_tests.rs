//! Every interleaving of the map's shared parts, under loom.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p vdisk --release loom`.

use loom::sync::Arc as LoomArc;
use loom::thread;

use super::sync::{AtomicU64, Ordering};
use super::{Access, BlockMap, Lookup, MapShape, TrackMap};
use crate::units::{FileOffset, GuestOffset};

const MIB: u64 = 1 << 20;

fn map() -> std::sync::Arc<BlockMap> {
    let shape = MapShape {
        block_shift: Some(20),
        chunk_shift: 12,
        alignment: 1,
        read_only: false,
        parent: false,
    };
    std::sync::Arc::new(BlockMap::new(shape, 8 * MIB, 4, 1))
}

#[test]
fn loom_a_lookup_never_mixes_two_pages() {
    loom::model(|| {
        let map = map();
        map.install(0, 0, &[7 * MIB | 6, 0]);
        let reader = std::sync::Arc::clone(&map);
        let engine = thread::spawn(move || map.install(0, 1, &[9 * MIB | 6, 0]));
        let found = reader.lookup(GuestOffset(0), 1, Access::Read);
        let mine = Lookup::File {
            at: FileOffset(7 * MIB),
            len: 1,
        };
        assert!(found == Lookup::Engine || found == mine, "{found:?}");
        engine.join().unwrap();
    });
}

#[test]
fn loom_space_is_taken_back_only_when_no_worker_can_use_it() {
    loom::model(|| {
        let map = map();
        map.install(0, 0, &[7 * MIB | 6, 0]);
        let mut worker = map.register();
        // 0: the block's own data; 1: given to another owner.
        let space = LoomArc::new(AtomicU64::new(0));
        let (engine_map, engine_space) = (std::sync::Arc::clone(&map), LoomArc::clone(&space));
        let engine = thread::spawn(move || {
            engine_map.set_entry(0, 2);
            let generation = engine_map.advance();
            if engine_map.quiesced(generation) {
                engine_space.store(1, Ordering::Release);
            }
        });
        let generation = worker.enter();
        if let Lookup::File { .. } = map.lookup(GuestOffset(0), 1, Access::Read) {
            assert_eq!(
                space.load(Ordering::Acquire),
                0,
                "read from space given to another"
            );
        }
        let _ = worker.leave(generation);
        engine.join().unwrap();
        drop(worker);
    });
}

#[test]
fn loom_either_the_engine_sees_the_worker_gone_or_the_worker_is_told_to_poll() {
    loom::model(|| {
        let map = map();
        let mut worker = map.register();
        let entered = worker.enter();
        let engine_map = std::sync::Arc::clone(&map);
        let engine = thread::spawn(move || {
            let generation = engine_map.advance();
            engine_map.set_attention(true);
            engine_map.quiesced(generation)
        });
        let told = worker.leave(entered);
        let seen = engine.join().unwrap();
        assert!(told || seen, "nobody would ever look again");
        drop(worker);
    });
}

#[test]
fn loom_a_block_that_was_cut_off_is_used_by_nobody_once_its_space_is_taken_back() {
    loom::model(|| {
        let map = map();
        map.install(0, 0, &[0, 7 * MIB | 6]);
        let mut worker = map.register();
        // 0: the block's own data; 1: given to another owner.
        let space = LoomArc::new(AtomicU64::new(0));
        let (engine_map, engine_space) = (std::sync::Arc::clone(&map), LoomArc::clone(&space));
        let engine = thread::spawn(move || {
            engine_map.set_size(MIB);
            let generation = engine_map.advance();
            if engine_map.quiesced(generation) {
                engine_space.store(1, Ordering::Release);
            }
        });
        let generation = worker.enter();
        if let Lookup::File { .. } = map.lookup(GuestOffset(MIB), 1, Access::Read) {
            assert_eq!(
                space.load(Ordering::Acquire),
                0,
                "read from space given to another"
            );
        }
        let _ = worker.leave(generation);
        engine.join().unwrap();
        drop(worker);
    });
}

#[test]
fn loom_a_block_is_copied_only_when_no_worker_can_still_write_it() {
    loom::model(|| {
        let map = map();
        map.set_armed(true);
        map.install(0, 0, &[7 * MIB | 6, 0]);
        let mut worker = map.register();
        let here = LoomArc::new(AtomicU64::new(0));
        let (engine_map, engine_here) = (std::sync::Arc::clone(&map), LoomArc::clone(&here));
        let engine = thread::spawn(move || {
            engine_map.set_moving(0, true);
            let generation = engine_map.advance();
            engine_map
                .quiesced(generation)
                .then(|| engine_here.load(Ordering::Acquire))
        });
        let generation = worker.enter();
        let writes = matches!(
            map.lookup(GuestOffset(0), 1, Access::Write),
            Lookup::File { .. }
        );
        if writes {
            here.store(1, Ordering::Release);
        }
        let _ = worker.leave(generation);
        if let Some(copied) = engine.join().unwrap() {
            assert_eq!(
                copied,
                here.load(Ordering::Acquire),
                "a write was not copied"
            );
        }
    });
}

#[test]
fn loom_a_bit_is_set_on_its_own_page_and_is_there_when_the_page_is_saved() {
    loom::model(|| {
        let map = map();
        map.set_track(TrackMap::new(20, 4 * 128, 1));
        let track = map.track().unwrap();
        track.set_collecting(true);
        track.install(0, 0, &[0; 16]);
        track.activate(0, u64::MAX);
        let mut worker = map.register();
        let engine_map = std::sync::Arc::clone(&map);
        // The engine gives the frame of page 0 to page 1, if nobody uses it any more.
        let engine = thread::spawn(move || {
            let track = engine_map.track().unwrap();
            track.retire(0);
            let generation = engine_map.advance();
            if !engine_map.quiesced(generation) {
                return None;
            }
            let saved = track.take_bits(0);
            track.install(0, 1, &[0; 16]);
            track.activate(0, u64::MAX);
            Some(saved)
        });
        let generation = worker.enter();
        let noted = map.note_change(0, 1);
        let _ = worker.leave(generation);
        let saved = engine.join().unwrap();
        let left = map.track().unwrap().take_bits(0);
        match saved {
            Some(saved) => {
                assert_eq!(saved[0] == 1, noted, "a change that was noted is saved");
                assert_eq!(left[0], 0, "a bit of page 0 is on page 1");
            }
            None => assert_eq!(left[0] == 1, noted),
        }
        drop(worker);
    });
}

#[test]
fn loom_a_part_is_found_active_only_after_its_page_is_there() {
    loom::model(|| {
        let map = map();
        map.set_track(TrackMap::new(20, 4 * 128, 1));
        map.track().unwrap().set_collecting(true);
        let engine_map = std::sync::Arc::clone(&map);
        let engine = thread::spawn(move || {
            let track = engine_map.track().unwrap();
            track.install(0, 0, &[0xF0; 16]);
            track.activate(0, 1);
        });
        let noted = map.note_change(0, 1);
        engine.join().unwrap();
        let bits = map.track().unwrap().take_bits(0);
        assert_eq!(bits[0], if noted { 0xF1 } else { 0xF0 });
    });
}
