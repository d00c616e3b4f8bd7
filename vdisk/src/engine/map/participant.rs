//! A worker's part in the reclamation rule.

use std::collections::VecDeque;
use std::sync::Arc;

use super::sync::{Ordering, fence};
use super::{BlockMap, IDLE, MAX_WORKERS};

/// A number that grows whenever an entry of the map stops naming space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub(super) u64);

/// One worker's place in a map: it says which generations the worker may still be acting on.
#[derive(Debug)]
pub struct Participant {
    map: Arc<BlockMap>,
    slot: usize,
    /// Generations with operations in flight, oldest first, each with how many.
    in_flight: VecDeque<(u64, u64)>,
}

impl Participant {
    pub(super) fn new(map: Arc<BlockMap>) -> Self {
        let slot = (0..MAX_WORKERS)
            .find(|slot| map.taken.fetch_or(1 << slot, Ordering::SeqCst) & (1 << slot) == 0)
            .expect("at most MAX_WORKERS workers take part in one map");
        Self {
            map,
            slot,
            in_flight: VecDeque::new(),
        }
    }

    /// The map it takes part in.
    #[must_use]
    pub fn map(&self) -> &Arc<BlockMap> {
        &self.map
    }

    /// Begin an operation: what [`BlockMap::lookup`] answers from now on holds until it is left.
    pub fn enter(&mut self) -> Generation {
        let now = self.map.generation.load(Ordering::Acquire);
        match self.in_flight.back_mut() {
            Some((generation, count)) if *generation == now => *count += 1,
            _ => {
                if self.in_flight.is_empty() {
                    self.map.slots[self.slot].store(now, Ordering::SeqCst);
                    // Either the engine sees this store, or the lookups that follow see its change.
                    fence(Ordering::SeqCst);
                }
                self.in_flight.push_back((now, 1));
            }
        }
        Generation(now)
    }

    /// End an operation that [`Participant::enter`] began, all its file operations having ended.
    ///
    /// True: the engine waits for this; lock it, call its `poll`, and run what it asks for.
    #[must_use]
    pub fn leave(&mut self, generation: Generation) -> bool {
        if let Some((_, count)) = self
            .in_flight
            .iter_mut()
            .find(|(of, _)| *of == generation.0)
        {
            *count -= 1;
        }
        let before = self.in_flight.len();
        while self.in_flight.front().is_some_and(|(_, count)| *count == 0) {
            self.in_flight.pop_front();
        }
        if self.in_flight.len() == before {
            return false;
        }
        let oldest = self
            .in_flight
            .front()
            .map_or(IDLE, |(generation, _)| *generation);
        self.map.slots[self.slot].store(oldest, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.map.attention()
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        self.map.slots[self.slot].store(IDLE, Ordering::SeqCst);
        self.map
            .taken
            .fetch_and(!(1 << self.slot), Ordering::SeqCst);
    }
}
