//! A driver's side of one queue, made up in memory, for the tests of this device.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockserver::virtio::ring::SplitQueue;
use blockserver::virtio::{GuestMemory, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A descriptor is followed by another; the device writes to it; it names a table.
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;
/// Bytes of memory.
pub(super) const MEMORY: usize = 1 << 20;
/// Where buffers are.
pub(super) const DATA: u64 = 0x2_0000;
/// Outside of memory.
pub(super) const NOWHERE: u64 = 1 << 40;
/// Descriptors of a queue.
pub(super) const SIZE: u16 = 16;

pub(super) fn memory() -> GuestMemory {
    let ranges = [(GuestAddress(0), MEMORY)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

/// A queue as its driver has it.
pub(super) struct Ring {
    pub(super) memory: GuestMemory,
    pub(super) state: QueueState,
    available: u16,
    next: u16,
    seen: u16,
}

impl Ring {
    /// An empty one; each `number` has a place of its own.
    pub(super) fn new(memory: &GuestMemory, number: u64) -> Self {
        let at = 0x1000 + number * 0x4000;
        Self {
            memory: memory.clone(),
            state: QueueState {
                size: SIZE,
                descriptors: at,
                available: at + 0x1000,
                used: at + 0x2000,
                next_available: 0,
                next_used: 0,
            },
            available: 0,
            next: 0,
            seen: 0,
        }
    }

    pub(super) fn open(&self, features: u64) -> SplitQueue {
        SplitQueue::open(self.memory.clone(), &self.state, features).unwrap()
    }

    pub(super) fn descriptor(&self, index: u16, (address, len): (u64, u32), flags: u16, next: u16) {
        let at = self.state.descriptors + 16 * u64::from(index);
        self.write_descriptor(at, (address, len), flags, next);
    }

    pub(super) fn write_descriptor(
        &self,
        at: u64,
        (address, len): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Offer the chain that begins at a descriptor.
    pub(super) fn offer(&mut self, head: u16) {
        let entry = u64::from(self.available % SIZE);
        let at = GuestAddress(self.state.available + 4 + 2 * entry);
        self.memory.write_obj(head.to_le(), at).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_index(self.available);
    }

    pub(super) fn set_index(&self, index: u16) {
        let at = GuestAddress(self.state.available + 2);
        self.memory
            .store(index.to_le(), at, Ordering::Release)
            .unwrap();
    }

    /// Offer a chain of these pieces in the next free descriptors: its head.
    pub(super) fn chain(&mut self, pieces: &[(u64, u32)], flags: u16) -> u16 {
        let head = self.next % SIZE;
        for (place, piece) in pieces.iter().enumerate() {
            let (index, next) = (self.next % SIZE, (self.next + 1) % SIZE);
            let more = if place + 1 < pieces.len() { NEXT } else { 0 };
            self.descriptor(index, *piece, flags | more, next);
            self.next = (self.next + 1) % SIZE;
        }
        self.offer(head);
        head
    }

    /// What the device has answered since this was asked last.
    pub(super) fn answers(&mut self) -> Vec<(u32, u32)> {
        let index = GuestAddress(self.state.used + 2);
        let index: u16 = self.memory.load(index, Ordering::Acquire).unwrap();
        let mut answers = Vec::new();
        while self.seen != u16::from_le(index) {
            let entry = u64::from(self.seen % SIZE);
            let at = self.state.used + 4 + 8 * entry;
            let read = |at| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
            answers.push((read(at), read(at + 4)));
            self.seen = self.seen.wrapping_add(1);
        }
        answers
    }

    pub(super) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }
}

/// Something that a driver does to its own queue, and what it is.
pub(super) type Sin = (&'static str, fn(&mut Ring, u16));

/// Every way to offer what cannot be served; the second argument is the flag of the queue's direction.
pub(super) const SINS: [Sin; 13] = [
    ("a buffer nowhere", |ring, way| {
        ring.chain(&[(DATA, 64), (NOWHERE, 64)], way);
    }),
    ("a buffer beyond the end of memory", |ring, way| {
        ring.chain(&[(MEMORY as u64 - 32, 64)], way);
    }),
    ("a buffer beyond the last address", |ring, way| {
        ring.chain(&[(u64::MAX - 8, 64)], way);
    }),
    ("the other direction", |ring, way| {
        ring.chain(&[(DATA, 64)], way ^ WRITE);
    }),
    ("both directions", |ring, way| {
        ring.descriptor(0, (DATA, 64), way | NEXT, 1);
        ring.descriptor(1, (DATA, 64), way ^ WRITE, 0);
        ring.offer(0);
    }),
    ("no room for a header", |ring, way| {
        ring.chain(&[(DATA, 11)], way);
    }),
    ("nothing at all", |ring, way| {
        ring.chain(&[(DATA, 0)], way);
    }),
    ("a head that is no descriptor", |ring, _| ring.offer(SIZE)),
    ("a successor that is no descriptor", |ring, way| {
        ring.descriptor(0, (DATA, 64), way | NEXT, SIZE);
        ring.offer(0);
    }),
    ("a loop", |ring, way| {
        ring.descriptor(0, (DATA, 64), way | NEXT, 0);
        ring.offer(0);
    }),
    ("a table in a table", |ring, way| {
        let table = DATA + 0x1000;
        ring.write_descriptor(table, (table, 16), INDIRECT | way, 0);
        ring.descriptor(0, (table, 16), INDIRECT, 0);
        ring.offer(0);
    }),
    (
        "a table that is longer than any chain may be",
        |ring, way| {
            let table = DATA + 0x1000;
            for index in 0..300_u16 {
                let at = table + 16 * u64::from(index);
                let more = if index < 299 { NEXT } else { 0 };
                ring.write_descriptor(at, (DATA, 64), way | more, index + 1);
            }
            ring.descriptor(0, (table, 300 * 16), INDIRECT, 0);
            ring.offer(0);
        },
    ),
    ("more chains than there are entries", |ring, way| {
        ring.descriptor(0, (DATA, 64), way, 0);
        ring.set_index(SIZE + 1);
    }),
];
