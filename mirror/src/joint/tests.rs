//! Machines that move, with the rules of both hosts, from a seed: crashes of either at every step, records that may
//! or may not be written, users who change their mind. At no moment do both run, and in the end exactly one does, with
//! all of its disks.
//!
//! `DISKFERRY_SEED=<seed>` runs one seed alone.

mod world;

use std::collections::BTreeMap;

use uuid::Uuid;

use self::world::{RECORD, RULES, Sabotage, TO, World};
use super::*;
use crate::record::Lead;

fn run(seed: u64, broken: Option<Sabotage>) -> World {
    let mut world = World::new(seed, broken);
    for _ in 0..400 {
        world.step(true);
    }
    world.ends_well();
    world
}

fn seeds(count: u64) -> Vec<u64> {
    let one = std::env::var("DISKFERRY_SEED").ok();
    let one = one.and_then(|seed| seed.parse().ok());
    one.map_or_else(|| (0..count).collect(), |seed| vec![seed])
}

#[test]
fn exactly_one_host_runs_the_machine_whatever_breaks() {
    let mut crashes = BTreeMap::new();
    let (mut here, mut there) = (0, 0);
    for seed in seeds(1500) {
        println!("DISKFERRY_SEED={seed}");
        let world = run(seed, None);
        here += u64::from(world.runs_here);
        there += u64::from(world.runs_there);
        for (step, count) in world.crashes {
            *crashes.entry(step).or_insert(0) += count;
        }
    }
    println!("runs here {here}, there {there}; crashes {crashes:?}");
    if seeds(2).len() == 2 {
        for step in ["Copying", "Binding", "Deciding", "Granting", "Undoing"] {
            assert!(
                crashes.contains_key(step),
                "no crash in {step}: {crashes:?}"
            );
        }
    }
}

#[test]
fn every_rule_that_is_broken_is_noticed() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut unnoticed = Vec::new();
    for rule in RULES {
        let noticed =
            (0..3000).any(|seed| std::panic::catch_unwind(|| run(seed, Some(rule))).is_err());
        if !noticed {
            unnoticed.push(rule);
        }
    }
    std::panic::set_hook(quiet);
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}

#[test]
fn a_bound_disk_is_not_guessed_about() {
    let lead = |state| Ownership {
        disk: Uuid::from_u128(1),
        state,
    };
    let (session, other) = (Uuid::from_u128(8), Uuid::from_u128(9));
    let bound = Ownership {
        disk: Uuid::from_u128(2),
        state: State::Bound {
            epoch: 5,
            session: Uuid::from_u128(7),
            attempt: 1,
            to: TO.into(),
            lead: Lead {
                record: RECORD.into(),
                session,
                epoch: 3,
            },
        },
    };
    let released = |session, epoch| {
        lead(State::Released {
            epoch,
            session,
            attempt: 1,
            to: TO.into(),
        })
    };
    let owner = |epoch| {
        lead(State::Owner {
            epoch,
            session: None,
        })
    };
    assert!(resolve(&bound, None).is_err());
    assert!(resolve(&bound, Some(&released(other, 3))).is_err());
    assert!(
        resolve(&bound, Some(&owner(4))).is_err(),
        "it came back since"
    );
    let told = resolve(&bound, Some(&released(session, 3))).unwrap();
    assert!(matches!(
        told.state,
        State::Released {
            epoch: 5,
            attempt: 1,
            ..
        }
    ));
    let told = resolve(&bound, Some(&owner(2))).unwrap();
    assert!(matches!(told.state, State::Owner { epoch: 4, .. }));
}
