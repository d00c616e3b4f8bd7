//! Evacuations made up from seeds, and what is looked at in them.

mod figures;
mod orders;
mod plans;
mod runs;

use super::input::{Clock, Disk, Drive, Evacuation, Figure, Host, Hours, Link, Machine, Target};
use super::{Problem, check};
use crate::chance::Rng;
use crate::seeds::{are_the_usual, seeds};

const GB: f64 = 1e9;
const MB: f64 = 1e6;

fn figure(value: f64) -> Figure {
    Figure::Number(value)
}

/// A number between two, more often a small one.
fn between(rng: &mut Rng, low: f64, high: f64) -> f64 {
    let part = f64::from(rng.below(10_001) as u32) / 10_000.0;
    low * (high / low).powf(part)
}

fn link(name: &str, bandwidth: f64) -> Link {
    Link {
        name: name.to_owned(),
        from: "here".to_owned(),
        to: "there".to_owned(),
        bandwidth: figure(bandwidth),
        rtt_ms: 20.0,
        loss: 0.0,
        bbr: true,
        share: 1.0,
        hours: Vec::new(),
        varies: 0.1,
        breaks_per_day: 0.0,
        break_s: 60.0,
    }
}

fn machine(name: &str, allocated: f64, writes: f64) -> Machine {
    Machine {
        name: name.to_owned(),
        site: "here".to_owned(),
        host: None,
        to: Vec::new(),
        priority: 0,
        weight: 1.0,
        after: Vec::new(),
        together: None,
        writes: figure(writes),
        amplification: 1.0,
        gain: 1.0,
        read: None,
        varies: 0.25,
        disks: vec![Disk {
            image: None,
            control: None,
            allocated: figure(allocated),
            at_target: figure(0.0),
            room: None,
        }],
    }
}

/// One link, one target, and these machines.
fn evacuation(deadline: f64, bandwidth: f64, machines: Vec<Machine>) -> Evacuation {
    Evacuation {
        deadline: figure(deadline),
        links: vec![link("wan", bandwidth)],
        targets: vec![Target {
            site: "there".to_owned(),
            free: figure(1e18),
            write: None,
            address: None,
            plain: false,
        }],
        hosts: Vec::new(),
        machines,
        drive: Drive::default(),
    }
}

fn problem(input: &Evacuation) -> Problem {
    check(input, 0).unwrap_or_else(|wrong| panic!("{wrong}: {input:?}"))
}

/// Machines on one link that depend on nothing.
fn simple(rng: &mut Rng, count: u64) -> Evacuation {
    let machines = (0..count).map(|n| {
        let size = between(rng, GB, 200.0 * GB);
        let writes = if rng.percent(70) {
            between(rng, 0.01 * MB, 20.0 * MB)
        } else {
            0.0
        };
        let mut one = machine(&format!("m{n}"), size, writes);
        one.weight = f64::from(rng.between(1, 5) as u32);
        one.gain = between(rng, 1.0, 3.0);
        one
    });
    let machines = machines.collect();
    let deadline = between(rng, 300.0, 20_000.0);
    evacuation(deadline, between(rng, 5.0 * MB, 200.0 * MB), machines)
}

/// The same with all that can be said.
fn any(seed: u64) -> Evacuation {
    let rng = &mut Rng::new(seed);
    let count = rng.between(1, 13);
    let mut all = simple(rng, count);
    if rng.percent(30) {
        all.links.push(link("other", between(rng, MB, 100.0 * MB)));
    }
    if rng.percent(30) {
        let mut further = link("further", between(rng, MB, 100.0 * MB));
        further.to = "elsewhere".to_owned();
        all.links.push(further);
        let mut target = all.targets[0].clone();
        target.site = "elsewhere".to_owned();
        target.write = Some(figure(between(rng, 10.0 * MB, 500.0 * MB)));
        all.targets.push(target);
    }
    for target in &mut all.targets {
        if rng.percent(20) {
            target.free = figure(between(rng, 10.0 * GB, 1000.0 * GB));
        }
    }
    for link in &mut all.links {
        if rng.percent(20) {
            link.share = between(rng, 0.2, 1.0);
        }
        if rng.percent(20) {
            let minute = rng.below(24 * 60) as u16;
            link.hours.push(Hours {
                from: Clock { minutes: minute },
                to: Clock {
                    minutes: (minute + 1 + rng.below(600) as u16) % 1440,
                },
                share: between(rng, 0.1, 1.0),
            });
        }
        if rng.percent(20) {
            (link.bbr, link.loss) = (false, between(rng, 1e-5, 1e-2));
        }
    }
    let hosts = rng.below(3);
    for host in 0..hosts {
        all.hosts.push(Host {
            name: format!("h{host}"),
            read: figure(between(rng, 10.0 * MB, 500.0 * MB)),
        });
    }
    for n in 0..all.machines.len() {
        let one = &mut all.machines[n];
        one.priority = rng.below(3) as i32;
        one.host = (hosts > 0 && rng.percent(70)).then(|| format!("h{}", rng.below(hosts)));
        one.read = rng
            .percent(20)
            .then(|| figure(between(rng, MB, 100.0 * MB)));
        one.together = rng.percent(20).then(|| format!("g{}", rng.below(2)));
        if n > 0 && rng.percent(20) && one.together.is_none() {
            // Machines of a group depend on nothing, so that nothing goes in a circle.
            one.after = vec![format!("m{}", rng.below(n as u64))];
        }
    }
    all
}
