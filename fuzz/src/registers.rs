//! Every register of a machine in the hands of a hostile guest, and the handshake of virtio in any order.
//!
//! What must hold: no panic, whatever is accessed in whatever width; a device gets its queues once, checked,
//! with features that it offers, and gives them back before it gets them again; the status shows only what is;
//! only two bytes to two ports end the machine.

use std::sync::{Arc, Mutex};

use arbitrary::{Arbitrary, Unstructured};
use blockserver::virtio::GuestMemory;
use vm_memory::{Bytes as _, GuestAddress};
use vmm::fuzzing::Front;
use vmm::layout::{ECAM, PCI_WINDOW};

use crate::device::{State, Strict, memory};

const OFFERED: u64 = 1 << 28 | 1 << 29 | 1 << 5;
/// Ports about which something is special.
const PORTS: [u16; 10] = [
    0, 0x60, 0x64, 0xF4, 0x3F8, 0x3FC, 0xCF8, 0xCFC, 0xAE00, 0xFFFF,
];
/// Addresses about which something is special.
const PLACES: [u64; 9] = [
    PCI_WINDOW.start,
    PCI_WINDOW.start + 0x1_0000,
    PCI_WINDOW.start + 0x2_0000,
    PCI_WINDOW.end - 4,
    ECAM.start,
    ECAM.end - 2,
    0xFEC0_0000,
    u64::MAX - 3,
    0xA_0000,
];
/// Fields of the common configuration with their widths, then other structures.
const FIELDS: [(u16, usize); 19] = [
    (0x00, 4),
    (0x08, 4),
    (0x0C, 4),
    (0x10, 2),
    (0x14, 1),
    (0x16, 2),
    (0x18, 2),
    (0x1A, 2),
    (0x1C, 2),
    (0x20, 4),
    (0x24, 4),
    (0x28, 8),
    (0x30, 8),
    (0x1000, 1),
    (0x2000, 8),
    (0x3000, 4),
    (0x3004, 2),
    (0x8000, 8),
    (0xC000, 8),
];
/// Values about which something is special.
const VALUES: [u64; 20] = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    11,
    15,
    16,
    64,
    128,
    256,
    0x1000,
    0x2000,
    0x4000,
    0xFFF0,
    0x3000_0020,
    0xFFFF_FFFF,
    u64::MAX,
];

#[derive(Arbitrary, Debug)]
enum Deed {
    Port(u8, u8, u8, u32, bool),
    Memory(u8, i8, u8, u64, bool),
    /// A field of a device, with a value that means something.
    Field(bool, u8, u8),
    /// Anything behind a base address.
    Behind(bool, u16, u8, u64, bool),
    /// Steps of a sound handshake, so many of them.
    Handshake(bool, u8, u8),
    /// The guest's memory.
    Bytes(u16, u64),
    Host(u8, u8),
}

struct Bench {
    front: Front,
    memory: GuestMemory,
    states: Vec<Arc<Mutex<State>>>,
}

fn base(device: bool) -> u64 {
    PCI_WINDOW.start + if device { 0x2_0000 } else { 0x1_0000 }
}

impl Bench {
    fn new() -> Self {
        let memory = memory();
        let (disk, first) = Strict::new(2, &[256, 256, 16, 1], OFFERED);
        let (rng, second) = Strict::new(4, &[64], 0);
        Self {
            front: Front::new(&memory, vec![disk, rng]),
            memory,
            states: vec![first, second],
        }
    }

    fn put(&self, device: bool, offset: u64, bytes: &mut [u8]) {
        self.front.memory(base(device) + offset, bytes, true);
    }

    fn status(&self, device: bool) -> u8 {
        let mut byte = [0];
        self.front.memory(base(device) + 0x14, &mut byte, false);
        byte[0]
    }

    fn carry_out(&self, deed: &Deed) {
        match *deed {
            Deed::Port(port, by, width, value, write) => {
                let port = PORTS[usize::from(port) % PORTS.len()].wrapping_add((by % 8).into());
                let width = [1, 2, 4][usize::from(width % 3)];
                self.port(port, &mut value.to_le_bytes()[..width], write);
            }
            Deed::Memory(place, by, width, value, write) => {
                let at = PLACES[usize::from(place) % PLACES.len()];
                let width = 1 + usize::from(width % 8);
                let at = at.saturating_add_signed(by.into());
                self.front
                    .memory(at, &mut value.to_le_bytes()[..width], write);
            }
            Deed::Field(device, field, value) => {
                let (offset, width) = FIELDS[usize::from(field) % FIELDS.len()];
                let value = VALUES[usize::from(value) % VALUES.len()];
                self.put(device, offset.into(), &mut value.to_le_bytes()[..width]);
            }
            Deed::Behind(device, offset, width, value, write) => {
                let width = 1 + usize::from(width % 8);
                let at = base(device) + u64::from(offset);
                self.front
                    .memory(at, &mut value.to_le_bytes()[..width], write);
            }
            Deed::Handshake(device, steps, size) => self.handshake(device, steps, size),
            Deed::Bytes(at, value) => {
                // What is not in memory is not written.
                let _ = self.memory.write_obj(value, GuestAddress(at.into()));
            }
            Deed::Host(device, what) => self.front.host(usize::from(device % 2), what),
        }
    }

    /// Only the two bytes that end a machine do.
    fn port(&self, port: u16, bytes: &mut [u8], write: bool) {
        let before = self.front.ended();
        self.front.port(port, bytes, write);
        let ends = write && bytes.len() == 1 && (port == 0xF4 || port == 0x64 && bytes == [0xFE]);
        assert_eq!(self.front.ended(), before || ends, "{port:#x} {bytes:?}");
    }

    fn handshake(&self, device: bool, steps: u8, size: u8) {
        let features: u64 = 1 << 32 | if device { 0 } else { OFFERED };
        let size = match size {
            0..200 => 1 << (size % 10),
            _ => u16::from(size) - 199,
        };
        let (low, high) = (features as u32, (features >> 32) as u32);
        let all: [(u64, &[u8]); 15] = [
            (0x14, &[0]),
            (0x14, &[1]),
            (0x14, &[3]),
            (0x08, &0_u32.to_le_bytes()),
            (0x0C, &low.to_le_bytes()),
            (0x08, &1_u32.to_le_bytes()),
            (0x0C, &high.to_le_bytes()),
            (0x14, &[11]),
            (0x16, &0_u16.to_le_bytes()),
            (0x18, &size.to_le_bytes()),
            (0x20, &0x1000_u64.to_le_bytes()),
            (0x28, &0x3000_u64.to_le_bytes()),
            (0x30, &0x4000_u64.to_le_bytes()),
            (0x1C, &1_u16.to_le_bytes()),
            (0x14, &[15]),
        ];
        for (offset, bytes) in all.into_iter().take(1 + usize::from(steps % 15)) {
            self.put(device, offset, &mut bytes.to_vec());
        }
    }

    fn live(&self, device: bool) -> bool {
        let state = self.states[usize::from(device)].lock();
        state.expect("one thread").live
    }

    /// Whether it is at its place: the number of queues tells whose registers these are.
    fn decoded(&self, device: bool) -> bool {
        let mut number = [0; 2];
        self.front.memory(base(device) + 0x12, &mut number, false);
        u16::from_le_bytes(number) == if device { 1 } else { 4 }
    }

    /// Has it decoded at its place, wherever the guest has moved it.
    fn put_back(&self, device: bool) {
        let config = ECAM.start + (1 + u64::from(device)) * 8 * 4096;
        let mut address = base(device).to_le_bytes();
        self.front.memory(config + 0x10, &mut address, true);
        self.front.memory(config + 4, &mut [6, 0], true);
    }

    /// What the statuses show is what the devices are.
    fn check(&self) {
        for device in [false, true] {
            if !self.decoded(device) {
                continue;
            }
            let status = self.status(device);
            let live = self.live(device);
            let (ok, features, broken) = (status & 4 != 0, status & 8 != 0, status & 64 != 0);
            assert!(features || !ok, "ready without features: {status:#x}");
            assert!(
                ok || !live,
                "a device at work that is not ready: {status:#x}"
            );
            if broken {
                // It says so until it is reset.
                self.put(device, 0x14, &mut [15]);
                assert!(self.status(device) & 64 != 0);
            }
        }
    }
}

/// The body of the target.
pub fn run(data: &[u8]) {
    let mut rest = Unstructured::new(data);
    let bench = Bench::new();
    // A deed takes at least one byte.
    while !rest.is_empty() {
        let Ok(deed) = rest.arbitrary() else {
            break;
        };
        bench.carry_out(&deed);
        bench.check();
    }
    // A driver that finds its device at any time gets it to stand still.
    for device in [false, true] {
        bench.put_back(device);
    }
    for device in [false, true] {
        assert!(bench.decoded(device), "it is where it was put");
        bench.put(device, 0x14, &mut [0]);
        assert_eq!(bench.status(device), 0, "a reset ends everything");
        assert!(!bench.live(device), "a device at work after its reset");
    }
}
