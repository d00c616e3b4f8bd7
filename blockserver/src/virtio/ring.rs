//! One split virtqueue as its device sees it (VIRTIO 1.2, 2.7): chains out, used entries in, and who
//! wants to be told.
//!
//! Machine. It touches nothing but the guest's memory, and of that writes only the used ring and status
//! bytes. What the guest claims ends at worst with a [`Fault`]; the queue then stands where it stood
//! before the chain that is at fault.

use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::block::{Chain, Fault, Parsed, Rules, Status, feature};
use super::{GuestMemory, QueueState};

/// A queue that is served. It stays on its thread.
#[derive(Debug)]
pub struct SplitQueue {
    memory: Rc<GuestMemory>,
    queue: Queue,
    /// Whether the driver has been asked to tell of the next chain.
    armed: bool,
    /// How many chains were answered since it was asked last whether the driver wants to be told.
    untold: u16,
}

/// A chain as its device walks it, in the guest's memory.
pub type Descriptors<'a> = DescriptorChain<&'a GuestMemoryMmap<()>>;

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
            untold: 0,
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
        self.take(|memory, next| chain.parse(memory, next, rules))
    }

    /// Take the next chain: the name of its head, and what `read` makes of it. Where that finds a fault,
    /// the chain is not taken.
    pub fn take<T>(
        &mut self,
        read: impl FnOnce(&GuestMemoryMmap<()>, Descriptors<'_>) -> Result<T, Fault>,
    ) -> Result<Option<(u16, T)>, Fault> {
        let memory = &**self.memory;
        let mut available = self.queue.iter(memory).map_err(|_| Fault::Index)?;
        let Some(next) = available.next() else {
            return Ok(None);
        };
        self.armed = false;
        let head = next.head_index();
        match read(memory, next) {
            Ok(made) => Ok(Some((head, made))),
            Err(fault) => {
                available.go_to_previous_position();
                Err(fault)
            }
        }
    }

    /// Whether there is something to take, or to find fault with.
    #[must_use]
    pub fn has_more(&self) -> bool {
        let available = self.queue.avail_idx(&**self.memory, Ordering::Acquire);
        available.map_or(true, |index| index.0 != self.queue.next_avail())
    }

    /// Put back the `count` chains that were taken last, none of which was answered.
    pub fn give_back(&mut self, count: u16) {
        let before = self.queue.next_avail().wrapping_sub(count);
        self.queue.set_next_avail(before);
        self.armed = false;
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
        self.put_together(&[(head, written)])
    }

    /// Answer chains, each with the bytes that were written to it. The driver sees all of the answers at
    /// once (5.1.6.4.1 asks for that).
    pub fn put_together(&mut self, answers: &[(u16, u32)]) -> Result<(), Fault> {
        let memory = &**self.memory;
        let (size, ring) = (self.queue.size(), self.queue.used_ring());
        let mut next = self.queue.next_used();
        for (head, written) in answers {
            let entry = u64::from(next.checked_rem(size).ok_or(Fault::Memory)?);
            let at = ring.checked_add(4 + 8 * entry).ok_or(Fault::Memory)?;
            let element = u64::from(*head) | u64::from(*written) << 32;
            memory
                .write_obj(element.to_le(), GuestAddress(at))
                .map_err(|_| Fault::Memory)?;
            next = next.wrapping_add(1);
        }
        let at = ring.checked_add(2).ok_or(Fault::Memory)?;
        memory
            .store(next.to_le(), GuestAddress(at), Ordering::Release)
            .map_err(|_| Fault::Memory)?;
        self.untold = self.untold.saturating_add(answers.len() as u16);
        self.queue.set_next_used(next);
        Ok(())
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
        let untold = std::mem::take(&mut self.untold);
        // The driver must see the used index before we see what it wants, or neither tells the other.
        fence(Ordering::SeqCst);
        if self.queue.event_idx_enabled() {
            let behind = 4 + 2 * u64::from(self.queue.size());
            let at = self.queue.avail_ring().checked_add(behind);
            let at = GuestAddress(at.ok_or(Fault::Memory)?);
            let event: u16 = memory
                .load(at, Ordering::Relaxed)
                .map_err(|_| Fault::Memory)?;
            let passed = self.queue.next_used().wrapping_sub(u16::from_le(event));
            // Whether the entry that it waits for is among those it was not told of.
            return Ok(passed.wrapping_sub(1) < untold);
        }
        let at = GuestAddress(self.queue.avail_ring());
        let flags: u16 = memory
            .load(at, Ordering::Relaxed)
            .map_err(|_| Fault::Memory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}
