//! Machines and links as they might be, made up from a seed: the conductor is tried on them.
//!
//! A fluid: bytes flow at rates that hold until something happens. Pure; the same seed is the same run. What is written
//! travels first, then copies share what is left of each link, host and target evenly, none above its own rate, which is
//! about what TCP does.

use serde::Serialize;

use super::conductor::{Action, Conductor, Phase, Seen};
use super::problem::{Problem, SWITCHOVER};
use super::steps::Steps;
use crate::chance::Rng;

/// Seconds for which a link carries the same.
const CALM: f64 = 300.0;

/// What is made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// All is as it was told.
    Exact,
    /// Figures are off as they usually are, and links break, from that seed.
    Seeded(u64),
}

/// How a run went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// By machine: when it had moved.
    pub moved: Vec<Option<f64>>,
    /// Bytes on each link.
    pub carried: Vec<f64>,
}

/// A machine as it is.
#[derive(Clone, Debug)]
struct Being {
    phase: Phase,
    left: f64,
    done: f64,
    sent: f64,
    load: f64,
    gain: f64,
    route: Option<usize>,
    /// Bytes a second that its copy may read.
    limit: f64,
    /// Bytes a second on the wire, of which so many because of what is written.
    flow: (f64, f64),
    /// When it has switched over.
    until: f64,
}

/// All of them.
struct World<'a> {
    problem: &'a Problem,
    capacity: Vec<Steps>,
    beings: Vec<Being>,
    carried: Vec<f64>,
}

/// How `problem` goes if it is carried out, with a new plan every so many seconds.
#[must_use]
pub fn run(problem: &Problem, truth: Truth, every: f64) -> Outcome {
    let conductor = Conductor::new(problem.clone(), every);
    carried_out(conductor, World::new(problem, truth), every)
}

/// The same where the truth is another problem than the one that was told.
#[cfg(test)]
pub(super) fn run_told(told: &Problem, truth: &Problem, every: f64) -> Outcome {
    let conductor = Conductor::new(told.clone(), every);
    carried_out(conductor, World::new(truth, Truth::Exact), every)
}

fn carried_out(mut conductor: Conductor, mut world: World<'_>, every: f64) -> Outcome {
    let problem = world.problem;
    let mut now = 0.0;
    let mut moved = vec![None; problem.machines.len()];
    loop {
        let seen = world.seen();
        let actions = conductor.step(now, &seen);
        world.carry_out(&actions, now);
        world.share(now);
        if conductor.is_over() || now >= problem.horizon() {
            break;
        }
        let to = world.next(now).min(now + every).min(conductor.next());
        world.flow(now, to);
        now = to;
        for (machine, being) in world.beings.iter_mut().enumerate() {
            if being.phase == Phase::Switching && being.until <= now {
                being.phase = Phase::Moved;
                moved[machine] = Some(now);
            }
        }
    }
    let carried = world.carried;
    Outcome { moved, carried }
}

/// A number that usually is about 1, and off by `varies` of it.
fn factor(rng: &mut Rng, varies: f64) -> f64 {
    // Twelve even numbers make one that is nearly normal.
    let sum: f64 = (0..12).map(|_| fraction(rng)).sum();
    (1.0 + varies * (sum - 6.0)).clamp(0.05, 3.0)
}

/// From 0 to below 1.
fn fraction(rng: &mut Rng) -> f64 {
    f64::from((rng.next() >> 32) as u32) / 4_294_967_296.0
}

impl<'a> World<'a> {
    fn new(problem: &'a Problem, truth: Truth) -> Self {
        let mut rng = match truth {
            Truth::Exact => None,
            Truth::Seeded(seed) => Some(Rng::new(seed)),
        };
        let resources = problem.resources.iter().enumerate();
        let capacity = resources.map(|(number, told)| match &mut rng {
            Some(rng) if number < problem.lines.len() => moving(problem, number, rng),
            _ => told.capacity.clone(),
        });
        let capacity = capacity.collect();
        let machines = problem.machines.iter();
        let beings = machines.map(|told| {
            let mut off = |part: f64| {
                let varies = told.varies * part;
                rng.as_mut().map_or(1.0, |rng| factor(rng, varies))
            };
            Being {
                phase: Phase::Waiting,
                left: told.left * off(0.2),
                load: told.load * off(1.0),
                gain: (told.gain * off(0.4)).max(0.1),
                done: 0.0,
                sent: 0.0,
                route: None,
                limit: f64::INFINITY,
                flow: (0.0, 0.0),
                until: f64::INFINITY,
            }
        });
        let beings = beings.collect();
        Self {
            problem,
            capacity,
            beings,
            carried: vec![0.0; problem.lines.len()],
        }
    }

    fn seen(&self) -> Vec<Seen> {
        let beings = self.beings.iter();
        let seen = beings.map(|being| Seen {
            phase: being.phase,
            left: being.left,
            done: being.done,
            sent: being.sent,
            route: being.route,
        });
        seen.collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "rates, to a few percent")]
    fn carry_out(&mut self, actions: &[Action], now: f64) {
        for action in actions {
            match *action {
                Action::Start {
                    machine,
                    route,
                    rate,
                } => {
                    let being = &mut self.beings[machine];
                    being.phase = Phase::Copying;
                    being.route = Some(route);
                    being.limit = rate.map_or(f64::INFINITY, |rate| rate as f64);
                }
                Action::Rate { machine, rate } => {
                    self.beings[machine].limit = rate.map_or(f64::INFINITY, |rate| rate as f64);
                }
                Action::CutOver { machine } => {
                    let being = &mut self.beings[machine];
                    being.phase = Phase::Switching;
                    being.until = now + SWITCHOVER;
                }
            }
        }
        for being in &mut self.beings {
            // Nothing is left of a disk that was brought another way.
            if being.phase == Phase::Copying && being.left <= 0.0 {
                being.phase = Phase::InStep;
            }
        }
    }

    /// What flows from now on.
    fn share(&mut self, now: f64) {
        let mut free: Vec<_> = self.capacity.iter().map(|c| c.at(now).0).collect();
        let moving = |being: &Being| {
            matches!(
                being.phase,
                Phase::Copying | Phase::InStep | Phase::Switching
            )
        };
        let beings = self.beings.iter().enumerate();
        let moving: Vec<usize> = beings.filter(|(_, b)| moving(b)).map(|(m, _)| m).collect();
        let mut wanted = vec![0.0; free.len()];
        for machine in &moving {
            let (being, route) = self.on(*machine);
            for (resource, takes) in route.uses(being.gain) {
                wanted[resource] += being.load / being.gain * takes;
            }
        }
        let mut copying = Vec::new();
        for machine in moving {
            let (being, route) = self.on(machine);
            let fits = route.uses(being.gain).map(|(resource, _)| {
                (free[resource] / wanted[resource].max(f64::MIN_POSITIVE)).min(1.0)
            });
            let writes = being.load / being.gain * fits.fold(1.0, f64::min);
            let most = (being.limit / being.gain).min((route.most - writes).max(0.0));
            if being.phase == Phase::Copying {
                copying.push((machine, most));
            }
            self.beings[machine].flow = (writes, writes);
        }
        for (resource, wanted) in wanted.iter().enumerate() {
            free[resource] = (free[resource] - wanted).max(0.0);
        }
        self.fill(copying, free);
    }

    fn on(&self, machine: usize) -> (&Being, &'a super::problem::Route) {
        let being = &self.beings[machine];
        let route = being.route.unwrap_or_default();
        (being, &self.problem.machines[machine].routes[route])
    }

    /// All copies grow alike, until each has met its own limit or that of something it uses.
    fn fill(&mut self, mut open: Vec<(usize, f64)>, mut free: Vec<f64>) {
        let full = free.clone();
        while !open.is_empty() {
            let mut wants = vec![0.0; free.len()];
            for (machine, _) in &open {
                let (being, route) = self.on(*machine);
                for (resource, takes) in route.uses(being.gain) {
                    wants[resource] += takes;
                }
            }
            let limits = free.iter().zip(&wants).filter(|(_, wants)| **wants > 0.0);
            let limits = limits.map(|(free, wants)| free / wants);
            let own = open.iter().map(|(_, most)| *most);
            let grows = limits.chain(own).fold(f64::INFINITY, f64::min).max(0.0);
            for (machine, most) in &mut open {
                self.beings[*machine].flow.0 += grows;
                *most -= grows;
            }
            for (free, wants) in free.iter_mut().zip(&wants) {
                *free -= grows * wants;
            }
            let before = open.len();
            open.retain(|(machine, most)| {
                let (being, route) = self.on(*machine);
                let mut uses = route.uses(being.gain);
                *most > 1e-6 && uses.all(|(r, _)| free[r] > full[r] * 1e-9)
            });
            // Rounding must not keep it from ending.
            if open.len() == before {
                break;
            }
        }
    }

    /// When something happens next.
    fn next(&self, now: f64) -> f64 {
        let changes = self.capacity.iter().map(|c| c.at(now).1);
        let beings = self.beings.iter().map(|being| match being.phase {
            Phase::Copying => {
                let nearer = being.flow.0 * being.gain - being.load;
                if nearer > 0.0 {
                    now + (being.left / nearer).max(1e-6)
                } else {
                    f64::INFINITY
                }
            }
            Phase::Switching => being.until.max(now + 1e-6),
            _ => f64::INFINITY,
        });
        changes.chain(beings).fold(f64::INFINITY, f64::min)
    }

    /// Let it flow.
    fn flow(&mut self, from: f64, to: f64) {
        let span = to - from;
        for (machine, being) in self.beings.iter_mut().enumerate() {
            let Some(route) = being.route.filter(|_| {
                matches!(
                    being.phase,
                    Phase::Copying | Phase::InStep | Phase::Switching
                )
            }) else {
                continue;
            };
            let sent = being.flow.0 * span;
            being.sent += sent;
            self.carried[self.problem.machines[machine].routes[route].line] += sent;
            being.done += sent * being.gain;
            if being.phase == Phase::Copying {
                being.left += being.load * span - sent * being.gain;
                if being.left <= 1e-6 * being.done.max(1.0) {
                    being.left = 0.0;
                    being.phase = Phase::InStep;
                }
            }
        }
    }
}

/// A link that carries now more and now less, and is lost at times.
fn moving(problem: &Problem, number: usize, rng: &mut Rng) -> Steps {
    let told = &problem.resources[number];
    let line = &problem.lines[number];
    let horizon = problem.horizon();
    let calm = CALM.max(horizon / 2000.0);
    let always = factor(rng, told.varies);
    let (per_day, lasts) = line.breaks;
    let mut made: Option<Steps> = None;
    let mut say = |at: f64, value: f64| match &mut made {
        Some(made) => made.then(at, value),
        None => made = Some(Steps::constant(at, value)),
    };
    let mut at = 0.0;
    while at < horizon {
        let now = factor(rng, told.varies / 2.0) * always;
        let (mut inside, end) = (at, at + calm);
        while inside < end {
            let (value, until) = told.capacity.at(inside);
            say(inside, value * now);
            inside = until.min(end);
        }
        if fraction(rng) < per_day * calm / 86400.0 && lasts > 0.0 {
            say(end, 0.0);
            at = end + lasts;
        } else {
            at = end;
        }
    }
    made.unwrap_or_else(|| told.capacity.clone())
}
