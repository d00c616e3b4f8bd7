//! How good the order is: beside every other one, and with more to go over.

use super::super::problem::{COUNTED_ON, Problem};
use super::super::schedule::{Making, Schedule};
use super::super::state::State;
use super::*;

/// What the best of all orders brings, of units of one priority.
fn best_of_all(problem: &Problem, state: &State) -> f64 {
    fn deeper(making: &Making<'_>, open: &[usize], brought: f64, best: &mut f64) {
        *best = best.max(brought);
        let hope: f64 = open.iter().map(|unit| making.problem.weight(*unit)).sum();
        if brought + hope <= *best {
            return;
        }
        for unit in open {
            let mut with = making.clone();
            let rest: Vec<usize> = open.iter().copied().filter(|u| u != unit).collect();
            if with.place(*unit, making.problem.deadline) {
                deeper(&with, &rest, brought + making.problem.weight(*unit), best);
            }
        }
    }
    let units: Vec<usize> = (0..problem.units.len()).collect();
    let mut best = 0.0;
    let making = Making::new(problem, state, COUNTED_ON);
    deeper(&making, &units, 0.0, &mut best);
    best
}

#[test]
fn few_machines_move_nearly_as_well_as_in_the_best_of_all_orders() {
    let (mut cases, mut equal, mut least, mut sums) = (0_u32, 0_u32, 1.0_f64, (0.0, 0.0));
    for seed in seeds(1_000) {
        let mut all = any(seed);
        all.machines.truncate(6);
        for machine in &mut all.machines {
            machine.priority = 0;
        }
        let problem = problem(&all);
        let state = State::told(&problem);
        let schedule = Schedule::make(&problem, &state, &[]);
        let planned: f64 = schedule.worth(&problem).0.iter().sum();
        let best = best_of_all(&problem, &state);
        assert!(planned <= best + 1e-9, "seed {seed}: {planned} of {best}");
        if best > 0.0 {
            cases += 1;
            equal += u32::from(planned >= best - 1e-9);
            least = least.min(planned / best);
            sums = (sums.0 + planned, sums.1 + best);
        }
    }
    let together = sums.0 / sums.1;
    println!(
        "{equal} of {cases} as good as the best order; at worst {least:.3}, together {together:.5}"
    );
    if are_the_usual() {
        assert!(f64::from(equal) >= 0.98 * f64::from(cases) && together > 0.99 && least >= 0.5);
    }
}

#[test]
fn as_many_machines_of_one_weight_move_over_one_link_as_in_the_best_order() {
    for seed in seeds(1_000) {
        let rng = &mut Rng::new(seed);
        let mut all = simple(rng, 6);
        for machine in &mut all.machines {
            machine.weight = 1.0;
        }
        let problem = problem(&all);
        let state = State::told(&problem);
        let planned: f64 = Schedule::make(&problem, &state, &[])
            .worth(&problem)
            .0
            .iter()
            .sum();
        let best = best_of_all(&problem, &state);
        assert!(
            planned >= best - 1e-9,
            "{planned} of {best}: seed {seed} (run it alone with DISKFERRY_SEED={seed})"
        );
    }
}

#[test]
fn a_faster_link_never_moves_fewer_of_one_weight_where_there_is_nothing_else_to_wait_for() {
    for seed in seeds(10_000) {
        let rng = &mut Rng::new(seed);
        let count = rng.between(1, 13);
        let mut all = simple(rng, count);
        for machine in &mut all.machines {
            machine.weight = 1.0;
        }
        let faster = between(rng, 1.01, 4.0);
        let moved = |all: &Evacuation| {
            let problem = problem(all);
            let schedule = Schedule::make(&problem, &State::told(&problem), &[]);
            schedule.in_time.iter().filter(|in_time| **in_time).count()
        };
        let before = moved(&all);
        let bandwidth = all.links[0].bandwidth.rate().expect("a rate");
        all.links[0].bandwidth = figure(bandwidth * faster);
        let after = moved(&all);
        assert!(
            after >= before,
            "{after} with {faster} times the bandwidth, {before} before: seed {seed} (run it alone with \
             DISKFERRY_SEED={seed})"
        );
    }
}

#[test]
fn where_there_is_more_than_a_link_to_wait_for_a_faster_one_seldom_moves_less() {
    let (mut less, mut cases) = (0_u32, 0_u32);
    for seed in seeds(3_000) {
        let mut all = any(seed);
        let worth = |all: &Evacuation| {
            let problem = problem(all);
            Schedule::make(&problem, &State::told(&problem), &[]).worth(&problem)
        };
        let before = worth(&all);
        for link in &mut all.links {
            link.bandwidth = figure(link.bandwidth.rate().expect("a rate") * 1.3);
        }
        less += u32::from(worth(&all) < before);
        cases += 1;
    }
    println!("less moved over faster links in {less} of {cases} cases");
    assert!(
        !are_the_usual() || f64::from(less) <= 0.01 * f64::from(cases),
        "{less} of {cases}"
    );
}
