//! Promises about a block that is moved while requests run into it. `DISKFERRY_SEED=n` runs one seed.

#[expect(
    unreachable_pub,
    dead_code,
    reason = "a test binary has no outside and uses a part"
)]
mod simulation;

use simulation::model::{Model, SECTOR};
use simulation::random::Random;
use simulation::scenario::{MIB, Variant, new_image, open, verify};
use simulation::world::World;
use vdisk::engine::Request;
use vdisk::units::GuestOffset;

const CHILD: Variant = Variant {
    alignment: 1,
    cache: 1 << 20,
    block: 1 << 20,
    flush: 10,
    child: Some(512),
    tracked: false,
};

/// The block that moves, and the last ones of its sectors, which the child does not have at first.
const BLOCK: u64 = 5 * MIB;
const GAPS: u64 = 40;

fn write(offset: u64, len: u64) -> Request {
    let offset = GuestOffset(offset);
    let fua = false;
    Request::Write { offset, len, fua }
}

/// A world in which the file ends with [`BLOCK`], which lacks [`GAPS`], behind a free place for it.
fn with_a_free_place(random: &mut Random) -> World {
    let mut image = new_image(&CHILD, random);
    let engine = open(&mut image, &CHILD, random).expect("a new image opens");
    let mut world = World::new(image, engine, Model::new(true), Random::new(random.next()));
    let gap = GAPS * SECTOR;
    for request in [write(0, 4096), write(BLOCK, MIB - gap), Request::Flush] {
        world.submit(request);
        world.run_dry();
    }
    let (offset, len) = (GuestOffset(0), MIB);
    for request in [Request::Discard { offset, len }, Request::Flush] {
        world.submit(request);
        world.run_dry();
    }
    world
}

/// The last sectors of a block arrive while it is moved, so that it becomes the child's own at any moment
/// of that; other writes go into it all the time.
fn run(seed: u64) -> u64 {
    println!("DISKFERRY_SEED={seed}");
    let mut random = Random::new(seed);
    let mut world = with_a_free_place(&mut random);
    world.submit(Request::Compact {
        defragment: false,
        budget: 1 << 40,
    });
    for _ in 0..random.below(120) {
        world.step();
    }
    for number in 1..=GAPS {
        world.submit(write(BLOCK + MIB - number * SECTOR, SECTOR));
    }
    for _ in 0..60 {
        for _ in 0..random.below(4) {
            world.step();
        }
        world.submit(write(BLOCK + random.below(400) * SECTOR, SECTOR));
    }
    world.run_dry();
    world.submit(Request::Read {
        offset: GuestOffset(BLOCK),
        len: MIB,
    });
    world.submit(Request::Flush);
    world.run_dry();
    let left = world.cut();
    let known = (&world.model, &mut world.ledger);
    verify(&left, known, &CHILD, &mut random);
    world.compacted
}

#[test]
fn a_block_that_becomes_the_childs_own_while_it_moves_keeps_every_write() {
    let seed = std::env::var("DISKFERRY_SEED").ok();
    let seed: Option<u64> = seed.and_then(|value| value.parse().ok());
    let moved: u64 = match seed {
        Some(seed) => run(seed),
        None => (0..400).map(run).sum(),
    };
    assert!(
        seed.is_some() || moved > 100,
        "{moved} compactions moved anything"
    );
}
