//! What to do now: which machine begins, how fast each copies, which switches over. It is told how moves stand and what
//! time it is, and learns from that what links carry and machines write.
//!
//! Machine. `diskferry evacuate` carries its actions out at servers, [`super::world`] at machines and links that it makes up.
//! It never ends a move, and a machine that has begun is never given up for another one.

use super::problem::{COUNTED_ON, Problem};
use super::schedule::Schedule;
use super::state::{Standing, State};
use super::table::Table;

/// Seconds after which about two thirds of what is known is new.
const MEMORY: f64 = 20.0;
/// Figures are taken over at least so many seconds.
const SPAN: f64 = 1.0;
/// A link is taken for full where it brings so much of what was asked of it.
const FULL: f64 = 0.95;
/// For so many seconds what was measured of a link says something of now.
const FRESH: f64 = 10.0;
/// A link is taken for what was told if what is measured comes to this share of it.
const AS_TOLD: f64 = 0.95;
/// A link is never taken for more than so many times what was told.
const MOST: f64 = 8.0;
/// By how much more is tried where all that was asked for came.
const PROBE: f64 = 1.25;
/// After so many failures a machine is given up.
const TRIES: u32 = 5;
/// Seconds until the second try; twice that until the third, and so on.
const WAIT: f64 = 10.0;
/// A rate is changed only if it is off by more.
const RATE_OFF: f64 = 0.005;
/// Of what makes it worth to begin, what rounding may take.
const ROUNDING: f64 = 0.99;

/// How a machine's move stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is none.
    Waiting,
    /// It is copied.
    Copying,
    /// The target follows.
    InStep,
    /// It was told to switch over, and has not yet.
    Switching,
    /// It runs at the target.
    Moved,
    /// The move ended, and the machine stays.
    Failed,
}

/// Figures of a machine's move.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// How it stands.
    pub phase: Phase,
    /// Bytes that have yet to travel, as far as is known or was told.
    pub left: f64,
    /// Bytes of disk that are durable at the target, all together.
    pub done: f64,
    /// Bytes on the wire, all together.
    pub sent: f64,
    /// Which route it takes, of one that others began.
    pub route: Option<usize>,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Begin to move a machine.
    Start {
        /// Which.
        machine: usize,
        /// Over which of its routes.
        route: usize,
        /// Bytes a second that its copy may read.
        rate: Option<u64>,
    },
    /// From now on its copy may read so many bytes a second; `None` for as many as it can.
    Rate {
        /// Which.
        machine: usize,
        /// Bytes a second.
        rate: Option<u64>,
    },
    /// Have it switch over.
    CutOver {
        /// Which.
        machine: usize,
    },
}

/// What was seen of a machine, and what it was told.
#[derive(Clone, Debug, Default)]
struct Watched {
    /// Bytes a second that travel because they are written, as measured.
    load: f64,
    at: Option<(f64, Seen)>,
    failures: u32,
    /// Whether it was told a rate, and which; `None` for no limit.
    told: bool,
    rate: Option<u64>,
    /// Whether its copy may read as fast as it can, or as the link's share lets it.
    first: bool,
}

/// How much of a figure that was taken over so many seconds is taken into the old one.
fn new(span: f64) -> f64 {
    1.0 - (-span / MEMORY).exp()
}

/// What a link brought lately.
#[derive(Clone, Copy, Debug, Default)]
struct Brought {
    rate: f64,
    /// Over how many seconds.
    span: f64,
    /// Whether somebody was given all that there is.
    busy: bool,
    /// Whether that came.
    held: bool,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Conductor {
    problem: Problem,
    state: State,
    schedule: Schedule,
    watched: Vec<Watched>,
    /// Seconds between two plans.
    every: f64,
    planned: Option<f64>,
    /// When links were looked at,
    looked: f64,
    /// and when each of them was last given all that it carries.
    busy: Vec<f64>,
    /// Whether something happened that a plan does not know.
    upset: bool,
}

impl Conductor {
    /// For that problem, with a new plan every so many seconds.
    #[must_use]
    pub fn new(problem: Problem, every: f64) -> Self {
        let machines = problem.machines.iter();
        let watched = machines.map(|told| Watched {
            load: told.load,
            ..Watched::default()
        });
        Self {
            watched: watched.collect(),
            looked: 0.0,
            busy: vec![f64::NEG_INFINITY; problem.lines.len()],
            state: State::told(&problem),
            problem,
            schedule: Schedule::default(),
            every,
            planned: None,
            upset: false,
        }
    }

    /// What is being done.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The newest plan.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Whether nothing moves any more, and nothing will.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let stuck = self.stuck();
        // A link that was bad may become better, and a plan with it.
        let mut links = self.state.measured.iter();
        let hope = self.state.now < self.problem.deadline && links.any(|share| *share < AS_TOLD);
        let mut planned = vec![false; stuck.len()];
        for unit in &self.schedule.order {
            planned[*unit] = true;
        }
        self.problem
            .units
            .iter()
            .enumerate()
            .all(|(unit, members)| {
                members.members.iter().all(|machine| {
                    let one = &self.state.machines[*machine];
                    match one.standing {
                        Standing::Moved | Standing::Out => true,
                        Standing::Waiting => stuck[unit] || !(planned[unit] || hope),
                        Standing::InStep => stuck[unit],
                        Standing::Copying | Standing::Switching => false,
                    }
                })
            })
    }

    /// By unit: whether it cannot switch over any more, as one that it needs does not move.
    #[must_use]
    pub fn stuck(&self) -> Vec<bool> {
        let late = self.state.now >= self.problem.deadline;
        let mut stuck = Vec::with_capacity(self.problem.units.len());
        for unit in &self.problem.units {
            let mut members = unit.members.iter();
            let here = members.any(|machine| match self.state.machines[*machine].standing {
                Standing::Out => true,
                Standing::Waiting => late,
                _ => false,
            });
            let before = unit.after.iter().any(|needed| stuck[*needed]);
            stuck.push(here || before);
        }
        stuck
    }

    /// When a machine is planned to begin next, or may be tried again; infinite if there is none.
    #[must_use]
    pub fn next(&self) -> f64 {
        let bookings = self.schedule.bookings.iter().flatten();
        let starts = bookings.map(|b| b.start.max(self.state.machines[b.machine].from));
        let later = starts.filter(|at| *at > self.state.now);
        later.fold(f64::INFINITY, f64::min)
    }

    /// Look at how everything stands; what is to be done now.
    pub fn step(&mut self, now: f64, seen: &[Seen]) -> Vec<Action> {
        self.look(now, seen);
        let mut actions = Vec::new();
        self.cut_over(&mut actions);
        self.allot(&mut actions);
        actions
    }

    /// Look at how everything stands, and plan if it is time for that.
    pub fn look(&mut self, now: f64, seen: &[Seen]) {
        self.state.now = now;
        self.learn_links(now, seen);
        self.looked = now;
        for (machine, seen) in seen.iter().enumerate() {
            self.learn(machine, now, *seen);
        }
        let due = self.planned.is_none_or(|at| now - at >= self.every);
        if due || self.upset {
            self.plan();
            self.planned = Some(now);
            self.upset = false;
            // Rates are said again with each plan: a machine's disks share its rate by what is left of each.
            self.watched.iter_mut().for_each(|one| one.told = false);
        }
    }

    /// A machine could not be begun, or its move ended by itself. It is tried again later, until it is given up.
    pub fn failed(&mut self, machine: usize, now: f64) {
        let (one, watched) = (
            &mut self.state.machines[machine],
            &mut self.watched[machine],
        );
        watched.failures += 1;
        (watched.told, watched.first) = (false, false);
        one.from = now + WAIT * f64::from(1 << watched.failures.min(8)) / 2.0;
        one.route = None;
        one.standing = if watched.failures >= TRIES {
            Standing::Out
        } else {
            Standing::Waiting
        };
        self.upset = true;
    }

    /// A new plan, unless the old one brings more.
    fn plan(&mut self) {
        let known = self.schedule.order.clone();
        let mut made = Schedule::make(&self.problem, &self.state, &known);
        if !known.is_empty() {
            let kept = Schedule::again(&self.problem, &self.state, (&known, COUNTED_ON));
            if kept.worth(&self.problem) > made.worth(&self.problem) {
                made = kept;
            }
        }
        self.schedule = made;
    }

    fn learn(&mut self, machine: usize, now: f64, seen: Seen) {
        let one = &mut self.state.machines[machine];
        let watched = &mut self.watched[machine];
        if one.standing == Standing::Out {
            return;
        }
        one.route = one.route.or(seen.route);
        let standing = match seen.phase {
            Phase::Waiting => Standing::Waiting,
            Phase::Copying => Standing::Copying,
            Phase::InStep => Standing::InStep,
            Phase::Switching => Standing::Switching,
            Phase::Moved => Standing::Moved,
            Phase::Failed => {
                let again = watched.at.is_some_and(|(_, b)| b.phase == Phase::Failed);
                watched.at = Some((now, seen));
                if !again {
                    self.failed(machine, now);
                }
                return;
            }
        };
        self.upset |=
            standing == Standing::Moved && one.route.is_none() && one.standing != standing;
        one.standing = standing;
        if standing == Standing::Waiting {
            return;
        }
        one.left = seen.left;
        let Some((at, before)) = watched.at.filter(|(_, b)| b.phase != Phase::Failed) else {
            watched.at = Some((now, seen));
            return;
        };
        let span = now - at;
        if span < SPAN {
            return;
        }
        watched.at = Some((now, seen));
        let (done, sent) = (seen.done - before.done, seen.sent - before.sent);
        if done < 0.0 || sent < 0.0 {
            return;
        }
        // What travels because it was written: what is durable now or still left, and was not left before.
        // It comes in bursts that even out, so only the mean of it is kept from being less than nothing.
        let load = (done + seen.left - before.left) / span;
        watched.load += new(span) * (load - watched.load);
        one.load = watched.load.max(0.0);
        if done > 0.0 && sent > 0.0 && before.phase == Phase::Copying {
            one.gain += new(span) * ((done / sent).clamp(0.1, 1000.0) - one.gain);
        }
    }

    /// A link is measured where a machine was let take all that there is. One that only met its own rate shows that
    /// there may be more.
    fn learn_links(&mut self, now: f64, seen: &[Seen]) {
        let mut sums = vec![Brought::default(); self.problem.lines.len()];
        for (machine, seen) in seen.iter().enumerate() {
            let (one, watched) = (&self.state.machines[machine], &self.watched[machine]);
            let (Some(route), Some((at, before))) = (one.route, watched.at) else {
                continue;
            };
            let span = now - at;
            if span < SPAN || before.phase == Phase::Failed {
                continue;
            }
            let line = self.problem.machines[machine].routes[route].line;
            let sum = &mut sums[line];
            sum.rate += (seen.sent - before.sent).max(0.0) / span;
            let copied = before.phase == Phase::Copying && seen.phase == Phase::Copying;
            sum.span = sum.span.max(span);
            sum.busy |= watched.first && copied;
            sum.held |= watched.met((seen.done - before.done) / span);
        }
        for (line, sum) in sums.iter().enumerate() {
            let told = self.problem.resources[line].capacity.at(now).0;
            if !sum.busy || told <= 0.0 {
                // What was measured once says less and less of now.
                let idle = now - self.busy[line].max(self.looked);
                let measured = &mut self.state.measured[line];
                if now - self.busy[line] > FRESH {
                    *measured += new(idle.max(0.0)) * (1.0 - *measured);
                }
                continue;
            }
            self.busy[line] = now;
            // What may not be used is not looked for.
            let shared = self.problem.lines[line].shared;
            let most = if shared { 1.0 } else { MOST };
            let measured = &mut self.state.measured[line];
            let mut share = sum.rate / told;
            if sum.held {
                // More than was told is only believed where nothing was limited.
                share = (share.max(*measured) * PROBE).min(measured.max(1.0));
            }
            *measured += new(sum.span) * (share.clamp(0.001, most) - *measured);
        }
    }

    /// Those of a unit switch over once all of them are in step and what comes before them has moved.
    fn cut_over(&mut self, actions: &mut Vec<Action>) {
        for unit in &self.problem.units {
            let standing = |machine: &usize| self.state.machines[*machine].standing;
            let there = |machine: &usize| {
                matches!(
                    standing(machine),
                    Standing::InStep | Standing::Switching | Standing::Moved
                )
            };
            let mut before = unit
                .members
                .iter()
                .flat_map(|m| &self.problem.machines[*m].after);
            if !unit.members.iter().all(there) || !before.all(|m| standing(m) == Standing::Moved) {
                continue;
            }
            let ready = unit
                .members
                .iter()
                .filter(|m| standing(m) == Standing::InStep);
            actions.extend(ready.map(|machine| Action::CutOver { machine: *machine }));
        }
    }

    /// Give each machine in its turn what it can use of what there is now, and begin with those for which enough is left.
    fn allot(&mut self, actions: &mut Vec<Action>) {
        let mut table = Table::new(&self.problem, &self.state);
        let mut given: Vec<(usize, f64)> = Vec::new();
        let mut held = vec![false; self.problem.lines.len()];
        for machine in self.schedule.turns.clone() {
            if let Some(rate) = self.turn(machine, (&mut table, &mut held)) {
                given.push((machine, rate));
            }
        }
        // What is not counted on is for those who come first. Who comes first of all on a link needs no limit, if nobody
        // else is given anything of it.
        let mut shares = vec![false; self.problem.lines.len()];
        for (machine, rate) in given {
            let told = &self.problem.machines[machine];
            let one = &self.state.machines[machine];
            let Some(route) = one.route.map(|route| &told.routes[route]) else {
                continue;
            };
            let rate = rate + table.rest(route, one.gain, (route.most - rate).max(0.0));
            let first = table.full[route.line] * NOTHING_LEFT >= table.spare[route.line];
            let before = std::mem::replace(&mut shares[route.line], true);
            let alone = first && !before && route.disks.is_empty();
            let free = alone && !self.problem.lines[route.line].shared;
            let copy = (rate * one.gain - one.load).max(rate * one.gain / 100.0);
            let wanted = (!free).then(|| super::needs::number(copy).max(1));
            let watched = &mut self.watched[machine];
            watched.first = first && rate < route.most * FULL;
            if watched.wants(wanted) {
                let rate = wanted;
                actions.push(Action::Rate { machine, rate });
            }
        }
        for action in actions.iter_mut() {
            let Action::Rate { machine, rate } = *action else {
                continue;
            };
            if self.state.machines[machine].standing != Standing::Waiting {
                continue;
            }
            let one = &mut self.state.machines[machine];
            one.standing = Standing::Copying;
            let route = one.route.unwrap_or_default();
            *action = Action::Start {
                machine,
                route,
                rate,
            };
        }
    }

    /// What a machine is given of the wire while it is copied, or from now on.
    fn turn(&mut self, machine: usize, (table, held): (&mut Table, &mut [bool])) -> Option<f64> {
        let told = &self.problem.machines[machine];
        let one = &mut self.state.machines[machine];
        match one.standing {
            Standing::Copying => {
                let route = &told.routes[one.route?];
                let writes = one.load / one.gain;
                Some(writes + table.give(route, one.gain, route.most - writes))
            }
            Standing::Waiting => {
                let booking = self.schedule.bookings[machine].as_ref()?;
                let route = &told.routes[booking.route];
                let early = held[route.line];
                held[route.line] = true;
                if self.state.now < one.from
                    || self.state.now >= self.problem.deadline
                    || (early && booking.start > self.state.now + 1e-6)
                {
                    return None;
                }
                let work = one.work(self.state.now);
                let offer = table.offer(route, one.gain).min(route.most);
                let nearer = offer * one.gain - one.load;
                let best = table.best(route, work.gain);
                if nearer < best * one.gain * super::ground::WORTH * ROUNDING || nearer <= 0.0 {
                    return None;
                }
                one.route = Some(booking.route);
                held[route.line] = early;
                self.watched[machine].told = false;
                Some(table.give(route, one.gain, route.most))
            }
            _ => None,
        }
    }
}

/// A link is used up if no more than this share of it is left.
const NOTHING_LEFT: f64 = 1e-6;

impl Watched {
    /// Whether it was as fast as it was allowed to be.
    #[expect(clippy::cast_precision_loss, reason = "a rate, to a few percent")]
    fn met(&self, rate: f64) -> bool {
        let limit = self.rate.filter(|_| self.told && self.first);
        limit.is_some_and(|limit| rate >= limit as f64 * FULL)
    }

    /// Whether it has to be told that rate.
    fn wants(&mut self, wanted: Option<u64>) -> bool {
        let same = match (self.rate, wanted) {
            _ if !self.told => false,
            (None, None) => true,
            #[expect(clippy::cast_precision_loss, reason = "a rate, to a few percent")]
            (Some(had), Some(wants)) => (had as f64 - wants as f64).abs() <= had as f64 * RATE_OFF,
            _ => false,
        };
        if !same {
            (self.told, self.rate) = (true, wanted);
        }
        !same
    }
}
