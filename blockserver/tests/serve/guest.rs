//! The driver's half of a virtqueue: plain writes into a guest's memory (VIRTIO 1.2, 2.7.13, 2.7.14).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use blockserver::export::{ExportHandle, QueueHandle};
use blockserver::virtio::block::{Fault, feature, serial};
use blockserver::virtio::{GuestMemory, QueueOptions, QueueSetup, QueueState};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Request types of virtio-blk (5.2.6).
pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;
/// Statuses.
pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;
/// A status that no device has written.
pub(crate) const NONE: u8 = 0xaa;

/// What a descriptor says.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Bytes of memory of one queue: its parts, then a header, a status and a table for each slot.
pub(crate) const QUEUE_AREA: u64 = 4 << 20;
/// Where the tests put their data: two regions beside each other for the guest, not for us.
pub(crate) const DATA: u64 = 16 << 20;
pub(crate) const DATA_END: u64 = DATA + (48 << 20);
/// Requests of one driver at a time.
pub(crate) const SLOTS: u16 = 128;
/// Bytes of a slot's own memory.
const SLOT: u64 = 8192;

/// A guest's memory: room for four queues, and data.
pub(crate) fn memory() -> GuestMemory {
    let ranges = [
        (GuestAddress(0), DATA as usize),
        (GuestAddress(DATA), 24 << 20),
        (GuestAddress(DATA + (24 << 20)), 24 << 20),
    ];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("64 MiB"))
}

/// What the driver puts into the descriptor table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
}

pub(crate) fn readable(address: u64, len: u32) -> Piece {
    #[rustfmt::skip]
    let piece = Piece { address, len, flags: 0 };
    piece
}

pub(crate) fn writable(address: u64, len: u32) -> Piece {
    #[rustfmt::skip]
    let piece = Piece { address, len, flags: WRITE };
    piece
}

/// A driver of one queue.
pub(crate) struct Driver {
    pub(crate) memory: GuestMemory,
    pub(crate) state: QueueState,
    pub(crate) features: u64,
    kick: OwnedFd,
    call: OwnedFd,
    free_slots: Vec<u16>,
    free_descriptors: Vec<u16>,
    /// The slot and the descriptors of each head in flight.
    in_flight: HashMap<u16, (u16, Vec<u16>)>,
    next_available: u16,
    next_used: u16,
    /// The available index when the device was kicked last.
    kicked: u16,
    pub(crate) calls: u64,
}

/// A request that the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) slot: u16,
    pub(crate) status: u8,
    pub(crate) written: u32,
}

impl Driver {
    /// Queue `number` of so many entries, not yet attached.
    pub(crate) fn new(memory: &GuestMemory, number: u16, size: u16, features: u64) -> Self {
        let base = u64::from(number) * QUEUE_AREA + 4096;
        let available = base + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        assert!(used + 6 + 8 * u64::from(size) < base + (1 << 20));
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("one");
        Self {
            memory: Arc::clone(memory),
            state: QueueState {
                size,
                descriptors: base,
                available,
                used,
                next_available: 0,
                next_used: 0,
            },
            features,
            kick: event(),
            call: event(),
            free_slots: (0..SLOTS).rev().collect(),
            free_descriptors: (0..size).rev().collect(),
            in_flight: HashMap::new(),
            next_available: 0,
            next_used: 0,
            kicked: 0,
            calls: 0,
        }
    }

    /// Begin as if so many chains had been used already.
    pub(crate) fn start_at(&mut self, index: u16) {
        self.state.next_available = index;
        self.state.next_used = index;
        (self.next_available, self.next_used, self.kicked) = (index, index, index);
        self.publish_index(index);
        self.put(self.state.used + 2, index);
        self.put(self.state.used + 4 + 8 * u64::from(self.state.size), index);
        self.put(
            self.state.available + 4 + 2 * u64::from(self.state.size),
            index,
        );
    }

    /// Hand the queue to the device.
    pub(crate) fn attach(&self, export: &ExportHandle, number: u16) -> QueueHandle {
        self.try_attach(export, number).expect("a sound queue")
    }

    pub(crate) fn try_attach(
        &self,
        export: &ExportHandle,
        number: u16,
    ) -> std::io::Result<QueueHandle> {
        let (memory, setup) = (Arc::clone(&self.memory), self.setup());
        export.attach_queue(memory, setup, self.options(number))
    }

    /// [`Self::attach`], to be told when the queue breaks.
    pub(crate) fn attach_with(
        &self,
        export: &ExportHandle,
        number: u16,
        broken: impl Fn(Fault) + Send + Sync + 'static,
    ) -> QueueHandle {
        let options = QueueOptions {
            broken: Some(Arc::new(broken)),
            ..self.options(number)
        };
        let (memory, setup) = (Arc::clone(&self.memory), self.setup());
        let queue = export.attach_queue(memory, setup, options);
        queue.expect("a sound queue")
    }

    fn setup(&self) -> QueueSetup {
        QueueSetup {
            state: self.state,
            kick: self.kick.try_clone().expect("a descriptor"),
            call: self.call.try_clone().expect("a descriptor"),
        }
    }

    fn options(&self, number: u16) -> QueueOptions {
        QueueOptions {
            features: self.features,
            serial: serial("a guest's disk"),
            number,
            broken: None,
        }
    }

    fn has(&self, bit: u64) -> bool {
        self.features & bit != 0
    }

    pub(crate) fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(address))
            .expect("inside");
    }

    fn load(&self, address: u64) -> u16 {
        self.memory
            .load(GuestAddress(address), Ordering::Acquire)
            .expect("inside")
    }

    fn slot_at(&self, slot: u16) -> u64 {
        self.state.descriptors - 4096 + (1 << 20) + u64::from(slot) * SLOT
    }

    /// Where the header of a slot's request is.
    pub(crate) fn header_at(&self, slot: u16) -> u64 {
        self.slot_at(slot)
    }

    /// Where the status of a slot's request is.
    pub(crate) fn status_at(&self, slot: u16) -> u64 {
        self.slot_at(slot) + 16
    }

    pub(crate) fn put_descriptor(&self, table: u64, index: u16, piece: Piece, next: u16) {
        let at = table + 16 * u64::from(index);
        self.put(at, piece.address);
        self.put(at + 8, piece.len);
        self.put(at + 12, piece.flags);
        self.put(at + 14, next);
    }

    /// The slot of the next request.
    pub(crate) fn next_slot(&self) -> u16 {
        *self.free_slots.last().expect("a free slot")
    }

    /// Ask not to be called (2.7.7.1).
    pub(crate) fn want_no_calls(&self) {
        if self.has(feature::EVENT_IDX) {
            let at = self.state.available + 4 + 2 * u64::from(self.state.size);
            self.put(at, self.next_used.wrapping_sub(1));
        } else {
            self.put(self.state.available, 1u16);
        }
    }

    /// Make a request available: a header, these pieces, a status. Answers its slot.
    pub(crate) fn submit(&mut self, kind: u32, sector: u64, data: &[Piece]) -> u16 {
        self.submit_as(kind, sector, data, false)
    }

    /// [`Self::submit`] by a table of its own.
    pub(crate) fn submit_indirect(&mut self, kind: u32, sector: u64, data: &[Piece]) -> u16 {
        self.submit_as(kind, sector, data, true)
    }

    fn submit_as(&mut self, kind: u32, sector: u64, data: &[Piece], indirect: bool) -> u16 {
        let slot = self.next_slot();
        self.put(self.status_at(slot), NONE);
        self.put(self.header_at(slot), kind);
        self.put(self.header_at(slot) + 4, 0u32);
        self.put(self.header_at(slot) + 8, sector);
        let header = [readable(self.header_at(slot), 16)];
        let status = [writable(self.status_at(slot), 1)];
        let chain = [&header, data, &status].concat();
        self.submit_chain(&chain, indirect);
        slot
    }

    /// Make a chain available, whatever it says.
    pub(crate) fn submit_chain(&mut self, chain: &[Piece], indirect: bool) {
        let slot = self.free_slots.pop().expect("a free slot");
        let in_table = if indirect { 1 } else { chain.len() };
        let own: Vec<u16> = (0..in_table)
            .map(|_| self.free_descriptors.pop().expect("a free descriptor"))
            .collect();
        let last = chain.len() - 1;
        if indirect {
            let table = self.slot_at(slot) + 64;
            assert!(chain.len() as u64 * 16 + 64 <= SLOT);
            for (number, piece) in chain.iter().enumerate() {
                let next = if number < last { NEXT } else { 0 };
                let flags = piece.flags | next;
                let piece = Piece { flags, ..*piece };
                self.put_descriptor(table, number as u16, piece, number as u16 + 1);
            }
            let flags = INDIRECT;
            let piece = Piece {
                address: table,
                len: chain.len() as u32 * 16,
                flags,
            };
            self.put_descriptor(self.state.descriptors, own[0], piece, 0);
        } else {
            for (number, piece) in chain.iter().enumerate() {
                let next = if number < last { NEXT } else { 0 };
                let flags = piece.flags | next;
                let follows = own.get(number + 1).copied().unwrap_or(0);
                let piece = Piece { flags, ..*piece };
                self.put_descriptor(self.state.descriptors, own[number], piece, follows);
            }
        }
        let head = own[0];
        self.in_flight.insert(head, (slot, own));
        self.make_available(head);
    }

    /// Put a head into the available ring; the device may see it from now on.
    pub(crate) fn make_available(&mut self, head: u16) {
        let place = u64::from(self.next_available % self.state.size);
        self.put(self.state.available + 4 + 2 * place, head);
        self.next_available = self.next_available.wrapping_add(1);
        self.publish_index(self.next_available);
    }

    pub(crate) fn publish_index(&self, index: u16) {
        let at = GuestAddress(self.state.available + 2);
        self.memory
            .store(index, at, Ordering::Release)
            .expect("inside");
    }

    /// The index of the used ring.
    pub(crate) fn used_index(&self) -> u16 {
        self.load(self.state.used + 2)
    }

    /// Tell the device, if it wants to be told (2.7.10).
    pub(crate) fn kick(&mut self) {
        fence(Ordering::SeqCst);
        let size = u64::from(self.state.size);
        let wanted = if self.has(feature::EVENT_IDX) {
            let event = self.load(self.state.used + 4 + 8 * size);
            let (new, old) = (self.next_available, self.kicked);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load(self.state.used) & 1 == 0
        };
        self.kicked = self.next_available;
        if wanted {
            self.kick_anyway();
        }
    }

    pub(crate) fn kick_anyway(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).expect("room in the counter");
    }

    /// What the device has used since it was asked last.
    pub(crate) fn take_used(&mut self) -> Vec<Used> {
        let mut all = Vec::new();
        while self.next_used != self.used_index() {
            let place = u64::from(self.next_used % self.state.size);
            let at = self.state.used + 4 + 8 * place;
            let head: u32 = self.memory.read_obj(GuestAddress(at)).expect("inside");
            let written: u32 = self.memory.read_obj(GuestAddress(at + 4)).expect("inside");
            let (slot, own) = self
                .in_flight
                .remove(&(head as u16))
                .expect("it was made available, once");
            let status = GuestAddress(self.status_at(slot));
            let status: u8 = self.memory.read_obj(status).expect("inside");
            self.free_slots.push(slot);
            self.free_descriptors.extend(own.into_iter().rev());
            self.next_used = self.next_used.wrapping_add(1);
            all.push(Used {
                slot,
                status,
                written,
            });
        }
        all
    }

    /// Wait for the device to use something, as a driver that sleeps does: it asks to be told, looks
    /// once more, and then nothing but a call wakes it.
    pub(crate) fn wait(&mut self) -> Vec<Used> {
        loop {
            let used = self.take_used();
            if !used.is_empty() {
                return used;
            }
            if self.has(feature::EVENT_IDX) {
                let at = self.state.available + 4 + 2 * u64::from(self.state.size);
                self.put(at, self.next_used);
            } else {
                self.put(self.state.available, 0u16);
            }
            fence(Ordering::SeqCst);
            if self.next_used == self.used_index() {
                self.sleep();
            }
        }
    }

    fn sleep(&mut self) {
        let mut fds = [PollFd::new(&self.call, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        let ready = poll(&mut fds, Some(&limit)).expect("a poll");
        assert_eq!(ready, 1, "the device never told of what it has to tell");
        self.drain_calls();
    }

    /// How often the device has called since this was asked last.
    pub(crate) fn drain_calls(&mut self) -> u64 {
        let mut count = [0; 8];
        if rustix::io::read(&self.call, &mut count).is_err() {
            return 0;
        }
        self.calls += u64::from_ne_bytes(count);
        u64::from_ne_bytes(count)
    }

    /// Make one request and wait for it.
    pub(crate) fn ask(&mut self, kind: u32, sector: u64, data: &[Piece]) -> Used {
        let slot = self.submit(kind, sector, data);
        self.kick();
        let used = self.wait();
        assert_eq!((used.len(), used[0].slot), (1, slot));
        used[0]
    }

    /// [`Self::ask`] by a table.
    pub(crate) fn ask_indirect(&mut self, kind: u32, sector: u64, data: &[Piece]) -> Used {
        self.submit_indirect(kind, sector, data);
        self.kick();
        self.wait()[0]
    }

    /// Read `len` bytes through the queue.
    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let used = self.ask(IN, offset / 512, &[writable(DATA, len)]);
        assert_eq!((used.status, used.written), (OK, len + 1));
        self.bytes(DATA, len)
    }

    /// Write bytes through the queue.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.memory
            .write_slice(data, GuestAddress(DATA))
            .expect("inside");
        let used = self.ask(OUT, offset / 512, &[readable(DATA, data.len() as u32)]);
        assert_eq!((used.status, used.written), (OK, 1));
    }

    pub(crate) fn bytes(&self, address: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("inside");
        bytes
    }

    /// A request of these ranges (sector, sectors, flags).
    pub(crate) fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> Used {
        for (number, (sector, sectors, flags)) in ranges.iter().enumerate() {
            let at = DATA + 16 * number as u64;
            self.put(at, *sector);
            self.put(at + 8, *sectors);
            self.put(at + 12, *flags);
        }
        self.ask(kind, 0, &[readable(DATA, 16 * ranges.len() as u32)])
    }
}
