//! Exports as one worker sees them: the policy it lives by, and what waits while one is held.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::export::{Barrier, Export, Mode, Policy};

use super::Worker;
use super::line::Line;
use super::task;

/// Requests that began under one policy.
#[derive(Default)]
struct Era {
    in_flight: usize,
    /// To be passed when those and all earlier ones have ended.
    barriers: Vec<Arc<Barrier>>,
}

/// Counts what is in flight by the policy it began under.
struct Eras {
    /// Number of the oldest of `open`.
    first: u64,
    /// Oldest first; the last one is now. Never empty.
    open: VecDeque<Era>,
}

impl Eras {
    fn new() -> Self {
        Self {
            first: 0,
            open: VecDeque::from([Era::default()]),
        }
    }

    /// A request begins; answers its era.
    fn begin(&mut self) -> u64 {
        let now = self.first + self.open.len() as u64 - 1;
        if let Some(era) = self.open.back_mut() {
            era.in_flight += 1;
        }
        now
    }

    /// A request of this era ended; answers the barriers passed by that.
    fn end(&mut self, era: u64) -> Vec<Arc<Barrier>> {
        let index = era.wrapping_sub(self.first) as usize;
        if let Some(era) = self.open.get_mut(index) {
            era.in_flight = era.in_flight.saturating_sub(1);
        }
        if index == 0 {
            self.close_ended()
        } else {
            Vec::new()
        }
    }

    /// A new policy holds from now on; answers the barriers passed by that.
    fn turn(&mut self, barrier: Arc<Barrier>) -> Vec<Arc<Barrier>> {
        if let Some(era) = self.open.back_mut() {
            era.barriers.push(barrier);
        }
        self.open.push_back(Era::default());
        self.close_ended()
    }

    fn close_ended(&mut self) -> Vec<Arc<Barrier>> {
        let mut passed = Vec::new();
        while self.open.len() > 1 && self.open.front().is_some_and(|era| era.in_flight == 0) {
            if let Some(era) = self.open.pop_front() {
                self.first += 1;
                passed.extend(era.barriers);
            }
        }
        passed
    }

    fn is_idle(&self) -> bool {
        self.open.len() == 1 && self.open.front().is_some_and(|era| era.in_flight == 0)
    }
}

/// An export on this worker.
pub(super) struct ExportHere {
    pub(super) shared: Arc<Export>,
    pub(super) policy: Policy,
    /// Its disk here.
    pub(super) disk: u32,
    /// How many sessions and queues here are attached to it.
    pub(super) attached: usize,
    /// Tasks that wait for the export to be served again.
    pub(super) waiting: VecDeque<u32>,
    /// Tasks that wait for their turn.
    pub(super) line: Line,
    eras: Eras,
}

impl ExportHere {
    /// A request begins; answers its era.
    pub(super) fn begin(&mut self) -> u64 {
        self.eras.begin()
    }

    /// Pass every barrier: nothing will be in flight here any more.
    pub(super) fn pass_all(self) {
        for barrier in self.eras.open.into_iter().flat_map(|era| era.barriers) {
            barrier.pass();
        }
    }
}

impl Worker {
    /// The export as it is here; made when it is seen for the first time.
    pub(super) fn export_here(&mut self, export: &Arc<Export>) -> u32 {
        let known = self
            .exports
            .iter()
            .find(|(_, here)| here.shared.id == export.id);
        if let Some((index, _)) = known {
            return index;
        }
        let policy = export.policy().clone();
        let disk = self.use_disk(&policy.disk);
        self.exports.insert(ExportHere {
            shared: Arc::clone(export),
            policy,
            disk,
            attached: 0,
            waiting: VecDeque::new(),
            line: Line::default(),
            eras: Eras::new(),
        })
    }

    /// Live by the export's present policy from now on. The barrier is passed `at_once`, or when what began before has
    /// ended.
    pub(super) fn take_policy(
        &mut self,
        export: &Arc<Export>,
        barrier: Arc<Barrier>,
        at_once: bool,
    ) {
        let index = self.export_here(export);
        let policy = export.policy().clone();
        let disk = self.use_disk(&policy.disk);
        let lined_up = self.clear_line(index);
        let Some(here) = self.exports.get_mut(index) else {
            return;
        };
        let before = std::mem::replace(&mut here.disk, disk);
        here.policy = policy;
        let passed = if at_once {
            vec![barrier]
        } else {
            here.eras.turn(barrier)
        };
        let waiting = match here.policy.mode {
            Mode::Hold => VecDeque::new(),
            _ => std::mem::take(&mut here.waiting),
        };
        let closed = matches!(here.policy.mode, Mode::Closed);
        self.unuse_disk(before);
        for task in lined_up.into_iter().chain(waiting) {
            self.admit(task);
        }
        if closed {
            for session in self.sessions.indices() {
                if self
                    .sessions
                    .get(session)
                    .is_some_and(|s| s.export() == Some(index))
                {
                    self.see_off(session);
                }
            }
            self.stop_queues_of(index);
        }
        for barrier in passed {
            barrier.pass();
        }
        self.release_export(index);
    }

    fn stop_queues_of(&mut self, export: u32) {
        let all = self.entrances.queues.iter();
        let its = all.filter(|(_, queue)| queue.export() == export);
        let its: Vec<u32> = its.map(|(queue, _)| queue).collect();
        for queue in its {
            self.stop_queue(queue);
        }
    }

    /// A request of this era ended.
    pub(super) fn end_era(&mut self, export: u32, era: u64) {
        let Some(here) = self.exports.get_mut(export) else {
            return;
        };
        for barrier in here.eras.end(era) {
            barrier.pass();
        }
        if matches!(here.policy.mode, Mode::Closed) {
            self.release_export(export);
        }
    }

    /// Forget a closed export that nothing uses any more.
    pub(super) fn release_export(&mut self, export: u32) {
        let unused = self.exports.get(export).is_some_and(|here| {
            matches!(here.policy.mode, Mode::Closed)
                && here.attached == 0
                && here.waiting.is_empty()
                && here.line.is_empty()
                && here.eras.is_idle()
        });
        if unused && let Some(here) = self.exports.remove(export) {
            self.unuse_disk(here.disk);
        }
    }

    /// Fail what waits for the export to be served again.
    pub(super) fn fail_waiting(&mut self, export: u32) {
        let Some(here) = self.exports.get_mut(export) else {
            return;
        };
        for task in std::mem::take(&mut here.waiting) {
            self.fail(task, task::shut_down());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn barrier(passed: &Arc<AtomicUsize>) -> Arc<Barrier> {
        let passed = Arc::clone(passed);
        Barrier::new(
            1,
            Box::new(move || {
                passed.fetch_add(1, Ordering::SeqCst);
            }),
        )
    }

    #[test]
    fn a_barrier_is_passed_when_all_that_began_before_it_has_ended() {
        let count = Arc::new(AtomicUsize::new(0));
        let mut eras = Eras::new();
        let first = eras.begin();
        assert!(eras.turn(barrier(&count)).is_empty());
        let second = eras.begin();
        assert!(eras.turn(barrier(&count)).is_empty());
        let third = eras.begin();
        assert!(eras.end(second).is_empty(), "the first era still runs");
        assert_eq!(eras.end(first).len(), 2);
        assert!(eras.end(third).is_empty());
        assert!(eras.is_idle());
        assert_eq!(eras.turn(barrier(&count)).len(), 1, "nothing is in flight");
    }
}
