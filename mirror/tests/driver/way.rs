//! The connection over which clients' requests will go once the disk has moved.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(crate) struct Way {
    /// How long it takes to be made.
    takes: Mutex<Duration>,
    begun: Mutex<Option<Instant>>,
    held_without: AtomicBool,
}

impl Way {
    pub(crate) fn take(&self, span: Duration) {
        *self.takes.lock().unwrap() = span;
    }

    pub(crate) fn begin(&self) {
        *self.begun.lock().unwrap() = Some(Instant::now());
    }

    pub(crate) fn is_there(&self) -> bool {
        let begun = *self.begun.lock().unwrap();
        begun.is_none_or(|begun| begun.elapsed() >= *self.takes.lock().unwrap())
    }

    /// Clients are held from now on.
    pub(crate) fn hold(&self) {
        let without = self.begun.lock().unwrap().is_none() || !self.is_there();
        self.held_without.store(without, Ordering::SeqCst);
    }

    /// Whether clients were held before it was there.
    pub(crate) fn was_missed(&self) -> bool {
        self.held_without.load(Ordering::SeqCst)
    }
}
