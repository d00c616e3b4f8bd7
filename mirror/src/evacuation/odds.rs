//! How likely a plan is to come true: many runs in worlds that were made up.
//!
//! Pure, from a seed.

use serde::Serialize;

use super::problem::Problem;
use super::world::{Truth, run};

/// Plans made in one run, about.
const PLANS: f64 = 20.0;

/// How it went in all runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Odds {
    /// So many.
    pub runs: u32,
    /// From that seed on.
    pub seed: u64,
    /// In so many of a hundred runs every machine was in time.
    pub all_in_time_percent: f64,
    /// How many machines were in time: of a hundred runs, ten had fewer,
    pub in_time_p10: usize,
    /// fifty,
    pub in_time_p50: usize,
    /// and ninety.
    pub in_time_p90: usize,
    /// In the order of the file.
    pub machines: Vec<Chance>,
}

/// How it went for a machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chance {
    /// Its name.
    pub machine: String,
    /// It was in time in so many of a hundred runs.
    pub in_time_percent: f64,
    /// In ten of a hundred runs it had moved after so many seconds; missing: it had not.
    pub p10_s: Option<u64>,
    /// In fifty.
    pub p50_s: Option<u64>,
    /// In ninety.
    pub p90_s: Option<u64>,
}

/// So many runs from `seed` on.
#[must_use]
pub fn odds(problem: &Problem, runs: u32, seed: u64) -> Odds {
    let every = (problem.deadline / PLANS).max(10.0);
    let outcomes: Vec<_> = (0..runs)
        .map(|number| {
            let truth = Truth::Seeded(seed.wrapping_add(u64::from(number)));
            run(problem, truth, every).moved
        })
        .collect();
    let in_time = |moved: &Option<f64>| moved.is_some_and(|at| at <= problem.deadline);
    let machines = problem.machines.iter().enumerate().map(|(number, told)| {
        let moved = outcomes.iter().map(|outcome| outcome[number]);
        let mut ends: Vec<f64> = moved
            .clone()
            .map(|moved| moved.unwrap_or(f64::INFINITY))
            .collect();
        ends.sort_by(f64::total_cmp);
        let at = |percent| {
            let end = *part(&ends, percent)?;
            end.is_finite().then(|| super::needs::number(end.ceil()))
        };
        Chance {
            machine: told.name.clone(),
            in_time_percent: percent(moved.filter(|moved| in_time(moved)).count(), ends.len()),
            p10_s: at(10),
            p50_s: at(50),
            p90_s: at(90),
        }
    });
    let machines: Vec<_> = machines.collect();
    let counts = outcomes
        .iter()
        .map(|outcome| outcome.iter().filter(|moved| in_time(moved)).count());
    let mut counts: Vec<usize> = counts.collect();
    counts.sort_unstable();
    let all = counts
        .iter()
        .filter(|count| **count == machines.len())
        .count();
    let of = |percent| part(&counts, percent).copied().unwrap_or(0);
    Odds {
        runs,
        seed,
        all_in_time_percent: percent(all, counts.len()),
        in_time_p10: of(10),
        in_time_p50: of(50),
        in_time_p90: of(90),
        machines,
    }
}

/// The one below which so many of a hundred lie.
fn part<T>(sorted: &[T], percent: usize) -> Option<&T> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((sorted.len() * percent).div_ceil(100).clamp(1, last + 1) - 1)
}

#[expect(clippy::cast_precision_loss, reason = "numbers of runs")]
fn percent(part: usize, all: usize) -> f64 {
    part as f64 * 100.0 / (all as f64).max(1.0)
}
