//! The promises of a migration, each held against thousands of seeds.

use super::plan::Aim;
use super::world::{Stats, World};
use crate::seeds::{are_the_usual, seeds};
use crate::session::Sabotage;

/// Run these seeds.
fn run(count: u64, aim: Aim) -> Stats {
    let mut total = Stats::default();
    for seed in seeds(count) {
        let (stats, result) = World::new(seed, None, aim).run();
        if let Err(e) = result {
            panic!("seed {seed} (run it alone with DISKFERRY_SEED={seed}): {e}");
        }
        total.undone_in_calm += stats.undone_in_calm;
        total.acked += stats.acked;
        total.sessions += stats.sessions;
        total.crashes += stats.crashes;
        total.cuts += stats.cuts;
        total.stood += stats.stood;
        total.given_up += stats.given_up;
        total.fallen_back += stats.fallen_back;
        total.steps += stats.steps;
        total.replicas += stats.replicas;
        total.replayed += stats.replayed;
        total.inherited += stats.inherited;
        total.same += stats.same;
        total.verified += stats.verified;
        total.resumed += stats.resumed;
        total.back += stats.back;
        total.taken += stats.taken;
        total.settled += stats.settled;
        total.crashed_in.extend(stats.crashed_in);
    }
    println!("{total:?}");
    total
}

#[test]
fn no_fault_ever_makes_two_owners_or_loses_a_write() {
    let total = run(5000, Aim::TakeOver);
    if !are_the_usual() {
        return;
    }
    // Retrying must not be what makes it end: an attempt that no fault disturbs goes through.
    assert!(
        total.undone_in_calm < 50,
        "{} attempts undone in calm",
        total.undone_in_calm
    );
    // A check that cannot fail is none: what is promised of every phase was tried in every phase.
    for doing in [
        "source Owner",
        "source Preparing",
        "source Holding",
        "source Draining",
        "source Marking",
        "source Offering",
        "source Offered",
        "source Reclaiming",
        "source Settling",
        "source Unmarking",
        "source Deciding",
        "source Released",
        "source Forwarding",
        "host 0 without a session",
        "target None",
        "target Emptying",
        "target Receiving",
        "target Prepared",
        "target Owner",
        "target Owner served",
    ] {
        assert!(total.crashed_in.contains(doing), "no crash in: {doing}");
    }
    assert!(total.settled > 100, "{} offers settled", total.settled);
    assert!(total.resumed > 500 && total.same > 1 << 20 && total.verified > 1 << 20);
    assert!(total.stood > 1000, "{} hosts stood still", total.stood);
    assert!(total.cuts > 5000 && total.given_up > 1000 && total.fallen_back > 10_000);
}

#[test]
fn a_target_that_follows_holds_what_a_crash_of_the_source_could_have_left_at_the_last_consistent_marker()
 {
    let total = run(2500, Aim::Follow);
    if !are_the_usual() {
        return;
    }
    for doing in ["source Owner", "target Receiving", "target Following"] {
        assert!(total.crashed_in.contains(doing), "no crash in: {doing}");
    }
    assert!(total.resumed > 300 && total.same > 1 << 20 && total.verified > 1 << 20);
    assert!(total.replicas > 5000 && total.replayed > 1500 && total.inherited > 100);
}

#[test]
fn a_disk_that_has_moved_goes_back_and_no_fault_makes_two_owners_or_loses_a_write() {
    let total = run(2500, Aim::Back);
    if !are_the_usual() {
        return;
    }
    for doing in [
        "source Owner",
        "source Preparing",
        "source Holding",
        "source Draining",
        "source Marking",
        "source Deciding",
        "source Released",
        "source Forwarding",
        "target Released",
        "target Receiving",
        "target Following",
        "target Prepared",
        "target Owner",
        "target Owner served",
    ] {
        let doing = format!("back: {doing}");
        assert!(total.crashed_in.contains(&doing), "no crash in: {doing}");
    }
    assert!(
        total.taken > 500,
        "{} began from what was left",
        total.taken
    );
    assert!(total.back > 2500 && total.resumed > 300 && total.same > 1 << 20);
}

#[test]
fn the_simulation_notices_broken_rules_of_the_way_back() {
    is_noticed(Sabotage::ServeUngranted, Aim::Back);
    is_noticed(Sabotage::GrantBeforeRecord, Aim::Back);
    is_noticed(Sabotage::TakeForTheSame, Aim::Back);
    is_noticed(Sabotage::PastTheJournal, Aim::Back);
}

/// Some seed notices that the rule is broken.
fn is_noticed(rule: Sabotage, aim: Aim) {
    let noticed = (0..3000).find_map(|seed| {
        // Running into the time limit would be noticing nothing.
        let noticed = World::new(seed, Some(rule), aim).run().1.err();
        noticed.filter(|e| !e.contains("no end")).map(|e| (seed, e))
    });
    println!("{rule:?} noticed: {noticed:?}");
    assert!(noticed.is_some(), "no seed notices {rule:?}");
}

#[test]
fn the_simulation_notices_broken_rules_of_ownership() {
    is_noticed(Sabotage::GrantBeforeRecord, Aim::TakeOver);
    is_noticed(Sabotage::GiveUpTooLate, Aim::TakeOver);
    is_noticed(Sabotage::ServeUngranted, Aim::TakeOver);
}

#[test]
fn the_simulation_notices_broken_rules_of_an_offer() {
    is_noticed(Sabotage::OfferBeforeRecord, Aim::TakeOver);
    is_noticed(Sabotage::ReclaimUnasked, Aim::TakeOver);
    is_noticed(Sabotage::ClaimUnasked, Aim::TakeOver);
}

#[test]
fn the_simulation_notices_broken_rules_of_the_data() {
    is_noticed(Sabotage::ForgetChunksEarly, Aim::TakeOver);
    is_noticed(Sabotage::ForgetChunksOnTheWay, Aim::TakeOver);
    is_noticed(Sabotage::LateBase, Aim::TakeOver);
    is_noticed(Sabotage::ChunksOverRecords, Aim::TakeOver);
    is_noticed(Sabotage::RecordsOverChunks, Aim::TakeOver);
    is_noticed(Sabotage::DurableBeforeFlush, Aim::TakeOver);
    is_noticed(Sabotage::KeepOldDisk, Aim::TakeOver);
}

#[test]
fn the_simulation_notices_broken_rules_of_a_disk_that_follows() {
    is_noticed(Sabotage::ConsistentTooEarly, Aim::TakeOver);
    is_noticed(Sabotage::ConsistentInAGap, Aim::TakeOver);
    is_noticed(Sabotage::ChunksOvertakeMarkers, Aim::Follow);
    is_noticed(Sabotage::SealTooLate, Aim::Follow);
    is_noticed(Sabotage::PastTheJournal, Aim::Follow);
}

#[test]
fn the_simulation_notices_broken_rules_of_comparing() {
    is_noticed(Sabotage::LeaveZeroesOut, Aim::TakeOver);
}

#[test]
fn the_simulation_notices_broken_rules_of_templates() {
    is_noticed(Sabotage::TakeUnlike, Aim::TakeOver);
    is_noticed(Sabotage::FoundOverRecords, Aim::TakeOver);
}

#[test]
fn the_simulation_notices_broken_rules_of_sessions_that_come_back() {
    is_noticed(Sabotage::KeepOnlyTheDirty, Aim::TakeOver);
    is_noticed(Sabotage::ForgetWhatChanged, Aim::TakeOver);
}
