//! A virtqueue that is served, as whoever attached it holds it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::virtio::QueueState;
use crate::worker::{Crew, Message};

/// What the holder of a queue and its worker share.
#[derive(Debug, Default)]
pub(crate) struct QueueShared {
    /// How far it was when the worker let go of it.
    state: Mutex<Option<QueueState>>,
    given_back: Condvar,
    broken: AtomicBool,
    /// Whether its worker was asked to let go of it, and how: a [`Haste`], or 0.
    asked: AtomicU8,
}

/// How a worker is asked to let go of a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// Requests wait for their turn as others do.
    Patience = 1,
    /// None of them waits.
    Hurry = 2,
}

impl QueueShared {
    /// The worker lets go of the queue, its memory and its bells.
    pub(crate) fn give_back(&self, state: QueueState) {
        let mut slot = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(state);
        self.given_back.notify_all();
    }

    pub(crate) fn set_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }

    fn given_back(&self) -> Option<QueueState> {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) -> QueueState {
        let mut slot = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(state) = *slot {
                return state;
            }
            let waited = self.given_back.wait(slot);
            slot = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A virtqueue that is served. When it is dropped the queue is stopped, and not waited for.
pub struct QueueHandle {
    shared: Arc<QueueShared>,
    crew: Arc<Crew>,
    worker: u16,
}

impl fmt::Debug for QueueHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueHandle")
            .field("worker", &self.worker)
            .field("broken", &self.is_broken())
            .finish_non_exhaustive()
    }
}

impl QueueHandle {
    pub(crate) fn new(shared: Arc<QueueShared>, crew: Arc<Crew>, worker: u16) -> Self {
        Self {
            shared,
            crew,
            worker,
        }
    }

    /// Whether the driver broke a rule so that the queue cannot go on: the device needs a reset.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::Acquire)
    }

    /// Take no more requests, wait until those in flight have been answered, and say how far the
    /// queue is, to go on from there. Requests that wait because their export is held are in flight
    /// too. Afterwards nothing touches the guest's memory any more. Not to be called on a worker,
    /// callbacks included.
    #[must_use]
    pub fn stop(self) -> QueueState {
        self.hurry();
        self.shared.wait()
    }

    /// [`Self::stop`] without waiting and in patience: ask for it, and say how far the queue is once it has
    /// stopped. To be called again until then.
    #[must_use]
    pub fn try_stop(&self) -> Option<QueueState> {
        self.ask_to_stop();
        self.shared.given_back()
    }

    /// [`Self::try_stop`] for the host's own sake: what waits for its turn under the export's limits begins now, and
    /// whoever comes after it waits for that.
    pub fn hurry(&self) {
        self.ask_to_stop_and(Haste::Hurry);
    }

    fn ask_to_stop(&self) {
        self.ask_to_stop_and(Haste::Patience);
    }

    fn ask_to_stop_and(&self, haste: Haste) {
        if self.shared.asked.fetch_max(haste as u8, Ordering::AcqRel) >= haste as u8 {
            return;
        }
        let hurry = haste == Haste::Hurry;
        let queue = Arc::clone(&self.shared);
        // A worker that has ended has given the queue back.
        let _ = self
            .crew
            .inbox(self.worker)
            .post(Message::StopQueue { queue, hurry });
    }
}

impl Drop for QueueHandle {
    fn drop(&mut self) {
        self.hurry();
    }
}
