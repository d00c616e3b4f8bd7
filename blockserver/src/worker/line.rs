//! What waits for its turn under the limits of an export.
//!
//! Each worker is one entrance to the gate that all share: it keeps its requests in the order in which they
//! came, and the oldest has a place in the gate's line. A timer of the ring says when to ask again, so nothing
//! blocks and nothing spins. A request that waits has its room already, so whoever sends more waits with it. It is
//! not in flight: holding the export, or closing it, does not wait for it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::export::Kind;
use crate::throttle::{Cost, Place};
use crate::uring::Op;

use super::task::{From, Task};
use super::{Token, Worker};

/// Nobody asks more often than that.
const SHORTEST: Duration = Duration::from_micros(50);
/// Nobody asks less often: those ahead, on other workers, may have left. So no timer outlives what it was for by more.
const LONGEST: Duration = Duration::from_secs(1);

/// Requests of one export here that wait for their turn.
#[derive(Default)]
pub(super) struct Line {
    tasks: VecDeque<u32>,
    /// The place of the first of them.
    place: Option<Place>,
    /// Which timer counts; those before it came too late or too early.
    timer: u64,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

/// What a request takes. A flush is free: it covers only what has completed, and holding it back would save
/// nothing and cost much.
fn cost(task: &Task) -> Cost {
    let kind = task.asked.action.kind();
    Cost {
        operations: u64::from(kind != Kind::Flush),
        bytes: match kind {
            Kind::Read | Kind::Write => task.asked.len,
            Kind::Zero | Kind::Flush | Kind::Status => 0,
        },
    }
}

impl Worker {
    /// Let a request of a limited export begin when it is its turn.
    pub(super) fn line_up(&mut self, id: u32) {
        let Some(task) = self.tasks.get(id) else {
            return;
        };
        let hurried = match task.asked.from {
            From::Queue { queue, .. } => self.is_hurried(queue),
            _ => false,
        };
        let (export, free) = (task.export, cost(task) == Cost::default());
        if free {
            return self.start(id);
        }
        if hurried {
            return self.begin_early(id);
        }
        let Some(here) = self.exports.get_mut(export) else {
            return;
        };
        here.line.tasks.push_back(id);
        if here.line.tasks.len() == 1 {
            self.advance(export);
        }
    }

    /// A timer went off.
    pub(super) fn ask_again(&mut self, export: u32, timer: u64) {
        let here = self.exports.get(export);
        if here.is_some_and(|here| here.line.timer == timer) {
            self.advance(export);
        }
    }

    /// Begin those at the head of the line whose turn it is.
    fn advance(&mut self, export: u32) {
        let now = self.life.now;
        while let Some(here) = self.exports.get_mut(export)
            && let Some(&id) = here.line.tasks.front()
        {
            let task = self.tasks.get(id);
            let place = here.line.place.take();
            let asked = here
                .shared
                .throttle
                .ask(place, now, task.map_or_else(Cost::default, cost));
            if let Err(wait) = asked {
                here.line.place = Some(wait.place);
                here.line.timer += 1;
                let timer = here.line.timer;
                let after = Duration::from_nanos(wait.wait).clamp(SHORTEST, LONGEST);
                self.ring
                    .submit(Op::Timer { after }, Token::Turn { export, timer });
                return;
            }
            here.line.tasks.pop_front();
            let waited = task.map_or(Duration::ZERO, |task| {
                now.saturating_duration_since(task.began)
            });
            if !waited.is_zero() {
                here.shared.throttle.has_waited(waited);
            }
            self.start(id);
        }
    }

    /// Begin a request that may not wait.
    fn begin_early(&mut self, id: u32) {
        if let Some(task) = self.tasks.get(id)
            && let Some(here) = self.exports.get(task.export)
        {
            here.shared.throttle.overdraw(self.life.now, cost(task));
        }
        self.start(id);
    }

    /// Take everybody out of the line, oldest first.
    pub(super) fn clear_line(&mut self, export: u32) -> VecDeque<u32> {
        let Some(here) = self.exports.get_mut(export) else {
            return VecDeque::new();
        };
        if let Some(place) = here.line.place.take() {
            here.shared.throttle.leave(&place);
        }
        here.line.timer += 1;
        std::mem::take(&mut here.line.tasks)
    }

    /// Take those out of the line that `who` names, and do with each what `then` does.
    fn take_out(
        &mut self,
        export: u32,
        who: impl Fn(&From) -> bool,
        then: impl Fn(&mut Self, u32),
    ) {
        if self
            .exports
            .get(export)
            .is_none_or(|here| here.line.is_empty())
        {
            return;
        }
        let all = self.clear_line(export);
        let its = |id: &u32| {
            self.tasks
                .get(*id)
                .is_some_and(|task| who(&task.asked.from))
        };
        let (out, stay): (VecDeque<u32>, VecDeque<u32>) = all.into_iter().partition(its);
        if let Some(here) = self.exports.get_mut(export) {
            here.line.tasks = stay;
        }
        for id in out {
            then(self, id);
        }
        self.advance(export);
    }

    /// What a virtqueue waits with begins now.
    pub(super) fn begin_all_of_queue(&mut self, export: u32, queue: u32) {
        let its = |from: &From| matches!(from, From::Queue { queue: its, .. } if *its == queue);
        self.take_out(export, its, Self::begin_early);
    }

    /// What a client that is gone waits with fails.
    pub(super) fn fail_all_of_session(&mut self, export: u32, session: u32) {
        let its =
            |from: &From| matches!(from, From::Session { session: its, .. } if *its == session);
        self.take_out(export, its, |worker, id| {
            worker.fail(id, super::task::shut_down());
        });
    }
}
