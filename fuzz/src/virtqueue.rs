//! Virtqueues of a hostile guest: rings, tables and requests that say anything.
//!
//! What must hold: no panic; a request that is taken keeps every rule that it is held to; taking a chain
//! changes nothing of the guest's memory, answering it nothing but its status and the used ring; a queue
//! at fault stands where it stood before; a state that was given back is one to go on from.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use blockserver::virtio::block::{
    Chain, DiskRange, MAX_RANGE_SECTORS, MAX_RANGES, Parsed, Request, Rules, SECTOR, SEG_MAX,
    SERIAL_LEN, Segment, Status, What, feature,
};
use blockserver::virtio::ring::SplitQueue;
use blockserver::virtio::{GuestMemory, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The regions of the guest's memory, with a hole between them: first byte, and how many.
const REGIONS: [(u64, usize); 2] = [(0, 0x8000), (0xc000, 0x4000)];
const DESCRIPTORS: u64 = 0x400;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x1800;
/// Addresses about which something is special.
const PLACES: [u64; 14] = [
    0,
    DESCRIPTORS,
    AVAILABLE,
    USED,
    0x3000,
    0x4000,
    0x5000,
    0x7ff0,
    0x8000,
    0xbff0,
    0xc000,
    0xfff0,
    u64::MAX - 0x1ff,
    u64::MAX - 0xf,
];
/// Lengths of descriptors about which something is special.
const LENGTHS: [u32; 10] = [0, 1, 15, 16, 17, 512, 513, 4096, u32::MAX - 1, u32::MAX];
/// The request types that there are, and some that are not.
const KINDS: [u32; 8] = [0, 1, 4, 8, 11, 13, 14, 99];

#[derive(Arbitrary, Debug)]
struct Plan {
    size_shift: u8,
    features: u8,
    sectors: u16,
    odd: u8,
    read_only: bool,
    start: u16,
    deeds: Vec<Deed>,
}

/// What the guest does, or the device.
#[derive(Arbitrary, Debug)]
enum Deed {
    /// An entry of the queue's own table.
    Descriptor(u8, Descriptor),
    /// An entry of a table somewhere else.
    Indirect(Place, u8, Descriptor),
    /// The header of a request.
    Header(Place, u8, u64),
    /// A range to discard or to make zero.
    Range(Place, u64, u32, u8),
    /// Anything anywhere.
    Bytes(Place, [u8; 4]),
    /// A whole request of this kind, in direct descriptors, with so many bytes of data.
    Whole(u8, u16, u16),
    /// A head into the available ring, and its index one further.
    Offer(u8),
    /// The index of the available ring.
    Index(u16),
    /// What the driver says of calls.
    Event(u16),
    /// The device takes what there is, and answers that with this.
    Serve(u8),
    /// The device gives the queue back and another one takes it.
    HandOver,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Place(u8, u8);

#[derive(Arbitrary, Debug)]
struct Descriptor {
    at: Place,
    len: u8,
    flags: u8,
    next: u8,
}

impl Place {
    fn address(self) -> u64 {
        PLACES[usize::from(self.0) % PLACES.len()].saturating_add(self.1.into())
    }
}

/// A guest's memory, its driver, and the device.
struct Bench {
    memory: GuestMemory,
    queue: SplitQueue,
    chain: Chain,
    rules: Rules,
    size: u16,
    available: u16,
}

impl Bench {
    fn new(plan: &Plan) -> Self {
        let ranges = REGIONS.map(|(at, len)| (GuestAddress(at), len));
        let memory = GuestMemoryMmap::from_ranges(&ranges).expect("48 KiB");
        let memory = Arc::new(memory);
        let size = 1 << (plan.size_shift % 7);
        let mut features = feature::VERSION_1;
        for (number, bit) in [feature::EVENT_IDX, feature::DISCARD, feature::WRITE_ZEROES]
            .into_iter()
            .enumerate()
        {
            if plan.features & 1 << number != 0 {
                features |= bit;
            }
        }
        let state = QueueState {
            size,
            descriptors: DESCRIPTORS,
            available: AVAILABLE,
            used: USED,
            next_available: plan.start,
            next_used: plan.start,
        };
        let queue = SplitQueue::open(Arc::clone(&memory), &state, features);
        let mut bench = Self {
            queue: queue.expect("a sound queue"),
            memory,
            chain: Chain::default(),
            rules: Rules {
                size: u64::from(plan.sectors) * SECTOR + u64::from(plan.odd),
                read_only: plan.read_only,
                features,
            },
            size,
            available: plan.start,
        };
        bench.publish(plan.start);
        bench
    }

    /// Write where there is memory.
    fn put(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }

    fn publish(&mut self, index: u16) {
        self.available = index;
        self.put(AVAILABLE + 2, &index.to_le_bytes());
    }

    fn put_descriptor(&self, table: u64, index: u8, descriptor: &Descriptor) {
        let at = table.saturating_add(16 * u64::from(index));
        let len = LENGTHS[usize::from(descriptor.len) % LENGTHS.len()];
        self.put(at, &descriptor.at.address().to_le_bytes());
        self.put(at.saturating_add(8), &len.to_le_bytes());
        self.put(
            at.saturating_add(12),
            &u16::from(descriptor.flags).to_le_bytes(),
        );
        self.put(
            at.saturating_add(14),
            &u16::from(descriptor.next).to_le_bytes(),
        );
    }

    /// Three descriptors, and their head offered.
    fn put_whole(&mut self, kind: u8, sector: u16, len: u16) {
        let kind = KINDS[usize::from(kind) % KINDS.len()];
        let to_guest = matches!(kind, 0 | 8);
        self.put_header(0x3000, kind, sector.into());
        let pieces = [
            (0x3000u64, 16u32, 1u16),
            (0x4000, len.into(), if to_guest { 3 } else { 1 }),
            (0x3800, 1, 2),
        ];
        for (index, (address, len, flags)) in (0u16..).zip(pieces) {
            let at = DESCRIPTORS + 16 * u64::from(index);
            self.put(at, &address.to_le_bytes());
            self.put(at + 8, &len.to_le_bytes());
            self.put(at + 12, &flags.to_le_bytes());
            self.put(at + 14, &(index + 1).to_le_bytes());
        }
        self.offer(0);
    }

    fn put_header(&self, at: u64, kind: u32, sector: u64) {
        self.put(at, &kind.to_le_bytes());
        self.put(at.saturating_add(8), &sector.to_le_bytes());
    }

    fn offer(&mut self, head: u8) {
        let place = u64::from(self.available % self.size);
        self.put(AVAILABLE + 4 + 2 * place, &u16::from(head).to_le_bytes());
        self.publish(self.available.wrapping_add(1));
    }

    fn contents(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for (at, len) in REGIONS {
            let mut bytes = vec![0; len];
            let read = self.memory.read_slice(&mut bytes, GuestAddress(at));
            read.expect("inside");
            all.extend(bytes);
        }
        all
    }

    /// Take what there is; false when the queue is at fault.
    fn serve(&mut self, answer: u8) -> bool {
        let status = [Status::Ok, Status::IoError, Status::Unsupported][usize::from(answer) % 3];
        // A loop of a queue of one entry would be offered for ever.
        for _ in 0..64 {
            let (before, contents) = (self.queue.state(), self.contents());
            let popped = self.queue.pop(&mut self.chain, &self.rules);
            assert!(
                self.contents() == contents,
                "taking a chain changes nothing"
            );
            let (head, written) = match popped {
                Err(_) => {
                    assert_eq!(self.queue.state(), before);
                    return false;
                }
                Ok(None) => {
                    let more = self.queue.arm().expect("in memory");
                    assert!(!more, "nobody offers anything meanwhile");
                    let _ = self.queue.wants_call().expect("in memory");
                    return true;
                }
                Ok(Some((head, Parsed::Refused(refusal)))) => {
                    assert_ne!(refusal, Status::Ok);
                    (head, 0)
                }
                Ok(Some((head, Parsed::Request(request)))) => {
                    self.check(&request);
                    self.queue.disarm().expect("in memory");
                    (head, check_written(&request, status))
                }
            };
            self.answer(head, status, written);
        }
        true
    }

    fn answer(&mut self, head: u16, status: Status, written: u32) {
        let at = self.chain.status_at();
        let before = self.queue.state();
        let place = u64::from(before.next_used % self.size);
        let entry = USED + 4 + 8 * place;
        let put = self.queue.put(head, at, status, written);
        put.expect("a head that was read, a status that is in memory");
        assert_eq!(
            self.queue.state().next_used,
            before.next_used.wrapping_add(1)
        );
        // The driver may have laid the status over the ring, to its own harm only.
        if !(USED..USED + 6 + 8 * 64).contains(&at) {
            let found: u8 = self.memory.read_obj(GuestAddress(at)).expect("inside");
            assert_eq!(found, status.to_wire());
            let found: u32 = self.memory.read_obj(GuestAddress(entry)).expect("inside");
            assert_eq!(found, u32::from(head));
        }
    }

    /// A request that was taken keeps the rules.
    fn check(&self, request: &Request) {
        let data: u64 = self.chain.data().iter().map(|s| u64::from(s.len)).sum();
        let status = GuestAddress(self.chain.status_at());
        assert!(self.memory.address_in_range(status));
        let changes = match &request.what {
            What::Read(offset) | What::Write(offset) => {
                assert_eq!(data, request.len);
                assert!(self.chain.data().len() <= usize::from(SEG_MAX));
                self.check_range(*offset, request.len);
                matches!(request.what, What::Write(_))
            }
            What::Discard(ranges) | What::WriteZeroes(ranges) => {
                assert!((1..=MAX_RANGES).contains(&ranges.len()));
                let discard = matches!(request.what, What::Discard(_));
                for DiskRange { offset, len, unmap } in ranges {
                    assert!(len / SECTOR <= u64::from(MAX_RANGE_SECTORS));
                    assert!(!(discard && *unmap));
                    self.check_range(*offset, *len);
                }
                let bit = if discard {
                    feature::DISCARD
                } else {
                    feature::WRITE_ZEROES
                };
                assert_ne!(self.rules.features & bit, 0);
                true
            }
            What::Identify => {
                assert!((1..=SERIAL_LEN as u64).contains(&request.len) && request.len <= data);
                false
            }
            What::Flush => false,
        };
        assert!(
            !(changes && self.rules.read_only),
            "a change of a read-only disk"
        );
        let overflow = |s: &Segment| s.address.checked_add(s.len.into()).is_none();
        assert!(!self.chain.data().iter().any(overflow));
    }

    fn check_range(&self, offset: u64, len: u64) {
        assert!(offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR));
        assert!(offset + len <= self.rules.size / SECTOR * SECTOR);
    }

    fn hand_over(&mut self) {
        let state = self.queue.state();
        let memory = Arc::clone(&self.memory);
        let queue = SplitQueue::open(memory, &state, self.rules.features);
        self.queue = queue.expect("what was given back is sound");
        assert_eq!(self.queue.state(), state);
    }

    /// Do one deed; false when the queue is at fault.
    fn act(&mut self, deed: &Deed) -> bool {
        match deed {
            Deed::Descriptor(index, descriptor) => {
                self.put_descriptor(DESCRIPTORS, *index % 64, descriptor);
            }
            Deed::Indirect(at, index, descriptor) => {
                self.put_descriptor(at.address(), *index % 8, descriptor);
            }
            Deed::Header(at, kind, sector) => {
                let kind = KINDS[usize::from(*kind) % KINDS.len()];
                self.put_header(at.address(), kind, *sector);
            }
            Deed::Range(at, sector, sectors, flags) => {
                let at = at.address();
                self.put(at, &sector.to_le_bytes());
                self.put(at.saturating_add(8), &sectors.to_le_bytes());
                self.put(at.saturating_add(12), &u32::from(*flags).to_le_bytes());
            }
            Deed::Bytes(at, bytes) => self.put(at.address(), bytes),
            Deed::Whole(kind, sector, len) => self.put_whole(*kind, *sector, *len),
            Deed::Offer(head) => self.offer(*head),
            Deed::Index(index) => self.publish(*index),
            Deed::Event(event) => {
                let at = AVAILABLE + 4 + 2 * u64::from(self.size);
                self.put(at, &event.to_le_bytes());
                self.put(AVAILABLE, &(event & 1).to_le_bytes());
            }
            Deed::Serve(answer) => return self.serve(*answer),
            Deed::HandOver => self.hand_over(),
        }
        true
    }
}

/// Bytes that a request says were written, which the guest has made room for.
fn check_written(request: &Request, status: Status) -> u32 {
    let written = request.written(status);
    assert!(u64::from(written) <= request.room + 1);
    if status != Status::Ok {
        assert!(written <= 1, "no data counts of what failed");
    }
    written
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let mut bench = Bench::new(&plan);
    let sound = plan.deeds.iter().all(|deed| bench.act(deed));
    if sound {
        bench.serve(0);
    }
    bench.hand_over();
}
