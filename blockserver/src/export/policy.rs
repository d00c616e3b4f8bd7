//! What workers do with an export's requests, and how one learns that all of them do it.
//!
//! A change of policy is set once and then told to every worker; each worker acknowledges it when
//! the requests that it began under an earlier policy have ended. So a barrier that is through means:
//! nothing is in flight any more that did not know of the change. This is the only synchronisation
//! between control and data path; a request in steady state looks at nothing shared.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vdisk::tap::WriteTap;

use super::Disk;
use crate::forward::Forwarder;

/// Where requests of clients go.
#[derive(Clone)]
pub(crate) enum Mode {
    /// To the disk.
    Serve,
    /// Nowhere yet: they wait.
    Hold,
    /// To a server elsewhere.
    Forward(Arc<Forwarder>),
    /// Nowhere: they fail with ESHUTDOWN.
    Closed,
}

/// What is to be done with an export's requests.
#[derive(Clone)]
pub(crate) struct Policy {
    pub(crate) mode: Mode,
    pub(crate) tap: Option<Arc<dyn WriteTap>>,
    pub(crate) disk: Arc<Disk>,
    /// Whether requests that are served have to wait for their turn.
    pub(crate) limited: bool,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Serve => "serve",
            Mode::Hold => "hold",
            Mode::Forward(_) => "forward",
            Mode::Closed => "closed",
        };
        let tap = if self.tap.is_some() { ", tapped" } else { "" };
        let limited = if self.limited { ", limited" } else { "" };
        write!(f, "{mode}{tap}{limited}")
    }
}

/// Called once all workers have passed a barrier; runs on one of them and must not block.
pub(crate) type Passed = Box<dyn FnOnce() + Send>;

/// Something that every worker passes once.
pub(crate) struct Barrier {
    left: AtomicUsize,
    passed: Mutex<Option<Passed>>,
}

impl Barrier {
    /// A barrier for so many workers (at least one).
    pub(crate) fn new(workers: usize, passed: Passed) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicUsize::new(workers),
            passed: Mutex::new(Some(passed)),
        })
    }

    /// One worker is past it.
    pub(crate) fn pass(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let passed = self
            .passed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(passed) = passed {
            passed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_worker_past_a_barrier_calls_back() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let barrier = Barrier::new(
            2,
            Box::new(move || {
                counted.fetch_add(1, Ordering::SeqCst);
            }),
        );
        barrier.pass();
        assert_eq!(calls.load(Ordering::SeqCst), 0);
        barrier.pass();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}
