//! virtio-rng: entropy of the host (VIRTIO 1.2, 5.4).
//!
//! Driver. One queue, served by one thread that sleeps until the driver rings it. A request gets at most
//! 4096 bytes, whatever it asks for, so that a guest cannot make this thread busy without giving buffers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use blockserver::virtio::block::feature;
use blockserver::virtio::{GuestMemory, QueueSetup, QueueState};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::Bytes;

use super::{Activation, Alarm, VirtioDevice};
use crate::confine::Kind;
use crate::threads;

/// Its number (5.4.1).
const KIND: u16 = 4;
/// Most descriptors of the queue.
const QUEUE_SIZE: u16 = 256;
/// Most bytes that one request gets.
const MOST_BYTES: usize = 4096;
/// Most descriptors of a request that are looked at.
const MOST_DESCRIPTORS: usize = 1024;

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    serving: Option<(OwnedFd, JoinHandle<QueueState>)>,
}

impl VirtioDevice for Rng {
    fn kind(&self) -> u16 {
        KIND
    }

    fn features(&self) -> u64 {
        feature::INDIRECT_DESC | feature::EVENT_IDX
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        let Some((_, setup)) = activation.queues.into_iter().next() else {
            return Ok(());
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let server = Server {
            memory: activation.memory,
            queue: queue(&setup.state, activation.features)?,
            setup,
            stop: stop.try_clone()?,
            alarm: activation.alarm,
        };
        let thread = threads::spawn("virtio-rng", Kind::Device, move || server.run())?;
        self.serving = Some((stop, thread));
        Ok(())
    }

    fn reset(&mut self) -> Vec<(u16, QueueState)> {
        let Some((stop, thread)) = self.serving.take() else {
            return Vec::new();
        };
        if let Err(error) = rustix::io::write(&stop, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "the thread of virtio-rng cannot be told to stop");
        }
        match thread.join() {
            Ok(state) => vec![(0, state)],
            Err(_) => Vec::new(),
        }
    }
}

impl Drop for Rng {
    fn drop(&mut self) {
        self.reset();
    }
}

/// A queue of virtio-queue's that goes on at `state`.
fn queue(state: &QueueState, features: u64) -> io::Result<Queue> {
    let state = virtio_queue::QueueState {
        max_size: state.size,
        next_avail: state.next_available,
        next_used: state.next_used,
        event_idx_enabled: features & feature::EVENT_IDX != 0,
        size: state.size,
        ready: true,
        desc_table: state.descriptors,
        avail_ring: state.available,
        used_ring: state.used,
    };
    Queue::try_from(state).map_err(io::Error::other)
}

struct Server {
    memory: GuestMemory,
    queue: Queue,
    setup: QueueSetup,
    stop: OwnedFd,
    alarm: Alarm,
}

impl Server {
    /// Serve until told to stop; says how far the queue is.
    fn run(mut self) -> QueueState {
        loop {
            let more = match self.serve() {
                Ok(more) => more,
                Err(error) => {
                    tracing::warn!(%error, "virtio-rng: the driver broke its queue, which rests until a reset");
                    self.alarm.raise();
                    self.rest();
                    break;
                }
            };
            if !self.wait(more) {
                break;
            }
        }
        QueueState {
            next_available: self.queue.next_avail(),
            next_used: self.queue.next_used(),
            ..self.setup.state
        }
    }

    /// Sleep until rung, not at all when there is `more` to do; `false` when told to stop.
    fn wait(&self, more: bool) -> bool {
        let (kick, stop) = (self.setup.kick.as_fd(), self.stop.as_fd());
        let mut fds = [kick, stop].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if poll(&mut fds, more.then_some(&at_once)).is_err() {
            return true;
        }
        let [kicked, stopped] = fds.map(|fd| fd.revents().contains(PollFlags::IN));
        if stopped {
            return false;
        }
        if kicked && rustix::io::read(kick, &mut [0; 8]).is_err() {
            tracing::debug!("a doorbell could not be taken");
        }
        true
    }

    fn rest(&self) {
        let mut fds = [PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN)];
        while poll(&mut fds, None).is_err() {}
    }

    /// Answer what is in the queue now; says whether more came meanwhile.
    fn serve(&mut self) -> io::Result<bool> {
        let memory = self.memory.clone();
        let memory = memory.as_ref();
        self.queue
            .disable_notification(memory)
            .map_err(io::Error::other)?;
        let mut answered = Vec::new();
        for chain in self.queue.iter(memory).map_err(io::Error::other)? {
            let head = chain.head_index();
            let mut given = 0;
            // A table of empty descriptors may be long; what is behind so many is not looked at.
            for descriptor in chain.take(MOST_DESCRIPTORS) {
                let bytes = (descriptor.len() as usize).min(MOST_BYTES - given);
                if bytes == 0 || !descriptor.is_write_only() {
                    continue;
                }
                let mut entropy = vec![0; bytes];
                getrandom(&mut entropy, GetRandomFlags::empty())?;
                memory
                    .write_slice(&entropy, descriptor.addr())
                    .map_err(io::Error::other)?;
                given += bytes;
            }
            answered.push((head, given));
        }
        let any = !answered.is_empty();
        for (head, given) in answered {
            self.queue
                .add_used(memory, head, given as u32)
                .map_err(io::Error::other)?;
        }
        if any
            && self
                .queue
                .needs_notification(memory)
                .map_err(io::Error::other)?
        {
            rustix::io::write(&self.setup.call, &1_u64.to_ne_bytes())?;
        }
        self.queue
            .enable_notification(memory)
            .map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    /// A table of so many empty descriptors and one of 64 bytes; how many bytes the device gives.
    fn given_behind(empty: u16) -> u32 {
        let memory = [(GuestAddress(0), 0x8_0000)];
        let memory: GuestMemory =
            std::sync::Arc::new(GuestMemoryMmap::from_ranges(&memory).unwrap());
        let put = |at: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(at)).unwrap();
        let descriptor = |at: u64, len: u32, (flags, next): (u16, u16)| {
            put(at, &0x1000_u64.to_le_bytes());
            put(at + 8, &len.to_le_bytes());
            put(at + 12, &flags.to_le_bytes());
            put(at + 14, &next.to_le_bytes());
        };
        let table = 0x1_0000;
        for index in 0..empty {
            descriptor(table + u64::from(index) * 16, 0, (3, index + 1));
        }
        descriptor(table + u64::from(empty) * 16, 64, (2, 0));
        descriptor(0x2000, (u32::from(empty) + 1) * 16, (4, 0));
        put(0x2000, &table.to_le_bytes());
        put(0x3002, &1_u16.to_le_bytes());
        let state = QueueState {
            size: 4,
            descriptors: 0x2000,
            available: 0x3000,
            used: 0x4000,
            next_available: 0,
            next_used: 0,
        };
        let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut server = Server {
            queue: queue(&state, 0).unwrap(),
            memory: memory.clone(),
            setup: QueueSetup {
                state,
                kick: event(),
                call: event(),
            },
            stop: event(),
            alarm: Alarm::new(|| {}),
        };
        assert!(!server.serve().unwrap());
        memory.read_obj(GuestAddress(0x4008)).unwrap()
    }

    #[test]
    fn a_request_is_looked_at_up_to_a_bound() {
        assert_eq!(given_behind(0), 64);
        assert_eq!(given_behind(1000), 64);
        assert_eq!(given_behind(20_000), 0, "nobody walks that far for a guest");
    }
}
