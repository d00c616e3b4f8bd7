//! The third place: it answers late, or not, and what it has once said it says for ever.

use std::collections::BTreeMap;

use super::host::Machine;
use super::world::{Event, SOURCE, TARGET, World};
use crate::arbiter::{Ballot, Side};
use crate::clock::Micros;
use crate::session::{SourceEvent, TargetEvent};

/// A question on its way.
#[derive(Clone, Debug)]
pub(super) enum Question {
    /// Is it there?
    Reach(u64),
    Decide(Ballot, Side),
    /// The same, of a host that has just started and serves nothing yet.
    Settle(Ballot, Side),
}

/// What was decided.
pub(super) type Decided = BTreeMap<Ballot, Side>;

impl World {
    /// A host asks the arbiter.
    pub(super) fn ask_arbiter(&mut self, host: usize, question: Question) {
        let life = self.hosts[host].life;
        let slowest = if self.calm() {
            0
        } else {
            self.plan.arbiter_slow.0
        };
        let mut way = || {
            let slow = self.rng.below(slowest + 1);
            self.rng.between(20, 2 * self.net.delay.0 + 40) + slow
        };
        let (there, back) = (way(), way());
        // The question is lost, or the answer, or neither.
        let lossy = !self.calm() && self.rng.percent(self.plan.arbiter_lossy);
        let (arrives, answered) = match self.rng.below(2) {
            0 if lossy => (false, false),
            _ if lossy => (true, false),
            _ => (true, true),
        };
        if arrives {
            self.after(Micros(there), Event::ArbiterHears(question.clone()));
        }
        let patience = if answered { 0 } else { 20_000 };
        let event = Event::ArbiterAnswers(host, life, question, answered);
        self.after(Micros(there + back + patience), event);
    }

    pub(super) fn arbiter_hears(&mut self, question: &Question) {
        if let Question::Decide(ballot, side) | Question::Settle(ballot, side) = question {
            self.decided.entry(*ballot).or_insert(*side);
        }
    }

    pub(super) fn arbiter_answers(
        &mut self,
        (host, life): (usize, u64),
        question: &Question,
        answered: bool,
    ) {
        if self.hosts[host].life != life || !self.hosts[host].up {
            return;
        }
        let result = || {
            let lost = || std::io::Error::other("lost");
            answered.then_some(()).ok_or_else(lost)
        };
        match question {
            Question::Reach(attempt) if host == SOURCE => {
                self.source_event(SourceEvent::Reached(*attempt, result()));
            }
            Question::Reach(attempt) => {
                self.target_event(TargetEvent::Reached(*attempt, result()));
            }
            Question::Decide(ballot, _) | Question::Settle(ballot, _) => {
                let Some(side) = self.decided.get(ballot).copied().filter(|_| answered) else {
                    return self.arbiter_is_silent(host, question);
                };
                match question {
                    Question::Settle(..) => self.settle(side),
                    _ if host == TARGET => {
                        self.target_event(TargetEvent::Decided(*ballot, Ok(side)));
                    }
                    _ => self.source_event(SourceEvent::Decided(*ballot, Ok(side))),
                }
            }
        }
    }

    fn arbiter_is_silent(&mut self, host: usize, question: &Question) {
        let lost = || std::io::Error::other("lost");
        match question {
            Question::Settle(..) => self.ask_arbiter(host, question.clone()),
            Question::Decide(ballot, _) if host == TARGET => {
                self.target_event(TargetEvent::Decided(*ballot, Err(lost())));
            }
            Question::Decide(ballot, _) => {
                self.source_event(SourceEvent::Decided(*ballot, Err(lost())));
            }
            Question::Reach(_) => {}
        }
    }

    /// A source that found its offer has heard whose the disk is, and writes it.
    fn settle(&mut self, side: Side) {
        let host = &mut self.hosts[SOURCE];
        let record = host.record.as_ref();
        let settled = record.and_then(|record| record.settled(side));
        if let (Some(settled), Machine::None) = (settled, &host.machine) {
            host.record = Some(settled);
            self.stats.settled += 1;
            self.start_source();
        }
    }
}
