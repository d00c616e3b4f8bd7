//! Functions of PCI's bus 0, by configuration mechanism 1.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::machine::boot::Boot;
use crate::machine::memory::Window;
use crate::machine::ports;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// Asks for configuration space rather than ports.
const ENABLE: u32 = 1 << 31;
const COMMAND: u8 = 0x04;
const HEADER: u8 = 0x0c;
const BARS: u8 = 0x10;
const SUBSYSTEM: u8 = 0x2c;
const CAPABILITIES: u8 = 0x34;
/// In the command register: registers in memory, mastering of the bus, no interrupt pin.
const WORKING: u32 = 1 << 1 | 1 << 2 | 1 << 10;
/// In the status register's half: a list of capabilities.
const HAS_CAPABILITIES: u32 = 1 << 20;
/// Most entries of a list of capabilities: 48 fit.
const MOST_CAPABILITIES: usize = 48;
/// An address of 64 bits that no page table of ours reaches.
const REACHED: u64 = 512 << 30;

/// Where registers go that nobody gave an address. QEMU's firmware fills its hole from the top, ours is told.
static NEXT_BAR: AtomicU32 = AtomicU32::new(0xe800_0000);

/// One function of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function(u32);

/// All that are there.
pub(crate) fn functions() -> impl Iterator<Item = Function> {
    (0..32).flat_map(|device| {
        let first = Function(device << 11);
        let many = first.is_there() && first.read(HEADER) & 1 << 23 != 0;
        let count = if many { 8 } else { 1 };
        let all = (0..count).map(move |number| Function(device << 11 | number << 8));
        all.filter(|function| function.is_there())
    })
}

impl Function {
    /// Whether anything answers there, now.
    pub(crate) fn is_there(self) -> bool {
        self.read(0) & 0xffff != 0xffff
    }

    /// Number of its device on the bus.
    pub(crate) fn device(self) -> u32 {
        self.0 >> 11
    }

    /// Number of the function of the device.
    pub(crate) fn number(self) -> u32 {
        self.0 >> 8 & 7
    }

    /// Vendor and device.
    pub(crate) fn ids(self) -> (u16, u16) {
        halves(self.read(0))
    }

    /// Vendor and device of the subsystem.
    pub(crate) fn subsystem(self) -> (u16, u16) {
        halves(self.read(SUBSYSTEM))
    }

    /// Lets it decode its registers and reach memory, without its interrupt pin.
    pub(crate) fn switch_on(self) {
        // The upper half is the status, whose bits are cleared by ones.
        let command = self.read(COMMAND) & 0xffff;
        self.write(COMMAND, command | WORKING);
    }

    /// The register of four bytes at `offset`.
    pub(crate) fn read(self, offset: u8) -> u32 {
        ports::write32(ADDRESS, ENABLE | self.0 | u32::from(offset & !3));
        ports::read32(DATA)
    }

    fn write(self, offset: u8, value: u32) {
        ports::write32(ADDRESS, ENABLE | self.0 | u32::from(offset & !3));
        ports::write32(DATA, value);
    }

    /// Where its capabilities of a kind are.
    pub(crate) fn capabilities(self, kind: u8) -> impl Iterator<Item = u8> {
        let function = self;
        let listed = self.read(COMMAND) & HAS_CAPABILITIES != 0;
        let first = if listed {
            self.read(CAPABILITIES) as u8 & !3
        } else {
            0
        };
        let next = move |at: &u8| Some((function.read(*at) >> 8) as u8 & !3);
        core::iter::successors(Some(first), next)
            .take(MOST_CAPABILITIES)
            .take_while(|at| *at != 0)
            .filter(move |at| function.read(*at) as u8 == kind)
    }

    /// `len` bytes of the memory behind BAR `index`, from `offset` on.
    pub(crate) fn registers(self, boot: &Boot, index: u8, offset: u32, len: u32) -> Window {
        assert!(index < 6, "BAR {index} cannot be");
        let at = BARS + 4 * index;
        let low = self.read(at);
        assert!(low & 1 == 0, "BAR {index} is not memory");
        let wide = low >> 1 & 3 == 2;
        let high = if wide { self.read(at + 4) } else { 0 };
        let mut base = u64::from(high) << 32 | u64::from(low & !15);
        if base == 0 || base >= REACHED {
            base = self.place(at, wide);
        }
        Window::device(boot, base + u64::from(offset), u64::from(len))
    }

    /// Gives a BAR without an address one.
    fn place(self, at: u8, wide: bool) -> u64 {
        self.write(at, u32::MAX);
        let size = (!(self.read(at) & !15)).wrapping_add(1);
        assert!(size.is_power_of_two(), "a BAR of {size} bytes");
        let next = NEXT_BAR.load(Ordering::Relaxed).next_multiple_of(size);
        NEXT_BAR.store(next + size, Ordering::Relaxed);
        self.write(at, next);
        if wide {
            self.write(at + 4, 0);
        }
        u64::from(next)
    }
}

fn halves(register: u32) -> (u16, u16) {
    (register as u16, (register >> 16) as u16)
}
