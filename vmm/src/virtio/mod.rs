//! virtio devices, and the PCI transport between them and a guest's driver (VIRTIO 1.2, 4.1).
//!
//! `transport` is the machine of the registers, `pci` the PCI function around it. A device behind it is
//! a [`VirtioDevice`]; it gets its queues when the driver is ready and gives them back when it is reset.
//! What the host must do (eventfds, routing) is asked of `Wires`, so that nothing here makes a system
//! call. [`rng`] is a device.

pub mod block;
pub mod net;
pub(crate) mod pci;
pub mod rng;
pub(crate) mod transport;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use blockserver::virtio::{GuestMemory, QueueSetup, QueueState};

use crate::pci::Message;
use crate::snapshot::DeviceState;

/// Feature bit 32: the device is of VIRTIO 1.0 or later (6). Always offered and required here.
pub const VERSION_1: u64 = 1 << 32;

/// A device behind the transport. The transport calls it with the lock of its PCI function held, so nothing
/// here may wait for a processor of the guest, and what may take long has a way to be begun and asked for.
pub trait VirtioDevice: Send + fmt::Debug {
    /// Its number (5): 2 for a block device, 4 for entropy.
    fn kind(&self) -> u16;
    /// Features that it offers; the transport adds [`VERSION_1`].
    fn features(&self) -> u64;
    /// Greatest sizes of its queues (2.7): powers of two up to 32768, at most 255 queues.
    fn queues(&self) -> Vec<u16>;
    /// Read its configuration space (2.5). Fills all of `data`; what lies behind the space reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = offset;
        data.fill(0);
    }
    /// Write its configuration space. What cannot be written is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }
    /// The driver is ready (`DRIVER_OK`), or a device that was stopped goes on. Queues are checked: sizes,
    /// alignment, and that they lie in memory. A device that cannot may have begun with some: it is reset before it
    /// is activated again.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;
    /// Take nothing more from the queues, finish what was taken, and say how far each queue is. Nothing of
    /// the guest's memory is touched afterwards. Also called when it was never activated.
    fn reset(&mut self) -> Vec<(u16, QueueState)>;
    /// What the device itself remembers, beside its registers and queues. Asked while it is stopped.
    fn state(&self) -> DeviceState {
        DeviceState::Plain(self.kind())
    }
    /// Remember that, before it is activated for the first time. The text says why this cannot be the device that the
    /// state is of.
    fn restore(&mut self, state: &DeviceState) -> Result<(), String> {
        if self.state() == *state {
            return Ok(());
        }
        Err("it remembers something else".to_owned())
    }

    /// [`Self::reset`] without waiting for what was taken: begin it, and nothing until it has ended. It is asked
    /// again until then, and of the rest only for its configuration.
    fn try_reset(&mut self) -> Option<Vec<(u16, QueueState)>> {
        Some(self.reset())
    }

    /// The host wants it to stop: what waits for its turn under a limit begins. A driver that resets it waits.
    fn hurry(&mut self) {}
}

/// By which a device at work says something of itself, from any thread: that it cannot go on without a reset
/// (2.1.2), or that its configuration is another one (2.5). The driver is told.
#[derive(Clone)]
pub struct Alarm(Arc<dyn Fn() + Send + Sync>);

impl Alarm {
    /// An alarm that does this, which must not block.
    pub(crate) fn new(raise: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(raise))
    }

    /// Say it. Returns at once.
    pub fn raise(&self) {
        (self.0)();
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Alarm")
    }
}

/// What a device gets when the driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// Features that the driver has accepted.
    pub features: u64,
    /// The memory that queues and buffers are in.
    pub memory: GuestMemory,
    /// The queues that the driver has enabled, with their numbers.
    pub queues: Vec<(u16, QueueSetup)>,
    /// For what goes wrong later: the device cannot go on.
    pub alarm: Alarm,
    /// For what [`VirtioDevice::read_config`] gives: it is something else than before.
    pub changed: Alarm,
}

/// Something that signals the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Source {
    /// A queue has used buffers (2.3).
    Queue(u16),
    /// The configuration has changed.
    Config,
}

/// What a function needs of the host. Its implementation keeps signals that cannot be delivered, and
/// delivers them once they can be.
pub(crate) trait Wires: Send + fmt::Debug {
    /// Vector `vector` delivers this message from now on; none, and signals wait.
    fn set_vector(&mut self, vector: u16, message: Option<Message>) -> io::Result<()>;
    /// `source` signals by this vector from now on; by none, and nothing is delivered.
    fn connect(&mut self, source: Source, vector: Option<u16>) -> io::Result<()>;
    /// Whether a source of this vector was signalled and has not been delivered.
    fn is_pending(&self, vector: u16) -> bool;
    /// Return when what was signalled and can be delivered has arrived at the interrupt controllers.
    fn settle(&mut self) -> io::Result<()>;
    /// Whether a source was signalled and has not been delivered.
    fn is_signalled(&self, source: Source) -> bool;
    /// Signal the driver.
    fn signal(&self, source: Source);
    /// The driver rings a queue.
    fn ring(&self, queue: u16);
    /// A queue's doorbell, and what its device signals with.
    fn queue_fds(&self, queue: u16) -> io::Result<(OwnedFd, OwnedFd)>;
    /// An alarm that sets `raised` and then signals [`Source::Config`].
    fn alarm(&self, raised: Arc<AtomicBool>) -> io::Result<Alarm>;
    /// Doorbells are at this address from now on, queue 0's first and each `stride` bytes behind the one before.
    fn place_doorbells(&mut self, address: Option<u64>, stride: u64) -> io::Result<()>;
}
