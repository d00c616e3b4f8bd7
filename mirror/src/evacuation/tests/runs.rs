//! What holds while a plan is carried out in worlds that are not as it was told.

use super::super::conductor::{Action, Conductor, Phase, Seen};
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
    if are_the_usual() {
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
fn a_link_that_was_lost_for_a_while_is_used_again_as_soon_as_it_is_back() {
    for share in [1.0, 0.8] {
        let machines = (0..8).map(|n| machine(&format!("m{n}"), 10.0 * GB, MB));
        let mut all = evacuation(1400.0, 100.0 * MB, machines.collect());
        all.links[0].share = share;
        let told = problem(&all);
        let mut broken = told.clone();
        let carried = told.resources[0].capacity.at(0.0).0;
        broken.resources[0].capacity.then(300.0, 0.0);
        broken.resources[0].capacity.then(420.0, carried);
        let outcome = super::super::world::run_told(&told, &broken, 5.0);
        // Of the time without it nothing comes back, and no more than a tenth of the rest is lost.
        let took = 8.0 * (10.0 * GB / (carried - MB)) * 1.1 + 120.0;
        let ends = outcome.moved.iter().map(|at| at.unwrap_or(f64::INFINITY));
        let end = ends.fold(0.0, f64::max);
        assert!(end < took, "{end} of {took}: {outcome:?}");
    }
}

#[test]
fn a_machine_that_fails_again_and_again_is_given_up_and_nobody_waits_for_it() {
    let mut app = machine("app", GB, 0.0);
    app.after = vec!["db".to_owned()];
    let db = machine("db", GB, 0.0);
    let all = evacuation(
        10_000.0,
        100.0 * MB,
        vec![db, app, machine("mail", GB, 0.0)],
    );
    let mut conductor = Conductor::new(problem(&all), 5.0);
    let seen = |phase| Seen {
        phase,
        left: if phase == Phase::Waiting { GB } else { 0.0 },
        done: 0.0,
        sent: 0.0,
        route: None,
    };
    let mut phases = [Phase::Waiting; 3];
    let (mut begun, mut now) = ([0; 3], 0.0);
    while !conductor.is_over() || now == 0.0 {
        let actions = conductor.step(now, &phases.map(seen));
        for action in actions {
            match action {
                Action::Start { machine, .. } => {
                    begun[machine] += 1;
                    // What was begun of the database ends by itself.
                    let ends = machine == 0;
                    phases[machine] = if ends { Phase::Failed } else { Phase::InStep };
                    if ends {
                        conductor.failed(0, now);
                    }
                }
                Action::CutOver { machine } => phases[machine] = Phase::Moved,
                Action::Rate { .. } => {}
            }
        }
        if phases[0] == Phase::Failed {
            phases[0] = Phase::Waiting;
        }
        now += 1.0;
        assert!(now < 10_000.0, "{phases:?}");
    }
    assert_eq!(begun[0], 5);
    assert_eq!(phases[2], Phase::Moved);
    // It may be copied already, but it stays where it is.
    assert_ne!(phases[1], Phase::Moved);
    assert!(now > 150.0, "it was tried again too soon: {now}");
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
