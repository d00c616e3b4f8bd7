//! One split virtqueue as its device sees it (VIRTIO 1.2, 2.7): chains out, used entries in, and who
//! wants to be told.
//!
//! Machine. It touches nothing but the guest's memory, and of that writes only the used ring and status
//! bytes. What the guest claims ends at worst with a [`Fault`]; the queue then stands where it stood
//! before the chain that is at fault.

use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::block::{Chain, Fault, Parsed, Rules, Status, feature};
use super::{GuestMemory, QueueState};

/// A queue that is served. It stays on its thread.
#[derive(Debug)]
pub struct SplitQueue {
    memory: Rc<GuestMemory>,
    queue: Queue,
    /// Whether the driver has been asked to tell of the next chain.
    armed: bool,
}

impl SplitQueue {
    /// The queue that a driver has set up, with these features negotiated.
    ///
    /// # Errors
    /// Text that says what is wrong: a size that is no power of two, an address that is not aligned, a
    /// part that is not in the guest's memory.
    pub fn open(memory: GuestMemory, state: &QueueState, features: u64) -> Result<Self, String> {
        let QueueState {
            size,
            descriptors,
            available,
            used,
            ..
        } = *state;
        let wanted = virtio_queue::QueueState {
            max_size: size,
            next_avail: state.next_available,
            next_used: state.next_used,
            event_idx_enabled: features & feature::EVENT_IDX != 0,
            size,
            ready: true,
            desc_table: descriptors,
            avail_ring: available,
            used_ring: used,
        };
        let queue = Queue::try_from(wanted);
        let queue = queue.map_err(|error| format!("a virtqueue of {size} entries: {error}"))?;
        if available == 0 || !queue.is_valid(&*memory) {
            return Err(format!(
                "a virtqueue of {size} entries with its parts at {descriptors:#x}, {available:#x} and \
                 {used:#x} is not in the guest's memory"
            ));
        }
        let memory = Rc::new(memory);
        Ok(Self {
            memory,
            queue,
            armed: false,
        })
    }

    /// The memory that it is in.
    #[must_use]
    pub fn memory(&self) -> &Rc<GuestMemory> {
        &self.memory
    }

    /// How far it is. Of a queue whose chains have all been used, what another device goes on from.
    #[must_use]
    pub fn state(&self) -> QueueState {
        QueueState {
            size: self.queue.size(),
            descriptors: self.queue.desc_table(),
            available: self.queue.avail_ring(),
            used: self.queue.used_ring(),
            next_available: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// Take the next chain: the name of its head, and what it asks for.
    pub fn pop(
        &mut self,
        chain: &mut Chain,
        rules: &Rules,
    ) -> Result<Option<(u16, Parsed)>, Fault> {
        let memory = &**self.memory;
        let mut available = self.queue.iter(memory).map_err(|_| Fault::Index)?;
        let Some(next) = available.next() else {
            return Ok(None);
        };
        self.armed = false;
        let head = next.head_index();
        match chain.parse(memory, next, rules) {
            Ok(parsed) => Ok(Some((head, parsed))),
            Err(fault) => {
                available.go_to_previous_position();
                Err(fault)
            }
        }
    }

    /// Answer a chain: its status, then its entry in the used ring, of which the driver has `written`
    /// bytes to look at.
    pub fn put(
        &mut self,
        head: u16,
        status_at: u64,
        status: Status,
        written: u32,
    ) -> Result<(), Fault> {
        let memory = &**self.memory;
        memory
            .write_obj(status.to_wire(), GuestAddress(status_at))
            .map_err(|_| Fault::Memory)?;
        self.queue
            .add_used(memory, head, written)
            .map_err(|_| Fault::Memory)
    }

    /// Have the driver not tell of chains for now (2.7.10).
    pub fn disarm(&mut self) -> Result<(), Fault> {
        let memory = &**self.memory;
        self.armed = false;
        self.queue
            .disable_notification(memory)
            .map_err(|_| Fault::Memory)
    }

    /// Have the driver tell of the next chain; whether one came meanwhile, of which it will not tell.
    pub fn arm(&mut self) -> Result<bool, Fault> {
        if self.armed {
            return Ok(false);
        }
        let memory = &**self.memory;
        let more = self.queue.enable_notification(memory);
        let more = more.map_err(|_| Fault::Memory)?;
        self.armed = !more;
        Ok(more)
    }

    /// Whether the driver wants to be told of what was put in since this was asked last (2.7.7.2).
    pub fn wants_call(&mut self) -> Result<bool, Fault> {
        let memory = &**self.memory;
        if self.queue.event_idx_enabled() {
            let wanted = self.queue.needs_notification(memory);
            return wanted.map_err(|_| Fault::Memory);
        }
        // The driver must see the used index before we see its flags, or neither tells the other.
        fence(Ordering::SeqCst);
        let at = GuestAddress(self.queue.avail_ring());
        let flags: u16 = memory
            .load(at, Ordering::Relaxed)
            .map_err(|_| Fault::Memory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}
