//! Why a machine does not move in time over the wire, and what would help.
//!
//! Pure. Each answer is for one machine alone, on top of what is planned: two that both could have what is free cannot both
//! have it.

use serde::Serialize;

use super::ground::{Ground, Trial, Work};
use super::problem::{COUNTED_ON, Problem, Route, SWITCHOVER};
use super::schedule::Making;
use super::state::Standing;

/// Why.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Reason {
    /// More is written than the way carries: the target would never be in step.
    NeverInStep {
        /// Bytes a second that have to travel because they are written.
        written: u64,
        /// Bytes a second that the way brings at best.
        carried: u64,
    },
    /// Even alone it would take so many seconds.
    TooLong {
        /// From now.
        seconds: u64,
    },
    /// Alone it would take so many seconds; what comes before it leaves too little.
    NoTimeLeft {
        /// From now.
        seconds: u64,
    },
    /// No target that it may go to has the room.
    NoRoom {
        /// Bytes that the one with the most is short of.
        missing: u64,
    },
    /// What switches over before or together with it does not move.
    Waits {
        /// One of those.
        of: String,
    },
    /// It was given up, as something else than time keeps it.
    GivenUp,
}

/// What would help. Each is enough by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Needs {
    /// Bytes to be brought on drives.
    pub seed_bytes: u64,
    /// So many of them.
    pub seed_volumes: u64,
    /// Seconds to write them.
    pub seed_write_s: u64,
    /// Clients may write at most so many bytes a second; missing where even none would not do.
    pub slow_writes_to: Option<u64>,
    /// That is so much of a hundred of what they write.
    pub slow_to_percent: Option<u8>,
    /// Seconds that it would stand still, if it was shut down and copied cold; missing where that is not in time.
    pub cold_s: Option<u64>,
    /// Bytes a second by which the link would have to be faster; missing where no link helps.
    pub more_bandwidth: Option<u64>,
}

#[expect(
    clippy::cast_sign_loss,
    reason = "nothing here is below zero, and a cast of a float saturates"
)]
pub(super) fn number(value: f64) -> u64 {
    value.max(0.0) as u64
}

/// What is free for a machine that is not planned, and what it would take.
struct Question<'a> {
    making: &'a Making<'a>,
    alone: Ground,
    machine: usize,
    work: Work,
}

/// Of a machine that `making` has not placed.
pub(super) fn of(making: &Making<'_>, machine: usize, alone: &Ground) -> (Reason, Needs) {
    let state = making.state;
    let one = &state.machines[machine];
    let question = Question {
        making,
        alone: alone.clone(),
        machine,
        work: one.work(state.now),
    };
    (question.reason(), question.needs())
}

/// The ground with nothing on it.
pub(super) fn empty(making: &Making<'_>) -> Ground {
    let lines = 0..making.problem.lines.len();
    let trust: Vec<_> = lines.map(|l| making.state.trust(l) * COUNTED_ON).collect();
    Ground::new(making.problem, &trust)
}

impl Question<'_> {
    fn problem(&self) -> &Problem {
        self.making.problem
    }

    fn routes(&self) -> impl Iterator<Item = &Route> {
        self.problem().machines[self.machine].routes.iter()
    }

    fn reason(&self) -> Reason {
        let (problem, state) = (self.problem(), self.making.state);
        let told = &problem.machines[self.machine];
        if state.machines[self.machine].standing == Standing::Out {
            return Reason::GivenUp;
        }
        let best = self.routes().map(|r| self.alone.best(r, &self.work));
        let best = best.fold(0.0, f64::max) * self.work.gain;
        if best <= self.work.load {
            return Reason::NeverInStep {
                written: number(self.work.load.ceil()),
                carried: number(best),
            };
        }
        let trials = self.routes().filter_map(|r| self.alone.fit(r, &self.work));
        let ends = trials.map(|trial| trial.in_step + SWITCHOVER);
        let end = ends.fold(f64::INFINITY, f64::min);
        // Beyond what anybody plans it is only known how long it takes at best.
        let least = self.work.left / (best - self.work.load);
        let seconds = number((end - state.now).min(least.max(problem.horizon())).ceil());
        if end > problem.deadline {
            return Reason::TooLong { seconds };
        }
        let room = self.routes().map(|r| self.making.ground.room[r.target]);
        let room = room.fold(f64::NEG_INFINITY, f64::max);
        if room < told.room && state.machines[self.machine].route.is_none() {
            let missing = number((told.room - room).ceil());
            return Reason::NoRoom { missing };
        }
        if self.in_time(&self.making.ground, &self.work).is_some()
            && let Some(of) = self.waits_of()
        {
            return Reason::Waits { of };
        }
        Reason::NoTimeLeft { seconds }
    }

    /// Somebody of its unit, or of those before, that does not move.
    fn waits_of(&self) -> Option<String> {
        let problem = self.problem();
        let unit = &problem.units[problem.machines[self.machine].unit];
        let before = unit.after.iter().filter(|u| !self.making.is_placed(**u));
        let before = before.flat_map(|unit| &problem.units[*unit].members);
        let mut others = before.chain(unit.members.iter().filter(|m| **m != self.machine));
        others
            .next()
            .map(|machine| problem.machines[*machine].name.clone())
    }

    /// It, on what is free there, if that is in time.
    fn in_time(&self, ground: &Ground, work: &Work) -> Option<Trial> {
        let by = self.problem().deadline - SWITCHOVER;
        let trials = self
            .routes()
            .filter_map(|route| ground.fit_by(route, work, by));
        trials
            .filter(|trial| trial.in_step <= by)
            .min_by(|a, b| a.in_step.total_cmp(&b.in_step))
    }

    fn needs(&self) -> Needs {
        let told = &self.problem().machines[self.machine];
        let (volume, write) = self.problem().drive;
        let ground = &self.making.ground;
        let mut needs = Needs {
            seed_bytes: number(told.allocated),
            seed_volumes: number((told.allocated / volume).ceil()),
            seed_write_s: number((told.allocated / write).ceil()),
            ..Needs::default()
        };
        let cold = Work {
            load: 0.0,
            ..self.work
        };
        let cold = self.in_time(ground, &cold);
        needs.cold_s = cold.map(|trial| number((trial.in_step - trial.start + SWITCHOVER).ceil()));
        if self.work.load > 0.0
            && let Some(part) = self.slowed(ground)
        {
            needs.slow_to_percent = Some(number(part * 100.0).min(100) as u8);
            let writes = self.work.load / told.amplification;
            needs.slow_writes_to = Some(number(part * writes));
        }
        needs.more_bandwidth = self.more(ground);
        needs
    }

    /// Of what is written, how much might be: what is free by the deadline, less what is left, over the time, as a single
    /// move's deadline has it; and whether that really does.
    fn slowed(&self, ground: &Ground) -> Option<f64> {
        let (now, by) = (self.making.state.now, self.problem().deadline - SWITCHOVER);
        let brought = self
            .routes()
            .map(|r| ground.brings(r, &self.work, (now, by)));
        let brought = brought.fold(0.0, f64::max);
        let part = (brought - self.work.left) / ((by - now) * self.work.load);
        // A little less, since it may not be worth to begin at once; then halves of that.
        let tries = [1.0, 0.9, 0.5, 0.25].map(|less| (part * less).min(1.0));
        tries.into_iter().find(|part| {
            let work = Work {
                load: self.work.load * part,
                ..self.work
            };
            *part >= 0.01 && self.in_time(ground, &work).is_some()
        })
    }

    /// By how much its link would have to be faster: what it is short of over the time, and a little more until that does.
    fn more(&self, ground: &Ground) -> Option<u64> {
        let with = |extra: f64| {
            let work = Work { extra, ..self.work };
            self.in_time(ground, &work).is_some()
        };
        let (now, by) = (self.making.state.now, self.problem().deadline - SWITCHOVER);
        let time = (by - now).max(1.0);
        let brought = self
            .routes()
            .map(|r| ground.brings(r, &self.work, (now, by)));
        let needed = self.work.left + self.work.load * time;
        let short = (needed - brought.fold(0.0, f64::max)).max(needed / 64.0);
        let least = short / time / self.work.gain;
        let tries = [1.0, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0, 16.0, 64.0, 1024.0];
        let mut tries = tries.iter().map(|more| least * more);
        // With no end of bandwidth it shows whether anything else is in the way.
        if !with(least * 1024.0) {
            return None;
        }
        let enough = tries.find(|extra| with(*extra))?;
        // What is counted on is less than what there has to be.
        Some(number((enough / COUNTED_ON).ceil()))
    }
}
