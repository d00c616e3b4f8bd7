//! A medium that fails: every request ends, with an error where it must, and nothing that was flushed
//! is lost; what the power cut leaves afterwards is whole.
//!
//! `DISKFERRY_SEED=n` runs one seed; `DISKFERRY_SEEDS=n` sets how many are run.

#[expect(
    unreachable_pub,
    dead_code,
    reason = "a test binary has no outside and uses a part"
)]
mod simulation;

use simulation::model::Model;
use simulation::random::Random;
use simulation::scenario::{MIB, Variant, new_image, open, random_request, verify};
use simulation::world::{Faults, World};
use vdisk::engine::{Mark, Request};
use vdisk::storage::MemoryStorage;
use vdisk::units::GuestOffset;

const VARIANT: Variant = Variant {
    alignment: 1,
    cache: 1 << 20,
    block: 1 << 20,
    flush: 10,
    child: None,
    tracked: false,
};

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
}

fn seeds(many: u64) -> std::ops::Range<u64> {
    match number("DISKFERRY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DISKFERRY_SEEDS").unwrap_or(many),
    }
}

/// Submit something, or let something happen; parks only while no change is open, as agreed.
fn act(world: &mut World, variant: &Variant, depth: usize, random: &mut Random) {
    if world.busy() < depth {
        let request = random_request(random, variant, world.size());
        if random.one_in(24) && !world.changing() && !world.parking() {
            let mark = [None, Some(Mark::Incomplete), Some(Mark::HandedOver)];
            world.submit(Request::Park {
                mark: mark[random.below(3) as usize],
            });
        } else if !(world.parking() && request.changes()) {
            world.submit(request);
        }
    }
    for _ in 0..random.below(4) {
        world.step();
    }
}

/// One disk whose medium misbehaves; how many requests were refused.
fn run(seed: u64, faults: Faults) -> usize {
    let mut random = Random::new(seed);
    let variant = Variant::of_seed(seed);
    println!("DISKFERRY_SEED={seed} {variant:?} {faults:?}");
    let mut image = new_image(&variant, &mut random);
    let engine = open(&mut image, &variant, &mut random).expect("a new image opens");
    let mut world = World::new(
        image,
        engine,
        Model::new(variant.child.is_some()),
        Random::new(random.next()),
    );
    let depth = 1 + random.below(24) as usize;
    let quiet = random.below(60);
    for turn in 0..400 {
        if turn == quiet {
            world.faults = faults;
        }
        act(&mut world, &variant, depth, &mut random);
    }
    world.run_dry();
    for (request, error) in &world.refused {
        let room = matches!(faults, Faults::NoRoom(_));
        assert!(
            !room || !matches!(request, Request::Flush | Request::Read { .. }),
            "without room {request:?} failed: {error}"
        );
    }
    if let Faults::NoRoom(_) = faults {
        // There is room again: the disk is as good as ever.
        world.faults = Faults::None;
        for _ in 0..100 {
            act(&mut world, &variant, depth, &mut random);
        }
        world.run_dry();
    }
    let left = world.cut();
    world.ledger.cut();
    let known = (&world.model, &mut world.ledger);
    verify(&left, known, &variant, &mut random);
    world.refused.len()
}

#[test]
fn without_room_requests_fail_by_themselves_and_nothing_else_is_lost() {
    let refused: usize = seeds(150)
        .map(|seed| run(seed, Faults::NoRoom(2 + seed % 9)))
        .sum();
    assert!(refused > 100 || number("DISKFERRY_SEED").is_some());
}

#[test]
fn whatever_operation_fails_every_request_ends_and_what_was_flushed_is_there() {
    let refused: usize = seeds(300)
        .map(|seed| run(seed, Faults::Medium([10, 60, 300][(seed % 3) as usize])))
        .sum();
    assert!(refused > 100 || number("DISKFERRY_SEED").is_some());
}

fn write(block: u64) -> Request {
    Request::Write {
        offset: GuestOffset(block * MIB),
        len: 4096,
        fua: false,
    }
}

fn world(image: MemoryStorage, seed: u64) -> World {
    let mut image = image;
    let mut random = Random::new(seed);
    let engine = open(&mut image, &VARIANT, &mut random).expect("a sound image opens");
    World::new(image, engine, Model::new(VARIANT.child.is_some()), random)
}

#[test]
fn a_file_that_can_grow_no_more_keeps_what_it_has() {
    for seed in 0..20 {
        let mut world = world(new_image(&VARIANT, &mut Random::new(seed)), seed);
        world.submit(write(0));
        world.run_dry();
        // Space runs low well before it ends, so growing fails while there is some left.
        world.faults = Faults::Longest(world.storage.live().length() + 3 * MIB);
        for block in 1..120 {
            world.submit(write(block));
            if block % 4 != seed % 4 {
                world.step();
            }
        }
        world.run_dry();
        let refused = world.refused.len();
        assert!((20..119).contains(&refused), "{refused} refused");
        for block in 0..120 {
            world.submit(Request::Read {
                offset: GuestOffset(block * MIB),
                len: MIB,
            });
        }
        world.run_dry();
        assert_eq!(world.refused.len(), refused);
    }
}

#[test]
fn a_write_that_needs_no_room_succeeds_beside_one_for_which_there_is_none() {
    for seed in 0..60 {
        let mut first = world(new_image(&VARIANT, &mut Random::new(seed)), seed);
        for block in [0, 3000] {
            first.submit(write(block));
        }
        first.run_dry();
        first.submit(Request::Park { mark: None });
        first.run_dry();
        let mut world = world(first.cut(), seed);
        world.submit(write(0));
        world.run_dry();
        world.faults = Faults::Longest(world.storage.live().length());
        // The page of block 3000 is not in memory yet: both wait at the same time.
        world.submit(write(1));
        world.submit(write(3000));
        world.run_dry();
        let refused: Vec<_> = world.refused.iter().map(|(request, _)| *request).collect();
        assert_eq!(refused, [write(1)], "seed {seed}");
    }
}

#[test]
fn parking_ends_whatever_the_log_is_doing() {
    for seed in 0..200 {
        println!("seed {seed}");
        let mut world = world(new_image(&VARIANT, &mut Random::new(seed)), seed);
        // Around here the log is half full, and pages begin to go to their places.
        for block in 0..62 + seed % 4 {
            world.submit(write(block * 37 % 4200));
            world.run_until_answered();
            world.submit(Request::Flush);
            world.run_until_answered();
        }
        world.submit(write(4199));
        world.run_until_answered();
        world.submit(Request::Park { mark: None });
        world.run_until_answered();
    }
}

#[test]
fn a_mark_for_which_there_is_no_room_is_refused() {
    let mut world = world(new_image(&VARIANT, &mut Random::new(1)), 1);
    let mark = Request::Park {
        mark: Some(Mark::Incomplete),
    };
    world.faults = Faults::NoRoom(1);
    world.submit(mark);
    world.run_dry();
    assert_eq!(world.refused.len(), 1);
    world.faults = Faults::None;
    world.submit(mark);
    world.run_dry();
    assert_eq!(world.engine.mark(), Some(Mark::Incomplete));
}
