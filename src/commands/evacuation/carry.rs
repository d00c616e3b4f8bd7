//! `diskferry evacuate`: asks servers how everything stands, has the conductor decide, and does it, until nothing moves any more.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fmt, thread};

use mirror::evacuation::answer::Answer;
use mirror::evacuation::conductor::{Action, Conductor, Phase, Seen};
use mirror::evacuation::input::Figure;
use mirror::evacuation::state::Standing;
use mirror::evacuation::{Evacuation, moment};
use serde::Serialize;

use super::disks::Fleet;
use super::{now, problem, read, said};
use crate::args::EvacuateArgs;
use crate::failure::{Exit, Failure, Result};
use crate::report::Report;
use crate::{interrupt, plan, size};

/// How often servers are asked.
const LOOK: Duration = Duration::from_millis(500);
/// A deadline that leaves no time for anything, in seconds.
const AT_ONCE: f64 = 0.001;
/// How often people are told how far it is.
const SAY: Duration = Duration::from_secs(5);

/// Something that happened to a machine.
#[derive(Serialize)]
struct Happened<'a> {
    at_s: f64,
    machine: &'a str,
    what: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// How far it is.
#[derive(Serialize)]
struct Far {
    at_s: f64,
    moved: usize,
    in_step: usize,
    copying: usize,
    waiting: usize,
    given_up: usize,
    /// Of all machines, how many are planned in time or have moved.
    in_time: usize,
    left: u64,
    sent: u64,
}

/// How it ended for a machine.
#[derive(Serialize)]
struct Ended {
    machine: String,
    moved: bool,
    /// Seconds since this command was started; missing for one that had moved before.
    #[serde(skip_serializing_if = "Option::is_none")]
    moved_at_s: Option<f64>,
    bytes: u64,
    sent: u64,
    pauses_ms: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// How it ended.
#[derive(Serialize)]
struct Summary {
    took_s: f64,
    moved: usize,
    not_moved: usize,
    late: usize,
    machines: Vec<Ended>,
}

/// One run.
struct Run {
    conductor: Conductor,
    fleet: Fleet,
    report: Report,
    since: Instant,
    phases: Vec<Phase>,
    moved_at: Vec<Option<f64>>,
    /// In the last plan.
    in_time: Vec<bool>,
    said: Option<Instant>,
}

/// Moves what can be moved.
pub(crate) fn evacuate(args: &EvacuateArgs, report: Report) -> Result<()> {
    let mut input = read(&args.file)?;
    if is_past(&input.deadline) {
        report.warn("the deadline is past: what has begun goes on, and nothing else is begun");
        input.deadline = Figure::Number(AT_ONCE);
    }
    let every = plan::duration(&args.every)?.as_secs_f64();
    let mut run = Run::new(&input, &args.file, (report, every))?;
    if args.dry_run {
        return run.dry();
    }
    if is_relative(&input.deadline) && input.deadline != Figure::Number(AT_ONCE) {
        report.warn(
            "the deadline is a time from now, and would be another one if this was started again; write it as a moment",
        );
    }
    interrupt::listen();
    loop {
        run.step()?;
        if run.conductor.is_over() {
            return run.end();
        }
        if interrupt::requested() {
            return run.interrupted(args.cancel_on_interrupt);
        }
        thread::sleep(LOOK);
    }
}

fn is_past(deadline: &Figure) -> bool {
    let moment = match deadline {
        Figure::Text(text) => moment::parse(text),
        Figure::Number(_) => None,
    };
    moment.is_some_and(|moment| moment <= now())
}

fn is_relative(deadline: &Figure) -> bool {
    match deadline {
        Figure::Number(_) => true,
        Figure::Text(text) => moment::parse(text).is_none(),
    }
}

/// Seconds to a millisecond.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

#[expect(
    clippy::cast_sign_loss,
    reason = "sums of bytes, and none is below zero"
)]
fn bytes(value: f64) -> u64 {
    value.max(0.0) as u64
}

impl Run {
    fn new(input: &Evacuation, file: &Path, (report, every): (Report, f64)) -> Result<Self> {
        let problem = problem(input, file, now())?;
        let count = problem.machines.len();
        Ok(Self {
            fleet: Fleet::new(input, &problem)?,
            conductor: Conductor::new(problem, every),
            report,
            since: Instant::now(),
            phases: vec![Phase::Waiting; count],
            moved_at: vec![None; count],
            in_time: vec![false; count],
            said: None,
        })
    }

    fn at(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    fn name(&self, machine: usize) -> &str {
        &self.conductor.problem().machines[machine].name
    }

    /// What would be done now.
    fn dry(&mut self) -> Result<()> {
        let seen = self.fleet.look(self.conductor.problem());
        self.conductor.look(0.0, &seen);
        let state = self.conductor.state();
        let answer = Answer::of(self.conductor.problem(), state, &[]);
        self.report.result("plan", &answer, said::plan)?;
        match answer.not_in_time {
            0 => Ok(()),
            late => Err(not_in_time(&late, "cannot move by the deadline")),
        }
    }

    fn step(&mut self) -> Result<()> {
        let seen = self.fleet.look(self.conductor.problem());
        let at = self.at();
        let first = self.said.is_none();
        for (machine, seen) in seen.iter().enumerate() {
            self.tell_change(machine, *seen, first)?;
        }
        let actions = self.conductor.step(at, &seen);
        self.tell_plan(first)?;
        for (machine, seen) in seen.iter().enumerate() {
            let partly = self.fleet.is_partly_begun(machine);
            let route = self.conductor.state().machines[machine].route;
            if let Some(route) = route.filter(|_| partly) {
                self.start(machine, route, Some(1))?;
            }
            // Of a machine that was told to, a disk may have been left out by a command that was killed.
            if seen.phase == Phase::Switching {
                self.noted(machine, |run| run.fleet.cut_over(machine));
            }
        }
        for action in actions {
            match action {
                Action::Start {
                    machine,
                    route,
                    rate,
                } => self.start(machine, route, rate)?,
                Action::Rate { machine, rate } => {
                    self.noted(machine, |run| run.fleet.rate(machine, rate));
                }
                Action::CutOver { machine } => {
                    self.noted(machine, |run| run.fleet.cut_over(machine));
                }
            }
        }
        self.tell_progress(&seen)
    }

    /// What failed is seen at the next look, and done again.
    fn noted(&self, machine: usize, done: impl FnOnce(&Self) -> Result<()>) {
        if let Err(failure) = done(self) {
            let machine = self.name(machine);
            tracing::warn!(machine, what = failure.what, "a server did not do it");
        }
    }

    fn start(&mut self, machine: usize, route: usize, rate: Option<u64>) -> Result<()> {
        let problem = self.conductor.problem();
        let started = self.fleet.start(problem, (machine, route), rate);
        let target = problem.machines[machine].routes[route].target;
        let to = problem.targets[target].name.clone();
        match started {
            Ok(()) => self.happened(machine, "begun", (Some(&to), None)),
            Err(failure) => {
                self.conductor.failed(machine, self.at());
                self.happened(machine, "failed", (Some(&to), Some(failure.what)))
            }
        }
    }

    fn happened(
        &self,
        machine: usize,
        what: &str,
        (to, why): (Option<&str>, Option<String>),
    ) -> Result<()> {
        let at_s = rounded(self.at());
        let machine = self.name(machine);
        let mut text = format!("{}  {machine}: {what}", said::time(bytes(at_s)));
        if let Some(to) = to {
            let _ = write!(text, ", to {to}");
        }
        if let Some(why) = &why {
            let _ = write!(text, ": {why}");
        }
        let happened = Happened {
            at_s,
            machine,
            what,
            to,
            why,
        };
        self.report.event("event", &happened, &text)
    }

    fn tell_change(&mut self, machine: usize, seen: Seen, first: bool) -> Result<()> {
        let before = std::mem::replace(&mut self.phases[machine], seen.phase);
        if before == seen.phase {
            return Ok(());
        }
        if seen.phase == Phase::Moved && !first {
            self.moved_at[machine] = Some(rounded(self.at()));
        }
        let figures = self.fleet.figures(machine);
        match seen.phase {
            Phase::Waiting => Ok(()),
            Phase::Copying if !first => Ok(()),
            Phase::Copying => self.happened(machine, "is being copied already", (None, None)),
            Phase::InStep => self.happened(machine, "in step", (None, None)),
            Phase::Switching => self.happened(machine, "switching over", (None, None)),
            Phase::Moved if first => self.happened(machine, "has moved already", (None, None)),
            Phase::Moved => self.happened(machine, "moved", (None, None)),
            Phase::Failed => self.happened(machine, "failed", (None, figures.trouble)),
        }
    }

    fn tell_plan(&mut self, first: bool) -> Result<()> {
        let in_time = self.conductor.schedule().in_time.clone();
        let before = std::mem::replace(&mut self.in_time, in_time);
        let after = self.in_time.iter().copied();
        for (machine, change) in before.into_iter().zip(after).enumerate() {
            match change {
                (true, false) => self.happened(machine, "is not in time any more", (None, None))?,
                (false, true) if !first => {
                    self.happened(machine, "is in time after all", (None, None))?;
                }
                (false, false) if first => {
                    self.happened(machine, "cannot be in time", (None, None))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn tell_progress(&mut self, seen: &[Seen]) -> Result<()> {
        if self.said.is_some_and(|said| said.elapsed() < SAY) {
            return Ok(());
        }
        self.said = Some(Instant::now());
        let machines = &self.conductor.state().machines;
        let count = |of: &[Standing]| machines.iter().filter(|m| of.contains(&m.standing)).count();
        let far = Far {
            at_s: rounded(self.at()),
            moved: count(&[Standing::Moved]),
            in_step: count(&[Standing::InStep, Standing::Switching]),
            copying: count(&[Standing::Copying]),
            waiting: count(&[Standing::Waiting]),
            given_up: count(&[Standing::Out]),
            in_time: self.in_time.iter().filter(|in_time| **in_time).count(),
            left: bytes(seen.iter().map(|seen| seen.left).sum()),
            sent: bytes(seen.iter().map(|seen| seen.sent).sum()),
        };
        let text = format!(
            "{}  {} moved, {} in step, {} copying, {} waiting; {} of {} in time; {} left",
            said::time(bytes(far.at_s)),
            far.moved,
            far.in_step,
            far.copying,
            far.waiting,
            far.in_time,
            seen.len(),
            size::show(far.left),
        );
        self.report.event("progress", &far, &text)
    }

    fn interrupted(&mut self, cancel: bool) -> Result<()> {
        if !cancel {
            return Err(Failure::interrupted(
                "nothing more is begun, moves that run go on, and the same command goes on with them",
            ));
        }
        for machine in 0..self.phases.len() {
            self.noted(machine, |run| run.fleet.cancel(machine));
        }
        Err(Failure::interrupted(
            "moves that had not come to switching over were ended, and their disks are where they were",
        ))
    }

    fn end(self) -> Result<()> {
        let problem = self.conductor.problem();
        let answer = Answer::of(problem, self.conductor.state(), &[]);
        let machines = (0..problem.machines.len()).map(|machine| {
            let name = self.name(machine);
            let figures = self.fleet.figures(machine);
            let moved = self.phases[machine] == Phase::Moved;
            let planned = answer.machines.iter().find(|m| m.machine == name);
            let reason = planned.and_then(|m| m.reason.as_ref()).map(said::why);
            #[expect(clippy::cast_precision_loss, reason = "a pause")]
            let pauses = figures.pauses.iter().map(|pause| *pause as f64 / 1000.0);
            Ended {
                machine: name.to_owned(),
                moved,
                moved_at_s: self.moved_at[machine],
                bytes: bytes(figures.done),
                sent: bytes(figures.sent),
                pauses_ms: pauses.collect(),
                why: figures.trouble.or(reason).filter(|_| !moved),
            }
        });
        let machines: Vec<_> = machines.collect();
        let late = |one: &&Ended| one.moved_at_s.is_some_and(|at| at > problem.deadline);
        let moved = machines.iter().filter(|one| one.moved).count();
        let summary = Summary {
            took_s: rounded(self.at()),
            moved,
            not_moved: machines.len() - moved,
            late: machines.iter().filter(late).count(),
            machines,
        };
        self.report.result("summary", &summary, people)?;
        match summary.not_moved + summary.late {
            0 => Ok(()),
            late => Err(not_in_time(&late, "were not moved by the deadline")),
        }
    }
}

fn not_in_time(late: &impl fmt::Display, what: &str) -> Failure {
    let failure = Failure::new(Exit::NotInTime, format!("{late} machines {what}"));
    failure
        .hint("the same command goes on with what is left; what would help is in `diskferry plan`")
}

fn people(summary: &Summary) -> String {
    let mut text = format!(
        "{} machines moved, {} not, in {}\n",
        summary.moved,
        summary.not_moved,
        said::time(bytes(summary.took_s))
    );
    for one in &summary.machines {
        let line = if one.moved {
            let pauses: Vec<_> = one.pauses_ms.iter().map(|p| format!("{p:.1} ms")).collect();
            format!(
                "  {}: moved, {} copied, {} sent, pauses {}\n",
                one.machine,
                size::show(one.bytes),
                size::show(one.sent),
                pauses.join(" ")
            )
        } else {
            let why = one.why.as_deref().unwrap_or("it was not begun");
            format!("  {}: not moved: {why}\n", one.machine)
        };
        text.push_str(&line);
    }
    text
}
