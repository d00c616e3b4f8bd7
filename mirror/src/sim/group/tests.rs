//! The promise of a group, held against thousands of seeds.

use super::{Stats, World};
use crate::seeds::{are_the_usual, seeds};
use crate::session::Sabotage;

#[test]
fn disks_that_follow_together_hold_one_moment_of_their_machine_whatever_crashes() {
    let mut total = Stats::default();
    for seed in seeds(2500) {
        let (stats, result) = World::new(seed, None).run();
        if let Err(e) = result {
            panic!("seed {seed} (run it alone with DISKFERRY_SEED={seed}): {e}");
        }
        total.acked += stats.acked;
        total.sessions += stats.sessions;
        total.crashes += stats.crashes;
        total.recorded += stats.recorded;
        total.promoted += stats.promoted;
        total.replayed += stats.replayed;
        total.inherited += stats.inherited;
        total.refused += stats.refused;
        total.given_up += stats.given_up;
        total.fallen_back += stats.fallen_back;
        total.resumed += stats.resumed;
        total.lost += stats.lost;
        total.parted += stats.parted;
        total.parted_back += stats.parted_back;
        total.rest += stats.rest;
        total.home += stats.home;
        total.stood += stats.stood;
    }
    println!("{total:?}");
    if !are_the_usual() {
        return;
    }
    // A check that cannot fail is none.
    assert!(total.recorded > 5000 && total.promoted > 5000, "{total:?}");
    assert!(total.replayed > 1000 && total.inherited > 100, "{total:?}");
    assert!(
        total.given_up > 100 && total.fallen_back > 1000,
        "{total:?}"
    );
    assert!(total.crashes > 2000, "{total:?}");
    assert!(total.resumed > 300 && total.lost > 20, "{total:?}");
    assert!(total.parted > 500 && total.parted_back > 50, "{total:?}");
    assert!(total.rest > 1000, "{total:?}");
    assert!(total.home > 500 && total.stood > 1000, "{total:?}");
}

/// Some seed notices that the rule is broken.
fn is_noticed(rule: Sabotage) {
    let noticed = (0..2000).find_map(|seed| {
        // Running into the time limit would be noticing nothing.
        let noticed = World::new(seed, Some(rule)).run().1.err();
        noticed.filter(|e| !e.contains("no end")).map(|e| (seed, e))
    });
    println!("{rule:?} noticed: {noticed:?}");
    assert!(noticed.is_some(), "no seed notices {rule:?}");
}

#[test]
fn the_simulation_notices_broken_rules_of_cuts() {
    is_noticed(Sabotage::CutTooEarly);
}

#[test]
fn the_simulation_notices_broken_rules_of_a_group() {
    is_noticed(Sabotage::CarryUnrecorded);
    is_noticed(Sabotage::CarryPastTheCut);
    is_noticed(Sabotage::CutOfOne);
    is_noticed(Sabotage::StayJoined);
}

#[test]
fn the_simulation_notices_broken_rules_of_a_group_that_comes_back() {
    is_noticed(Sabotage::CountAnew);
    is_noticed(Sabotage::LifeUnkept);
    is_noticed(Sabotage::WatchTooLate);
    is_noticed(Sabotage::ForgetWhatChanged);
    is_noticed(Sabotage::KeepOnlyTheDirty);
}

#[test]
fn the_simulation_notices_a_group_that_takes_what_was_left_for_the_same_unasked() {
    is_noticed(Sabotage::TakeForTheSame);
}
