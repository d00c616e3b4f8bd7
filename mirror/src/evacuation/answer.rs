//! A plan as people and programs read it: which machines move in time and when, and what the others need.
//!
//! Pure. Times are whole seconds from now, bytes whole bytes.

use serde::Serialize;

use super::needs::{self, Needs, Reason, number};
use super::problem::{COUNTED_ON, Problem};
use super::schedule::{Booking, Schedule, made};
use super::state::{Standing, State};

/// What hosts write down at a switchover, in seconds: two flushes and two records, on ordinary drives.
const RECORDS: f64 = 0.02;

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Seconds from now.
    pub deadline_s: u64,
    /// How many machines are planned to have moved by then, or have moved.
    pub in_time: usize,
    /// How many are not.
    pub not_in_time: usize,
    /// Seconds until the last of those in time has moved.
    pub all_moved_s: u64,
    /// Those in time, as they are begun, then the others.
    pub machines: Vec<Moving>,
    /// The links.
    pub links: Vec<Used>,
}

/// A machine in it.
#[derive(Clone, Debug, Serialize)]
pub struct Moving {
    /// Its name.
    pub machine: String,
    /// Its priority, or the highest of those that wait for it.
    pub priority: i32,
    /// Whether it moves by the deadline.
    pub in_time: bool,
    /// Whether it has moved already.
    pub moved: bool,
    /// Bytes of its disks that have to travel.
    pub left: u64,
    /// When and how; missing where it is not planned.
    #[serde(flatten)]
    pub plan: Option<Expected>,
    /// Why it is not in time.
    #[serde(flatten)]
    pub reason: Option<Reason>,
    /// What would help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needs: Option<Needs>,
}

/// When a machine moves, and how.
#[derive(Clone, Debug, Serialize)]
pub struct Expected {
    /// Its target.
    pub to: String,
    /// The link.
    pub link: String,
    /// Seconds until it is begun.
    pub start_s: u64,
    /// Seconds until its target is in step.
    pub in_step_s: u64,
    /// Seconds until it has moved.
    pub moved_s: u64,
    /// The same, if links and machines are as good as they usually are at best.
    pub least_s: Option<u64>,
    /// The same, if they are as bad as they usually are at worst; missing: not before the plan's horizon.
    pub most_s: Option<u64>,
    /// Connections that carry what it is given.
    pub streams: u32,
    /// Expected pause in milliseconds.
    pub pause_ms: u64,
    /// Bytes on the wire.
    pub wire: u64,
    /// The most bytes a second of the wire that it is given.
    pub rate: u64,
}

/// A link in it.
#[derive(Clone, Debug, Serialize)]
pub struct Used {
    /// Its name.
    pub link: String,
    /// Bytes that it is planned to carry.
    pub bytes: u64,
    /// That is so much of a hundred of what is counted on until the last has moved.
    pub percent: u8,
    /// The most machines that are copied over it at a time.
    pub at_once: usize,
}

impl Answer {
    /// What can be done of `problem` from `state` on, with what that is expected to be like.
    #[must_use]
    pub fn of(problem: &Problem, state: &State, known: &[usize]) -> Self {
        let making = made(problem, state, known);
        let schedule = &making.schedule;
        let (least, most) = bands(problem, state, schedule);
        let alone = needs::empty(&making);
        let mut machines: Vec<_> = (0..problem.machines.len())
            .map(|machine| {
                let in_time = schedule.in_time[machine];
                let band = (
                    least.bookings[machine].as_ref(),
                    most.bookings[machine].as_ref(),
                );
                let booking = schedule.bookings[machine].as_ref();
                let told = &problem.machines[machine];
                let kept = (!in_time).then(|| needs::of(&making, machine, &alone));
                let (reason, needs) = kept.unzip();
                Moving {
                    machine: told.name.clone(),
                    priority: problem.units[told.unit].priority,
                    in_time,
                    moved: state.machines[machine].standing == Standing::Moved,
                    left: number(state.machines[machine].left),
                    plan: booking.map(|booking| expected(problem, booking, band)),
                    reason,
                    needs,
                }
            })
            .collect();
        let begun = |moving: &Moving| {
            moving
                .plan
                .as_ref()
                .map(|plan| (plan.start_s, plan.moved_s))
        };
        machines.sort_by_key(|m| (!m.in_time, std::cmp::Reverse(m.moved), begun(m)));
        let done = schedule.bookings.iter().flatten();
        let done = done.filter(|b| schedule.in_time[b.machine]);
        let end = done.map(|b| b.moved).fold(state.now, f64::max);
        let in_time = machines.iter().filter(|m| m.in_time).count();
        Self {
            deadline_s: number((problem.deadline - state.now).floor()),
            in_time,
            not_in_time: machines.len() - in_time,
            all_moved_s: number((end - state.now).ceil()),
            machines,
            links: used(problem, state, schedule),
        }
    }
}

/// The same order, if all goes well and if all goes badly.
fn bands(problem: &Problem, state: &State, schedule: &Schedule) -> (Schedule, Schedule) {
    let fixed = |sign: f64| {
        let mut state = state.clone();
        for (machine, one) in state.machines.iter_mut().enumerate() {
            let off = 1.0 + sign * problem.machines[machine].varies;
            one.load *= off;
            one.left *= 1.0 + sign * problem.machines[machine].varies / 5.0;
        }
        for (line, measured) in state.measured.iter_mut().enumerate() {
            *measured *= 1.0 - sign * problem.resources[line].varies;
        }
        state
    };
    let placed = &schedule.order;
    let least = Schedule::again(problem, &fixed(-1.0), (placed, 1.0));
    let most = Schedule::again(problem, &fixed(1.0), (placed, COUNTED_ON));
    (least, most)
}

fn expected(
    problem: &Problem,
    booking: &Booking,
    (least, most): (Option<&Booking>, Option<&Booking>),
) -> Expected {
    let told = &problem.machines[booking.machine];
    let route = &told.routes[booking.route];
    let line = &problem.lines[route.line];
    let peak = booking.peak();
    // Two round trips, what is written down, and what was written during the first of them.
    let dirty = if peak > 0.0 {
        told.load / told.gain * line.rtt / peak
    } else {
        0.0
    };
    let pause = 2.0 * line.rtt + RECORDS + dirty;
    let later = |b: &Booking| number(b.moved.max(booking.moved).ceil());
    let earlier = |b: &Booking| number(b.moved.min(booking.moved).ceil());
    Expected {
        to: problem.targets[route.target].name.clone(),
        link: problem.resources[route.line].name.clone(),
        start_s: number(booking.start),
        in_step_s: number(booking.in_step.ceil()),
        moved_s: number(booking.moved.ceil()),
        least_s: least.map(earlier),
        most_s: most.map(later),
        streams: line.streams(peak),
        pause_ms: number((pause * 1000.0).ceil()),
        wire: number(booking.wire()),
        rate: number(peak),
    }
}

fn used(problem: &Problem, state: &State, schedule: &Schedule) -> Vec<Used> {
    let lines = 0..problem.lines.len();
    let over = |line: usize| {
        let bookings = schedule.bookings.iter().flatten();
        bookings.filter(move |b| problem.machines[b.machine].routes[b.route].line == line)
    };
    let one = |line: usize| {
        let bytes: f64 = over(line).map(Booking::wire).sum();
        let end = over(line).map(|b| b.cut).fold(state.now, f64::max);
        let counted = problem.capacity(line, COUNTED_ON * state.trust(line));
        let could = counted.sum((state.now, end));
        let mut turns: Vec<_> = over(line)
            .flat_map(|b| [(b.start, 1), (b.in_step, -1)])
            .collect();
        turns.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let (mut now, mut at_once) = (0, 0);
        for (_, turn) in turns {
            now += turn;
            at_once = at_once.max(now);
        }
        Used {
            link: problem.resources[line].name.clone(),
            bytes: number(bytes),
            percent: number((bytes / could.max(1.0) * 100.0).round()).min(100) as u8,
            at_once: usize::try_from(at_once).unwrap_or(0),
        }
    };
    lines.map(one).collect()
}
