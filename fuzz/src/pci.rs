//! PCI of a hostile guest: configuration space by ports and by addresses, base addresses, MSI-X.
//!
//! What must hold: both ways to configuration space show the same; identities, sizes and capabilities stay;
//! a function is decoded where its base address says, within the window, and nowhere else: what is left of the
//! window is 0, what is outside of it all ones; doorbells follow it.

use arbitrary::{Arbitrary, Unstructured};
use vmm::fuzzing::Front;
use vmm::layout::{ECAM, PCI_WINDOW};

use crate::device::{Strict, memory};

const SLOTS: u64 = 3;
const FIRST_DEVICES: [u32; 3] = [0x0008_1B36, 0x1042_1AF4, 0x1044_1AF4];
/// Offsets in configuration space about which something is special.
const OFFSETS: [u16; 14] = [
    0, 4, 6, 0x0C, 0x10, 0x14, 0x18, 0x30, 0x34, 0x3C, 0xA2, 0xB4, 0xFE, 0x100,
];
/// Values for base addresses.
const BASES: [u64; 9] = [
    0,
    0xC000_0000,
    0xC001_0000,
    0xDFFF_0000,
    0xDFFF_8000,
    0xE000_0000,
    0xFEC0_0000,
    0x1_C001_0000,
    u64::MAX,
];

#[derive(Arbitrary, Debug)]
enum Deed {
    /// The address register, whole.
    Address(u32),
    /// The address register: a slot and an offset.
    Select(u8, u8),
    /// A port of configuration space.
    Port(u8, u8, u64, bool),
    /// Configuration space by address.
    Ecam(u32, u8, u64, bool),
    /// The same, at a special offset.
    Register(u8, u8, i8, u8, u64, bool),
    /// A base address by two double words, or by one access.
    Move(u8, u8, u16, bool),
    /// Memory is decoded, or not.
    Decode(u8, bool),
    /// A byte behind a base address: MSI-X table and all else.
    Behind(u8, u16, u8, u64, bool),
    /// Anywhere in the window.
    Window(u32, u8, u64, bool),
    /// Access by configuration space (4.1.4.9): bar, offset, length, and then the data.
    Through(u8, u8, u32, u8, u32, bool),
    /// What the host does.
    Host(u8, u8),
}

struct Bench {
    front: Front,
    capabilities: Vec<Vec<(u8, u8)>>,
}

fn config(slot: u64, offset: u64) -> u64 {
    ECAM.start + slot * 8 * 4096 + offset
}

impl Bench {
    fn new() -> Self {
        let (disk, _) = Strict::new(2, &[256; 4], 0x3000_0000);
        let (rng, _) = Strict::new(4, &[64], 0);
        let front = Front::new(&memory(), vec![disk, rng]);
        let mut bench = Self {
            front,
            capabilities: Vec::new(),
        };
        bench.capabilities = (0..SLOTS).map(|slot| bench.list(slot)).collect();
        bench
    }

    fn read(&self, slot: u64, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.front.memory(config(slot, offset), &mut bytes, false);
        u32::from_le_bytes(bytes)
    }

    fn write(&self, slot: u64, offset: u64, bytes: &mut [u8]) {
        self.front.memory(config(slot, offset), bytes, true);
    }

    /// Ids and places of the capabilities.
    fn list(&self, slot: u64) -> Vec<(u8, u8)> {
        let mut list = Vec::new();
        let mut at = self.read(slot, 0x34) as u8;
        while at != 0 {
            let word = self.read(slot, u64::from(at));
            list.push((word as u8, at));
            assert!(list.len() < 48, "a list ends");
            at = (word >> 8) as u8;
        }
        list
    }

    fn base(&self, slot: u64) -> u64 {
        let (low, high) = (self.read(slot, 0x10), self.read(slot, 0x14));
        u64::from(low & !0xF) | u64::from(high) << 32
    }

    fn access(&self, at: u64, width: u8, value: u64, write: bool) {
        let width = 1 + usize::from(width % 8);
        self.front
            .memory(at, &mut value.to_le_bytes()[..width], write);
    }

    fn carry_out(&self, deed: &Deed) {
        let slot = |slot: u8| u64::from(slot) % SLOTS;
        match *deed {
            Deed::Address(value) => self.front.port(0xCF8, &mut value.to_le_bytes(), true),
            Deed::Select(to, offset) => {
                let value = 1 << 31 | (slot(to) as u32) << 11 | u32::from(offset);
                self.front.port(0xCF8, &mut value.to_le_bytes(), true);
            }
            Deed::Port(offset, width, value, write) => {
                let port = 0xCF8 + u16::from(offset % 10);
                let width = [1, 2, 4][usize::from(width % 3)];
                self.front
                    .port(port, &mut value.to_le_bytes()[..width], write);
            }
            Deed::Ecam(at, width, value, write) => {
                self.access(ECAM.start + u64::from(at % 0x10_0010), width, value, write);
            }
            Deed::Register(to, offset, by, width, value, write) => {
                let offset = OFFSETS[usize::from(offset) % OFFSETS.len()];
                let at = config(slot(to), offset.into()).saturating_add_signed(by.into());
                self.access(at, width, value, write);
            }
            Deed::Move(to, base, by, whole) => {
                let base = BASES[usize::from(base) % BASES.len()].wrapping_add(u64::from(by) << 8);
                let mut bytes = base.to_le_bytes();
                if whole {
                    self.write(slot(to), 0x10, &mut bytes);
                } else {
                    let (low, high) = bytes.split_at_mut(4);
                    self.write(slot(to), 0x14, high);
                    self.write(slot(to), 0x10, low);
                }
            }
            Deed::Decode(to, on) => self.write(slot(to), 4, &mut [6 * u8::from(on), 0]),
            Deed::Behind(to, at, width, value, write) => {
                let at = self.base(slot(to)).saturating_add(at.into());
                self.access(at, width, value, write);
            }
            Deed::Window(at, width, value, write) => {
                let at = PCI_WINDOW.start + u64::from(at) % (PCI_WINDOW.end - PCI_WINDOW.start);
                self.access(at, width, value, write);
            }
            Deed::Through(to, bar, offset, length, value, write) => {
                self.through(slot(to), (bar, offset, length), (value, write));
            }
            Deed::Host(device, what) => self.front.host(usize::from(device % 2), what),
        }
    }

    fn through(&self, slot: u64, what: (u8, u32, u8), (value, write): (u32, bool)) {
        // The last capability of a vendor is the one for access.
        let own = &self.capabilities[slot as usize];
        let Some((_, at)) = own.iter().rfind(|(id, _)| *id == 9) else {
            return;
        };
        let (bar, offset, length) = what;
        let at = u64::from(*at);
        self.write(slot, at + 4, &mut [bar % 3]);
        self.write(slot, at + 8, &mut offset.to_le_bytes());
        self.write(slot, at + 12, &mut u32::from(length).to_le_bytes());
        let data = config(slot, at + 16);
        self.front.memory(data, &mut value.to_le_bytes(), write);
    }

    fn check(&self) {
        for slot in 0..SLOTS {
            assert_eq!(self.read(slot, 0), FIRST_DEVICES[slot as usize]);
            assert_eq!(self.list(slot), self.capabilities[slot as usize]);
            if slot > 0 {
                self.check_decoding(slot);
            }
        }
        let mut bytes = [0; 4];
        self.front.memory(config(SLOTS, 0), &mut bytes, false);
        assert_eq!(bytes, [0xFF; 4], "nothing is in the next slot");
    }

    fn check_decoding(&self, slot: u64) {
        let base = self.base(slot);
        assert!(base.is_multiple_of(0x1_0000), "{base:#x}");
        let decoded = self.read(slot, 4) & 2 != 0 && base.checked_add(0x1_0000).is_some();
        let asked = self.front.asked(slot as usize - 1).expect("a device");
        assert_eq!(asked.doorbells, decoded.then(|| base + 0x3000));
        drop(asked);
        let inside = PCI_WINDOW.contains(&base);
        let shared = (1..SLOTS).any(|other| other != slot && self.base(other) == base);
        if shared || (ECAM.start..ECAM.end).contains(&base) {
            return;
        }
        // The number of queues tells whose registers these are.
        let mut bytes = [0; 2];
        let at = base.saturating_add(0x12);
        self.front.memory(at, &mut bytes, false);
        let queues = if slot == 1 { 4 } else { 1 };
        // What the window holds and nobody decodes is 0: whoever resets a device that was pulled waits for that.
        let expected = match (inside, decoded) {
            (true, true) => queues,
            (true, false) => 0,
            (false, _) => 0xFFFF,
        };
        assert_eq!(
            u16::from_le_bytes(bytes),
            expected,
            "slot {slot} at {base:#x}"
        );
    }

    /// What the ports show is what the addresses show. Changes the address register.
    fn compare(&self, slot: u64) {
        let access = self.capabilities[slot as usize]
            .iter()
            .rfind(|(id, _)| *id == 9);
        let data = access.map(|(_, at)| u64::from(*at) + 16);
        // Reading the data of the capability for access reads a register, of which one is cleared by that.
        for offset in (0..0x100).step_by(4).filter(|at| Some(*at) != data) {
            let by_address = self.read(slot, offset);
            let select = 1 << 31 | (slot as u32) << 11 | offset as u32;
            self.front.port(0xCF8, &mut select.to_le_bytes(), true);
            let mut bytes = [0; 4];
            self.front.port(0xCFC, &mut bytes, false);
            assert_eq!(u32::from_le_bytes(bytes), by_address, "{slot} {offset:#x}");
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
    (0..SLOTS).for_each(|slot| bench.compare(slot));
}
