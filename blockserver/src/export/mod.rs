//! Exports: a name under which a disk is served, and what may be done to it meanwhile.
//!
//! | module | what it is |
//! |---|---|
//! | `disk` | the engine, the map, the file |
//! | `elsewhere` | a disk whose bytes another server has |
//! | `policy` | what workers do with an export's requests now, and barriers to know when all do |
//! | `ranges` | serialises overlapping changes while a tap is on |
//! | `handle` | what the owner of the server does to an export |
//! | `queue` | a virtqueue attached to one, as its holder sees it |
//! | `table` | all exports, as a client's handshake sees them |
//! | `stats` | counters |
//! | `throttle` | its limits, and what they cost |

mod disk;
mod elsewhere;
mod handle;
mod policy;
mod queue;
mod ranges;
mod stats;
mod table;
mod throttle;

pub use disk::Disk;
pub use elsewhere::Elsewhere;
pub use handle::{ExportHandle, LocalReply, LocalRequest};
pub use queue::QueueHandle;
pub use stats::{Kind, LATENCY_BUCKETS, Statistics, Totals};
pub use throttle::Throttled;

pub(crate) use elsewhere::There;
pub(crate) use handle::LocalDone;
pub(crate) use policy::{Barrier, Mode, Policy};
pub(crate) use queue::QueueShared;
pub(crate) use ranges::RangeLocks;
pub(crate) use stats::Counters;
pub(crate) use table::ExportIndex;
pub(crate) use throttle::Throttle;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::forward::Forwarder;

/// What the owner wants of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// Refuse changes, also where the disk could be changed.
    pub read_only: bool,
    /// For people; shown by clients that list exports.
    pub description: String,
    /// Whether clients that list exports see it. One that knows the name finds it in any case.
    pub listed: bool,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            description: String::new(),
            listed: true,
        }
    }
}

/// An export as all workers share it.
#[derive(Debug)]
pub(crate) struct Export {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) options: ExportOptions,
    pub(crate) locks: RangeLocks,
    pub(crate) counters: Box<[Counters]>,
    pub(crate) throttle: Throttle,
    policy: Mutex<Policy>,
    /// Where requests will probably go: the connection is there then.
    expected: Mutex<Option<Arc<Forwarder>>>,
    /// Whether what is sent on has to be durable before it is answered.
    through: AtomicBool,
    /// Whether it is sent on to a server that may do late what it was sent over a lost connection.
    late: AtomicBool,
    /// A process before this one may have sent it something, too.
    left_over: AtomicBool,
}

impl Export {
    pub(crate) fn new(
        id: u64,
        name: String,
        options: ExportOptions,
        policy: Policy,
        workers: usize,
    ) -> Self {
        Self {
            id,
            name,
            options,
            locks: RangeLocks::default(),
            counters: (0..workers).map(|_| Counters::default()).collect(),
            throttle: Throttle::default(),
            policy: Mutex::new(policy),
            expected: Mutex::default(),
            through: AtomicBool::new(false),
            late: AtomicBool::new(false),
            left_over: AtomicBool::new(false),
        }
    }

    /// See [`ExportHandle::write_through`].
    fn write_through(&self) {
        self.through.store(true, Ordering::SeqCst);
    }

    fn writes_through(&self) -> bool {
        self.through.load(Ordering::SeqCst)
    }

    /// Expect requests to go there, or nowhere; what was expected before.
    pub(crate) fn expect(&self, forwarder: Option<Arc<Forwarder>>) -> Option<Arc<Forwarder>> {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut expected, forwarder)
    }

    /// Whether the way to where requests are expected to go is there; so it is if none are.
    pub(crate) fn is_expected_up(&self) -> bool {
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        expected.as_ref().is_none_or(|there| there.is_up())
    }

    /// What is to be done with its requests now.
    pub(crate) fn policy(&self) -> MutexGuard<'_, Policy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether changes are refused.
    pub(crate) fn read_only(&self) -> bool {
        self.options.read_only || self.policy().disk.read_only()
    }
}
