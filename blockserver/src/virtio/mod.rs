//! virtio-blk: requests that a guest puts into virtqueues in its own memory (VIRTIO 1.2, 2.7 and 5.2).
//!
//! Written once for two users: a machine monitor whose transport hands queues over when the driver is
//! ready, and a vhost-user server. A queue is served by one worker with its ring, on which the kick is
//! waited for; data moves between the disk's file and the guest's memory without a copy where it is
//! aligned as the file asks. Nothing here knows a transport: no registers, no PCI, no sockets.

pub mod block;
pub mod ring;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use self::block::SERIAL_LEN;

/// A guest's memory, as it is mapped here. Kept alive by whoever still has operations on it.
pub type GuestMemory = Arc<GuestMemoryMmap<()>>;

/// Where a split virtqueue is, and how far it is (VIRTIO 1.2, 2.7).
///
/// What a transport learns from the driver, and what a queue that was stopped returns, so that it can be
/// saved and go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Number of entries: a power of two, at most 32768.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring (the driver area).
    pub available: u64,
    /// Guest address of the used ring (the device area).
    pub used: u64,
    /// Index of the next available entry that the device takes.
    pub next_available: u16,
    /// Index of the next used entry that the device writes.
    pub next_used: u16,
}

/// A queue handed to whoever serves it.
#[derive(Debug)]
pub struct QueueSetup {
    /// Where it is.
    pub state: QueueState,
    /// Readable when the driver has put something into it (an ioeventfd).
    pub kick: OwnedFd,
    /// To be written when the driver shall look at it (an irqfd, or the transport's own).
    pub call: OwnedFd,
}

/// How a queue is to be served.
#[derive(Clone)]
pub struct QueueOptions {
    /// What the driver negotiated, of what [`block::BlockDevice::features`] offers.
    pub features: u64,
    /// What the device calls itself; see [`block::serial`].
    pub serial: [u8; SERIAL_LEN],
    /// Its number among the device's queues, which are spread over the workers by it.
    pub number: u16,
    /// Called, on a worker, when the queue cannot go on: the device needs a reset. Must not block.
    pub broken: Option<Arc<dyn Fn(block::Fault) + Send + Sync>>,
}

impl fmt::Debug for QueueOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueOptions")
            .field("features", &format_args!("{:#x}", self.features))
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}
