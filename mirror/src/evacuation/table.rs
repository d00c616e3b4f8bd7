//! What is free of links, hosts and targets at one moment, to be given to machines in their turn.
//!
//! Pure. Nothing is given twice: neither of what is counted on, nor of all that there is.

use super::problem::{COUNTED_ON, Problem, Route};
use super::state::State;

/// What is free at this moment.
pub(super) struct Table {
    /// Of what is counted on, of that which was measured,
    pub(super) free: Vec<f64>,
    /// and of all that was told or measured.
    pub(super) spare: Vec<f64>,
    /// The same before anything was given.
    pub(super) full: Vec<f64>,
    best: Vec<f64>,
}

impl Table {
    /// What is written has been taken.
    pub(super) fn new(problem: &Problem, state: &State) -> Self {
        let trust = |r: usize| state.measured.get(r).copied().unwrap_or(1.0);
        let links = problem.lines.len();
        let counted = |r: usize| if r < links { COUNTED_ON } else { 1.0 };
        let now = |r: usize| problem.resources[r].capacity.at(state.now).0;
        let all = 0..problem.resources.len();
        let all_told: Vec<_> = all.clone().map(|r| now(r) * trust(r).max(1.0)).collect();
        let mut table = Self {
            free: all.map(|r| now(r) * trust(r) * counted(r)).collect(),
            // Whoever comes first may always try what was told: so a link that was lost is seen to be back.
            spare: all_told.clone(),
            full: all_told,
            best: problem
                .resources
                .iter()
                .enumerate()
                .map(|(r, one)| one.capacity.greatest() * trust(r) * counted(r))
                .collect(),
        };
        for (machine, one) in state.machines.iter().enumerate() {
            let (Some(route), Some(piece)) = (one.route, one.writes(state.now)) else {
                continue;
            };
            let route = &problem.machines[machine].routes[route];
            for (resource, takes) in route.uses(one.gain) {
                table.free[resource] -= piece.rate * takes;
                table.spare[resource] -= piece.rate * takes;
            }
        }
        table
    }

    fn least(from: &[f64], route: &Route, gain: f64) -> f64 {
        let offers = route.uses(gain).map(|(r, takes)| from[r] / takes);
        offers.fold(f64::INFINITY, f64::min).max(0.0)
    }

    pub(super) fn offer(&self, route: &Route, gain: f64) -> f64 {
        Self::least(&self.free, route, gain)
    }

    pub(super) fn best(&self, route: &Route, gain: f64) -> f64 {
        Self::least(&self.best, route, gain).min(route.most)
    }

    pub(super) fn give(&mut self, route: &Route, gain: f64, most: f64) -> f64 {
        let rate = self.offer(route, gain).min(most).max(0.0);
        for (resource, takes) in route.uses(gain) {
            self.free[resource] -= rate * takes;
            self.spare[resource] -= rate * takes;
        }
        rate
    }

    pub(super) fn rest(&mut self, route: &Route, gain: f64, most: f64) -> f64 {
        let rate = Self::least(&self.spare, route, gain).min(most).max(0.0);
        for (resource, takes) in route.uses(gain) {
            self.spare[resource] -= rate * takes;
        }
        rate
    }
}
