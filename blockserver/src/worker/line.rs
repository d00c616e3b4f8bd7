//! What waits for its turn under the limits of an export.
//!
//! Each worker is two entrances to the gate that all share, one for what changes the disk and one for the rest, since
//! one of them may be slowed down alone. It keeps the requests of each in the order in which they
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
    ways: [Way; WAYS],
}

const WAYS: usize = 2;

/// Those of one entrance.
#[derive(Default)]
struct Way {
    tasks: VecDeque<u32>,
    /// The place of the first of them.
    place: Option<Place>,
    /// Which timer counts; those before it came too late or too early.
    timer: u64,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.ways.iter().all(|way| way.tasks.is_empty())
    }
}

/// The entrance of a request.
fn way_of(task: &Task) -> usize {
    let changes = matches!(task.asked.action.kind(), Kind::Write | Kind::Zero);
    usize::from(changes)
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
        written: if kind == Kind::Write {
            task.asked.len
        } else {
            0
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
        let (export, way) = (task.export, way_of(task));
        let free = cost(task) == Cost::default();
        if free {
            return self.start(id);
        }
        if hurried {
            return self.begin_early(id);
        }
        let Some(here) = self.exports.get_mut(export) else {
            return;
        };
        let Some(line) = here.line.ways.get_mut(way) else {
            return;
        };
        line.tasks.push_back(id);
        if line.tasks.len() == 1 {
            self.advance(export, way);
        }
    }

    /// A timer went off.
    pub(super) fn ask_again(&mut self, export: u32, way: usize, timer: u64) {
        let here = self.exports.get(export);
        let line = here.and_then(|here| here.line.ways.get(way));
        if line.is_some_and(|line| line.timer == timer) {
            self.advance(export, way);
        }
    }

    /// Begin those at the head of the line whose turn it is.
    fn advance(&mut self, export: u32, way: usize) {
        let now = self.life.now;
        while let Some(here) = self.exports.get_mut(export)
            && let Some(line) = here.line.ways.get_mut(way)
            && let Some(&id) = line.tasks.front()
        {
            let task = self.tasks.get(id);
            let place = line.place.take();
            let asked = here
                .shared
                .throttle
                .ask(place, now, task.map_or_else(Cost::default, cost));
            if let Err(wait) = asked {
                line.place = Some(wait.place);
                line.timer += 1;
                let timer = line.timer;
                let after = Duration::from_nanos(wait.wait).clamp(SHORTEST, LONGEST);
                let token = Token::Turn { export, way, timer };
                self.ring.submit(Op::Timer { after }, token);
                return;
            }
            line.tasks.pop_front();
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

    /// Take everybody out of the line, of each entrance the oldest first.
    pub(super) fn clear_line(&mut self, export: u32) -> VecDeque<u32> {
        let Some(here) = self.exports.get_mut(export) else {
            return VecDeque::new();
        };
        let mut all = VecDeque::new();
        for line in &mut here.line.ways {
            if let Some(place) = line.place.take() {
                here.shared.throttle.leave(&place);
            }
            line.timer += 1;
            all.append(&mut line.tasks);
        }
        all
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
        for id in stay {
            let way = self.tasks.get(id).map_or(0, way_of);
            let here = self.exports.get_mut(export);
            if let Some(line) = here.and_then(|here| here.line.ways.get_mut(way)) {
                line.tasks.push_back(id);
            }
        }
        for id in out {
            then(self, id);
        }
        for way in 0..WAYS {
            self.advance(export, way);
        }
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
