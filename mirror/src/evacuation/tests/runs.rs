//! What holds while a plan is carried out in worlds that are not as it was told.

use super::super::odds::odds;
use super::super::schedule::Schedule;
use super::super::state::State;
use super::super::world::{Truth, run};
use super::*;

#[test]
fn whatever_links_and_machines_do_no_machine_goes_before_what_it_depends_on() {
    let (mut moved, mut planned) = (0, 0);
    for seed in seeds(2_000) {
        let mut all = any(seed);
        for link in &mut all.links {
            link.breaks_per_day = 20.0;
            link.varies = 0.4;
        }
        let problem = problem(&all);
        let outcome = run(&problem, Truth::Seeded(seed), problem.deadline / 20.0);
        for (machine, at) in outcome.moved.iter().enumerate() {
            let Some(at) = at else { continue };
            moved += usize::from(*at <= problem.deadline);
            for before in &problem.machines[machine].after {
                let before = outcome.moved[*before];
                assert!(
                    before.is_some_and(|before| before < *at),
                    "{machine} at {at}, what it needs at {before:?}: seed {seed} (run it alone with \
                     DISKFERRY_SEED={seed})"
                );
            }
            for other in &problem.units[problem.machines[machine].unit].members {
                assert_eq!(outcome.moved[*other], Some(*at), "seed {seed}");
            }
        }
        let schedule = Schedule::make(&problem, &State::told(&problem), &[]);
        planned += schedule.in_time.iter().filter(|in_time| **in_time).count();
    }
    println!("{moved} moved in time, {planned} were planned");
    if number("DISKFERRY_SEED").is_none() {
        assert!(moved * 10 > planned * 7, "{moved} of {planned}");
    }
}

#[test]
fn a_link_that_carries_half_of_what_was_told_moves_the_highest_priority_all_the_same() {
    let mut machines: Vec<_> = (0..10)
        .map(|n| machine(&format!("m{n}"), 10.0 * GB, 0.0))
        .collect();
    machines[9].priority = 1;
    let all = evacuation(1000.0, 100.0 * MB, machines);
    let told = problem(&all);
    let schedule = Schedule::make(&told, &State::told(&told), &[]);
    assert_eq!(schedule.in_time.iter().filter(|i| **i).count(), 8);
    // What was told is twice what there is.
    let mut half = told.clone();
    half.resources[0].capacity = half.resources[0].capacity.scaled(0.5);
    let outcome = super::super::world::run_told(&told, &half, 10.0);
    let in_time: Vec<bool> = outcome
        .moved
        .iter()
        .map(|at| at.is_some_and(|at| at <= 1000.0))
        .collect();
    assert!(in_time[9], "{outcome:?}");
    assert_eq!(in_time.iter().filter(|i| **i).count(), 4, "{outcome:?}");
}

#[test]
fn a_link_that_carries_more_than_was_told_is_found_out() {
    let machines = (0..10).map(|n| machine(&format!("m{n}"), 10.0 * GB, 0.0));
    let all = evacuation(1000.0, 50.0 * MB, machines.collect());
    let told = problem(&all);
    let mut twice = told.clone();
    twice.resources[0].capacity = twice.resources[0].capacity.scaled(2.0);
    let outcome = super::super::world::run_told(&told, &twice, 10.0);
    let in_time = outcome.moved.iter().flatten().filter(|at| **at <= 1000.0);
    assert!(in_time.count() >= 8, "{outcome:?}");
}

#[test]
fn only_the_share_of_a_link_that_may_be_used_is_used() {
    let machines = (0..10).map(|n| machine(&format!("m{n}"), 10.0 * GB, 0.0));
    let mut all = evacuation(1000.0, 100.0 * MB, machines.collect());
    all.links[0].share = 0.25;
    let told = problem(&all);
    let mut whole = told.clone();
    whole.resources[0].capacity = whole.resources[0].capacity.scaled(4.0);
    let outcome = super::super::world::run_told(&told, &whole, 10.0);
    let last = outcome.moved.iter().flatten().copied().fold(0.0, f64::max);
    assert!(
        last > 0.0 && outcome.carried[0] <= 25.0 * MB * last * 1.001,
        "{outcome:?}"
    );
}

#[test]
fn the_same_seed_is_the_same_run() {
    let problem = problem(&any(7));
    let (one, other) = (odds(&problem, 5, 3), odds(&problem, 5, 3));
    assert_eq!(one, other);
    assert_eq!(one.machines.len(), problem.machines.len());
}

#[test]
fn a_thousand_machines_are_planned_and_simulated() {
    let rng = &mut Rng::new(1);
    let mut all = simple(rng, 1000);
    all.links[0].bandwidth = figure(1250.0 * MB);
    all.deadline = figure(4.0 * 3600.0);
    for machine in &mut all.machines {
        machine.priority = rng.below(5) as i32;
    }
    let problem = problem(&all);
    let since = std::time::Instant::now();
    let answer = super::super::answer::Answer::of(&problem, &State::told(&problem), &[]);
    println!(
        "planned {} of 1000 in {:?}",
        answer.in_time,
        since.elapsed()
    );
    assert!(
        answer.in_time > 100 && answer.not_in_time > 100,
        "{}",
        answer.in_time
    );
    let since = std::time::Instant::now();
    let outcome = run(&problem, Truth::Seeded(1), problem.deadline / 20.0);
    let moved = outcome.moved.iter().flatten().count();
    println!("{moved} moved in a simulation of {:?}", since.elapsed());
    assert!(moved * 10 > answer.in_time * 8, "{moved}");
}
