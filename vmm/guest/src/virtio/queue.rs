//! A split virtqueue (2.7) that is polled.

use core::sync::atomic::{Ordering, fence};

use crate::machine::memory::Window;

/// A descriptor is followed by another one.
pub(crate) const NEXT: u16 = 1;
/// The device writes to it.
pub(crate) const WRITE: u16 = 2;
/// It points to a table of descriptors.
pub(crate) const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR: u64 = 16;
/// In the driver's flags: no interrupts, please (2.7.7).
const NO_INTERRUPT: u16 = 1;
/// In the device's flags: no notifications, please (2.7.10).
const NO_NOTIFY: u16 = 1;
/// With event idx a queue of 65536 steps has no "never", so the moment is kept half of them away.
const FAR: u16 = 0x8000;

/// A stretch of memory for the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    /// Writes it as entry `index` of a table.
    pub(crate) fn put(&self, table: &Window, index: u16) {
        let at = u64::from(index) * DESCRIPTOR;
        table.write(at, self.address);
        table.write(at + 8, self.len);
        table.write(at + 12, self.flags);
        table.write(at + 14, self.next);
    }
}

/// Where a device is told that a queue has something new.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doorbell {
    register: Window,
    index: u16,
}

impl Doorbell {
    /// The register of queue `index`.
    pub(crate) fn new(register: Window, index: u16) -> Self {
        Self { register, index }
    }
}

/// What a device is done with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// The first descriptor of the chain.
    pub(crate) head: u32,
    /// How many bytes the device wrote.
    pub(crate) len: u32,
}

/// One queue, from the driver's side.
#[derive(Debug)]
pub(crate) struct Queue {
    table: Window,
    driver: Window,
    device: Window,
    size: u16,
    events: bool,
    offered: u16,
    published: u16,
    seen: u16,
}

impl Queue {
    /// How many bytes a queue of `size` descriptors needs.
    pub(crate) fn bytes(size: u16) -> u64 {
        let size = u64::from(size);
        (size * DESCRIPTOR + 6 + 2 * size).next_multiple_of(4) + 6 + 8 * size
    }

    /// A queue in memory that is zero; `events` when event idx was agreed on.
    pub(crate) fn new(memory: Window, size: u16, events: bool) -> Self {
        let entries = u64::from(size);
        let (driver_at, driver_len) = (entries * DESCRIPTOR, 6 + 2 * entries);
        let device_at = (driver_at + driver_len).next_multiple_of(4);
        let queue = Self {
            table: memory.part(0, driver_at),
            driver: memory.part(driver_at, driver_len),
            device: memory.part(device_at, 6 + 8 * entries),
            size,
            events,
            offered: 0,
            published: 0,
            seen: 0,
        };
        queue.refuse_interrupts();
        queue
    }

    /// How many descriptors it has.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// Addresses of the table and the two rings, in the order of the registers.
    pub(crate) fn addresses(&self) -> [u64; 3] {
        [&self.table, &self.driver, &self.device].map(Window::address)
    }

    /// The table of descriptors.
    pub(crate) fn table(&self) -> &Window {
        &self.table
    }

    /// Puts a chain into the ring; the device sees it after [`Self::publish`].
    pub(crate) fn offer(&mut self, head: u16) {
        let entry = u64::from(self.offered % self.size);
        self.driver.write(4 + 2 * entry, head);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows the device all that was offered, and rings if it wants to be told.
    pub(crate) fn publish(&mut self, doorbell: &Doorbell) {
        if self.published == self.offered {
            return;
        }
        // What the chains say has to be there before they are in the ring (2.7.13.2).
        fence(Ordering::Release);
        self.driver.write(2, self.offered);
        // The index has to be there before the wish of the device is read (2.7.13.4.1).
        fence(Ordering::SeqCst);
        let before = core::mem::replace(&mut self.published, self.offered);
        let ring = if self.events {
            let event: u16 = self.device.read(4 + 8 * u64::from(self.size));
            let since = self.offered.wrapping_sub(event).wrapping_sub(1);
            since < self.offered.wrapping_sub(before)
        } else {
            self.device.read::<u16>(0) & NO_NOTIFY == 0
        };
        if ring {
            doorbell.register.write(0, doorbell.index);
        }
    }

    /// The next chain that the device is done with.
    pub(crate) fn take(&mut self) -> Option<Used> {
        let done: u16 = self.device.read(2);
        if done == self.seen {
            return None;
        }
        fence(Ordering::Acquire);
        let at = 4 + 8 * u64::from(self.seen % self.size);
        let used = Used {
            head: self.device.read(at),
            len: self.device.read(at + 4),
        };
        self.seen = self.seen.wrapping_add(1);
        self.refuse_interrupts();
        Some(used)
    }

    fn refuse_interrupts(&self) {
        if self.events {
            let never = self.seen.wrapping_add(FAR);
            self.driver.write(4 + 2 * u64::from(self.size), never);
        } else {
            self.driver.write(0, NO_INTERRUPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Doorbell, Queue, Window};

    const SIZE: u16 = 4;
    /// What a doorbell holds that was not rung.
    const SILENT: u16 = 0xffff;

    /// Offers `count` chains at once: whether it rang.
    fn rings(queue: &mut Queue, register: Window, count: u16) -> bool {
        register.write(0, SILENT);
        for _ in 0..count {
            queue.offer(0);
        }
        queue.publish(&Doorbell::new(register, 3));
        match register.read::<u16>(0) {
            SILENT => false,
            index => index == 3,
        }
    }

    /// Where the device's ring begins, and the word behind its entries.
    fn device(queue: &Queue) -> (Window, u64) {
        (queue.device, 4 + 8 * u64::from(SIZE))
    }

    #[test]
    fn a_device_is_told_when_it_wants_to_be() {
        let (mut memory, mut register) = ([0; 32], [0]);
        let memory = Window::test(&mut memory);
        let register = Window::test(&mut register);
        assert!(Queue::bytes(SIZE) <= memory.len());
        let mut queue = Queue::new(memory, SIZE, false);
        assert!(rings(&mut queue, register, 1));
        assert!(!rings(&mut queue, register, 0), "nothing is new");
        device(&queue).0.write(0, 1u16);
        assert!(!rings(&mut queue, register, 2));
    }

    #[test]
    fn with_event_idx_a_device_is_told_at_its_moment() {
        let (mut memory, mut register) = ([0; 32], [0]);
        let register = Window::test(&mut register);
        let mut queue = Queue::new(Window::test(&mut memory), SIZE, true);
        let (ring, event) = device(&queue);
        let mut offered = 0_u16;
        // Around the ring, and around the 65536 of its index.
        for _ in 0..40_000 {
            ring.write(event, offered.wrapping_add(1));
            assert!(!rings(&mut queue, register, 1), "at {offered}");
            assert!(rings(&mut queue, register, 2), "at {offered}");
            offered = offered.wrapping_add(3);
        }
    }

    #[test]
    fn what_a_device_is_done_with_is_taken_in_order() {
        let mut memory = [0; 32];
        let mut queue = Queue::new(Window::test(&mut memory), SIZE, false);
        let (ring, _) = device(&queue);
        for done in 0..70_000_u32 {
            assert!(queue.take().is_none());
            let at = 4 + 8 * u64::from(done % u32::from(SIZE));
            ring.write(at, done);
            ring.write(at + 4, done + 1);
            ring.write(2, (done + 1) as u16);
            let used = queue.take().expect("a chain");
            assert_eq!((used.head, used.len), (done, done + 1));
        }
    }
}
