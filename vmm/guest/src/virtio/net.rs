//! A virtio network device (5.1), driven by one vCPU.
//!
//! A frame that came is put together in one window, whatever buffers it is spread over; there it is changed, and
//! from there it is sent.

use crate::command::Step;
use crate::machine::boot::Boot;
use crate::machine::memory::{self, PAGE, Window};
use crate::vcpu::Vcpu;

use super::device::{self, Device};
use super::queue::{Descriptor, Doorbell, NEXT, Queue, WRITE};

/// Bytes before a frame (5.1.6.1).
pub(crate) const HEADER: u64 = 12;
/// In its flags: the checksum is to be made.
pub(crate) const NEEDS_CHECKSUM: u8 = 1;
/// A kind of frame: a UDP datagram that is longer than the MTU.
pub(crate) const LONG_UDP: u8 = 3;
/// The longest frame with its header, and something to spare.
const LONGEST: u64 = 68 << 10;

/// Feature bits (5.1.3).
const CHECKSUM: u64 = 1;
const GUEST_CHECKSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
/// Long frames of TCP over IPv4 and IPv6, with ECN, and of UDP, that come and that go.
const GUEST_SEGMENTS: u64 = 0xf << 7;
const SEGMENTS: u64 = 0xf << 11;
const MERGED: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;

/// Numbers of the queues (5.1.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Frames that may be on their way out.
const SLOTS: u16 = 16;
/// Descriptors of each.
const SLOT_CHAIN: u16 = 2;
/// Most buffers for frames that come.
const MOST_BUFFERS: u64 = 256;

/// What stands before a frame.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Header {
    pub(crate) flags: u8,
    pub(crate) kind: u8,
    /// Bytes that each piece of a frame begins with that is to be cut.
    pub(crate) fixed: u16,
    /// Bytes of data in each piece.
    pub(crate) piece: u16,
    /// Where what is to be summed up begins, and where from there the sum goes.
    pub(crate) sum_from: u16,
    pub(crate) sum_at: u16,
}

/// A frame that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub(crate) header: Header,
    /// Bytes of it, without the header.
    pub(crate) len: u64,
    /// How many buffers it was spread over.
    pub(crate) buffers: u16,
    /// Whether the device said another number, which counts only where buffers are merged; QEMU's did for long.
    pub(crate) unnumbered: bool,
}

/// A network device that is open.
#[derive(Debug)]
pub(crate) struct Card {
    pub(crate) device: Device,
    /// What was agreed on.
    pub(crate) features: u64,
    receive: (Queue, Doorbell),
    transmit: (Queue, Doorbell),
    buffer: u64,
    buffers: Window,
    slots: Window,
    free: [bool; SLOTS as usize],
    /// Where a frame is put together, its header first.
    pub(crate) whole: Window,
}

impl Card {
    /// Opens the device that `card=` says. By the words `plain`, `merged` and `events` it wants less or more;
    /// `ring` buffers of `buffer` bytes are for frames that come.
    pub(crate) fn open(vcpu: &Vcpu, boot: &Boot, step: &Step) -> Self {
        let device = Device::find(boot, device::NETWORK, step.number_or("card", 0) as usize);
        let mut wanted = MTU | MAC | STATUS;
        if !step.is_set("plain") {
            wanted |= CHECKSUM | GUEST_CHECKSUM | GUEST_SEGMENTS | SEGMENTS;
        }
        if step.number_or("merged", 1) != 0 {
            wanted |= MERGED;
        }
        if step.is_set("events") {
            wanted |= device::EVENT_IDX;
        }
        let features = device.negotiate(vcpu, wanted);
        let events = features & device::EVENT_IDX != 0;
        let count = step.number_or("ring", 64);
        let buffer = step.number_or("buffer", 2048);
        assert!((1..=MOST_BUFFERS).contains(&count), "ring={count}");
        assert!(
            buffer.is_multiple_of(8) && (16..=LONGEST).contains(&buffer),
            "buffer={buffer}"
        );
        let queue = |index: u16, size: u16| {
            let size = size.next_power_of_two().min(device.longest_queue(index));
            let memory = memory::take(boot, Queue::bytes(size));
            memory.clear();
            let queue = Queue::new(memory, size, events);
            device.set_queue(index, &queue);
            let doorbell = device.doorbell(index);
            (queue, doorbell)
        };
        let receive = queue(RECEIVE, count as u16);
        let transmit = queue(TRANSMIT, SLOTS * SLOT_CHAIN);
        let mut card = Self {
            device,
            features,
            receive,
            transmit,
            buffer,
            buffers: memory::take(boot, buffer * count),
            slots: memory::take(boot, LONGEST * u64::from(SLOTS)),
            free: [true; SLOTS as usize],
            whole: memory::take(boot, LONGEST + PAGE),
        };
        device.start();
        for index in 0..count as u16 {
            card.give(index);
        }
        card.publish();
        card
    }

    /// Closes it.
    pub(crate) fn close(self, vcpu: &Vcpu) {
        self.device.expect_health();
        self.device.reset(vcpu);
        memory::give_back();
    }

    /// Its address, whether its link is up, and its MTU (5.1.4).
    pub(crate) fn describe(&self) -> ([u8; 6], bool, u16) {
        let words: [u32; 3] = self.device.config(0);
        let byte = |at: usize| words[at / 4].to_le_bytes()[at % 4];
        let mtu = u16::from_le_bytes([byte(10), byte(11)]);
        (core::array::from_fn(byte), byte(6) & 1 != 0, mtu)
    }

    /// Whether checksums may be left to the device.
    pub(crate) fn leaves_checksums(&self) -> bool {
        self.features & CHECKSUM != 0
    }

    /// The next frame that came, put together in [`Self::whole`]; its buffers are the device's again after
    /// [`Self::publish`].
    pub(crate) fn take(&mut self) -> Option<Arrived> {
        let mut used = self.receive.0.take()?;
        let first = self.buffer_at(used.head);
        let said: u16 = first.read(10);
        let merged = self.features & MERGED != 0;
        assert!(said > 0 || !merged, "a frame of no buffers");
        let count = if merged { said } else { 1 };
        let header = Header {
            flags: first.read(0),
            kind: first.read(1),
            fixed: first.read(2),
            piece: first.read(4),
            sum_from: first.read(6),
            sum_at: first.read(8),
        };
        let mut bytes = 0;
        for left in (0..count).rev() {
            let len = u64::from(used.len);
            // 5.1.6.4.1: all buffers but the last are filled.
            let whole = len == self.buffer || left == 0 && len <= self.buffer;
            assert!(whole, "{used:?} with {left} buffers to come");
            let from = self.buffer_at(used.head);
            copy(&from, &self.whole, bytes, len);
            bytes += len;
            self.give(used.head as u16);
            if left > 0 {
                // 5.1.6.4.1: they are seen together.
                used = self.receive.0.take().expect("all buffers of a frame");
            }
        }
        assert!(bytes >= HEADER, "a frame of {bytes} bytes");
        Some(Arrived {
            header,
            len: bytes - HEADER,
            buffers: count,
            unnumbered: said != count,
        })
    }

    /// Sends `len` bytes of [`Self::whole`] behind a header, once a slot is free; the device sees it after
    /// [`Self::publish`].
    pub(crate) fn send(&mut self, vcpu: &Vcpu, header: Header, len: u64) {
        let slot = loop {
            self.reap();
            if let Some(slot) = self.free.iter().position(|free| *free) {
                break slot;
            }
            self.publish();
            vcpu.beat();
        };
        self.free[slot] = false;
        let place = self.slots.part(slot as u64 * LONGEST, LONGEST);
        copy(&self.whole, &place, 0, HEADER + len);
        place.write(0, header.flags);
        place.write(1, header.kind);
        place.write(2, header.fixed);
        place.write(4, header.piece);
        place.write(6, header.sum_from);
        place.write(8, header.sum_at);
        place.write(10, 0u16);
        let first = slot as u16 * SLOT_CHAIN;
        let put = |index, at, len: u64, flags| {
            let descriptor = Descriptor {
                address: place.address() + at,
                len: len as u32,
                flags,
                next: index + 1,
            };
            descriptor.put(self.transmit.0.table(), index);
        };
        // How a frame is cut is the driver's business (2.7.4.2): now with its header, now without.
        if slot % 2 == 0 {
            put(first, 0, HEADER + len, 0);
        } else {
            put(first, 0, HEADER, NEXT);
            put(first + 1, HEADER, len, 0);
        }
        self.transmit.0.offer(first);
    }

    /// Shows the device what it was given.
    pub(crate) fn publish(&mut self) {
        self.receive.0.publish(&self.receive.1);
        self.transmit.0.publish(&self.transmit.1);
    }

    /// Waits until all that was sent is the driver's again.
    pub(crate) fn drain(&mut self, vcpu: &Vcpu) {
        self.publish();
        while self.free.iter().any(|free| !free) {
            self.reap();
            vcpu.beat();
        }
    }

    fn reap(&mut self) {
        while let Some(used) = self.transmit.0.take() {
            let slot = (used.head / u32::from(SLOT_CHAIN)) as usize;
            let was_sent = self.free.get(slot) == Some(&false);
            assert!(was_sent, "the device answered {used:?}, which was not sent");
            self.free[slot] = true;
        }
    }

    fn buffer_at(&self, head: u32) -> Window {
        self.buffers
            .part(u64::from(head) * self.buffer, self.buffer)
    }

    fn give(&mut self, index: u16) {
        let descriptor = Descriptor {
            address: self.buffer_at(u32::from(index)).address(),
            len: self.buffer as u32,
            flags: WRITE,
            next: 0,
        };
        descriptor.put(self.receive.0.table(), index);
        self.receive.0.offer(index);
    }
}

/// Copies the first `len` bytes, rounded up to eight, of one window to `at` of another.
fn copy(from: &Window, to: &Window, at: u64, len: u64) {
    for offset in (0..len).step_by(8) {
        to.write(at + offset, from.read::<u64>(offset));
    }
}
