//! What holds for every plan.

use super::super::answer::Answer;
use super::super::problem::{COUNTED_ON, Problem};
use super::super::schedule::{Booking, Schedule};
use super::super::state::State;
use super::super::world::{Truth, run};
use super::*;

/// What a booking takes of a resource, from when to when.
fn taken(problem: &Problem, booking: &Booking, resource: usize) -> Vec<(f64, f64, f64)> {
    let told = &problem.machines[booking.machine];
    let route = &told.routes[booking.route];
    let uses = route.uses(told.gain).find(|(r, _)| *r == resource);
    let Some((_, takes)) = uses else {
        return Vec::new();
    };
    let pieces = booking.pieces.iter().map(|p| (p.from, p.to, p.rate));
    let follows = (booking.in_step, booking.cut, booking.follows);
    let all = pieces.chain([follows]).filter(|(from, to, _)| from < to);
    all.map(|(from, to, rate)| (from, to, rate * takes))
        .collect()
}

fn no_capacity_is_exceeded(problem: &Problem, schedule: &Schedule) {
    for resource in 0..problem.resources.len() {
        let bookings = schedule.bookings.iter().flatten();
        let all: Vec<_> = bookings.flat_map(|b| taken(problem, b, resource)).collect();
        let capacity = problem.capacity(resource, COUNTED_ON);
        let mut moments: Vec<f64> = all.iter().flat_map(|(from, to, _)| [*from, *to]).collect();
        let mut at = 0.0;
        while at < problem.deadline {
            moments.push(at);
            at = capacity.at(at).1;
        }
        moments.sort_by(f64::total_cmp);
        for pair in moments.windows(2) {
            let middle = f64::midpoint(pair[0], pair[1]);
            // What rounding may have put on either side.
            if pair[1] - pair[0] < 1e-5 {
                continue;
            }
            let now = all
                .iter()
                .filter(|(from, to, _)| (*from..*to).contains(&middle));
            let sum: f64 = now.map(|(_, _, rate)| rate).sum();
            let (capacity, _) = capacity.at(middle);
            assert!(
                sum <= capacity * (1.0 + 1e-5) + 1.0,
                "{sum} of {capacity} of {} at {middle}",
                problem.resources[resource].name
            );
        }
    }
}

fn all_of_it_travels(problem: &Problem, schedule: &Schedule) {
    for booking in schedule.bookings.iter().flatten() {
        let told = &problem.machines[booking.machine];
        let nearer = booking
            .pieces
            .iter()
            .map(|p| (p.rate * told.gain - told.load) * (p.to - p.from));
        let sum: f64 = nearer.sum();
        assert!(
            (sum - told.left).abs() <= 1e-4 * told.left + 1.0,
            "{sum} of {}",
            told.left
        );
    }
}

fn nobody_goes_before_what_it_needs(problem: &Problem, schedule: &Schedule) {
    let mut room: Vec<f64> = problem.targets.iter().map(|target| target.free).collect();
    for booking in schedule.bookings.iter().flatten() {
        let told = &problem.machines[booking.machine];
        room[told.routes[booking.route].target] -= told.room;
        assert!(0.0 <= booking.start && booking.start <= booking.in_step);
        assert!(booking.in_step <= booking.cut && booking.cut < booking.moved);
        assert!(booking.moved <= problem.deadline);
        assert!(schedule.in_time[booking.machine]);
        for before in &told.after {
            let before = schedule.bookings[*before].as_ref().expect("it is planned");
            assert!(before.moved <= booking.cut);
        }
        for other in &problem.units[told.unit].members {
            let other = schedule.bookings[*other].as_ref().expect("it is planned");
            assert!((other.cut - booking.cut).abs() < 1e-9);
        }
    }
    assert!(room.iter().all(|room| *room >= -1.0), "{room:?}");
}

#[test]
fn a_plan_never_exceeds_a_capacity_nor_breaks_a_dependency() {
    let (mut planned, mut machines) = (0, 0);
    for seed in seeds(10_000) {
        let problem = problem(&any(seed));
        let again = format!("seed {seed} (run it alone with DISKFERRY_SEED={seed})");
        let said = std::panic::catch_unwind(|| {
            let schedule = Schedule::make(&problem, &State::told(&problem), &[]);
            no_capacity_is_exceeded(&problem, &schedule);
            all_of_it_travels(&problem, &schedule);
            nobody_goes_before_what_it_needs(&problem, &schedule);
            schedule.in_time.iter().filter(|in_time| **in_time).count()
        });
        planned += said.unwrap_or_else(|_| panic!("{again}"));
        machines += problem.machines.len();
    }
    println!("{planned} of {machines} machines were planned");
    if are_the_usual() {
        assert!(planned * 10 > machines && planned * 10 < machines * 9);
    }
}

#[test]
fn what_is_planned_in_time_is_in_time_where_all_is_as_it_was_told() {
    let (mut in_time, mut more) = (0, 0);
    for seed in seeds(10_000) {
        let problem = problem(&any(seed));
        let mut schedule = Schedule::make(&problem, &State::told(&problem), &[]);
        let again = format!("seed {seed} (run it alone with DISKFERRY_SEED={seed})");
        // Once with the plan alone.
        let outcome = run(&problem, Truth::Exact, f64::INFINITY);
        for (machine, moved) in outcome.moved.iter().enumerate() {
            let came = moved.is_some_and(|at| at <= problem.deadline + 1e-6);
            assert!(
                came || !schedule.in_time[machine],
                "{} moved at {moved:?}, was planned for {:?}, deadline {}: {again}",
                problem.machines[machine].name,
                schedule.bookings[machine].as_ref().map(|b| b.moved),
                problem.deadline,
            );
            in_time += usize::from(schedule.in_time[machine]);
        }
        // Once with new plans on the way, which may have more in time, or other machines of a higher priority.
        let planned = schedule.worth(&problem);
        let outcome = run(&problem, Truth::Exact, problem.deadline / 10.0);
        let moved = outcome.moved.iter();
        schedule.in_time = moved
            .map(|at| at.is_some_and(|at| at <= problem.deadline + 1e-6))
            .collect();
        let came = schedule.worth(&problem);
        assert!(came >= planned, "{came:?} came of {planned:?}: {again}");
        more += usize::from(came > planned);
    }
    println!("{in_time} machines were planned in time and were; more came in {more} cases");
}

#[test]
fn a_higher_priority_never_moves_less_because_of_a_lower_one() {
    for seed in seeds(3_000) {
        let all = any(seed);
        let with = Answer::of(&problem(&all), &State::told(&problem(&all)), &[]);
        let top = with.machines.iter().map(|m| m.priority).max().expect("one");
        let weight = |answer: &Answer| -> f64 {
            let machines = answer
                .machines
                .iter()
                .filter(|m| m.priority == top && m.in_time);
            let of = |name: &str| all.machines.iter().find(|m| m.name == name);
            machines.map(|m| of(&m.machine).expect("it").weight).sum()
        };
        let mut alone = all.clone();
        let high = |name: &str| {
            with.machines
                .iter()
                .any(|m| m.machine == name && m.priority == top)
        };
        alone.machines.retain(|machine| high(&machine.name));
        let without = Answer::of(&problem(&alone), &State::told(&problem(&alone)), &[]);
        let (with, without) = (weight(&with), weight(&without));
        assert!(
            with >= without - 1e-9,
            "{with} with the others, {without} without: seed {seed} (run it alone with DISKFERRY_SEED={seed})"
        );
    }
}
