//! virtio-net: Ethernet by a tap of the host, with one pair of queues (VIRTIO 1.2, 5.1).
//!
//! Driver of the device: it hands the queues to a thread when the driver is ready and takes them back. What a
//! header says is `header`'s, which buffers a frame uses `frames`'s to decide; `serving` moves frames and
//! `tap` is the host's end. The control queue is not offered, so there are no filters: the guest gets what
//! comes to the tap.

mod frames;
mod header;
mod ioctl;
#[cfg(test)]
mod ring_tests;
mod serving;
mod tap;
mod traffic;
mod vectors;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use blockserver::virtio::{QueueSetup, QueueState};
use rustix::event::{EventfdFlags, eventfd};

pub use self::tap::Tap;
pub use self::traffic::{Moved, Traffic};

use self::serving::{Ended, Parked, Work, serve};
use super::{Activation, VirtioDevice};
use crate::confine::Kind;
use crate::snapshot::{DeviceState, Network};
use crate::threads;

/// Its number (5.1.1).
const KIND: u16 = 1;
/// Numbers of its queues (5.1.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// A network device.
#[derive(Debug)]
pub struct Net {
    tap: Arc<Tap>,
    mac: [u8; 6],
    traffic: Arc<Traffic>,
    serving: Option<(OwnedFd, JoinHandle<Ended>)>,
    /// Queues of a driver that did not enable both: nothing moves.
    idle: Vec<(u16, QueueState)>,
    /// A frame that was read from the tap before the device was stopped.
    parked: Option<Parked>,
}

impl Net {
    /// The device at the other end of `tap`, with this address. Where one takes the place of another on the
    /// same tap, the other has to be stopped.
    #[must_use]
    pub fn new(tap: Arc<Tap>, mac: [u8; 6]) -> Self {
        Self {
            tap,
            mac,
            traffic: Arc::default(),
            serving: None,
            idle: Vec::new(),
            parked: None,
        }
    }

    fn remembered(&self) -> Network {
        Network {
            mac: self.mac,
            mtu: self.tap.mtu(),
        }
    }

    /// What it has moved.
    #[must_use]
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }
}

/// The receive queue and the transmit queue, if the driver has enabled both.
fn pair(queues: Vec<(u16, QueueSetup)>) -> Result<[QueueSetup; 2], Vec<(u16, QueueState)>> {
    match <[(u16, QueueSetup); 2]>::try_from(queues) {
        Ok([(RECEIVE, receive), (TRANSMIT, transmit)]) => Ok([receive, transmit]),
        Ok(other) => Err(states(other.into_iter())),
        Err(other) => Err(states(other.into_iter())),
    }
}

fn states(queues: impl Iterator<Item = (u16, QueueSetup)>) -> Vec<(u16, QueueState)> {
    queues
        .map(|(number, setup)| (number, setup.state))
        .collect()
}

impl VirtioDevice for Net {
    fn kind(&self) -> u16 {
        KIND
    }

    fn features(&self) -> u64 {
        header::OFFERED
    }

    fn queues(&self) -> Vec<u16> {
        vec![frames::QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = header::config(self.mac, self.tap.is_up(), self.tap.mtu());
        for (at, byte) in (offset..).zip(data) {
            let at = usize::try_from(at).unwrap_or(config.len());
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn state(&self) -> DeviceState {
        DeviceState::Network(self.remembered())
    }

    /// The device must not change what its driver has read (5.1.4.1).
    fn restore(&mut self, state: &DeviceState) -> Result<(), String> {
        let DeviceState::Network(saved) = state else {
            return Err("it is a network device, and was none".to_owned());
        };
        let here = self.remembered();
        if here == *saved {
            return Ok(());
        }
        let words = |network: &Network| {
            let pairs = network.mac.map(|byte| format!("{byte:02x}"));
            format!("{} with an MTU of {}", pairs.join(":"), network.mtu)
        };
        Err(format!(
            "the network device is {}, and was {}",
            words(&here),
            words(saved)
        ))
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        let setups = match pair(activation.queues) {
            Ok(setups) => setups,
            Err(idle) => {
                self.idle = idle;
                return Ok(());
            }
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let work = Work {
            features: activation.features,
            memory: activation.memory,
            setups,
            alarm: activation.alarm,
            changed: activation.changed,
            stop: stop.try_clone()?,
            tap: Arc::clone(&self.tap),
            traffic: Arc::clone(&self.traffic),
            parked: self.parked.take(),
        };
        let thread = threads::spawn("virtio-net", Kind::Network, move || serve(work))?;
        self.serving = Some((stop, thread));
        Ok(())
    }

    fn reset(&mut self) -> Vec<(u16, QueueState)> {
        let Some((stop, thread)) = self.serving.take() else {
            return std::mem::take(&mut self.idle);
        };
        if let Err(error) = rustix::io::write(&stop, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "the thread of virtio-net cannot be told to stop");
        }
        let Ok(ended) = thread.join() else {
            return Vec::new();
        };
        self.parked = ended.parked;
        (RECEIVE..).zip(ended.states).collect()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.reset();
    }
}
