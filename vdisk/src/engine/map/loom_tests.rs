//! Every interleaving of the map's shared parts, under loom.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p vdisk --release loom`.

use loom::sync::Arc as LoomArc;
use loom::thread;

use super::sync::{AtomicU64, Ordering};
use super::{Access, BlockMap, Lookup, MapShape};
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
