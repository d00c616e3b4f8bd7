//! Which units move, in which order, and when: what of a problem can be done, from how it stands.
//!
//! Pure and deterministic. The rule is explained in `docs/evacuation.md`, "Which come first": priorities strictly one after
//! another; within one, what weighs most for the time it takes (Smith), each kept only if it is in time (Moore and
//! Hodgson), then a few orders and exchanges are tried. It is no optimum.

use super::ground::{Ground, Piece, Trial};
use super::problem::{COUNTED_ON, Problem, SWITCHOVER};
use super::state::{Standing, State};

/// Exchanges are tried among at most so many units of one priority,
const FEW: usize = 40;
/// and at most so many of them.
const EXCHANGES: usize = 300;

/// When a machine moves, and over what.
#[derive(Clone, Debug)]
pub struct Booking {
    /// The machine.
    pub machine: usize,
    /// Which of its routes.
    pub route: usize,
    /// The copy begins; for one that has begun, now.
    pub start: f64,
    /// The target is in step.
    pub in_step: f64,
    /// It switches over.
    pub cut: f64,
    /// It has moved.
    pub moved: f64,
    /// What it takes of the link until it is in step.
    pub pieces: Vec<Piece>,
    /// What it takes of the link from then until it switches over.
    pub follows: f64,
}

impl Booking {
    /// Bytes on the wire.
    #[must_use]
    pub fn wire(&self) -> f64 {
        let copied = self.pieces.iter().map(|p| p.rate * (p.to - p.from));
        copied.sum::<f64>() + self.follows * (self.cut - self.in_step)
    }

    /// The most bytes a second.
    #[must_use]
    pub fn peak(&self) -> f64 {
        let rates = self.pieces.iter().map(|piece| piece.rate);
        rates.fold(self.follows, f64::max)
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// Units in the order in which they are given what there is.
    pub order: Vec<usize>,
    /// Machines in that order.
    pub turns: Vec<usize>,
    /// By machine.
    pub bookings: Vec<Option<Booking>>,
    /// By machine: whether it moves by the deadline, or has.
    pub in_time: Vec<bool>,
}

/// What a plan is worth: by priority, highest first, the weight that moves in time.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub struct Worth(pub Vec<f64>);

/// A schedule that is being made.
#[derive(Clone)]
pub(super) struct Making<'a> {
    pub(super) problem: &'a Problem,
    pub(super) state: &'a State,
    pub(super) ground: Ground,
    pub(super) schedule: Schedule,
    /// When each unit has moved, of those that are placed.
    placed: Vec<Option<f64>>,
}

impl<'a> Making<'a> {
    /// Nothing is planned yet; what has begun takes what its writes need.
    pub(super) fn new(problem: &'a Problem, state: &'a State, trust: f64) -> Self {
        let lines = 0..problem.lines.len();
        let trust: Vec<_> = lines.map(|line| state.trust(line) * trust).collect();
        let mut ground = Ground::new(problem, &trust);
        for (machine, one) in state.machines.iter().enumerate() {
            let Some(route) = one
                .route
                .map(|route| &problem.machines[machine].routes[route])
            else {
                continue;
            };
            ground.room[route.target] -= problem.machines[machine].room;
            if let Some(piece) = one.writes(state.now) {
                ground.take(route, one.gain, &piece);
            }
        }
        let count = problem.machines.len();
        let machines = problem.machines.iter().zip(&state.machines);
        let schedule = Schedule {
            order: Vec::new(),
            turns: Vec::new(),
            bookings: vec![None; count],
            in_time: machines
                .map(|(_, one)| one.standing == Standing::Moved)
                .collect(),
        };
        let units = problem.units.iter();
        let placed = units.map(|unit| {
            let mut members = unit.members.iter().map(|m| &state.machines[*m]);
            members
                .all(|one| one.standing == Standing::Moved)
                .then_some(state.now)
        });
        Self {
            problem,
            state,
            ground,
            placed: placed.collect(),
            schedule,
        }
    }

    pub(super) fn is_placed(&self, unit: usize) -> bool {
        self.placed[unit].is_some()
    }

    /// Members that have not moved, in the order in which they are given what there is: those that have begun, then
    /// those whose waiting for the others costs least. By what was told, so that a later plan does not turn it round.
    fn members(&self, unit: usize) -> Vec<usize> {
        let members = self.problem.units[unit].members.iter().copied();
        let mut members: Vec<_> = members
            .filter(|m| self.state.machines[*m].standing != Standing::Moved)
            .collect();
        let heat = |machine: usize| {
            let told = &self.problem.machines[machine];
            told.load / told.left.max(1.0)
        };
        let waits = |machine: usize| self.state.machines[machine].route.is_none();
        members.sort_by(|a, b| {
            let heat = heat(*a).total_cmp(&heat(*b)).then(a.cmp(b));
            waits(*a).cmp(&waits(*b)).then(heat)
        });
        members
    }

    /// Whether all that it depends on is placed.
    fn ready(&self, unit: usize) -> bool {
        let mut after = self.problem.units[unit].after.iter();
        after.all(|needed| self.is_placed(*needed))
    }

    /// Place a unit behind all that is placed; whether it moves by `by`. If not, nothing has changed.
    pub(super) fn place(&mut self, unit: usize, by: f64) -> bool {
        let members = self.members(unit);
        let movable = |m: &usize| self.state.machines[*m].standing != Standing::Out;
        if !self.ready(unit) || !members.iter().all(movable) {
            return false;
        }
        let begun = members
            .iter()
            .any(|m| self.state.machines[*m].route.is_some());
        let before = (members.len() > 1 || begun).then(|| self.ground.clone());
        let placed = self.place_all(unit, &members, by);
        if let Some(ground) = before.filter(|_| !placed) {
            self.ground = ground;
        }
        placed
    }

    fn place_all(&mut self, unit: usize, members: &[usize], by: f64) -> bool {
        for machine in members {
            self.give_back_writes(*machine);
        }
        let mut found = Vec::new();
        for machine in members {
            let Some((route, trial)) = self.best_route(*machine, by) else {
                return false;
            };
            if members.len() == 1 && trial.in_step + SWITCHOVER > by {
                return false;
            }
            self.take(*machine, route, &trial, members.len() > 1);
            found.push((*machine, route, trial));
        }
        let after = self.problem.units[unit].after.iter();
        let before = after.filter_map(|needed| self.placed[*needed]);
        let steps = found.iter().map(|(_, _, trial)| trial.in_step);
        let cut = before.chain(steps).fold(self.state.now, f64::max);
        let moved = cut + SWITCHOVER;
        if moved > by || !self.settle(&found, cut) {
            if members.len() == 1 {
                let (machine, route, trial) = &found[0];
                self.untake(*machine, *route, trial);
            }
            return false;
        }
        for (machine, route, trial) in found {
            let one = &self.state.machines[machine];
            self.schedule.in_time[machine] = moved <= self.problem.deadline;
            self.schedule.bookings[machine] = Some(Booking {
                machine,
                route,
                start: trial.start,
                in_step: trial.in_step,
                cut,
                moved,
                pieces: trial.pieces,
                follows: one.load / one.gain,
            });
        }
        self.placed[unit] = Some(moved);
        self.schedule.order.push(unit);
        self.schedule.turns.extend(members);
        true
    }

    fn give_back_writes(&mut self, machine: usize) {
        let one = &self.state.machines[machine];
        let route = one.route.map(|r| &self.problem.machines[machine].routes[r]);
        if let (Some(route), Some(mut piece)) = (route, one.writes(self.state.now)) {
            piece.rate = -piece.rate;
            self.ground.take(route, one.gain, &piece);
        }
    }

    /// The route on which it is in step first.
    fn best_route(&self, machine: usize, by: f64) -> Option<(usize, Trial)> {
        let (told, one) = (
            &self.problem.machines[machine],
            &self.state.machines[machine],
        );
        let work = one.work(self.state.now);
        let mut best: Option<(usize, Trial)> = None;
        for (number, route) in told.routes.iter().enumerate() {
            let possible = match one.route {
                Some(taken) => taken == number,
                None => self.ground.room[route.target] >= told.room,
            };
            if !possible {
                continue;
            }
            let Some(trial) = self.ground.fit_by(route, &work, by) else {
                continue;
            };
            if best.as_ref().is_none_or(|(_, b)| trial.in_step < b.in_step) {
                best = Some((number, trial));
            }
        }
        best
    }

    /// Take what it needs until it is in step, and what follows for as long as anybody plans if others are to be
    /// waited for.
    fn take(&mut self, machine: usize, route: usize, trial: &Trial, waits: bool) {
        let one = &self.state.machines[machine];
        let told = &self.problem.machines[machine];
        let begun = one.route.is_some();
        let way = &told.routes[route];
        for piece in &trial.pieces {
            self.ground.take(way, one.gain, piece);
        }
        if waits {
            let piece = self.waiting(machine, trial.in_step, f64::INFINITY);
            self.ground.take(way, one.gain, &piece);
        }
        if !begun {
            self.ground.room[way.target] -= told.room;
        }
    }

    fn untake(&mut self, machine: usize, route: usize, trial: &Trial) {
        let one = &self.state.machines[machine];
        let told = &self.problem.machines[machine];
        let way = &told.routes[route];
        for piece in &trial.pieces {
            let mut piece = *piece;
            piece.rate = -piece.rate;
            self.ground.take(way, one.gain, &piece);
        }
        self.ground.room[way.target] += told.room;
    }

    fn waiting(&self, machine: usize, from: f64, to: f64) -> Piece {
        let one = &self.state.machines[machine];
        let rate = one.load / one.gain;
        Piece { from, to, rate }
    }

    /// Now that it is known when they switch over: whether what is written until then can travel. It is taken.
    fn settle(&mut self, found: &[(usize, usize, Trial)], cut: f64) -> bool {
        for (machine, route, trial) in found {
            let one = &self.state.machines[*machine];
            let way = &self.problem.machines[*machine].routes[*route];
            if found.len() > 1 {
                let mut piece = self.waiting(*machine, trial.in_step, f64::INFINITY);
                piece.rate = -piece.rate;
                self.ground.take(way, one.gain, &piece);
            }
        }
        for (machine, route, trial) in found {
            let one = &self.state.machines[*machine];
            let way = &self.problem.machines[*machine].routes[*route];
            let work = one.work(self.state.now);
            let carries = self.ground.carries(way, &work, (trial.in_step, cut));
            if !carries && one.route.is_none() {
                return false;
            }
            let piece = self.waiting(*machine, trial.in_step, cut);
            self.ground.take(way, one.gain, &piece);
        }
        true
    }

    /// How long a unit takes if nothing else moves, in seconds of the links that it uses.
    fn effort(&self, unit: usize) -> f64 {
        let members = self.problem.units[unit].members.iter();
        let each = members.map(|machine| {
            let one = &self.state.machines[*machine];
            let work = one.work(self.state.now);
            let routes = self.problem.machines[*machine].routes.iter();
            let nearer = routes.map(|r| self.ground.best(r, &work) * one.gain - one.load);
            let nearer = nearer.fold(0.0, f64::max);
            if nearer > 0.0 {
                one.left / nearer
            } else {
                f64::INFINITY
            }
        });
        each.sum::<f64>() + SWITCHOVER
    }

    /// A unit and what it depends on, as far as that is not placed, in the order in which they switch over.
    fn bundle(&self, unit: usize) -> Vec<usize> {
        let (mut all, mut open) = (Vec::new(), vec![unit]);
        while let Some(unit) = open.pop() {
            if !self.is_placed(unit) && !all.contains(&unit) {
                all.push(unit);
                open.extend(&self.problem.units[unit].after);
            }
        }
        all.sort_unstable();
        all
    }

    /// Place a unit with what it depends on, all in time or none.
    fn place_bundle(&mut self, unit: usize) -> bool {
        let bundle = self.bundle(unit);
        let deadline = self.problem.deadline;
        if let [one] = bundle[..] {
            return self.place(one, deadline);
        }
        let (count, turns) = (self.schedule.order.len(), self.schedule.turns.len());
        let ground = self.ground.clone();
        if bundle.iter().all(|unit| self.place(*unit, deadline)) {
            return true;
        }
        self.ground = ground;
        for unit in self.schedule.order.split_off(count) {
            self.placed[unit] = None;
        }
        for machine in self.schedule.turns.split_off(turns) {
            self.schedule.bookings[machine] = None;
            self.schedule.in_time[machine] = false;
        }
        false
    }

    /// What is in time, and as a second thought how early.
    fn value(&self, units: &[usize]) -> (f64, f64) {
        let placed = units.iter().filter(|unit| self.is_placed(**unit));
        placed.fold((0.0, 0.0), |(weight, early), unit| {
            let one = self.problem.weight(*unit);
            let moved = self.placed[*unit].unwrap_or(0.0);
            (weight + one, early - one * moved)
        })
    }

    fn placing(&self, order: &[usize]) -> Self {
        let mut trial = self.clone();
        for unit in order {
            trial.place_bundle(*unit);
        }
        trial
    }

    /// The units of one priority, as many of them as can be.
    fn place_class(&mut self, units: &[usize], known: &[usize]) {
        let mut effort = vec![0.0; self.problem.units.len()];
        for unit in units {
            let bundle = self.bundle(*unit);
            effort[*unit] = bundle.iter().map(|unit| self.effort(*unit)).sum();
        }
        let weight = |unit: usize| self.problem.weight(unit);
        let sorted = |key: &dyn Fn(usize) -> f64| {
            let mut order = units.to_vec();
            order.sort_by(|a, b| key(*a).total_cmp(&key(*b)).then(a.cmp(b)));
            order
        };
        let mut orders = vec![
            sorted(&|unit| effort[unit] / weight(unit)),
            sorted(&|unit| effort[unit]),
            sorted(&|unit| -weight(unit)),
        ];
        if !known.is_empty() {
            let mut rank = vec![usize::MAX; self.problem.units.len()];
            for (number, unit) in known.iter().enumerate() {
                rank[*unit] = number;
            }
            let mut order = orders[0].clone();
            order.sort_by_key(|unit| rank[*unit]);
            orders.truncate(1);
            orders.insert(0, order);
        }
        orders.dedup();
        let mut best: Option<(Self, Vec<usize>)> = None;
        for order in orders {
            let trial = self.placing(&order);
            let better = best.as_ref().is_none_or(|(b, _)| {
                let ((weight, early), (had, was)) = (trial.value(units), b.value(units));
                // A plan that is known is left only for one that brings more.
                weight > had + 1e-9 || (known.is_empty() && weight > had - 1e-9 && early > was)
            });
            let all = units.iter().all(|unit| trial.is_placed(*unit));
            if better {
                best = Some((trial, order));
            }
            if all {
                break;
            }
        }
        if let Some((found, order)) = best {
            *self = self.exchanged(units, found, order);
        }
    }

    /// Try what was left out in the place of what was not.
    fn exchanged(&self, units: &[usize], found: Self, order: Vec<usize>) -> Self {
        let (mut best, mut order, mut tried) = (found, order, 0);
        if units.len() > FEW {
            return best;
        }
        loop {
            let out = |unit: &usize| !best.is_placed(*unit);
            let left_out: Vec<_> = (0..order.len()).filter(|at| out(&order[*at])).collect();
            let mut better = None;
            'tries: for from in left_out {
                for to in 0..order.len() {
                    if to == from || tried == EXCHANGES {
                        continue;
                    }
                    tried += 1;
                    let mut other = order.clone();
                    other.swap(from, to);
                    let trial = self.placing(&other);
                    if trial.value(units).0 > best.value(units).0 + 1e-9 {
                        better = Some((trial, other));
                        break 'tries;
                    }
                }
            }
            let Some((trial, other)) = better else {
                return best;
            };
            (best, order) = (trial, other);
        }
    }
}

impl Schedule {
    /// What can be done of `problem` from `state` on. `known` is the order of an earlier plan.
    #[must_use]
    pub fn make(problem: &Problem, state: &State, known: &[usize]) -> Self {
        made(problem, state, known).schedule
    }

    /// The same units in the same order with other figures, by the horizon or never.
    #[must_use]
    pub fn again(problem: &Problem, state: &State, (order, trust): (&[usize], f64)) -> Self {
        let mut making = Making::new(problem, state, trust);
        for unit in order {
            making.place(*unit, problem.horizon());
        }
        making.schedule
    }

    /// What it is worth.
    #[must_use]
    pub fn worth(&self, problem: &Problem) -> Worth {
        let mut priorities: Vec<_> = problem.units.iter().map(|u| u.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let by_priority = priorities.iter().rev().map(|priority| {
            let units = problem.units.iter().filter(|u| u.priority == *priority);
            let members = units.flat_map(|unit| &unit.members);
            let in_time = members.filter(|machine| self.in_time[**machine]);
            in_time
                .map(|machine| problem.machines[*machine].weight)
                .sum()
        });
        Worth(by_priority.collect())
    }
}

/// The same with what is left free.
pub(super) fn made<'a>(problem: &'a Problem, state: &'a State, known: &[usize]) -> Making<'a> {
    let mut making = Making::new(problem, state, COUNTED_ON);
    let count = problem.units.len();
    let begun = |unit: usize| {
        let mut members = problem.units[unit].members.iter();
        members.any(|machine| state.machines[*machine].route.is_some())
    };
    let mut priorities: Vec<_> = problem.units.iter().map(|u| u.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut late = Vec::new();
    for priority in priorities.into_iter().rev() {
        let of_class = |unit: &usize| problem.units[*unit].priority == priority;
        let open = (0..count).filter(|unit| of_class(unit) && !making.is_placed(*unit));
        let (mut running, waiting): (Vec<_>, Vec<_>) = open.partition(|unit| begun(*unit));
        running.sort_by_key(|unit| {
            let known = known.iter().position(|k| k == unit);
            (known.unwrap_or(usize::MAX), *unit)
        });
        for unit in running {
            if !making.place_bundle(unit) {
                late.push(unit);
            }
        }
        making.place_class(&waiting, known);
    }
    // What has begun and cannot be in time any more goes on with what nobody else can use.
    for unit in late {
        making.place(unit, problem.horizon());
    }
    making
}
