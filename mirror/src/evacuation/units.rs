//! Which machines switch over together, and in which order units do.
//!
//! Pure: it never panics on names that lead nowhere or in a circle.

use std::collections::{BTreeMap, BTreeSet};

use super::check::{Checked, wrong};
use super::input;
use super::problem::{Machine, Unit};

/// The units, those first that others depend on; machines learn where they belong.
pub(super) fn find(
    told: &[input::Machine],
    names: &BTreeMap<&str, usize>,
    machines: &mut [Machine],
) -> Checked<Vec<Unit>> {
    let mut units: Vec<Unit> = Vec::new();
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, machine) in told.iter().enumerate() {
        let known = machine.together.as_deref();
        let known = known.and_then(|group| groups.get(group)).copied();
        let unit = known.unwrap_or(units.len());
        if known.is_none() {
            units.push(Unit {
                members: Vec::new(),
                after: Vec::new(),
                priority: i32::MIN,
            });
            groups.extend(machine.together.as_deref().map(|group| (group, unit)));
        }
        units[unit].members.push(number);
        units[unit].priority = units[unit].priority.max(machine.priority);
        machines[number].unit = unit;
    }
    for (number, machine) in told.iter().enumerate() {
        for name in &machine.after {
            let of = format!("machine {}", machine.name);
            let Some(before) = names.get(name.as_str()).copied() else {
                return wrong(format!("{of}: after names `{name}`, which is no machine"));
            };
            let (unit, needed) = (machines[number].unit, machines[before].unit);
            if unit == needed {
                return wrong(format!(
                    "{of}: cannot switch over after `{name}`, which is itself or switches over together with it"
                ));
            }
            machines[number].after.push(before);
            if !units[unit].after.contains(&needed) {
                units[unit].after.push(needed);
            }
        }
    }
    in_order(told, &units, machines)
}

/// The same units, each after those that it depends on; priorities are handed down to those.
fn in_order(
    told: &[input::Machine],
    units: &[Unit],
    machines: &mut [Machine],
) -> Checked<Vec<Unit>> {
    let mut waiting: Vec<usize> = units.iter().map(|unit| unit.after.len()).collect();
    let mut dependents = vec![Vec::new(); units.len()];
    for (number, unit) in units.iter().enumerate() {
        for needed in &unit.after {
            dependents[*needed].push(number);
        }
    }
    let ready = (0..units.len()).filter(|unit| waiting[*unit] == 0);
    let mut ready: BTreeSet<usize> = ready.collect();
    let mut order = Vec::with_capacity(units.len());
    while let Some(unit) = ready.pop_first() {
        order.push(unit);
        for dependent in &dependents[unit] {
            waiting[*dependent] -= 1;
            if waiting[*dependent] == 0 {
                ready.insert(*dependent);
            }
        }
    }
    if let Some(stuck) = waiting.iter().position(|waiting| *waiting > 0) {
        let circle = circle(units, stuck, &waiting);
        let names: Vec<_> = circle
            .into_iter()
            .map(|unit| told[units[unit].members[0]].name.as_str())
            .collect();
        return wrong(format!(
            "machine {}: after leads in a circle: {}",
            names[0],
            names.join(" after ")
        ));
    }
    let mut place = vec![0; units.len()];
    for (now, before) in order.iter().enumerate() {
        place[*before] = now;
    }
    let mut sorted: Vec<Unit> = order.iter().map(|unit| units[*unit].clone()).collect();
    for unit in &mut sorted {
        unit.after
            .iter_mut()
            .for_each(|needed| *needed = place[*needed]);
        unit.after.sort_unstable();
    }
    for machine in machines {
        machine.unit = place[machine.unit];
    }
    for unit in (0..sorted.len()).rev() {
        let priority = sorted[unit].priority;
        for needed in sorted[unit].after.clone() {
            sorted[needed].priority = sorted[needed].priority.max(priority);
        }
    }
    Ok(sorted)
}

/// Units that wait for each other, from one that waits.
fn circle(units: &[Unit], stuck: usize, waiting: &[usize]) -> Vec<usize> {
    let mut way = vec![stuck];
    loop {
        let last = way[way.len() - 1];
        // One that waits waits for one that waits.
        let next = units[last]
            .after
            .iter()
            .find(|needed| waiting[**needed] > 0);
        let Some(next) = next.copied() else {
            return way;
        };
        let seen = way.iter().position(|unit| *unit == next);
        way.push(next);
        if let Some(first) = seen {
            return way.split_off(first);
        }
    }
}
